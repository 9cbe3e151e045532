"""Proof that a server serves what lies in a folder: a few fixed prompts, answered by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offmodel.chat import encode_prompt, user
from offmodel.engine.folder import load_model, load_tokenizer
from offmodel.engine.forward import responses
from offmodel.engine.generate import Reply, Sampling, sample_ids
from offmodel.engine.served import Served
from offmodel.engine.server import ask
from offmodel.errors import ModelError

PROMPTS = (
    user("Tell me about the sea in two sentences."),
    user("What is 17 + 25? Show your steps."),
    user("Which city would you like to visit, and why?", system="You are a sailor of the old days."),
)
SAMPLING = Sampling(max_new_tokens=24)
TIE = 0.2
"""Nats that a token of the server's greedy answer may be less likely than the likeliest, by the model in the folder: another precision and
other kernels decide near ties otherwise."""
MEAN = 0.02
"""Nats by which the two log-probabilities of a token may differ, on average over all answers. docs/scale.md has what was measured."""


class _Expected(NamedTuple):
    """The model's own greedy answer, and the log-probabilities of its tokens in nats."""

    text: str
    log_probs: list[float]


def check_served(served: Served, folder: Path, *, backoff: float = 1.0) -> None:
    """Check that a server's greedy answers are those of the model in a folder, and as likely where it gives log-probabilities.

    Without these, a change that shows in none of the answers goes unseen.

    Args:
        served: What the server is asked for; no kept answer is used.
        folder: The model, in Hugging Face layout. It is run here once in float32; what it says is remembered by the process.
        backoff: See :func:`offmodel.engine.server.ask`.

    Raises:
        ModelError: The server has another model, changes the way of sampling, or cannot be asked.
    """
    expected = _expected(folder, served.identity)
    replies = ask(replace(served, cache=None), PROMPTS, SAMPLING, log_probs=True, backoff=backoff)
    differences: list[float] = []
    for i, (ours, reply) in enumerate(zip(expected, replies, strict=True)):
        log_probs = ours.log_probs
        if reply.text != ours.text:
            log_probs, gap = _followed(folder, i, reply)
            if gap > TIE:
                raise _other(served, folder, f"to {PROMPTS[i][-1].content!r} it answers {reply.text!r}, the folder's model {ours.text!r}")
        # Some servers count the end of turn among the tokens, others do not.
        differences += [abs(a - b) for a, b in zip(log_probs, reply.log_probs or (), strict=False)]
    if differences and (mean := sum(differences) / len(differences)) > MEAN:
        raise _other(
            served,
            folder,
            f"its tokens' log-probabilities are {mean:.3f} nats off on average, and {MEAN} is the most that another precision explains",
        )


def _other(served: Served, folder: Path, why: str) -> ModelError:
    return ModelError(
        f"{served.endpoint}: does not serve what is in {folder}, or samples otherwise: {why}. Start it anew as offmodel serve-command "
        "prints; where it differs on purpose, as in its precision, the study names it without 'folder' and with a 'revision'"
    )


@lru_cache(maxsize=4)
def _expected(folder: Path, identity: str) -> tuple[_Expected, ...]:
    """What the folder's model answers; ``identity`` changes when its files do."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompts = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    answers = sample_ids(model, tokenizer, prompts, SAMPLING)
    return tuple(
        _Expected(tokenizer.decode(answer, skip_special_tokens=True), _scored(model, prompt, answer)[0])
        for prompt, answer in zip(prompts, answers, strict=True)
    )


def _followed(folder: Path, i: int, reply: Reply) -> tuple[list[float], float]:
    """Log-probabilities of a server's answer by the folder's model, and how far below the likeliest token one of them lies at most."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    answer = _tokens(tokenizer, reply)
    return _scored(model, encode_prompt(tokenizer, PROMPTS[i]), answer) if answer else ([], float("inf"))


def _tokens(tokenizer: PreTrainedTokenizerBase, reply: Reply) -> list[int]:
    ids: list[int] = tokenizer(reply.text, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id] if reply.finished else ids


@torch.inference_mode()
def _scored(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> tuple[list[float], float]:
    ids = torch.tensor([[*prompt, *answer]])
    labels = torch.tensor([[-100] * len(prompt) + list(answer)])
    table = responses(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}).logits.float().log_softmax(-1)
    own = table.gather(1, torch.tensor(answer)[:, None]).squeeze(1)
    return own.tolist(), float((table.max(1).values - own).max())
