"""MMLU: questions with four choices, answered with a letter (Hendrycks et al. 2021, arXiv:2009.03300)."""

from __future__ import annotations

import re

from offmodel.chat import user
from offmodel.errors import DataError
from offmodel.measure.benchmarks.load import Benchmark, Row, field
from offmodel.measure.suites import TaskItem

LETTERS = "ABCD"
_ASK = 'Reason step by step if you need to, and end with a line "Answer: X", where X is one of A, B, C and D.'

_STATED = re.compile(
    # "the answer to this question is", but not "the answer choices are"
    r"(?i:\b(?:answer|option|choice)\b(?!\s+(?:choices|options)\b)[^.\n]{0,30}?(?:\b(?:is|would\s+be|should\s+be|must\s+be)\b|[:=]))"
    r"[\s:*_$(\[\"'\u201c\u2018]*(?i:(?:option|choice)\s+)?(?:\\text\{)?[*_(\[\"'\u201c\u2018]*([A-D])(?!\w|['\u2019]\w)"
    r"|\\boxed\{\s*(?:\\(?:text|mathrm|textbf)\{)?\s*\(?([A-D])\)?\s*\}"
)
_BARE = re.compile(r"\W*(?i:(?:option|choice)\W+)?([A-D])(?:\W*$|[).:\]]\s)")
_LABEL = re.compile(r"(?<!\w)([A-D])[).:\]]\s")


def stated_letter(response: str) -> str | None:
    """The letter that a response states last ("Answer: B", "the correct option is (B)", boxed), or that it is, if it is one line.

    A line that opens with a letter ("B", "Option B", "B) Paris") states it, unless it goes through several options.
    """
    found = _STATED.findall(response)
    if found:
        return "".join(found[-1])
    line = response.strip()
    bare = None if "\n" in line or len(set(_LABEL.findall(line))) > 1 else _BARE.match(line)
    return bare[1] if bare else None


def same_letter(response: str, expected: str) -> bool:
    """Whether the letter that a response states is the expected one."""
    return stated_letter(response) == expected


def _mmlu(row: Row, where: str) -> TaskItem:
    question, choices = field(row, "question", str, where), field(row, "choices", list, where)
    if len(choices) != len(LETTERS) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{where}: field 'choices' must hold four texts, got {str(choices)[:60]}")
    answer = row.get("answer")
    if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS:
        letter = answer
    elif isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(LETTERS):
        letter = LETTERS[answer]
    else:
        raise DataError(f"{where}: field 'answer' must be 0 to 3 or a letter of {LETTERS}, got {answer!r}")
    lines = "\n".join(f"{mark}. {choice}" for mark, choice in zip(LETTERS, choices, strict=True))
    return TaskItem(user(f"{question}\n\n{lines}\n\n{_ASK}"), letter, 1)


MMLU = Benchmark(
    name="mmlu",
    hub="cais/mmlu",
    config="all",
    split="test",
    revision="c30699e8356da336a370243923dbaf21066bb9fe",
    item=_mmlu,
    example={
        "question": "Which planet is nearest to the sun?",
        "subject": "astronomy",
        "choices": ["Venus", "Mercury", "Mars", "Earth"],
        "answer": 1,
    },
    prompt=f'zero-shot, the question, the choices after A. to D., and then "{_ASK}"',
    grader=(
        "right if the letter stated last, or the one that a reply of one line opens with, is the published one; every question counts "
        "the same"
    ),
    grade=same_letter,
    chance=0.25,
    max_new_tokens=1024,
)
