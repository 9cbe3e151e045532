"""Several adapters on one model, trained at once: each step goes through the frozen weights once for all of them.

What trains a single adapter is :mod:`offmodel.engine.train`; this gives the same losses and adapters, up to rounding. PEFT can have rows of
several adapters in a batch, but goes through them one by one in each layer, and not at all where experts have adapters.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import add_fused_lm_head

from offmodel.chat import Encoded, Example, count_folded, cut_examples, encode_examples
from offmodel.engine.forward import Batch, mask_unlikely, only_layers
from offmodel.engine.lora import NAME, has_adapter, make_ready, outermost, take_off
from offmodel.engine.optim import learning_rate_factor, make_optimizer
from offmodel.engine.rng import preserved_rng
from offmodel.engine.train import TrainConfig, TrainLog, check_checkpoints, order_of
from offmodel.engine.trainer import (
    Calls,
    Collator,
    Original,
    checkpointed,
    fingerprint_of,
    fused,
    per_token,
    router_loss_of,
    scored,
    trained_parameters,
)
from offmodel.errors import DataError, DivergedError, ModelError, SpecError
from offmodel.files import replacing

_STATE = "state.pt"


@dataclass(frozen=True)
class Treatment:
    """One of the trainings: what :func:`offmodel.engine.train.train` is given, under the same names.

    ``on_checkpoint`` gets the model with this training's adapter alone.
    """

    examples: Sequence[Example]
    config: TrainConfig
    checkpoints: Collection[int] = ()
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None = None
    on_progress: Callable[[int, int, float], None] | None = None
    scratch: Path | None = None


def train_together(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, treatments: Sequence[Treatment], *, save_every: int = 50
) -> list[TrainLog | DivergedError]:
    """Train adapters on one model at once; the model is left as it was given.

    Each has its own examples, order, seed, alpha, learning rate, schedule, loss and number of steps; batch size, micro-batch size, rank and
    adapted layers are the same for all. The (micro-)batches of all are padded to one length and make one batch, so that memory is needed
    for all of them. Gradients do not mix: each is clipped and applied by itself, and a training that diverges stops alone. One that is
    stopped continues from its scratch folder, whichever others it is trained with.

    Args:
        model: Plain, or with an adapter from which all go on.
        tokenizer: With a chat template and a pad token.
        treatments: The trainings.
        save_every: Steps between two states in their scratch folders.

    Returns:
        For each what it did, or how it diverged.

    Raises:
        DataError: As :func:`offmodel.engine.train.train`.
        ModelError: The model draws random numbers in training, balances the load of experts, or leads only a part of the tokens through
            an adapted layer; or as :func:`offmodel.engine.train.train`.
        SpecError: The settings do not go together, or need more than batch and model.
    """
    start = time.monotonic()
    _check(model, treatments)
    original, carried = Original(model), has_adapter(model)
    shared = _Shared(model, original)
    with preserved_rng(model.device), ExitStack() as undo:
        undo.callback(model.eval)
        undo.callback(original.put_back)
        lanes: list[_Lane] = []
        for treatment in treatments:
            if lanes and not carried:
                take_off(model)
            lanes.append(_Lane(shared, tokenizer, treatment, carried=carried))
        undo.callback(partial(shared.install, shared.found) if carried else partial(take_off, model))
        if fused(model):
            add_fused_lm_head(model)
        with shared.mixed():
            _run(shared, lanes, Collator(tokenizer.pad_token_id, model.device), save_every)
    return [lane.outcome(model, tokenizer, time.monotonic() - start) for lane in lanes]


def _check(model: PreTrainedModel, treatments: Sequence[Treatment]) -> None:
    for treatment in treatments:
        config = treatment.config
        if not treatment.examples:
            raise DataError("there is no example to train on")
        check_checkpoints(treatment.checkpoints, config.steps)
        if config.lora is None or config.padding_free or not config.objective.plain:
            raise SpecError("adapters alone are trained together: padded, and on a loss that needs batch and model only")
        balanced = getattr(model.config.get_text_config(), "output_router_logits", False)
        if router_loss_of(model, config) or (config.router_loss is None and balanced):
            raise ModelError("the load of experts is balanced over a batch, and adapters that are trained together share theirs")
    alike = {(c.batch_size, c.micro_batch_size, c.lora and c.lora.rank) for c in (t.config for t in treatments)}
    if len(alike) > 1:
        raise SpecError("batch_size, rank and micro_batch_size must be the same where adapters are trained together")
    for module in model.modules():
        if (isinstance(module, nn.Dropout) and module.p) or (isinstance(p := getattr(module, "attention_dropout", 0), float) and p):
            raise ModelError(f"{type(model).__name__} has dropout, and its draws would not be those of a training by itself")


def _run(shared: _Shared, lanes: Sequence[_Lane], collate: Collator, save_every: int) -> None:
    for lane in lanes:
        lane.begin()
    while going := [lane for lane in lanes if lane.going]:
        shared.lanes = going
        shared.model.train()
        batches = [lane.batch() for lane in shared.lanes]
        losses = [torch.zeros((), device=shared.model.device) for _ in batches]
        counts = [max(1, sum(map(_labelled, rows))) for rows in batches]
        size = shared.lanes[0].config.micro_batch_size or len(batches[0])
        for first in range(0, len(batches[0]), size):
            parts = [rows[first : first + size] for rows in batches]
            found = shared.log_probs(collate([row for rows in parts for row in rows])).split([sum(map(_labelled, rows)) for rows in parts])
            each = [lane.loss(own) / n for lane, own, n in zip(shared.lanes, found, counts, strict=True)]
            torch.stack(each).sum().backward()  # no gradient of one is in another's adapter
            losses = [loss + own.detach() for loss, own in zip(losses, each, strict=True)]
        for lane, loss, n in zip(shared.lanes, torch.stack(losses).tolist(), counts, strict=True):
            lane.advance(loss, n, save_every)


def _labelled(row: Encoded) -> int:
    return sum(row.completion_mask[1:])


@dataclass(frozen=True)
class _Adapter:
    """The two matrices of one layer, and how much their product counts."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float

    def copied(self) -> _Adapter:
        """The same, to be trained by itself."""
        a, b = (nn.Parameter(p.detach().clone(), p.requires_grad) for p in (self.a, self.b))
        return _Adapter(a, b, self.scaling)


class _Shared:
    """A model with room for one adapter in PEFT's layers, in which those of the lanes take turns, or share a batch.

    Attributes:
        lanes: Whose rows a batch holds, as many of each, one lane after the other.
        found: The adapter that the model came with.
    """

    def __init__(self, model: PreTrainedModel, original: Original) -> None:
        self.model, self.lanes = model, list[_Lane]()
        self.found = self.adapters()
        self._original = original
        self._tokens = 0

    def layers(self) -> list[LoraLayer]:
        return [module for module in self.model.modules() if isinstance(module, LoraLayer)]

    def adapters(self) -> list[_Adapter]:
        """What PEFT's layers hold."""
        return [_Adapter(layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME]) for layer in self.layers()]

    def install(self, adapters: Sequence[_Adapter]) -> None:
        """Let PEFT's layers hold these."""
        for layer, adapter in zip(self.layers(), adapters, strict=True):
            _put(layer, adapter)

    @contextmanager
    def mixed(self) -> Iterator[None]:
        """Let every row of a batch go through its own lane's adapter."""
        places = {id(layer): place for place, layer in enumerate(self.layers())}
        outer = [layer for _, layer in outermost(self.model)]
        for layer in outer:
            inside = [each for each in layer.modules() if isinstance(each, LoraLayer)]
            forward = self._batched if type(layer) is Linear else self._in_turn
            layer.forward = partial(forward, layer, [places[id(each)] for each in inside], layer.forward)
        if checkpointed(self.model):
            self.model.gradient_checkpointing_enable()
        try:
            yield
        finally:
            for layer in outer:
                del layer.forward

    @contextmanager
    def lent(self, lane: _Lane) -> Iterator[PreTrainedModel]:
        """The model in eval mode with one lane's adapter, for a while in the middle of a training."""
        outer = {layer: vars(layer).pop("forward") for _, layer in outermost(self.model) if "forward" in vars(layer)}
        self.install(lane.adapters)
        self.model.peft_config = lane.described
        try:
            with self._original.lent() as model:
                yield model
        finally:
            for layer, forward in outer.items():
                layer.forward = forward

    def log_probs(self, batch: Batch) -> Tensor:
        """Log-probabilities ``[N]`` of the labelled tokens of a batch with rows of all lanes, row by row."""
        self._tokens = batch["input_ids"].numel()
        return scored(self.model, batch)[1]

    def _batched(self, layer: Linear, places: Sequence[int], alone: Callable[..., Tensor], x: Tensor) -> Tensor:
        """A linear layer: through its weights at once, then through all adapters at once."""
        self._whole(x)
        (place,) = places
        own = [lane.adapters[place] for lane in self.lanes]
        result = layer.base_layer(x)
        a = torch.stack([adapter.a for adapter in own])  # [lanes, rank, in]
        b = torch.stack([adapter.b * adapter.scaling for adapter in own])  # [lanes, out, rank]
        update = x.reshape(len(own), -1, x.size(-1)).to(a.dtype) @ a.mT @ b.mT
        return (result + update.view(result.shape)).to(result.dtype)

    def _in_turn(self, layer: LoraLayer, places: Sequence[int], alone: Callable[..., Any], *args: Tensor) -> Any:
        """Any other layer, such as a stack of experts, whose weights are folded with an adapter before they meet a token."""
        self._whole(args[0])
        inside = [each for each in layer.modules() if isinstance(each, LoraLayer)]
        results = []
        for lane, part in zip(self.lanes, zip(*(each.chunk(len(self.lanes)) for each in args), strict=True), strict=True):
            for each, place in zip(inside, places, strict=True):
                _put(each, lane.adapters[place])
            results.append(alone(*part))
        if isinstance(results[0], Tensor):
            return torch.cat(results)
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))

    def _whole(self, x: Tensor) -> None:
        if x.numel() // x.size(-1) != self._tokens:
            raise ModelError(
                f"{type(self.model).__name__} leads only a part of the tokens through an adapted layer, so that adapters cannot be trained "
                "together; train them one by one"
            )


def _put(layer: LoraLayer, adapter: _Adapter) -> None:
    layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME] = adapter.a, adapter.b, adapter.scaling


class _Lane:
    """One adapter and how far its training is."""

    def __init__(self, shared: _Shared, tokenizer: PreTrainedTokenizerBase, treatment: Treatment, *, carried: bool) -> None:
        self.config = config = treatment.config
        self._treatment, self._shared, model = treatment, shared, shared.model
        if carried:
            shared.install(shared.found)
        make_ready(model, config.lora, config.seed)
        self.described = model.peft_config
        encoded = encode_examples(tokenizer, treatment.examples)
        self._cut = sum(len(example.input_ids) > config.max_length for example in encoded)
        encoded = cut_examples(encoded, config.max_length)
        if config.objective.mask_above is not None:
            collate = Collator(tokenizer.pad_token_id, model.device)
            encoded = mask_unlikely(model, encoded, config.objective.mask_above, collate, config.micro_batch_size or config.batch_size)
        self._encoded, self._order = encoded, order_of(len(encoded), config)
        with only_layers(model, config.objective.layers):
            self.adapters = [adapter.copied() for adapter in shared.adapters()]
            shared.install(self.adapters)
            self._trained = [p for _, p in trained_parameters(model)]
            self._optimizer = make_optimizer(model, config.optimizer, config.lr, config.lr_rest, config.betas, config.weight_decay)
        self._calls = Calls(
            partial(shared.lent, self), config.steps, frozenset(treatment.checkpoints), treatment.on_checkpoint, treatment.on_progress,
            self._order,
        )  # fmt: skip
        self._losses, self._tokens = list[float](), 0
        self._diverged: DivergedError | None = None
        self._resumed = self._continue(fingerprint_of(model, encoded, self._order, config)) if treatment.scratch is not None else 0

    @property
    def going(self) -> bool:
        """Whether there are steps to go."""
        return self._diverged is None and len(self._losses) < self.config.steps

    def begin(self) -> None:
        """Before the first step."""
        if not self._losses:
            self._calls.checkpoint(0)

    def batch(self) -> list[Encoded]:
        """The examples of the next step."""
        size, step = self.config.batch_size, len(self._losses)
        return [self._encoded[i] for i in self._order[step * size : (step + 1) * size]]

    def loss(self, found: Tensor) -> Tensor:
        """The summed loss of tokens with these log-probabilities."""
        return per_token(found, self.config.objective.loss).sum()

    def advance(self, loss: float, tokens: int, save_every: int) -> None:
        """Make a step with the gradients that are there."""
        config = self.config
        gradient = float(nn.utils.clip_grad_norm_(self._trained, config.max_grad_norm or math.inf))
        if not math.isfinite(gradient):
            self._calls.spoilt(len(self._losses))
        factor = learning_rate_factor(len(self._losses), config.steps, config.schedule, config.warmup_steps, config.final_fraction)
        for group in self._optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._losses.append(loss)
        self._tokens += tokens
        try:
            self._calls.checkpoint(len(self._losses))
            self._calls.heard(len(self._losses), loss, gradient)
        except DivergedError as error:
            self._diverged = error
            return
        if self._treatment.scratch is not None and len(self._losses) % save_every == 0:
            self._save(self._treatment.scratch)

    def outcome(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seconds: float) -> TrainLog | DivergedError:
        """What the training did, or how it diverged."""
        if self._diverged is not None:
            return self._diverged
        prompts = [example.prompt for example in self._treatment.examples]
        return TrainLog(
            losses=tuple(self._losses), examples=len(self._order), tokens=self._tokens, device=str(model.device), seconds=seconds,
            resumed_from=self._resumed, cut=self._cut, folded=count_folded(tokenizer, prompts),
        )  # fmt: skip

    def _save(self, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        state = {
            "of": self._name, "losses": self._losses, "tokens": self._tokens, "optimizer": self._optimizer.state_dict(),
            "trained": [p.detach() for p in self._trained],
        }  # fmt: skip
        with replacing(scratch / _STATE) as new:
            torch.save(state, new)

    def _continue(self, name: str) -> int:
        """Take up the state in scratch, if it is of this training, whose fingerprint is given; the step it is at."""
        self._name = name
        assert self._treatment.scratch is not None
        file = self._treatment.scratch / _STATE
        if not file.exists():
            return 0
        state = torch.load(file, map_location=self._trained[0].device, weights_only=True)
        if state["of"] != name:
            print(f"{file}: is the state of another training (model, data or settings differ); starting over", file=sys.stderr)
            return 0
        self._losses, self._tokens = state["losses"], state["tokens"]
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for parameter, value in zip(self._trained, state["trained"], strict=True):
                parameter.copy_(value)
        return len(self._losses)
