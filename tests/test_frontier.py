from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offmodel.errors import DataError
from offmodel.measure import frontier
from offmodel.measure.frontier import Point, area, hull, mean_hull, removal_at
from offmodel.measure.stats import LOWER, proportion

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
