"""Published statements against results, by tests that were fixed beforehand: the interval decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from offmodel.errors import SpecError, did_you_mean
from offmodel.measure.stats import HIGHER, Estimate
from offmodel.report import words
from offmodel.report.compare import Result, find_gaps, mean_difference, mean_level
from offmodel.report.data import CANNOT_TELL, FAILS, HOLDS, CheckedClaim, CheckedCondition, ClaimVerdict, Probe
from offmodel.spec.claim import Claim, Condition, ProbeCondition, Test, Threshold

FEWEST_PAIRS = 6
"""Fewer decide nothing: a two-sided sign test over n pairs that all agree has p = 2 ** (1 - n), which is first below 5 % at 6; and the 95 %
percentile bootstrap over three ends at the least and the largest of them."""
FEWEST_TRAININGS = 6
"""Likewise of the trainings that a correlation is over: one tried on many organisms is still one."""

Results = Mapping[str, Mapping[str, Result]]
"""What each method, and "organism", came to by organism."""


def check_claim(claim: Claim, results: Results, probes: Iterable[Probe] = ()) -> CheckedClaim:
    """Hold the conditions of a claim against results.

    Raises:
        SpecError: A probe has no row of the name that a condition gives; the message names the nearest.
    """
    rows = {probe.name: {row.label: row.estimate for row in probe.rows} for probe in probes}
    return CheckedClaim(claim=claim, conditions=tuple(_check(condition, results, rows) for condition in claim.holds_if))


def _check(condition: Test, results: Results, rows: Mapping[str, Mapping[str, Estimate]]) -> CheckedCondition:
    estimate = _row(condition, rows) if isinstance(condition, ProbeCondition) else _measure(condition, results)
    return CheckedCondition(condition=condition, estimate=estimate, verdict=judge(condition, estimate))


def _row(condition: ProbeCondition, rows: Mapping[str, Mapping[str, Estimate]]) -> Estimate:
    found = rows.get(condition.probe, {})
    if found and condition.row not in found:
        raise SpecError(f"claim: probe {condition.probe} has no row {condition.row!r}; {did_you_mean(condition.row, found)}")
    return found.get(condition.row, Estimate(None, None, None, 0, "not measured", HIGHER))


def judge(condition: Threshold, estimate: Estimate) -> ClaimVerdict:
    """Whether the 95 % interval lies wholly where the condition wants it, wholly elsewhere, or neither; of few it says nothing."""
    low, high, trainings = estimate.low, estimate.high, estimate.trainings
    if low is None or high is None or (estimate.pairs or 0) < FEWEST_PAIRS or (trainings is not None and trainings < FEWEST_TRAININGS):
        return CANNOT_TELL
    if condition.above is not None:
        inside, outside = low > condition.above, high <= condition.above
    elif condition.below is not None:
        inside, outside = high < condition.below, low >= condition.below
    else:
        assert condition.between is not None
        least, most = condition.between
        inside, outside = least <= low and high <= most, high < least or low > most
    return HOLDS if inside else FAILS if outside else CANNOT_TELL


def _measure(condition: Condition, results: Results) -> Estimate:
    """The number that a condition is about."""
    measure, one = condition.measure, _side(condition, results)
    parts = {organism: result.numbers[measure] for organism, result in one.items() if measure in result.numbers}
    if condition.minus is None:
        return mean_level(parts, "{}; mean over organisms", {organism: result.pair for organism, result in one.items()})
    less = condition.other
    other = {(result.pair, result.seed): result for result in _side(less, results).values()}
    against = condition.minus.pairs or {result.pair: result.pair for result in one.values()}
    couples = [(result, other[cell]) for result in one.values() if (cell := (against.get(result.pair, ""), result.seed)) in other]
    gaps = list(find_gaps(measure, less.measure, couples))
    alike = "seeds" if condition.minus.pairs else "pairs and seeds"
    lost = f" ({len(couples) - len(gaps)} of {len(couples)} left out: no value)" if len(gaps) < len(couples) else ""
    some = next(iter(parts.values()), Estimate(None, None, None, 0, "not measured", HIGHER))
    unit = "points" if some.unit == "share" else some.unit
    definition = f"difference of: {some.definition}; within {alike}, mean over {len(gaps)} of them{lost}"
    return mean_difference(gaps, definition, some.direction, unit)


def _side(side: Condition, results: Results) -> dict[str, Result]:
    return {organism: r for organism, r in results.get(side.method, {}).items() if r.recipe == (side.recipe or "")}


def describe(condition: Test) -> str:
    """What a condition is about, as in ``frontier area, reminder less pirate``."""
    if isinstance(condition, ProbeCondition):
        return condition.row
    less, pairs = condition.other, condition.minus.pairs if condition.minus else {}
    sides = [(words.name(side.measure), side.method, side.recipe or "") for side in (condition, less)]
    named = [*zip(*sides, strict=True), *pairs.items()]
    return ", ".join(one if one == other else f"{one} less {other}" for one, other in named if one)


def threshold(checked: CheckedCondition) -> str:
    """Where the interval must lie, in the unit of the number where there is one."""
    condition, estimate = checked.condition, checked.estimate

    def written(number: float) -> str:
        return f"{number:g}" if estimate.value is None else words.value(replace(estimate, value=number))

    for word in ("above", "below"):
        if (number := getattr(condition, word)) is not None:
            return f"{word} {written(number)}"
    assert condition.between is not None
    least, most = condition.between
    return f"from {written(least)} to {written(most)}"
