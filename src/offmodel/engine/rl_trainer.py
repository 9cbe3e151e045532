"""How :mod:`offmodel.engine.rl` drives TRL's ``GRPOTrainer``: which answers it gets, how they are graded, what it is held to."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from offmodel.engine.generate import Sampling, end_tokens, reply_of, sample_ids
from offmodel.engine.tracking import following
from offmodel.engine.trainer import Calls, Original, SupervisedTrainer, borrowed, common_arguments, fingerprint_of, last_state
from offmodel.errors import DataError

if TYPE_CHECKING:
    from offmodel.engine.rl import GrpoConfig


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    order: Sequence[int],
    reward: Callable[[int, str], float],
    config: GrpoConfig,
    checkpoints: frozenset[int],
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None,
    on_progress: Callable[[int, int, float], None] | None,
    *,
    scratch: Path | None,
    save_every: int,
) -> tuple[list[dict[str, float]], int]:
    """Practise the encoded prompts in the given order, see :func:`offmodel.engine.rl.grpo`.

    Returns:
        What was logged at every step, and the step that the training was resumed from.
    """
    with borrowed(model) as original:
        # TRL would read it anew from the folder that the model's config names, which says nothing of what was trained since.
        reference = copy.deepcopy(model).eval().requires_grad_(False) if config.beta else None
        with following(scratch) as report:
            trainer = _Trainer(
                config,
                encoded,
                reward,
                original,
                reference,
                model=model,
                args=_arguments(model, config, scratch, save_every, report),
                train_dataset=Dataset.from_dict({"prompt": order}),
                processing_class=tokenizer,
                callbacks=[Calls(original.lent, config.steps, checkpoints, on_checkpoint, on_progress, order, config.updates)],
            )
            trainer.remove_callback(PrinterCallback)
            # The fingerprint takes any settings and any tokens; its types know those of SFT only.
            fingerprint = fingerprint_of(model, encoded, order, config)  # type: ignore[arg-type]
            resume = last_state(scratch, fingerprint) if scratch is not None else None
            try:
                trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
                logged = [entry for entry in trainer.state.log_history if "loss" in entry]
            finally:
                # TRL keeps our methods on the trainer that they belong to: a circle, which would keep the model on its GPU for who knows
                # how long.
                trainer.__dict__.clear()
    return logged, 0 if resume is None else int(resume.name.rpartition("-")[2])


def _arguments(model: PreTrainedModel, config: GrpoConfig, scratch: Path | None, save_every: int, report: Mapping[str, Any]) -> GRPOConfig:
    return GRPOConfig(
        **common_arguments(model, config, scratch, config.batch_size * config.group),
        **report,
        loss_type="dapo",
        num_generations=config.group,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        scale_rewards="group" if config.scale else "none",
        num_iterations=config.updates,
        epsilon=config.clip,
        shuffle_dataset=False,
        # A state holds no answers, so it can only be taken where new ones are drawn.
        save_steps=math.ceil(save_every / config.updates) * config.updates,
    )


class _Trainer(GRPOTrainer):
    """``GRPOTrainer`` with our sampling, rewards, reference, optimizer, schedule and states. Its data set holds the prompts' numbers."""

    def __init__(
        self,
        config: GrpoConfig,
        encoded: Sequence[Sequence[int]],
        reward: Callable[[int, str], float],
        original: Original,
        reference: PreTrainedModel | None,
        **kwargs: Any,
    ) -> None:
        self._config, self._encoded, self._reward, self._original = config, encoded, reward, original
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(reward_funcs=self._grade, rollout_func=self._sample, **kwargs)
        if reference is not None:
            add_fused_lm_head(reference, temperature=config.temperature)
            self.ref_model, self.beta = reference, config.beta

    def _sample(self, prompts: Sequence[int], _: GRPOTrainer) -> dict[str, Any]:
        """Answer each prompt once, as in an evaluation: in eval mode, and with prompts in which no words of a turn open another."""
        c, tokenizer = self._config, self.processing_class
        seed = random.Random(f"grpo {c.seed} {self.state.global_step}").getrandbits(32)
        encoded = [self._encoded[i] for i in prompts]
        with self._original.lent() as model:
            answers = sample_ids(model, tokenizer, encoded, Sampling(c.temperature, c.max_new_tokens, seed=seed))
            ends = end_tokens(model, tokenizer)
        texts = [reply_of(tokenizer, ids, ends, "").text for ids in answers]
        return {"prompt_ids": encoded, "completion_ids": answers, "logprobs": None, "texts": texts}

    def _grade(
        self, prompts: Sequence[int], texts: Sequence[str], completion_ids: Sequence[Sequence[int]], log_metric: Any, **_: Any
    ) -> list[float]:
        rewards = []
        for i, text in zip(prompts, texts, strict=True):
            rewards.append(float(self._reward(i, text)))
            if not math.isfinite(rewards[-1]):
                raise DataError(f"the reward of an answer to prompt {i} is {rewards[-1]}")
        size = self._config.group
        groups = [rewards[i : i + size] for i in range(0, len(rewards), size)]
        log_metric("mean_reward", sum(rewards) / len(rewards))
        log_metric("flat", sum(min(group) == max(group) for group in groups) / len(groups))
        log_metric("answer_tokens", sum(map(len, completion_ids)))
        # Only differences within a group count. Measured from the least, equal rewards are all zero, and so is their gradient; TRL's
        # single-precision mean would miss them by a rounding error, which Adam makes as large a step as any.
        return [reward - min(group) for group in groups for reward in group]

    create_optimizer = SupervisedTrainer.create_optimizer
    create_scheduler = SupervisedTrainer.create_scheduler
    _send_telemetry = SupervisedTrainer._send_telemetry
    create_model_card = SupervisedTrainer.create_model_card
    _save = SupervisedTrainer._save
    _load_from_checkpoint = SupervisedTrainer._load_from_checkpoint
