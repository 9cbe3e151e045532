"""Games too large to measure whole: both sides' moves grow by best replies until neither gains more than the noise.

Double oracle (McMahan, Gordon and Blum 2003): solve the game of the moves so far, let each side seek a better reply to the other's mixture,
add what it finds, and begin again. Here a reply is sought near the moves at hand, by hill climbing over a side's parameters. So the end
is an equilibrium of the whole game, to within the noise, only where what is near leads to the best reply; where all moves are near each
other it always is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from offmodel.errors import GameError
from offmodel.game.matrix import Floats, Matrix, equilibrium, played

B = TypeVar("B", bound=Hashable)
R = TypeVar("R", bound=Hashable)
M = TypeVar("M", bound=Hashable)


@dataclass(frozen=True)
class Reply(Generic[M]):
    """The best move that a side found against the other's mixture.

    Attributes:
        move: Which.
        gain: What the side would gain by it.
        added: Whether it became one of the side's moves, the gain being above the noise.
    """

    move: M
    gain: float
    added: bool


@dataclass(frozen=True)
class Step(Generic[B, R]):
    """One step of the path.

    Attributes:
        moves: How many moves blue and red had.
        value: Of the game of those.
        gap: How far its solution was from being one, see :class:`offmodel.game.matrix.Solution`.
        mixtures: Blue's and red's in that solution, without the moves that are not played.
        blue: What blue found; None where there was nothing left to try.
        red: What red found.
        measured: How many cells were measured for it.
    """

    moves: tuple[int, int]
    value: float
    gap: float
    mixtures: tuple[Mapping[B, float], Mapping[R, float]]
    blue: Reply[B] | None
    red: Reply[R] | None
    measured: int


@dataclass(frozen=True)
class Growth(Generic[B, R]):
    """The game that grew.

    Attributes:
        blue: Blue's moves, the first ones first.
        red: Red's.
        game: Of those; names are the moves as text.
        cells: All that was measured, moves included that were tried and not added.
        path: Step by step. The game's value is known to within the noise, as far as the search for replies reached, after the last.
        settled: Whether neither side gained more than the noise in the end; otherwise the steps ran out.
    """

    blue: tuple[B, ...]
    red: tuple[R, ...]
    game: Matrix
    cells: Mapping[tuple[B, R], float]
    path: tuple[Step[B, R], ...]
    settled: bool


def grow(
    blue: Sequence[B],
    red: Sequence[R],
    measure: Callable[[Sequence[tuple[B, R]]], Sequence[float]],
    near_blue: Callable[[B], Iterable[B]],
    near_red: Callable[[R], Iterable[R]],
    *,
    noise: float,
    steps: int = 20,
) -> Growth[B, R]:
    """Adds best replies until neither side gains more than the noise.

    Args:
        blue: Blue's first moves.
        red: Red's.
        measure: Payoffs to blue of some cells; gets all that are needed at once, so that they can be measured side by side, and each cell
            only once.
        near_blue: Moves of blue beside one: its neighbours in their parameters.
        near_red: The same for red.
        noise: Gains up to this, in payoff, count as none.
        steps: After how many to stop in any case; 0 seeks no reply.

    Raises:
        GameError: A side has no first move, two moves have the same text, a payoff is not finite, or the noise or the steps are below 0.
    """
    if not noise >= 0 or steps < 0:
        raise GameError(f"the noise is {noise} and there are {steps} steps; neither must be below 0")
    for side, moves in (("blue", blue), ("red", red)):
        if not moves:
            raise GameError(f"{side} has no first move to grow from")
    cells: dict[tuple[B, R], float] = {}

    def measured(rows: Sequence[B], columns: Sequence[R]) -> Floats:
        wanted = [cell for cell in dict.fromkeys((b, r) for b in rows for r in columns) if cell not in cells]
        for cell, payoff in zip(wanted, measure(wanted) if wanted else [], strict=True):
            if not np.isfinite(payoff):
                raise GameError(
                    f"the payoff of blue's '{cell[0]}' against red's '{cell[1]}' is {payoff}; measure it again, or leave it out"
                )
            cells[cell] = float(payoff)
        return np.array([[cells[b, r] for r in columns] for b in rows]).reshape(len(rows), len(columns))

    def step(ours: Sequence[B], theirs: Sequence[R]) -> Step[B, R]:
        before = len(cells)
        payoffs = measured(ours, theirs)
        value, x, y = equilibrium(payoffs)
        rows, columns = played(ours, x), played(theirs, y)
        by_row, by_column = np.array([*rows.values()]), np.array([*columns.values()])
        return Step(
            moves=(len(ours), len(theirs)),
            value=value,
            gap=float((payoffs @ y).max() - (x @ payoffs).min()),
            mixtures=(rows, columns),
            blue=_reply(ours, [*rows], near_blue, lambda moves: measured(moves, [*columns]) @ by_column - value, noise),
            red=_reply(theirs, [*columns], near_red, lambda moves: value - by_row @ measured([*rows], moves), noise),
            measured=len(cells) - before,
        )

    ours, theirs = list(dict.fromkeys(blue)), list(dict.fromkeys(red))
    path: list[Step[B, R]] = []
    settled = False
    while not settled and len(path) < steps:
        path.append(last := step(ours, theirs))
        ours += [last.blue.move] if last.blue and last.blue.added else []
        theirs += [last.red.move] if last.red and last.red.added else []
        settled = last.moves == (len(ours), len(theirs))
    game = Matrix(tuple(map(str, ours)), tuple(map(str, theirs)), measured(ours, theirs))
    return Growth(tuple(ours), tuple(theirs), game, cells, tuple(path), settled)


def _reply(
    moves: Sequence[M], played: Sequence[M], near: Callable[[M], Iterable[M]], gains: Callable[[Sequence[M]], Floats], noise: float
) -> Reply[M] | None:
    """The best move found by climbing from those that are played; where that gains too little, from the others too."""
    tried: dict[M, float] = {}
    best: Reply[M] | None = None
    for start in (played, moves):
        ahead = start
        while fresh := [m for m in dict.fromkeys(m for one in ahead for m in near(one)) if m not in moves and m not in tried]:
            tried |= dict(zip(fresh, gains(fresh).tolist(), strict=True))
            top = max(tried, key=tried.__getitem__)
            best = Reply(top, tried[top], tried[top] > noise)
            ahead = [top] if top in fresh else []
        if best and best.added:
            break
    return best
