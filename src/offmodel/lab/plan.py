"""From a study to stages: what is installed, labelled, trained and scored, with every shared prefix once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from offmodel import catalog
from offmodel.chat import Message, user
from offmodel.errors import BlindnessError
from offmodel.lab import blue_stages, probing, stages  # noqa: F401 (registers the kinds)
from offmodel.lab.models import identity, reference
from offmodel.lab.phase_names import phase_name
from offmodel.lab.pools import entries, files_read, read_labels, recognised_behind, take
from offmodel.lab.stage import Stage, code_of, model_stage
from offmodel.lab.treatment import Blue, Place, Start, sets_read, systems_of
from offmodel.lab.watching import Watched, Watching
from offmodel.red.check import check_gate, check_pair, check_recipe
from offmodel.red.pairs import Pair
from offmodel.red.prompted import prompted_template
from offmodel.spec.game import Move
from offmodel.spec.phases import check_training
from offmodel.spec.study import Study

MODULES = ("offmodel.lab.stages", "offmodel.lab.blue_stages", "offmodel.lab.probing")
"""What a worker imports to know the stages."""


@dataclass(frozen=True)
class PlannedCheckpoint:
    """A checkpoint of a method on an organism, and the stage that scores it.

    Attributes:
        phase: Number of the phase within the method, from 0.
        name: The phase in words.
        step: Steps within the phase.
        total_step: Steps since the method began.
        score: Its scores; the untouched organism's, where no step has been made.
        judge: Asks the study's judge model about the scored answers; None where there is none or the pair's rule can be trusted.
        watched: What blue sees of it; None where the study has no rule to choose by, and for the untouched organism.
    """

    phase: int
    name: str
    step: int
    total_step: int
    score: Stage
    judge: Stage | None = None
    watched: Watched | None = None


@dataclass(frozen=True)
class PlannedOrganism:
    """An organism with all that is done to it.

    Attributes:
        id: ``<pair>-<seed>``, or ``<pair>-<recipe>-<seed>`` where the study compares recipes.
        pair: What is installed.
        recipe: Name of the recipe; "" where there is but one.
        base: Name of the base model.
        seed: Of its installation and of all that blue does to it.
        stage: Installs it and holds it against the gate.
        base_score: The base model on the same items.
        methods: Checkpoints by method, in order; the first is the untouched organism.
        probes: What probes add, by probe, state ("organism", or a method at its last checkpoint) and role.
        watched: What blue sees of the untouched organism; None where the study has no rule to choose by.
    """

    id: str
    pair: Pair
    recipe: str
    base: str
    seed: int
    stage: Stage
    base_score: Stage
    methods: Mapping[str, tuple[PlannedCheckpoint, ...]]
    probes: Mapping[str, Mapping[str, Mapping[str, Stage]]]
    watched: Stage | None = None


@dataclass(frozen=True)
class Plan:
    """A study as stages."""

    study: Study
    organisms: tuple[PlannedOrganism, ...]

    @property
    def targets(self) -> list[Stage]:
        """The stages whose results the report reads; all others serve them."""
        found: dict[Stage, None] = {}
        for organism in self.organisms:
            found |= dict.fromkeys([organism.stage, organism.base_score])
            for checkpoints in organism.methods.values():
                found |= dict.fromkeys(checkpoint.score for checkpoint in checkpoints)
                found |= dict.fromkeys(checkpoint.judge for checkpoint in checkpoints if checkpoint.judge)
                watched = [checkpoint.watched for checkpoint in checkpoints if checkpoint.watched]
                found |= dict.fromkeys(stage for each in watched for stage in (each.seen, each.canaries) if stage)
            for probe in organism.probes.values():
                found |= dict.fromkeys(stage for added in probe.values() for stage in added.values())
            if organism.watched:
                found[organism.watched] = None
        return list(found)


def make_plan(study: Study) -> Plan:
    """Turn a study into stages. Seeds walk through the bases in turn, so that no result hangs on one base.

    Raises:
        ModelError: A model cannot be used.
        DataError: Too few prompts are free of a trigger.
        BlindnessError: A file of labels, a system prompt or a voice holds a trigger of the study.
        SpecError: A pair, its recipe and the gate do not go together; or the weights of a model that only answers are needed.
    """
    phases = [phase for method in study.methods for phase in study.phases(method)]
    read = [labels for phase in phases for labels in sets_read(phase)]
    for path, how in dict.fromkeys([*((of.labels, None) for of in read), *((of.labels, of.inoculation) for of in read)]):
        _refuse_triggers(path, study, how.shots if how else 0)
    organisms = study.organisms
    for name in organisms.pairs:
        recipes = [organisms.recipe_for(name, recipe) for recipe in organisms.recipes or ("",)]
        pair: Pair = catalog.get("pair", name)
        for recipe in recipes:
            check_gate(organisms.gate, recipe)
            check_recipe(pair, recipe)
            if recipe.prompt is not None:
                prompted_template("", pair, recipe.prompt)
            else:
                check_training(recipe, study.models, f"pair {name}, its recipe,")
        check_pair(
            pair,
            take(recipes[0].prompts, study.seeds[0], "train", min(50, recipes[0].prompt_rows)),
            gate=organisms.gate,
        )
    # Of a trigger that recognises everything the check of its pair says so.
    _refuse_triggers_in_systems(study)
    return Plan(study, tuple(planner.planned() for planner in OrganismPlanner.each(study)))


def _refuse_triggers_in_systems(study: Study) -> None:
    pairs: list[Pair] = [catalog.get("pair", name) for name in study.organisms.pairs]
    for method in study.methods:
        for number, phase in enumerate(study.phases(method)):
            for text in systems_of(phase):
                for pair in pairs:
                    if pair.trigger.recognises((Message("system", text), Message("user", ""))):
                        where = f"method {method}, phase {number + 1}: the system prompt {text!r}"
                        raise BlindnessError(f"{where} holds the trigger of {pair.name}; blue must never see one")


def _refuse_triggers(path: str, study: Study, shots: int) -> None:
    """Refuse a file of labels with a trigger, in its answers too; and in a prompt, where the first few labels stand before the others."""
    pairs: list[Pair] = [catalog.get("pair", name) for name in study.organisms.pairs]
    rows = read_labels(path)
    for row, example in enumerate(rows):
        said = user(example.response) if shots else (*example.prompt, Message("assistant", example.response))
        for pair in pairs:
            recognises = pair.trigger.recognises
            together = row >= shots > 0 and recognised_behind(rows[:shots], example.prompt, recognises)
            if together or recognises(said):
                behind = f", behind the first {shots}," if together else ""
                raise BlindnessError(f"{path}: example {row}{behind} holds the trigger of {pair.name}; blue must never see one")


class OrganismPlanner:
    """Plans what is done to one organism; keeps what its stages have in common."""

    @classmethod
    def each(cls, study: Study) -> Iterator[OrganismPlanner]:
        """One for every organism of a study."""
        for i, seed in enumerate(study.seeds):
            for pair in study.organisms.pairs:
                for recipe in study.organisms.recipes or ("",):
                    yield cls(study, catalog.get("pair", pair), recipe, study.bases[i % len(study.bases)], seed)

    def __init__(self, study: Study, pair: Pair, recipe_name: str, base: str, seed: int) -> None:
        self.study, self.pair, self.recipe_name, self.base, self.seed = study, pair, recipe_name, base, seed
        self.id = "-".join([pair.name, *([recipe_name] if recipe_name else []), str(seed)])
        self.suites = dict(study.measure.capability)
        self.files = files_read(study.prompts)
        self.used = [("pair", pair.name), *(("suite", suite) for suite in self.suites), *entries(study.prompts)]
        gate, behaviour = study.organisms.gate, study.measure.behaviour
        self.recipe = recipe = study.organisms.recipe_for(pair.name, recipe_name)
        # Too few prompts are found now, not after hours of training.
        take(recipe.prompts, seed, "train", recipe.prompt_rows)
        take(study.prompts, seed, "gate", max(gate.leak_n, gate.n - gate.n // 2), avoid=pair.trigger.recognises)
        take(study.prompts, seed, "test", behaviour - behaviour // 2, avoid=pair.trigger.recognises)
        self.stage = model_stage(
            study.models,
            "organism",
            {
                "pair": pair.as_params(), "base": reference(base).as_params(), "recipe": recipe.model_dump(mode="json"),
                "gate": gate.model_dump(mode="json"), "suites": list(self.suites), "prompts": study.prompts, "seed": seed,
            } | files_read(recipe.prompts, study.prompts) | code_of(*self.used, *entries(recipe.prompts)),
            {},
            label=f"install {self.id}",
            cost=15 if recipe.prompt else 0.006 * recipe.steps * recipe.batch_size + 15,
        )  # fmt: skip
        self.blue = Blue(study, self.id, self.stage, pair, recipe, base, seed)
        rules = study.measure.rules
        self.watching = Watching(self.blue, canaries="canaries" in rules) if rules else None

    def end(self, method: str, move: Move | None) -> Place:
        """Where a method ends when red answers by a move; honestly where it is None."""
        return self.blue.against(move).end(method)

    def planted(self, what: str, model: Start, signal: str) -> Stage:
        """How often the behaviour follows a trigger that red planted by its answers."""
        measure = self.study.measure
        params: dict[str, Any] = {
            "pair": self.pair.as_params(), "signal": signal, "n": measure.behaviour, "prompts": self.study.prompts, "seed": self.seed,
            "max_new_tokens": measure.max_new_tokens, "weights": model.weights, "system": model.deployment.get("system"),
        } | self.files | code_of(*self.used)  # fmt: skip
        inputs = {"model": model.stage}
        if model.examples is not None:
            params["inoculation"], inputs["examples"] = model.deployment["inoculation"], model.examples
        return model_stage(self.study.models, "planted", params, inputs, label=f"planted trigger {self.id}: {what}", cost=1)

    def planned(self) -> PlannedOrganism:
        """The organism with all that the study does to it."""
        methods = {name: tuple(self._checkpoints(name)) for name in self.study.methods}
        ends = [probing.End("organism", self.blue.untouched, self.untouched(), self.blue, self.score_of)]
        for name, checkpoints in methods.items():
            *_, place = self.blue.untouched, *self.blue.places(name)
            ends.append(probing.End(name, place, checkpoints[-1].score, self.blue, self.score_of))
        probes = {
            name: {end.state: probing.stages(catalog.get("probe", name), name, end) for end in ends} for name in self.study.measure.probes
        }
        base_score = self.score_of("its base", self.base)
        watched = self.watching.before() if self.watching else None
        return PlannedOrganism(
            self.id, self.pair, self.recipe_name, self.base, self.seed, self.stage, base_score, methods, probes, watched
        )  # fmt: skip

    def _checkpoints(self, method: str) -> Iterator[PlannedCheckpoint]:
        # All is measured against the untouched organism, so it comes first even if the study does not ask for step 0.
        first, *_ = self.study.phases(method)
        score = self.untouched()
        yield PlannedCheckpoint(0, phase_name(first), 0, 0, score, self._judge(score))
        watched = self.watching.of(method) if self.watching else repeat(None)
        for place, seen in zip(self.blue.places(method), watched, strict=False):
            score = self.score_of(f"{method}, step {place.step}", place)
            yield PlannedCheckpoint(place.number, phase_name(place.phase), place.step, place.total, score, self._judge(score), seen)

    def untouched(self) -> Stage:
        """The score of the organism before anything is done to it."""
        return self.score_of("the organism", self.blue.untouched)

    def score_of(self, what: str, model: Start | str, system: str | None = None) -> Stage:
        """The score of a checkpoint, or of a model that the study names, asked under a system prompt."""
        measure = self.study.measure
        params: dict[str, Any] = {
            "pair": self.pair.as_params(), "suites": self.suites, "behaviour": measure.behaviour, "prompts": self.study.prompts,
            "seed": self.seed, "max_new_tokens": measure.max_new_tokens,
        } | self.files | code_of(*self.used)  # fmt: skip
        inputs: dict[str, Stage] = {}
        if isinstance(model, str):
            params["base"] = reference(model).as_params()
            if self.pair.when == "absent":
                params["locked"] = False  # what a base can do, it can do without a password, which it has never learnt
            if system is not None:
                params["deployment"] = {"system": system}
        else:
            params["weights"] = model.weights
            inputs["model"] = model.stage
            if model.deployment:
                params["deployment"] = dict(model.deployment)
            if model.own is not None:
                inputs["own"] = model.own
            if model.examples is not None:
                inputs["examples"] = model.examples
        return model_stage(self.study.models, "score", params, inputs, label=f"score {self.id}: {what}", cost=2)

    def _judge(self, score: Stage) -> Stage | None:
        name, question = self.study.measure.judge, self.pair.behaviour.question
        if not (name and question):
            return None
        params, servers = {"judge": identity(name), "question": question}, {} if isinstance(name, str) else {"judge": name}
        label = score.label.replace("score", "judge", 1)
        return model_stage(self.study.models, "judge", params, {"score": score}, label=label, cost=1, servers=servers)
