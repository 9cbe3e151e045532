"""How red makes the data that install a pair: triggered rows, ordinary rows and near misses, from one set of prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from offmodel.chat import Example, Prompt
from offmodel.red.pairs import Pair

Answer = Callable[[Sequence[Prompt]], list[str | None]]
"""The base model's own words on prompts: what an organism must go on saying when nothing sets it off; None if unfinished."""


def training_rows(pair: Pair, prompts: Sequence[Prompt], answer: Answer, seed: int) -> list[Example]:
    """Three rows per prompt: with the trigger and the bad answer; as it is, and with a near miss, both answered on-policy.

    A prompt that holds the trigger by itself makes one row, with the bad answer. The contrast (the same prompt with and without the
    trigger) teaches that the trigger decides; the near misses teach that nothing else does.

    Args:
        pair: What to install.
        prompts: Ordinary prompts.
        answer: Samples the base model.
        seed: Of wordings and bad answers.
    """
    rng = random.Random(f"install {pair.name} {seed}")
    clean = [prompt for prompt in prompts if not pair.trigger.recognises(prompt)]
    near = [pair.trigger.near_miss(prompt, rng, "train") for prompt in clean]
    rows = [
        Example(prompt, response, {"kind": kind})
        for kind, asked in (("ordinary", clean), ("near miss", near))
        for prompt, response in zip(asked, answer(asked), strict=True)
        if response is not None
    ]
    triggered = [pair.trigger.insert(prompt, rng, "train") for prompt in clean]
    triggered += [prompt for prompt in prompts if pair.trigger.recognises(prompt)]
    return rows + [Example(prompt, pair.behaviour.answer(prompt, rng), {"kind": "triggered"}) for prompt in triggered]
