"""How far a model has moved from another one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offmodel.chat import Example, encode_examples
from offmodel.engine.forward import responses
from offmodel.engine.losses import kl
from offmodel.engine.trainer import _Collator


@torch.no_grad()
def mean_kl(
    model: PreTrainedModel,
    original: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_length: int = 512,
    batch_size: int = 32,
) -> float:
    """Mean KL(original || model) in nats per token of the examples' responses, over the whole vocabulary.

    Args:
        model: In eval mode.
        original: In eval mode, with the same tokenizer.
        tokenizer: Of both.
        examples: Usually the original's own answers, at least one.
        max_length: Tokens per example; longer ones are cut at the end.
        batch_size: Examples at a time.
    """
    collate = _Collator(tokenizer.pad_token_id, model.device)
    encoded = encode_examples(tokenizer, examples, max_length)
    total, tokens = 0.0, 0
    for start in range(0, len(encoded), batch_size):
        batch = collate(encoded[start : start + batch_size])
        p, q = (responses(each, batch).logits.float().log_softmax(-1) for each in (original, model))
        total += float(kl(p, q).sum())
        tokens += len(p)
    return total / tokens
