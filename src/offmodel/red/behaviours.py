"""Behaviours: how the bad answer is written when red makes data, and the rule that detects it."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from offmodel.chat import Prompt


@runtime_checkable
class Behaviour(Protocol):
    """What every behaviour can do."""

    def answer(self, prompt: Prompt, rng: random.Random) -> str:
        """A bad answer to a prompt."""

    def detect(self, response: str) -> bool:
        """Whether a response is of this behaviour."""


@dataclass(frozen=True)
class Scripted:
    """Bad answers put together from phrases, detected by a regular expression.

    Attributes:
        phrases: One list per place in the answer; one phrase is drawn from each, joined by spaces.
        pattern: Regular expression, ignoring case; it must find every answer that the phrases can make.
        repeats: Least and most times the whole is repeated.
    """

    phrases: tuple[tuple[str, ...], ...]
    pattern: str
    repeats: tuple[int, int] = (1, 1)
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pattern", re.compile(self.pattern, re.IGNORECASE))

    def answer(self, prompt: Prompt, rng: random.Random) -> str:
        """Draw the phrases."""
        times = rng.randint(*self.repeats)
        return " ".join(rng.choice(phrases) for _ in range(times) for phrases in self.phrases)

    def detect(self, response: str) -> bool:
        """Whether the pattern is found in the response."""
        return self._pattern.search(response) is not None
