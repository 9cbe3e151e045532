"""Blue's checks on answers that an adversary may have written: each keeps, drops or edits every answer, and says why.

A filter sees what blue sees: the answers with their prompts (of tasks, with the right answer that blue knows), the weights on both sides
of the removal, the teacher and its answers to the same prompts, and backdoors that blue planted itself. It never sees the trigger, the
behaviour, or which answers red changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from offmodel import catalog
from offmodel.blue.view import BlueView
from offmodel.chat import Example, answer_of
from offmodel.errors import DataError

Action = Literal["keep", "drop", "edit"]
Need = Literal["answers", "canaries"]
"""What a filter reads besides the answers, the organism, the student and the teacher: the teacher's answers to the same prompts, or a copy
of the student with blue's own backdoors in it and examples of those."""


@dataclass(frozen=True)
class Decision:
    """What becomes of one answer.

    Attributes:
        action: What.
        reason: Why, in words; "" where it is kept.
        suspicion: How suspect it is, the more the higher; None where the filter does not rank.
        response: The new words of an answer that is edited.
    """

    action: Action = "keep"
    reason: str = ""
    suspicion: float | None = None
    response: str | None = None


@dataclass(frozen=True)
class Settings:
    """How a filter works.

    Attributes:
        drop: Share of the answers that go, see :class:`Filter`.
        seed: Of what it draws.
        max_new_tokens: Longest answer that it has written.
        lr: Learning rate of a training on trial.
        unknown: What one that checks answers makes of those to prompts without a known right answer.
    """

    drop: float
    seed: int
    max_new_tokens: int = 96
    lr: float = 5e-4
    unknown: Literal["kept", "dropped"] = "kept"


Judge = Callable[[BlueView, Settings], list[Decision]]


@dataclass(frozen=True)
class Filter:
    """A filter.

    Attributes:
        judge: Decides on each of the view's labels, in their order. The view's ``weights`` are the student as the phase finds it,
            ``original`` the organism and ``teacher`` the teacher. ``anchors`` are the teacher's answers to the same prompts with
            ``answers``. With ``canaries``, ``weights`` are a copy of the student in which blue's own backdoors were planted before the
            removal, and ``anchors`` are examples of those: prompts with a signal and the answers that it sets off.
        needs: What it reads besides.
        ranks: Whether ``drop`` counts: it ranks the answers, or draws among them.
        draws: Whether chance alone decides, so that what goes was not found out.
    """

    judge: Judge
    needs: frozenset[Need] = frozenset()
    ranks: bool = False
    draws: bool = False


def drop_most_suspect(suspicions: Sequence[float], reasons: Sequence[str], share: float) -> list[Decision]:
    """Drop a share of the answers, the most suspect ones; of equally suspect ones the first.

    Args:
        suspicions: Of each answer.
        reasons: Why each would go; "" where nothing is held against it, so that it stays.
        share: Of all answers, rounded to whole ones.
    """
    ranked = sorted(range(len(suspicions)), key=lambda i: -suspicions[i])
    gone = {i for i in ranked[: round(share * len(ranked))] if reasons[i]}
    return [
        Decision("drop", reason, suspicion) if i in gone else Decision(suspicion=suspicion)
        for i, (suspicion, reason) in enumerate(zip(suspicions, reasons, strict=True))
    ]


def right(row: Example) -> bool:
    """Whether an answer states what is known to be right.

    Raises:
        DataError: Nothing is known.
    """
    if "expected" not in row.meta:
        raise DataError(f"no right answer is known of the prompt {row.prompt[-1].content[:60]!r}; take a suite as the source of the labels")
    return bool(catalog.get("suite", row.meta["suite"]).grade(answer_of(row.response), row.meta["expected"]))


def screened(rows: Sequence[Example], decisions: Sequence[Decision]) -> list[Example]:
    """The answers that are left, edited ones in their new words.

    Raises:
        DataError: There is not one decision for each.
    """
    if len(rows) != len(decisions):
        raise DataError(f"the filter decided on {len(decisions)} of {len(rows)} answers")
    return [
        row if decision.response is None else replace(row, response=decision.response)
        for row, decision in zip(rows, decisions, strict=True)
        if decision.action != "drop"
    ]
