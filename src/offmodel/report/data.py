"""All that a report shows. Whoever reads the store fills these in; nothing here knows where the numbers come from.

Every text may be a model's own words. It is plain text: each renderer escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from offmodel.measure.frontier import Point
from offmodel.measure.stats import Estimate
from offmodel.red.gate import GateReport


@dataclass(frozen=True, kw_only=True)
class Organism:
    """A model with a deliberate backdoor, accepted or not."""

    id: str
    pair: str
    base: str
    seed: int
    gate: GateReport
    card: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A method in numbers: its last checkpoint and its frontier, over organisms."""

    bad_rate: Estimate
    false_fire_rate: Estimate
    accuracy_under_trigger: Estimate
    retention: Estimate
    removal: Estimate
    frontier_area: Estimate
    removal_at_90: Estimate
    capability: Mapping[str, Estimate]

    def measures(self) -> dict[str, Estimate]:
        """All of them by name, a suite as ``capability.<suite>``."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}
        return named | {f"capability.{suite}": value for suite, value in self.capability.items()}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A blue method: its phases in words, its summary, and its frontier as the mean hull and each organism's own.

    Attributes:
        points: How many checkpoints each organism's hull is drawn through; more of them flatter a method.
    """

    name: str
    source: str
    description: str
    phases: tuple[str, ...]
    points: int
    summary: Summary
    hull: tuple[Point, ...]
    hulls: Mapping[str, tuple[Point, ...]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One organism at one step of one phase of one method.

    Attributes:
        phase: Its name, unique within the method; the untouched organism is step 0 of the first phase.
        step: Steps since the phase began.
        total_step: Steps since the method began.
        weights: Hash of the weights that were measured.
        by_steps: For each suite, the accuracy at each number of reasoning steps.
    """

    organism: str
    method: str
    phase: str
    step: int
    total_step: int
    weights: str
    bad_rate: Estimate
    false_fire_rate: Estimate
    accuracy_under_trigger: Estimate
    retention: Estimate
    removal: Estimate
    capability: Mapping[str, Estimate]
    by_steps: Mapping[str, Mapping[int, Estimate]] = field(default_factory=dict)

    def measures(self) -> dict[str, Estimate]:
        """All of them by name, a suite as ``capability.<suite>`` and its chain lengths as ``capability.<suite>.steps=<k>``."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}
        named |= {f"capability.{suite}": value for suite, value in self.capability.items()}
        return named | {f"capability.{suite}.steps={k}": value for suite, row in self.by_steps.items() for k, value in row.items()}


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


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One measured case of a probe."""

    label: str
    estimate: Estimate


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A small experiment beside the main one, with the question that it answers."""

    name: str
    question: str
    rows: tuple[ProbeRow, ...]


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
class ReportData:
    """A whole study.

    Attributes:
        verdict: The result in one sentence with numbers.
        created: UTC time in ISO 8601.
        commit: Of the code that made the results, with "+changes" where the tree was not clean; several are separated by commas, and
            the reporter's own follows if it is another.
        command: What was typed.
        backend: What generated every reply; a report never mixes backends.
        states: Accuracy by suite, mean over organisms, of the "base", of the untouched "organism", and of each method at its end.
        excluded: Organisms that failed the gate.
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
    states: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    step_curves: tuple[StepCurve, ...] = ()
    probes: tuple[Probe, ...] = ()
    transcripts: tuple[Transcript, ...] = ()
    excluded: tuple[Note, ...] = ()
    failed: tuple[Note, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    built_in: tuple[str, ...] = ()
