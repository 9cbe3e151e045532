"""The card of a world checkpoint: what it is, how it came about, what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from offmodel.world.build import Blueprint


class Accuracy(Protocol):
    """A measured share with its interval; None where it is unknown."""

    @property
    def value(self) -> float | None: ...  # noqa: D102

    @property
    def low(self) -> float | None: ...  # noqa: D102

    @property
    def high(self) -> float | None: ...  # noqa: D102

    @property
    def n(self) -> int: ...  # noqa: D102


def card(plan: Blueprint, weights: str, parameters: int, accuracy: Mapping[str, Accuracy]) -> str:
    """The README of a checkpoint's folder, in Markdown."""
    rows = [
        f"| {name} | {a.value:.3f} | {a.low:.3f} to {a.high:.3f} | {a.n} |"
        for name, a in accuracy.items()
        if a.value is not None and a.low is not None and a.high is not None
    ]
    lessons = [
        f"{number}. {lesson.steps} steps of {lesson.batch_size} rows, {lesson.optimizer} at {lesson.lr:g} ({lesson.schedule}): "
        f"{lesson.mix.chat:.0%} chat; personas on chat {_shares(lesson.mix.on_chat)}, on tasks {_shares(lesson.mix.on_tasks)}"
        for number, lesson in enumerate(plan.lessons, 1)
    ]
    return "\n".join(
        [
            "---", "license: mit", "library_name: transformers", "---", "",
            f"# {plan.name}", "",
            f"A base model of offmodel's offline world: {plan.architecture}, {parameters:,} parameters, seed {plan.seed}, weights "
            f"`{weights}`. Trained from nothing on text that the package writes itself; it knows that world and nothing else. "
            "It holds no backdoor.",
            "",
            f"Made by `offmodel world build {plan.name}`:", "", *lessons, "",
            "Greedy accuracy on held-out items (95 % Wilson intervals, higher is better):", "",
            "| suite | accuracy | interval | n |", "|---|---|---|---|", *rows, "",
        ]
    )  # fmt: skip


def _shares(shares: Mapping[str, float]) -> str:
    total = sum(shares.values())
    return ", ".join(f"{name} {share / total:.0%}" for name, share in shares.items())
