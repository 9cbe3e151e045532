"""Correlation of two numbers that come in clusters, with an interval that respects them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from offmodel.measure.stats import HIGHER, Estimate, draw_by_pair

RESAMPLES = 1000
"""All points are ranked anew in each."""

Method = Literal["spearman", "pearson"]


class Point(NamedTuple):
    """Two numbers that were found together."""

    x: float
    y: float


def correlation(organisms: Sequence[Sequence[Point]], pairs: Sequence[str], definition: str, method: Method = "spearman") -> Estimate:
    """Correlation over all points, with the 95 % percentile interval of a bootstrap over pairs and organisms, each with all its points.

    Args:
        organisms: The points of each organism.
        pairs: Which pair each is of.
        definition: What is correlated, and over what.
        method: By ranks (Spearman), or of the numbers themselves (Pearson).

    Returns:
        An estimate whose n is the number of organisms. It has no value where a number is everywhere the same, and no interval for one
        organism or where no resample has a value.
    """
    n, behind = len(organisms), len(set(pairs))
    value = _coefficient(organisms, method)
    if value is None or n < 2:
        return Estimate(value, None, None, n, definition, HIGHER, "correlation", "organisms", pairs=behind)
    places, counts = draw_by_pair(pairs, np.random.default_rng(0), RESAMPLES)
    drawn = (_coefficient([organisms[i] for i in row[there]], method) for row, there in zip(places, counts, strict=True))
    found = [each for each in drawn if each is not None]
    low, high = np.percentile(found, [2.5, 97.5]).tolist() if found else (None, None)
    return Estimate(value, low, high, n, definition, HIGHER, "correlation", "organisms", pairs=behind)


def rank_correlation(organisms: Mapping[str, Sequence[Point]], what: str, pairs: Mapping[str, str] | None = None) -> Estimate:
    """Spearman's over all points of the organisms that have any; the definition says how many have none.

    Args:
        organisms: The points by organism.
        what: What is correlated.
        pairs: Which pair each organism is of. One that is not in it stands for itself.
    """
    kept = {name: points for name, points in organisms.items() if points}
    definition = (
        f"{what}; Spearman's rank correlation over {sum(map(len, kept.values()))} points. Those of one organism are not independent; "
        "interval: percentile bootstrap over pairs and organisms, each with all of its own"
    )
    if left_out := len(organisms) - len(kept):
        definition += f" ({left_out} of {len(organisms)} organisms left out: not measured)"
    return correlation(list(kept.values()), [(pairs or {}).get(name, name) for name in kept], definition)


def _coefficient(organisms: Sequence[Sequence[Point]], method: Method) -> float | None:
    """None where one of the numbers is everywhere the same."""
    from scipy.stats import pearsonr, spearmanr  # half a second to import: not before it is needed

    points = np.array([point for those in organisms for point in those]).reshape(-1, 2)
    if len(points) < 2 or not np.ptp(points, axis=0).all():
        return None
    return float(spearmanr(points).statistic if method == "spearman" else pearsonr(*points.T).statistic)
