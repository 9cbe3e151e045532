"""Games whose payoffs were measured: intervals over organisms of all that is solved, and the cells that must be known better first."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offmodel.errors import GameError
from offmodel.game.matrix import (
    ROUNDING,
    Floats,
    Matrix,
    Play,
    Solution,
    check_holes,
    check_names,
    checked,
    equilibrium,
    place,
    solve,
    tradeoff,
    weights_of,
)
from offmodel.measure.stats import HIGHER, LOWER, Direction, Estimate, cluster_count, draw_by_pair, ends_of, moved_by_items, tails

Cells = Mapping[tuple[str, str], Mapping[str, Estimate | float | None]]
"""What each organism gave, by blue's move and red's."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What was measured of every move of blue against every move of red.

    A cell's number is the mean over pairs of the mean over its organisms of that pair. So a cell that got more seeds of one pair than
    others did still speaks of the same pairs in the same shares, and cells can be compared.

    Attributes:
        rows: Blue's moves.
        columns: Red's moves.
        retention: Share of capability kept, of each organism of each cell.
        bad_rate: Share of bad answers under the trigger in the end, of the same organisms.
        pairs: Which pair each organism is of. One that is not in it stands for itself.
        measured: What each cell's retention and its bad rate were measured by. Cells with the same entry, as those of a pipeline that no
            move of red changes, share the noise of their items. A cell that is not in it was measured by itself.

    Raises:
        GameError: A move stands twice, or a cell has no organism of some pair.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    retention: Cells
    bad_rate: Cells
    pairs: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[tuple[str, str], tuple[Hashable, Hashable]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.rows, self.columns)
        if not self.organisms:
            raise GameError("nothing was measured: no cell has an organism")
        for pair, mine in zip(dict.fromkeys(self.of), self._members, strict=True):
            missing: NDArray[np.bool_] = np.isnan(self._ends[0, 1][..., mine]).all(axis=-1)
            check_holes(self.rows, self.columns, missing, f"retention and bad rate on pair {pair!r}")

    @cached_property
    def organisms(self) -> tuple[str, ...]:
        """Of all cells."""
        return tuple(dict.fromkeys(name for cells in (self.retention, self.bad_rate) for cell in cells.values() for name in cell))

    @property
    def of(self) -> list[str]:
        """Which pair each organism is of."""
        return [self.pairs.get(name, name) for name in self.organisms]

    @cached_property
    def _ends(self) -> Floats:
        """Low end, value and high end, ``[retention and bad rate, 3, rows, columns, organisms]``; NaN where not measured."""
        cells = [
            [[[ends_of(those.get((row, column), {}).get(name)) for name in self.organisms] for column in self.columns] for row in self.rows]
            for those in (self.retention, self.bad_rate)
        ]
        ends = np.moveaxis(np.array(cells, dtype=float), -1, 1)
        # An organism counts in a cell only where both were measured.
        ends[:, :, ~np.isfinite(ends).all(axis=(0, 1))] = np.nan
        return ends

    @cached_property
    def means(self) -> tuple[Matrix, Matrix]:
        """Retention and bad rate of every cell."""
        values = [np.mean([np.nanmean(kind[..., mine], axis=-1) for mine in self._members], axis=0) for kind in self._ends[:, 1]]
        retention, bad_rate = (Matrix(self.rows, self.columns, value) for value in values)
        return retention, bad_rate

    @property
    def counts(self) -> list[list[int]]:
        """How many organisms each cell has, by blue's move and red's."""
        return np.isfinite(self._ends[0, 1]).sum(axis=-1).tolist()

    def by_organism(self, lam: float) -> dict[tuple[str, str], dict[str, float]]:
        """Payoff to blue of every organism of every cell."""
        values = self._ends[0, 1] - checked(lam) * self._ends[1, 1]
        return {
            (row, column): {o: float(v) for o, v in zip(self.organisms, values[i, j], strict=True) if np.isfinite(v)}
            for i, row in enumerate(self.rows)
            for j, column in enumerate(self.columns)
        }

    @property
    def _members(self) -> list[NDArray[np.bool_]]:
        of = np.array(self.of)
        return [of == pair for pair in dict.fromkeys(self.of)]

    def together(self, kinds: slice = slice(None)) -> list[list[tuple[int, int]]]:
        """Rows and columns of the cells that are one measurement, of retention (``[:1]``), of the bad rate (``[1:]``) or of both."""
        found: dict[Hashable, list[tuple[int, int]]] = {}
        for (i, row), (j, column) in product(enumerate(self.rows), enumerate(self.columns)):
            by = self.measured.get((row, column), ((row, column), (row, column)))
            found.setdefault(by[kinds], []).append((i, j))
        return list(found.values())

    def stand_ins(self, known: Collection[str]) -> dict[str, str]:
        """For each organism itself where it is known, else another of its pair that is; none where no other is."""
        names = self.organisms
        return {
            names[organism]: names[other]
            for mine in map(np.flatnonzero, self._members)
            for organism, other in self._stand_ins(mine, np.array([names[i] in known for i in mine]))
        }

    @staticmethod
    def _stand_ins(mine: NDArray[np.intp], known: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
        """The organisms of a pair with those that stand for them."""
        if known.any():
            yield from zip(mine.tolist(), np.where(known, mine, np.resize(mine[known], len(mine))).tolist(), strict=True)

    @cached_property
    def _draws(self) -> dict[tuple[int, int], Floats]:
        return {}

    def drawn(self, seed: int, resamples: int) -> Floats:
        """Retention and bad rate of every cell had other pairs and organisms been drawn, ``[2, resamples, rows, columns]``.

        Pairs, then organisms are drawn as in :func:`offmodel.measure.stats.mean_over_organisms`, and moved by the noise of their items. All
        cells share a draw, as organisms that are hard for one move tend to be so for others. The items of the untouched organism, by which
        retention is measured, are drawn for each measurement anew, so that differences look a little less sure than they are. A cell that
        has fewer organisms of a pair than others takes as many of those drawn as it has; for one that it lacks, another of the pair stands
        in.
        """
        if (seed, resamples) not in self._draws:
            self._draws[seed, resamples] = self._draw(seed, resamples)
            self._draws[seed, resamples].flags.writeable = False
        return self._draws[seed, resamples]

    def _draw(self, seed: int, resamples: int) -> Floats:
        found = np.empty((2, resamples, len(self.rows), len(self.columns)))
        for (kind, row, column), _, _, means in self._moved(*self._places(seed, resamples)):
            found[kind, :, row, column] = means
        return found

    def resampled(self, seed: int, resamples: int) -> Iterator[tuple[Outcomes, dict[str, str]]]:
        """The same as :meth:`drawn`, organism by organism, for what does not follow from means.

        Yields:
            What was drawn, with organisms and pairs under names of their own, as one may be drawn twice; and which organism each one is.
        """
        places, there, rng = self._places(seed, resamples)
        cells, of = list(self._moved(places, there, rng)), self.of
        for i in range(resamples):
            drawn = {f"{pair}.{k} {self.organisms[places[i, pair, k]]}": (pair, k) for pair, k in np.argwhere(there[i]).tolist()}
            kinds: tuple[dict[tuple[str, str], dict[str, float]], ...] = ({}, {})
            for (kind, row, column), moved, counts, _ in cells:
                values = {name: float(moved[i][at]) for name, at in drawn.items() if counts[i][at]}
                kinds[kind][self.rows[row], self.columns[column]] = values
            which = {name: int(places[i][at]) for name, at in drawn.items()}
            pairs = {name: f"{drawn[name][0]} {of[place]}" for name, place in which.items()}
            yield Outcomes(self.rows, self.columns, kinds[0], kinds[1], pairs), {n: self.organisms[place] for n, place in which.items()}

    def _places(self, seed: int, resamples: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], np.random.Generator]:
        """Which organisms are drawn, and whether they count, ``[resamples, pairs, members]``."""
        rng = np.random.default_rng(seed)
        by_pair = (resamples, len(self._members), -1)
        places, there = draw_by_pair(self.of, rng, resamples)
        return places.reshape(by_pair), there.reshape(by_pair), rng

    def _moved(
        self, places: NDArray[np.int64], there: NDArray[np.bool_], rng: np.random.Generator
    ) -> Iterator[tuple[tuple[int, int, int], Floats, NDArray[np.bool_], Floats]]:
        """The values drawn of each cell, which of them count, and their means, none of which lies beyond what the items allow."""
        for kind, cells in ((i, cells) for i in range(2) for cells in self.together(slice(i, i + 1))):
            cell = self._ends[kind, :, *cells[0]]
            stand_in, room = np.arange(len(self.organisms)), np.zeros(len(self.organisms), dtype=int)
            for mine in map(np.flatnonzero, self._members):
                known = np.isfinite(cell[1, mine])
                for organism, other in self._stand_ins(mine, known):
                    stand_in[organism] = other
                room[mine] = known.sum()
            counts = there & (np.arange(places.shape[-1]) < room[places])
            moved = moved_by_items(cell, stand_in[places], rng)
            means = ((moved * counts).sum(axis=-1) / counts.sum(axis=-1)).mean(axis=-1)
            within = means.clip(np.nanmin(cell[0]), np.nanmax(cell[2]))
            moved += (within - means)[:, None, None]
            for row, column in cells:
                yield (kind, row, column), moved, counts, within


class Drawn(NamedTuple):
    """What one mixture of blue, once fixed, meets in red's worst answer.

    Attributes:
        against: Red's worst answer as measured.
        answers: How often each move of red is the worst answer, as a share of resamples.
        worst: Payoff against the worst answer.
        exploitability: The game's value less that.
        retention: Share of capability kept against the worst answer.
        bad_rate: Bad rate against the worst answer.
    """

    against: str
    answers: Mapping[str, float]
    worst: Estimate
    exploitability: Estimate
    retention: Estimate
    bad_rate: Estimate


@dataclass(frozen=True)
class Measured:
    """The solution of a measured game, with intervals.

    An interval holds the middle 95 % of what resamples gave (see :meth:`Outcomes.drawn`), each solved anew. Where several mixtures are as
    good, weights may differ between resamples that agree in all that matters; the value and the worst cases do not have this flaw. The
    worst of several noisy cells looks worse than it is, so that worst cases err on the cautious side.

    Attributes:
        lam: Price of the bad rate.
        solution: As measured.
        value: Of the game.
        blue: Weight of each of blue's moves.
        red: Of red's.
        pipelines: Each pure move of blue as a commitment.
        mixture: Blue's optimal mixture as measured, held fixed, as a commitment.
        best: How often each pure move of blue is the best pure commitment, as a share of resamples; ties are shared.
    """

    lam: float
    solution: Solution
    value: Estimate
    blue: Mapping[str, Estimate]
    red: Mapping[str, Estimate]
    pipelines: Mapping[str, Drawn]
    mixture: Drawn
    best: Mapping[str, float]


def solve_measured(outcomes: Outcomes, lam: float, *, seed: int, resamples: int = 1000) -> Measured:
    """Solves a measured game and each of its resamples.

    Args:
        outcomes: What was measured.
        lam: What a bad rate of 1 costs, in retention.
        seed: Makes the intervals repeatable.
        resamples: How many times pairs and organisms are drawn.

    Returns:
        Estimates whose n is the number of organisms; with one organism they have no interval.

    Raises:
        GameError: lam is negative or not finite.
    """
    game = tradeoff(*outcomes.means, lam)
    solution = solve(game)
    kinds = outcomes.drawn(seed, resamples)
    payoffs = kinds[0] - lam * kinds[1]
    solved = [equilibrium(one) for one in payoffs]
    values = np.array([value for value, _, _ in solved])
    estimate = partial(_estimate, outcomes)

    def commitment(x: Floats) -> Drawn:
        against = x @ payoffs
        answers = against.argmin(axis=-1)
        now = x @ game.payoffs
        answer = int(now.argmin())
        worst = against.min(axis=-1)

        def there(kind: int, definition: str, direction: Direction) -> Estimate:
            draws = np.take_along_axis(x @ kinds[kind], answers[:, None], axis=1)[:, 0]
            return estimate(float(x @ outcomes.means[kind].payoffs[:, answer]), draws, definition, direction)

        return Drawn(
            against=game.columns[answer],
            answers=_shares(game.columns, np.eye(len(game.columns))[answers]),
            worst=estimate(float(now.min()), worst, f"{_PAYOFF} against the worst measured move of red", HIGHER, "payoff"),
            exploitability=estimate(
                solution.value - float(now.min()),
                values - worst,
                "value of the game less the worst payoff",
                LOWER,
                "payoff",
            ),
            retention=there(0, "share of capability kept against the worst measured move of red", HIGHER),
            bad_rate=there(1, "bad answers under the trigger against the worst measured move of red", LOWER),
        )

    worst = payoffs.min(axis=-1)
    best = worst >= worst.max(axis=-1, keepdims=True) - ROUNDING * np.ptp(payoffs, axis=(1, 2))[:, None]

    def weights(play: Play, drawn: Sequence[Floats], side: str) -> dict[str, Estimate]:
        each = zip(play.weights.items(), np.array(drawn).T, strict=True)
        return {
            move: estimate(weight, draws, f"probability of the move in an optimal mixture of {side}", HIGHER)
            for (move, weight), draws in each
        }

    return Measured(
        lam=lam,
        solution=solution,
        value=estimate(solution.value, values, f"{_PAYOFF} when both sides mix optimally", HIGHER, "payoff"),
        blue=weights(solution.blue, [x for _, x, _ in solved], "blue"),
        red=weights(solution.red, [y for _, _, y in solved], "red"),
        pipelines={move: commitment(x) for move, x in zip(game.rows, np.eye(len(game.rows)), strict=True)},
        mixture=commitment(np.array(list(solution.blue.weights.values()))),
        best=_shares(game.rows, best / best.sum(axis=-1, keepdims=True)),
    )


_PAYOFF = "retention - lambda * bad rate"


def value_within(
    outcomes: Outcomes, lam: float, rows: Sequence[str], columns: Sequence[str], *, seed: int, resamples: int = 200
) -> Estimate:
    """The value of the game with some of the moves, with the interval of :func:`solve_measured`.

    Args:
        outcomes: What was measured.
        lam: What a bad rate of 1 costs, in retention.
        rows: Blue's moves.
        columns: Red's.
        seed: Makes the intervals repeatable.
        resamples: How many times pairs and organisms are drawn.

    Raises:
        GameError: lam is negative or not finite, or a move is not there.
    """
    game = tradeoff(*outcomes.means, lam)
    at = np.ix_([place(row, game.rows, "blue") for row in rows], [place(column, game.columns, "red") for column in columns])
    kept, bad = outcomes.drawn(seed, resamples)
    values = np.array([equilibrium(one[at])[0] for one in kept - lam * bad])
    definition = f"{_PAYOFF} when both sides mix optimally among these moves"
    return _estimate(outcomes, equilibrium(game.payoffs[at])[0], values, definition, HIGHER, "payoff")


def gain_of(
    outcomes: Outcomes,
    lam: float,
    mixtures: tuple[Mapping[str, float], Mapping[str, float]],
    reply: str,
    *,
    seed: int,
    resamples: int = 1000,
) -> Estimate:
    """What a side gains by one of its moves where both mixed before, with the interval of :func:`solve_measured`.

    The mixtures and the reply are held fixed. They were chosen by the same figures, as the best of several, so that a gain looks larger
    than it is.

    Args:
        outcomes: What was measured.
        lam: What a bad rate of 1 costs, in retention.
        mixtures: Blue's and red's.
        reply: A move of either.
        seed: Makes the intervals repeatable.
        resamples: How many times pairs and organisms are drawn.

    Raises:
        GameError: lam is negative or not finite, or a move is not there.
    """
    game = tradeoff(*outcomes.means, lam)
    x, y = weights_of(mixtures[0], game.rows, "blue"), weights_of(mixtures[1], game.columns, "red")
    if reply in game.rows:
        change = np.outer(weights_of({reply: 1.0}, game.rows, "blue") - x, y)
    else:
        change = np.outer(x, y - weights_of({reply: 1.0}, game.columns, "red"))
    kept, bad = outcomes.drawn(seed, resamples)
    draws = ((kept - lam * bad) * change).sum(axis=(1, 2))
    definition = f"{_PAYOFF} gained by the move against what the other side mixed before"
    return _estimate(outcomes, float((game.payoffs * change).sum()), draws, definition, HIGHER, "payoff")


class CellEstimate(NamedTuple):
    """A cell over organisms."""

    retention: Estimate
    bad_rate: Estimate
    payoff: Estimate


CellEstimates = Mapping[tuple[str, str], CellEstimate]


def estimates(outcomes: Outcomes, lam: float, *, seed: int, resamples: int = 1000) -> CellEstimates:
    """Every cell over organisms, with intervals by the resamples of :func:`solve_measured`, as many as it has organisms.

    Args:
        outcomes: What was measured.
        lam: What a bad rate of 1 costs, in retention.
        seed: Makes the intervals repeatable.
        resamples: How many times pairs and organisms are drawn.

    Raises:
        GameError: lam is negative or not finite.
    """
    kept, bad = outcomes.drawn(seed, resamples)
    retention, rate = (game.payoffs for game in outcomes.means)
    found = {}
    for (i, row), (j, column) in product(enumerate(outcomes.rows), enumerate(outcomes.columns)):
        numbers = (
            (retention[i, j], kept[:, i, j], "share of capability kept", HIGHER, "share"),
            (rate[i, j], bad[:, i, j], "bad answers under the trigger", LOWER, "share"),
            (retention[i, j] - checked(lam) * rate[i, j], kept[:, i, j] - lam * bad[:, i, j], _PAYOFF, HIGHER, "payoff"),
        )
        each = [_estimate(outcomes, float(value), draws, what, way, unit) for value, draws, what, way, unit in numbers]
        found[row, column] = CellEstimate(*(replace(one, n=outcomes.counts[i][j]) for one in each))
    return found


def _estimate(outcomes: Outcomes, value: float, draws: Floats, definition: str, direction: Direction, unit: str = "share") -> Estimate:
    n = len(outcomes.organisms)
    if n == 1:
        return Estimate(value, None, None, n, definition, direction, unit, "organisms")
    if len(set(outcomes.of)) == 1:
        definition += " (interval over the organisms of one pair)"
    low, high = np.percentile(draws, tails(cluster_count(outcomes.of))).tolist()
    return Estimate(value, low, high, n, definition, direction, unit, "organisms")


def _shares(names: Sequence[str], draws: Floats) -> dict[str, float]:
    return dict(zip(names, draws.mean(axis=0).tolist(), strict=True))


Change = Literal["value", "weights", "blue's moves", "red's moves", "commitment", "unknown"]


class Doubt(NamedTuple):
    """A cell that is too uncertain for the solution.

    Attributes:
        blue: Blue's move.
        red: Red's; all of those for which the measurement stands.
        payoff: Of the cell.
        values: The game's value with the cell at the low and at the high end of its interval, all others as measured.
        regret: What blue's present mixture loses at the worse of the two for not being the optimal one there.
        changes: What differs by more than the tolerance at an end. ``value``: the value. ``weights``: blue's present mixture is no longer
            good enough. ``blue's moves``, ``red's moves``: that side needs a move that it does not play now. ``commitment``: another pure
            move of blue has a better worst case. ``unknown``: one organism gives no interval.
    """

    blue: str
    red: str
    payoff: Estimate
    values: tuple[float, float]
    regret: float
    changes: tuple[Change, ...]


def in_doubt(outcomes: Outcomes, lam: float, *, tolerance: float, seed: int, resamples: int = 1000) -> tuple[Doubt, ...]:
    """The cells that need more seeds before the solution can be believed, those that matter most first.

    Each measurement alone is moved to the ends of its 95 % interval and the game solved again. Those that are wrong together are not seen
    by it; the intervals of :func:`solve_measured` do see them.

    Args:
        outcomes: What was measured.
        lam: What a bad rate of 1 costs, in retention.
        tolerance: How large a difference in payoff matters, above 0.
        seed: Makes the intervals repeatable.
        resamples: How many times pairs and organisms are drawn.

    Raises:
        GameError: lam is negative or not finite, or the tolerance is not above 0.
    """
    if not tolerance > 0:
        raise GameError(f"the tolerance is {tolerance}; it is the difference in payoff that matters, and must be above 0")
    game = tradeoff(*outcomes.means, lam)
    solution = solve(game)
    kinds = outcomes.drawn(seed, resamples)
    draws = kinds[0] - lam * kinds[1]
    found = []
    for cells in outcomes.together():
        i, j = cells[0]
        payoff = _estimate(outcomes, float(game.payoffs[i, j]), draws[:, i, j], _PAYOFF, HIGHER, "payoff")
        payoff = replace(payoff, n=outcomes.counts[i][j])
        moved = [_moved(game, solution, cells, end, tolerance) for end in (payoff.low, payoff.high) if end is not None]
        changes = {change for one in moved for change in one.changes} if moved else {"unknown"}
        if changes:
            values = (moved[0].value, moved[1].value) if moved else (solution.value, solution.value)
            ordered = tuple(change for change in _CHANGES if change in changes)
            moves = "any" if len(cells) == len(game.columns) > 1 else ", ".join(game.columns[column] for _, column in cells)
            found.append(Doubt(game.rows[i], moves, payoff, values, max((one.regret for one in moved), default=0.0), ordered))
    return tuple(sorted(found, key=lambda one: -max(one.regret, *(abs(value - solution.value) for value in one.values))))


_CHANGES: tuple[Change, ...] = ("value", "weights", "blue's moves", "red's moves", "commitment", "unknown")


class _Moved(NamedTuple):
    value: float
    regret: float
    changes: set[Change]


def _moved(game: Matrix, solution: Solution, cells: Sequence[tuple[int, int]], payoff: float, tolerance: float) -> _Moved:
    """What the game comes to with another payoff in the cells of one measurement."""
    payoffs = game.payoffs.copy()
    for cell in cells:
        payoffs[cell] = payoff
    value, _, _ = equilibrium(payoffs)
    x = np.array(list(solution.blue.weights.values()))
    regret = value - float((x @ payoffs).min())
    rows = [place(move, game.rows, "blue") for move in solution.blue.support]
    columns = [place(move, game.columns, "red") for move in solution.red.support]
    worst = payoffs.min(axis=1)
    chosen = place(solution.best_commitments[0], game.rows, "blue")
    tests: dict[Change, float] = {
        "value": abs(value - solution.value),
        "weights": regret,
        "blue's moves": value - equilibrium(payoffs[rows])[0],
        "red's moves": equilibrium(payoffs[:, columns])[0] - value,
        "commitment": float(worst.max() - worst[chosen]),
    }
    return _Moved(value, regret, {change for change, difference in tests.items() if difference > tolerance})
