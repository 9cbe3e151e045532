"""The game in extensive form: chance draws the pair, which red knows, as it installed it; what blue knows makes the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import numpy as np

from offmodel.errors import GameError
from offmodel.game import tree_solvers
from offmodel.game.tree import Chance, Choice, End, Node, Size, Strategy, Tree, TreeSolution
from offmodel.game.uncertainty import Outcomes
from offmodel.measure.stats import HIGHER, Estimate, cluster_count, tails
from offmodel.spec.study import Study

Payoff = Callable[[str, str, str, str], float]
"""To blue, by pair, pipeline, move of red, and what blue's audit said ("" where it was not asked)."""
Rings = Callable[[str, str], Mapping[str, float]]
"""How likely each word of blue's audit is, by pair and move of red."""
Alarms = Mapping[str, Mapping[str, bool]]
"""Whether blue's audit rings, by move of red and organism."""


@dataclass(frozen=True)
class Extensive:
    """The game as a tree.

    Attributes:
        name: Which.
        meaning: Who knows what when it moves.
        tree: It.
        solution: Both sides' strategies.
        value: What it is worth, over organisms; without an interval where it is only approximated.
    """

    name: str
    meaning: str
    tree: Tree
    solution: TreeSolution
    value: Estimate

    @property
    def size(self) -> Size:
        """How large it is."""
        return self.tree.size


def trees(
    outcomes: Outcomes, price: float, alarms: Alarms, iterations: int | None = None, *, seed: int = 0, resamples: int = 200
) -> Iterator[Extensive]:
    """The trees of a measured game, solved; one too large for that by regret minimisation.

    Args:
        outcomes: What was measured.
        price: What a bad rate of 1 costs, in retention.
        alarms: Whether blue's audit rings, by move of red and organism; empty where it has none.
        iterations: Of regret minimisation.
        seed: Of the resamples.
        resamples: How many times pairs and organisms are drawn, and the trees solved anew, for the intervals.

    Raises:
        GameError: A tree is too large to be solved exactly, and no number of iterations is given.
    """
    found = [(name, meaning, Tree(root)) for name, meaning, root in _measured(outcomes, price, alarms)]
    exact = {name: iterations is None or tree_solvers.solvable(tree) for name, _, tree in found}
    drawn: dict[str, list[float]] = {name: [] for name in exact}
    if len(outcomes.organisms) > 1 and any(exact.values()):
        heard = {
            column: {organism: rings[other] for organism, other in outcomes.stand_ins(rings).items()} for column, rings in alarms.items()
        }
        for one, origin in outcomes.resampled(seed, resamples):
            rung = {column: {new: rings[old] for new, old in origin.items() if old in rings} for column, rings in heard.items()}
            for name, _, root in _measured(one, price, rung):
                if exact[name]:
                    drawn[name].append(tree_solvers.solve(Tree(root)).value)
    for name, meaning, tree in found:
        solution = tree_solvers.solve(tree) if exact[name] else tree_solvers.cfr(tree, iterations or 1)
        low, high = np.percentile(drawn[name], tails(cluster_count(outcomes.of))).tolist() if drawn[name] else (None, None)
        definition = f"payoff to blue when both sides play optimally: {meaning}"
        value = Estimate(solution.value, low, high, len(outcomes.organisms), definition, HIGHER, "payoff", "organisms")
        yield Extensive(name, meaning, tree, solution, value)


def _measured(outcomes: Outcomes, price: float, alarms: Alarms) -> Iterator[tuple[str, str, Node]]:
    payoffs = outcomes.by_organism(price)
    of = dict(zip(outcomes.organisms, outcomes.of, strict=True))

    @cache  # of each pair and move for every pipeline
    def heard(pair: str, column: str) -> dict[str, list[str]]:
        """The pair's organisms that make the move, by what the audit says of them."""
        found: dict[str, list[str]] = {}
        for organism, rings in alarms[column].items():
            if of[organism] == pair and any(organism in payoffs[row, column] for row in outcomes.rows):
                found.setdefault("alarm" if rings else "quiet", []).append(organism)
        return found

    def payoff(pair: str, row: str, column: str, said: str) -> float:
        values = {organism: value for organism, value in payoffs[row, column].items() if of[organism] == pair}
        those = [values[organism] for organism in heard(pair, column)[said] if organism in values] if said else []
        return fmean(those or values.values())  # where this cell lacks all that were heard, the pair's others stand for them

    def rings(pair: str, column: str) -> Mapping[str, float]:
        those = heard(pair, column)
        return {said: len(organisms) / sum(map(len, those.values())) for said, organisms in those.items()}

    yield from _roots(list(dict.fromkeys(outcomes.of)), outcomes.rows, outcomes.columns, payoff, rings if alarms else None)


def largest(study: Study) -> dict[str, Tree]:
    """The trees of a study's game as large as they could become: with all moves that could be found and an audit that says both words."""
    game = study.game
    assert game is not None
    rows = {*game.blue}
    for name, sweep in study.sweeps.items():
        if rows & {*sweep.methods(name)}:
            rows |= {*sweep.methods(name)}
    found = _roots(
        study.organisms.pairs,
        sorted(rows),
        [*game.moves],
        lambda *_: 0.0,
        (lambda *_: {"alarm": 0.5, "quiet": 0.5}) if game.audit else None,
    )
    return {name: Tree(root) for name, _, root in found}


def check_sizes(study: Study) -> None:
    """Check that all trees of a game can be solved, before anything is measured for it.

    Raises:
        GameError: One could become too large, and the study gives no number of iterations.
    """
    assert study.game is not None
    if study.game.iterations is None:
        for name, tree in largest(study).items():
            if not tree_solvers.solvable(tree):
                raise GameError(
                    f"game.iterations: with all its moves the tree {name!r} would have {tree.size}, and those with more than "
                    f"{tree_solvers.LIMIT:,} sequences are not solved exactly; give a number of iterations (such as 10000) to approximate "
                    "it by regret minimisation, or leave moves out"
                )


def _roots(
    pairs: Sequence[str], rows: Sequence[str], columns: Sequence[str], payoff: Payoff, rings: Rings | None
) -> Iterator[tuple[str, str, Node]]:
    def drawn(below: Callable[[str], Node]) -> Node:
        return Chance({pair: (1 / len(pairs), below(pair)) for pair in pairs})

    def blue(pair: str, column: str, said: str = "") -> Node:
        return Choice("blue", said or "nothing", {row: End(payoff(pair, row, column, said)) for row in rows})

    yield (
        "blue sees nothing",
        "Red answers by a policy that may depend on the pair; blue knows neither when it chooses its pipeline.",
        drawn(lambda pair: Choice("red", pair, {column: blue(pair, column) for column in columns})),
    )
    if rings is not None:

        def looked(pair: str, column: str) -> Node:
            return Chance({said: (share, blue(pair, column, said)) for said, share in rings(pair, column).items()})

        yield (
            "blue looks first",
            "The same, and before it chooses blue sees whether its audit rings on the answers that it was given.",
            drawn(lambda pair: Choice("red", pair, {column: looked(pair, column) for column in columns})),
        )

    def answered(row: str) -> Node:
        return drawn(lambda pair: Choice("red", f"{row}, {pair}", {c: End(payoff(pair, row, c, "")) for c in columns}))

    yield (
        "red sees the pipeline",
        "Blue commits to one pipeline, red sees it and then answers by the worst policy for the pair.",
        Choice("blue", "nothing", {row: answered(row) for row in rows}),
    )


@dataclass(frozen=True)
class Shown:
    """A node of a tree as it is shown: what leads to it, how likely that is, what it is worth, and what comes below.

    Attributes:
        name: The draw or move that leads to it.
        who: Who draws or moves next; "" at an end.
        probability: Of the move that leads to it, where both play as solved.
        value: Blue's expected payoff from here on.
        below: What comes next; moves that are not played are left out where others are.
    """

    name: str
    who: str
    probability: float
    value: float
    below: tuple[Shown, ...] = ()


def shown(extensive: Extensive) -> Shown:
    """The tree with its values, without the moves that nobody plays."""
    return _shown("the game", 1.0, extensive.tree.root, extensive.solution.blue, extensive.solution.red)


def _shown(name: str, probability: float, node: Node, blue: Strategy, red: Strategy) -> Shown:
    match node:
        case End(payoff):
            return Shown(name, "", probability, payoff)
        case Chance(branches):
            below = [_shown(each, share, child, blue, red) for each, (share, child) in branches.items()]
            return Shown(name, "chance", probability, _worth(below), tuple(below))
        case Choice(side, knows, moves):
            weights = (blue if side == "blue" else red)[knows]
            below = [_shown(each, weights[each], child, blue, red) for each, child in moves.items()]
            played = tuple(one for one in below if one.probability > 1e-3)
            return Shown(name, f"{side}, who knows {knows}", probability, _worth(below), played)


def _worth(below: Iterable[Shown]) -> float:
    return sum(one.probability * one.value for one in below)
