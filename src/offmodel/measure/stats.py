"""Numbers that can be trusted: a value never travels without its n, its interval, its definition and its direction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Direction = Literal["higher is better", "lower is better"]
HIGHER: Direction = "higher is better"
LOWER: Direction = "lower is better"


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: The number; None where it is undefined (nothing was measured, or a denominator is 0).
        low: Lower end of the 95 % interval; None where there is none.
        high: Upper end of the 95 % interval; None where there is none.
        n: How many independent things stand behind it; ``of`` says which.
        definition: What the number is, in one sentence.
        direction: Which way is better.
        unit: ``"share"`` for a share of one, shown in percent; anything else ("area", "nats") is shown as a plain number.
        of: What ``n`` counts.
        items: How many items stand behind it where ``n`` counts organisms.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    definition: str
    direction: Direction
    unit: str = "share"
    of: Literal["items", "organisms"] = "items"
    items: int | None = None


def proportion(successes: int, n: int, definition: str, direction: Direction) -> Estimate:
    """A share of items with Wilson's 95 % interval (Wilson 1927); undefined for n = 0.

    Raises:
        ValueError: ``successes`` is not within 0 and ``n``.
    """
    if n == 0 and successes == 0:
        return Estimate(None, None, None, 0, definition, direction)
    from scipy.stats import binomtest  # half a second to import: not before it is needed

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n, definition, direction)


def mean_over_organisms(
    values: Mapping[str, float | Sequence[float] | None],
    definition: str,
    direction: Direction,
    *,
    seed: int,
    items: int | None = None,
    unit: str = "share",
    resamples: int = 10_000,
) -> Estimate:
    """Mean of the organisms' means with the 95 % percentile interval of a cluster bootstrap over organisms.

    Every organism weighs the same, however many values it has; whole organisms are drawn again, never single items. The interval
    therefore speaks about other organisms of the same kind. It is too narrow when there are only a few of them, and has no width
    when all agree: the organisms' own Wilson intervals carry the noise of the items.

    Args:
        values: One value, or several (as of repeated seeds), for each organism. An organism whose value is None or not finite is
            left out, and the definition then says so.
        definition: What is averaged.
        direction: Which way is better.
        seed: Makes the interval repeatable.
        items: How many items were measured in all.
        unit: See :class:`Estimate`.
        resamples: How many times the organisms are drawn.

    Returns:
        An estimate whose n is the number of organisms; one organism has a value and no interval, none has neither.
    """
    rows = [np.asarray(v, dtype=float) for v in values.values()]
    means = np.asarray([row.mean() if row.size else math.nan for row in rows], dtype=float)
    kept = means[np.isfinite(means)]
    if len(kept) < len(means):
        definition += f" ({len(means) - len(kept)} of {len(means)} organisms left out: no value)"
    n = len(kept)
    if n == 0:
        return Estimate(None, None, None, 0, definition, direction, unit, "organisms", items)
    if n == 1:
        return Estimate(float(kept[0]), None, None, 1, definition, direction, unit, "organisms", items)
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))
    low, high = np.percentile(kept[draws].mean(axis=1), [2.5, 97.5])
    return Estimate(float(kept.mean()), float(low), float(high), n, definition, direction, unit, "organisms", items)


def average(parts: Sequence[Estimate], definition: str, direction: Direction) -> Estimate:
    """Unweighted mean of independent estimates, as of the suites of one model; n is the sum of theirs.

    The interval recovers the variances from the parts' own intervals (MOVER; Zou and Donner 2008, doi:10.1002/sim.3095), so it
    keeps the good behaviour of Wilson's interval near 0 and 1. Undefined where there is no part or a part is undefined.
    """
    n, k = sum(p.n for p in parts), len(parts)
    if not parts or any(p.value is None for p in parts):
        return Estimate(None, None, None, n, definition, direction)
    value = sum(p.value or 0.0 for p in parts) / k
    if any(p.low is None or p.high is None for p in parts):
        return Estimate(value, None, None, n, definition, direction)
    down = math.hypot(*(_defined(p.value) - _defined(p.low) for p in parts)) / k
    up = math.hypot(*(_defined(p.high) - _defined(p.value) for p in parts)) / k
    return Estimate(value, value - down, value + up, n, definition, direction)


def ratio(after: Estimate, before: Estimate, definition: str, direction: Direction) -> Estimate:
    """``after / before`` with an interval from the two intervals (MOVER-R; Newcombe 2016, doi:10.1177/0962280213502144).

    Unlike a bootstrap it does not collapse where a rate is 0 or 1. It takes the two for independent, which is cautious where they
    were measured on the same items. Undefined where ``before`` is 0; no interval where that of ``before`` reaches 0.
    """
    a, b, n = after.value, before.value, after.n
    if a is None or not b:
        return Estimate(None, None, None, n, definition, direction)
    if after.low is None or after.high is None or before.high is None or not before.low:
        return Estimate(a / b, None, None, n, definition, direction)
    product = a * b
    numerator = after.low * (2 * a - after.low)
    root = math.sqrt(max(0.0, product**2 - numerator * before.high * (2 * b - before.high)))
    low = numerator / (product + root) if numerator > 0 else 0.0
    denominator = before.low * (2 * b - before.low)
    root = math.sqrt(max(0.0, product**2 - after.high * (2 * a - after.high) * denominator))
    return Estimate(a / b, low, (product + root) / denominator, n, definition, direction)


def _defined(number: float | None) -> float:
    assert number is not None
    return number
