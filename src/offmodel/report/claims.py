"""Published statements against results, by tests that were fixed beforehand: the interval decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from offmodel.errors import SpecError, did_you_mean
from offmodel.measure.stats import HIGHER, Estimate, ends_of
from offmodel.report import words
from offmodel.report.compare import MEAN, Result, find_gaps, mean_difference, mean_level
from offmodel.report.data import CANNOT_TELL, FAILS, HOLDS, CheckedClaim, CheckedCondition, ClaimVerdict, Probe
from offmodel.spec.claim import UNTOUCHED, Claim, Condition, ProbeCondition, Test, Threshold

FEWEST_PAIRS = 6
"""Fewer decide nothing: a two-sided sign test over n pairs that all agree has p = 2 ** (1 - n), which is first below 5 % at 6, and an
interval over three covers its number three times in four."""
FEWEST_TRAININGS = 6
"""Likewise of the trainings that a correlation is over: one tried on many organisms is still one."""
FEWEST_SEEDS = 2
"""A seed fixes base model, prompts, items and blue's training for all pairs alike, and the interval is given these: what one seed shows
with a small p, the next may take back."""

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
    if isinstance(condition, ProbeCondition):
        estimate = _row(condition, rows)
        return CheckedCondition(condition=condition, estimate=estimate, verdict=verdict_of(condition, estimate))
    estimate, by_seed, missing = _measure(condition, results)
    verdict = verdict_of(condition, estimate, by_seed, missing)
    return CheckedCondition(condition=condition, estimate=estimate, verdict=verdict, by_seed=by_seed, missing=missing)


def verdict_of(condition: Test, estimate: Estimate, by_seed: Mapping[int, float] | None = None, missing: int = 0) -> ClaimVerdict:
    """What a condition's number says; see :class:`offmodel.report.data.CheckedCondition` and :func:`judge`."""
    if missing:
        return CANNOT_TELL
    return judge(condition, estimate, None if isinstance(condition, ProbeCondition) else by_seed)


def _row(condition: ProbeCondition, rows: Mapping[str, Mapping[str, Estimate]]) -> Estimate:
    found = rows.get(condition.probe, {})
    if found and condition.row not in found:
        raise SpecError(f"claim: probe {condition.probe} has no row {condition.row!r}; {did_you_mean(condition.row, found)}")
    return found.get(condition.row, Estimate(None, None, None, 0, "not measured", HIGHER))


def judge(condition: Threshold, estimate: Estimate, by_seed: Mapping[int, float] | None = None) -> ClaimVerdict:
    """Whether the 95 % interval lies wholly where the condition wants it, wholly elsewhere, or neither.

    Of few pairs, trainings or seeds it says nothing, nor where seeds disagree about the side that their number lies on, nor where an
    interval has no width: all are at a floor or a ceiling then.

    Args:
        condition: Where the interval must lie.
        estimate: The number.
        by_seed: The number of each seed alone; None where it has none.
    """
    low, high, trainings = estimate.low, estimate.high, estimate.trainings
    if low is None or high is None or low == high:
        return CANNOT_TELL
    if (estimate.pairs or 0) < FEWEST_PAIRS or (trainings is not None and trainings < FEWEST_TRAININGS):
        return CANNOT_TELL
    if by_seed is not None and (len(by_seed) < FEWEST_SEEDS or len({_lies(condition, number, number) for number in by_seed.values()}) > 1):
        return CANNOT_TELL
    return _lies(condition, low, high)


def _lies(condition: Threshold, low: float, high: float) -> ClaimVerdict:
    if condition.above is not None:
        inside, outside = low > condition.above, high <= condition.above
    elif condition.below is not None:
        inside, outside = high < condition.below, low >= condition.below
    else:
        assert condition.between is not None
        least, most = condition.between
        inside, outside = least <= low and high <= most, high < least or low > most
    return HOLDS if inside else FAILS if outside else CANNOT_TELL


class _Measured(NamedTuple):
    """See :class:`offmodel.report.data.CheckedCondition`."""

    estimate: Estimate
    by_seed: dict[int, float]
    missing: int


def _measure(condition: Condition, results: Results) -> _Measured:
    """The number that a condition is about."""
    measure, one, less = condition.measure, _side(condition, results), condition.other
    # A method that does not end on an accepted organism, such as one that diverged there, says nothing of it.
    missing = len(_lacking(condition, results) | _lacking(less, results))
    if condition.minus is None:
        parts = {organism: result.numbers[measure] for organism, result in one.items() if measure in result.numbers}
        estimate = mean_level(parts, MEAN, {organism: result.pair for organism, result in one.items()})
        return _Measured(estimate, _means((one[organism].seed, part.value) for organism, part in parts.items()), missing)
    other = {(result.pair, result.seed): result for result in _side(less, results).values()}
    against = condition.minus.pairs or {result.pair: result.pair for result in one.values()}
    couples = [(result, other[cell]) for result in one.values() if (cell := (against.get(result.pair, ""), result.seed)) in other]
    gaps = list(find_gaps(measure, less.measure, couples))
    alike = "seeds" if condition.minus.pairs else "pairs and seeds"
    lost = f" ({len(couples) - len(gaps)} of {len(couples)} left out: no value)" if len(gaps) < len(couples) else ""
    some = next((r.numbers[measure] for r in one.values() if measure in r.numbers), Estimate(None, None, None, 0, "not measured", HIGHER))
    unit = "points" if some.unit == "share" else some.unit
    definition = f"difference of: {some.definition}; within {alike}, mean over {len(gaps)} of them{lost}"
    estimate = mean_difference(gaps, definition, some.direction, unit)
    return _Measured(estimate, _means((gap.seed, ends_of(gap.difference)[1]) for gap in gaps), missing)


def _lacking(side: Condition, results: Results) -> set[str]:
    """Accepted organisms of a side on which its method has no number."""
    has = {
        organism for organism, r in _side(side, results).items() if (e := r.numbers.get(side.measure)) is not None and e.value is not None
    }
    return {organism for organism, r in results.get(UNTOUCHED, {}).items() if r.recipe == (side.recipe or "")} - has


def _means(numbers: Iterable[tuple[int, float | None]]) -> dict[int, float]:
    """Mean of the numbers of each seed."""
    found: dict[int, list[float]] = {}
    for seed, number in numbers:
        if number is not None:
            found.setdefault(seed, []).append(number)
    return {seed: fmean(those) for seed, those in sorted(found.items())}


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
