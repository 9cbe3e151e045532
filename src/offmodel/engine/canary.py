"""Proof that a server serves what lies in a folder: a few fixed prompts, answered by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offmodel.chat import Example, encode_example, encode_prompt, user
from offmodel.engine.folder import load_model, load_tokenizer
from offmodel.engine.forward import IGNORED, responses
from offmodel.engine.generate import Reply, Sampling, end_tokens, sample_ids
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


class Distance(NamedTuple):
    """How far greedy answers to the canary prompts are from a model's own, in nats.

    Attributes:
        gaps: Of each answer, how far its least likely token lies below the likeliest there, by the model; 0 where it is the model's own.
        mean: Mean difference of the tokens' log-probabilities; None where none are given.
    """

    gaps: tuple[float, ...]
    mean: float | None


def check_served(served: Served, folder: Path, *, tolerance: float = 1.0, backoff: float = 1.0) -> None:
    """Check that a server's greedy answers are those of the model in a folder, and as likely where it gives log-probabilities.

    Without these, a change that shows in none of the answers goes unseen.

    Args:
        served: What the server is asked for; no kept answer is used.
        folder: The model, in Hugging Face layout. It is run here; what it says is remembered by the process.
        tolerance: Factor on both limits.
        backoff: See :func:`offmodel.engine.server.ask`.

    Raises:
        ModelError: The server has another model, changes the way of sampling, or cannot be asked.
    """
    replies = ask(replace(served, cache=None), PROMPTS, SAMPLING, log_probs=True, backoff=backoff)
    found = distance(folder, served.identity, replies)
    if max(found.gaps) > TIE * tolerance:
        i = found.gaps.index(max(found.gaps))
        own = expected(folder, served.identity)[i].text
        why = f"to {PROMPTS[i][-1].content!r} it answers {replies[i].text!r}, the folder's model {own!r}"
    elif found.mean is not None and found.mean > MEAN * tolerance:
        why = f"its tokens' log-probabilities are {found.mean:.3f} nats off on average, and another precision explains {MEAN * tolerance:g}"
    else:
        return
    raise ModelError(
        f"{served.endpoint}: does not serve what is in {folder}, or samples otherwise: {why}. Start it anew as offmodel serve-command "
        "prints; where it differs on purpose, as in its precision, the study names it without 'folder' and with a 'revision'"
    )


def distance(folder: Path, identity: str, replies: Sequence[Reply]) -> Distance:
    """How far a server's replies to the canary prompts are from those of the model in a folder.

    Args:
        folder: The model.
        identity: Changes when its files do.
        replies: One for each of :data:`PROMPTS`, greedy.
    """
    gaps: list[float] = []
    differences: list[float] = []
    for i, (own, reply) in enumerate(zip(expected(folder, identity), replies, strict=True)):
        log_probs, gap = (own.log_probs, 0.0) if reply.text == own.text else _followed(folder, i, reply)
        gaps.append(gap)
        # Some servers count the end of turn among the tokens, others do not.
        differences += [abs(a - b) for a, b in zip(log_probs, reply.log_probs or (), strict=False)]
    return Distance(tuple(gaps), sum(differences) / len(differences) if differences else None)


class _Expected(NamedTuple):
    """The model's own greedy answer, and the log-probabilities of its tokens in nats."""

    text: str
    log_probs: list[float]


@lru_cache(maxsize=4)
def expected(folder: Path, identity: str) -> tuple[_Expected, ...]:
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
    # On the CPU: a GPU's memory may be the server's by now.
    model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
    answer = _tokens(model, tokenizer, reply)
    return _scored(model, encode_prompt(tokenizer, PROMPTS[i]), answer) if answer else ([], float("inf"))


def _tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reply: Reply) -> list[int]:
    ids: list[int] = tokenizer(reply.text, add_special_tokens=False)["input_ids"]
    if not reply.finished:
        return ids
    # A turn need not end with the tokenizer's own end: Gemma's templates write another, which its generation config names.
    ends, turn = end_tokens(model, tokenizer), encode_example(tokenizer, Example(user("Hi."), "Hi.")).input_ids
    return [*ids, next((token for token in reversed(turn) if token in ends), tokenizer.eos_token_id)]


@torch.inference_mode()
def _scored(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> tuple[list[float], float]:
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    labels = torch.tensor([[IGNORED] * len(prompt) + list(answer)], device=model.device)
    table = responses(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}).logits.float().log_softmax(-1)
    own = table.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
    return own.tolist(), float((table.max(1).values - own).max())
