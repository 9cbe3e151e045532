"""What a study can see: the smallest difference between two methods that a paired comparison of this size would find.

The difference is compared as :func:`offmodel.measure.compare.sign_flip` does it: summed within clusters (pairs, or the seeds of one pair),
tested over them. A cluster's mean has three sources of noise: the pair itself, the organism within the pair, and the answers to a limited
number of items; only the last shrinks with more items, and the first only with more pairs (Miller 2024, arXiv:2411.00640, on clustered
standard errors, paired differences and power).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from offmodel.measure.compare import least_p

LEVEL = 0.05
"""Two-sided level of a test."""
POWER = 0.8
"""How often a difference is to be found that is there."""


def smallest_difference(
    pair: float, organism: float, item: float, *, pairs: int, seeds: int, recipes: int = 1, tests: int = 1
) -> float | None:
    """The smallest mean difference that the sign-flip test finds with a chance of :data:`POWER` at :data:`LEVEL`.

    The clusters' means are taken for normal. Of the levels that a test with so few patterns of signs can keep, it is held to the greatest
    one that is not above the wanted one. Its power is that of the t-test at that level (noncentral t; Cohen 1988, ch. 2), which comes to
    within 4 points of the test's own; where the p-value must be the least possible, it is the chance that all clusters have one sign.

    Args:
        pair: Standard deviation of the difference between pairs.
        organism: The same between organisms of a pair, without the noise of their items.
        item: Standard deviation of the difference on one organism by the choice of its items.
        pairs: Number of pairs; of one, its seeds are the clusters, and the difference is that of this pair alone.
        seeds: Number of seeds per pair.
        recipes: Number of organisms per pair and seed.
        tests: Methods that are compared with a baseline: the smallest of Holm's p-values is multiplied by their number.

    Returns:
        In the unit of the standard deviations; None where no difference, however large, can reach the level.
    """
    within = (organism**2 + item**2) / recipes
    clusters, variance = (pairs, pair**2 + within / seeds) if pairs > 1 else (seeds, within)
    if clusters < 2:
        return None
    patterns = math.floor(LEVEL / tests / least_p(clusters) + 1e-9)
    if not patterns:
        return None
    from scipy.stats import nct, norm, t  # half a second to import: not before it is needed

    def all_of_one_sign(d: float) -> float:
        return float(norm.cdf(d) ** clusters + norm.cdf(-d) ** clusters)

    def of_t_test(d: float) -> float:
        critical, shift = t.isf(patterns * least_p(clusters) / 2, clusters - 1), d * math.sqrt(clusters)
        return float(nct.sf(critical, clusters - 1, shift) + nct.cdf(-critical, clusters - 1, shift))

    return math.sqrt(variance) * _reaches(all_of_one_sign if patterns == 1 else of_t_test)


def _reaches(power: Callable[[float], float]) -> float:
    """Where a rising power comes to :data:`POWER`."""
    from scipy.optimize import brentq

    high = 0.1
    while power(high) < POWER:  # doubled, not guessed: far from where it is needed, the noncentral t has no value
        high *= 1.5
    return float(brentq(lambda d: power(d) - POWER, 0.0, high))


def components(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Variance between clusters and within them, by the one-way analysis of variance for unequal sizes (Searle 1971), none below 0.

    Args:
        clusters: The numbers of each; at least two clusters, and one with two numbers.

    Raises:
        ValueError: There are fewer.
    """
    n, k = sum(map(len, clusters)), len(clusters)
    if k < 2 or n <= k:
        raise ValueError("variances between and within need two clusters, one of them with two numbers")
    means, total = [sum(c) / len(c) for c in clusters], sum(map(sum, clusters)) / n
    within = sum((x - m) ** 2 for c, m in zip(clusters, means, strict=True) for x in c) / (n - k)
    between = sum(len(c) * (m - total) ** 2 for c, m in zip(clusters, means, strict=True)) / (k - 1)
    size = (n - sum(len(c) ** 2 for c in clusters) / n) / (k - 1)
    return max(0.0, (between - within) / size), within
