"""Forward passes over the responses of examples, and what is computed from them before a training."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from offmodel.chat import Encoded, Example, encode_examples
from offmodel.engine.losses import log_probs
from offmodel.engine.objective import layers_within
from offmodel.errors import DataError, ModelError, SpecError

IGNORED = -100  # the label of a token without loss

_INPUTS = ("input_ids", "attention_mask", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""What a model takes of a batch."""

Batch = Mapping[str, Any]
"""``input_ids`` and ``labels``, each ``[rows, tokens]``, on the model's device; and ``attention_mask``, or where examples lie one after the
other in a single row, what says where each begins."""

_READ = 32 * 512
"""Tokens, pads included, that are read at a time."""


def context_of(model: PreTrainedModel) -> int:
    """How many tokens a model has room for; as good as endless where it does not say."""
    return getattr(model.config, "max_position_embeddings", None) or sys.maxsize


def read_whole(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *models: PreTrainedModel) -> list[Encoded]:
    """Examples as models read them where nothing is trained: whole, and cut at the end only where a model's context ends.

    Raises:
        DataError: A prompt alone fills a context.
    """
    return encode_examples(tokenizer, examples, min(map(context_of, models)))


def in_batches(encoded: Sequence[Encoded], batch_size: int) -> Iterator[Sequence[Encoded]]:
    """Examples in their order, at most so many at a time, and fewer where they are long: nothing else limits what is in memory."""
    batch: list[Encoded] = []
    longest = 0
    for row in encoded:
        longest = max(longest, len(row.input_ids))
        if batch and (len(batch) == batch_size or (len(batch) + 1) * longest > _READ):
            yield batch
            batch, longest = [], len(row.input_ids)
        batch.append(row)
    if batch:
        yield batch


def responses(model: PreTrainedModel, batch: Batch) -> ModelOutput:
    """The model's output with logits ``[N, V]`` for the batch's N labelled tokens alone, row by row.

    The head computes no more than the columns in which one of them stands: over a whole batch, its logits are the largest tensor there is.
    """
    wanted = batch["labels"][:, 1:] != IGNORED
    columns = wanted.any(0).nonzero().squeeze(-1)
    inputs = {name: batch[name] for name in _INPUTS if name in batch}
    outputs = model(**inputs, logits_to_keep=columns, use_cache=False)
    outputs.logits = outputs.logits[wanted[:, columns]]
    return outputs


def response_log_probs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Log-probabilities ``[N]`` of the labelled tokens, row by row."""
    labels = batch["labels"][:, 1:]
    return log_probs(responses(model, batch).logits, labels[labels != IGNORED])


@torch.no_grad()
def mask_unlikely(
    model: PreTrainedModel, encoded: Sequence[Encoded], above: float, collate: Callable[[Sequence[Encoded]], Batch], batch_size: int
) -> list[Encoded]:
    """Examples whose tokens of a perplexity 1/p above a threshold carry no loss (selective token masking, arXiv 2501.14315).

    Args:
        model: In eval mode.
        encoded: The examples.
        above: The threshold.
        collate: Makes a batch of examples.
        batch_size: Examples at a time.

    Raises:
        DataError: No token is left.
    """
    masked = []
    for start in range(0, len(encoded), batch_size):
        rows = encoded[start : start + batch_size]
        likely = response_log_probs(model, collate(rows)) >= -math.log(above)
        for row, keep in zip(rows, likely.split([sum(row.completion_mask) for row in rows]), strict=True):
            kept = iter(keep.tolist())
            masked.append(Encoded(row.input_ids, [int(counts and next(kept)) for counts in row.completion_mask]))
    if not any(any(row.completion_mask) for row in masked):
        raise DataError(f"mask_above {above:g} leaves nothing to train on: no token is as likely as one in {above:g}; raise it")
    return masked


def fisher(
    model: PreTrainedModel, encoded: Sequence[Encoded], names: Collection[str], collate: Callable[[Sequence[Encoded]], Batch]
) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information (arXiv 1612.00796), of the shapes of the parameters, in float32.

    It is the mean over examples of the squared gradient of the response's log-likelihood; one backward pass for each.

    Args:
        model: In eval mode; frozen, and left so.
        encoded: The examples.
        names: Which parameters.
        collate: Makes a batch of examples.
    """
    parameters = {name: p.requires_grad_(True) for name, p in model.named_parameters() if name in names}
    found = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for row in encoded:
        likelihood = response_log_probs(model, collate([row])).sum()
        gradients = torch.autograd.grad(likelihood, list(parameters.values()), materialize_grads=True)
        for information, gradient in zip(found.values(), gradients, strict=True):
            information.add_(gradient.float().square(), alpha=1 / len(encoded))
    model.requires_grad_(False)
    return found


@contextmanager
def only_layers(model: PreTrainedModel, band: tuple[float, float]) -> Iterator[None]:
    """Freeze, for a while, all but a band of the depth (see :attr:`offmodel.engine.objective.Objective.layers`).

    Raises:
        ModelError: The model has no list of decoder layers.
        SpecError: No layer, or nothing in it that could be trained, lies within the band.
    """
    if band == (0.0, 1.0):
        yield
        return
    layers = decoder_layers(model)
    inside = [layers[i] for i in layers_within(band, len(layers))]
    kept = {id(p) for layer in inside for p in layer.parameters()}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    if not any(p.requires_grad for layer in inside for p in layer.parameters()):
        raise SpecError(f"layers {list(band)}: none of the {len(layers)} layers has weights to train there; widen it")
    for p in frozen:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(True)


def decoder_layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The layers of a model in order.

    Raises:
        ModelError: It has no list of them.
    """
    depth: Any = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise ModelError(
        f"{type(model).__name__} has no list of its {depth} decoder layers, so that none of them can be left out of a training, nor be "
        "spread over several processes"
    )
