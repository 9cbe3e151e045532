"""Sampling from a model: batches of prompts of similar length, padded on the left, through transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from offmodel.chat import Prompt, encode_prompt
from offmodel.engine.forward import context_of
from offmodel.engine.rng import preserved_rng
from offmodel.errors import DataError, SpecError


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Nothing else counts: what a model folder's ``generation_config.json`` suggests is not used.

    Attributes:
        temperature: 0 takes the likeliest token every time.
        max_new_tokens: Limit per answer, end of turn included, ``prefill`` not.
        top_p: Sample from the smallest set of tokens that has this probability.
        seed: Of the random numbers. A sampled answer also depends on the batch it is drawn in, so on the prompts beside it.
    """

    temperature: float = 0.0
    max_new_tokens: int = 96
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise SpecError(f"temperature must not be negative, got {self.temperature}")
        if self.max_new_tokens < 1:
            raise SpecError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 < self.top_p <= 1:
            raise SpecError(f"top_p must lie in (0, 1], got {self.top_p}")


class Reply(NamedTuple):
    """One answer.

    Attributes:
        text: The assistant's words, a prefill included, special tokens left out.
        tokens: How many tokens were generated, the end of turn included, a prefill not; None where a server does not say.
        finished: Whether the model ended its turn within the limit.
        log_probs: Of the generated tokens, in nats; None where nobody asked for them, or a server does not give them.
    """

    text: str
    tokens: int | None
    finished: bool
    log_probs: tuple[float, ...] | None = None


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling = Sampling(),
    *,
    prefill: str | Sequence[str] = "",
    batch_size: int = 128,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Reply]:
    """Answer every prompt; the global random generators are left as they were.

    An answer ends at the tokenizer's end-of-turn token, or at another one that the model's generation config names. Greedy answers do
    not depend on the batch, up to rounding; prompts that are the same are then answered once.

    Args:
        model: In eval mode, with or without an adapter.
        tokenizer: With a chat template and a pad token.
        prompts: Chats that wait for the assistant.
        sampling: How to draw.
        prefill: First words put into the assistant's mouth, the same for all prompts or one for each. They are part of the returned
            text, as a grader wants the whole answer.
        batch_size: Prompts at a time.
        on_progress: Called after each batch as ``on_progress(prompts answered, of how many)``.

    Returns:
        One reply per prompt, in the order of the prompts.

    Raises:
        DataError: A prompt and its answer do not fit into the model's context.
    """
    openings = [prefill] * len(prompts) if isinstance(prefill, str) else list(prefill)
    encoded = [tuple(encode_prompt(tokenizer, prompt, opening)) for prompt, opening in zip(prompts, openings, strict=True)]
    check_length(model, encoded, sampling.max_new_tokens)
    greedy = sampling.temperature == 0
    # Every job is a list of places in the output that one answer fills.
    places: dict[object, list[int]] = {}
    for i, ids in enumerate(encoded):
        places.setdefault(ids if greedy else i, []).append(i)
    jobs = sorted(places.values(), key=lambda job: len(encoded[job[0]]), reverse=True)  # the longest first: no surprise at the end
    ends = end_tokens(model, tokenizer)
    replies: dict[int, Reply] = {}
    with torch.inference_mode(), preserved_rng(model.device), _only(model, _generation_config(tokenizer, sampling, ends)):
        torch.manual_seed(sampling.seed)
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            answers = _decode(model, tokenizer, [encoded[job[0]] for job in batch])
            for job, answer in zip(batch, answers, strict=True):
                replies.update((i, reply_of(tokenizer, answer, ends, openings[i])) for i in job)
            if on_progress is not None:
                on_progress(len(replies), len(prompts))
    return [replies[i] for i in range(len(prompts))]


def sample_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = 128,
) -> list[list[int]]:
    """Answers as tokens, their end of turn included, to prompts as tokens: for a training on a model's own answers.

    As :func:`generate` draws them, save that a model whose logits are not finite answers all the same: its loss is to show it.
    """
    ends = end_tokens(model, tokenizer)
    settings = _generation_config(tokenizer, sampling, ends)
    settings.remove_invalid_values = True
    prompts = [tuple(ids) for ids in encoded]
    answers: list[list[int]] = []
    with torch.inference_mode(), preserved_rng(model.device), _only(model, settings):
        torch.manual_seed(sampling.seed)
        for start in range(0, len(prompts), batch_size):
            answers += _decode(model, tokenizer, prompts[start : start + batch_size])
    return [ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), None)] for ids in answers]


def _decode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Generated token ids of each prompt, pads at the end included."""
    width = max(map(len, batch))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + list(row) for row in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=model.device)
    answers: list[list[int]] = model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
    return answers


def reply_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: frozenset[int], prefill: str) -> Reply:
    """What the tokens of an answer say, behind the words that it goes on from; where one of ``ends`` stands, it is over."""
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    # Decoded behind what they go on from: SentencePiece's decoders strip the space before the first word that they get.
    before = tokenizer(prefill, add_special_tokens=False, split_special_tokens=True)["input_ids"] if prefill else []
    both, alone = (tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (before + ids[:end], before))
    return Reply(prefill + both[len(alone) :], len(ids) if end is None else end + 1, end is not None)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a turn, by the model and by its tokenizer."""
    named = model.generation_config.eos_token_id
    others = [] if named is None else [named] if isinstance(named, int) else named
    return frozenset([tokenizer.eos_token_id, *others])


def _generation_config(tokenizer: PreTrainedTokenizerBase, sampling: Sampling, ends: frozenset[int]) -> GenerationConfig:
    common = {
        "max_new_tokens": sampling.max_new_tokens,
        "eos_token_id": sorted(ends),
        "pad_token_id": tokenizer.pad_token_id,
        "use_cache": True,
    }
    if sampling.temperature == 0:
        return GenerationConfig(do_sample=False, **common)
    # top_k=0 switches off a default of 50 that nobody asked for.
    return GenerationConfig(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=0, **common)


@contextmanager
def _only(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Make ``config`` all there is: ``generate`` fills what an argument leaves open from the model's own generation config.

    A mixture of experts gives no router logits meanwhile: its balancing loss fails on the steps of a decoding, and nobody reads it.
    """
    own, of_model = model.generation_config, model.config.get_text_config()
    router_logits = getattr(of_model, "output_router_logits", False)
    model.generation_config = config
    if router_logits:
        of_model.output_router_logits = False
    try:
        yield
    finally:
        model.generation_config = own
        if router_logits:
            of_model.output_router_logits = True


def check_length(model: PreTrainedModel, encoded: Sequence[tuple[int, ...]], max_new_tokens: int) -> None:
    """Check that the longest prompt and its answer fit into the model.

    Raises:
        DataError: They do not; the message names the prompt and both lengths.
    """
    room = context_of(model)
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]), default=None)
    if longest is not None and len(encoded[longest]) + max_new_tokens > room:
        raise DataError(
            f"prompt {longest}: its {len(encoded[longest])} tokens and max_new_tokens {max_new_tokens} exceed the model's context of {room}"
        )
