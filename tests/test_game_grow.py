from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from offmodel.errors import GameError
from offmodel.game.grow import Reply, Step, grow
from offmodel.game.matrix import equilibrium

SIGNS = ("rock", "paper", "scissors")


class Measure:
    """Payoffs from a table; remembers what was asked for, and refuses to be asked twice."""

    def __init__(self, payoffs: object) -> None:
        self.payoffs = np.array(payoffs, dtype=float)
        self.asked: list[tuple[int, int]] = []

    def __call__(self, cells: Sequence[tuple[int, int]]) -> list[float]:
        assert not set(cells) & set(self.asked) and len(set(cells)) == len(cells)
        self.asked += cells
        return [float(self.payoffs[cell]) for cell in cells]


def neighbours(n: int, reach: int = 1):  # type: ignore[no-untyped-def]
    return lambda i: [k for k in range(max(0, i - reach), min(n, i + reach + 1)) if k != i]


def test_the_path_of_rock_paper_scissors_by_hand() -> None:
    def measure(cells: Sequence[tuple[str, str]]) -> list[float]:
        return [float((SIGNS.index(b) - SIGNS.index(r) + 1) % 3 - 1) for b, r in cells]

    def others(one: str) -> list[str]:
        return [sign for sign in SIGNS if sign != one]

    found = grow(["rock"], ["rock"], measure, others, others, noise=0.1)
    paper, scissors = Reply("paper", 1.0, True), Reply("scissors", 1.0, True)
    rock, both = ({"rock": 1.0}, {"rock": 1.0}), ({"paper": 1.0}, {"paper": 1.0})
    assert found.path[:2] == (Step((1, 1), 0.0, 0.0, rock, paper, paper, 5), Step((2, 2), 0.0, 0.0, both, scissors, scissors, 3))
    last = found.path[2]
    assert (last.moves, last.blue, last.red, last.measured) == ((3, 3), None, None, 1)
    assert (last.value, last.gap) == pytest.approx((0, 0), abs=1e-9)
    assert all(mixture == pytest.approx(dict.fromkeys(SIGNS, 1 / 3)) for mixture in last.mixtures)
    assert found.settled and found.blue == found.red == SIGNS and len(found.cells) == 9
    assert found.game.rows == SIGNS


@pytest.mark.parametrize("seed", range(5))
def test_where_all_moves_are_near_the_value_is_that_of_the_full_game(seed: int) -> None:
    table = np.random.default_rng(seed).normal(size=(9, 7))
    found = grow([0], [0], Measure(table), neighbours(9, 9), neighbours(7, 7), noise=1e-9, steps=50)
    assert found.settled
    assert found.path[-1].value == pytest.approx(equilibrium(table)[0], abs=1e-7)
    assert equilibrium(found.game.payoffs)[0] == found.path[-1].value


def test_a_smooth_game_is_climbed_without_measuring_it_whole() -> None:
    blue, red = np.mgrid[0:30, 0:30] / 30
    table = -((blue - 0.6) ** 2) + (red - 0.4) ** 2 + 0.5 * blue * red  # concave for blue, convex for red: a saddle
    measure = Measure(table)
    found = grow([0], [29], measure, neighbours(30), neighbours(30), noise=1e-9)
    assert found.settled and found.path[-1].value == pytest.approx(equilibrium(table)[0], abs=1e-6)
    assert len(measure.asked) < table.size / 2 and len(found.cells) == len(measure.asked)


def test_gains_within_the_noise_end_it_and_are_told() -> None:
    found = grow([0], [0], Measure([[0.0, 0.0], [0.05, 0.0]]), neighbours(2), neighbours(2), noise=0.06)
    assert found.settled and (found.blue, found.red) == ((0,), (0,))
    assert found.path == (Step((1, 1), 0.0, 0.0, ({0: 1.0}, {0: 1.0}), Reply(1, 0.05, False), Reply(1, 0.0, False), 3),)
    assert found.cells[1, 0] == 0.05  # what was tried is kept
    assert grow([0], [0], Measure([[0.0, 0.0], [0.05, 0.0]]), neighbours(2), neighbours(2), noise=0.04).blue == (0, 1)


def test_what_is_near_unused_moves_is_tried_before_it_ends() -> None:
    near = {0: [], 1: [2], 2: []}
    found = grow([0, 1], [0], Measure([[1.0], [0.0], [3.0]]), near.__getitem__, lambda _: [], noise=0.1)
    assert found.blue == (0, 1, 2) and found.path[0].blue == Reply(2, 2.0, True)


def test_steps_that_run_out_are_told_and_the_last_game_is_whole() -> None:
    found = grow([0], [0], Measure(np.diag([-1.0, -2.0, -3.0])), neighbours(3), neighbours(3), noise=0.0, steps=1)
    assert not found.settled and len(found.path) == 1
    assert (found.blue, found.red) == ((0, 1), (0,)) and found.game.payoffs.shape == (2, 1)


def test_without_steps_no_reply_is_sought() -> None:
    measure = Measure(np.diag([-1.0, -2.0, -3.0]))
    found = grow([0, 1], [0], measure, neighbours(3), neighbours(3), noise=0.0, steps=0)
    assert (found.blue, found.red, found.path, found.settled) == ((0, 1), (0,), (), False)
    assert measure.asked == [(0, 0), (1, 0)]


def test_bad_input_is_refused() -> None:
    near = neighbours(2)
    with pytest.raises(GameError, match="the payoff of blue's '1' against red's '0' is nan"):
        grow([0], [0], Measure([[0.0, 0.0], [np.nan, 0.0]]), near, near, noise=0.0)
    with pytest.raises(GameError, match="red has no first move"):
        grow([0], [], Measure([[0.0]]), near, near, noise=0.0)
    with pytest.raises(GameError, match=r"the noise is -0\.1"):
        grow([0], [0], Measure([[0.0]]), near, near, noise=-0.1)
    with pytest.raises(GameError, match="there are -1 steps"):
        grow([0], [0], Measure([[0.0]]), near, near, noise=0.1, steps=-1)
