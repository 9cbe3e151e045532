"""Whether a difference could be chance: a test of paired differences, and what asking many times does to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

PATTERNS = 20_000
"""Patterns of signs tried at most: all of them for up to 14 clusters, as many random ones for more."""


def sign_flip(clusters: Mapping[str, Sequence[float]], *, seed: int) -> float | None:
    """Two-sided p-value of the sign-flip permutation test that differences lie evenly about 0 (Fisher 1935).

    All numbers of a cluster change their sign together, for they need not be independent of one another. Up to 14 clusters every
    pattern of signs is tried, so the p-value is exact. For more, :data:`PATTERNS` random ones are, and the observed one counts as one of
    them (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585). Of n clusters no p-value is below ``2 ** (1 - n)``: five can show nothing
    at the 5 % level.

    Args:
        clusters: The differences of each cluster.
        seed: Makes the random patterns repeatable.

    Returns:
        None where there are fewer than two clusters.
    """
    if len(clusters) < 2:
        return None
    from scipy.stats import permutation_test  # half a second to import: not before it is needed

    sums = np.array([sum(numbers) for numbers in clusters.values()])
    rng = np.random.default_rng(seed)
    return float(permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=PATTERNS, vectorized=True, rng=rng).pvalue)


def least_p(clusters: int) -> float:
    """The least p-value that :func:`sign_flip` can give of so many clusters: that of the two patterns in which all agree."""
    return max(2.0 ** (1 - clusters), 2 / (PATTERNS + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values of several tests, adjusted so that the chance of one false alarm or more keeps its level (Holm 1979).

    The smallest is multiplied by the number of tests, the next by one less and so on; none is below one before it, or above 1.
    """
    highest, adjusted = 0.0, {}
    for i, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        adjusted[name] = highest = max(highest, min(1.0, (len(p_values) - i) * p_values[name]))
    return {name: adjusted[name] for name in p_values}
