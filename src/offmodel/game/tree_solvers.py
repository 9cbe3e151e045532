"""Trees solved: backward induction, the sequence form, and counterfactual regret minimisation where a tree is too large.

Where a side does not know where it is, its moves cannot be found one by one. There a side's plan gives each of its sequences (a move after
all it did before) the product of its probabilities of those moves. Blue's expected payoff is bilinear in the two plans, and grows with the
tree instead of with the number of pure strategies, as the normal form does (von Stengel 1996, doi:10.1006/game.1996.0050; Koller, Megiddo
and von Stengel 1996, doi:10.1006/game.1996.0051).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from offmodel.errors import GameError
from offmodel.game.lp import maximise
from offmodel.game.matrix import Floats
from offmodel.game.tree import Chance, Choice, End, Information, Path, Strategy, Tree, TreeSolution, walk

LIMIT = 20_000
"""Sequences up to which :func:`solve` takes the linear programme."""


_SOLVERS = 1e-9
"""What the linear programme's solver leaves where it means 0."""


def solvable(tree: Tree, limit: int | None = None) -> bool:
    """Whether :func:`solve` takes a tree: any of perfect information, else one of up to so many sequences (:data:`LIMIT`)."""
    return tree.perfect or tree.size.sequences <= (LIMIT if limit is None else limit)


def solve(tree: Tree, limit: int = LIMIT) -> TreeSolution:
    """The exact solution, by backward induction where information is perfect, by the sequence form otherwise.

    Args:
        tree: The game.
        limit: How many sequences of both sides the linear programme may have.

    Raises:
        GameError: It would have more; the message says how large the tree is.
    """
    if not solvable(tree, limit):
        raise GameError(
            f"the tree has {tree.size}, and those with more than {limit:,} sequences are not solved exactly; raise the limit, or "
            "approximate with cfr(tree, iterations), which also says how far from optimal it came"
        )
    return backward_induction(tree) if tree.perfect else sequence_form(tree)


def backward_induction(tree: Tree) -> TreeSolution:
    """Best moves from the ends up (Zermelo 1913; Kuhn 1953): optimal at every node, those never reached included.

    Raises:
        GameError: Somewhere a side does not know where it is.
    """
    if not tree.perfect:
        raise GameError("backward induction needs perfect information, and here several nodes share an information set; use sequence_form")
    blue, red, payoffs = _plans(tree)
    x, y = np.zeros(blue.n), np.zeros(red.n)
    values: dict[Path, float] = {}
    for path, node, *_ in reversed(list(walk(tree.root))):
        match node:
            case End(payoff):
                values[path] = payoff
            case Chance(branches):
                values[path] = sum(share * values.pop((*path, name)) for name, (share, _) in branches.items())
            case Choice(side, knows, moves):
                after = {name: values.pop((*path, name)) for name in moves}
                is_blue = side == "blue"
                chosen = (max if is_blue else min)(after, key=after.__getitem__)
                values[path] = after[chosen]
                if is_blue:
                    x[blue.number[knows, chosen]] = 1.0
                else:
                    y[red.number[knows, chosen]] = 1.0
    return _solution(blue, red, payoffs, blue.strategy(x), red.strategy(y), "backward induction")


def sequence_form(tree: Tree) -> TreeSolution:
    """The exact solution by one linear programme over blue's plan; the prices of red's sequences are red's plan."""
    from scipy.sparse import hstack

    blue, red, payoffs = _plans(tree)
    low, high = payoffs.data.min(initial=0.0), payoffs.data.max(initial=0.0)
    # Maximise what red's empty sequence leaves to blue, so that no sequence of red takes more from it than blue's plan gives.
    point, prices = maximise(
        np.concatenate([np.zeros(blue.n), [1.0], np.zeros(len(red.sets))]),
        (hstack([-payoffs.T / ((high - low) or 1.0), red.constraints().T]).tocsr(), np.zeros(red.n)),
        (hstack([blue.constraints(), _zeros(len(blue.sets) + 1, len(red.sets) + 1)]).tocsr(), np.eye(1, len(blue.sets) + 1)[0]),
        free=len(red.sets) + 1,
    )
    return _solution(blue, red, payoffs, blue.strategy(point[: blue.n], _SOLVERS), red.strategy(prices, _SOLVERS), "sequence form")


def cfr(tree: Tree, iterations: int = 1000) -> TreeSolution:
    """An approximation by counterfactual regret minimisation (Zinkevich et al. 2007), as CFR+ (Tammelin 2014, arXiv:1407.5042).

    Both sides in turn keep, at each information set, what they regret not having done, never below 0, and play in proportion to it. Their
    average plans, later rounds weighing more, approach an equilibrium. How near they came is measured: the solution's gap.

    Raises:
        GameError: There is no iteration.
    """
    if iterations < 1:
        raise GameError(f"cfr needs at least 1 iteration, not {iterations}")
    blue, red, payoffs = _plans(tree)
    sides = ((blue, payoffs), (red, -payoffs.T.tocsr()))
    play = [side.strategy(np.zeros(side.n)) for side, _ in sides]
    regrets, sums = [np.zeros(side.n) for side, _ in sides], [np.zeros(side.n) for side, _ in sides]
    for weight in range(1, iterations + 1):
        for me, (side, gains) in enumerate(sides):
            other = sides[1 - me][0].plan(play[1 - me])
            values, at = side.values(gains @ other, lambda own, those: float(own @ those), play[me])
            for info, worth in zip(side.sets, at, strict=True):
                here = info.sequences
                regrets[me][here] = (regrets[me][here] + values[here] - worth).clip(min=0.0)
            play[me] = side.strategy(regrets[me])
            sums[me] += weight * side.plan(play[me])
    x, y = (side.strategy(total) for (side, _), total in zip(sides, sums, strict=True))
    return _solution(blue, red, payoffs, x, y, f"CFR+, {iterations:,} iterations")


class _Set(NamedTuple):
    """An information set in numbers: the sequence that leads to it, and those of its moves."""

    parent: int
    sequences: slice


class _Side:
    """One side's information sets, parents before children, and its sequences; number 0 is the empty one."""

    def __init__(self, information: Mapping[str, Information]) -> None:
        self.information = information
        self.number: dict[tuple[str, str] | None, int] = {None: 0}
        self.sets: list[_Set] = []
        for knows, info in information.items():
            start = len(self.number)
            self.number |= {(knows, move): start + i for i, move in enumerate(info.moves)}
            self.sets.append(_Set(self.number[info.last], slice(start, len(self.number))))
        self.n = len(self.number)

    def constraints(self) -> Any:
        """``constraints @ plan == (1, 0, ..., 0)`` for every plan: the empty sequence has 1, a set's moves share what leads to it."""
        from scipy.sparse import csr_matrix

        entries = [(0, 0, 1.0)]
        for row, (parent, sequences) in enumerate(self.sets, 1):
            entries += [(row, parent, -1.0), *((row, column, 1.0) for column in range(sequences.start, sequences.stop))]
        rows, columns, data = zip(*entries, strict=True)
        return csr_matrix((data, (rows, columns)), shape=(len(self.sets) + 1, self.n))

    def strategy(self, weights: Floats, rounding: float = 0.0) -> Floats:
        """Weights of sequences as probabilities of moves: their shares within each set; 1 for the empty one.

        Uniform where all of a set are 0, and where they are no more than a solver's rounding, which says nothing about shares.
        """
        found = np.ones(self.n)
        for _, here in self.sets:
            own = weights[here].clip(min=0.0)
            total = own.sum()
            found[here] = own / total if total > rounding else 1.0 / len(own)
        return found

    def plan(self, strategy: Floats) -> Floats:
        """The product of probabilities along each sequence."""
        found = strategy.copy()
        for parent, here in self.sets:
            found[here] *= found[parent]
        return found

    def values(self, gains: Floats, choose: Callable[[Floats, Floats], float], strategy: Floats) -> tuple[Floats, list[float]]:
        """What each sequence is worth with all that follows, and each set, given what each sequence gains when the game ends after it."""
        worth, at = gains.copy(), [0.0] * len(self.sets)
        for i in range(len(self.sets) - 1, -1, -1):
            parent, here = self.sets[i]
            at[i] = choose(worth[here], strategy[here])
            worth[parent] += at[i]
        return worth, at

    def best(self, gains: Floats) -> float:
        """What the best reply gets."""
        return float(self.values(gains, lambda own, _: float(own.max()), gains)[0][0])

    def named(self, strategy: Floats) -> Strategy:
        return {
            knows: dict(zip(info.moves, strategy[one.sequences].tolist(), strict=True))
            for (knows, info), one in zip(self.information.items(), self.sets, strict=True)
        }


def _zeros(rows: int, columns: int) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix((rows, columns))


def _plans(tree: Tree) -> tuple[_Side, _Side, Any]:
    """Both sides, and blue's payoffs times the probability of chance by what both last did, ``[blue's sequences, red's]``, sparse."""
    from scipy.sparse import csr_matrix  # half a second to import: not before it is needed

    blue, red = _Side(tree.information["blue"]), _Side(tree.information["red"])
    ends = [
        (blue.number[visit.blue], red.number[visit.red], visit.chance * visit.node.payoff)
        for visit in walk(tree.root)
        if isinstance(visit.node, End)
    ]
    rows, columns, data = zip(*ends, strict=True)
    return blue, red, csr_matrix((data, (rows, columns)), shape=(blue.n, red.n))


def _solution(blue: _Side, red: _Side, payoffs: Any, x: Floats, y: Floats, method: str) -> TreeSolution:
    """Two strategies with what they come to; the gap is from both sides' best replies."""
    to_blue, to_red = payoffs @ red.plan(y), -(payoffs.T @ blue.plan(x))
    return TreeSolution(
        value=float(blue.plan(x) @ to_blue),
        gap=blue.best(to_blue) + red.best(to_red),
        blue=blue.named(x),
        red=red.named(y),
        method=method,
    )
