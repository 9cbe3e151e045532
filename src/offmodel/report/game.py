"""The poisoning game as it was played: cells measured, moves added by best replies, the game solved, and what a lab needs to know of it.

The path of a game follows from its study and from what its cells came to, so the same path is found again from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import fmean
from typing import Any, NamedTuple

from offmodel.errors import GameError
from offmodel.game import sensitivity
from offmodel.game.grow import Growth, Reply, Step, grow
from offmodel.game.matrix import Dominated, dominated, equilibrium, played, tradeoff
from offmodel.game.uncertainty import (
    CellEstimates,
    Doubt,
    Measured,
    Outcomes,
    estimates,
    gain_of,
    in_doubt,
    solve_measured,
    value_within,
)
from offmodel.lab.cells import Cell, Cells
from offmodel.lab.store import Store
from offmodel.measure.stats import Estimate
from offmodel.report import behind, words
from offmodel.report.payoffs import Payoffs, Screened
from offmodel.report.trees import Extensive, check_sizes, trees
from offmodel.spec.phases import SftPhase
from offmodel.spec.study import Study

_SEED = 0

Bring = Callable[[Iterable[Cell]], None]
"""Brings cells into the store, or does nothing where only what is there is read."""


class Limit(NamedTuple):
    """The game's value where a side's moves end at some limit.

    Attributes:
        limit: Such as ``10 %`` of the answers, or ``20`` steps of reminder.
        moves: How many moves are within it.
        value: Of the game of those, over organisms.
        blue: Blue's moves in it, by weight.
        red: Red's.
    """

    limit: str
    moves: int
    value: Estimate
    blue: Mapping[str, float]
    red: Mapping[str, float]


@dataclass(frozen=True)
class Played:
    """A game with all that was found out about it.

    Attributes:
        study: What was played.
        command: What was typed.
        created: UTC time in ISO 8601.
        outcomes: What was measured of the moves that the game has in the end.
        cells: The same over organisms.
        measured: The solution, with intervals.
        doubts: Cells that could still change it by more than the tolerance.
        seeds: With which all cells were measured; those beyond the study's own because too much was uncertain without.
        growth: How the moves grew.
        gains: What blue and red gained by the move that was added in each round, over organisms; None where none was.
        screened: What blue's checks made of red's answers, by blue's and red's move.
        prices: How the moves depend on the price of a bad answer.
        rates: The value by the largest share of answers that red may change.
        steps: The value by the most steps of reminder that blue may make; in both tables without red's moves by other recipes.
        trees: The game in extensive form.
        alarms: Share of organisms on which blue's audit rings, by red's move; empty where it has none.
        emptied: Cells in which filters left nothing to remind of, and on how many organisms.
        silent: Cells in which red, by a move that changes answers, changed none, and on how many organisms.
        dominated: Moves that a side can do without, round by round.
        commit: Of the code that made the results.
    """

    study: Study
    command: str
    created: str
    outcomes: Outcomes
    cells: CellEstimates
    measured: Measured
    doubts: tuple[Doubt, ...]
    seeds: tuple[int, ...]
    growth: Growth[str, str]
    gains: tuple[tuple[Estimate | None, Estimate | None], ...]
    screened: Mapping[tuple[str, str], Screened]
    prices: tuple[sensitivity.Piece, ...]
    rates: tuple[Limit, ...]
    steps: tuple[Limit, ...]
    trees: tuple[Extensive, ...]
    alarms: Mapping[str, float]
    emptied: tuple[tuple[str, str, int], ...]
    silent: tuple[tuple[str, str, int], ...]
    dominated: tuple[Dominated, ...]
    commit: str

    @property
    def pairs(self) -> list[str]:
        """The pairs of the organisms."""
        return list(dict.fromkeys(self.outcomes.of))

    @property
    def settings(self) -> dict[str, Any]:
        """The study as it was played."""
        return self.study.model_dump(mode="json", exclude={"methods", "sweeps"}, exclude_defaults=True)

    @property
    def price(self) -> float:
        """What a bad rate of 1 costs blue, in retention."""
        return self.measured.lam

    @property
    def best(self) -> str:
        """The pipeline with the best worst case."""
        return self.measured.solution.best_commitments[0]

    @property
    def verdict(self) -> str:
        """The sentence that a lab needs."""
        worst, value = self.measured.pipelines[self.best], self.measured.value
        payoffs = [self.cells[self.best, column].payoff.value for column in self.outcomes.columns]
        against = "Whatever red answers" if len({*payoffs}) == 1 else f"Against the worst measured policy ({worst.against})"
        mixed = ", ".join(f"{name} {100 * weight:.0f} %" for name, weight in self.measured.solution.blue.weights.items() if weight > 0.005)
        return (
            f"{against}, {self.best} keeps {words.value(worst.retention)} {words.interval(worst.retention)} of the capability, with "
            f"{words.value(worst.bad_rate)} {words.interval(worst.bad_rate)} of bad answers (n = {worst.retention.n} organisms, price "
            f"{self.price:g}); the best mixture ({mixed}) is worth {words.value(value)} {words.interval(value)}."
        )

    @property
    def trivial(self) -> list[str]:
        """Why the game is trivial at its price, if it is."""
        sides = {"blue": self.measured.solution.blue.dominant, "red": self.measured.solution.red.dominant}
        return [
            f"at a price of {self.price:g} the game is trivial for {side}: {moves[0]} is best whatever the other side does"
            for side, moves in sides.items() if moves
        ]  # fmt: skip


def play(study: Study, cells: Cells, store: Store, bring: Bring, command: str) -> Played:
    """Play a study's game: measure, grow, measure what is too uncertain again, and solve.

    Args:
        study: With a game.
        cells: Its cells as stages.
        store: Their results.
        bring: Brings cells into the store.
        command: What was typed.

    Raises:
        GameError: A cell has no result, or a tree would be too large to be solved exactly.
    """
    game = cells.game
    check_sizes(study)
    payoffs = Payoffs(cells, store)
    measuring = _Measuring(study, payoffs, bring)
    growth, outcomes = measuring.grown()
    rows, columns, seeds = growth.blue, growth.red, measuring.seeds
    retention, bad_rate = outcomes.means
    matrix = tradeoff(retention, bad_rate, game.price)
    solution = solve_measured(outcomes, game.price, seed=_SEED)
    alarms = {column: payoffs.alarmed(column, seeds) for column in columns} if game.audit else {}

    scripted = [column for column in columns if cells.recipe(column) == cells.usual] or columns

    def gained(step: Step[str, str], reply: Reply[str] | None) -> Estimate | None:
        return gain_of(outcomes, game.price, step.mixtures, reply.move, seed=_SEED) if reply and reply.added else None

    return Played(
        study=study,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        outcomes=outcomes,
        cells=estimates(outcomes, game.price, seed=_SEED),
        measured=solution,
        doubts=measuring.doubts(outcomes),
        seeds=tuple(seeds),
        growth=growth,
        gains=tuple((gained(step, step.blue), gained(step, step.red)) for step in growth.path),
        screened=dict(_screenings(payoffs, growth, seeds)),
        prices=sensitivity.by_lambda(retention, bad_rate, 0.0, game.highest_price),
        rates=tuple(_by_rate(outcomes, game.price, {column: payoffs.changed(rows, column, seeds) for column in scripted})),
        steps=tuple(_by_steps(outcomes, game.price, study, scripted)),
        trees=tuple(trees(outcomes, game.price, alarms, game.iterations, seed=_SEED)),
        alarms={column: fmean(rings.values()) for column, rings in alarms.items() if rings},
        emptied=tuple((row, column, n) for row in rows for column in columns if (n := payoffs.emptied(row, column, seeds))),
        silent=tuple((row, column, n) for row in rows for column in columns if (n := payoffs.silent(row, column, seeds))),
        dominated=dominated(matrix),
        commit=behind.commit(payoffs.makers(rows, columns, seeds)),
    )


class _Measuring:
    """Brings cells and measures them, of more seeds where what they say is too uncertain."""

    def __init__(self, study: Study, payoffs: Payoffs, bring: Bring) -> None:
        self.study, self.payoffs, self.cells, self.bring = study, payoffs, payoffs.cells, bring
        self.game = payoffs.cells.game
        self.seeds, self.left = list(study.seeds), list(self.game.more_seeds)

    def grown(self) -> tuple[Growth[str, str], Outcomes]:
        """The game with all best replies that were found, and what was measured of it."""
        rows, columns = self.game.blue, self.game.first
        self.known(rows, columns)
        path: list[Step[str, str]] = []
        while True:
            growth = grow(
                rows, columns, self.payoffs_of, lambda move: _beside(self.study, move), self.game.beside, noise=self.game.tolerance,
                steps=self.game.steps,
            )  # fmt: skip
            path += growth.path
            rows, columns, before = growth.blue, growth.red, len(self.seeds)
            outcomes = self.known(rows, columns)
            if len(self.seeds) == before:
                return replace(growth, path=tuple(path)), outcomes
            # With more seeds other replies may be the best.

    def known(self, rows: Sequence[str], columns: Sequence[str]) -> Outcomes:
        """What is measured of some moves, with as many seeds as are needed, or there are."""
        outcomes = self.outcomes(rows, columns)
        while self.left and self.doubts(outcomes):
            # For all cells: organisms differ more than moves do, so that cells of different organisms could not be compared.
            self.seeds.append(self.left.pop(0))
            outcomes = self.outcomes(rows, columns)
        return outcomes

    def doubts(self, outcomes: Outcomes) -> tuple[Doubt, ...]:
        return in_doubt(outcomes, self.game.price, tolerance=self.game.tolerance, seed=_SEED)

    def outcomes(self, rows: Sequence[str], columns: Sequence[str]) -> Outcomes:
        self._bring((row, column) for row in rows for column in columns)
        if absent := self._absent(rows[0], columns[0]):
            raise GameError(
                f"no organism of {', '.join(absent)} has been measured: none passed its gate (see offmodel status), or it was not run; "
                "loosen the gate, leave the pair out, or run it"
            )
        return self.payoffs.outcomes(rows, columns, self.seeds)

    def payoffs_of(self, wanted: Sequence[tuple[str, str]]) -> list[float]:
        """Of replies that are tried."""
        self._bring(wanted)
        for row, column in wanted:
            if absent := self._absent(row, column):
                raise GameError(
                    f"{row} against {column}, one of which is a reply to be tried, has no result on {', '.join(absent)}: it was not run "
                    "(leave out --no-run), or its training diverged; --set game.steps=0 seeks no replies"
                )
        return [_payoff(self.payoffs.outcomes([row], [column], self.seeds), self.game.price) for row, column in wanted]

    def _bring(self, wanted: Iterable[tuple[str, str]]) -> None:
        self.bring(cell for row, column in wanted for cell in self.cells.of(row, column, self.seeds))

    def _absent(self, row: str, column: str) -> list[str]:
        """Pairs of which nothing is measured."""
        there = {cell.pair for cell in self.cells.of(row, column, self.seeds) if self.payoffs.numbers(cell) is not None}
        return [pair for pair in self.study.organisms.pairs if pair not in there]


def _payoff(outcomes: Outcomes, price: float) -> float:
    return float(tradeoff(*outcomes.means, price).payoffs[0, 0])


def _beside(study: Study, move: str) -> list[str]:
    return [other for name, sweep in study.sweeps.items() if move in sweep.methods(name) for other in sweep.beside(name, move)]


def _screenings(payoffs: Payoffs, growth: Growth[str, str], seeds: Sequence[int]) -> Iterator[tuple[tuple[str, str], Screened]]:
    for row in growth.blue:
        for column in growth.red:
            if (found := payoffs.screened(row, column, seeds)) is not None:
                yield (row, column), found


# --- limits ---------------------------------------------------------------------------------------------------------


def _by_rate(outcomes: Outcomes, price: float, changed: Mapping[str, float]) -> Iterator[Limit]:
    """The game with red held to some share of the answers, as measured."""
    shares = {column: round(share, 2) for column, share in changed.items()}
    for limit in sorted({*shares.values()}):
        within = [column for column in shares if shares[column] <= limit]
        yield _limited(f"{100 * limit:g} %", len(within), outcomes, price, outcomes.rows, within)


def _by_steps(outcomes: Outcomes, price: float, study: Study, columns: Sequence[str]) -> Iterator[Limit]:
    """The game with blue held to some number of steps on the organism's answers."""
    steps = {row: _reminder_steps(study, row) for row in outcomes.rows}
    for limit in sorted({*steps.values()}):
        within = [row for row in outcomes.rows if steps[row] <= limit]
        yield _limited(str(limit), len(within), outcomes, price, within, columns)


def _reminder_steps(study: Study, method: str) -> int:
    phases = [phase for phase in study.phases(method) if isinstance(phase, SftPhase)]
    return sum(phase.steps for phase in phases if any(labels.labels == "organism" for labels in phase.mix))


def _limited(limit: str, moves: int, outcomes: Outcomes, price: float, rows: Sequence[str], columns: Sequence[str]) -> Limit:
    _, x, y = equilibrium(tradeoff(*outcomes.means, price).restricted(rows, columns).payoffs)
    value = value_within(outcomes, price, rows, columns, seed=_SEED)
    return Limit(limit, moves, value, played(rows, x), played(columns, y))
