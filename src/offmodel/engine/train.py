"""Supervised training: one path for pretraining the small world, installing a behaviour and training it away.

TRL's ``SFTTrainer`` does the training; the examples come to it as tokens with a loss mask that :mod:`offmodel.chat` has checked.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offmodel.chat import Example, encode_examples
from offmodel.engine.lora import LoraSettings, attach, has_adapter
from offmodel.engine.optim import Schedule
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
        optimizer: ``adamw``, or ``muon`` (see :class:`offmodel.engine.optim.Muon`).
        lr_rest: With ``muon``, AdamW's peak learning rate for all that Muon does not train.
        betas: AdamW's.
        weight_decay: Decoupled, on matrices only.
        max_grad_norm: Gradients are clipped to this norm.
        max_length: Tokens per example; longer ones are cut at the end.
        seed: Order of the examples, dropout, the adapter's start.
        lora: Train an adapter instead of the weights.
    """

    steps: int
    lr: float
    batch_size: int = 16
    micro_batch_size: int | None = None
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr_rest: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 512
    seed: int = 0
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            raise SpecError(f"micro_batch_size must divide batch_size {self.batch_size}, got {self.micro_batch_size}")
        for name, value, known in (
            ("schedule", self.schedule, get_args(Schedule)),
            ("optimizer", self.optimizer, ("adamw", "muon")),
        ):
            if value not in known:
                raise SpecError(f"{name} {value!r} is unknown: {did_you_mean(value, known)}")


@dataclass(frozen=True)
class TrainLog:
    """What a training did.

    Attributes:
        losses: Mean loss per trained token, one value per step.
        examples: Examples seen, repeats included.
        tokens: Tokens trained on (the assistant's), repeats included.
        device: Where it ran.
        seconds: Wall time of this call; a resumed training counts only its own part.
        resumed_from: The step it continued from (0: from the start).
    """

    losses: tuple[float, ...]
    examples: int
    tokens: int
    device: str
    seconds: float
    resumed_from: int


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    checkpoints: Collection[int] = (),
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
    scratch: Path | str | None = None,
    save_every: int = 50,
) -> TrainLog:
    """Train a model in place on the responses of examples; it is left in eval mode, with its config as it was.

    The loss of a step is the mean over all trained tokens of its batch. Examples come in a seeded order that goes through all of them
    before any repeats. The same seed gives the same weights, bit for bit, on the same machine with the same number of threads. The
    global random generators are left as they were. A mixture of experts gets its load-balancing loss only if its config asks for it
    (``output_router_logits``).

    Args:
        model: On the device it is to be trained on. With ``config.lora`` it carries the adapter afterwards, see
            :mod:`offmodel.engine.lora`.
        tokenizer: With a chat template and a pad token.
        examples: What to learn; may be fewer than one batch.
        config: How.
        checkpoints: Steps, 0 (before the first) and the last included, at which ``on_checkpoint(step, model)`` is called. It gets the
            model in eval mode, to sample from or to save; the training goes on unaffected.
        on_checkpoint: See ``checkpoints``. A resumed training calls it for a step again or not at all if it was called before, so it
            must keep what it makes. One that starts over calls it for every step: what was kept before is of another training.
        on_progress: Called after each step as ``on_progress(step, steps, loss)``.
        scratch: Folder of this one training's resumable state. Called again with the same arguments and the same start weights, a
            training that was stopped continues there and ends with the very same weights. The state of another training is discarded,
            with a line on stderr, and this one starts over. The caller removes the folder.
        save_every: Steps between two states in ``scratch``.

    Raises:
        DataError: There is no example, or one has nothing to train on.
        ModelError: The loss is no longer finite; the chat template cannot be used; an adapter is in the way.
        SpecError: A checkpoint lies outside of the training.
    """
    # TRL takes seconds to import, which those who only sample need not wait for.
    from offmodel.engine.trainer import run

    start = time.monotonic()
    beyond = [step for step in checkpoints if not 0 <= step <= config.steps]
    if beyond:
        raise SpecError(f"checkpoint {beyond[0]} lies outside of a training of {config.steps} steps")
    if not examples:
        raise DataError("there is no example to train on")
    encoded = encode_examples(tokenizer, examples, config.max_length)
    order = batch_order(len(examples), config.steps * config.batch_size, config.seed)
    with preserved_rng(model.device):
        if config.lora is not None:
            attach(model, config.lora, config.seed)
        elif has_adapter(model):
            raise ModelError("the model carries a LoRA adapter, but config.lora is None; merge(model) first, or say how to train it")
        losses, resumed_from = run(
            model,
            tokenizer,
            encoded,
            order,
            config,
            frozenset(checkpoints),
            on_checkpoint,
            on_progress,
            scratch=Path(scratch) if scratch is not None else None,
            save_every=save_every,
        )
    return TrainLog(
        losses=tuple(losses),
        examples=len(order),
        tokens=sum(sum(encoded[i].completion_mask) for i in order),
        device=str(model.device),
        seconds=time.monotonic() - start,
        resumed_from=resumed_from,
    )


def batch_order(n: int, total: int, seed: int) -> list[int]:
    """Indices of ``total`` examples out of ``n``: one shuffle after another, so that none repeats before all have been seen."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < total:
        order += rng.sample(range(n), n)
    return order[:total]
