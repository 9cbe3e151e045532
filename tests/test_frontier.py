from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offmodel.errors import DataError
from offmodel.measure import frontier
from offmodel.measure.frontier import Point, area, chosen_area, chosen_at, hull, mean_hull, measured_area, removal_at
from offmodel.measure.stats import HIGHER, LOWER, Estimate, average, proportion

# Exact fractions go through the same arithmetic as floats, so that the properties hold to the last digit.
shares = st.fractions(min_value=0, max_value=1, max_denominator=50)
points = st.builds(Point, shares, st.fractions(min_value=0, max_value=Fraction(5, 4), max_denominator=50))
clouds = st.lists(points, max_size=6)


def height(chain: list[Point], u: float) -> float:
    a, b = next((a, b) for a, b in pairwise(chain) if a.removal <= u <= b.removal)
    return a.retention + (b.retention - a.retention) * (u - a.removal) / (b.removal - a.removal)


def test_the_two_ends_of_the_scale() -> None:
    assert area([]) == 0.5
    assert area([Point(1, 1)]) == 1.0
    assert area([Point(0.5, 0.5)]) == 0.5
    assert area([Point(0.5, 1.0)]) == 0.75


@given(clouds)
def test_hull_is_concave_spans_all_removals_and_covers_every_point(cloud: list[Point]) -> None:
    chain = hull(cloud)
    assert chain[0].removal == 0 and chain[-1].removal == 1
    slopes = [(b.retention - a.retention) / (b.removal - a.removal) for a, b in pairwise(chain)]
    assert all(later < earlier for earlier, later in pairwise(slopes))
    assert all(p.retention <= height(chain, p.removal) for p in cloud)


@given(clouds, points, shares)
def test_a_point_on_or_under_the_hull_changes_nothing(cloud: list[Point], point: Point, depth: Fraction) -> None:
    chain = hull(cloud)
    under = Point(point.removal, height(chain, point.removal) * depth)
    assert hull([*cloud, under]) == chain


@given(clouds, shares, shares, shares, shares)
def test_a_dominated_point_changes_nothing(cloud: list[Point], u: Fraction, v: Fraction, less: Fraction, worse: Fraction) -> None:
    better = Point(u, v)
    assert area([*cloud, better, Point(u * less, v * worse)]) == area([*cloud, better])


@given(clouds, points)
def test_area_never_falls_with_a_further_point_and_stays_in_bounds(cloud: list[Point], point: Point) -> None:
    assert Fraction(1, 2) <= area(cloud) <= area([*cloud, point]) <= max([1, *(p.retention for p in [*cloud, point])])


@given(clouds)
def test_order_and_repetition_do_not_matter(cloud: list[Point]) -> None:
    assert hull(cloud) == hull(cloud[::-1] + cloud)


@given(st.lists(clouds, min_size=1, max_size=3))
def test_the_mean_hull_has_the_mean_area(sets: list[list[Point]]) -> None:
    mean = mean_hull(sets)
    assert area(mean) == pytest.approx(float(sum(area(s) for s in sets) / len(sets)))
    assert mean == sorted(mean)


def test_removal_at_takes_measured_points_only() -> None:
    measured = [Point(0.2, 0.97), Point(0.6, 0.9), Point(0.4, 0.5), Point(1.0, 0.89)]
    assert removal_at(measured) == 0.6
    assert removal_at(measured, 0.95) == 0.2
    assert removal_at([Point(1.0, 0.1)]) == 0.0


@pytest.mark.parametrize("bad", [Point(1.2, 0.5), Point(-0.1, 0.5), Point(0.5, -0.1), Point(0.5, float("nan")), Point(float("nan"), 1.0)])
def test_an_impossible_point_is_refused(bad: Point) -> None:
    with pytest.raises(DataError, match="no place on a frontier"):
        hull([bad])


def test_removal_and_retention_of_measured_rates() -> None:
    before, after, more = (proportion(k, 100, "rate", LOWER) for k in (98, 49, 100))
    half = frontier.removal(after, before)
    assert half.value == pytest.approx(0.5)
    assert half.low is not None and half.high is not None and 0.35 < half.low < 0.5 < half.high < 0.65
    assert frontier.removal(more, before).value == 0.0  # a rate that rose removes nothing
    assert frontier.removal(after, proportion(0, 100, "rate", LOWER)).value is None
    assert frontier.retention(more, before).value == pytest.approx(100 / 98)  # a capability that rose is not cut off


# --- chosen by some items, shown by others --------------------------------------------------------------------------


@given(clouds)
def test_shown_by_the_items_that_chose_the_area_and_the_removal_are_those_in_hindsight(cloud: list[Point]) -> None:
    assert chosen_area(cloud, cloud) == area(cloud)
    found = chosen_at(cloud, cloud)
    assert found.removal == removal_at(cloud) and found.retention >= 0.9


def test_the_corners_of_one_hull_are_joined_where_the_other_items_place_them() -> None:
    by = [Point(0.4, 1.0), Point(0.5, 0.2), Point(0.8, 0.8)]
    shown = [Point(0.2, 0.9), Point(0.9, 1.0), Point(0.6, 0.7)]  # the middle one is no corner, however good it turns out to be
    assert chosen_area(by, shown) == pytest.approx(0.2 * 0.95 + 0.4 * 0.8 + 0.4 * 0.35)
    # The corners change places: from 0.8 to 0.4 the line runs backwards, and what lies under it is taken away again.
    assert chosen_area(by, [Point(0.8, 0.8), Point(0.5, 0.2), Point(0.4, 1.0)]) == pytest.approx(0.8 * 0.9 - 0.4 * 0.9 + 0.6 * 0.5)
    assert chosen_area(by, [Point(0.0, 0.5)] * 3) == pytest.approx(0.25)  # worse than doing nothing, and shown so
    assert chosen_area([Point(0.0, 0.9)], [Point(1.0, 1.0)]) == 0.5  # below the diagonal: doing nothing was chosen


def test_the_removal_that_was_chosen_is_shown_with_what_it_keeps() -> None:
    by, shown = [Point(0.4, 1.0), Point(0.7, 0.9), Point(0.9, 0.89)], [Point(0.5, 0.95), Point(0.6, 0.8), Point(1.0, 1.0)]
    assert chosen_at(by, shown) == Point(0.6, 0.8)
    assert chosen_at(by, shown, retention=0.95) == Point(0.5, 0.95)
    assert chosen_at(by, shown, retention=1.1) == Point(0, 1)
    assert chosen_at([Point(0.5, 0.9), Point(0.5, 1.0)], [Point(0.1, 0.2), Point(0.3, 0.4)]) == Point(0.3, 0.4)


def test_of_checkpoints_that_differ_by_noise_alone_hindsight_makes_a_better_one_and_the_other_half_does_not() -> None:
    rng = np.random.default_rng(0)
    best, shown, best_at, shown_at = [], [], [], []
    for _ in range(1000):
        halves = [
            [Point(float(x), float(y)) for x, y in zip(rng.binomial(30, 0.8, 5) / 30, rng.binomial(60, 0.97, 5) / 60, strict=True)]
            for _ in range(2)
        ]
        cloud = [Point((a.removal + b.removal) / 2, (a.retention + b.retention) / 2) for a, b in zip(*halves, strict=True)]
        best.append(area(cloud))
        best_at.append(removal_at(cloud))
        for by, other in (halves, halves[::-1]):
            shown.append(chosen_area(by, other))
            shown_at.append(chosen_at(by, other).removal)
    assert np.mean(best) > 0.885 + 0.02 and np.mean(best_at) > 0.8 + 0.05
    assert np.mean(shown) == pytest.approx((0.8 + 0.97) / 2, abs=0.004)
    assert np.mean(shown_at) == pytest.approx(0.8, abs=0.006)


def test_an_area_has_the_noise_of_its_items() -> None:
    """Of one checkpoint it is the mean of removal and retention; of several, as many draws of the items say."""
    removed, kept = proportion(40, 60, "d", HIGHER), proportion(200, 264, "d", HIGHER)
    low, value, high = measured_area([(removed, kept)])
    both = average([removed, kept], "d", HIGHER)
    assert (low, value, high) == pytest.approx((both.low, both.value, both.high))
    rng, n = np.random.default_rng(0), 400
    for true in ([(0.5, 0.9), (0.8, 0.7)], [(0.3, 0.95), (0.6, 0.5), (1.0, 0.3)]):
        draws = []
        for _ in range(400):  # as where the items are the same: what one checkpoint does not remove, one that removes more does
            chance, other = rng.random(n), rng.random(n)
            draws.append(area([Point(float((chance < x).mean()), float((other < y).mean())) for x, y in true]))
        points = [(proportion(round(n * x), n, "d", HIGHER), proportion(round(n * y), n, "d", HIGHER)) for x, y in true]
        low, value, high = measured_area(points)
        assert value == pytest.approx(area([Point(x, y) for x, y in true]))
        assert (high - low) / (2 * 1.96) == pytest.approx(np.std(draws), rel=0.25)


def test_an_area_at_its_floor_may_still_be_above_it() -> None:
    low, value, high = measured_area([(proportion(10, 60, "d", HIGHER), proportion(215, 264, "d", HIGHER))])
    assert (low, value) == (0.5, 0.5) and 0.5 < high < 0.56
    exact = Estimate(0.2, None, None, 0, "d", HIGHER), Estimate(0.7, None, None, 0, "d", HIGHER)
    assert measured_area([exact]) == (0.5, 0.5, 0.5)
    ended = measured_area([(proportion(60, 60, "d", HIGHER), proportion(264, 264, "d", HIGHER))])
    assert ended[1] == ended[2] == 1 and 0.96 < ended[0] < 0.98
