"""Correlation of two numbers that come in clusters, with an interval that respects them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offmodel.measure.stats import HIGHER, Estimate, cluster_count, draw_by_pair, tails

RESAMPLES = 1000
"""All points are ranked anew in each."""

Method = Literal["spearman", "pearson"]


class Point(NamedTuple):
    """Two numbers that were found together, and the training that they were found of; "" where trainings are not drawn again."""

    x: float
    y: float
    training: str = ""


def correlation(organisms: Sequence[Sequence[Point]], pairs: Sequence[str], definition: str, method: Method = "spearman") -> Estimate:
    """Correlation over all points, with the 95 % interval of a bootstrap over pairs and organisms, each with all its points.

    Percentiles are those of :func:`offmodel.measure.stats.tails` for the pairs, or the trainings if these are fewer. Where the points name
    trainings, these are drawn again, too, and a point counts as often as its organism and its training were drawn together (the pigeonhole
    bootstrap of crossed factors; Owen 2007, doi:10.1214/07-AOAS122): a training that is tried on many organisms is still one training, and
    the interval speaks of others like it.

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
    points = [point for those in organisms for point in those]
    trainings = list(dict.fromkeys(point.training for point in points if point.training))
    numbers = np.array([(point.x, point.y) for point in points]).reshape(-1, 2)
    value = coefficient(numbers, method)
    unknown = Estimate(value, None, None, n, definition, HIGHER, "correlation", "organisms", pairs=behind, trainings=len(trainings) or None)
    if value is None or n < 2:
        return unknown
    rng = np.random.default_rng(0)
    places, counts = draw_by_pair(pairs, rng, RESAMPLES)
    own = np.repeat(np.arange(n), [len(those) for those in organisms])
    made_by = np.array([trainings.index(point.training) if trainings else 0 for point in points])
    found = []
    for row, there in zip(places, counts, strict=True):
        times = np.bincount(row[there], minlength=n)[own]
        if trainings:
            times *= np.bincount(rng.integers(len(trainings), size=len(trainings)), minlength=len(trainings))[made_by]
        if (drawn := coefficient(np.repeat(numbers, times, axis=0), method)) is not None:
            found.append(drawn)
    fewest = max(2, min(cluster_count(pairs), len(trainings) or n))
    low, high = np.percentile(found, tails(fewest)).tolist() if found else (None, None)
    return replace(unknown, low=low, high=high)


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
        "interval: bootstrap over pairs and organisms, each with all of its own"
    )
    if left_out := len(organisms) - len(kept):
        definition += f" ({left_out} of {len(organisms)} organisms left out: not measured)"
    return correlation(list(kept.values()), [(pairs or {}).get(name, name) for name in kept], definition)


def coefficient(points: NDArray[np.float64] | Sequence[Point], method: Method = "spearman") -> float | None:
    """Correlation of points ``[n, 2]``; None where one of the two numbers is everywhere the same."""
    from scipy.stats import pearsonr, spearmanr  # half a second to import: not before it is needed

    points = np.array([point[:2] for point in points], dtype=float)
    if len(points) < 2 or not np.ptp(points, axis=0).all():
        return None
    return float(spearmanr(points).statistic if method == "spearman" else pearsonr(*points.T).statistic)
