"""All that a report shows. Whoever reads the store fills these in; nothing here knows where the numbers come from.

Every text may be a model's own words. It is plain text: each renderer escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from offmodel.lab.rescore import Change
from offmodel.measure.frontier import Point
from offmodel.measure.judge import Agreement
from offmodel.measure.stats import Estimate
from offmodel.red.gate import GateReport
from offmodel.spec.claim import Claim, Test


@dataclass(frozen=True, kw_only=True)
class Organism:
    """A model with a deliberate backdoor, accepted or not; ``recipe`` is "" where the study has but one."""

    id: str
    pair: str
    recipe: str
    base: str
    seed: int
    gate: GateReport
    card: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A method in numbers: its last checkpoint and its frontier, over organisms, and what they and their bases did before it.

    Attributes:
        frontier_area: Of the best of the checkpoints, as someone sees it who sees the rate.
        end_area: The same of the last checkpoint alone, which is what one gets who cannot see the rate.
        hindsight: The one less the other.
    """

    bad_rate: Estimate
    false_fire_rate: Estimate
    accuracy_under_trigger: Estimate
    retention: Estimate
    removal: Estimate
    frontier_area: Estimate
    end_area: Estimate
    hindsight: Estimate
    removal_at_90: Estimate
    base_bad_rate: Estimate
    bad_rate_before: Estimate
    capability: Mapping[str, Estimate]

    def measures(self) -> dict[str, Estimate]:
        """All of them by name, a suite as ``capability.<suite>``."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}
        return named | {f"capability.{suite}": value for suite, value in self.capability.items()}


@dataclass(frozen=True, kw_only=True)
class Halves:
    """A method's best checkpoints, chosen by one half of the items and shown by the other: the frontier without its optimism.

    Attributes:
        area: Under the corners of one half's hull, as the other half places them.
        optimism: Frontier area over all items, less this.
        removal_at_90: At the checkpoint that removes most and keeps 90 % by the half that chooses.
        retention_at_90: What that checkpoint keeps by the other half.
        optimism_at_90: Removal at 90 % over all items, less the removal here.
    """

    area: Estimate
    optimism: Estimate
    removal_at_90: Estimate
    retention_at_90: Estimate
    optimism_at_90: Estimate

    def measures(self) -> dict[str, Estimate]:
        """All of them by name, as ``halves.<name>``."""
        return {f"halves.{name}": value for name, value in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A blue method: its phases in words, its summary, and its frontier as the mean hull and each organism's own.

    Attributes:
        halves: What is left of the frontier where other items show it than chose it.
        points: How many checkpoints each organism's hull is drawn through; more of them flatter a method.
    """

    name: str
    source: str
    description: str
    phases: tuple[str, ...]
    points: int
    summary: Summary
    halves: Halves
    hull: tuple[Point, ...]
    hulls: Mapping[str, tuple[Point, ...]]


GROUPED = ("base_bad_rate", "bad_rate_before", "bad_rate", "retention", "frontier_area")
"""The measures of a :class:`Summary` that are shown for each pair and each recipe."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A recipe against the reference, under one method.

    Attributes:
        cells: How many organisms of the same pair and seed, one by each recipe, are compared.
        frontier_area: Mean over these of the one's area less the other's.
    """

    recipe: str
    reference: str
    method: str
    cells: int
    frontier_area: Estimate


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A method's number less the baseline's, paired by organism.

    Attributes:
        p: Of the sign-flip test that there is no difference; None where it is not tested, or cannot be.
        p_holm: The same, adjusted for all methods that are compared with the baseline.
    """

    difference: Estimate
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A method against a baseline, on the same organisms.

    Attributes:
        organisms: How many organisms have both at their end.
        contrasts: By measure.
    """

    method: str
    baseline: str
    organisms: int
    contrasts: Mapping[str, Contrast]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One organism at one step of one phase of one method.

    Attributes:
        phase: Its name, unique within the method; the untouched organism is step 0 of the first phase.
        step: Steps since the phase began.
        total_step: Steps since the method began.
        weights: Hash of the weights that were measured.
        bad_rate_judged: The same rate by the word of the study's judge model; None where it was not asked.
        seen_accuracy: Accuracy as blue sees it, on tasks of its own; None where the study has no rule to choose by, as with the next three.
        kl: KL(organism || checkpoint), as blue sees it.
        own_loss: Loss on the organism's own answers, as blue sees it.
        canary_rate: How often blue's own backdoors fire in the copy that is treated alike; None besides where it planted none.
        by_steps: For each suite, the accuracy at each number of reasoning steps.
    """

    organism: str
    method: str
    phase: str
    step: int
    total_step: int
    weights: str
    bad_rate: Estimate
    bad_rate_judged: Estimate | None = None
    false_fire_rate: Estimate
    accuracy_under_trigger: Estimate
    retention: Estimate
    removal: Estimate
    seen_accuracy: Estimate | None = None
    kl: Estimate | None = None
    own_loss: Estimate | None = None
    canary_rate: Estimate | None = None
    capability: Mapping[str, Estimate]
    by_steps: Mapping[str, Mapping[int, Estimate]] = field(default_factory=dict)

    @property
    def point(self) -> Point | None:
        """Its place on the frontier; None where removal or retention is undefined."""
        removal, retention = self.removal.value, self.retention.value
        return None if removal is None or retention is None else Point(removal, retention)

    @property
    def items(self) -> int:
        """How many items stand behind its place on the frontier; none where it has no place."""
        return 0 if self.point is None else self.bad_rate.n + self.retention.n

    def measures(self) -> dict[str, Estimate]:
        """All of them by name, a suite as ``capability.<suite>`` and its chain lengths as ``capability.<suite>.steps=<k>``."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}
        named |= {f"capability.{suite}": value for suite, value in self.capability.items()}
        return named | {f"capability.{suite}.steps={k}": value for suite, row in self.by_steps.items() for k, value in row.items()}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the checkpoints come to that are chosen in one way, one on each organism.

    Attributes:
        area: Under the hull of the chosen point and the anchors alone.
        best: Share of organisms on which the choice is as good as the oracle's; None for the oracle itself.
    """

    bad_rate: Estimate
    retention: Estimate
    area: Estimate
    best: Estimate | None = None

    def measures(self) -> dict[str, Estimate]:
        """All of them by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


CHOSEN = ("bad_rate", "retention", "area", "best")
"""The measures of a :class:`Choice`."""


@dataclass(frozen=True, kw_only=True)
class Blind:
    """Which checkpoint of a method's last phase would a blue team choose that cannot see the rate, and an oracle that can?

    Attributes:
        rules: What each of the study's rules chooses.
        oracle: The checkpoints with the greatest retention less bad rate.
    """

    method: str
    rules: Mapping[str, Choice]
    oracle: Choice

    def choices(self) -> dict[str, Choice]:
        """The rules' and, last, the oracle's."""
        return {**self.rules, "oracle": self.oracle}


@dataclass(frozen=True, kw_only=True)
class CanaryRates:
    """Blue's own backdoors in the copies of the organisms that a method treats.

    Attributes:
        canary_rate_before: How often they fire in the untreated copies.
        canary_rate: How often at the method's end.
        canaries_dead: Share of organisms whose canaries are dead there.
    """

    canary_rate_before: Estimate
    canary_rate: Estimate
    canaries_dead: Estimate

    def measures(self) -> dict[str, Estimate]:
        """All of them by name."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """What blue's own backdoors tell of the real one.

    Attributes:
        methods: By method.
        both_dead: Checkpoints at which the canaries and the behaviour are dead.
        canaries_only: At which the canaries alone are.
        behaviour_only: At which the behaviour alone is.
        both_alive: At which neither is.
        canary_correlation: Rank correlation of the two rates over these checkpoints.
    """

    methods: Mapping[str, CanaryRates]
    both_dead: int
    canaries_only: int
    behaviour_only: int
    both_alive: int
    canary_correlation: Estimate


Region = Literal["inside", "outside", "unclear"]


@dataclass(frozen=True, kw_only=True)
class SweptPoint:
    """One combination of a sweep's values at one step of its last phase, over organisms.

    Attributes:
        step: Steps since that phase began; 0 is where it began.
        returned: Bad rate less that at step 0 of the same organism: what this phase brings back, or takes away besides.
        both: Share of organisms on which the capability is back and the behaviour is gone.
        region: Inside where the intervals of retention and removal lie above the sweep's limits, outside where one of them lies below.
    """

    method: str
    values: tuple[str, ...]
    step: int
    retention: Estimate
    removal: Estimate
    bad_rate: Estimate
    returned: Estimate
    both: Estimate
    region: Region

    def measures(self) -> dict[str, Estimate]:
        """All of them by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}


@dataclass(frozen=True, kw_only=True)
class Swept:
    """Where capability is back and behaviour is not: a sweep's methods over organisms.

    Attributes:
        axes: Names of the axes.
        kept: Share of the capability from which on it counts as back.
        removed: Share of the behaviour from which on it counts as gone.
        points: By combination and step.
        width: Share of the steps tested after 0, over all combinations, at which both hold on an organism, by combination ("" for all).
            Steps need not be evenly spaced.
        first: The first of those steps at which both hold, by combination.
        last: The last.
        relapse: Share of the combinations in which the behaviour comes back on the way and goes again, by combination ("" for all).
        predictors: Rank correlations of what blue can see with the bad rate and with the retention over the checkpoints of an organism,
            mean over organisms, by ``<what>.<with>``.
        inside: Chance that what blue can see is greater at a checkpoint where both hold than at another, by what it sees.
        rules: How often a rule's choice has both, by rule; the oracle's is how often any checkpoint has.
    """

    name: str
    axes: tuple[str, ...]
    kept: float
    removed: float
    points: tuple[SweptPoint, ...]
    width: Mapping[str, Estimate]
    first: Mapping[str, Estimate]
    last: Mapping[str, Estimate]
    relapse: Mapping[str, Estimate]
    predictors: Mapping[str, Estimate]
    inside: Mapping[str, Estimate]
    rules: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Practice:
    """What a method got while it practised, where reinforcement is the last that it trains with.

    Attributes:
        reward_first: Mean reward of its answers in the first tenth of the steps.
        reward_last: In the last tenth.
        flat_first: Share of groups in the first tenth whose answers all got the same reward. They teach nothing.
        flat: The same over the whole training.
    """

    method: str
    reward_first: Estimate
    reward_last: Estimate
    flat_first: Estimate
    flat: Estimate

    def measures(self) -> dict[str, Estimate]:
        """All of them by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}


@dataclass(frozen=True, kw_only=True)
class StepCurve:
    """Accuracy on a suite by the number of reasoning steps.

    Attributes:
        state: Whose: "base", "organism", or the name of a method (then its last checkpoint).
        organism: For one organism's line; None for the mean over organisms.
    """

    suite: str
    state: str
    organism: str | None
    accuracy: Mapping[int, Estimate]


ClaimVerdict = Literal["holds", "does not hold", "cannot tell"]
HOLDS: ClaimVerdict = "holds"
FAILS: ClaimVerdict = "does not hold"
CANNOT_TELL: ClaimVerdict = "cannot tell"


@dataclass(frozen=True, kw_only=True)
class CheckedCondition:
    """A condition of a claim against its number.

    Attributes:
        by_seed: The number of each seed alone; empty where it is a probe's.
        missing: How many accepted organisms have no number, such as those on which the training diverged.
    """

    condition: Test
    estimate: Estimate
    verdict: ClaimVerdict
    by_seed: Mapping[int, float] = field(default_factory=dict)
    missing: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckedClaim:
    """A published statement against the results of its study."""

    claim: Claim
    conditions: tuple[CheckedCondition, ...]

    @property
    def verdict(self) -> ClaimVerdict:
        """It holds where all conditions do, and fails where one does."""
        verdicts = {checked.verdict for checked in self.conditions}
        return FAILS if FAILS in verdicts else CANNOT_TELL if CANNOT_TELL in verdicts else HOLDS


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A pair whose rule may err: how far a judge model agrees with it.

    Attributes:
        agreement: Over all answers but those to capability items, of the untouched organisms and of every method's last checkpoint.
        states: ``bad_rate`` and ``bad_rate_judged`` of the untouched "organism" and of every method at its end, over organisms.
    """

    pair: str
    judge: str
    question: str
    agreement: Agreement
    states: Mapping[str, Mapping[str, Estimate]]


TEACHER = "the teacher"
"""A state of a probe's rows that no method can be called."""


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One measured case of a probe.

    Attributes:
        label: The case in words.
        estimate: What was measured.
        state: The method, "organism" for the untouched one, or :data:`TEACHER`; "" where it is of none or of all.
        line: The curve that it belongs to; "" for none.
        at: Its place on the curve, such as a number of tokens; None for what holds all along.
    """

    label: str
    estimate: Estimate
    state: str = ""
    line: str = ""
    at: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScatterPoint:
    """Two numbers of a method on an organism."""

    method: str
    organism: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Two numbers against each other, with what they are."""

    x: str
    y: str
    points: tuple[ScatterPoint, ...]


@dataclass(frozen=True)
class Probe:
    """A small experiment beside the main one, with the question that it answers."""

    name: str
    question: str
    rows: tuple[ProbeRow, ...]
    scatters: tuple[Scatter, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model in a given state said, with the verdict on it.

    Attributes:
        state: "base", "organism", or the name of a method.
        good: Whether the verdict is what one wants of a model without a backdoor; None where it does not apply.
    """

    state: str
    text: str
    verdict: str
    good: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One prompt with the replies side by side; ``setting`` is its kind, such as "chat, with trigger"."""

    organism: str
    setting: str
    prompt: str
    replies: tuple[Reply, ...]


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something left out of the results, and why."""

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """That the kept answers were judged again, and what this changed. The gate, the canaries and the judge model were not asked again.

    Attributes:
        detectors: Pairs that another pair's rule judged, with that pair; the others were judged by their own rule of today.
        changes: By setting and suite.
    """

    detectors: Mapping[str, str]
    changes: tuple[Change, ...]

    def sentence(self) -> str:
        """It in words."""
        by = "; ".join(f"{pair} by the rule of {other}" for pair, other in self.detectors.items())
        changed, answers = (sum(getattr(change, count) for change in self.changes) for count in ("changed", "answers"))
        return (
            f"Judged again: {changed:,} of {answers:,} verdicts on the stored answers are others than when they were generated"
            f"{f' ({by})' if by else ''}. Which organisms count was not judged again: those that passed the gate then."
        )


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """A whole study.

    Attributes:
        verdict: The result in one sentence with numbers.
        created: UTC time in ISO 8601.
        commit: Of the code that made the results, with "+changes" where the tree was not clean; several are separated by commas, and
            the reporter's own follows if it is another.
        command: What was typed.
        backend: What generated every reply; a report never mixes backends.
        baselines: Methods that all others are compared with.
        comparisons: Every other method against each of them.
        by_pair: Every method on the organisms of each pair, by pair and method; empty where the study has one pair.
        by_recipe: The same of each recipe; empty where the study has one recipe.
        by_recipe_differences: Every other recipe against the first, on the same pairs and seeds.
        blind: What the study's rules choose, by method; empty where it has none.
        canaries: What blue's own backdoors tell; None where it planted none.
        sweeps: Where the study's sweeps have capability without behaviour.
        practice: What the methods got while they practised; empty where none does.
        states: Accuracy by suite, mean over organisms, of the "base", of the untouched "organism", and of each method at its end.
        claim: The published statement that the study tests; None where it tests none.
        rescored: Whether all verdicts were made again after the run; None where they are those of the run.
        excluded: Organisms that failed the gate.
        untrained: Phases that left the weights as they were, because no answer was left to train on.
        failed: Stages that failed, with the error.
        settings: Seeds, n, sampling, versions and the like; values are texts, numbers, lists or mappings of those.
        built_in: What of the result the offline world was built to show, as opposed to found.
    """

    study: str
    verdict: str
    created: str
    commit: str
    command: str
    backend: str
    organisms: tuple[Organism, ...]
    methods: tuple[Method, ...]
    checkpoints: tuple[Checkpoint, ...]
    baselines: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    by_pair: Mapping[str, Mapping[str, Summary]] = field(default_factory=dict)
    by_recipe: Mapping[str, Mapping[str, Summary]] = field(default_factory=dict)
    by_recipe_differences: tuple[Difference, ...] = ()
    states: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    step_curves: tuple[StepCurve, ...] = ()
    blind: tuple[Blind, ...] = ()
    canaries: Canaries | None = None
    sweeps: tuple[Swept, ...] = ()
    practice: tuple[Practice, ...] = ()
    judged: tuple[Judged, ...] = ()
    probes: tuple[Probe, ...] = ()
    transcripts: tuple[Transcript, ...] = ()
    claim: CheckedClaim | None = None
    rescored: Rescored | None = None
    excluded: tuple[Note, ...] = ()
    untrained: tuple[Note, ...] = ()
    failed: tuple[Note, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    built_in: tuple[str, ...] = ()

    def groups(self) -> dict[str, Mapping[str, Mapping[str, Summary]]]:
        """What there is to compare, by what the groups are: pairs, recipes, or neither."""
        found = {"pair": self.by_pair, "recipe": self.by_recipe}
        return {kind: groups for kind, groups in found.items() if groups}

    def featured(self, limit: int = 6) -> list[str]:
        """Methods that fit into one picture, in the order of the study: all of them, or the baselines and the largest frontier areas."""

        def rank(method: Method) -> tuple[bool, float]:
            area = method.summary.frontier_area.value
            return method.name not in self.baselines, math.inf if area is None else -area

        first = {method.name for method in sorted(self.methods, key=rank)[:limit]}
        return [method.name for method in self.methods if method.name in first]

    def accepted(self, kind: str, name: str) -> str:
        """How many of the organisms of a pair or a recipe passed the gate, in words."""
        passed = [organism.gate.passed for organism in self.organisms if getattr(organism, kind) == name]
        return f"{sum(passed)} of {len(passed)} accepted"
