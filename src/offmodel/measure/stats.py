"""Numbers that can be trusted: a value never travels without its n, its interval, its definition and its direction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
        n: How many things stand behind it; ``of`` says which.
        definition: What the number is, in one sentence.
        direction: Which way is better.
        unit: ``"share"`` for a share of one, shown in percent; ``"points"`` for a difference of two shares, shown in percentage points;
            anything else ("area", "nats") is shown as a plain number.
        of: What ``n`` counts.
        items: How many items stand behind it where ``n`` counts organisms.
        pairs: How many pairs stand behind it where it speaks of several organisms.
        trainings: How many trainings stand behind it where it speaks of several of them.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    definition: str
    direction: Direction
    unit: str = "share"
    of: Literal["items", "organisms", "pairs", "seeds"] = "items"
    items: int | None = None
    pairs: int | None = None
    trainings: int | None = None


@cache
def tails(clusters: int) -> tuple[float, float]:
    """Percentiles of the resamples of so many clusters that stand for a 95 % interval.

    The usual 2.5 and 97.5 take the normal for Student's t and the spread among n for that among n - 1, so over few clusters they lie too
    close together: by 37 % for five, 22 % for eight, 8 % for 21. The expanded percentile interval reaches as far as one by Student's t
    (Hesterberg 2015, arXiv:1411.5279): of normal clusters it covers 92 % for five and 94 % for eight (the usual one 83 and 89 %). It stays
    within what can be resampled, and of three it covers 75 %: too few for any interval.

    Args:
        clusters: What is drawn again; at least two.
    """
    from scipy.special import ndtr, stdtrit  # not before it is needed

    tail = 100 * float(ndtr(math.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, 0.025)))
    return tail, 100 - tail


def cluster_count(pairs: Sequence[str]) -> int:
    """How many clusters a bootstrap over pairs and organisms draws: the pairs, or the organisms where all are of one pair.

    Args:
        pairs: Which pair each organism is of.
    """
    return behind if (behind := len(set(pairs))) > 1 else len(pairs)


def proportion(successes: int, n: int, definition: str, direction: Direction) -> Estimate:
    """A share of items with Wilson's 95 % interval (Wilson 1927); undefined for n = 0.

    Raises:
        ValueError: ``successes`` is not within 0 and ``n``.
    """
    if n == 0 and successes == 0:
        return Estimate(None, None, None, 0, definition, direction)
    low, high = _wilson(successes, n)
    return Estimate(successes / n, low, high, n, definition, direction)


@cache
def _wilson(successes: int, n: int) -> tuple[float, float]:
    """A report asks for the same few counts again and again, and each takes half a millisecond."""
    from scipy.stats import binomtest  # half a second to import: not before it is needed

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean_share(shares: Sequence[float], definition: str, direction: Direction) -> Estimate:
    """Mean of independent numbers within 0 and 1, with Wilson's 95 % interval of a proportion of the same mean.

    It is wide enough: of all such numbers with one mean, zeros and ones vary most. Unlike a bootstrap it does not collapse where all agree.
    """
    n = len(shares)
    if n == 0:
        return Estimate(None, None, None, 0, definition, direction)
    value = sum(shares) / n
    return Estimate(value, *_wilson_at(value, n), n, definition, direction)


def _wilson_at(value: float, n: int) -> tuple[float, float]:
    """Wilson's interval (1927) at a share that need not be a whole number of n."""
    z = 1.959964
    centre, scale = value + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(value * (1 - value) / n + z**2 / (4 * n**2))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mean_per_token(totals: Sequence[float], tokens: Sequence[int], definition: str, direction: Direction, unit: str) -> Estimate:
    """Sum over answers / their tokens, with the 95 % interval of a ratio by linearisation (Cochran 1977, 6.3); n counts answers."""
    n = len(totals)
    if n == 0:
        return Estimate(None, None, None, 0, definition, direction, unit)
    value = math.fsum(totals) / sum(tokens)
    if n == 1:
        return Estimate(value, None, None, 1, definition, direction, unit)
    squares = math.fsum((total - value * count) ** 2 for total, count in zip(totals, tokens, strict=True))
    half = 1.959964 * math.sqrt(squares * n / (n - 1)) / sum(tokens)
    return Estimate(value, max(0.0, value - half), value + half, n, definition, direction, unit)


def mean_over_organisms(
    parts: Mapping[str, Estimate | float | None],
    definition: str,
    direction: Direction,
    *,
    seed: int,
    pairs: Mapping[str, str] | None = None,
    items: int | None = None,
    unit: str = "share",
    yes_or_no: bool = False,
    resamples: int = 10_000,
) -> Estimate:
    """Mean over organisms with the 95 % interval of a bootstrap over pairs, organisms and items (percentiles: :func:`tails`).

    In each resample pairs are drawn again, as many organisms of each pair drawn as it has (those of one pair are alike, so that more seeds
    of it say little about other pairs), and each organism drawn is moved by the noise of its own items: by a split normal with a standard
    deviation of (high - value) / 1.96 upwards and (value - low) / 1.96 downwards, less its mean, so that skewed intervals (such as
    Wilson's near 0) do not shift the whole. The ends are kept within the organisms' own intervals. So the interval speaks about other
    organisms of other pairs, and has width where all organisms agree but their items are noisy. The noise of seeds and items is in the
    observed values too, so that a level counts again at each level above it: the cautious side. Where all are of one pair, the interval
    speaks of that pair alone, and the definition says so. What a seed fixes for all pairs alike (base model, blue's prompts and training
    seed, capability items) is not drawn again: the interval is given these.

    Args:
        parts: Each organism's estimate. A plain number, or an estimate without an interval, counts as exact; means of those alone have
            no width where all agree, unless ``yes_or_no``. An organism without a value is left out, and the definition then says so.
        definition: What is averaged.
        direction: Which way is better.
        seed: Makes the interval repeatable.
        pairs: Which pair each organism is of. One that is not in it stands for itself.
        items: How many items were measured in all, for plain numbers; estimates know theirs.
        unit: See :class:`Estimate`.
        yes_or_no: Each number is a yes (1), a no (0), or a share of such on one organism. Where all agree no resample differs, yet the
            next pair may; so the interval reaches at least as far as Wilson's (1927) of a proportion of the same mean over as many as
            there are pairs, or organisms of one pair.
        resamples: How many times they are drawn.

    Returns:
        An estimate whose n is the number of organisms; one organism has a value and no interval, none has neither.
    """
    ends = [ends_of(part) for part in parts.values()]
    kept = np.asarray([e for e in ends if math.isfinite(e[1])], dtype=float).reshape(-1, 3)
    counted = [part.n for part in parts.values() if isinstance(part, Estimate) and part.value is not None]
    items = sum(counted) if counted else items
    n = len(kept)
    if n < len(parts):
        definition += f" ({len(parts) - n} of {len(parts)} organisms left out: no value)"
    if n == 0:
        return Estimate(None, None, None, 0, definition, direction, unit, "organisms", items, pairs=0)
    low, value, high = kept.T
    if n == 1:
        return Estimate(float(value[0]), None, None, 1, definition, direction, unit, "organisms", items, pairs=1)
    rng = np.random.default_rng(seed)
    names = [name for name, end in zip(parts, ends, strict=True) if math.isfinite(end[1])]
    of = [(pairs or {}).get(name, name) for name in names]
    behind = len(set(of))
    if behind == 1:
        definition += " (interval over the organisms of one pair)"
    drawn, counts = draw_by_pair(of, rng, resamples)
    moved = moved_by_items(kept.T, drawn, rng)
    means = (moved * counts).sum(axis=1) / counts.sum(axis=1)
    bottom, top = np.percentile(means, tails(cluster_count(of))).clip(low.min(), high.max())
    if yes_or_no:
        least, most = _wilson_at(float(value.mean()), cluster_count(of))
        bottom, top = min(bottom, least), max(top, most)
    return Estimate(float(value.mean()), float(bottom), float(top), n, definition, direction, unit, "organisms", items, behind)


def draw_by_pair(pairs: Sequence[str], rng: np.random.Generator, resamples: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pairs, and of each as many of its members as it has, drawn with replacement.

    Args:
        pairs: Which pair each thing is of.
        rng: Draws.
        resamples: How many times.

    Returns:
        Places in ``pairs`` and whether they count, ``[resamples, pairs x members]``: pairs with fewer members than others have gaps.
    """
    members = [[i for i, pair in enumerate(pairs) if pair == name] for name in dict.fromkeys(pairs)]
    sizes = np.array([len(those) for those in members])
    places = np.array([those + those[:1] * (sizes.max() - len(those)) for those in members])
    chosen = rng.integers(len(members), size=(resamples, len(members), 1))
    which = rng.integers(sizes[chosen], size=(resamples, len(members), sizes.max()))
    there = np.arange(sizes.max()) < sizes[chosen]
    return places[chosen, which].reshape(resamples, -1), there.reshape(resamples, -1)


def median_steps(
    steps: Mapping[str, float], definition: str, direction: Direction, *, pairs: Mapping[str, str], resamples: int = 10_000
) -> Estimate:
    """Median over organisms of the steps until something happened, infinite where it had not when watching ended (censored).

    It is the first step by which it has happened on half of them or more (Kaplan and Meier's median, as all are watched equally long), with
    the 95 % interval of a bootstrap over pairs and organisms (percentiles: :func:`tails`). No value where the median is censored, and no
    interval where its upper end is.

    Args:
        steps: By organism.
        definition: What happened.
        direction: Which way is better.
        pairs: Which pair each organism is of.
        resamples: How many times they are drawn.
    """
    n, of = len(steps), [pairs.get(organism, organism) for organism in steps]
    unknown = Estimate(None, None, None, n, definition, direction, "steps", "organisms", pairs=len(set(of)))
    if n == 0:
        return unknown
    times = np.array([*steps.values()])
    never = int(np.isinf(times).sum())
    definition += f" ({never} of {n} organisms censored)" if never else ""
    unknown = replace(unknown, definition=definition)
    value = float(np.sort(times)[(n - 1) // 2])
    if math.isinf(value):
        return unknown
    if n == 1:
        return replace(unknown, value=value)
    places, counts = draw_by_pair(of, np.random.default_rng(0), resamples)
    drawn = np.sort(np.where(counts, times[places], np.inf), axis=1)
    medians = np.sort(drawn[np.arange(resamples), (counts.sum(axis=1) - 1) // 2])
    low, high = np.percentile(medians, tails(cluster_count(of)), method="inverted_cdf").tolist()
    if math.isinf(high):
        return replace(unknown, value=value)
    return replace(unknown, value=value, low=low, high=high)


def moved_by_items(ends: NDArray[np.float64], drawn: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Values of organisms drawn, each moved by the noise of its items (see :func:`mean_over_organisms`).

    Args:
        ends: Low end, value and high end, ``[3, organisms]``.
        drawn: Places of organisms.
        rng: Draws.
    """
    low, value, high = ends
    z = rng.standard_normal(drawn.shape)
    down, up = (value - low) / 1.96, (high - value) / 1.96
    return value[drawn] + z * np.where(z > 0, up[drawn], down[drawn]) - ((up - down) / math.sqrt(2 * math.pi))[drawn]


def ends_of(part: Estimate | float | None) -> tuple[float, float, float]:
    """Low end, value and high end; all the value where there is no interval, and NaN where there is no value."""
    if not isinstance(part, Estimate):
        part = Estimate(part, None, None, 0, "", HIGHER)
    value = math.nan if part.value is None else part.value
    return (value, value, value) if part.low is None or part.high is None else (part.low, value, part.high)


def mean_over_clusters(
    clusters: Mapping[str, Sequence[float]],
    definition: str,
    direction: Direction,
    *,
    seed: int,
    of: Literal["pairs", "seeds"],
    unit: str = "share",
    resamples: int = 10_000,
) -> Estimate:
    """Mean of numbers that come in clusters, such as those of several seeds of a pair, each number weighing alike.

    The 95 % interval is that of a bootstrap over clusters (percentiles: :func:`tails`): each is drawn with all its numbers, which need not
    be independent of one another.

    Args:
        clusters: The numbers of each cluster, at least one.
        definition: What is averaged.
        direction: Which way is better.
        seed: Makes the interval repeatable.
        of: What a cluster is.
        unit: See :class:`Estimate`.
        resamples: How many times the clusters are drawn.

    Returns:
        An estimate whose n is the number of clusters; one cluster has a value and no interval, none has neither.
    """
    n = len(clusters)
    behind = n if of == "pairs" else min(n, 1)  # the seeds are those of one pair
    if n == 0:
        return Estimate(None, None, None, 0, definition, direction, unit, of, pairs=behind)
    sums, sizes = np.array([sum(numbers) for numbers in clusters.values()]), np.array([len(numbers) for numbers in clusters.values()])
    value = float(sums.sum() / sizes.sum())
    if n == 1:
        return Estimate(value, None, None, 1, definition, direction, unit, of, pairs=behind)
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    low, high = np.percentile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), tails(n))
    return Estimate(value, float(low), float(high), n, definition, direction, unit, of, pairs=behind)


def less(one: Estimate, other: Estimate) -> Estimate:
    """``one - other`` with an interval from the two intervals (MOVER; Zou and Donner 2008, doi:10.1002/sim.3095), if both have one.

    It takes the two for independent, which is cautious where they were measured on the same items. Undefined where one of them is.
    """
    if one.value is None or other.value is None:
        return replace(one, value=None, low=None, high=None)
    value = one.value - other.value
    if None in (one.low, one.high, other.low, other.high):
        return replace(one, value=value, low=None, high=None)
    (a, x, b), (c, y, d) = ends_of(one), ends_of(other)
    return replace(one, value=value, low=value - math.hypot(x - a, d - y), high=value + math.hypot(b - x, y - c))


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
