"""What blue does to one organism, phase by phase, as stages: labels, trainings and operations, with every shared prefix once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from offmodel import catalog
from offmodel.blue.filters import Filter
from offmodel.blue.labels import counts
from offmodel.blue.operations import Operation
from offmodel.engine.objective import layers_within
from offmodel.errors import SpecError
from offmodel.lab.blue_stages import labels_role
from offmodel.lab.canaries import CANARIES
from offmodel.lab.models import depth, identity, reference, vocabulary
from offmodel.lab.phase_names import labels_name, phase_name
from offmodel.lab.pools import files_read, pool_params
from offmodel.lab.results import MODEL, step_folder
from offmodel.lab.stage import Stage, code_of, model_stage
from offmodel.red.pairs import Pair
from offmodel.spec.endpoint import Endpoint, with_weights
from offmodel.spec.game import Move
from offmodel.spec.phases import (
    DeployPhase,
    DistilPhase,
    GrpoPhase,
    Inoculation,
    LabelSet,
    Phase,
    Screening,
    SftPhase,
    Source,
    TrainedPhase,
    Training,
    Tuning,
    WeightsPhase,
    check_training,
    needs_whole,
)
from offmodel.spec.study import Recipe, Study
from offmodel.splits import Split

_CANARY_PROMPTS = 50
"""Prompts on which each canary is tried."""
_OPENINGS = 200
"""Answers of the organism that its most frequent opening is taken from."""


Shown: TypeAlias = list[tuple[Inoculation, Stage | None]]
"""What stood before the rows of a training, see :func:`_shown`."""


@dataclass(frozen=True)
class Start:
    """Weights, and how the model is asked.

    Attributes:
        stage: Holds the weights.
        weights: Their folder in its result.
        deployment: What the score stage is told about how the model is asked; nothing where it is asked as it is.
        own: The organism's own answers, where its opening words are needed.
        examples: Labels whose first few stand before every prompt.
    """

    stage: Stage
    weights: str
    deployment: Mapping[str, Any] = field(default_factory=dict)
    own: Stage | None = None
    examples: Stage | None = None


@dataclass(frozen=True)
class Place(Start):
    """A checkpoint of a method.

    Attributes:
        number: Number of the phase, from 0.
        phase: The phase.
        step: Steps within it; of an operation the number of the strength, from 1.
        total: Steps of training since the method began.
    """

    number: int = 0
    phase: Phase = field(kw_only=True)
    step: int = 0
    total: int = 0


class Blue:
    """Plans what blue does to one organism.

    The pair is here only to keep its trigger out of blue's prompts, and for red's move.

    Attributes:
        move: How red answers when blue samples the organism for labels; honestly where it is None.
    """

    def __init__(self, study: Study, name: str, organism: Stage, pair: Pair, recipe: Recipe, base: str, seed: int) -> None:
        self.study, self.name, self.organism, self.pair, self.recipe, self.base, self.seed = study, name, organism, pair, recipe, base, seed
        self.move: Move | None = None
        self._pools: dict[tuple[Any, ...], Stage] = {}  # a study asks for the same prompts thousands of times, and finding them is slow
        self.untouched = Start(organism, MODEL)
        self.stage = partial(model_stage, study.models)

    def with_canaries(self) -> Blue:
        """The same plans for a copy of the organism in which blue has planted backdoors of its own.

        The copy answers honestly: it is blue's.

        Raises:
            SpecError: Blue goes on with the organism's adapter, and so could not treat the copy alike.
        """
        if self.recipe.adapter == "continued":
            raise SpecError(
                f"organism {self.name}: canaries are planted in all weights of a copy, and blue would train the organism's adapter alone "
                "(adapter: continued); leave the rule 'canaries' out, or merge the adapter"
            )
        other = self._with(organism=self._planted(), recipe=self.recipe.model_copy(update={"lora": None, "adapter": "merged"}), move=None)
        other.name, other.untouched = f"a copy of {self.name}", Start(other.organism, MODEL)
        return other

    def against(self, move: Move | None) -> Blue:
        """The same plans where red answers by a move."""
        return self._with(move=move)

    def _with(self, **changes: Any) -> Blue:
        other = copy(self)
        vars(other).update(changes)
        return other

    def _planted(self) -> Stage:
        measure, recipe = self.study.measure, self.study.measure.canary_recipe
        check_training(recipe, self.study.models, f"a copy of {self.name} with canaries (measure.canary_recipe)")
        params = {
            "recipe": recipe.model_dump(mode="json"), "canaries": [canary.as_params() for canary in CANARIES], "seed": self.seed,
            "system": None, "max_new_tokens": measure.max_new_tokens,
        }  # fmt: skip
        inputs = {"organism": self.organism, "prompts": self.pool("prompts", recipe.prompt_rows), "tried": self.tried()}
        return self.stage("canary", params, inputs, label=f"plant canaries in a copy of {self.name}", cost=0.06 * recipe.steps)

    def tried(self) -> Stage:
        """The prompts on which canaries are tried."""
        return self.pool("prompts", _CANARY_PROMPTS, split="gate")

    def places(self, method: str) -> Iterator[Place]:
        """The checkpoints of a method that are measured, without the untouched organism."""
        return (place for place in self._places(method) if self._measured(place))

    def _measured(self, place: Place) -> bool:
        if isinstance(place.phase, WeightsPhase | DeployPhase):
            return True
        return place.step in self.study.measure.steps_within(place.phase.steps)

    def end(self, method: str) -> Place:
        """Where a method ends, measured or not."""
        *_, last = self._places(method)
        return last

    def _before(self, method: str, number: int) -> Start:
        """Where a phase begins."""
        *_, last = [self.untouched, *self._places(method, number)]
        return last

    def _places(self, method: str, phases: int | None = None) -> Iterator[Place]:
        start, total, merged = self.untouched, 0, False
        shown: Shown = []
        for number, phase in enumerate(self.study.phases(method)[:phases]):
            where = f"organism {self.name}, method {method}, phase {number + 1} ({phase_name(phase)})"
            place = None
            if isinstance(phase, DeployPhase):
                place = self._deployed(phase, start, shown, number, total, where)
                yield place
            elif isinstance(phase, WeightsPhase):
                treated, merged = self._operated(phase, start, where), True
                for step in range(1, len(phase.strength) + 1):
                    place = Place(treated, step_folder(step), number=number, phase=phase, step=step, total=total)
                    yield place
            else:
                if merged and self.recipe.adapter == "continued":
                    raise SpecError(f"{where}: the operation before it has merged the adapter that is to be trained on; train first")
                check_training(phase, self.study.models, where)
                wanted = {*self.study.measure.steps_within(phase.steps)} - {0}
                treated = self._trained(phase, start, method, number, sorted(wanted | {phase.steps}), where)
                for step in sorted(wanted | {phase.steps}):
                    place = Place(treated, step_folder(step), number=number, phase=phase, step=step, total=total + step)
                    yield place
                total += phase.steps
                if isinstance(phase, SftPhase):
                    shown = _shown(phase, treated) or shown
            assert place is not None
            start = Start(place.stage, place.weights)

    # --- phases -----------------------------------------------------------------------------------------------------

    def _trained(self, phase: TrainedPhase, start: Start, method: str, number: int, steps: list[int], where: str) -> Stage:
        params: dict[str, Any] = {
            "phase": phase.model_dump(mode="json"), "start": start.weights, "checkpoints": steps, "seed": self.seed,
        }  # fmt: skip
        inputs = {"start": start.stage}
        if self.recipe.adapter == "continued":
            if phase.lora not in (None, self.recipe.lora):
                raise SpecError(
                    f"{where}: blue goes on with the organism's adapter (adapter: continued), so a phase cannot have another one "
                    f"({phase.lora}); leave the phase's lora out, or merge the organism's"
                )
            if isinstance(phase, SftPhase) and phase.shards > 1:
                raise SpecError(
                    f"{where}: the median of models is no adapter, and blue goes on with the organism's (adapter: continued); leave "
                    "shards out, or merge the organism's"
                )
            if isinstance(phase, SftPhase) and phase.anchor is not None and (phase.anchor.l2_sp or phase.anchor.ewc):
                raise SpecError(
                    f"{where}: l2_sp and ewc are about the weights, and blue goes on with the organism's adapter (adapter: continued); "
                    "leave them out, or merge the organism's"
                )
            params["adapter"] = {"base": reference(self.base).as_params(), "lora": self.recipe.model_dump(mode="json")["lora"]}
        if isinstance(phase, Tuning):
            self._with_layers(phase.layers, where)
        begins = self._begins(method)
        for role, (labels, rows) in _asked(phase).items():
            pool = self.pool(labels.source, rows, begins[number, role])
            inputs[role] = pool if role == "prompts" else self.labels(labels, pool, method)
            for screening in labels.filters:
                inputs[role] = self._screened(screening, inputs[role], pool, start, phase.lr, method, number)
            # After the filters, as the first few that are left are the examples.
            if labels.inoculation and not self._by_red(labels):
                inputs[role] = self._quiet(inputs[role], labels.inoculation.shots)
        if isinstance(phase, SftPhase):
            params |= files_read(*files_of(phase))
            if phase.anchor is not None:
                inputs["organism"] = self.organism
        elif isinstance(phase, DistilPhase):
            if self.recipe.prompt is not None and phase.teacher != "organism":
                raise SpecError(
                    f"{where}: a prompted organism has its prompt in the chat template, where the {phase.teacher} would read it, too; "
                    "learn from its answers (phase: sft)"
                )
            self._same_tokens(phase.teacher, where)
            self._trainable(phase.teacher, "teacher", params, inputs, where)
            params["system"] = catalog.get("voice", phase.voice) if phase.voice else None
        models = self.study.models.in_one_process() if needs_whole(phase) else self.study.models
        return model_stage(models, "treat", params, inputs, label=f"train {self.name}: {phase_name(phase)}", cost=_cost(phase))

    def _operated(self, phase: WeightsPhase, start: Start, where: str) -> Stage:
        operation: Operation = catalog.get("operation", phase.operation)
        if operation.needs_other != (phase.of is not None):
            need = "needs the end of another method: name it in 'of'" if operation.needs_other else "needs no other method: leave out 'of'"
            raise SpecError(f"{where}: {phase.operation} {need}")
        for strength in phase.strength:
            if not operation.lowest <= strength <= operation.highest:
                raise SpecError(f"{where}: strength must lie between {operation.lowest} and {operation.highest}, got {strength}")
        params: dict[str, Any] = {"operation": phase.operation, "strength": list(phase.strength), "start": start.weights}
        params |= code_of(("operation", phase.operation))
        inputs = {"organism": self.organism, "start": start.stage}
        if phase.of is not None:
            other = self.end(phase.of)
            if other.stage == self.organism:
                raise SpecError(
                    f"{where}: {phase.of} leaves the organism's weights as they are, so it adds nothing; name a method that trains"
                )
            params["other"], inputs["other"] = other.weights, other.stage
        return Stage("operate", params, inputs, label=f"{phase_name(phase)}: {self.name}", cost=0.5 * len(phase.strength))

    def _deployed(self, phase: DeployPhase, start: Start, shown: Shown, number: int, total: int, where: str) -> Place:
        system = catalog.get("voice", phase.voice) if phase.voice else phase.system
        deployment = {key: value for key, value in (("system", system), ("first_words", phase.first_words)) if value is not None}
        own = self.labels(LabelSet(labels="organism"), self.pool("prompts", _OPENINGS), "") if phase.first_words else None
        examples = None
        if phase.inoculated:
            if len(shown) != 1:
                raise SpecError(
                    f"{where}: one set of labels with an inoculation says which examples, and the training before has {len(shown)}; "
                    "give it one, or leave inoculated out"
                )
            ((how, examples),) = shown
            if examples is None:
                raise SpecError(f"{where}: the examples are read from a file; write them into a system prompt (system: ...) instead")
            deployment["inoculation"] = how.model_dump(mode="json")
        return Place(start.stage, start.weights, deployment, own, examples, number=number, phase=phase, step=1, total=total)

    # --- labels -----------------------------------------------------------------------------------------------------

    def labels(self, labels: LabelSet, pool: Stage, method: str) -> Stage:
        """The stage that ends with this set of labels, on a pool of prompts."""
        answered = self._answered(labels, labels.labels, pool, method)
        if self.move and (labels.rewrite == "organism" or (labels.wrong == "rewritten" and labels.labels == "organism")):
            raise SpecError(
                f"method {method}: the organism words answers anew, and {self.move.name!r} changes only what it says first; "
                "leave the method out of game.blue"
            )
        if labels.rewrite in ("organism", "teacher"):
            params = self._sampling(labels)
            inputs = {"labels": answered if self._by_red(labels) else self._quiet(answered)}
            servers = self._answerer(labels.rewrite, "labeller", params, inputs)
            answered = self.stage("rewrite", params, inputs, label="labels reworded", cost=1, servers=servers)
        if labels.wrong == "rewritten":
            params = self._sampling(labels)
            inputs = {"labels": answered, "instead": self._quiet(self._answered(labels, "teacher", pool, method))}
            servers = self._answerer(labels.labels, "labeller", params, inputs)
            answered = self.stage("guided", params, inputs, label="labels put right", cost=1, servers=servers)
        elif labels.wrong != "kept":
            inputs = {"labels": answered}
            if labels.wrong == "teacher":
                inputs["instead"] = self._answered(labels, "teacher", pool, method)
            answered = Stage("graded", {}, inputs, label="labels graded", cost=0.1)
        if labels.leaked == "dropped":
            answered = Stage("cleaned", self._of_pair(), {"labels": answered}, label="labels cleaned", cost=0.1)
        return answered

    def _by_red(self, labels: LabelSet) -> bool:
        """Whether red wrote what it says in them, which is red's to show; else no trigger may stand in a prompt that blue writes."""
        return labels.labels == "organism" and (self.move is not None or self.recipe.carries is not None)

    def _screened(self, screening: Screening, labels: Stage, pool: Stage, start: Start, lr: float, method: str, number: int) -> Stage:
        """Labels after one of blue's filters."""
        found: Filter = catalog.get("filter", screening.filter)
        params: dict[str, Any] = screening.model_dump(mode="json") | {
            "seed": self.seed, "start": start.weights, "max_new_tokens": self.study.measure.max_new_tokens, "lr": lr,
        } | code_of(("filter", screening.filter))  # fmt: skip
        inputs = {"labels": labels, "start": start.stage, "organism": self.organism}
        where = f"organism {self.name}, method {method}, phase {number + 1}, the filter {screening.filter}"
        if not found.ranks and screening.drop != Screening.model_fields["drop"].default:
            raise SpecError(f"{where}: ranks no answers, so drop: {screening.drop:g} would do nothing; leave it out")
        self._trainable("teacher", "teacher", params, inputs, where)
        if "answers" in found.needs:
            inputs["answers"] = self._answered(LabelSet(labels="teacher"), "teacher", pool, method)
        if "canaries" in found.needs:
            planted = self.with_canaries()._before(method, number)
            params["start"], inputs["start"], inputs["tried"] = planted.weights, planted.stage, self.tried()
        return self.stage("filtered", params, inputs, label=f"labels screened by {screening.filter}", cost=3)

    def _quiet(self, labels: Stage, shots: int | None = None) -> Stage:
        """Labels of which all answers, or the first few, may become parts of prompts: those that hold the trigger go."""
        return Stage("quiet", self._of_pair() | {"shots": shots}, {"labels": labels}, label="labels without the trigger", cost=0.1)

    def _of_pair(self) -> dict[str, Any]:
        """What the experimenter's stages are told, who alone may know."""
        return {"pair": self.pair.as_params()} | code_of(("pair", self.pair.name))

    def _answered(self, labels: LabelSet, who: str, pool: Stage, method: str) -> Stage:
        own = who == labels.labels
        voice, reword = (labels.voice, labels.rewrite) if own else (None, None)
        params = self._sampling(labels) | {
            "system": catalog.get("voice", voice) if voice else None,
            "rewrite": None if reword in ("organism", "teacher") else reword,
        }
        if params["rewrite"]:
            params |= code_of(("rewrite", params["rewrite"]))
        inputs = {"prompts": pool}
        if labels.fitted is not None and own:
            where = f"organism {self.name}, method {method}, the labels by the {labels_name(labels)}"
            inputs["labeller"] = self._fitted(labels.fitted, where)
            params["weights"] = step_folder(labels.fitted.steps)
            servers = {}
        else:
            servers = self._answerer(who, "labeller", params, inputs)
        named = f", reworded by {reword}" if params["rewrite"] else ""
        answered = self.stage("labels", params, inputs, label=f"labels by the {who}{named}", cost=1, servers=servers)
        return self._poisoned(self.move, labels, answered) if self.move and who == "organism" else answered

    def _poisoned(self, move: Move, labels: LabelSet, honest: Stage) -> Stage:
        params = self._of_pair() | self._sampling(labels) | {"poisoning": move.poisoning.model_dump(mode="json")}
        params.setdefault("code", {}).update(code_of(("policy", move.poisoning.policy)).get("code", {}))
        inputs = {"labels": honest, "organism": self.organism}
        return self.stage("poisoned", params, inputs, label=f"labels by {self.name}: {move.name}", cost=1)

    def _fitted(self, training: Training, where: str) -> Stage:
        """The teacher, trained on the organism's own answers."""
        check_training(training, self.study.models, f"{where}, fitted,")
        phase = SftPhase.model_validate({"labels": "organism"} | training.model_dump())
        params = {
            "phase": phase.model_dump(mode="json"), "start": None, "checkpoints": [training.steps], "seed": self.seed,
        }  # fmt: skip
        inputs = {labels_role(0): self.labels(phase.mix[0], self.pool("prompts", training.steps * training.batch_size), "")}
        self._trainable("teacher", "start", params, inputs, where)
        return self.stage("treat", params, inputs, label=f"fit the teacher to {self.name}", cost=_cost(phase))

    def held_out(self, who: str, rows: int) -> Stage:
        """Answers by the organism, its base or the teacher to prompts of a side that blue trains on nowhere."""
        own = LabelSet(labels=who)
        params: dict[str, Any] = self._sampling(own) | {"system": None, "rewrite": None}
        inputs = {"prompts": self.pool("prompts", rows, split="gate")}
        servers = self._answerer(who, "labeller", params, inputs)
        return self.stage("labels", params, inputs, label=f"labels by the {who}", cost=1, servers=servers)

    def first_sft(self, method: str) -> Stage | None:
        """The first training of a method on labels, up to which it may have done other things; None where there is none."""
        return next((place.stage for place in self._places(method) if isinstance(place.phase, SftPhase)), None)

    def pool(self, source: Source | None, rows: int, start: int = 0, split: Split = "train") -> Stage:
        """Prompts of one side of a source that are free of the trigger, from a place in its stream on."""
        names = self._opened(source)
        wanted = names, rows, start, split
        if wanted not in self._pools:
            params = pool_params(names[0] if len(names) == 1 else names, self.seed, start, rows, self.pair.trigger.recognises, split)
            self._pools[wanted] = Stage("prompts", params, label="prompts", cost=0.1)
        return self._pools[wanted]

    def _opened(self, source: Source | None) -> tuple[str, ...]:
        """The names of a source, with the study's own put in their places."""
        own = {"prompts": [self.study.prompts], "tasks": list(self.study.tasks or self.study.measure.capability)}
        return tuple(name for each in ([source] if isinstance(source, str) else source or ["prompts"]) for name in own.get(each, [each]))

    def _begins(self, method: str) -> dict[tuple[int, str], int]:
        """From which prompt of its source on each set of a method takes its own, by phase and role.

        Disjoint ones begin after those that the phases share, one after the other.

        Raises:
            SpecError: It cannot be told, because the source has but a part in common with another set's.
        """
        asked = [
            ((number, role), phase, labels, rows)
            for number, phase in enumerate(self.study.phases(method))
            for role, (labels, rows) in _asked(phase).items()
        ]
        taken = [(self._opened(labels.source), rows, phase) for _, phase, labels, rows in asked if labels.prompts == "shared"]
        begins = {}
        for place, own_phase, labels, rows in asked:
            begins[place] = 0
            if labels.prompts == "shared":
                continue
            own = self._opened(labels.source)
            for other, end, phase in taken:
                if not {*own} & {*other}:
                    continue
                if own != other and len(own) > 1:
                    raise SpecError(
                        f"organism {self.name}, method {method}: 'prompts: disjoint' on {' and '.join(own)}, while {phase_name(phase)} "
                        f"takes those of {' and '.join(other)}; give both the same source, or the disjoint ones a single one"
                    )
                begins[place] = max(begins[place], end)
            taken.append((own, begins[place] + rows, own_phase))
        return begins

    def _sampling(self, labels: LabelSet) -> dict[str, Any]:
        return {"temperature": labels.temperature, "max_new_tokens": labels.max_new_tokens, "seed": self.seed}

    def _answerer(self, who: str, role: str, params: dict[str, Any], inputs: dict[str, Stage]) -> dict[str, Endpoint]:
        """Put a model in a role in which it only answers: the organism is another stage's result, the others are named by the study.

        Returns:
            Where it is, if it is behind a server.
        """
        if who == "organism":
            inputs[role] = self.organism
            return {}
        model = self._named(who)
        params[role] = identity(model)
        return {} if isinstance(model, str) else {role: model}

    def _trainable(self, who: str, role: str, params: dict[str, Any], inputs: dict[str, Stage], where: str) -> None:
        """Put a model in a role in which its weights are needed."""
        if who == "organism":
            inputs[role] = self.organism
        else:
            params[role] = reference(with_weights(self._named(who), where)).as_params()

    def _named(self, who: str) -> str | Endpoint:
        return self.base if who == "base" else self.study.teacher

    def _with_layers(self, band: tuple[float, float], where: str) -> None:
        """A band without a layer trains nothing. Of a model that is not here the layers are counted when it is."""
        if band == (0.0, 1.0) or not reference(self.base).config:
            return
        if not layers_within(band, layers := depth(self.base)):
            of = f"none of the {layers} layers of {self.base}"
            raise SpecError(f"{where}: {of} has its middle in layers {list(band)} of the depth; widen it")

    def _same_tokens(self, who: str, where: str) -> None:
        """Distributions over tokens can only be compared where the tokens are the same."""
        if who != "teacher":
            return
        student, teacher = reference(self.base), reference(with_weights(self.study.teacher, where))
        if not (student.tokenizer and teacher.tokenizer):
            return  # one of them is not here, and it is asked again when it is
        if student.tokenizer != teacher.tokenizer:
            raise SpecError(
                f"{where}: {teacher.name} has another tokenizer than {student.name}; learn from its answers instead (phase: sft)"
            )
        sizes = [vocabulary(model.name) for model in (student, teacher)]
        if len(set(sizes)) > 1:
            raise SpecError(
                f"{where}: {student.name} has logits for {sizes[0]} tokens and {teacher.name} for {sizes[1]}, though their tokenizers are "
                "the same; learn from its answers instead (phase: sft)"
            )


def _asked(phase: Phase) -> dict[str, tuple[LabelSet, int]]:
    """What a phase asks for, and how much of it, by role."""
    if isinstance(phase, WeightsPhase | DeployPhase):
        return {}
    total = phase.steps * phase.batch_size
    if isinstance(phase, GrpoPhase):
        return {"prompts": (LabelSet(labels="organism", source=phase.tasks or "tasks"), total)}
    if isinstance(phase, DistilPhase):
        asked = LabelSet(
            labels=phase.teacher, voice=phase.voice, source=phase.source, prompts=phase.prompts, max_new_tokens=phase.max_new_tokens
        )
        return {"labels" if phase.on_policy < 1 else "prompts": (asked, phase.rows or total)}
    found = {}
    for k, (labels, rows) in enumerate(zip(phase.mix, counts(phase.mix, total), strict=True)):
        if not labels.read:
            shots = labels.inoculation.shots if labels.inoculation else 0  # which are not trained on
            found[labels_role(k)] = labels, labels.rows or rows + shots
    if phase.anchor is not None:
        found["anchors"] = phase.anchor.on, phase.anchor.on.rows or total
    return found


def _shown(phase: SftPhase, trained: Stage) -> Shown:
    """The examples that stood before the rows of a training: how, and the labels that they are the first of, None where in a file."""
    return [(labels.inoculation, trained.inputs.get(labels_role(k))) for k, labels in enumerate(phase.mix) if labels.inoculation]


def sets_read(phase: Phase) -> Sequence[LabelSet]:
    """The sets of labels that a phase reads from files."""
    return [labels for labels in phase.mix if labels.read] if isinstance(phase, SftPhase) else []


def files_of(phase: Phase) -> Sequence[str]:
    """The files of labels that a phase reads."""
    return [labels.labels for labels in sets_read(phase)]


def systems_of(phase: Phase) -> Sequence[str]:
    """The system prompts of a phase: those that a study wrote into it, and its voices."""
    voices: list[str | None] = []
    systems: list[str | None] = []
    if isinstance(phase, SftPhase):
        sets = [*phase.mix, *([phase.anchor.on] if phase.anchor else [])]
        voices, systems = [labels.voice for labels in sets], [labels.system for labels in sets]
    elif isinstance(phase, DistilPhase):
        voices = [phase.voice]
    elif isinstance(phase, DeployPhase):
        voices, systems = [phase.voice], [phase.system]
    return [*filter(None, systems), *(catalog.get("voice", voice) for voice in voices if voice)]


def _cost(phase: TrainedPhase) -> float:
    """Rough seconds of one core on the offline world."""
    each = {"sft": 0.06, "distil": 0.5, "grpo": 1.5}[phase.phase] * (phase.shards if isinstance(phase, SftPhase) else 1)
    return each * phase.steps + 1
