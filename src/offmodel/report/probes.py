"""What the probes come to: rows, curves and scatters from the results of their stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple

from offmodel import catalog
from offmodel.errors import SpecError
from offmodel.lab.plan import PlannedOrganism
from offmodel.lab.results import PROBED
from offmodel.lab.stage import Stage
from offmodel.lab.store import Store
from offmodel.measure import correlation, frontier
from offmodel.measure.probes import Chains, Coverage, Divergence, LabelFit, OwnOpening, Reversal, pass_at_k, steps_until
from offmodel.measure.score import Verdict, accuracy, bad_rate
from offmodel.measure.stats import (
    HIGHER,
    LOWER,
    Direction,
    Estimate,
    average,
    less,
    mean_over_organisms,
    mean_per_token,
    mean_share,
    median_steps,
)
from offmodel.measure.suites import Suite
from offmodel.report.compare import Gap, mean_difference, mean_level
from offmodel.report.data import TEACHER, Checkpoint, Probe, ProbeRow, Scatter, ScatterPoint
from offmodel.spec.phases import SftPhase
from offmodel.spec.study import Study

_CORRELATIONS: Mapping[correlation.Method, str] = {"spearman": "Spearman's rank correlation", "pearson": "Pearson's correlation"}


class Ended(NamedTuple):
    """A model that a probe was made of: a method's last checkpoint on an organism, or the untouched organism."""

    organism: PlannedOrganism
    row: Checkpoint
    verdicts: Sequence[Verdict]


@dataclass(frozen=True)
class Seen:
    """What rows are made of.

    Attributes:
        study: The study.
        suites: Its capability suites.
        pairs: Which pair each organism is of.
        untouched: The untouched organisms.
        ends: The end of each method by method and organism, of the organisms that have its last phase.
        checkpoints: All that was scored of accepted organisms.
        store: Where results are.
        verdicts: Those of a score; None where it is not there.
        capability: One number of a model's verdicts.
    """

    study: Study
    suites: Sequence[Suite]
    pairs: Mapping[str, str]
    untouched: Mapping[str, Ended]
    ends: Mapping[str, Mapping[str, Ended]]
    checkpoints: Sequence[Checkpoint]
    store: Store
    verdicts: Callable[[Stage], Sequence[Verdict] | None]
    capability: Callable[[Sequence[Verdict]], Estimate]

    @property
    def states(self) -> dict[str, Mapping[str, Ended]]:
        """The untouched "organism" and every method's end."""
        return {"organism": self.untouched, **self.ends}

    def scores(self, probe: str, state: str) -> dict[str, dict[str, Sequence[Verdict]]]:
        """The verdicts of a probe's scores by organism and role, of the organisms that have them all."""
        found = {}
        for organism, end in self.states[state].items():
            read = {role: self.verdicts(stage) for role, stage in end.organism.probes[probe][state].items()}
            there = {role: verdicts for role, verdicts in read.items() if verdicts is not None}
            if there and len(there) == len(read):
                found[organism] = there
        return found

    def probed(self, probe: str, state: str, role: str) -> dict[str, dict[str, Any]]:
        """What a stage of a probe's own wrote, by organism."""
        found = {}
        for organism, end in self.states[state].items():
            stage = end.organism.probes[probe][state].get(role)
            result = self.store.get(stage) if stage else None
            if result is not None:
                found[organism] = json.loads((result.path / PROBED).read_text(encoding="utf-8"))
        return found

    def over(self, organisms: Collection[str]) -> str:
        """Over organisms, in words; over how many of the untouched ones where some are missing, so that rows are not of the same."""
        return "over organisms" if len(organisms) == len(self.untouched) else f"over {len(organisms)} of {len(self.untouched)} organisms"

    def mean(self, parts: Mapping[str, Estimate]) -> Estimate:
        """Mean over organisms, with the definition of the parts."""
        return mean_level(parts, f"{{}}; mean {self.over(parts)}", self.pairs)

    def share(self, parts: Mapping[str, float | None], definition: str, direction: Direction) -> Estimate:
        """Share of organisms."""
        definition = f"{definition}; {self.over(parts)}"
        return mean_over_organisms(parts, definition, direction, seed=0, pairs=self.pairs, yes_or_no=True)

    def difference(self, numbers: Mapping[str, Estimate | float], definition: str, direction: Direction = HIGHER) -> Estimate:
        """Mean of differences that were taken on each organism."""
        gaps = [Gap(self.pairs[o], self.untouched[o].organism.seed, number) for o, number in numbers.items()]
        return mean_difference(gaps, f"{definition}; mean {self.over(numbers)}", direction, "points")

    def correlations(self, what: str, points: Sequence[ScatterPoint], over: str) -> Iterator[ProbeRow]:
        """By ranks and of the numbers themselves, with the capability lost."""
        by_organism: dict[str, list[correlation.Point]] = {}
        for point in points:
            by_organism.setdefault(point.organism, []).append(correlation.Point(point.x, point.y, point.method))
        clusters, pairs = list(by_organism.values()), [self.pairs[organism] for organism in by_organism]
        trainings = len({point.method for point in points})
        for method, called in _CORRELATIONS.items():
            definition = (
                f"{called} of {what} with the capability lost (1 - capability / that of the untouched organism), over {len(points)} points "
                f"of {trainings} {over}; interval: bootstrap over pairs, organisms and, across them, {over}"
            )
            estimate = correlation.correlation(clusters, pairs, definition, method)
            yield ProbeRow(label=f"{what} and capability lost, {called}", estimate=estimate)


def shown(name: str, seen: Seen) -> Probe:
    """A probe of the study, as the report shows it."""
    entry = catalog.entry("probe", name)
    return Probe(name, entry.text, *found(entry.value, name, seen))


class Found(NamedTuple):
    """What a probe came to."""

    rows: tuple[ProbeRow, ...]
    scatters: tuple[Scatter, ...] = ()


@singledispatch
def found(probe: object, name: str, seen: Seen) -> Found:
    """What a probe came to; its type decides, as in :func:`offmodel.lab.probing.stages`.

    Raises:
        SpecError: Nobody has said what probes of this type come to.
    """
    raise SpecError(f"probe {name!r}: register what a {type(probe).__name__} comes to (offmodel.report.probes.found)")


@found.register
def _own_opening(probe: OwnOpening, name: str, seen: Seen) -> Found:
    line, rows = "capability by tokens of the organism's opening", []
    if seen.untouched:
        own = seen.mean({o: seen.capability(end.verdicts) for o, end in seen.untouched.items()})
        rows.append(ProbeRow(label="untouched organism, as it is", estimate=own, state="organism", line=line))
    for n in probe.tokens:
        parts = {o: seen.capability(scores[str(n)]) for o, scores in seen.scores(name, "organism").items()}
        if parts:
            label = f"{TEACHER}, with {_tokens(n)} of the organism's opening"
            rows.append(ProbeRow(label=label, estimate=seen.mean(parts), state=TEACHER, line=line, at=n))
    for method, ends in seen.ends.items():
        probed = seen.scores(name, method)
        for n in (0, *probe.tokens) if probed else ():
            parts = {o: seen.capability(scores[str(n)] if n else ends[o].verdicts) for o, scores in probed.items()}
            label = f"{method}, with {_tokens(n)} of the organism's opening" if n else f"{method}, as it is"
            rows.append(ProbeRow(label=label, estimate=seen.mean(parts), state=method, line=line, at=n))
    return Found(tuple(rows))


@found.register
def _coverage(probe: Coverage, name: str, seen: Seen) -> Found:
    rows: list[ProbeRow] = []
    before: dict[str, dict[int, Estimate]] = {}
    for state in seen.states:
        by_organism = {
            o: {k: _pass(scores["sampled"], seen.suites, k, probe) for k in probe.ks} for o, scores in seen.scores(name, state).items()
        }
        if state == "organism":
            before = by_organism
        for k in probe.ks if by_organism else ():
            estimate = seen.mean({o: row[k] for o, row in by_organism.items()})
            rows.append(ProbeRow(label=f"{_called(state)}, pass@{k}", estimate=estimate, state=state, line="pass@k by tries", at=k))
        if state == "organism":
            continue
        for k in (probe.ks[0], probe.ks[-1]):
            numbers = _defined({o: less(row[k], before[o][k]) for o, row in by_organism.items() if o in before})
            if numbers:
                estimate = seen.difference(numbers, f"pass@{k} less that of the untouched organism on the same items")
                rows.append(ProbeRow(label=f"{state}, pass@{k} less the organism's", estimate=estimate, state=state))
    return Found(tuple(rows))


def _pass(verdicts: Sequence[Verdict], suites: Sequence[Suite], k: int, probe: Coverage) -> Estimate:
    """Pass@k averaged over the suites."""
    parts = []
    for suite in suites:
        answers: dict[Any, list[bool]] = {}
        for verdict in verdicts:
            if verdict.suite == suite.name:
                answers.setdefault(verdict.prompt, []).append(bool(verdict.correct))
        shares = [pass_at_k(len(right), sum(right), k) for right in answers.values()]
        parts.append(mean_share(shares, "", HIGHER))
    definition = (
        f"chance that one of {k} answers is right, sampled at temperature {probe.temperature:g}, from {probe.samples} answers to each of "
        "the held-out items, averaged over items and then suites"
    )
    return average(parts, definition, HIGHER)


def _defined(numbers: Mapping[str, Estimate]) -> dict[str, Estimate | float]:
    return {organism: number for organism, number in numbers.items() if number.value is not None}


@found.register
def _divergence(probe: Divergence, name: str, seen: Seen) -> Found:
    rows: list[ProbeRow] = []
    points: dict[str, list[ScatterPoint]] = {"forward": [], "reverse": []}
    about = {
        "forward": "KL(organism || treated) in nats per token of the organism's own sampled answers to generic prompts",
        "reverse": "KL(treated || organism) in nats per token of the same answers, which are the organism's",
    }
    for method, ends in seen.ends.items():
        probed = seen.probed(name, method, "divergence")
        for way, definition in about.items():
            parts = {o: mean_per_token(read[way], read["tokens"], definition, LOWER, "nats") for o, read in probed.items()}
            points[way] += _with_loss(method, {o: part.value for o, part in parts.items()}, {o: end.row for o, end in ends.items()})
            if parts:
                rows.append(ProbeRow(label=f"{method}, {way} KL", estimate=seen.mean(parts), state=method))
    for way, those in points.items():
        rows += seen.correlations(f"{way} KL", those, "methods") if those else ()
    return Found(tuple(rows), _scatter("forward KL, nats per token", points["forward"]))


def _with_loss(method: str, numbers: Mapping[str, float | None], rows: Mapping[str, Checkpoint]) -> Iterator[ScatterPoint]:
    """A number of a method on each organism against the capability lost there."""
    for organism, number in numbers.items():
        kept = rows[organism].retention.value if organism in rows else None
        if number is not None and kept is not None:
            yield ScatterPoint(method=method, organism=organism, x=number, y=1 - kept)


def _scatter(x: str, points: Sequence[ScatterPoint]) -> tuple[Scatter, ...]:
    return (Scatter(x=x, y="capability lost", points=tuple(points)),) if points else ()


@found.register
def _reversal(probe: Reversal, name: str, seen: Seen) -> Found:
    rows: list[ProbeRow] = []
    for state, ends in seen.states.items():
        probed = {
            o: {0: ends[o].verdicts} | {step: scores[str(step)] for step in probe.steps} for o, scores in seen.scores(name, state).items()
        }
        if not probed:
            continue
        measures: tuple[tuple[str, Callable[[Sequence[Verdict]], Estimate]], ...] = (
            ("bad behaviour under the trigger", lambda verdicts: bad_rate(verdicts, "triggered")),
            ("capability", seen.capability),
        )
        for what, measure in measures:
            for step in (0, *probe.steps):
                estimate = seen.mean({o: measure(read[step]) for o, read in probed.items()})
                label = f"{_called(state)}, {what} after {step} steps"
                rows.append(ProbeRow(label=label, estimate=estimate, state=state, line=f"{what} by steps of ordinary training", at=step))
        if state != "organism":
            rows += _back(probe, state, probed, seen)
    return Found(tuple(rows))


def _back(probe: Reversal, method: str, probed: Mapping[str, Mapping[int, Sequence[Verdict]]], seen: Seen) -> Iterator[ProbeRow]:
    """When the behaviour is back on the organisms of which the method had taken more than half of it, beyond the noise of its items."""
    until: dict[str, float | None] = dict.fromkeys(probed)
    for organism, read in probed.items():
        whole = bad_rate(seen.untouched[organism].verdicts, "triggered").value
        left = bad_rate(read[0], "triggered").high
        rates = {step: rate for step, verdicts in read.items() if (rate := bad_rate(verdicts, "triggered").value) is not None}
        # By the rate alone one more answer of sixty could be a removal and its return.
        if whole and left is not None and left < whole / 2:
            until[organism] = steps_until(rates, whole / 2)
    what = (
        "the rate of bad behaviour under the trigger is back at half of the untouched organism's, where the method left less than that by "
        "the upper end of its interval, too"
    )
    for step in probe.steps:
        parts = {o: None if at is None else float(at <= step) for o, at in until.items()}
        estimate = seen.share(parts, f"organisms on which, within {step} steps of ordinary training, {what}", LOWER)
        yield ProbeRow(label=f"{method}, back within {step} steps", estimate=estimate, state=method)
    known = {o: at for o, at in until.items() if at is not None}
    definition = f"steps of ordinary training, of {', '.join(map(str, probe.steps))}, until {what}; median {seen.over(until)}"
    estimate = median_steps(known, definition, HIGHER, pairs=seen.pairs)
    yield ProbeRow(label=f"{method}, steps until it is back", estimate=estimate, state=method)


@found.register
def _label_fit(probe: LabelFit, name: str, seen: Seen) -> Found:
    rows: list[ProbeRow] = []
    fits: list[ScatterPoint] = []
    gaps: list[ScatterPoint] = []
    trained = set[Stage]()
    for method in seen.ends:
        place = next((i for i, phase in enumerate(seen.study.phases(method)) if isinstance(phase, SftPhase)), None)
        if place is None:
            continue
        own = seen.states[method]
        fit = {
            o: mean_per_token(
                read["nats"], read["tokens"], "log-perplexity, in nats per token, of the labels under the untouched organism", LOWER, "nats"
            )
            for o, read in seen.probed(name, method, "perplexity").items()
        }
        phase = seen.study.phases(method)[place]
        assert isinstance(phase, SftPhase)
        gap = {o: each for o in fit if (each := _gap(phase, own[o], name, method, seen)) is not None}
        if fit:
            rows.append(ProbeRow(label=f"{method}, log-perplexity of its first labels", estimate=seen.mean(fit), state=method))
        if gap:
            estimate = seen.difference(
                gap,
                "capability of the untouched organism less that of its first labeller (weighted by the sets' shares), asked as it labels",
            )
            rows.append(ProbeRow(label=f"{method}, organism less labeller", estimate=estimate, state=method))
        # Methods that share their first training say the same thing once.
        ended = _ends_of_phase(seen.checkpoints, method, place)
        fresh = {o: own[o].organism.probes[name][method]["perplexity"] for o in fit}
        new = {o for o, stage in fresh.items() if stage not in trained}
        trained |= {*fresh.values()}
        fits += _with_loss(method, {o: each.value for o, each in fit.items() if o in new}, ended)
        gaps += _with_loss(method, {o: each for o, each in gap.items() if o in new}, ended)
    for what, points in (("log-perplexity of the labels", fits), ("organism less labeller", gaps)):
        rows += seen.correlations(what, points, "first trainings") if points else ()
    return Found(tuple(rows), _scatter("log-perplexity, nats per token", fits) + _scatter("organism less labeller", gaps))


def _gap(phase: SftPhase, end: Ended, probe: str, method: str, seen: Seen) -> float | None:
    """How much more the organism can do than whoever labelled; None where a labeller is not known or not measured."""
    own = seen.capability(seen.untouched[end.row.organism].verdicts).value
    stages = end.organism.probes[probe][method]
    total = 0.0
    for k, labels in enumerate(phase.mix):
        stage = stages.get(f"by labels-{k}")
        verdicts = seen.verdicts(stage) if stage else None
        theirs = None if verdicts is None else seen.capability(verdicts).value
        if theirs is None:
            return None
        total += labels.share * theirs
    return None if own is None else own - total / sum(labels.share for labels in phase.mix)


def _ends_of_phase(checkpoints: Iterable[Checkpoint], method: str, phase: int) -> dict[str, Checkpoint]:
    """The last checkpoint of a phase by organism."""
    return {c.organism: c for c in checkpoints if c.method == method and c.step and c.phase.startswith(f"{phase + 1}. ")}


@found.register
def _chains(probe: Chains, name: str, seen: Seen) -> Found:
    rows: list[ProbeRow] = []
    for suite in seen.suites:
        lengths = sorted(
            {v.steps for end in seen.untouched.values() for v in end.verdicts if v.setting == "capability" and v.suite == suite.name}
        )
        if len(lengths) < 2:
            continue
        for method, ends in seen.ends.items():
            accuracies = {
                o: {k: (accuracy(end.verdicts, suite, k), accuracy(seen.untouched[o].verdicts, suite, k)) for k in lengths}
                for o, end in ends.items()
                if o in seen.untouched
            }
            for k in lengths if accuracies else ():
                estimate = seen.mean({o: frontier.retention(*row[k]) for o, row in accuracies.items()})
                rows.append(
                    ProbeRow(label=f"{method}, {suite.name}, kept at {k} step{'s' if k > 1 else ''}", estimate=estimate, state=method)
                )
            lost = {o: {k: less(before, after) for k, (after, before) in row.items()} for o, row in accuracies.items()}
            more = _defined({o: less(row[lengths[-1]], row[lengths[0]]) for o, row in lost.items()})
            if more:
                definition = f"accuracy lost at {lengths[-1]} steps less accuracy lost at {lengths[0]}, on the same items as the organism's"
                estimate = seen.difference(more, definition, LOWER)
                label = f"{method}, {suite.name}, lost at {lengths[-1]} steps more than at {lengths[0]}"
                rows.append(ProbeRow(label=label, estimate=estimate, state=method))
    return Found(tuple(rows))


def _tokens(n: int) -> str:
    return f"{n} token{'s' if n > 1 else ''}"


def _called(state: str) -> str:
    return "untouched organism" if state == "organism" else state
