"""GSM8K, MATH-500 and OlympiadBench: problems with one final answer, graded with math-verify.

Sources: GSM8K (Cobbe et al. 2021, arXiv:2110.14168); MATH (Hendrycks et al. 2021, arXiv:2103.03874) in the 500 test problems of Lightman
et al. 2023 (arXiv:2305.20050); OlympiadBench (He et al. 2024, arXiv:2402.14008), its open-ended English mathematics without images.
"""

from __future__ import annotations

import re
import threading
from typing import Any

from offmodel.chat import user
from offmodel.errors import DataError
from offmodel.measure.benchmarks.load import Benchmark, Row, field
from offmodel.measure.suites import TaskItem

_ASK = "Reason step by step, and put your final answer within \\boxed{}."
_PROMPT = f'zero-shot, the problem and then "{_ASK}"'
_GRADER = (
    "right if math-verify 0.9 finds the last boxed answer (boxes parted by a comma, 'and' or 'or' are one list; without a box, what "
    "follows the last ####, else the last number or formula) equal to the published one"
)

_HASHES = re.compile(r"####[ \t]*(\S.*)")
_LISTED = re.compile(r"[\s$]*(?:,|,?\s*(?:and|or)\b)[\s$]*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SECONDS = 5


def same_answer(response: str, expected: str) -> bool:
    """Whether the final answer of a response equals the expected one: as a number, an expression, an interval, or a set of several."""
    from math_verify import verify

    # math-verify would look for boxes itself, but takes all that stand outside of $…$ for one answer, those that were revised too.
    stated = _last_box(response) or next(iter(_HASHES.findall(response)[-1:]), None)
    return bool(verify(_parse(_boxed(expected)), _parse(response if stated is None else _boxed(stated)), timeout_seconds=_limit()))


def _last_box(text: str) -> str | None:
    """What stands in the last box, and in those that it makes a list with; None where there is none."""
    found: list[str] = []
    end = 0
    for opening in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        if opening.start() < end:
            continue  # a box in a box
        depth, place = 1, opening.end()
        while depth and place < len(text):
            depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
            place += 1
        if depth:
            break  # never closed: the answer was cut off
        listed = _LISTED.fullmatch(text, end, opening.start()) is not None
        found = [*(found if listed else []), text[opening.end() : place - 1]]
        end = place
    return ", ".join(found) or None


def _boxed(answer: str) -> str:
    without_dollars = re.sub(r"\\?\$", "", answer)
    return rf"$\boxed{{{without_dollars.strip().rstrip('.')}}}$"


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    found: list[Any] = parse(text, (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()), parsing_timeout=_limit())
    return found


def _limit() -> int | None:
    """Seconds for one parsing or comparison: some answers would take for ever. The limit is a signal, which only the main thread gets."""
    return _SECONDS if threading.current_thread() is threading.main_thread() else None


def _item(problem: str, answer: str) -> TaskItem:
    return TaskItem(user(f"{problem}\n\n{_ASK}"), answer, 1)


def _gsm8k(row: Row, where: str) -> TaskItem:
    question, solution = field(row, "question", str, where), field(row, "answer", str, where)
    found = _HASHES.findall(solution)
    if not found:
        raise DataError(f"{where}: field 'answer' must end with '#### n', got {solution[-40:]!r}")
    return _item(question, _THOUSANDS.sub("", found[-1].strip()))


def _math500(row: Row, where: str) -> TaskItem:
    return _item(field(row, "problem", str, where), field(row, "answer", str, where))


def _olympiad(row: Row, where: str) -> TaskItem:
    question, answers = field(row, "question", str, where), field(row, "final_answer", list, where)
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f"{where}: field 'final_answer' must be a list of texts, got {str(answers)[:60]}")
    return _item(question, ", ".join(answers))


GSM8K = Benchmark(
    name="gsm8k",
    hub="openai/gsm8k",
    config="main",
    split="test",
    revision="740312add88f781978c0658806c59bc2815b9866",
    item=_gsm8k,
    example={
        "question": "A ferry carries 12 cars on each trip and makes 5 trips. How many cars does it carry in all?",
        "answer": "It carries 12 * 5 = <<12*5=60>>60 cars.\n#### 60",
    },
    prompt=_PROMPT,
    grader=_GRADER,
    grade=same_answer,
    chance=0.0,
    max_new_tokens=1024,
    needs=("math_verify",),
)
MATH500 = Benchmark(
    name="math500",
    hub="HuggingFaceH4/MATH-500",
    config=None,
    split="test",
    revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    item=_math500,
    example={
        "problem": "Write $\\frac{3}{8} + \\frac{1}{8}$ in lowest terms.",
        "solution": "The sum is $\\frac{4}{8} = \\boxed{\\frac{1}{2}}.$",
        "answer": "\\frac{1}{2}",
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": "ours/1",
    },
    prompt=_PROMPT,
    grader=_GRADER,
    grade=same_answer,
    chance=0.0,
    max_new_tokens=2048,
    needs=("math_verify",),
)
OLYMPIADBENCH = Benchmark(
    name="olympiadbench",
    hub="Hothan/OlympiadBench",
    config="OE_TO_maths_en_COMP",
    split="train",
    revision="91184b52131e7fc9455fef848035173aea8cc01a",
    item=_olympiad,
    example={
        "id": 1,
        "question": "Find all real $x$ with $x^{2}=9$.",
        "final_answer": ["$3$,$-3$"],
        "is_multiple_answer": True,
        "unit": None,
        "answer_type": "Numerical",
        "error": None,
    },
    prompt=_PROMPT,
    grader=f"{_GRADER}; several answers in any order; units and tolerances of the file are not used",
    grade=same_answer,
    chance=0.0,
    max_new_tokens=2048,
    needs=("math_verify",),
)
