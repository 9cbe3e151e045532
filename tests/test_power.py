from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from offmodel.errors import DataError
from offmodel.measure.compare import least_p, sign_flip
from offmodel.measure.power import components, smallest_difference
from offmodel.measure.stats import HIGHER, Estimate
from offmodel.report import words
from offmodel.report.compare import Result, compare
from offmodel.report.power import MEASURED, Spread, foresee, spreads_of
from offmodel.spec import Study


def found(difference: float, pair: float, organism: float, item: float, pairs: int, organisms: int, tests: int) -> float:
    """How often the package's own test finds a difference, over many made-up studies."""
    rng, hits, studies = np.random.default_rng(7), 0, 500
    for _ in range(studies):
        of_pair = difference + pair * rng.standard_normal((pairs, 1))
        numbers = of_pair + math.hypot(organism, item) * rng.standard_normal((pairs, organisms))
        clusters = {str(i): row for i, row in enumerate(numbers)} if pairs > 1 else {str(i): [x] for i, x in enumerate(numbers[0])}
        p = sign_flip(clusters, seed=0)
        assert p is not None
        hits += p * tests <= 0.05
    return hits / studies


@pytest.mark.parametrize(
    ("pairs", "organisms", "tests"),
    [
        (6, 2, 1),  # all pairs must agree: two of 64 patterns
        (8, 3, 2),  # three patterns of each sign
        (10, 1, 1),
        (1, 8, 1),  # the seeds of the one pair are the clusters, and it has no spread
    ],
)
def test_the_difference_is_found_as_often_as_promised(pairs: int, organisms: int, tests: int) -> None:
    pair = 0.25 if pairs > 1 else 0.0
    difference = smallest_difference(0.25, 0.3, 0.1, pairs=pairs, seeds=organisms, tests=tests)
    assert difference is not None
    assert 0.74 < found(difference, pair, 0.3, 0.1, pairs, organisms, tests) < 0.86
    assert found(0.5 * difference, pair, 0.3, 0.1, pairs, organisms, tests) < 0.5


def test_with_many_pairs_it_is_the_textbooks() -> None:
    # (1.96 + 0.8416) standard errors (Miller 2024, section 5); the t-test's tails add a little.
    difference = smallest_difference(0.3, 0.4, 0.0, pairs=400, seeds=4)
    assert difference == pytest.approx(2.8016 * math.sqrt((0.3**2 + 0.4**2 / 4) / 400), rel=0.01)


def test_each_noise_shrinks_with_what_it_comes_from_alone() -> None:
    def seen(pair: float, organism: float, organisms: int) -> float:
        difference = smallest_difference(pair, organism, 0.0, pairs=12, seeds=organisms)
        assert difference is not None
        return difference

    assert seen(0.3, 0.0, 1) == pytest.approx(seen(0.3, 0.0, 9))
    assert seen(0.0, 0.3, 9) == pytest.approx(seen(0.0, 0.3, 1) / 3)


@pytest.mark.parametrize(
    ("pairs", "organisms", "tests"), [(5, 9, 1), (6, 3, 2), (8, 3, 7), (1, 1, 1), (1, 5, 1)], ids=lambda value: str(value)
)
def test_where_there_are_too_few_patterns_of_signs_nothing_can_be_seen(pairs: int, organisms: int, tests: int) -> None:
    assert smallest_difference(0.001, 0.001, 0.0, pairs=pairs, seeds=organisms, tests=tests) is None


def test_one_more_pair_or_one_test_less_makes_something_visible() -> None:
    for pairs, tests in ((6, 1), (7, 2), (8, 6)):
        assert smallest_difference(0.3, 0.3, 0.0, pairs=pairs, seeds=3, tests=tests) is not None


@pytest.mark.parametrize("n", [2, 6, 14, 15, 30])
def test_no_p_value_is_below_the_least_and_one_reaches_it(n: int) -> None:
    assert sign_flip({str(i): [1.0 + i] for i in range(n)}, seed=0) == pytest.approx(least_p(n))


def test_components_match_the_analysis_of_variance_by_hand() -> None:
    # Means 2 and 6 with 2 numbers each: between mean square 16, within 2; (16 - 2) / 2.
    assert components([[1.0, 3.0], [5.0, 7.0]]) == (7.0, 2.0)
    assert components([[1.0, 3.0], [2.0, 2.0]]) == (0.0, 1.0)  # means agree better than chance would have it
    with pytest.raises(ValueError, match="two clusters"):
        components([[1.0], [2.0]])


def test_components_of_unequal_clusters_are_right_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    sizes = (2, 3, 3, 1, 5, 3)
    draws = [components([list(rng.normal() * 0.3 + 0.2 * rng.normal(size=n)) for n in sizes]) for _ in range(2000)]
    assert np.mean(draws, axis=0) == pytest.approx([0.09, 0.04], rel=0.05)


# --- a study --------------------------------------------------------------------------------------------------------


def study(pairs: int, seeds: int, methods: int, **measure: Any) -> Study:
    from offmodel import catalog

    return Study.model_validate(
        {
            "study": "foreseen",
            "bases": ["world:student-0"],
            "teacher": "world:teacher",
            "organisms": {"pairs": [name for name in catalog.names("pair") if name != "sandbagging"][:pairs]},
            "methods": {f"m{i}": [{"phase": "sft", "labels": "teacher", "steps": 5 + i, "lr": 1e-3}] for i in range(methods)},
            "measure": {"capability": {"world:arithmetic": 4, "world:recall": 10}, "behaviour": 50, "probes": []} | measure,
            "seeds": list(range(seeds)),
        }
    )


SPREADS = {"bad_rate": Spread(0.2, 0.3, 0.4), "retention": Spread(0.0, 0.05, 0.3), "end_area": Spread(0.1, 0.15, 0.0)}


def test_a_study_is_told_what_it_could_see() -> None:
    seen = foresee(study(8, 3, 3), SPREADS)
    assert seen is not None
    assert (seen.pairs, seen.organisms, seen.behaviour, seen.capability, seen.others, seen.blind) == (8, 3, 50, 5 * 4 + 10, 2, "")
    rate, kept, area = seen.sights
    assert [s.measure for s in seen.sights] == ["bad_rate", "retention", "end_area"]
    assert [rate.item, kept.item] == pytest.approx([0.4 / 50**0.5, 0.3 / 30**0.5])
    assert area.item == pytest.approx(math.sqrt(0.4**2 / 50 + 0.3**2 / 30) / 2)
    assert rate.one == smallest_difference(0.2, 0.3, rate.item, pairs=8, seeds=3)
    assert rate.all == smallest_difference(0.2, 0.3, rate.item, pairs=8, seeds=3, tests=2)
    assert rate.one is not None and rate.all is not None and rate.one < rate.all


def test_recipes_are_more_organisms_of_a_pair() -> None:
    one = study(8, 3, 2)
    several = one.model_validate(one.model_dump() | {"organisms": one.organisms.model_dump() | {"recipes": {"a": {}, "b": {"steps": 30}}}})
    assert (seen := foresee(several, SPREADS)) is not None and seen.organisms == 6


@pytest.mark.parametrize(("pairs", "seeds"), [(1, 6), (1, 5), (6, 2)])
def test_what_is_foreseen_is_tested_over_the_same_clusters(pairs: int, seeds: int) -> None:
    """The report's own comparison of a study with two recipes: seeds of one pair, or pairs, of all that the recipes made of each."""
    recipes, rng = 2, np.random.default_rng(3)
    one = study(pairs, seeds, 2)
    planned = one.model_validate(one.model_dump() | {"organisms": one.organisms.model_dump() | {"recipes": {"a": {}, "b": {"steps": 30}}}})
    seen = foresee(planned, SPREADS)
    assert seen is not None
    area = seen.sights[2]
    hits = 0
    for _ in range(200):
        results: dict[str, dict[str, Result]] = {"m0": {}, "m1": {}}
        for pair in range(pairs):
            of_pair = (area.one or 9.0) + (area.pair * rng.normal() if pairs > 1 else 0.0)
            for seed, recipe in product(range(seeds), range(recipes)):
                gained = of_pair + math.hypot(area.organism, area.item) * rng.normal()
                for method, value in (("m0", 0.0), ("m1", gained)):
                    estimate = Estimate(value, None, None, 1, "", HIGHER)
                    results[method][f"{pair}-{recipe}-{seed}"] = Result(f"p{pair}", f"r{recipe}", seed, {"end_area": estimate})
        (found,) = compare(results, ["m0"])
        contrast = found.contrasts["end_area"]
        assert contrast.difference.n == (pairs if pairs > 1 else seeds) and contrast.p is not None
        hits += contrast.p <= 0.05
    if seeds == 5:  # with five clusters nothing can be seen, however large
        assert area.one is None and seen.blind and hits == 0
    else:
        assert not seen.blind and 0.72 <= hits / 200 <= 0.88


def test_a_study_too_small_for_any_difference_is_told_so() -> None:
    def blind(pairs: int, seeds: int, methods: int) -> str:
        seen = foresee(study(pairs, seeds, methods), SPREADS)
        assert seen is not None and (seen.sights[0].all is None) == bool(seen.blind)
        return seen.blind

    assert blind(5, 3, 2) == "with 5 pairs no difference can be significant, however large: no p is below 0.0625"
    assert blind(6, 3, 3).startswith(
        "with 6 pairs no difference can be significant after Holm over 2 methods, however large: no p is below"
    )
    assert blind(1, 2, 2).startswith("with one pair and 2 seeds of it no difference can be significant, however large")
    assert blind(1, 1, 2) == "with one seed of one pair no difference can be tested"
    assert blind(7, 3, 3) == blind(6, 3, 2) == blind(1, 6, 2) == ""


def test_one_method_is_compared_with_nothing() -> None:
    assert foresee(study(8, 3, 1)) is None


def test_the_spreads_that_are_assumed_are_there_for_every_measure() -> None:
    assert list(MEASURED) == list(SPREADS)


def test_beyond_what_a_difference_can_be_is_out_of_reach() -> None:
    assert [words.size(x, "points") for x in (0.0626, 1.2, None)] == ["6.3 points", "out of reach", "out of reach"]
    assert [words.size(x, "area") for x in (0.0626, 0.6)] == ["0.063", "out of reach"]


# --- from results ---------------------------------------------------------------------------------------------------


Ends = Mapping[str, Mapping[tuple[str, int], tuple[float, float]]]


def write(path: Path, ends: Ends, n: int = 50, unfinished: Collection[tuple[str, int]] = ()) -> None:
    """Rows of a study: by method and organism the bad rate and the accuracy at the end; in the beginning both are 1."""
    rows = []
    for method, organisms in ends.items():
        for (pair, seed), (bad, right) in organisms.items():
            # An operation takes no steps, so that the second checkpoint has the first one's total.
            course = [("1. sft", 0, 1.0, 1.0), ("9. sft", 4, 0.9, 0.9), ("10. weights", 1, bad, right)]
            for phase, step, rate, kept in course[: 2 if (pair, seed) in unfinished else 3]:
                numbers = {"bad_rate": rate, "removal": 1 - rate, "retention": kept, "capability.a": kept, "capability.b": kept}
                place = {"organism": f"{pair}-{seed}", "pair": pair, "method": method, "phase": phase, "step": step}
                rows += [place | {"measure": m, "value": v, "n": n} for m, v in numbers.items()]
                rows.append(place | {"measure": "capability.a.steps=1", "value": 0.0, "n": n})
    parquet.write_table(pa.Table.from_pylist(rows), path)


def test_spreads_are_those_that_made_the_results(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    n, ends = 200, {"base": {}, "other": {}}  # type: ignore[var-annotated]
    for i in range(600):
        of_pair = 0.06 * rng.normal()
        for seed in range(3):
            difference = 0.1 + of_pair + 0.09 * rng.normal()
            ends["base"][f"p{i}", seed] = (rng.binomial(n, 0.4) / n, 0.8)
            ends["other"][f"p{i}", seed] = (rng.binomial(n, 0.4 + difference) / n, 0.8)
    write(tmp_path / "results.parquet", ends, n)
    rate, kept, area = spreads_of(tmp_path / "results.parquet").values()
    assert tuple(rate) == pytest.approx((0.06, 0.09, math.sqrt(0.24 + 0.24)), rel=0.1)
    assert (kept.pair, kept.organism) == (0, 0)
    assert kept.item == pytest.approx(math.sqrt(2 * (2 * 0.16 / 200) / 2**2 * 400))  # two suites of two methods, in the mean of two
    assert area.pair == pytest.approx(rate.pair / 2, rel=0.01) and area.item == 0


def test_an_organism_on_which_a_method_has_not_come_to_its_end_is_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ends = {method: {(f"p{i}", seed): (rng.uniform(), 1.0) for i in range(4) for seed in range(2)} for method in ("base", "other")}
    write(tmp_path / "finished.parquet", ends)
    more = {method: organisms | {("p0", 2): (0.5, 0.5), ("p9", 0): (0.5, 0.5)} for method, organisms in ends.items()}
    write(tmp_path / "more.parquet", more, unfinished=[("p0", 2), ("p9", 0)])
    assert spreads_of(tmp_path / "more.parquet") == spreads_of(tmp_path / "finished.parquet")


@pytest.mark.parametrize(
    "ends",
    [
        {"one": {("a", 0): (0.1, 1.0), ("a", 1): (0.2, 1.0), ("b", 0): (0.3, 1.0)}},
        {"one": {("a", 0): (0.1, 1.0), ("b", 0): (0.2, 1.0)}, "other": {("a", 0): (0.3, 1.0), ("b", 0): (0.4, 1.0)}},
    ],
    ids=["one method", "one organism of each pair"],
)
def test_results_that_cannot_tell_are_refused(tmp_path: Path, ends: Ends) -> None:
    write(tmp_path / "results.parquet", ends)
    with pytest.raises(DataError, match=r"results\.parquet: needs two methods on two pairs, and on two organisms of one of them"):
        spreads_of(tmp_path / "results.parquet")


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.parquet").write_text("{}")
    for path in (tmp_path / "results.parquet", tmp_path / "absent" / "results.parquet"):
        with pytest.raises(DataError, match=r"is no results\.parquet of a study"):
            spreads_of(path)
