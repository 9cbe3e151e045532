"""Zero-sum games over named moves: blue picks a row and gets the payoff, red picks a column and pays it.

Red's payoff is always minus blue's. That makes red the worst case, which is what a lab needs to know; a red team with other wishes does
less harm than that. So simultaneous play and blue's commitment have one value, and one linear programme gives both sides' mixtures.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from offmodel.errors import GameError, did_you_mean
from offmodel.game.lp import maximise, normalised

Side = Literal["blue", "red"]
Floats = NDArray[np.float64]
M = TypeVar("M", bound=Hashable)

ROUNDING = 1e-8
"""Payoffs closer than this share of the largest difference between any two are taken for equal."""
PLAYED = 1e-6
"""A move with less weight than this is not played."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Payoffs to blue of every move of blue (rows) against every move of red (columns).

    Attributes:
        rows: Names of blue's moves.
        columns: Names of red's moves.
        payoffs: To blue, ``[rows, columns]``.

    Raises:
        GameError: There is no move, a name stands twice, the shape does not fit, or a payoff is missing (NaN) or infinite.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    payoffs: Floats

    def __post_init__(self) -> None:
        payoffs = np.array(self.payoffs, dtype=float)
        check_names(self.rows, self.columns)
        if payoffs.shape != (shape := (len(self.rows), len(self.columns))):
            raise GameError(f"payoffs have the shape {payoffs.shape}; {shape[0]} moves of blue and {shape[1]} of red need {shape}")
        check_holes(self.rows, self.columns, ~np.isfinite(payoffs), "payoff")
        payoffs.flags.writeable = False
        object.__setattr__(self, "payoffs", payoffs)

    @property
    def swapped(self) -> Matrix:
        """The same game from red's side: red's moves are the rows, and payoffs are red's."""
        return Matrix(self.columns, self.rows, -self.payoffs.T)

    def restricted(self, rows: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> Matrix:
        """The game of those moves alone, as for red's moves up to some rate of poison; all of a side where None.

        Raises:
            GameError: A move is not one of the game.
        """
        rows, columns = self.rows if rows is None else tuple(rows), self.columns if columns is None else tuple(columns)
        places = np.ix_([place(name, self.rows, "blue") for name in rows], [place(name, self.columns, "red") for name in columns])
        return Matrix(rows, columns, self.payoffs[places])


def check_names(rows: Sequence[str], columns: Sequence[str]) -> None:
    """Each side has moves, and no name stands twice.

    Raises:
        GameError: It is not so.
    """
    for side, names in (("blue", rows), ("red", columns)):
        if not names:
            raise GameError(f"{side} has no move; a game needs at least one of each side")
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise GameError(f"{side}'s move {twice[0]!r} stands twice")


def check_holes(rows: Sequence[str], columns: Sequence[str], missing: NDArray[np.bool_], what: str) -> None:
    """Nothing is missing.

    Raises:
        GameError: Something is; it names the first cell and says how many more there are.
    """
    if len(holes := np.argwhere(missing)):
        more = f", nor for {len(holes) - 1} more of {missing.size} cells" if len(holes) > 1 else ""
        raise GameError(
            f"no {what} for blue's {rows[holes[0, 0]]!r} against red's {columns[holes[0, 1]]!r}{more}; "
            "measure what is missing, or leave one of the two moves out"
        )


def place(name: str, names: Sequence[str], side: Side) -> int:
    """Where a move stands.

    Raises:
        GameError: There is no such move.
    """
    if name not in names:
        raise GameError(f"{side} has no move {name!r}; {did_you_mean(name, names)}")
    return names.index(name)


def played(moves: Sequence[M], weights: Iterable[float]) -> dict[M, float]:
    """The moves of a mixture that are played, with their weights."""
    return {move: float(weight) for move, weight in zip(moves, weights, strict=True) if weight > PLAYED}


def weights_of(mixture: Mapping[str, float], names: Sequence[str], side: Side) -> Floats:
    """A mixture as weights of all moves; those left out have none.

    Raises:
        GameError: There is no such move.
    """
    weights = np.zeros(len(names))
    for move, weight in mixture.items():
        weights[place(move, names, side)] = weight
    return weights


@dataclass(frozen=True)
class Play:
    """How one side plays.

    Attributes:
        weights: Probability of each move in an optimal mixture, in the game's order.
        ranges: Least and largest probability of each move over all optimal mixtures; they differ where several are as good.
        dominant: Moves that are best whatever the other side does. With one of these the game is trivial for this side.
    """

    weights: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    dominant: tuple[str, ...]

    @property
    def support(self) -> tuple[str, ...]:
        """Moves that some optimal mixture plays."""
        return tuple(move for move, (_, most) in self.ranges.items() if most > PLAYED)


@dataclass(frozen=True)
class Commitment:
    """A mixture that blue has fixed and red has seen; of pure moves, one has all the weight.

    Attributes:
        weights: Probability of each of blue's moves; those that are not played are left out.
        worst: Blue's payoff against the worst answer.
        answers: Red's best answers; more than one where they are as bad.
        exploitability: What red gains over the game's value by knowing it: value - worst, never below 0 but for rounding.
    """

    weights: Mapping[str, float]
    worst: float
    answers: tuple[str, ...]
    exploitability: float


@dataclass(frozen=True)
class Solution:
    """What a matrix game comes to.

    Attributes:
        value: What blue's mixture gets at least, whatever red does. It is also the best worst case of any mixed commitment: by von
            Neumann's theorem (1928) blue loses nothing when red sees the mixture (not the move drawn) before it answers.
        gap: What blue could gain by leaving the solution plus what red could. It is computed from the payoffs, not by the solver, and is
            the proof: 0, but for rounding, only where both mixtures are optimal.
        blue: Blue's mixture.
        red: Red's mixture.
        commitments: Blue's pure commitments, by move.
        best_commitments: Those with the best worst case; their exploitability is what blue loses by not mixing.
    """

    value: float
    gap: float
    blue: Play
    red: Play
    commitments: Mapping[str, Commitment]
    best_commitments: tuple[str, ...]


def solve(game: Matrix) -> Solution:
    """Both sides' optimal mixtures by a linear programme, and every pure commitment of blue."""
    value, x, y = equilibrium(game.payoffs)
    worst = game.payoffs.min(axis=1)
    best = worst >= worst.max() - ROUNDING * _scaled(game.payoffs)[1]
    return Solution(
        value=value,
        gap=float((game.payoffs @ y).max() - (x @ game.payoffs).min()),
        blue=_play(game, x, value),
        red=_play(game.swapped, y, -float((game.payoffs @ y).max())),
        commitments={move: commit(game, {move: 1.0}, value) for move in game.rows},
        best_commitments=tuple(move for move, is_best in zip(game.rows, best, strict=True) if is_best),
    )


def equilibrium(payoffs: Floats) -> tuple[float, Floats, Floats]:
    """Value, blue's mixture and red's: maximise v so that every column gives at least v; red's mixture are the prices of the columns."""
    x, _, prices = _max_least(_scaled(payoffs)[0])
    return float((x @ payoffs).min()), x, normalised(prices)


def commit(game: Matrix, weights: Mapping[str, float], value: float | None = None) -> Commitment:
    """What blue gets when red has seen its mixture.

    Args:
        game: The game.
        weights: Probability of each move of blue; those left out have none.
        value: The game's, where it is known.

    Raises:
        GameError: A move is not blue's, or the weights are no probabilities.
    """
    x = weights_of(weights, game.rows, "blue")
    if not (x >= 0).all() or abs(x.sum() - 1) > PLAYED:
        raise GameError(f"blue's mixture {dict(weights)} is none: weights must not be below 0, and must sum to 1")
    against = x @ game.payoffs
    worst = float(against.min())
    return Commitment(
        weights={move: float(weight) for move, weight in zip(game.rows, x, strict=True) if weight > 0},
        worst=worst,
        answers=tuple(np.array(game.columns)[against <= worst + ROUNDING * _scaled(game.payoffs)[1]].tolist()),
        exploitability=(equilibrium(game.payoffs)[0] if value is None else value) - worst,
    )


def tradeoff(retention: Matrix, bad_rate: Matrix, lam: float) -> Matrix:
    """The game whose payoff is retention - lam * bad rate.

    Args:
        retention: Share of capability kept.
        bad_rate: Share of bad answers under the trigger, of the same moves.
        lam: What a bad rate of 1 costs, in retention.

    Raises:
        GameError: The moves differ, or lam is negative or not finite.
    """
    if (retention.rows, retention.columns) != (bad_rate.rows, bad_rate.columns):
        raise GameError("retention and bad rate are not of the same moves in the same order")
    return Matrix(retention.rows, retention.columns, retention.payoffs - checked(lam) * bad_rate.payoffs)


def checked(lam: float) -> float:
    """A price of the bad rate that makes sense.

    Raises:
        GameError: It is negative or not finite.
    """
    if not 0 <= lam < np.inf:
        raise GameError(f"lambda is {lam}; it is what a bad rate of 1 costs in retention, from 0 (nothing) up, and finite")
    return lam


@dataclass(frozen=True)
class Dominated:
    """A move that another move, or a mixture of others, replaces.

    Attributes:
        side: Whose move.
        move: Its name.
        by: The weights of what dominates it; a single move where one does.
        least: By how much that is better, for this side, where it is least so; above 0 is strict domination.
        most: The same where it is most so.
        round: 1 in the game as it stands; n after the moves of the rounds before are gone.
    """

    side: Side
    move: str
    by: Mapping[str, float]
    least: float
    most: float
    round: int

    @property
    def strictly(self) -> bool:
        """Whether it is worse whatever the other side does; otherwise it is never better and somewhere worse."""
        return self.least > 0


def dominated(game: Matrix, *, weakly: bool = False) -> tuple[Dominated, ...]:
    """Moves that a side can do without, round by round until none is left.

    What is strictly dominated has no weight in any equilibrium, and the order of removal does not matter. Without what is weakly dominated
    the value is the same, but optimal mixtures may be lost, and what remains depends on the order (here: both sides' at once, round by
    round).

    Args:
        game: The game.
        weakly: Remove weakly dominated moves, too.
    """
    found: list[Dominated] = []
    _, span = _scaled(game.payoffs)
    for number in range(1, len(game.rows) + len(game.columns)):
        sides: tuple[tuple[Side, Matrix], ...] = (("blue", game), ("red", game.swapped))
        fresh = [
            Dominated(side, move, *by, number)
            for side, seen in sides
            for i, move in enumerate(seen.rows)
            if (by := _domination(seen, i, span, weakly))
        ]
        if not fresh:
            break
        found += fresh
        gone = {(one.side, one.move) for one in fresh}
        game = game.restricted(
            [move for move in game.rows if ("blue", move) not in gone], [move for move in game.columns if ("red", move) not in gone]
        )
    return tuple(found)


def _domination(game: Matrix, i: int, span: float, weakly: bool) -> tuple[dict[str, float], float, float] | None:
    """What dominates row i, and by how much at least and at most: strictly if possible, and by a single row if possible."""
    slack = ROUNDING * span
    names = game.rows[:i] + game.rows[i + 1 :]
    if not names:
        return None
    better = np.delete(game.payoffs, i, axis=0) - game.payoffs[i]
    best, least, _ = _max_least(better / span)
    for strictly in (True, False) if weakly else (True,):
        candidates = [*np.eye(len(names)), best]
        if not strictly and least >= -ROUNDING:
            candidates.append(_max_sum(better / span))
        for x in candidates:
            advantage = x @ better
            advantage[np.abs(advantage) <= 2 * slack] = 0.0
            if advantage.min() >= 0 and (advantage.min() if strictly else advantage.max()) > 0:
                return played(names, x), float(advantage.min()), float(advantage.max())
    return None


def _max_least(payoffs: Floats) -> tuple[Floats, float, Floats]:
    """The mixture of rows whose smallest entry is largest, that entry, and what each column holds it back."""
    m, n = payoffs.shape
    point, prices = maximise(
        [0.0] * m + [1.0], (np.hstack([-payoffs.T, np.ones((n, 1))]), np.zeros(n)), (np.array([[1.0] * m + [0.0]]), [1.0]), free=1
    )
    return normalised(point[:m]), float(point[m]), prices


def _max_sum(better: Floats) -> Floats:
    """The mixture of rows whose sum is largest, of those with no entry below 0 but for rounding."""
    m, n = better.shape
    point, _ = maximise(better.sum(axis=1), (-better.T, np.full(n, ROUNDING)), (np.ones((1, m)), [1.0]))
    return normalised(point)


def _scaled(payoffs: Floats) -> tuple[Floats, float]:
    """Payoffs moved and stretched to 0 to 1, as solvers like them, and by how much; equilibria stay the same."""
    low, span = payoffs.min(), float(np.ptp(payoffs)) or 1.0
    return (payoffs - low) / span, span


def _play(game: Matrix, x: Floats, value: float) -> Play:
    """The row side's mixture, with the range of each weight over all mixtures that get the value."""
    scaled, span = _scaled(game.payoffs)
    m, n = scaled.shape
    target = (value - game.payoffs.min()) / span
    ranges = {}
    for i, move in enumerate(game.rows):
        ends = []
        for sign in (-1.0, 1.0):
            objective = np.zeros(m)
            objective[i] = sign
            # A tenth of the rounding as slack: the value itself is rounded.
            point, _ = maximise(objective, (-scaled.T, np.full(n, -target + ROUNDING / 10)), (np.ones((1, m)), [1.0]))
            ends.append(float(point[i].clip(0, 1)))
        ranges[move] = (ends[0], ends[1])
    return Play(
        weights=dict(zip(game.rows, x.tolist(), strict=True)),
        ranges=ranges,
        dominant=tuple(move for move, row in zip(game.rows, scaled, strict=True) if (row >= scaled.max(axis=0) - ROUNDING).all()),
    )
