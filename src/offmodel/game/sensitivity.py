"""What the price of a bad answer does to a game: where other moves are played, and where it becomes trivial."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from offmodel.errors import GameError
from offmodel.game.matrix import Matrix, checked, equilibrium, solve, tradeoff


class Moves(NamedTuple):
    """Which moves a game comes to.

    Attributes:
        blue: Moves that some optimal mixture of blue plays.
        red: The same of red.
        commitments: Blue's pure commitments with the best worst case.
        dominant_blue: Moves of blue that are best whatever red does; where there is one, the game is trivial for blue.
        dominant_red: The same of red.
    """

    blue: tuple[str, ...]
    red: tuple[str, ...]
    commitments: tuple[str, ...]
    dominant_blue: tuple[str, ...]
    dominant_red: tuple[str, ...]


class Piece(NamedTuple):
    """A stretch of lambda over which the same moves are played.

    Attributes:
        low: Where it begins.
        high: Where it ends.
        moves: Which.
        values: The game's value at both ends.
    """

    low: float
    high: float
    moves: Moves
    values: tuple[float, float]


def by_lambda(
    retention: Matrix, bad_rate: Matrix, low: float, high: float, *, points: int = 33, precision: float = 1e-3
) -> tuple[Piece, ...]:
    """The pieces into which a range of lambda falls, payoff being retention - lambda * bad rate.

    The game is solved at evenly spaced points, and between two that differ the change is sought by halving. So a piece narrower than the
    spacing may be missed, and one narrower than the precision is left out.

    Args:
        retention: Share of capability kept, by blue's and red's moves.
        bad_rate: Share of bad answers under the trigger, of the same moves.
        low: Least lambda.
        high: Largest lambda.
        points: How many evenly spaced points, the ends among them.
        precision: How exactly a change is located, as a share of the range.

    Raises:
        GameError: The range is none, or has fewer than two points.
    """
    if not checked(low) < checked(high) or points < 2:
        raise GameError(f"no range of lambda: {low} to {high} at {points} points; the low end must be below the high one, with two points")
    pieces: dict[float, Moves] = {}

    def at(lam: float) -> Moves:
        if lam not in pieces:
            one = solve(tradeoff(retention, bad_rate, lam))
            pieces[lam] = Moves(one.blue.support, one.red.support, one.best_commitments, one.blue.dominant, one.red.dominant)
        return pieces[lam]

    grid = np.linspace(low, high, points).tolist()
    ahead = list(pairwise(grid))
    while ahead:
        left, right = ahead.pop()
        if at(left) != at(right) and right - left > precision * (high - low):
            middle = (left + right) / 2
            ahead += [(left, middle), (middle, right)]
    lams = sorted(pieces)
    # What differs from both neighbours is a tie at one point, such as at a lambda of 0.
    kept = [lam for i, lam in enumerate(lams) if at(lam) in [at(near) for near in lams[max(i - 1, 0) : i] + lams[i + 1 : i + 2]]]
    groups = [(moves, list(those)) for moves, those in groupby(kept or lams, key=at)]
    ends = [low, *((one[-1] + other[0]) / 2 for (_, one), (_, other) in pairwise(groups)), high]
    values = [equilibrium(tradeoff(retention, bad_rate, lam).payoffs)[0] for lam in ends]
    return tuple(Piece(*between, moves, worth) for (moves, _), between, worth in zip(groups, pairwise(ends), pairwise(values), strict=True))
