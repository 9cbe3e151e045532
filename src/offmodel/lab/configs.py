"""From a study's words to the engine's: what a training is run by. The engine is imported where it is used, for a plan needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offmodel.spec.models import current
from offmodel.spec.phases import Anchor, DistilPhase, GrpoPhase, Lora, SftPhase, Training

if TYPE_CHECKING:
    from offmodel.engine.lora import LoraSettings
    from offmodel.engine.objective import Objective
    from offmodel.engine.rl import GrpoConfig
    from offmodel.engine.train import TrainConfig


def train_config(
    training: Training, seed: int, lora: Lora | None = None, objective: Objective | None = None, *, shuffle: bool = True
) -> TrainConfig:
    """The engine's settings for a training that a study describes."""
    from offmodel.engine.objective import Objective
    from offmodel.engine.train import TrainConfig

    how = current()
    return TrainConfig(
        steps=training.steps, lr=training.lr, batch_size=training.batch_size, schedule=training.schedule,
        warmup_steps=training.warmup_steps, optimizer=training.optimizer, weight_decay=training.weight_decay,
        max_length=training.max_length, seed=seed, lora=_lora(lora), objective=objective or Objective(), shuffle=shuffle,
        micro_batch_size=_micro(training.batch_size // how.processes), router_loss=how.router_loss, padding_free=how.padding_free,
        processes=how.processes, nodes=how.nodes, **_rest(training),
    )  # fmt: skip


def sft_config(phase: SftPhase, seed: int, lora: Lora | None) -> TrainConfig:
    """The engine's settings for supervised fine-tuning."""
    return train_config(phase, seed, lora, _objective(phase), shuffle=phase.order == "shuffled")


def distil_config(phase: DistilPhase, seed: int, lora: Lora | None) -> TrainConfig:
    """The engine's settings for distillation."""
    return train_config(phase, seed, lora, _distillation(phase))


def grpo_config(phase: GrpoPhase, seed: int, lora: Lora | None) -> GrpoConfig:
    """The engine's settings for reinforcement."""
    from offmodel.engine.rl import GrpoConfig

    return GrpoConfig(
        steps=phase.steps, lr=phase.lr, batch_size=phase.batch_size, group=phase.group, temperature=phase.temperature,
        max_new_tokens=phase.max_new_tokens, beta=phase.beta, clip=phase.clip, scale=phase.scale, updates=phase.updates,
        schedule=phase.schedule,
        warmup_steps=phase.warmup_steps, optimizer=phase.optimizer, weight_decay=phase.weight_decay, seed=seed, lora=_lora(lora),
        micro_batch_size=_micro(phase.batch_size * phase.group), **_rest(phase),
    )  # fmt: skip


def _objective(phase: SftPhase) -> Objective:
    from offmodel.engine.objective import Objective

    anchor = phase.anchor or Anchor()
    return Objective(
        loss=phase.loss, clip=phase.clip, refresh=phase.refresh, mask_above=phase.mask_above, layers=phase.layers,
        kl=anchor.kl, kl_direction=anchor.direction, l2_sp=anchor.l2_sp, ewc=anchor.ewc,
    )  # fmt: skip


def _distillation(phase: DistilPhase) -> Objective:
    from offmodel.engine.objective import Distil, Objective

    distil = Distil(beta=phase.beta, on_policy=phase.on_policy, temperature=phase.temperature, max_new_tokens=phase.max_new_tokens)
    return Objective(layers=phase.layers, distil=distil)


def _lora(lora: Lora | None) -> LoraSettings | None:
    from offmodel.engine.lora import LoraSettings

    return LoraSettings(rank=lora.rank, alpha=lora.alpha) if lora else None


def _micro(rows: int) -> int | None:
    """How many of a batch's rows are in memory at once; None for all."""
    micro = current().micro_batch
    return None if micro is None or micro >= rows else micro


def _rest(training: Training) -> dict[str, Any]:
    """The learning rate of what Muon does not train, where a study says one."""
    return {} if training.lr_rest is None else {"lr_rest": training.lr_rest}
