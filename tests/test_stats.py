from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from offmodel.measure.stats import (
    HIGHER,
    LOWER,
    Estimate,
    average,
    cluster_count,
    less,
    mean_over_clusters,
    mean_over_organisms,
    proportion,
    ratio,
    tails,
)


def test_wilson_interval_matches_the_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263 has Wilson's interval 0.2553 to 0.3662
    found = proportion(81, 263, "share of blue", HIGHER)
    assert found.value == pytest.approx(81 / 263)
    assert (round(found.low or 0, 4), round(found.high or 0, 4)) == (0.2553, 0.3662)
    assert (found.n, found.of, found.definition, found.direction) == (263, "items", "share of blue", HIGHER)


@pytest.mark.parametrize("k", [0, 20])
def test_a_rate_at_the_edge_keeps_an_interval_with_width(k: int) -> None:
    found = proportion(k, 20, "d", LOWER)
    assert found.low is not None and found.high is not None
    assert 0 <= found.low <= k / 20 <= found.high <= 1
    assert found.high - found.low > 0.1


def test_nothing_measured_has_neither_value_nor_interval() -> None:
    assert proportion(0, 0, "d", LOWER) == Estimate(None, None, None, 0, "d", LOWER)
    assert mean_over_organisms({}, "d", LOWER, seed=0).value is None


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2), (1, 0)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError):
        proportion(k, n, "d", LOWER)


def test_mean_weighs_organisms_alike_and_over_plain_numbers_its_interval_is_that_of_the_bootstrap() -> None:
    values = {"a": 0.1, "b": 0.3, "c": 0.5, "d": 0.9}
    found = mean_over_organisms(values, "d", HIGHER, seed=3, items=40)
    assert found.value == pytest.approx((0.1 + 0.3 + 0.5 + 0.9) / 4)
    assert (found.n, found.of, found.items) == (4, "organisms", 40)
    # all 4**4 equally likely draws, instead of 10,000 random ones
    grid = np.array(np.meshgrid(*[[0.1, 0.3, 0.5, 0.9]] * 4)).reshape(4, -1).mean(axis=0)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(grid, tails(4))), abs=0.03)
    assert found == mean_over_organisms(values, "d", HIGHER, seed=3, items=40)


def rates(counts: Sequence[int], n: int = 100) -> dict[str, Estimate]:
    return {str(i): proportion(int(k), n, "d", LOWER) for i, k in enumerate(counts)}


def test_where_organisms_agree_the_noise_of_their_items_is_left() -> None:
    # Six organisms of the same 300 of 600 items: as much noise as a rate of 1800 of 3600, as wide as six clusters ask for.
    found, pooled = mean_over_organisms(rates([300] * 6, 600), "d", LOWER, seed=0), proportion(1800, 3600, "d", LOWER)
    assert pooled.low is not None and pooled.high is not None
    wider = math.sqrt(6 / 5) * 2.5706 / 1.96
    assert (found.low, found.high) == pytest.approx((0.5 - wider * (0.5 - pooled.low), 0.5 + wider * (pooled.high - 0.5)), abs=2e-3)
    assert found.items == 3600


@pytest.mark.parametrize("counts", [[0] * 6, [100] * 6, [0] * 2])
def test_organisms_that_agree_at_the_edge_keep_an_interval_with_width(counts: list[int]) -> None:
    parts = rates(counts)
    found = mean_over_organisms(parts, "d", LOWER, seed=0)
    assert found.value is not None and found.low is not None and found.high is not None
    assert found.low <= found.value <= found.high and 0.005 < found.high - found.low < 0.04
    assert found.low >= 0 and found.high <= 1


def test_both_levels_widen_the_interval() -> None:
    counts = [10, 30, 50, 90]

    def width(found: Estimate) -> float:
        assert found.low is not None and found.high is not None
        return found.high - found.low

    both, noisier = (width(mean_over_organisms(rates([k * n // 100 for k in counts], n), "d", LOWER, seed=1)) for n in (100, 10))
    organisms = width(mean_over_organisms({k: e.value for k, e in rates(counts).items()}, "d", LOWER, seed=1))
    assert organisms < both < noisier


def test_many_skewed_intervals_do_not_shift_the_mean_away_from_its_value() -> None:
    # Wilson's interval of 2 in 100 reaches four times as far up as down; two hundred of those must not add up.
    found = mean_over_organisms(rates([2] * 200), "d", LOWER, seed=0, resamples=2000)
    assert found.low is not None and found.high is not None and 0.015 < found.low < 0.02 < found.high < 0.025


def test_the_interval_covers_the_truth_more_often_than_that_over_organisms_alone() -> None:
    rng = np.random.default_rng(0)
    covered = {"both": 0, "organisms": 0}
    for truth in np.clip(rng.normal(0.5, 0.1, (300, 6)), 0, 1):
        parts = rates(rng.binomial(50, truth), 50)
        for name, values in (("both", parts), ("organisms", {k: e.value for k, e in parts.items()})):
            found = mean_over_organisms(values, "d", LOWER, seed=0, resamples=1000)
            assert found.low is not None and found.high is not None
            covered[name] += found.low <= 0.5 <= found.high
    assert covered["organisms"] < 0.95 * 300 < covered["both"]


@pytest.mark.parametrize(("n", "least"), [(5, 0.9), (8, 0.925), (21, 0.925)])
def test_an_interval_over_few_clusters_covers_about_as_often_as_it_says(n: int, least: float) -> None:
    """The usual percentiles cover 82 % of the truths over five clusters, and 89 % over eight."""
    rng, covered, usual = np.random.default_rng(1), 0, 0
    for numbers in rng.normal(size=(400, n)):
        found = mean_over_clusters({str(i): [x] for i, x in enumerate(numbers)}, "d", HIGHER, seed=0, of="pairs", resamples=4000)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0 <= found.high
        low, high = np.percentile(numbers[rng.integers(n, size=(1000, n))].mean(axis=1), [2.5, 97.5])
        usual += low <= 0 <= high
    assert usual < covered and least <= covered / 400 <= 0.975


def test_percentiles_are_those_of_students_t_and_end_at_the_usual_ones() -> None:
    # Phi(-sqrt(10 / 9) x 2.2622), by the tables
    assert tails(10)[0] == pytest.approx(0.855, abs=0.01) and tails(10_000) == pytest.approx((2.5, 97.5), abs=0.01)
    assert all(sum(tails(n)) == pytest.approx(100) for n in (2, 5, 20))
    assert (cluster_count(["a", "a", "b"]), cluster_count(["a", "a", "a"]), cluster_count(["a"])) == (2, 3, 1)


def test_seeds_of_a_pair_that_agree_say_less_than_as_many_pairs() -> None:
    numbers = np.random.default_rng(0).normal(size=10)
    values = {f"{i} {k}": float(x) for i, x in enumerate(numbers) for k in range(3)}

    def width(**more: Any) -> float:
        found = mean_over_organisms(values, "d", HIGHER, seed=0, **more)
        assert found.value == pytest.approx(numbers.mean()) and found.n == 30 and found.low is not None and found.high is not None
        return found.high - found.low

    wider = math.sqrt(10 / 9) * 2.2622 / (math.sqrt(30 / 29) * 2.0452)  # ten clusters ask for more than thirty
    assert width(pairs={name: name[0] for name in values}) / width() == pytest.approx(3**0.5 * wider, rel=0.1)
    assert width(pairs={name: name for name in values}) == width()


def test_yes_or_no_of_organisms_that_agree_has_wilsons_interval_of_as_many_as_there_are_pairs() -> None:
    names = [f"{pair}-{seed}" for pair in "abcdefgh" for seed in (0, 1)]
    pairs = {name: name[0] for name in names}
    for value in (0.0, 1.0):
        found = mean_over_organisms(dict.fromkeys(names, value), "d", HIGHER, seed=0, pairs=pairs, yes_or_no=True)
        wilson = proportion(round(8 * value), 8, "d", HIGHER)
        assert (found.value, found.low, found.high, found.n) == (value, pytest.approx(wilson.low), pytest.approx(wilson.high), 16)
    exact = mean_over_organisms(dict.fromkeys(names, 1.0), "d", HIGHER, seed=0, pairs=pairs)
    assert exact.low == exact.high == 1  # what is no yes and no no may well be the same everywhere
    alone = mean_over_organisms(dict.fromkeys(names[:2], 1.0), "d", HIGHER, seed=0, pairs=pairs, yes_or_no=True)
    assert alone.low == pytest.approx(proportion(2, 2, "d", HIGHER).low)  # of one pair its organisms count


def test_yes_or_no_covers_a_share_that_is_rarely_met() -> None:
    rng, covered = np.random.default_rng(0), {True: 0, False: 0}
    for drawn in rng.binomial(1, 0.1, (200, 10)):
        for floor in covered:
            found = mean_over_organisms({str(i): float(x) for i, x in enumerate(drawn)}, "d", LOWER, seed=0, yes_or_no=floor, resamples=500)
            assert found.low is not None and found.high is not None
            covered[floor] += found.low <= 0.1 <= found.high
    assert covered[False] < 0.8 * 200 and covered[True] >= 0.93 * 200


def test_a_difference_recovers_its_interval_from_the_two() -> None:
    # Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<873), table II: 56/70 less 48/80 is 0.2, by method 10 from 0.0524 to 0.3339.
    found = less(proportion(56, 70, "d", HIGHER), proportion(48, 80, "e", HIGHER))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5) and found.definition == "d"
    nothing, exact = proportion(0, 0, "d", HIGHER), Estimate(0.5, None, None, 1, "d", HIGHER)
    assert less(nothing, exact).value is None and less(exact, nothing).value is None
    assert (less(exact, proportion(1, 4, "d", HIGHER)).value, less(exact, proportion(1, 4, "d", HIGHER)).low) == (0.25, None)


def test_pairs_with_fewer_seeds_weigh_by_their_organisms() -> None:
    values, pairs = {"a0": 0.0, "a1": 0.0, "a2": 0.0, "b0": 1.0}, {"a0": "a", "a1": "a", "a2": "a", "b0": "b"}
    found = mean_over_organisms(values, "d", HIGHER, seed=0, pairs=pairs)
    assert (found.value, found.low, found.high) == (0.25, 0.0, 1.0)  # a quarter of the draws is twice the one pair, a quarter the other
    one = mean_over_organisms({"a0": 0.2, "a1": 0.6}, "d", HIGHER, seed=0, pairs=pairs)
    assert (one.value, one.low, one.high) == (0.4, 0.2, 0.6)  # of a single pair its organisms are drawn


def test_numbers_of_a_cluster_are_drawn_together_and_each_weighs_alike() -> None:
    clusters = {"a": [0.1, 0.2, 0.3], "b": [0.5], "c": [0.9, 0.9], "d": [0.4, 0.0]}
    found = mean_over_clusters(clusters, "d", HIGHER, seed=0, of="pairs", unit="area")
    assert (found.value, found.n, found.of, found.unit) == (pytest.approx(3.3 / 8), 4, "pairs", "area")
    # all 4**4 equally likely draws, instead of 10,000 random ones
    means = [np.mean([number for name in draw for number in clusters[name]]) for draw in product(clusters, repeat=4)]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, tails(4))), abs=0.03)
    assert found == mean_over_clusters(clusters, "d", HIGHER, seed=0, of="pairs", unit="area")


def test_numbers_that_agree_within_clusters_say_less_than_as_many_free_ones() -> None:
    numbers = list(np.random.default_rng(0).normal(size=10))
    alike = mean_over_clusters({str(i): [x] * 3 for i, x in enumerate(numbers)}, "d", HIGHER, seed=0, of="pairs")
    free = mean_over_clusters({f"{i} {k}": [x] for i, x in enumerate(numbers) for k in range(3)}, "d", HIGHER, seed=0, of="seeds")
    assert alike.value == pytest.approx(free.value)
    assert alike.high is not None and alike.low is not None and free.high is not None and free.low is not None
    wider = math.sqrt(10 / 9) * 2.2622 / (math.sqrt(30 / 29) * 2.0452)
    assert (alike.high - alike.low) / (free.high - free.low) == pytest.approx(3**0.5 * wider, rel=0.1)


def test_one_cluster_has_no_interval_and_none_has_no_value() -> None:
    one = mean_over_clusters({"a": [1.0, 2.0]}, "d", HIGHER, seed=0, of="pairs")
    assert (one.value, one.low, one.high, one.n) == (1.5, None, None, 1)
    assert mean_over_clusters({}, "d", HIGHER, seed=0, of="pairs").value is None


def test_one_organism_has_no_interval() -> None:
    found = mean_over_organisms(rates([30]), "d", HIGHER, seed=0)
    assert (found.value, found.low, found.high, found.n, found.items) == (pytest.approx(0.3), None, None, 1, 100)


def test_organisms_without_a_value_are_left_out_and_the_definition_says_so() -> None:
    parts = {"a": 0.2, "b": math.nan, "c": None, "d": proportion(0, 0, "d", HIGHER), "e": 0.4}
    found = mean_over_organisms(parts, "rate", HIGHER, seed=0)
    assert (found.value, found.n) == (pytest.approx(0.3), 2)
    assert "3 of 5 organisms left out" in found.definition
    assert mean_over_organisms(rates([20, 40]) | {"c": Estimate(None, None, None, 70, "d", LOWER)}, "d", LOWER, seed=0).items == 200


def test_average_of_suites_keeps_within_its_parts() -> None:
    parts = [proportion(0, 50, "a", HIGHER), proportion(50, 50, "b", HIGHER)]
    found = average(parts, "mean", HIGHER)
    assert (found.value, found.n) == (0.5, 100)
    assert found.low is not None and found.high is not None and 0.45 < found.low < 0.5 < found.high < 0.55
    assert average([*parts, proportion(0, 0, "c", HIGHER)], "mean", HIGHER).value is None
    assert average([], "mean", HIGHER).value is None


def test_ratio_keeps_its_width_at_the_edges_and_is_undefined_over_zero() -> None:
    full, none = proportion(100, 100, "d", LOWER), proportion(0, 100, "d", LOWER)
    gone = ratio(none, full, "left", LOWER)
    assert gone.value == 0 and gone.low == 0 and gone.high is not None and 0.02 < gone.high < 0.06
    same = ratio(full, full, "left", LOWER)
    assert same.low is not None and same.high is not None and same.low < 1 < same.high
    assert ratio(full, none, "left", LOWER).value is None
    assert ratio(full, Estimate(0.5, None, None, 1, "d", LOWER), "left", LOWER).low is None


@pytest.mark.parametrize(("p", "q"), [(0.05, 0.97), (0.5, 0.9), (0.9, 0.9)])
def test_ratio_interval_covers_the_truth_about_95_times_in_100(p: float, q: float) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for a, b in zip(rng.binomial(100, p, 400), rng.binomial(100, q, 400), strict=True):
        found = ratio(proportion(int(a), 100, "d", LOWER), proportion(int(b), 100, "d", LOWER), "d", LOWER)
        assert found.low is not None and found.high is not None
        covered += found.low <= p / q <= found.high
    assert 0.92 <= covered / 400 <= 0.98
