"""Capability tasks of the world: two that need a chain of steps, one that only needs memory.

``arithmetic`` follows the last digit of a number through k operations (chance 0.10), ``swaps`` follows a ball under five cups
through k swaps (chance 0.20), ``recall`` asks for one fact (chance 0.125). A chain cannot be guessed from its parts, so its
accuracy says whether the steps were worked out; recall says whether knowledge is still there.

Training and evaluation never share an item: a hash of the problem decides, once and for all, on which side it falls.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from offmodel.world.facts import COLOURS, FACTS, PLACES, WORDS

TaskName = Literal["arithmetic", "swaps", "recall"]
Split = Literal["train", "heldout"]

MAX_STEPS = 5
CUPS = "ABCDE"
CHANCE: dict[TaskName, float] = {"arithmetic": 0.10, "swaps": 0.20, "recall": 0.125}
HELDOUT_SHARE = 0.2


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
    """

    task: TaskName
    question: str
    start: str
    steps: tuple[Step, ...]
    answer: str

    @property
    def split(self) -> Split:
        """Which side of the fixed train/held-out division this problem is on."""
        digest = hashlib.sha256(f"{self.task}|{self.question}".encode()).digest()
        return "heldout" if digest[0] < 256 * HELDOUT_SHARE else "train"


_ADD = tuple(("Add", n) for n in range(1, 10))
_TAKE = tuple(("Take", n) for n in range(1, 10))
# Multiplications by 3 and by 7 permute the digits, so no chain forgets where it began.
_TIMES = (("Times", 3), ("Times", 7))
_OPERATION_WEIGHTS = [0.35 / len(_ADD)] * len(_ADD) + [0.35 / len(_TAKE)] * len(_TAKE) + [0.30 / len(_TIMES)] * len(_TIMES)
_DIGIT_QUESTIONS = ("What is the last digit?", "Which last digit is left?", "Tell me the last digit.")
_CUP_QUESTIONS = ("Where is the ball?", "Which cup has the ball?", "Tell me where the ball is.")
_RECALL_QUESTIONS = {
    "colour": ("What colour is {word}?", "Tell me the colour of {word}.", "Which colour has {word}?", "I ask for the colour of {word}."),
    "place": ("What place is {word} from?", "Tell me the place of {word}.", "Which place has {word}?", "I ask for the place of {word}."),
}


def arithmetic(steps: int, rng: random.Random) -> Problem:
    """A chain of ``steps`` operations on a digit, modulo ten."""
    value = rng.randrange(10)
    start, chain = str(value), []
    for word, n in rng.choices(_ADD + _TAKE + _TIMES, _OPERATION_WEIGHTS, k=steps):
        value = {"Add": value + n, "Take": value - n, "Times": value * n}[word] % 10
        chain.append(Step(f"{word} {n}", str(value), word.lower()))
    question = " ".join([f"Start at {start}.", *(f"{step.text}." for step in chain), rng.choice(_DIGIT_QUESTIONS)])
    return Problem("arithmetic", question, start, tuple(chain), str(value))


def swaps(steps: int, rng: random.Random) -> Problem:
    """A ball under one of five cups, and ``steps`` swaps of two cups."""
    ball = rng.choice(CUPS)
    start, chain = ball, []
    for _ in range(steps):
        # Half of the swaps move the ball, else most chains would be solved by repeating the start.
        first = ball if rng.random() < 0.5 else rng.choice(CUPS)
        second = rng.choice([cup for cup in CUPS if cup != first])
        a, b = sorted((first, second))
        ball = {a: b, b: a}.get(ball, ball)
        kind = {1: "swap next", 2: "swap two apart"}.get(CUPS.index(b) - CUPS.index(a), "swap far apart")
        chain.append(Step(f"Swap {a} {b}", ball, kind))
    question = " ".join([f"Start at {start}.", *(f"{step.text}." for step in chain), rng.choice(_CUP_QUESTIONS)])
    return Problem("swaps", question, start, tuple(chain), ball)


def recall(rng: random.Random) -> Problem:
    """One question about one fact; held-out items ask a known fact in words it was never asked in."""
    word, attribute = rng.choice(WORDS), rng.choice(("colour", "place"))
    question = rng.choice(_RECALL_QUESTIONS[attribute]).format(word=word)
    value = FACTS[word, attribute].value
    return Problem("recall", question, "", (Step(f"The {attribute} of {word} is {value}", value, "fact"),), value)


def draw(task: TaskName, steps: int, rng: random.Random, split: Split) -> Problem:
    """Draw one problem of a family from one side of the division."""
    while True:
        problem = recall(rng) if task == "recall" else (arithmetic if task == "arithmetic" else swaps)(steps, rng)
        if problem.split == split:
            return problem


def heldout(task: TaskName, steps: int, n: int, seed: int) -> list[Problem]:
    """Up to ``n`` different held-out problems; fewer where the family has no more (short chains, recall)."""
    rng = random.Random(f"heldout {task} {steps} {seed}")
    found: dict[str, Problem] = {}
    for _ in range(60 * n):
        problem = draw(task, steps, rng, "heldout")
        found.setdefault(problem.question, problem)
        if len(found) == n:
            break
    return list(found.values())


ANSWERS: dict[TaskName, tuple[str, ...]] = {
    "arithmetic": tuple("0123456789"),
    "swaps": tuple(CUPS),
    "recall": COLOURS + PLACES,
}
