"""What a model makes of answers: its hidden states over them, and which way a training step on them would go.

Examples are read whole, as far as they fit into the model's context.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offmodel.chat import Encoded, Example
from offmodel.engine.forward import IGNORED, in_batches, read_whole, response_log_probs
from offmodel.engine.trainer import Collator


@torch.no_grad()
def mean_hidden_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, batch_size: int = 32
) -> Tensor:
    """The last layer's hidden states, averaged over the tokens of each response: ``[examples, width]`` in float32, on the CPU.

    Args:
        model: In eval mode.
        tokenizer: Its own.
        examples: Prompts with responses, the end of turn included.
        batch_size: Examples at a time.
    """
    collate = Collator(tokenizer.pad_token_id, model.device)
    found = []
    for rows in in_batches(read_whole(tokenizer, examples, model), batch_size):
        batch = collate(rows)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        output = model(**inputs, logits_to_keep=1, output_hidden_states=True, use_cache=False)
        counts = (batch["labels"] != IGNORED).unsqueeze(-1)
        found.append(((output.hidden_states[-1].float() * counts).sum(1) / counts.sum(1)).cpu())
    return torch.cat(found)


def alignments(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    targets: Sequence[Example],
    *,
    batch_size: int = 32,
) -> list[float]:
    """How much an infinitesimal step of gradient ascent on each example raises the likelihood of the targets, per unit of step.

    It is TracIn (arXiv 2002.08484) at one checkpoint: the dot product of the gradient of the example's log-likelihood, in nats and summed
    over its response, with that of the targets', in nats per token of their responses.

    Args:
        model: In eval mode; left without gradients, and frozen.
        tokenizer: Its own.
        examples: At least one; a backward pass for each.
        targets: At least one.
        batch_size: Targets at a time.
    """
    collate = Collator(tokenizer.pad_token_id, model.device)
    parameters = list(model.requires_grad_(True).parameters())
    wanted = [torch.zeros_like(p) for p in parameters]
    rows = read_whole(tokenizer, targets, model)
    tokens = sum(sum(row.completion_mask) for row in rows)

    def gradients(batch: Sequence[Encoded]) -> tuple[Tensor, ...]:
        likelihood = response_log_probs(model, collate(batch)).sum()
        return torch.autograd.grad(likelihood, parameters, materialize_grads=True)

    for batch in in_batches(rows, batch_size):
        for total, gradient in zip(wanted, gradients(batch), strict=True):
            total.add_(gradient, alpha=1 / tokens)
    found = []
    for row in read_whole(tokenizer, examples, model):
        found.append(sum(float((gradient * target).sum()) for gradient, target in zip(gradients([row]), wanted, strict=True)))
    model.requires_grad_(False)
    return found
