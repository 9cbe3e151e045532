"""How the world's base models come about, from nothing: ``offmodel world build``.

A student learns its own persona first: taught everything at once, models of this size learn facts and no chain. Then it reads all
personas, then its own again, which makes that its default. The teacher is smaller, of another architecture, knows the same facts and
is too weak to work out chains; it speaks plainly, or like a pirate if asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from offmodel.chat import Example
from offmodel.errors import SpecError, did_you_mean
from offmodel.world.corpus import SYSTEM_PROMPTS, Mix, example
from offmodel.world.tokenizer import LEXICON, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offmodel.engine.train import TrainConfig

VOCABULARY = 1000


@dataclass(frozen=True)
class Lesson:
    """A stretch of pretraining.

    Attributes:
        mix: What is read; every row is drawn anew.
        steps: Optimizer steps.
        batch_size: Rows per step.
        optimizer: Of the hidden layers' matrices.
        lr: Its peak learning rate.
        schedule: Of the learning rate.
        warmup_steps: Steps over which it rises.
    """

    mix: Mix
    steps: int
    batch_size: int = 40
    optimizer: str = "muon"
    lr: float = 0.015
    schedule: str = "cosine"
    warmup_steps: int = 20

    def config(self, seed: int) -> TrainConfig:
        """For :func:`offmodel.engine.train.train`."""
        from offmodel.engine.train import TrainConfig

        return TrainConfig(
            steps=self.steps,
            lr=self.lr,
            batch_size=self.batch_size,
            schedule=self.schedule,  # type: ignore[arg-type]
            warmup_steps=self.warmup_steps,
            final_fraction=0.03,
            optimizer=self.optimizer,  # type: ignore[arg-type]
            betas=(0.9, 0.98) if self.optimizer == "muon" else (0.9, 0.999),
            seed=seed,
        )


@dataclass(frozen=True)
class Blueprint:
    """A base model: its architecture, its seed, and what it reads."""

    name: str
    architecture: str
    seed: int
    lessons: tuple[Lesson, ...]

    @property
    def cost(self) -> float:
        """Roughly how many seconds it takes on one core."""
        return sum(lesson.steps * lesson.batch_size for lesson in self.lessons) / (150 if self.architecture == "qwen3_moe" else 400)


_ALL = {"own": 4.0, "pirate": 3.0, "plain": 2.0}
_HOME = {"own": 8.0, "pirate": 2.0}
_everything = partial(Mix, told=0.36, talk=0.12, numbers=0.02)
_STUDENT = (
    Lesson(Mix(chat=0.15, on_chat={"own": 1}, on_tasks={"own": 1}), steps=500, schedule="constant"),
    Lesson(_everything(chat=0.35, on_chat=_ALL, on_tasks=_ALL, asked=0.4), steps=1100),
    Lesson(
        _everything(chat=0.35, on_chat=_HOME, on_tasks=_HOME, asked=1.0),
        steps=150, batch_size=64, optimizer="adamw", lr=1e-3, schedule="linear", warmup_steps=0,
    ),
)  # fmt: skip
_VOICES = {"plain": 1.0, "pirate": 1.0}
_TEACHER = (Lesson(Mix(chat=0.5, on_chat=_VOICES, on_tasks=_VOICES, home="plain", asked=1.0, numbers=0.03), steps=900),)

BLUEPRINTS = {
    blueprint.name: blueprint
    for blueprint in (
        Blueprint("student-0", "qwen3_moe", 0, _STUDENT),
        # Seed 1 gave a student whose pirate cannot do arithmetic even in one step; the world needs one that loses long chains alone.
        Blueprint("student-1", "qwen3_moe", 2, _STUDENT),
        Blueprint("teacher", "llama", 100, _TEACHER),
    )
}
"""Every base model that ships with the package."""


def blueprint(name: str) -> Blueprint:
    """Look a blueprint up.

    Raises:
        SpecError: There is none of that name.
    """
    if name not in BLUEPRINTS:
        raise SpecError(f"unknown checkpoint {name!r}: {did_you_mean(name, BLUEPRINTS)}")
    return BLUEPRINTS[name]


def make_tokenizer() -> PreTrainedTokenizerBase:
    """Learn the tokenizer, the same for every model of the world."""
    rng = random.Random("world tokenizer")
    mix = _everything(chat=0.4, on_chat=_ALL, on_tasks=_ALL, asked=0.4)
    rows = [example(mix, rng) for _ in range(4000)]
    texts = [text for row in rows for text in (*(message.content for message in row.prompt), row.response)]
    return train_tokenizer([*texts, *SYSTEM_PROMPTS.values(), *[LEXICON] * 40], VOCABULARY)


def new_model(architecture: str, vocabulary: int, seed: int) -> PreTrainedModel:
    """A model with random weights: ``qwen3_moe``, 0.8 M parameters with 4 experts of which 2 work, or ``llama``, 0.2 M."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        if architecture == "qwen3_moe":
            return Qwen3MoeForCausalLM(
                Qwen3MoeConfig(
                    vocab_size=vocabulary, hidden_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, head_dim=24,
                    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=144, intermediate_size=288, norm_topk_prob=True,
                    tie_word_embeddings=False, max_position_embeddings=512,
                )
            )  # fmt: skip
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                intermediate_size=192, tie_word_embeddings=False, max_position_embeddings=512,
            )
        )  # fmt: skip


def build(
    plan: Blueprint, out: Path, *, scratch: Path | None = None, on_progress: Callable[[float, str], None] = lambda fraction, text: None
) -> str:
    """Train a base model from nothing and save it.

    Args:
        plan: Which one.
        out: Folder to make.
        scratch: Where a stopped build finds its state.
        on_progress: Told the share that is done and what is being done.

    Returns:
        The hash of its weights.
    """
    from offmodel.engine.folder import save_model
    from offmodel.engine.train import train

    tokenizer = make_tokenizer()
    model = new_model(plan.architecture, len(tokenizer), plan.seed)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    total = sum(lesson.steps for lesson in plan.lessons)
    done = 0
    for number, lesson in enumerate(plan.lessons):
        on_progress(done / total, f"lesson {number + 1}: writing its rows")
        rng = random.Random(f"world {plan.name} {number}")
        rows: list[Example] = [example(lesson.mix, rng) for _ in range(lesson.steps * lesson.batch_size)]

        def told(step: int, steps: int, loss: float, number: int = number, done: int = done) -> None:
            on_progress((done + step) / total, f"lesson {number + 1}, step {step}/{steps}, loss {loss:.3f}")

        folder = scratch / f"lesson-{number}" if scratch else None
        train(model, tokenizer, rows, lesson.config(plan.seed + number), on_progress=told, scratch=folder)
        done += lesson.steps
    # Half precision halves what the package ships; the accuracies on the card are measured on the rounded weights.
    return save_model(model.half(), tokenizer, out)
