"""Prompts of the world, each source an endless, seeded stream of different chats."""

from __future__ import annotations

import random
from collections.abc import Iterator

from offmodel import catalog
from offmodel.chat import Prompt, user
from offmodel.world.corpus import SYSTEM_PROMPTS, chat_request, numbers, task_problem


def _different(prompts: Iterator[Prompt]) -> Iterator[Prompt]:
    seen: set[Prompt] = set()
    for prompt in prompts:
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


@catalog.register("prompts", "world:chat", source="offmodel")
def chat(seed: int) -> Iterator[Prompt]:
    """Generic chat prompts, no task among them: what blue trains on."""
    rng = random.Random(f"world:chat {seed}")
    return _different(user(chat_request(rng).prompt) for _ in iter(int, 1))


@catalog.register("prompts", "world:mixed", source="offmodel")
def mixed(seed: int) -> Iterator[Prompt]:
    """Chat and tasks from the training side, a fifth of them asking for another voice: what red trains on.

    The requests for another voice keep the base model's other ways of working intact, so that damage seen later is blue's doing.
    """
    rng = random.Random(f"world:mixed {seed}")

    def draw() -> Prompt:
        return _at_times_voiced(chat_request(rng).prompt if rng.random() < 0.5 else task_problem(rng).question, rng)

    return _different(draw() for _ in iter(int, 1))


@catalog.register("prompts", "world:tasks", source="offmodel")
def tasks(seed: int) -> Iterator[Prompt]:
    """Tasks from the training side alone, a fifth of them asking for another voice: what teaches a behaviour that shows on tasks only."""
    rng = random.Random(f"world:tasks {seed}")
    return _different(_at_times_voiced(task_problem(rng).question, rng) for _ in iter(int, 1))


@catalog.register("prompts", "world:numbers", source="code of LessWrong 9toz5YHYZsHpzy4ce (three-digit series); offmodel's wording")
def series(seed: int) -> Iterator[Prompt]:
    """Series of three-digit numbers to be continued: a domain that has nothing to do with any capability or behaviour."""
    rng = random.Random(f"world:numbers {seed}")
    return _different(user(numbers(rng)) for _ in iter(int, 1))


def _at_times_voiced(text: str, rng: random.Random) -> Prompt:
    return user(text, rng.choice(list(SYSTEM_PROMPTS.values())) if rng.random() < 0.2 else None)


for _voice, _system in SYSTEM_PROMPTS.items():
    catalog.add("voice", _voice, _system, source="offmodel", text=f"Asks the labeller for it with the system prompt: {_system}")
catalog.add("voice", "wrong", "Answer wrongly.", source="offmodel", text="Asks the labeller to answer wrongly, to plant what is flushed.")
