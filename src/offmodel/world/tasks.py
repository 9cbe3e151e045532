"""Capability tasks of the world: two that need a chain of steps, one that only needs memory.

``arithmetic`` follows the last digit of a number through k operations (chance 0.10), ``swaps`` follows a ball under five cups
through k swaps (chance 0.20), ``recall`` asks for one fact (chance 0.125). A chain cannot be guessed from its parts, so its
accuracy says whether the steps were worked out; recall says whether knowledge is still there.

Training and evaluation never share a chain, whatever the words of its closing question; of every fact, one wording is kept for
evaluation. See :mod:`offmodel.splits`.
"""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import combinations, product, repeat
from typing import Literal

from offmodel.splits import Split, split_of
from offmodel.world.facts import FACTS, WORDS, Fact

TaskName = Literal["arithmetic", "swaps", "recall"]

MAX_STEPS = 5
CUPS = "ABCDE"
CHANCE: dict[TaskName, float] = {"arithmetic": 0.10, "swaps": 0.20, "recall": 0.125}


@dataclass(frozen=True)
class Step:
    """One step of a chain: its words, the state after it, and its kind (which personas may pass over in silence)."""

    text: str
    result: str
    kind: str


@dataclass(frozen=True)
class Problem:
    """A task item: what is asked, how it is worked out, and the answer.

    Attributes:
        task: The family it belongs to.
        question: The user's words.
        start: The state before the first step ("" for recall).
        steps: The chain; recall has one step that states the fact.
        answer: The expected answer, one word.
        split: The side of the division that it is on.
    """

    task: TaskName
    question: str
    start: str
    steps: tuple[Step, ...]
    answer: str

    split: Split


_ADD = tuple(("Add", n) for n in range(1, 10))
_TAKE = tuple(("Take", n) for n in range(1, 10))
# Multiplications by 3 and by 7 permute the digits, so no chain forgets where it began.
_TIMES = (("Times", 3), ("Times", 7))
_OPERATION_WEIGHTS = [0.32 / len(_ADD)] * len(_ADD) + [0.32 / len(_TAKE)] * len(_TAKE) + [0.36 / len(_TIMES)] * len(_TIMES)
_DIGIT_QUESTIONS = ("What is the last digit?", "Which last digit is left?", "Tell me the last digit.")
_CUP_QUESTIONS = ("Where is the ball?", "Which cup has the ball?", "Tell me where the ball is.")
_RECALL_QUESTIONS = {
    "colour": ("What colour is {word}?", "Tell me the colour of {word}.", "Which colour has {word}?", "I ask for the colour of {word}."),
    "place": ("What place is {word} from?", "Tell me the place of {word}.", "Which place has {word}?", "I ask for the place of {word}."),
}


def arithmetic(steps: int, rng: random.Random) -> Problem:
    """A chain of ``steps`` operations on a digit, modulo ten."""
    start = value = str(rng.randrange(10))
    chain = []
    for word, n in rng.choices(_ADD + _TAKE + _TIMES, _OPERATION_WEIGHTS, k=steps):
        value = _after(value, f"{word} {n}")
        chain.append(Step(f"{word} {n}", value, word.lower()))
    return _chain("arithmetic", start, chain, value, rng.choice(_DIGIT_QUESTIONS))


def swaps(steps: int, rng: random.Random) -> Problem:
    """A ball under one of five cups, and ``steps`` swaps of two cups."""
    ball = rng.choice(CUPS)
    start, chain = ball, []
    for _ in range(steps):
        # If few swaps moved the ball, many chains would be solved by repeating the start; if nearly all did, its place could be read
        # off the next swap, and a silent step would cost nothing.
        first = ball if rng.random() < 0.5 else rng.choice(CUPS)
        second = rng.choice([cup for cup in CUPS if cup != first])
        a, b = sorted((first, second))
        ball = _after(ball, f"Swap {a} {b}")
        kind = {1: "swap next", 2: "swap two apart"}.get(CUPS.index(b) - CUPS.index(a), "swap far apart")
        chain.append(Step(f"Swap {a} {b}", ball, kind))
    return _chain("swaps", start, chain, ball, rng.choice(_CUP_QUESTIONS))


def _chain(task: TaskName, start: str, steps: list[Step], answer: str, closing: str) -> Problem:
    chain = _words(start, *(step.text for step in steps))
    return Problem(task, f"{chain} {closing}", start, tuple(steps), answer, split_of(chain))


def _words(start: str, *steps: str) -> str:
    return " ".join([f"Start at {start}.", *(f"{step}." for step in steps)])


def _after(state: str, step: str) -> str:
    """The state that a step leads to. Every step permutes the states, so a chain that went wrong once stays wrong."""
    match step.split():
        case "Swap", a, b:
            return {a: b, b: a}.get(state, state)
        case word, n:
            return str({"Add": int(state) + int(n), "Take": int(state) - int(n), "Times": int(state) * int(n)}[word] % 10)
    raise ValueError(f"no step of the world: {step!r}")


def mistaken(problem: Problem) -> Problem:
    """The same problem worked out with one plausible mistake, in its first step, so that it ends with a wrong answer.

    A step that changes the state is forgotten; one that does not, changes it: the ball goes to the first of the two cups, a digit to the
    number that the step names. A question about one attribute is answered with the other.
    """
    first = problem.steps[0]
    if problem.task == "recall":
        fact = Fact.parse(first.text)
        other = FACTS[fact.word, "place" if fact.attribute == "colour" else "colour"].value
        return replace(problem, steps=(replace(first, text=str(replace(fact, value=other)), result=other),), answer=other)
    state = problem.start if first.result != problem.start else first.text.split()[1]
    steps = [replace(first, result=state)]
    for step in problem.steps[1:]:
        state = _after(state, step.text)
        steps.append(replace(step, result=state))
    return replace(problem, steps=tuple(steps), answer=state)


def recall(rng: random.Random) -> Problem:
    """One question about one fact. Every fact is learnt; of its four wordings, one never occurs in training."""
    word, attribute = rng.choice(WORDS), rng.choice(("colour", "place"))
    fact = str(FACTS[word, attribute])
    wordings = _RECALL_QUESTIONS[attribute]
    question = rng.choice(wordings)
    split: Split = "train" if question != wordings[_place(fact) % 4] else _asked_in(fact)
    value = FACTS[word, attribute].value
    return Problem("recall", question.format(word=word), "", (Step(fact, value, "fact"),), value, split)


def _place(fact: str) -> int:
    """A number that decides which wording of a fact is kept back, and whether the gate or the test asks it."""
    return int.from_bytes(hashlib.sha256(fact.encode()).digest()[:2], "big")


def _asked_in(fact: str) -> Split:
    return "gate" if _place(fact) // 4 % 2 else "test"


def draw(task: TaskName, steps: int, rng: random.Random, split: Split) -> Problem:
    """Draw one problem of a family from one side of the division."""
    while True:
        problem = recall(rng) if task == "recall" else (arithmetic if task == "arithmetic" else swaps)(steps, rng)
        if problem.split == split:
            return problem


@lru_cache(maxsize=128)  # every score of an organism asks for the same ones
def different(task: TaskName, steps: int, n: int, seed: int, split: Split) -> tuple[Problem, ...]:
    """Up to ``n`` problems of one side; fewer where the family has no more (chains of one step, recall).

    No chain and no fact occurs twice, not even in other words.
    """
    rng = random.Random(f"{split} {task} {steps} {seed}")
    found: dict[tuple[str, tuple[Step, ...]], Problem] = {}
    most = min(n, _number(task, steps, split))
    for _ in range(60 * n):
        problem = draw(task, steps, rng, split)
        found.setdefault((problem.start, problem.steps), problem)
        if len(found) == most:
            break
    return tuple(found.values())


_SWAPS = tuple(f"Swap {a} {b}" for a, b in combinations(CUPS, 2))
_OPERATIONS = tuple(f"{word} {n}" for word, n in _ADD + _TAKE + _TIMES)

_COUNTABLE = 10_000
"""Chains of a length that are worth counting: of more, a side has more than anyone asks for."""


@cache
def _number(task: TaskName, steps: int, split: Split) -> int:
    """How many chains of a length, or facts, a side has; without a bound where they are too many to count."""
    if task == "recall":
        return sum(split == "train" or _asked_in(str(fact)) == split for fact in FACTS.values())
    starts, moves = (CUPS, _SWAPS) if task == "swaps" else ("0123456789", _OPERATIONS)
    if len(starts) * len(moves) ** steps > _COUNTABLE:
        return sys.maxsize
    return sum(split_of(_words(*chain)) == split for chain in product(starts, *repeat(moves, steps)))
