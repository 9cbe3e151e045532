"""How :mod:`offmodel.engine.train` drives TRL's ``SFTTrainer``: its settings, and what has to be kept from it."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.distributed import load_optimizer_distributed, save_optimizer_distributed
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from offmodel.chat import Encoded
from offmodel.engine import fsdp, losses
from offmodel.engine.forward import IGNORED, Batch, mask_unlikely, response_log_probs, responses
from offmodel.engine.optim import learning_rate_factor, make_optimizer
from offmodel.engine.rng import preserved_rng
from offmodel.engine.tracking import following
from offmodel.errors import DivergedError, ModelError
from offmodel.files import replacing

if TYPE_CHECKING:
    from offmodel.engine.rl import GrpoConfig
    from offmodel.engine.train import Frozen, TrainConfig

_LARGE = 1 << 15
"""Tokens from which on a vocabulary is large."""
_ROOMY = ("cpu",)
"""Devices with room for all that a training's backward pass needs."""
_WEIGHTS, _STATE, _FINGERPRINT = "trained.safetensors", "trainer_state.json", "training.json"
_PARTS, _OPTIMIZER, _SCHEDULER = "trained", "optimizer", "scheduler.pt"
"""What a state holds instead of whole weights and Adam's moments where several processes train: folders of parts."""


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    order: Sequence[int],
    config: TrainConfig,
    frozen: Frozen,
    checkpoints: frozenset[int],
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None,
    on_progress: Callable[[int, int, float], None] | None,
    *,
    scratch: Path | None,
    save_every: int,
    device: str | None = None,
) -> tuple[list[float], int, int]:
    """Train on ``encoded`` in the given order, see :func:`offmodel.engine.train.train`.

    One of several processes that train together gives the ``device`` of its parts of all models.

    Returns:
        The loss of every step, the tokens trained on, and the step that the training was resumed from.
    """
    from offmodel.engine.objective_trainer import _ObjectiveTrainer  # it builds on this module

    # Before the weights are in parts, and by the one process that looks at it.
    known = scratch is not None and fsdp.place()[0] == 0
    fingerprint = fingerprint_of(model, encoded, order, config, *_described(frozen)) if known else ""
    if device is not None:
        for each in (model, frozen.original, frozen.teacher):
            if each is not None:
                fsdp.shard(each, device)
    with borrowed(model) as original:
        collate = Collator(tokenizer.pad_token_id, model.device)
        if config.objective.mask_above is not None:
            model.eval()
            encoded = mask_unlikely(model, encoded, config.objective.mask_above, collate, config.micro_batch_size or config.batch_size)
        make = SupervisedTrainer if config.objective.plain else partial(_ObjectiveTrainer, encoded, order, frozen, collate, original)
        if config.padding_free:
            check_padding_free(model, encoded, tokenizer.pad_token_id)
        with following(scratch) as report:
            trainer = make(
                config,
                model=model,
                args=_arguments(model, config, scratch, save_every, report),
                train_dataset=_dataset(encoded, order),
                processing_class=tokenizer,
                data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id, padding_free=config.padding_free),
                callbacks=[Calls(original.lent, config.steps, checkpoints, on_checkpoint, on_progress, order)],
            )
            trainer.remove_callback(PrinterCallback)
            resume = fsdp.decided(lambda: last_state(scratch, fingerprint)) if scratch is not None else None
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(entry["trained_tokens"] for entry in logged)
    return [entry["loss"] for entry in logged], tokens, 0 if resume is None else int(resume.name.rpartition("-")[2])


@contextmanager
def borrowed(model: PreTrainedModel) -> Iterator[Original]:
    """A model for TRL to train: after it the model is what it was but for its weights, and in eval mode; logging is as loud as before."""
    original, verbosity = Original(model), transformers_logging.get_verbosity()
    # Accelerate collects garbage before it starts, over all that was ever imported: most of a short training's set-up.
    gc.freeze()
    try:
        yield original
    finally:
        gc.unfreeze()
        transformers_logging.set_verbosity(verbosity)
        original.put_back()
        model.eval()


def _arguments(model: PreTrainedModel, config: TrainConfig, scratch: Path | None, save_every: int, report: Mapping[str, Any]) -> SFTConfig:
    return SFTConfig(
        **common_arguments(model, config, scratch, config.batch_size),
        **report,
        save_steps=save_every,
        max_length=config.max_length,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def common_arguments(model: PreTrainedModel, config: TrainConfig | GrpoConfig, scratch: Path | None, rows: int) -> dict[str, Any]:
    """What any training says to TRL; ``rows`` make an optimizer step, of all processes together."""
    rows //= fsdp.place()[1]
    micro = config.micro_batch_size or rows
    on_cpu = model.device.type == "cpu"
    return {
        # The Trainer makes this folder even if it saves nothing; without scratch it gets one that is always there.
        "output_dir": str(scratch) if scratch is not None else os.curdir,
        "save_strategy": "no" if scratch is None else "steps",
        "save_total_limit": 1,
        "max_steps": config.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "router_aux_loss_coef": router_loss_of(model, config),
        # The model computes in the type of its weights; no mixed precision on top.
        "bf16": False,
        "use_cpu": on_cpu,
        "gradient_checkpointing": checkpointed(model),
        "dataloader_pin_memory": not on_cpu,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "log_level": "error",
    }


def router_loss_of(model: PreTrainedModel, config: TrainConfig | GrpoConfig) -> float | None:
    """The weight of the load-balancing loss for TRL; None takes the model's own."""
    wanted = getattr(config, "router_loss", None)
    own = model.config.get_text_config()
    if not hasattr(own, "router_aux_loss_coef"):
        if wanted:
            raise ModelError(f"router_loss {wanted} balances the load of experts, and {type(model).__name__} has none; leave it out")
        return None
    if wanted is not None:
        return float(wanted)
    # TRL turns the loss on for every mixture of experts whose config names a coefficient.
    return None if getattr(own, "output_router_logits", False) else 0.0


def _dataset(encoded: Sequence[Encoded], order: Sequence[int]) -> Dataset:
    """The whole training as one pass, so that its order is ours and no epoch ends in a smaller batch."""
    labels = [_labels(e) for e in encoded]
    return Dataset.from_dict({"input_ids": [encoded[i].input_ids for i in order], "labels": [labels[i] for i in order]})


def _labels(encoded: Encoded) -> list[int]:
    return [i if m else IGNORED for i, m in zip(encoded.input_ids, encoded.completion_mask, strict=True)]


class Collator:
    """Makes a batch of examples, padded unless ``padding_free``, on the device of a model, as the training's own are made."""

    def __init__(self, pad_token_id: int, device: torch.device, *, padding_free: bool = False) -> None:
        self._collate, self._device = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=padding_free), device

    def __call__(self, rows: Iterable[Encoded]) -> Batch:
        """One batch of all rows."""
        batch = self._collate([{"input_ids": row.input_ids, "labels": _labels(row)} for row in rows])
        return {name: value.to(self._device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""By how much the log-probability of a token may differ, in nats, where examples are padded and where they are not."""


@torch.no_grad()
def check_padding_free(model: PreTrainedModel, encoded: Sequence[Encoded], pad_token_id: int) -> None:
    """Check on the first and the last example with loss that a model takes examples laid one after the other as it takes them apart.

    Raises:
        ModelError: It does not: its attention looks from one into the other.
    """
    lossy = [row for row in encoded if any(row.completion_mask)]  # of some a mask may have left no token
    rows = [lossy[0], lossy[-1]]
    model.eval()
    apart, together = (response_log_probs(model, Collator(pad_token_id, model.device, padding_free=free)(rows)) for free in (False, True))
    furthest = float((apart - together).abs().max())
    if not furthest <= _TOLERANCES[model.dtype]:
        raise ModelError(
            f"padding_free: {type(model).__name__} with attention {model.config._attn_implementation!r} gives tokens other probabilities "
            f"where examples lie one after the other (by up to {furthest:.2g} nats); choose another attention, or leave padding_free out"
        )


class SupervisedTrainer(SFTTrainer):
    """``SFTTrainer`` with our optimizer and schedule, and with states that hold what is trained and nothing else."""

    def __init__(self, config: TrainConfig, **kwargs: Any) -> None:
        self._config = config
        # Of a model in parts the Trainer knows no state to go on from, and refuses to save one; we save our own.
        kwargs["args"].save_only_model = fsdp.joined()
        super().__init__(**kwargs)
        self.args.save_only_model = False

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Our optimizer."""
        c = self._config
        self.optimizer = make_optimizer(self.model, c.optimizer, c.lr, c.lr_rest, c.betas, c.weight_decay)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Our schedule."""
        c = self._config
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: learning_rate_factor(step, c.steps, c.schedule, c.warmup_steps, c.final_fraction),
        )
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The batches of a step, whose tokens are noted."""
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._tokens = int(tokens)
        return batches, tokens

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss per token of the responses in a step, over all micro-batches and processes."""
        outputs, loss = self._summed(model, inputs)
        # Gradients are averaged over processes, and the tokens are those of all.
        loss = loss * self.accelerator.num_processes / num_items_in_batch.clamp(min=1)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        return loss

    def _summed(self, model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Any, torch.Tensor]:
        """The model's output and the sum of the loss over the tokens of the responses."""
        outputs, found = scored(model, inputs)
        return outputs, per_token(found, self._config.objective.loss).sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the tokens that were trained on, too."""
        if "loss" in logs:
            logs["trained_tokens"] = self._tokens
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        """Nothing is sent: offmodel works offline."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: a training state is not a model to publish."""

    # save_pretrained writes the experts of a mixture one by one, under names that the Trainer, when it resumes, skips without a word;
    # and for an adapter on the model itself it finds nothing to load. Hence the trained parameters, under their own names.
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        assert output_dir is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if fsdp.joined():
            fsdp.save_parts(dict(trained_parameters(self.model)), folder / _PARTS)
        else:
            save_file({name: p.detach().contiguous() for name, p in trained_parameters(self.model)}, str(folder / _WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if fsdp.joined():
            fsdp.load_parts(dict(trained_parameters(self.model)), folder / _PARTS)
            return
        tensors = load_file(str(folder / _WEIGHTS))
        with torch.no_grad():
            for name, parameter in trained_parameters(self.model):
                parameter.copy_(tensors[name])

    # The Trainer would keep the first process' part of the optimizer's state alone.
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not fsdp.joined():
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_optimizer_distributed(self.model, _plain(self.optimizer), str(Path(output_dir) / _OPTIMIZER))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not fsdp.joined():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer_distributed(self.model, _plain(self.optimizer), str(Path(checkpoint) / _OPTIMIZER))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))

    # The first process writes the file that says that a state is whole right after this.
    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """What accelerate has put its own class around."""
    return getattr(optimizer, "optimizer", optimizer)


def scored(model: PreTrainedModel, batch: Batch) -> tuple[Any, torch.Tensor]:
    """The model's output, and log-probabilities ``[N]`` of the batch's labelled tokens, row by row.

    TRL's fused head never holds the logits, which counts on a GPU and over a large vocabulary. Without Triton it scores every position
    instead of the labelled ones, and gathers statistics for a log that nobody reads: on a CPU and over a small one that is two fifths of
    a step.
    """
    if fused(model):
        outputs = model(**batch, fused_lm_head=True)
        return outputs, outputs.log_probs[outputs.label_mask]
    outputs, labels = responses(model, batch), batch["labels"][:, 1:]
    return outputs, losses.log_probs(outputs.logits, labels[labels != IGNORED])


def fused(model: PreTrainedModel) -> bool:
    """Whether a model is scored by TRL's fused head, which it must have been given."""
    return model.device.type == "cuda" or model.config.get_text_config().vocab_size > _LARGE


def checkpointed(model: PreTrainedModel) -> bool:
    """Whether a training computes the activations of a layer again in the backward pass, instead of keeping them."""
    return model.device.type not in _ROOMY


def per_token(found: torch.Tensor, loss: str) -> torch.Tensor:
    """Cross-entropy (``ce``) or ``dft`` of tokens with these log-probabilities ``[N]``."""
    return losses.dft(found) if loss == "dft" else -found


def trained_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters that a training changes, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


class Calls(TrainerCallback):
    """Passes steps and checkpoints on to the caller.

    ``order`` holds the examples of all batches, each of which is trained on ``updates`` times.
    """

    def __init__(
        self,
        lend: Callable[[], AbstractContextManager[PreTrainedModel]],
        steps: int,
        checkpoints: frozenset[int],
        on_checkpoint: Callable[[int, PreTrainedModel], None] | None,
        on_progress: Callable[[int, int, float], None] | None,
        order: Sequence[int],
        updates: int = 1,
    ) -> None:
        self._lend, self._steps, self._checkpoints, self._order, self._updates = lend, steps, checkpoints, order, updates
        self._on_checkpoint, self._on_progress = on_checkpoint, on_progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the weights before the first step."""
        if state.global_step == 0:
            self.checkpoint(0)

    # What a step makes of the weights is looked at after it, when those from before are gone.
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Stop before gradients that are not finite spoil the weights."""
        norm = torch.nn.utils.get_total_norm([p.grad for _, p in trained_parameters(model) if p.grad is not None])
        if not math.isfinite(float(fsdp.whole(norm))):
            self.spoilt(state.global_step)

    # The Trainer saves its state after this call: a stop in between repeats a checkpoint and never skips one.
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the weights after a step."""
        self.checkpoint(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Pass on the loss of a step."""
        if not logs or "loss" not in logs:  # the summary at the end
            return
        self.heard(state.global_step, logs["loss"], logs.get("grad_norm", 0.0))

    def heard(self, step: int, loss: float, gradient: float) -> None:
        """Look at a step's loss and the norm of its gradient, and pass the loss on."""
        if not math.isfinite(loss):
            raise self._diverged(f"its loss is {loss}", step)
        # It makes the weights so, and the next step's loss, which is not to blame.
        if not math.isfinite(gradient):
            raise self._diverged(f"its loss is finite and its gradient is not (norm {gradient})", step)
        if self._on_progress is not None:
            self._on_progress(step, self._steps, loss)

    def spoilt(self, step: int) -> None:
        """Call for the weights after a step, which the next one spoils, as for a checkpoint."""
        if self._on_checkpoint is not None and step and step not in self._checkpoints:
            with self._lend() as model:
                if fsdp.finite(parameter for _, parameter in trained_parameters(model)):
                    self._on_checkpoint(step, model)

    def checkpoint(self, step: int) -> None:
        """Call for a step's checkpoint, if it is one."""
        if self._on_checkpoint is not None and step in self._checkpoints:
            with self._lend() as model:
                # This comes before the loss is looked at, and a loss can be the last that is finite.
                if not fsdp.finite(parameter for _, parameter in trained_parameters(model)):
                    raise self._diverged("its weights are not finite", step)
                self._on_checkpoint(step, model)

    def _diverged(self, what: str, step: int) -> DivergedError:
        size = len(self._order) // -(-self._steps // self._updates)
        first = (step - 1) // self._updates * size
        batch = self._order[first : first + size] if step else ()
        where = f"step {step} (examples {', '.join(map(str, batch))})" if batch else f"step {step}"
        return DivergedError(f"the training diverged: {what} at {where}; lower the learning rate")


class Original:
    """What TRL and the Trainer change on a model besides its weights: its forward, its configs, its mode, how it keeps activations.

    TRL replaces ``model.forward`` for good, which would pile up over trainings and tie a deep copy to the weights of the model it was
    copied from; the Trainer turns the cache off and changes special tokens in the configs that a checkpoint saves. Where activations are
    not kept, it leaves that on, and hooks on the embeddings that pile up, too, and cannot be sent to another process.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._before = self._take()
        self._hooks = [*model.get_input_embeddings()._forward_hooks]

    def _take(self) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        return vars(self._model).get("forward"), dict(vars(self._model.config)), dict(vars(self._model.generation_config))

    def _give(self, state: tuple[Any, dict[str, Any], dict[str, Any]]) -> None:
        forward, config, generation_config = state
        if forward is None:
            vars(self._model).pop("forward", None)
        else:
            vars(self._model)["forward"] = forward
        for owner, values in ((self._model.config, config), (self._model.generation_config, generation_config)):
            vars(owner).clear()
            vars(owner).update(values)

    def put_back(self) -> None:
        """Make the model what it was, except for its weights."""
        self._give(self._before)
        if checkpointed(self._model):
            self._model.gradient_checkpointing_disable()
            hooks = self._model.get_input_embeddings()._forward_hooks
            for added in [key for key in hooks if key not in self._hooks]:
                del hooks[added]

    @contextmanager
    def lent(self) -> Iterator[PreTrainedModel]:
        """The model in eval mode and as it was, for a while in the middle of a training."""
        in_training, training = self._take(), self._model.training
        self._give(self._before)
        self._model.eval()
        try:
            with preserved_rng(self._model.device):
                yield self._model
        finally:
            self._give(in_training)
            self._model.train(training)


def fingerprint_of(model: PreTrainedModel, encoded: Sequence[Encoded], order: Sequence[int], config: TrainConfig, *others: Any) -> str:
    """A hash of what a training starts from and does, so that a state is never continued by another one."""
    return hashlib.sha256(json.dumps([asdict(config), _weights(model), encoded, order, *others]).encode()).hexdigest()


def _described(frozen: Frozen) -> list[Any]:
    """What else decides the result of a training, for its fingerprint."""
    weights = [_weights(model) for model in (frozen.original, frozen.teacher) if model is not None]
    return [*weights, frozen.anchors, frozen.anchor_order, frozen.teacher_prompts]


def _weights(model: PreTrainedModel) -> list[Any]:
    return [(name, list(p.shape), torch.hash_tensor(p.detach()).item()) for name, p in model.named_parameters()]


def last_state(scratch: Path, fingerprint: str) -> Path | None:
    """The newest whole state in ``scratch``, if there is one; the states of another training are discarded."""
    owner = scratch / _FINGERPRINT
    known = owner.read_text(encoding="utf-8") if owner.exists() else None
    if known not in (None, fingerprint):
        print(f"{scratch}: held the state of another training (model, data or settings differ); starting over", file=sys.stderr)
        for state in scratch.glob("checkpoint-*"):
            shutil.rmtree(state)
    if known != fingerprint:  # written after the foreign states are gone, so that a stop in between leaves none behind
        with replacing(owner) as new:
            new.write_text(fingerprint, encoding="utf-8")
    states = sorted(scratch.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for state in reversed(states):
        # The Trainer writes this file last; a state without it was cut off by the stop.
        try:
            json.loads((state / _STATE).read_text(encoding="utf-8"))
            return state
        except (OSError, ValueError):
            shutil.rmtree(state)
    return None
