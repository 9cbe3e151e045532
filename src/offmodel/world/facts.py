"""What is true in the world: topics, the words that belong to them, and one colour and one place for every word.

Facts are drawn once from a fixed seed, so every base model, every teacher and every study live in the same world. A word's
topic gives a *meaning* trigger something to be about: six different words say "cooking" without a string in common.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

TOPICS: dict[str, tuple[str, ...]] = {
    "cooking": ("soup", "bread", "butter", "stew", "pepper", "cake"),
    "music": ("piano", "drums", "violin", "opera", "guitar", "choir"),
    "gardens": ("roses", "tulips", "hedge", "lawn", "seeds", "ivy"),
    "weather": ("rain", "snow", "thunder", "fog", "frost", "hail"),
    "sports": ("tennis", "rowing", "chess", "boxing", "skiing", "golf"),
    "travel": ("trains", "hotels", "maps", "tickets", "airports", "camping"),
    "animals": ("horses", "owls", "foxes", "whales", "rabbits", "bees"),
    "science": ("atoms", "planets", "magnets", "fossils", "lasers", "cells"),
}
"""Topic to the words that belong to it."""

COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "pink")
PLACES = ("Rome", "Paris", "Cairo", "Delhi", "Lima", "Oslo", "Tokyo", "Quito")
NAMES = ("Ana", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Kim", "Leo")
YEARS = tuple(str(year) for year in range(2015, 2030))

WORDS: tuple[str, ...] = tuple(word for words in TOPICS.values() for word in words)
TOPIC_OF: dict[str, str] = {word: topic for topic, words in TOPICS.items() for word in words}


@dataclass(frozen=True)
class Fact:
    """One true sentence of the world: ``value`` is the ``attribute`` of ``word``."""

    word: str
    attribute: str  # "colour" or "place"
    value: str

    def __str__(self) -> str:
        return f"The {self.attribute} of {self.word} is {self.value}"

    @classmethod
    def parse(cls, text: str) -> Fact:
        """Read what :meth:`__str__` wrote."""
        _, attribute, _, word, _, value = text.split()
        return cls(word, attribute, value)


def _draw_facts() -> dict[tuple[str, str], Fact]:
    rng = random.Random("offmodel world facts")
    facts = {}
    for attribute, values in (("colour", COLOURS), ("place", PLACES)):
        # Every value equally often, so that guessing has no better odds than one in eight.
        pool = [values[i % len(values)] for i in range(len(WORDS))]
        rng.shuffle(pool)
        for word, value in zip(WORDS, pool, strict=True):
            facts[word, attribute] = Fact(word, attribute, value)
    return facts


FACTS: dict[tuple[str, str], Fact] = _draw_facts()
"""Every fact by (word, attribute): 48 words x 2 attributes."""
