"""Methods and recipes side by side: differences on the same organisms, or on the same pairs and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from offmodel.measure import stats
from offmodel.measure.compare import holm, sign_flip
from offmodel.measure.stats import HIGHER, LOWER, Direction, Estimate, ends_of, mean_over_clusters, mean_over_organisms
from offmodel.report import words
from offmodel.report.data import Comparison, Contrast

_COMPARED: Mapping[str, tuple[Direction, str]] = {
    "frontier_area": (HIGHER, "area"),
    "end_area": (HIGHER, "area"),
    "removal_at_90": (HIGHER, "points"),
    "bad_rate": (LOWER, "points"),
    "retention": (HIGHER, "points"),
}
"""What is compared, which way is better, and the unit of the difference."""

_TESTED = ("frontier_area", "end_area")


class Gap(NamedTuple):
    """A difference, exact where it has no interval, and where it was found."""

    pair: str
    seed: int
    difference: Estimate | float


class Result(NamedTuple):
    """What a method came to on an organism, by measure."""

    pair: str
    recipe: str
    seed: int
    numbers: Mapping[str, Estimate]


def compare(results: Mapping[str, Mapping[str, Result]], baselines: Sequence[str]) -> Iterator[Comparison]:
    """Every method against each baseline, over the organisms that have both.

    Args:
        results: By method and organism.
        baselines: Which of the methods are compared with.
    """
    for baseline in baselines:
        others = [method for method in results if method != baseline]
        shared = {method: [organism for organism in results[method] if organism in results[baseline]] for method in others}
        contrasts: dict[str, dict[str, Contrast]] = {method: {} for method in others}
        for measure, (direction, unit) in _COMPARED.items():
            gaps = {m: list(find_gaps(measure, measure, [(results[m][o], results[baseline][o]) for o in shared[m]])) for m in others}
            p_values = {m: p for m in others if measure in _TESTED and (p := sign_flip(clusters(gaps[m]).numbers, seed=0)) is not None}
            adjusted = holm(p_values)
            for method in others:
                lost = len(shared[method]) - len(gaps[method])
                definition = f"{words.name(measure)} less that of {baseline} on the same organism, mean over the organisms that have both"
                definition += f" ({lost} of {len(shared[method])} left out: no value)" if lost else ""
                difference = mean_difference(gaps[method], definition, direction, unit)
                contrasts[method][measure] = Contrast(difference=difference, p=p_values.get(method), p_holm=adjusted.get(method))
        for method in others:
            yield Comparison(method=method, baseline=baseline, organisms=len(shared[method]), contrasts=contrasts[method])


def find_gaps(measure: str, less: str, couples: Iterable[tuple[Result, Result]]) -> Iterator[Gap]:
    """One result's measure less the other's, under the pair and seed of the first; those without a value are left out."""
    for one, other in couples:
        if measure in one.numbers and less in other.numbers:
            difference = stats.less(one.numbers[measure], other.numbers[less])
            if difference.value is not None:
                yield Gap(one.pair, one.seed, difference)


MEAN = "{}; mean over organisms"
"""The usual definition for :func:`mean_level`."""


def mean_level(parts: Mapping[str, Estimate], definition: str, pairs: Mapping[str, str]) -> Estimate:
    """Mean over organisms; ``{}`` in the definition stands for that of the parts, and the pair of each organism is given."""
    some = next(iter(parts.values()), Estimate(None, None, None, 0, "not measured", HIGHER))
    return mean_over_organisms(parts, definition.format(some.definition), some.direction, seed=0, pairs=pairs, unit=some.unit)


class Clusters(NamedTuple):
    """Differences by what they have in common."""

    of: Literal["pairs", "seeds"]
    numbers: Mapping[str, Sequence[float]]


def clusters(gaps: Sequence[Gap]) -> Clusters:
    """Differences by pair, for the seeds of a pair are alike; by seed where there is one pair."""
    one = len({gap.pair for gap in gaps}) == 1
    found: dict[str, list[float]] = {}
    for gap in gaps:
        found.setdefault(str(gap.seed) if one else gap.pair, []).append(ends_of(gap.difference)[1])
    return Clusters("seeds" if one else "pairs", found)


def mean_difference(gaps: Sequence[Gap], definition: str, direction: Direction, unit: str) -> Estimate:
    """Mean difference with an interval over pairs; over the seeds where there is one pair.

    Where all agree, no resample differs; so the interval reaches at least as far as the noise of the items alone: that of a mean of
    independent differences, by MOVER (see :func:`offmodel.measure.stats.average`).
    """
    of, numbers = clusters(gaps)
    definition += f"; interval: bootstrap over {'pairs' if of == 'pairs' else 'the seeds of the one pair'}"
    found = mean_over_clusters(numbers, definition, direction, seed=0, of=of, unit=unit)
    if found.value is None or found.low is None or found.high is None:
        return found
    ends = [ends_of(gap.difference) for gap in gaps]
    down = math.hypot(*(value - low for low, value, _ in ends)) / len(ends)
    up = math.hypot(*(high - value for _, value, high in ends)) / len(ends)
    return replace(found, low=min(found.low, found.value - down), high=max(found.high, found.value + up))
