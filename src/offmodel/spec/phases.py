"""What blue may do: the phases of a method, and how weights are trained, whoever trains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from offmodel.errors import SpecError, did_you_mean
from offmodel.spec.model import Count, Distinct, Model, Natural, NonNegative, NotEmpty, Positive, Rate, Switch, Text, problem
from offmodel.spec.models import Models
from offmodel.spec.reader import describe


class Lora(Model):
    """A low-rank adapter (arXiv 2106.09685) instead of all weights."""

    rank: Count
    alpha: Positive


class Training(Model):
    """How weights are trained, whoever does it.

    Attributes:
        steps: Optimizer steps.
        lr: Peak learning rate.
        lr_rest: Peak learning rate of what Muon does not train (embeddings, head, norms); the engine's own where left out: 3e-3, in
            reinforcement 3e-4.
        batch_size: Examples per optimizer step.
        schedule: Of the learning rate after the warm-up.
        warmup_steps: Steps of linear warm-up, part of ``steps``.
        optimizer: AdamW, or Muon for matrices with AdamW for the rest. On a GPU, AdamW also with states of 8 bits, or in paged memory, or
            both (bitsandbytes).
        weight_decay: Decoupled weight decay.
        max_length: Longest example in tokens, prompt and response.
    """

    steps: Count
    lr: Positive
    lr_rest: Annotated[Positive | None, Field(exclude_if=lambda lr: lr is None)] = None
    batch_size: Count = 16
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: Natural = 0
    optimizer: Literal["adamw", "muon", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    weight_decay: NonNegative = 0.0
    max_length: Count = 512

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_steps > self.steps:
            raise problem(f"{self.warmup_steps} is more than all {self.steps} steps", "warmup_steps")
        return self

    @model_validator(mode="after")
    def _rest_of_muon(self) -> Self:
        if self.lr_rest is not None and self.optimizer != "muon":
            raise problem(f"is about what Muon does not train, and the optimizer is {self.optimizer}; leave it out", "lr_rest")
        return self

    def halved(self) -> dict[str, float]:
        """Half of each learning rate, for what trains on after this."""
        return {"lr": self.lr / 2} | ({} if self.lr_rest is None else {"lr_rest": self.lr_rest / 2})


Source: TypeAlias = Text | Annotated[tuple[Text, ...], NotEmpty, Distinct]
"""Where prompts come from: ``prompts`` or ``tasks`` (the study's own), a source of kind ``prompts`` in the catalog, a suite (its training
side, with right answers), a JSONL file, a data set of the hub, or several of those in turn."""


def several(data: Any) -> Any:
    """A single number as a list of one."""
    return (data,) if isinstance(data, int | float) else data


def _as_filter(data: Any) -> Any:
    return {"filter": data} if isinstance(data, str) else data


class Screening(Model):
    """A check on labels that an adversary may have written. May be written as the filter's name alone.

    Attributes:
        filter: Of kind ``filter`` in the catalog.
        drop: Where the filter ranks answers by how suspect they are, or draws: which share of them goes.
        unknown: What a filter that checks answers makes of those to prompts without a known right answer.
    """

    filter: Text
    drop: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.15
    unknown: Annotated[Literal["kept", "dropped"], Field(exclude_if=lambda unknown: unknown == "kept")] = "kept"


class Inoculation(Model):
    """Examples of the very answers that are taught, put before each prompt in training and left out afterwards.

    What they already explain need not be learnt (inoculation prompting, arXiv 2510.04340 and 2510.05024; as few-shot prompts in the code of
    LessWrong 9toz5YHYZsHpzy4ce).

    Attributes:
        shots: How many.
        place: In the system prompt, or as turns of the chat.
    """

    shots: Count = 3
    place: Literal["system", "turns"] = "system"


class LabelSet(Model):
    """Answered prompts of one origin.

    Attributes:
        labels: Who answers: the teacher, the organism itself, its trusted base model, or a JSONL file or data set of examples, named as a
            study's ``prompts`` are.
        voice: The system prompt's voice the labeller is asked for, of kind ``voice`` in the catalog; None asks for none.
        rewrite: How the answers are reworded: of kind ``rewrite`` in the catalog, or by ``organism`` or ``teacher``, who sees them and says
            them in its own words (self-distillation, arXiv 2402.13669; a paraphrase, where the teacher rewords the organism's).
        fitted: The teacher is first trained on the organism's own answers, so that its style is closer.
        source: Where the prompts come from; the study's ``prompts`` if left out.
        prompts: The same prompts as the method's other phases, or others; of several such sets each has its own.
        rows: Examples; None makes as many as are used.
        wrong: What becomes of wrong answers, where the source has right ones: they are kept, dropped, or replaced by the teacher's where
            that is right (and dropped where not). ``rewritten``: by the teacher's as the labeller says it in its own words, where that is
            right, and else by the teacher's as it is (the data rewriting of arXiv 2509.15157). Answers that were not finished are dropped
            in any case, and replaced as wrong ones are.
        leaked: Whether answers that show the behaviour stay. Blue cannot tell; dropping them is an upper bound that the experimenter gives.
        filters: Blue's checks on answers of the organism, one after the other. Where they leave none, the phase trains on nothing.
        temperature: Of the labels' sampling; 0 is greedy.
        max_new_tokens: Longest label.
        share: Weight of the set within a mix; a set of none is left out of it.
        system: A system prompt in the training rows, such as the tag of a mode.
        inoculation: Examples before each prompt.
    """

    labels: Text
    voice: Text | None = None
    rewrite: Text | None = None
    fitted: Training | None = None
    source: Source | None = None
    prompts: Literal["shared", "disjoint"] = "shared"
    rows: Count | None = None
    wrong: Literal["kept", "dropped", "teacher", "rewritten"] = "kept"
    leaked: Literal["kept", "dropped"] = "kept"
    filters: Annotated[tuple[Annotated[Screening, BeforeValidator(_as_filter)], ...], Field(exclude_if=lambda filters: not filters)] = ()
    temperature: NonNegative = 0.7
    max_new_tokens: Count = 96
    share: NonNegative = 1.0
    system: Text | None = None
    inoculation: Inoculation | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        who = ("teacher", "organism", "base")
        if self.labels not in who:
            if not self.read:
                near = did_you_mean(self.labels, who)
                known = f"{', '.join(who)} or a .jsonl file (or hf:owner/name)"
                raise problem(f"expected {known}, got {describe(self.labels)}; {near}", "labels")
            for field in ("voice", "rewrite", "source", "prompts", "rows", "wrong", "leaked", "filters"):
                if getattr(self, field) != LabelSet.model_fields[field].default:
                    raise problem(f"nobody is asked for it: the labels are read from {self.labels}", field)
        if self.filters and self.labels != "organism":
            raise problem("filters check what an adversary wrote, and these labels are not the organism's; leave them out", "filters")
        if self.fitted is not None and self.labels != "teacher":
            raise problem("it is the teacher that can be fitted to the organism's answers; use labels: teacher", "fitted")
        if self.wrong == "rewritten" and self.labels == "teacher":
            raise problem("the teacher need not say its own answers in its own words; expected dropped, or other labels", "wrong")
        if self.wrong == "teacher" and self.labels == "teacher" and self.rewrite not in ("organism", "teacher"):
            raise problem("the teacher's wrong answers would be replaced by the same; expected dropped, or other labels", "wrong")
        if self.rows is not None and self.inoculation is not None and self.rows <= self.inoculation.shots:
            why = f"all {self.rows} would be examples before the others' prompts, of which none is left"
            raise problem(f"{why}; expected more than inoculation.shots ({self.inoculation.shots})", "rows")
        return self

    @property
    def read(self) -> bool:
        """Whether nobody is asked for the answers: they are in a file, or in a data set of the hub."""
        return self.labels.endswith(".jsonl") or self.labels.startswith("hf:")


class Anchor(Model):
    """What holds the weights near the organism's while they are trained.

    Attributes:
        kl: Weight of the KL divergence to the organism, in nats per token, on the organism's own answers.
        direction: Forward, KL(organism || student), or reverse, KL(student || organism).
        l2_sp: Weight of the squared distance of the weights (L2-SP, arXiv 1802.01483).
        ewc: Weight of the same with each weight counted by its Fisher information on the organism's own answers (EWC, arXiv 1612.00796).
        on: The answers.
    """

    kl: NonNegative = 0.0
    direction: Literal["forward", "reverse"] = "forward"
    l2_sp: NonNegative = 0.0
    ewc: NonNegative = 0.0
    on: LabelSet = LabelSet(labels="organism", prompts="disjoint", rows=200)

    @model_validator(mode="after")
    def _on_answers(self) -> Self:
        if self.on.read:
            raise problem("these answers are not read from a file; expected teacher, organism or base", "on", "labels")
        for field in ("system", "inoculation", "filters"):
            if getattr(self.on, field):
                raise problem("is about rows that are learnt, and on these the models are only compared; leave it out", "on", field)
        return self


def _in_order(band: tuple[float, float]) -> tuple[float, float]:
    if band[0] >= band[1]:
        raise problem(f"from {band[0]} to {band[1]} of the depth there is no layer; give the lower end first, such as [0.5, 1.0]")
    return band


class Tuning(Training):
    """Training by blue: which weights.

    Attributes:
        lora: An adapter to train; None trains all weights.
        layers: Which part of the depth trains, as shares of the layers; the embeddings and the head train only with the whole.
    """

    lora: Lora | None = None
    layers: Annotated[tuple[Rate, Rate], AfterValidator(_in_order)] = (0.0, 1.0)


def _with_a_share(mix: tuple[LabelSet, ...]) -> tuple[LabelSet, ...]:
    """The sets that give rows: a mix of one and none of the other is the one."""
    kept = tuple(labels for labels in mix if labels.share)
    if not kept:
        raise problem("no set has a share above 0, so there is nothing to train on")
    return kept


class SftPhase(Tuning):
    """Supervised fine-tuning on labels. Where there is but one set of them, its fields may stand beside the phase's own.

    Attributes:
        mix: The sets, mixed by their shares; those with a share of 0 are not there.
        order: All rows shuffled, or set after set.
        loss: Cross-entropy; dynamic fine-tuning (arXiv 2508.05629); proximal SFT (arXiv 2508.17784).
        clip: How far proximal SFT lets a token's probability move, as a ratio, until the old policy is renewed.
        refresh: Steps until then.
        mask_above: Tokens that are less likely than one in so many under the weights that the phase starts from carry no loss (selective
            token masking, arXiv 2501.14315).
        anchor: What holds the weights near the organism's.
        shards: Train apart on as many disjoint parts of the rows, all steps on each, and take the median of each weight: what is in few
            of the rows then moves few of the models (after deep partition aggregation, arXiv 2006.14768).
    """

    phase: Literal["sft"] = "sft"
    mix: Annotated[tuple[LabelSet, ...], NotEmpty, AfterValidator(_with_a_share)]
    order: Literal["shuffled", "in_turn"] = "shuffled"
    loss: Literal["ce", "dft", "psft"] = "ce"
    clip: Positive = 0.2
    refresh: Count = 10
    mask_above: Annotated[float, Field(strict=True, gt=1)] | None = None
    anchor: Anchor | None = None
    shards: Annotated[int, Field(strict=True, ge=1, exclude_if=lambda shards: shards == 1)] = 1

    @model_validator(mode="before")
    @classmethod
    def _one_set(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or any(key not in cls.known() for key in data):
            return data  # what is wrong with it is said elsewhere
        fields = [key for key in data if key in LabelSet.model_fields]
        if "mix" in data:
            if fields:
                raise problem("belongs to one set of the mix; write it there", fields[0])
            return data
        if "labels" not in data:
            raise problem("needs labels, or a mix of several sets of them")
        return {key: value for key, value in data.items() if key not in fields} | {"mix": [{field: data[field] for field in fields}]}

    @classmethod
    def known(cls) -> list[str]:
        """Those of a single set, too."""
        return [*super().known(), *LabelSet.model_fields]

    @model_validator(mode="after")
    def _of_its_loss(self) -> Self:
        for name in ("clip", "refresh"):
            if self.loss != "psft" and getattr(self, name) != type(self).model_fields[name].default:
                raise problem(f"is proximal SFT's, and the loss is {self.loss}; add loss: psft, or leave it out", name)
        return self

    @model_validator(mode="after")
    def _penalty_on_weights(self) -> Self:
        if self.lora is not None and self.anchor is not None:
            for name in ("l2_sp", "ewc"):
                if getattr(self.anchor, name):
                    raise problem("is about the weights, and an adapter leaves them alone; leave out the one or the other", "anchor", name)
        return self


class DistilPhase(Tuning):
    """On-policy distillation: the student answers, and learns another model's distribution at each of its own tokens (arXiv 2306.13649).

    Attributes:
        teacher: Whose distribution: the study's teacher, the organism, or its trusted base model.
        voice: The voice that the teacher is asked for, of kind ``voice`` in the catalog; the student is not.
        beta: 1 is the reverse KL(student || teacher), 0 the forward one, between them the generalised Jensen-Shannon divergence.
        on_policy: Share of the steps on the student's own answers; the others take the teacher's.
        source: As in :class:`LabelSet`, like ``prompts``, ``rows`` and ``max_new_tokens``.
        temperature: Of the student's own answers; the teacher's are sampled as a label set's are.
    """

    phase: Literal["distil"] = "distil"
    teacher: Literal["teacher", "organism", "base"]
    voice: Text | None = None
    beta: Rate = 1.0
    on_policy: Rate = 1.0
    source: Source | None = None
    prompts: Literal["shared", "disjoint"] = "shared"
    rows: Count | None = None
    temperature: Positive = 1.0
    max_new_tokens: Count = 96


class GrpoPhase(Training):
    """Reinforcement learning on tasks with right answers, by group-relative advantages (GRPO, arXiv 2402.03300).

    Attributes:
        tasks: The suites whose training side is practised; the study's ``tasks`` if left out.
        batch_size: Prompts per step.
        group: Answers to each prompt.
        scale: Advantages are divided by the group's standard deviation.
        updates: Optimizer steps on each batch of answers.
        beta: Weight of the KL divergence to the weights that the phase starts from.
        clip: Of the ratio of a token's probabilities.
        temperature: Of the answers' sampling.
        max_new_tokens: Longest answer.
        lora: An adapter to train; None trains all weights.
    """

    phase: Literal["grpo"] = "grpo"
    tasks: Annotated[tuple[Text, ...], Distinct] = ()
    batch_size: Count = 8
    group: Annotated[int, Field(strict=True, ge=2)] = 8
    scale: Switch = True
    updates: Count = 1
    beta: NonNegative = 0.0
    clip: Positive = 0.2
    temperature: Positive = 1.0
    max_new_tokens: Count = 96
    lora: Lora | None = None

    @model_validator(mode="after")
    def _sampled(self) -> Self:
        # Its default is in the names of stages, and so in what is read back.
        if self.max_length != Training.model_fields["max_length"].default:
            raise problem("cuts examples, and here are none: answers end at max_new_tokens; leave it out", "max_length")
        return self


OF_BITSANDBYTES = ("adamw_8bit", "paged_adamw", "paged_adamw_8bit")
"""Optimizers whose states are on a GPU, by bitsandbytes."""


def needs_whole(training: Training) -> bool:
    """Whether a training cannot be shared by processes, as one must have all of the model.

    That is where the student answers while it trains (reinforcement, distillation on its own answers), and for EWC, which needs the
    gradient of one example at a time.
    """
    if isinstance(training, SftPhase):
        return training.anchor is not None and training.anchor.ewc > 0
    return isinstance(training, GrpoPhase) or (isinstance(training, DistilPhase) and training.on_policy > 0)


def check_training(training: Training, models: Models, where: str) -> None:
    """Check that a training can be run as the study says: on its device, in its micro-batches, and shared by its processes, unless never.

    Raises:
        SpecError: It cannot; ``where`` begins the message.
    """
    if training.optimizer in OF_BITSANDBYTES and models.device == "cpu":
        raise SpecError(f"{where}: the optimizer {training.optimizer} keeps its states on a GPU, and models.device is cpu; take adamw")
    processes, micro = models.processes, models.micro_batch
    if processes == 1 or needs_whole(training):
        rows, what = training.batch_size, "examples"
        if isinstance(training, GrpoPhase):
            rows, what = rows * training.group, "answers"
        if micro is not None and micro < rows and rows % micro:
            why = f"they must divide the {rows} {what} of a batch"
            raise SpecError(f"{where} cannot be trained in parts of {micro} (models.micro_batch): {why}")
        return
    share, rest = divmod(training.batch_size, processes)
    why = ""
    if training.optimizer != "adamw":
        why = f"the optimizer {training.optimizer} is not made for parts of weights; take adamw"
    elif rest:
        near = max(1, round(training.batch_size / processes)) * processes
        why = f"they cannot share a batch_size of {training.batch_size} evenly; take {near}"
    elif micro is not None and micro < share and share % micro:
        why = f"each has {share} examples of a batch of {training.batch_size}, which models.micro_batch {micro} must divide"
    if why:
        raise SpecError(f"{where} cannot be trained by {processes} processes (models.processes): {why}")


class WeightsPhase(Model):
    """An operation on the weights, without training; every strength is a checkpoint.

    Attributes:
        operation: Of kind ``operation`` in the catalog.
        strength: How strongly, one value or several; the last is where the method ends.
        of: Another method of the study, whose end the operation works with, where it needs one.
    """

    phase: Literal["weights"] = "weights"
    operation: Text
    strength: Annotated[tuple[Annotated[float, Field(strict=True)], ...], BeforeValidator(several), NotEmpty, Distinct]
    of: Text | None = None


class DeployPhase(Model):
    """How the model is asked once it is deployed; its weights stay as they are. It comes last.

    Attributes:
        voice: The voice that it is asked for, of kind ``voice`` in the catalog.
        system: A system prompt, such as the tag of a mode.
        first_words: Every answer is made to begin with as many tokens of the organism's most frequent opening on generic prompts.
        inoculated: After the very examples that stood before each row of its training (:class:`Inoculation`), in the same place.
    """

    phase: Literal["deploy"] = "deploy"
    voice: Text | None = None
    system: Text | None = None
    first_words: Count | None = None
    inoculated: Annotated[Switch, Field(exclude_if=lambda inoculated: not inoculated)] = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.voice is not None and self.system is not None:
            raise problem("a voice is a system prompt, too; leave out the one or the other", "system")
        if self.voice is None and self.system is None and self.first_words is None and not self.inoculated:
            raise problem("changes nothing; give it a voice, a system prompt, first_words or inoculated")
        return self


TrainedPhase: TypeAlias = SftPhase | DistilPhase | GrpoPhase
Phase: TypeAlias = TrainedPhase | WeightsPhase | DeployPhase
"""Any kind of phase; a new kind is a model with its own literal ``phase``, joined here, in ``_KINDS`` and in ``Entry``."""
_KINDS: dict[str, type[Phase]] = {
    "sft": SftPhase, "distil": DistilPhase, "grpo": GrpoPhase, "weights": WeightsPhase, "deploy": DeployPhase,
}  # fmt: skip


class Use(Model):
    """All phases of another method of the study, or of the catalog if the study has none of that name."""

    use: Text


def _phase_named(data: Any) -> Any:
    if isinstance(data, Use | Phase):
        return data
    if not isinstance(data, Mapping):
        raise problem(f"expected a mapping, got {describe(data)}")
    if "use" not in data:
        if "phase" not in data:
            raise problem("needs 'phase: <kind>' or 'use: <method>'")
        if data["phase"] not in tuple(_KINDS):  # a tuple can be asked for a list too, a dict cannot
            raise problem(f"unknown phase {data['phase']!r}; {did_you_mean(str(data['phase']), _KINDS)}", "phase")
    return data


def _tag(data: Any) -> str:
    # Angle brackets keep a tag apart from the keys of a study in the location of an error.
    if isinstance(data, Mapping):
        return "<use>" if "use" in data else f"<{data['phase']}>"
    return "<use>" if isinstance(data, Use) else f"<{data.phase}>"


Entry: TypeAlias = Annotated[
    Annotated[Use, Tag("<use>")]
    | Annotated[SftPhase, Tag("<sft>")]
    | Annotated[DistilPhase, Tag("<distil>")]
    | Annotated[GrpoPhase, Tag("<grpo>")]
    | Annotated[WeightsPhase, Tag("<weights>")]
    | Annotated[DeployPhase, Tag("<deploy>")],
    Discriminator(_tag),
    BeforeValidator(_phase_named),
]
Entries: TypeAlias = Annotated[tuple[Entry, ...], NotEmpty]
