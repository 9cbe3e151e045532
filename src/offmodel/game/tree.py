"""Zero-sum games in extensive form: chance draws, each side moves knowing what it has observed, and blue gets the payoff at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from offmodel.errors import GameError
from offmodel.game.matrix import ROUNDING, Floats, Matrix, Side


@dataclass(frozen=True)
class End:
    """Where a game ends.

    Attributes:
        payoff: To blue; red gets minus that.
    """

    payoff: float


@dataclass(frozen=True)
class Chance:
    """A draw that neither side makes, such as of the pair.

    Attributes:
        branches: What may be drawn, with its probability and what follows.
    """

    branches: Mapping[str, tuple[float, Node]]


@dataclass(frozen=True)
class Choice:
    """A move of one side.

    Attributes:
        side: Whose.
        knows: What it has observed. All its nodes with the same text are one information set: it moves alike at them.
        moves: What it may do, with what follows.
    """

    side: Side
    knows: str
    moves: Mapping[str, Node]


Node: TypeAlias = End | Chance | Choice
Path = tuple[str, ...]
"""The moves and draws that lead from the root to a node."""
Turn = tuple[str, str] | None
"""What a side knew and did when it last moved; None where it has not moved. With perfect recall this stands for all it has done."""


class Visit(NamedTuple):
    """A node as it is met on the way down."""

    path: Path
    node: Node
    chance: float
    blue: Turn
    red: Turn


class Information(NamedTuple):
    """An information set."""

    last: Turn
    moves: tuple[str, ...]
    path: Path
    """The way to the first of its nodes."""


@dataclass(frozen=True)
class Size:
    """How large a tree is.

    Attributes:
        nodes: All of them, ends included.
        ends: Ends.
        information_sets: Of both sides.
        sequences: Of both sides: one per move of each information set and an empty one each. The linear programme has one variable or
            constraint for each.
    """

    nodes: int
    ends: int
    information_sets: int
    sequences: int

    def __str__(self) -> str:
        return f"{self.nodes:,} nodes ({self.ends:,} ends), {self.information_sets:,} information sets and {self.sequences:,} sequences"


@dataclass(frozen=True)
class Tree:
    """A game in extensive form, found to be one.

    Attributes:
        root: Where it begins.
        size: How large it is.
        information: Each side's information sets, in the order in which they are met on the way down.
        perfect: Whether each side always knows where it is.

    Raises:
        GameError: A node has no branches, or a name that is no side; probabilities are not such or do not sum to 1; a payoff is not finite;
            nodes of one information set have different moves, or the side remembers different things at them (so that its recall is not
            perfect, and no method here would be right). The message names the node.
    """

    root: Node
    size: Size = field(init=False)
    information: Mapping[Side, Mapping[str, Information]] = field(init=False)
    perfect: bool = field(init=False)

    def __post_init__(self) -> None:
        information: dict[Side, dict[str, Information]] = {"blue": {}, "red": {}}
        nodes = ends = choices = 0
        for visit in walk(self.root):
            nodes += 1
            match visit.node:
                case End(payoff):
                    ends += 1
                    if not math.isfinite(payoff):
                        raise GameError(f"{_at(visit.path)}: the payoff is {payoff}; measure it, or leave the branch out")
                case Chance(branches):
                    _check_chance(visit.path, [chance for chance, _ in branches.values()])
                case Choice(side, knows):
                    choices += 1
                    if side not in information:
                        raise GameError(f"{_at(visit.path)}: {side!r} is no side; valid are 'blue' and 'red'")
                    here = _information(visit, visit.node)
                    _check_information(side, knows, here, information[side].setdefault(knows, here))
        sets = [one for side in information.values() for one in side.values()]
        object.__setattr__(self, "size", Size(nodes, ends, len(sets), sum(len(one.moves) for one in sets) + 2))
        object.__setattr__(self, "information", information)
        object.__setattr__(self, "perfect", choices == len(sets))


def walk(root: Node) -> Iterator[Visit]:
    """Every node, parents before children and branches in their order."""
    ahead = [Visit((), root, 1.0, None, None)]
    while ahead:
        visit = ahead.pop()
        yield visit
        path, node, chance, blue, red = visit
        match node:
            case Chance(branches):
                below = [Visit((*path, name), child, chance * share, blue, red) for name, (share, child) in branches.items()]
            case Choice("blue", knows, moves):
                below = [Visit((*path, name), child, chance, (knows, name), red) for name, child in moves.items()]
            case Choice(_, knows, moves):
                below = [Visit((*path, name), child, chance, blue, (knows, name)) for name, child in moves.items()]
            case _:
                below = []
        ahead += reversed(below)


def _information(visit: Visit, node: Choice) -> Information:
    return Information(visit.blue if node.side == "blue" else visit.red, tuple(node.moves), visit.path)


def _check_chance(path: Path, shares: list[float]) -> None:
    if not shares:
        raise GameError(f"{_at(path)}: nothing can be drawn")
    if not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > ROUNDING:
        given = ", ".join(f"{share:g}" for share in shares)
        raise GameError(f"{_at(path)}: the probabilities {given} must not be below 0, and must sum to 1")


def _check_information(side: Side, knows: str, here: Information, first: Information) -> None:
    if not here.moves:
        raise GameError(f"{_at(here.path)}: {side} has no move")
    if set(here.moves) != set(first.moves):
        raise GameError(
            f"{_at(here.path)}: {side} knows {knows!r} and can do {_listed(here.moves)}, but {_at(first.path)} it knows the same and can "
            f"do {_listed(first.moves)}; the moves of one information set must be the same"
        )
    if here.last != first.last:
        raise GameError(
            f"{_at(here.path)}: {side} knows {knows!r} {_after(here.last)}, but {_at(first.path)} {_after(first.last)}; what it did "
            "itself it must still know (perfect recall), so give the two nodes different texts in `knows`"
        )


def _at(path: Path) -> str:
    return "after " + " → ".join(map(repr, path)) if path else "at the root"


def _after(turn: Turn) -> str:
    return "without having moved" if turn is None else f"having done {turn[1]!r} when it knew {turn[0]!r}"


def _listed(moves: tuple[str, ...]) -> str:
    return ", ".join(map(repr, moves))


Strategy = Mapping[str, Mapping[str, float]]
"""Of one side: the probability of each move at each information set. Uniform where the side's own moves never lead."""


@dataclass(frozen=True)
class TreeSolution:
    """What a tree comes to.

    Attributes:
        value: Blue's expected payoff when both play as said. The game's value is no farther from it than the gap.
        gap: What blue could gain by its best reply plus what red could: 0, but for rounding, only where both are optimal.
        blue: Blue's strategy.
        red: Red's.
        method: How it was found.
    """

    value: float
    gap: float
    blue: Strategy
    red: Strategy
    method: str


def from_matrix(game: Matrix, *, red_sees: bool) -> Tree:
    """A matrix game as a tree: blue moves, then red, who sees what blue did or does not."""

    def red(row: str, payoffs: Floats) -> Node:
        ends = {column: End(float(payoff)) for column, payoff in zip(game.columns, payoffs, strict=True)}
        return Choice("red", f"blue: {row}" if red_sees else "", ends)

    return Tree(Choice("blue", "", {row: red(row, payoffs) for row, payoffs in zip(game.rows, game.payoffs, strict=True)}))
