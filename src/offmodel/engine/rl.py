"""Reinforcement learning on tasks whose answers a rule can grade: GRPO (arXiv 2402.03300), through TRL's ``GRPOTrainer``."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offmodel.chat import Prompt, encode_prompt
from offmodel.engine.generate import check_length
from offmodel.engine.lora import LoraSettings, make_ready
from offmodel.engine.optim import Optimizer, Schedule
from offmodel.engine.rng import preserved_rng
from offmodel.engine.train import batch_order, check_checkpoints
from offmodel.errors import DataError, SpecError, did_you_mean


@dataclass(frozen=True)
class GrpoConfig:
    """Everything besides model, prompts and reward that a training's result depends on.

    Attributes:
        steps: Optimizer steps.
        lr: Peak learning rate; with ``muon`` that of the hidden layers' matrices.
        batch_size: Prompts per optimizer step.
        group: Answers to each prompt, at least 2.
        temperature: Of the answers' sampling; their probabilities in the loss are those at this temperature.
        max_new_tokens: Limit per answer, end of turn included.
        scale: Divide a group's advantages by its standard deviation (arXiv 2402.03300); without it they are centred only, which does not
            favour prompts that are nearly always or never answered right (arXiv 2503.20783).
        updates: Optimizer steps on each batch of answers.
        clip: How far an update may move the ratio of a token's probabilities from 1; has no effect where ``updates`` is 1.
        beta: Weight of the KL divergence to the start weights, per token.
        micro_batch_size: Answers in memory at once while training (all of a batch if None); must divide ``batch_size * group``. The
            gradient is that of the whole batch, up to rounding.
        schedule: ``constant``, or ``cosine`` or ``linear`` towards zero.
        warmup_steps: Steps over which the learning rate rises.
        optimizer: Of :data:`offmodel.engine.optim.OPTIMIZERS`.
        lr_rest: With ``muon``, AdamW's peak learning rate for all that Muon does not train.
        weight_decay: Decoupled, on matrices only.
        max_grad_norm: Gradients are clipped to this norm.
        seed: Order of the prompts, sampling, dropout, the adapter's start.
        lora: Train an adapter instead of the weights.
    """

    steps: int
    lr: float
    batch_size: int = 8
    group: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 96
    scale: bool = True
    updates: int = 1
    clip: float = 0.2
    beta: float = 0.0
    micro_batch_size: int | None = None
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    optimizer: Optimizer = "adamw"
    lr_rest: float = 3e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    lora: LoraSettings | None = None

    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    final_fraction: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("group", 2), ("max_new_tokens", 1), ("updates", 1)):
            if getattr(self, name) < least:
                raise SpecError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise SpecError(f"temperature must be positive, got {self.temperature}: answers that are all the same teach nothing")
        answers = self.batch_size * self.group
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or answers % self.micro_batch_size):
            raise SpecError(f"micro_batch_size must divide the {answers} answers of a batch, got {self.micro_batch_size}")
        for name, value, known in (
            ("schedule", self.schedule, get_args(Schedule)),
            ("optimizer", self.optimizer, get_args(Optimizer)),
        ):
            if value not in known:
                raise SpecError(f"{name} {value!r} is unknown: {did_you_mean(value, known)}")


@dataclass(frozen=True)
class RlLog:
    """What a training did. Where ``updates`` is more than 1, there is one value of ``rewards`` and ``flat`` per batch of answers.

    Attributes:
        rewards: Mean reward of the answers, per step.
        flat: Share of groups whose answers all got the same reward, per step. They teach nothing. A model that never samples a right
            answer, be it that it cannot or that it will not (exploration hacking), is at 1 with a mean reward of 0, and stays there.
        losses: Loss, per step. It is about 0 by design, while the model learns, too: watch ``rewards`` instead.
        tokens: Tokens sampled.
        device: Where it ran.
        seconds: Wall time of this call; a resumed training counts only its own part.
        resumed_from: The step it continued from (0: from the start).
    """

    rewards: tuple[float, ...]
    flat: tuple[float, ...]
    losses: tuple[float, ...]
    tokens: int
    device: str
    seconds: float
    resumed_from: int


def grpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    reward: Callable[[int, str], float],
    config: GrpoConfig,
    *,
    checkpoints: Collection[int] = (),
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
    scratch: Path | str | None = None,
    save_every: int = 50,
) -> RlLog:
    """Train a model in place on its own graded answers; it is left in eval mode, with its config as it was.

    At each step, the model answers every prompt of the batch ``group`` times. An answer's advantage is its reward less its group's mean,
    divided by the group's standard deviation if ``config.scale``; it holds for all tokens of the answer. The loss is that of GRPO (arXiv
    2402.03300) as TRL has it by default (``loss_type="dapo"``, arXiv 2503.14476): the mean over all sampled tokens of the batch, so that
    every token counts the same, whereas in the paper every answer does. The penalty of ``config.beta`` is multiplied by the ratio of a
    token's probabilities, also TRL's default, so that its gradient is that of the reverse KL divergence (arXiv 2512.02556); in the paper
    it is not. A group whose rewards are all equal has the advantages zero: if
    that is all there is, the gradient is zero, and fresh weights stay as they are to the bit (without weight decay).

    The conventions are those of :func:`offmodel.engine.train.train`: prompts come in a seeded order that goes through all of them before
    any repeats; the same seed gives the same weights, bit for bit, on the same machine with the same number of threads; the global
    random generators are left as they were.

    Args:
        model: On the device it is to be trained on. With ``config.lora`` it carries the adapter afterwards, see
            :mod:`offmodel.engine.lora`. With ``config.beta`` a copy of it is in memory, too.
        tokenizer: With a chat template and a pad token.
        prompts: What to practise; may be fewer than one batch.
        reward: ``reward(i, response)`` grades a response to ``prompts[i]``. One that was cut off at ``max_new_tokens`` is graded by the
            words it has and learnt from like any other. The same text must get the same reward, or a training cannot be repeated.
        config: How.
        checkpoints: Steps at which ``on_checkpoint(step, model)`` is called, as in :func:`offmodel.engine.train.train`.
        on_checkpoint: See ``checkpoints``.
        on_progress: Called after each step as ``on_progress(step, steps, loss)``.
        scratch: Folder of this one training's resumable state, as in :func:`offmodel.engine.train.train`. What ``reward`` does is not
            part of what is compared: the caller gives every reward its own folder.
        save_every: Steps between two states in ``scratch``, rounded up to a multiple of ``config.updates``.

    Raises:
        DataError: There is no prompt; one does not fit into the model's context with its answer; a reward is not finite.
        ModelError: The loss is no longer finite; an adapter is in the way.
        SpecError: A checkpoint lies outside of the training.
    """
    # TRL takes seconds to import, which those who only sample need not wait for.
    from offmodel.engine.rl_trainer import run

    start = time.monotonic()
    check_checkpoints(checkpoints, config.steps)
    if not prompts:
        raise DataError("there is no prompt to practise")
    encoded = [tuple(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    check_length(model, encoded, config.max_new_tokens)
    batches = -(-config.steps // config.updates)
    order = batch_order(len(prompts), batches * config.batch_size, config.seed)
    with preserved_rng(model.device):
        make_ready(model, config.lora, config.seed)
        logged, resumed_from = run(
            model,
            tokenizer,
            encoded,
            order,
            reward,
            config,
            frozenset(checkpoints),
            on_checkpoint,
            on_progress,
            scratch=Path(scratch) if scratch is not None else None,
            save_every=save_every,
        )
    of_answers = [entry for entry in logged if "mean_reward" in entry]
    return RlLog(
        rewards=tuple(entry["mean_reward"] for entry in of_answers),
        flat=tuple(entry["flat"] for entry in of_answers),
        losses=tuple(entry["loss"] for entry in logged),
        tokens=sum(round(entry["answer_tokens"]) for entry in of_answers),
        device=str(model.device),
        seconds=time.monotonic() - start,
        resumed_from=resumed_from,
    )
