from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
import pytest

from offmodel.errors import GameError
from offmodel.game.matrix import Matrix, equilibrium, solve
from offmodel.game.tree import Chance, Choice, End, Node, Tree, from_matrix
from offmodel.game.tree_solvers import backward_induction, cfr, sequence_form
from offmodel.game.tree_solvers import solve as solve_tree


def kuhn() -> Tree:
    """Poker with three cards and one bet (Kuhn 1950); blue speaks first."""

    def deal(mine: str, other: str) -> Node:
        win = 1 if mine > other else -1
        called = {"fold": End(-1), "call": End(2 * win)}
        passed = {"pass": End(win), "bet": Choice("blue", f"{mine}, passed, red bet", called)}
        bet = {"fold": End(1), "call": End(2 * win)}
        return Choice(
            "blue", mine, {"pass": Choice("red", f"{other}, blue passed", passed), "bet": Choice("red", f"{other}, blue bet", bet)}
        )

    return Tree(Chance({f"{a}{b}": (1 / 6, deal(a, b)) for a, b in product("123", "123") if a != b}))


def signals(seed: int) -> Tree:
    """A random game of the kind to come: chance draws what blue sees, red sees what blue did, and blue moves again without red's move."""
    rng = np.random.default_rng(seed)
    payoffs = iter(rng.normal(size=1000).tolist())

    def after(seen: str, done: str) -> Node:
        if done == "stop":
            return End(next(payoffs))
        return Choice("blue", f"{seen} then {done}", {move: End(next(payoffs)) for move in ("keep", "drop")})

    def red(seen: str, done: str) -> Node:
        return Choice("red", f"saw {done}", {move: after(seen, done) for move in ("honest", "poison")})

    drawn = {seen: (share, Choice("blue", seen, {m: red(seen, m) for m in ("go", "stop")})) for seen, share in [("a", 0.3), ("b", 0.7)]}
    return Tree(Chance(drawn))


def payoff(node: Node, plans: Mapping[str, Mapping[str, str]]) -> float:
    match node:
        case End(value):
            return value
        case Chance(branches):
            return sum(share * payoff(child, plans) for share, child in branches.values())
        case Choice(side, knows, moves):
            return payoff(moves[plans[side][knows]], plans)
    raise AssertionError


def normal_form(tree: Tree) -> Matrix:
    """Every pure strategy against every other: slow, and independent of what is tested."""

    def pure(side: str) -> Iterator[dict[str, str]]:
        sets = tree.information[side]  # type: ignore[index]
        yield from (dict(zip(sets, moves, strict=True)) for moves in product(*(one.moves for one in sets.values())))

    rows, columns = list(pure("blue")), list(pure("red"))
    payoffs = np.array([[payoff(tree.root, {"blue": b, "red": r}) for r in columns] for b in rows])
    return Matrix(tuple(map(str, rows)), tuple(map(str, columns)), payoffs)


def random_matrix(seed: int) -> Matrix:
    return Matrix(("a", "b", "c"), ("x", "y", "z", "w"), np.random.default_rng(seed).normal(size=(3, 4)))


def test_kuhn_poker_costs_the_first_player_an_eighteenth() -> None:
    tree = kuhn()
    assert (tree.size.nodes, tree.size.ends, tree.size.information_sets, tree.size.sequences) == (55, 30, 12, 26)
    found = solve_tree(tree)
    assert found.method == "sequence form"
    assert (found.value, found.gap) == (pytest.approx(-1 / 18), pytest.approx(0, abs=1e-8))
    # Kuhn's family: blue bets the lowest card with a in [0, 1/3], the highest with 3 a, and calls with the middle one with a + 1/3.
    a = found.blue["1"]["bet"]
    assert -1e-8 <= a <= 1 / 3 + 1e-8
    assert found.blue["2"]["bet"] == pytest.approx(0, abs=1e-7)
    assert found.blue["3"]["bet"] == pytest.approx(3 * a, abs=1e-7)
    assert found.blue["2, passed, red bet"]["call"] == pytest.approx(a + 1 / 3, abs=1e-7)
    # and red's single equilibrium
    assert [found.red[knows]["call"] for knows in ("1, blue bet", "2, blue bet", "3, blue bet")] == pytest.approx([0, 1 / 3, 1], abs=1e-7)
    assert [found.red[f"{card}, blue passed"]["bet"] for card in "123"] == pytest.approx([1 / 3, 0, 1], abs=1e-7)


def test_regret_minimisation_comes_as_near_as_it_says() -> None:
    short, long = cfr(kuhn(), 10), cfr(kuhn(), 500)
    assert 0 < long.gap < 1e-3 < short.gap
    for found in (short, long):
        assert abs(found.value + 1 / 18) <= found.gap
    assert long.red["2, blue bet"]["call"] == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_normal_form_sequence_form_and_regret_minimisation_agree(seed: int) -> None:
    tree = signals(seed)
    value = equilibrium(normal_form(tree).payoffs)[0]
    exact, near = sequence_form(tree), cfr(tree, 500)
    assert (exact.value, exact.gap) == (pytest.approx(value, abs=1e-8), pytest.approx(0, abs=1e-8))
    assert abs(near.value - value) <= near.gap < 5e-3


@pytest.mark.parametrize("seed", range(4))
def test_a_matrix_and_its_trees_agree(seed: int) -> None:
    game = random_matrix(seed)
    solved = solve(game)
    hidden, seen = from_matrix(game, red_sees=False), from_matrix(game, red_sees=True)
    found = solve_tree(hidden)
    assert (found.method, found.value) == ("sequence form", pytest.approx(solved.value, abs=1e-8))
    assert found.blue[""] == pytest.approx(solved.blue.weights, abs=1e-6)
    committed = solve_tree(seen)
    assert committed.method == "backward induction"
    best = max(one.worst for one in solved.commitments.values())
    assert (committed.value, committed.gap) == (pytest.approx(best), pytest.approx(0, abs=1e-12))
    assert committed.blue[""] == {move: float(move in solved.best_commitments) for move in game.rows}
    for row in game.rows:
        assert committed.red[f"blue: {row}"] == {move: float(move in solved.commitments[row].answers) for move in game.columns}
    assert sequence_form(seen).value == pytest.approx(best, abs=1e-8)


def test_chance_weighs_what_follows() -> None:
    choice = Choice("blue", "warm", {"keep": End(1.0), "drop": End(0.2)})
    tree = Tree(Chance({"warm": (0.25, choice), "cold": (0.75, Choice("red", "cold", {"poison": End(-2.0), "honest": End(0.0)}))}))
    found = backward_induction(tree)
    assert (found.value, found.gap) == (0.25 * 1.0 + 0.75 * -2.0, 0)
    assert (found.blue, found.red) == ({"warm": {"keep": 1.0, "drop": 0.0}}, {"cold": {"poison": 1.0, "honest": 0.0}})


def test_draws_after_draws_multiply() -> None:
    tree = Tree(Chance({"a": (0.5, Chance({"x": (0.5, End(8.0)), "y": (0.5, End(0.0))})), "b": (0.5, End(1.0))}))
    assert [solver(tree).value for solver in (backward_induction, sequence_form, cfr)] == pytest.approx([2.5] * 3)


def test_a_tree_without_moves_is_its_payoff() -> None:
    assert solve_tree(Tree(End(0.5))).value == 0.5
    assert sequence_form(Tree(End(0.5))).value == 0.5
    assert cfr(Tree(End(0.5)), 1).gap == 0


def test_a_tree_deeper_than_pythons_stack_is_solved() -> None:
    node: Node = End(1.0)
    for i in range(1500):
        node = Choice("blue" if i % 2 else "red", str(i), {"on": node, "off": End(float(i % 7))})
    assert backward_induction(Tree(node)).gap == 0


def test_a_tree_too_large_is_refused_with_its_size_and_the_way_out() -> None:
    with pytest.raises(GameError) as raised:
        solve_tree(kuhn(), limit=25)
    assert "55 nodes (30 ends), 12 information sets and 26 sequences" in str(raised.value)
    assert "cfr(tree, iterations)" in str(raised.value)
    assert solve_tree(kuhn(), limit=26).method == "sequence form"


def leaf(*names: str) -> dict[str, Node]:
    return {name: End(0.0) for name in names}


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (Chance({"a": (0.5, End(0)), "b": (0.4, End(0))}), "at the root: the probabilities 0.5, 0.4 must"),
        (Chance({"a": (1.5, End(0)), "b": (-0.5, End(0))}), "must not be below 0"),
        (Chance({}), "at the root: nothing can be drawn"),
        (Choice("blue", "", {}), "at the root: blue has no move"),
        (Choice("green", "", leaf("a")), "'green' is no side"),  # type: ignore[arg-type]
        (Choice("blue", "", {"go": Chance({"x": (1.0, End(float("nan")))})}), "after 'go' → 'x': the payoff is nan"),
        (
            Choice("blue", "", {"go": Choice("red", "?", leaf("a", "b")), "stop": Choice("red", "?", leaf("a", "c"))}),
            "after 'stop': red knows '\\?' and can do 'a', 'c', but after 'go' it knows the same and can do 'a', 'b'",
        ),
        (
            Choice("blue", "", {"go": Choice("blue", "later", leaf("a")), "stop": Choice("blue", "later", leaf("a"))}),
            "after 'stop': blue knows 'later' having done 'stop' when it knew '', but after 'go' having done 'go'",
        ),
        (Choice("blue", "", {"go": Choice("blue", "", leaf("go"))}), "after 'go': blue knows '' having done 'go'.*but at the root without"),
    ],
)
def test_what_is_no_tree_is_refused_with_the_node(root: Node, message: str) -> None:
    with pytest.raises(GameError, match=message):
        Tree(root)


def test_the_order_of_moves_does_not_part_an_information_set() -> None:
    tree = Tree(
        Choice("blue", "", {"h": Choice("red", "", {"h": End(1), "t": End(-1)}), "t": Choice("red", "", {"t": End(1), "h": End(-1)})})
    )
    assert sequence_form(tree).red[""] == pytest.approx({"h": 0.5, "t": 0.5})


def test_solvers_refuse_what_is_not_theirs() -> None:
    with pytest.raises(GameError, match="needs perfect information"):
        backward_induction(kuhn())
    with pytest.raises(GameError, match="at least 1 iteration"):
        cfr(kuhn(), 0)
