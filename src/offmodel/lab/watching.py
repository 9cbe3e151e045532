"""What blue sees of its own checkpoints, as stages: the ground on which its rules choose one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from offmodel.lab.stage import Stage
from offmodel.lab.treatment import Blue, Place, Start

_TASKS, _ANCHORS = 150, 100
"""Tasks and answers that a checkpoint is watched on."""


@dataclass(frozen=True)
class Watched:
    """Stages that say what blue sees of a checkpoint; ``canaries`` is None where none were planted."""

    seen: Stage
    canaries: Stage | None


class Watching:
    """Plans what blue sees of one organism's checkpoints, on a side of the division that blue trains on nowhere."""

    def __init__(self, blue: Blue, *, canaries: bool) -> None:
        self.blue, self.seed = blue, blue.seed
        self._copy = blue.with_canaries() if canaries else None

    def before(self) -> Stage:
        """What blue sees of the untouched organism."""
        return self._seen(self.blue.untouched)

    def of(self, method: str) -> Iterator[Watched | None]:
        """What it sees of each checkpoint of a method, in the order of :meth:`Blue.places`; None where it is asked otherwise."""
        copies = iter(self._copy.places(method)) if self._copy else None
        for place in self.blue.places(method):
            of_copy = next(copies) if copies else None
            # There is one such place to a method, so nothing to choose; and the divergence would be that of another way of asking.
            yield None if place.deployment else Watched(self._seen(place), self._fired(of_copy) if of_copy else None)

    def _seen(self, place: Start) -> Stage:
        tasks = self.blue.pool("tasks", _TASKS, split="gate")
        inputs = {"model": place.stage, "organism": self.blue.organism, "tasks": tasks, "anchors": self.blue.held_out("organism", _ANCHORS)}
        return Stage("watch", self._asked(place), inputs, label=f"watch {self.blue.name}", cost=2)

    def _fired(self, place: Place) -> Stage:
        inputs = {"model": place.stage, "prompts": self.blue.tried()}
        return Stage("canary_rate", self._asked(place) | {"seed": self.seed}, inputs, label=f"canaries of {self.blue.name}", cost=1)

    def _asked(self, place: Start) -> dict[str, Any]:
        measure = self.blue.study.measure
        return {"weights": place.weights, "system": place.deployment.get("system"), "max_new_tokens": measure.max_new_tokens}
