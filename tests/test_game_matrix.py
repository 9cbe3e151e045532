from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offmodel.errors import GameError
from offmodel.game.matrix import Matrix, commit, dominated, equilibrium, solve, tradeoff
from offmodel.game.sensitivity import by_lambda

PENNIES = Matrix(("heads", "tails"), ("heads", "tails"), np.array([[1.0, -1.0], [-1.0, 1.0]]))
SIGNS = ("rock", "paper", "scissors")
ROSHAMBO = Matrix(SIGNS, SIGNS, np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]))
# 0.8 x + 0.3 (1 - x) = 0.1 x + 0.5 (1 - x) at x = 2/9, where both are 37/90; for red 0.7 y + 0.1 = 0.5 - 0.2 y at y = 4/9
FILTERS = Matrix(("light", "strict"), ("honest", "poison"), np.array([[0.8, 0.1], [0.3, 0.5]]))


def named(payoffs: object) -> Matrix:
    array = np.array(payoffs, dtype=float)
    return Matrix(tuple(f"b{i}" for i in range(array.shape[0])), tuple(f"r{i}" for i in range(array.shape[1])), array)


matrices = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.integers(-20, 20), min_size=n, max_size=n), min_size=1, max_size=5).map(named)
)


@pytest.mark.parametrize(("game", "weight"), [(PENNIES, 1 / 2), (ROSHAMBO, 1 / 3)])
def test_known_games_have_value_0_and_one_uniform_equilibrium(game: Matrix, weight: float) -> None:
    found = solve(game)
    assert (found.value, found.gap) == pytest.approx((0, 0), abs=1e-9)
    for play in (found.blue, found.red):
        assert play.weights == pytest.approx(dict.fromkeys(game.rows, weight))
        assert all(ends == pytest.approx((weight, weight), abs=1e-6) for ends in play.ranges.values())
        assert play.dominant == () and play.support == game.rows
    assert [one.exploitability for one in found.commitments.values()] == pytest.approx([1.0] * len(game.rows))


def test_commitments_by_hand() -> None:
    found = solve(FILTERS)
    assert found.value == pytest.approx(37 / 90)
    assert found.blue.weights == pytest.approx({"light": 2 / 9, "strict": 7 / 9})
    assert found.red.weights == pytest.approx({"honest": 4 / 9, "poison": 5 / 9})
    light, strict = found.commitments["light"], found.commitments["strict"]
    assert (light.worst, light.answers, light.exploitability) == (0.1, ("poison",), pytest.approx(28 / 90))
    assert (strict.worst, strict.answers, strict.exploitability) == (0.3, ("honest",), pytest.approx(10 / 90))
    assert found.best_commitments == ("strict",)


def test_the_optimal_mixture_is_a_commitment_that_gives_nothing_away_and_others_are_not() -> None:
    found = commit(FILTERS, {"light": 2 / 9, "strict": 7 / 9})
    assert (found.worst, found.exploitability) == (pytest.approx(37 / 90), pytest.approx(0, abs=1e-9))
    assert found.answers == ("honest", "poison")
    half = commit(FILTERS, {"light": 0.5, "strict": 0.5})
    assert (half.worst, half.answers, half.exploitability) == (pytest.approx(0.3), ("poison",), pytest.approx(10 / 90))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(matrices)
def test_both_sides_solve_the_same_game(game: Matrix) -> None:
    value, x, y = equilibrium(game.payoffs)
    # duality, from the payoffs alone: what blue gets at least is what red gives at most
    assert (x @ game.payoffs).min() == pytest.approx((game.payoffs @ y).max(), abs=1e-7)
    assert equilibrium(game.swapped.payoffs)[0] == pytest.approx(-value, abs=1e-7)
    assert equilibrium(3 * game.payoffs + 7)[0] == pytest.approx(3 * value + 7, abs=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=6))
def test_two_rows_agree_with_the_crossings_of_their_lines(columns: list[tuple[int, int]]) -> None:
    lines = [(low, high - low) for high, low in columns]  # payoff of a column by the weight of the first row
    crossings = [(a - c) / (d - b) for a, b in lines for c, d in lines if b != d]
    best = max(min(a + b * x for a, b in lines) for x in [0, 1, *(x for x in crossings if 0 <= x <= 1)])
    assert solve(named(np.array(columns).T)).value == pytest.approx(best, abs=1e-7)


def test_where_several_mixtures_are_as_good_the_ranges_say_so() -> None:
    found = solve(named([[1, 0], [1, 0], [0, 0.5]]))
    # rows 0 and 1 are the same: together 1/3, in any shares
    assert found.blue.ranges["b0"] == pytest.approx((0, 1 / 3), abs=1e-6)
    assert found.blue.ranges["b2"] == pytest.approx((2 / 3, 2 / 3), abs=1e-6)
    assert found.blue.support == ("b0", "b1", "b2")


def test_a_trivial_game_is_named_with_what_makes_it_so() -> None:
    found = solve(named([[3, 2], [1, 2], [0, 0]]))
    assert (found.blue.dominant, found.red.dominant) == (("b0",), ())
    found = solve(named([[1, 0], [5, 4]]))
    assert (found.blue.dominant, found.red.dominant) == (("b1",), ("r1",))
    assert solve(named([[2, 2], [2, 2]])).blue.dominant == ("b0", "b1")


def test_strict_domination_goes_on_in_what_is_left() -> None:
    first, second, third = dominated(named([[4, 3], [5, 1], [0, 1]]))
    assert (first.side, first.move, first.by, first.least, first.most, first.round) == ("blue", "b2", {"b0": 1.0}, 2, 4, 1)
    assert (second.side, second.move, second.by, second.least, second.most, second.round) == ("red", "r0", {"r1": 1.0}, 1, 4, 2)
    assert (third.side, third.move, third.by, third.least, third.most, third.round) == ("blue", "b1", {"b0": 1.0}, 2, 2, 3)
    assert first.strictly and second.strictly and third.strictly


def test_a_mixture_dominates_where_no_single_move_does() -> None:
    (found,) = dominated(named([[3, 0], [0, 3], [1, 1]]))
    assert (found.side, found.move, found.least) == ("blue", "b2", pytest.approx(0.5))
    assert found.by == pytest.approx({"b0": 0.5, "b1": 0.5})


def test_weak_domination_is_found_only_when_asked_for_and_says_what_it_is() -> None:
    game = named([[2, 0, 1], [0, 2, 1], [1, 1, 0]])
    assert dominated(game) == ()
    found = dominated(game, weakly=True)
    assert (found[0].move, found[0].strictly, found[0].least) == ("b2", False, 0)
    assert found[0].by == pytest.approx({"b0": 0.5, "b1": 0.5}, abs=1e-6) and found[0].most == pytest.approx(1)
    assert dominated(named([[1, 1], [1, 1]]), weakly=True) == ()  # what is the same does not dominate


def test_a_twin_does_not_hide_what_dominates_weakly() -> None:
    # the twin is as good a worst case as the mixture that dominates, and dominates nothing
    found = dominated(named([[1, 1, 0], [1, 1, 0], [2, 0, 1], [0, 2, 1]]), weakly=True)
    assert [(one.move, one.strictly, one.round) for one in found[:2]] == [("b0", False, 1), ("b1", False, 1)]
    assert all(one.by == pytest.approx({"b2": 0.5, "b3": 0.5}, abs=1e-6) for one in found[:2])


def test_a_strict_mixture_goes_before_a_weak_single_move() -> None:
    # b0 is never worse than b3 and once as good; b1 and b2 in halves are better by 1 and 1
    found = dominated(named([[1, 0], [4, -2], [-2, 4], [0, 0]]), weakly=True)
    assert [(one.move, one.strictly) for one in found if one.move == "b3"] == [("b3", True)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(matrices, st.booleans())
def test_without_dominated_moves_the_value_is_the_same(game: Matrix, weakly: bool) -> None:
    gone = {(one.side, one.move) for one in dominated(game, weakly=weakly)}
    rest = game.restricted(
        [move for move in game.rows if ("blue", move) not in gone], [move for move in game.columns if ("red", move) not in gone]
    )
    assert equilibrium(rest.payoffs)[0] == pytest.approx(equilibrium(game.payoffs)[0], abs=1e-6)


def test_the_price_of_a_bad_answer_moves_the_best_pipeline() -> None:
    retention = Matrix(("none", "filter"), ("honest", "poison"), np.array([[1.0, 1.0], [0.8, 0.8]]))
    bad = Matrix(("none", "filter"), ("honest", "poison"), np.array([[0.0, 1.0], [0.1, 0.1]]))
    free, dear = by_lambda(retention, bad, 0, 1)
    # 1 - lambda = 0.8 - 0.1 lambda
    assert (free.low, dear.high) == (0, 1)
    assert free.high == dear.low == pytest.approx(2 / 9, abs=1e-3)
    assert (free.moves.blue, free.moves.commitments, free.moves.dominant_blue) == (("none",), ("none",), ("none",))
    assert (dear.moves.blue, dear.moves.commitments, dear.moves.dominant_blue) == (("filter",), ("filter",), ())
    assert free.moves.red == free.moves.dominant_red == ("poison",)
    # against the filter red may do either, as long as leaving it out does not pay
    assert dear.moves.red == ("honest", "poison")
    assert free.values == (1, pytest.approx(7 / 9, abs=1e-3))
    assert dear.values[1] == pytest.approx(0.7)


def test_bad_games_are_refused_with_what_is_wrong() -> None:
    holes = np.array([[1.0, np.nan], [np.nan, 2.0]])
    with pytest.raises(GameError, match=r"no payoff for blue's 'a' against red's 'y', nor for 1 more of 4 cells"):
        Matrix(("a", "b"), ("x", "y"), holes)
    with pytest.raises(GameError, match=r"have the shape \(2, 2\); 3 moves of blue and 2 of red need \(3, 2\)"):
        Matrix(("a", "b", "c"), ("x", "y"), np.zeros((2, 2)))
    with pytest.raises(GameError, match="red's move 'x' stands twice"):
        Matrix(("a",), ("x", "x"), np.zeros((1, 2)))
    with pytest.raises(GameError, match="blue has no move"):
        Matrix((), ("x",), np.zeros((0, 1)))
    with pytest.raises(GameError, match="blue has no move 'ligth'; did you mean 'light'"):
        commit(FILTERS, {"ligth": 1.0})
    with pytest.raises(GameError, match="must sum to 1"):
        commit(FILTERS, {"light": 0.5})
    with pytest.raises(GameError, match="must not be below 0"):
        commit(FILTERS, {"light": 1.5, "strict": -0.5})
    with pytest.raises(GameError, match="red has no move 'honst'; did you mean 'honest'"):
        FILTERS.restricted(columns=["honst"])
    for lam in (-1.0, float("nan"), float("inf")):
        with pytest.raises(GameError, match="lambda is"):
            tradeoff(FILTERS, FILTERS, lam)
    with pytest.raises(GameError, match="not of the same moves"):
        tradeoff(FILTERS, PENNIES, 1)
    with pytest.raises(GameError, match="no range of lambda"):
        by_lambda(FILTERS, FILTERS, 1, 1)


def test_payoffs_cannot_be_changed_behind_a_game() -> None:
    mine = np.array([[1.0]])
    game = Matrix(("a",), ("x",), mine)
    mine[0, 0] = 2.0
    assert game.payoffs[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        game.payoffs[0, 0] = 3.0
