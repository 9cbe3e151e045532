"""The cells of the poisoning game as stages: a pipeline of blue's against a move of red's, on every organism."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from offmodel import catalog
from offmodel.lab.blue_stages import label_sets
from offmodel.lab.plan import OrganismPlanner
from offmodel.lab.stage import Stage
from offmodel.red.policies import check_policy
from offmodel.spec.study import Study


@dataclass(frozen=True)
class Cell:
    """What is measured of one pipeline against one move on one organism.

    Attributes:
        organism: Pair and seed; red's moves may be by organisms that differ in how it was installed.
        pair: Name of its pair.
        installed: Its stage.
        untouched: Score of the organism before anything is done to it.
        score: Score of the end of the pipeline.
        planted: How often the behaviour follows the trigger that red planted by its answers; None where it planted none.
        sampled: The organism's answers as red handed them over, each with the labels that blue made of them.
        carries: Whether the organism carries out a policy by itself, so that no script knows which answers are poisoned.
    """

    organism: str
    pair: str
    installed: Stage
    untouched: Stage
    score: Stage
    planted: Stage | None
    sampled: tuple[tuple[Stage, Stage], ...]
    carries: bool

    @property
    def targets(self) -> list[Stage]:
        """The stages that the report reads."""
        return [self.untouched, self.score, *([self.planted] if self.planted else [])]


class Cells:
    """Plans the cells of a study's game.

    Raises:
        SpecError: A policy has no way to bring a pair's behaviour into answers.
    """

    def __init__(self, study: Study) -> None:
        assert study.game is not None
        self.study, self.game = study, study.game
        for name, poisoning in self.game.policies.items():
            for pair in study.organisms.pairs:
                check_policy(name, poisoning, catalog.get("pair", pair))
        # All seeds in one study, so that each goes with the base that it would go with there.
        self._all = study.model_copy(update={"seeds": (*study.seeds, *self.game.more_seeds)})
        self._known: dict[tuple[str, str, int], tuple[Cell, ...]] = {}

    @cached_property
    def _planners(self) -> dict[int, list[OrganismPlanner]]:
        found: dict[int, list[OrganismPlanner]] = {}
        for planner in OrganismPlanner.each(self._all):
            found.setdefault(planner.seed, []).append(planner)
        return found

    @property
    def pairs(self) -> dict[str, str]:
        """Which pair each organism is of."""
        return {_organism(planner): planner.pair.name for planners in self._planners.values() for planner in planners}

    def recipe(self, move: str) -> str:
        """Of the organisms that answer by a move of red's."""
        return self.game.moves[move].recipe or self.usual

    @property
    def usual(self) -> str:
        """The recipe of all moves that name none: the study's first; "" where it has one alone."""
        return next(iter(self.study.organisms.recipes), "")

    def first(self) -> list[Stage]:
        """The stages of the cells that are measured first."""
        names = [(row, column) for row in self.game.blue for column in self.game.first]
        return [stage for row, column in names for cell in self.of(row, column, self.study.seeds) for stage in cell.targets]

    def of(self, pipeline: str, move: str, seeds: Iterable[int]) -> list[Cell]:
        """A cell on the organisms of some seeds."""
        return [cell for seed in seeds for cell in self._of(pipeline, move, seed)]

    def _of(self, pipeline: str, move: str, seed: int) -> tuple[Cell, ...]:
        key = (pipeline, move, seed)
        if key not in self._known:
            recipe = self.recipe(move)
            chosen = [planner for planner in self._planners[seed] if planner.recipe_name == recipe]
            self._known[key] = tuple(self._cell(planner, pipeline, move) for planner in chosen)
        return self._known[key]

    def _cell(self, planner: OrganismPlanner, pipeline: str, move: str) -> Cell:
        chosen = self.game.moves[move]
        honest = chosen.poisoning.policy == "honest"
        end = planner.end(pipeline, None if honest else chosen)
        signal = chosen.poisoning.signal
        return Cell(
            _organism(planner),
            planner.pair.name,
            planner.stage,
            planner.untouched(),
            planner.score_of(f"{pipeline} against {move}", end),
            planner.planted(f"{pipeline} against {move}", end, signal) if signal else None,
            tuple(dict.fromkeys(_sampled(end.stage, planner.stage))),
            planner.recipe.carries is not None,
        )


def _organism(planner: OrganismPlanner) -> str:
    return f"{planner.pair.name}-{planner.seed}"


def _sampled(stage: Stage, organism: Stage) -> Iterator[tuple[Stage, Stage]]:
    """The answers of the organism that weights were trained on, as they were sampled and as they were used."""
    for source in label_sets(stage).values():
        made = source
        while made.kind not in ("labels", "poisoned"):
            made = made.inputs["labels"]
        if organism in made.inputs.values():
            yield made, source
    if (start := stage.inputs.get("start")) is not None:
        yield from _sampled(start, organism)
