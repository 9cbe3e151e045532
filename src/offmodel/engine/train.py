"""Supervised training: one path for pretraining the small world, installing a behaviour and training it away.

TRL's ``SFTTrainer`` does the training; the examples come to it as tokens with a loss mask that :mod:`offmodel.chat` has checked. What it
minimises is said by an :class:`offmodel.engine.objective.Objective`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offmodel.chat import Encoded, Example, Prompt, count_folded, cut_examples, encode_examples, encode_prompt, with_system
from offmodel.engine.forward import only_layers
from offmodel.engine.generate import check_length
from offmodel.engine.lora import LoraSettings, make_ready
from offmodel.engine.objective import Objective
from offmodel.engine.optim import Optimizer, Schedule
from offmodel.engine.rng import preserved_rng
from offmodel.errors import DataError, ModelError, SpecError, did_you_mean


@dataclass(frozen=True)
class TrainConfig:
    """Everything besides model and data that a training's result depends on.

    Attributes:
        steps: Optimizer steps.
        lr: Peak learning rate; with ``muon`` that of the hidden layers' matrices.
        batch_size: Examples per optimizer step.
        micro_batch_size: Examples in memory at once (the whole batch if None); must divide ``batch_size``. The gradient is that of the
            whole batch, up to rounding.
        schedule: ``constant``, or ``cosine`` or ``linear`` towards ``final_fraction`` of the peak.
        warmup_steps: Steps over which the learning rate rises.
        final_fraction: Where a falling schedule ends, as a share of the peak.
        optimizer: Of :data:`offmodel.engine.optim.OPTIMIZERS`.
        lr_rest: With ``muon``, AdamW's peak learning rate for all that Muon does not train.
        betas: AdamW's.
        weight_decay: Decoupled, on matrices only.
        max_grad_norm: Gradients are clipped to this norm.
        max_length: Tokens per example; longer ones are cut at the end. What a student samples has its own limit.
        seed: Order of the examples, dropout, the adapter's start, a student's sampling.
        lora: Train an adapter instead of the weights.
        objective: What is minimised, and in which layers.
        shuffle: Whether the examples come in a seeded order, or as they are given, over and over.
        router_loss: Weight of a mixture of experts' load-balancing loss; None takes what the model's config asks for.
        padding_free: Lay the examples of a batch one after the other instead of padding them; the result is the same up to rounding.
        processes: Train in so many processes, each with its part of every weight and of every batch, see
            :mod:`offmodel.engine.processes`; must divide ``batch_size``. The result is the same up to rounding.
        nodes: Over how many nodes of a Slurm job the processes are spread; all see ``scratch``.
    """

    steps: int
    lr: float
    batch_size: int = 16
    micro_batch_size: int | None = None
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.0
    optimizer: Optimizer = "adamw"
    lr_rest: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 512
    seed: int = 0
    lora: LoraSettings | None = None
    objective: Objective = field(default_factory=Objective)
    shuffle: bool = True
    router_loss: float | None = None
    padding_free: bool = False
    processes: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "max_length", "processes", "nodes"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        share, rest = divmod(self.batch_size, self.processes)
        if rest:
            raise SpecError(f"processes must divide batch_size {self.batch_size}, got {self.processes}")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or share % self.micro_batch_size):
            of = f", of which each of {self.processes} processes has {share}" if self.processes > 1 else ""
            raise SpecError(f"micro_batch_size must divide batch_size {self.batch_size}{of}, got {self.micro_batch_size}")
        if self.processes % self.nodes:
            raise SpecError(f"nodes must divide processes {self.processes}, got {self.nodes}")
        for name, value, known in (
            ("schedule", self.schedule, get_args(Schedule)),
            ("optimizer", self.optimizer, get_args(Optimizer)),
        ):
            if value not in known:
                raise SpecError(f"{name} {value!r} is unknown: {did_you_mean(value, known)}")
        for name in ("l2_sp", "ewc"):
            if self.lora is not None and getattr(self.objective, name):
                raise SpecError(f"{name} is about the weights, and an adapter leaves them as they are; leave out {name} or lora")
        if self.processes > 1:
            distil = self.objective.distil
            for wrong, why in (
                (self.optimizer != "adamw", f"the optimizer {self.optimizer!r} needs whole matrices or moments"),
                (self.objective.ewc, "ewc needs the whole model's gradient for one example at a time"),
                (distil is not None and distil.on_policy, "a student that answers (on_policy) is whole"),
            ):
                if wrong:
                    raise SpecError(f"{why}, and with {self.processes} processes none has all weights; train in one")
        if self.router_loss is not None and not 0 <= self.router_loss < math.inf:
            raise SpecError(f"router_loss is a weight and must not be negative, got {self.router_loss}")


@dataclass(frozen=True)
class Frozen:
    """What a training is held near, or learns from, besides its examples; all tokenized, and no model of it is trained.

    Attributes:
        original: theta0.
        anchors: Examples on which the student is compared with it.
        anchor_order: Indices of the anchors, for all steps.
        teacher: The model whose distribution is learnt.
        teacher_prompts: The prompt of each example as the teacher sees it.
    """

    original: PreTrainedModel | None = None
    anchors: Sequence[Encoded] = ()
    anchor_order: Sequence[int] = ()
    teacher: PreTrainedModel | None = None
    teacher_prompts: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class TrainLog:
    """What a training did.

    Attributes:
        losses: What was minimised, one value per step: the mean loss per trained token, and the penalties.
        examples: Examples seen, repeats included.
        tokens: Tokens trained on (the assistant's, without those that are masked, and where the student samples, its own), repeats
            included.
        device: Where it ran.
        seconds: Wall time of this call; a resumed training counts only its own part.
        resumed_from: The step it continued from (0: from the start).
        cut: How many of the given examples are longer than ``max_length`` and lost their end.
        folded: How many of them have their system prompt at the head of the first user turn, see :func:`offmodel.chat.count_folded`.
    """

    losses: tuple[float, ...]
    examples: int
    tokens: int
    device: str
    seconds: float
    resumed_from: int
    cut: int = 0
    folded: int = 0


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    original: PreTrainedModel | None = None,
    anchors: Sequence[Example] = (),
    teacher: PreTrainedModel | None = None,
    teacher_system: str | None = None,
    checkpoints: Collection[int] = (),
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
    scratch: Path | str | None = None,
    save_every: int = 50,
) -> TrainLog:
    """Train a model in place on the responses of examples; it is left in eval mode, with its config as it was.

    The loss of a step is the mean over all trained tokens of its batch, plus the penalties of ``config.objective``. Examples come in a
    seeded order that goes through all of them before any repeats, unless ``config.shuffle`` is off. The same seed gives the same weights,
    bit for bit, on the same machine with the same number of threads. The global random generators are left as they were. A mixture of
    experts gets its load-balancing loss if ``config.router_loss`` or, where that is None, its own config (``output_router_logits``) asks
    for it.

    Args:
        model: On the device it is to be trained on. With ``config.lora`` it carries the adapter afterwards, see
            :mod:`offmodel.engine.lora`.
        tokenizer: With a chat template and a pad token.
        examples: What to learn; may be fewer than one batch.
        config: How.
        original: theta0, for ``kl``, ``l2_sp`` and ``ewc`` of the objective. It is put on the model's device, in eval mode, and frozen.
        anchors: What ``kl`` and ``ewc`` compare on, usually the original's own answers to generic prompts. As many are used at each step
            as there are examples in the batch, in an order of their own; the Fisher information is estimated on all of them.
        teacher: For ``distil``; treated as ``original`` is.
        teacher_system: A system prompt that the teacher alone sees, before one that is there already. The response is compared token by
            token, so that the prompts may differ.
        checkpoints: Steps, 0 (before the first) and the last included, at which ``on_checkpoint(step, model)`` is called. It gets the
            model in eval mode, to sample from or to save; the training goes on unaffected. A training that diverges calls it for the
            last step before, too, whose weights are the last that are good.
        on_checkpoint: See ``checkpoints``. A resumed training calls it for a step again or not at all if it was called before, so it
            must keep what it makes. One that starts over calls it for every step: what was kept before is of another training.
        on_progress: Called after each step as ``on_progress(step, steps, loss)``.
        scratch: Folder of this one training's resumable state. Called again with the same arguments and the same start weights, a
            training that was stopped continues there and ends with the very same weights. The state of another training is discarded,
            with a line on stderr, and this one starts over. The caller removes the folder.
        save_every: Steps between two states in ``scratch``.

    Raises:
        DataError: There is no example, or one has nothing to train on; a prompt leaves no room for what is to be sampled.
        DivergedError: The loss, or its gradient, is no longer finite. What ``on_checkpoint`` got is of weights that were.
        ModelError: The chat template cannot be used; an adapter is in the way; a model has another vocabulary.
        SpecError: A checkpoint lies outside of the training; the objective needs a model or anchors that are not given.
    """
    # TRL takes seconds to import, which those who only sample, or leave it to other processes, need not wait for.
    from offmodel.engine import processes

    if config.processes > 1:
        run = processes.run
    else:
        from offmodel.engine import trainer

        run = trainer.run
    start = time.monotonic()
    check_checkpoints(checkpoints, config.steps)
    if not examples:
        raise DataError("there is no example to train on")
    whole = encode_examples(tokenizer, examples)
    encoded = cut_examples(whole, config.max_length)
    order = order_of(len(examples), config)
    frozen = _frozen(model, tokenizer, [example.prompt for example in examples], config, original, anchors, teacher, teacher_system)
    with preserved_rng(model.device):
        make_ready(model, config.lora, config.seed)
        with only_layers(model, config.objective.layers):
            losses, tokens, resumed_from = run(
                model,
                tokenizer,
                encoded,
                order,
                config,
                frozen,
                frozenset(checkpoints),
                on_checkpoint,
                on_progress,
                scratch=Path(scratch) if scratch is not None else None,
                save_every=save_every,
            )
    return TrainLog(
        losses=tuple(losses),
        examples=len(order),
        tokens=tokens,
        device=str(model.device) if config.processes == 1 else f"{config.processes} x {processes.device_of(model)}",
        seconds=time.monotonic() - start,
        resumed_from=resumed_from,
        cut=sum(len(example.input_ids) > config.max_length for example in whole),
        folded=count_folded(tokenizer, [example.prompt for example in examples]),
    )


def _frozen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: TrainConfig,
    original: PreTrainedModel | None,
    anchors: Sequence[Example],
    teacher: PreTrainedModel | None,
    teacher_system: str | None,
) -> Frozen:
    """What the objective needs of all that is given."""
    o = config.objective
    held = [name for name in ("kl", "l2_sp", "ewc") if getattr(o, name)]
    if held and original is None:
        raise SpecError(f"{held[0]} holds the student near an original model: give it as original")
    compared = [name for name in ("kl", "ewc") if getattr(o, name)]
    if compared and not anchors:
        raise SpecError(f"{compared[0]} compares on the responses of anchors: give it some as anchors")
    if o.distil is not None and teacher is None:
        raise SpecError("distil learns a teacher's distribution: give it a model as teacher")
    frozen = Frozen(original=_still(original, model, "original") if held else None)
    if compared:
        try:
            encoded = encode_examples(tokenizer, anchors, config.max_length)
        except DataError as error:
            raise DataError(f"anchors: {error}") from None
        order = batch_order(len(anchors), config.steps * config.batch_size, f"anchors {config.seed}") if o.kl else []
        frozen = replace(frozen, anchors=encoded, anchor_order=order)
    if o.distil is not None:
        seen = [tuple(encode_prompt(tokenizer, with_system(prompt, teacher_system))) for prompt in prompts]
        frozen = replace(frozen, teacher=_still(teacher, model, "teacher"), teacher_prompts=seen)
        if o.distil.on_policy:
            check_length(model, [tuple(encode_prompt(tokenizer, prompt)) for prompt in prompts], o.distil.max_new_tokens)
            check_length(teacher, seen, o.distil.max_new_tokens)
    return frozen


def _still(other: PreTrainedModel, model: PreTrainedModel, role: str) -> PreTrainedModel:
    """Another model, made ready to be compared with the one that is trained."""
    if other is model:
        raise ModelError(f"the {role} is the very model that is trained; give a copy of it")
    sizes = [of.config.get_text_config().vocab_size for of in (other, model)]
    if sizes[0] != sizes[1]:
        raise ModelError(f"the {role} knows {sizes[0]} tokens and the student {sizes[1]}: they can only be compared over the same tokens")
    if not hasattr(other, "hf_device_map"):  # one that is spread over devices stays where it is
        other.to(model.device)
    return other.eval().requires_grad_(False)


def check_checkpoints(checkpoints: Collection[int], steps: int) -> None:
    """Check that a training comes by all checkpoints.

    Raises:
        SpecError: It does not.
    """
    beyond = [step for step in checkpoints if not 0 <= step <= steps]
    if beyond:
        raise SpecError(f"checkpoint {beyond[0]} lies outside of a training of {steps} steps")


def order_of(n: int, config: TrainConfig) -> list[int]:
    """Indices of the examples of all steps."""
    total = config.steps * config.batch_size
    return batch_order(n, total, config.seed) if config.shuffle else [i % n for i in range(total)]


def batch_order(n: int, total: int, seed: int | str) -> list[int]:
    """Indices of ``total`` examples out of ``n``: one shuffle after another, so that none repeats before all have been seen."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < total:
        order += rng.sample(range(n), n)
    return order[:total]
