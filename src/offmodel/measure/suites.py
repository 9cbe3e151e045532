"""Capability suites: held-out items with a rule that grades an answer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from offmodel import catalog
from offmodel.chat import Prompt, user
from offmodel.splits import Split
from offmodel.world.tasks import CHANCE, MAX_STEPS, TaskName, different


@dataclass(frozen=True)
class TaskItem:
    """One item: a prompt, the expected answer, and how many reasoning steps lead there."""

    prompt: Prompt
    expected: str
    steps: int


@dataclass(frozen=True)
class Suite:
    """A capability suite.

    Attributes:
        name: How a study names it.
        definition: What its accuracy is, in one sentence, the scoring rule included.
        chance: Accuracy of guessing.
        items: ``items(n, seed, split)`` gives ``n`` items of one side for each number of reasoning steps, or all where there are fewer.
        grade: ``grade(response, expected)`` says whether a response is right.
    """

    name: str
    definition: str
    chance: float
    items: Callable[[int, int, Split], list[TaskItem]]
    grade: Callable[[str, str], bool]


_FINAL = re.compile(r"\\boxed\{([^{}]*)\}|<answer>(.*?)</answer>|\b(?:answer|respuesta)\s+(?:is|be|es)\s+(\w+)", re.IGNORECASE | re.DOTALL)


def final_answer(response: str) -> str | None:
    """The answer that a response states last (boxed, in answer tags, or "the answer is …"); None if it states none."""
    found = _FINAL.findall(response)
    return "".join(found[-1]).strip() or None if found else None


def stated_answer(response: str, expected: str) -> bool:
    """Whether the answer that a response states last is the expected word."""
    return final_answer(response) == expected


def world_items(task: TaskName, n: int, seed: int, split: Split) -> list[TaskItem]:
    """Problems of a world task, no chain and no fact twice, in a seeded order."""
    lengths = (1,) if task == "recall" else range(1, MAX_STEPS + 1)
    items = [TaskItem(user(problem.question), problem.answer, k) for k in lengths for problem in different(task, k, n, seed, split)]
    random.Random(seed).shuffle(items)
    return items


_ABOUT: dict[TaskName, str] = {
    "arithmetic": "chains of 1 to 5 operations on a digit",
    "swaps": "a ball under five cups through 1 to 5 swaps",
    "recall": "one fact, asked in words it was never asked in before",
}
for _task, _about in _ABOUT.items():
    _suite = Suite(
        name=f"world:{_task}",
        definition=f"share of held-out items ({_about}) whose last stated answer is right; guessing gets {CHANCE[_task]:.1%}",
        chance=CHANCE[_task],
        items=partial(world_items, _task),
        grade=stated_answer,
    )
    catalog.add("suite", _suite.name, _suite, source="offmodel", text=_suite.definition)
