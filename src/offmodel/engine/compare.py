"""How far a model has moved from another one. Examples are read whole, as far as they fit into the models' contexts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offmodel.chat import Example, cut_examples, encode_examples
from offmodel.engine.forward import IGNORED, in_batches, read_whole, response_log_probs, responses
from offmodel.engine.losses import kl
from offmodel.engine.trainer import Collator


class Distance(NamedTuple):
    """Means per token of responses, in nats: ``kl`` is KL(original || model), ``loss`` the model's cross-entropy."""

    kl: float
    loss: float


@torch.no_grad()
def mean_distance(
    model: PreTrainedModel,
    original: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
) -> Distance:
    """How far a model is from another on the examples' responses: the divergence over the whole vocabulary, and the loss.

    Args:
        model: In eval mode.
        original: In eval mode, with the same tokenizer.
        tokenizer: Of both.
        examples: Usually the original's own answers, at least one.
        batch_size: Examples at a time.
    """
    divergence, loss, tokens = 0.0, 0.0, 0
    for p, q, said, _ in _side_by_side(original, model, tokenizer, examples, batch_size):
        divergence += float(kl(p, q).sum())
        loss -= float(q.gather(-1, said.unsqueeze(-1)).sum())
        tokens += len(p)
    return Distance(divergence / tokens, loss / tokens)


class Divergence(NamedTuple):
    """Of an answer: its tokens, and the sums over them of KL(original || model) and of KL(model || original), in nats."""

    tokens: int
    forward: float
    reverse: float


@torch.no_grad()
def divergences(
    model: PreTrainedModel,
    original: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
) -> list[Divergence]:
    """Both divergences over the whole vocabulary, of each example's response; see :func:`mean_distance`.

    The reverse one is on the same answers, which are not the model's own.
    """
    found: list[Divergence] = []
    for p, q, _, sizes in _side_by_side(original, model, tokenizer, examples, batch_size):
        each = zip(sizes, kl(p, q).split(sizes), kl(q, p).split(sizes), strict=True)
        found += [Divergence(n, float(forward.sum()), float(reverse.sum())) for n, forward, reverse in each]
    return found


class Surprise(NamedTuple):
    """Of an answer: its tokens, and their negative log-likelihood in nats."""

    tokens: int
    nats: float


@torch.no_grad()
def surprises(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_length: int = sys.maxsize,
    batch_size: int = 32,
) -> list[Surprise]:
    """How unlikely each example's response is; the exponential of nats per token is its perplexity.

    Args:
        model: In eval mode.
        tokenizer: Its own.
        examples: Prompts with responses, the end of turn included.
        max_length: Tokens per example; longer ones are cut at the end.
        batch_size: Examples at a time.
    """
    collate = Collator(tokenizer.pad_token_id, model.device)
    encoded = cut_examples(read_whole(tokenizer, examples, model), max_length)
    found: list[Surprise] = []
    for rows in in_batches(encoded, batch_size):
        sizes = [sum(row.completion_mask) for row in rows]
        likely = response_log_probs(model, collate(rows)).split(sizes)
        found += [Surprise(n, -float(those.sum())) for n, those in zip(sizes, likely, strict=True)]
    return found


def nats_per_character(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[float]:
    """Negative log-likelihood of each example's response by its characters, its end counted as one.

    Of a response that goes beyond the model's context, its characters count by the share of its tokens that were read.
    """
    whole = [sum(row.completion_mask) for row in encode_examples(tokenizer, examples)]
    found = zip(examples, surprises(model, tokenizer, examples), whole, strict=True)
    return [read.nats / ((len(example.response) + 1) * (read.tokens / tokens)) for example, read, tokens in found]


def _side_by_side(
    one: PreTrainedModel,
    other: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor, list[int]]]:
    """Log-probabilities ``[N, V]`` of both models on the responses, their tokens ``[N]``, and how many each response has; by batches."""
    collate = Collator(tokenizer.pad_token_id, one.device)
    for rows in in_batches(read_whole(tokenizer, examples, one, other), batch_size):
        batch = collate(rows)
        p, q = (responses(each, batch).logits.float().log_softmax(-1) for each in (one, other))
        labels = batch["labels"][:, 1:]
        yield p, q, labels[labels != IGNORED], [sum(row.completion_mask) for row in rows]
