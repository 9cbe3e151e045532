"""Run the stages that are missing, in worker processes that stay warm, the longest chain of work first."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from offmodel import catalog
from offmodel.engine.tracking import VARIABLE
from offmodel.errors import SpecError
from offmodel.lab.pool import Local, Place, Pool
from offmodel.lab.provenance import provenance
from offmodel.lab.stage import Stage, closure, load_modules
from offmodel.lab.store import Result, Store
from offmodel.lab.worker import Broken, Busy, Failed, Finished, Lost, Message, Progressed, Started

_LOOK_AGAIN = 0.5  # seconds until a stage that another runner holds is tried again


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        what: ``planned`` (will run) and ``reused`` come first for every stage; ``waiting``: another runner has it, or its
            worker got lost and it will be tried again.
        stage: The stage it happened to.
        worker: Number of the worker, for ``started``, ``progress``, ``done`` and ``failed``.
        fraction: How far the stage is, 0 to 1.
        message: What the stage is at, why it was skipped, or how it failed.
    """

    what: Literal["planned", "reused", "started", "progress", "done", "failed", "skipped", "waiting"]
    stage: Stage
    worker: int = 0
    fraction: float = 0.0
    message: str = ""


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class PlanRow:
    """What would become of a stage: ``reuse``, ``run``, or ``skip`` because an input was not accepted (then ``reason``)."""

    stage: Stage
    state: Literal["reuse", "run", "skip"]
    result: Result | None = None
    reason: str = ""


@dataclass(frozen=True)
class SkippedStage:
    """A stage that did not run, and why: ``excluded: …`` (an input was not accepted) or ``blocked: …`` (an input failed)."""

    stage: Stage
    reason: str


@dataclass(frozen=True)
class FailedStage:
    """A stage that failed; ``folder`` holds log.txt and traceback.txt."""

    stage: Stage
    message: str
    folder: Path


@dataclass
class RunReport:
    """How a run went; every stage is in one of the lists. ``seconds`` is wall time."""

    done: list[Stage] = field(default_factory=list)
    reused: list[Stage] = field(default_factory=list)
    skipped: list[SkippedStage] = field(default_factory=list)
    failed: list[FailedStage] = field(default_factory=list)
    seconds: float = 0.0


def plan_rows(stages: Iterable[Stage], store: Store) -> list[PlanRow]:
    """What a run would do now, inputs first. A missing input of a result that is already there is not needed and not listed.

    Raises:
        StoreError: A result in the store is damaged.
    """
    stages = list(stages)
    order = closure(stages)
    results = {stage: store.get(stage) for stage in order}
    needed = set(stages)
    for stage in reversed(order):
        if stage in needed and results[stage] is None:
            needed |= set(stage.inputs.values())

    rows, lost = [], dict[Stage, str]()
    for stage in order:
        result, reason = results[stage], _loss(stage, lost)
        if result is not None:
            rows.append(PlanRow(stage, "reuse", result))
            if not result.verdict.accepted:
                lost[stage] = _exclusion(stage, result)
        elif stage in needed and reason:
            rows.append(PlanRow(stage, "skip", reason=reason))
            lost[stage] = reason
        elif stage in needed:
            rows.append(PlanRow(stage, "run"))
    return rows


def run(
    stages: Iterable[Stage],
    store: Store,
    *,
    workers: int | None,
    modules: Sequence[str],
    on_event: OnEvent = lambda event: None,
    place: Place = Local(),  # noqa: B008 (frozen)
) -> RunReport:
    """Bring the stages and all they rest on into the store.

    A stage whose input was not accepted or failed is skipped, and so is all that rests on it; the rest goes on. Stages that
    another runner works on are left to it and its results picked up.

    Args:
        stages: What is wanted.
        store: Where results are and go.
        workers: How many stages run at once; None for what the place is good for. On this machine 0 runs everything in this process,
            with its output in place, for tests and debuggers.
        modules: Modules that register the stage functions, and extensions of the catalog; each worker imports them.
        on_event: Told what happens, from this thread.
        place: Where stages run.

    Raises:
        ClusterError: The place cannot be reached, or refuses work.
        SpecError: A module cannot be loaded, here or in a worker; or it is one of them that starts this run while it is loaded.
        StoreError: The store cannot be used, such as with a full disk. Finished results stay.
        KeyboardInterrupt: Ctrl-C, after the workers were stopped and half-made results removed; likewise SystemExit on SIGTERM.
    """
    if catalog.extending():  # in a worker it would start workers that start workers, without end
        raise SpecError("starts a run when it is imported, as every worker imports it; put that under if __name__ == '__main__':")
    provenance()  # now, while the sources are those that were imported: this process may run stages
    begun = time.monotonic()
    load_modules(modules)
    store.clean()
    schedule = _Schedule(plan_rows(stages, store), store, on_event)
    with _sigterm_unwinds():
        if schedule.unfinished:
            _run(schedule, place.open(workers, store, modules), store)
    schedule.report.seconds = time.monotonic() - begun
    return schedule.report


def _run(schedule: _Schedule, pool: Pool, store: Store) -> None:
    schedule.tries = pool.tries
    try:
        while schedule.unfinished:
            for worker in pool.idle():
                if (found := schedule.next()) is None:
                    break
                stage, others = found
                schedule.running[worker], schedule.beside[worker] = stage, others
                pool.submit(worker, stage, others)
            pool.listen(schedule.hear)
    finally:
        pool.stop()
        store.clean()


# --- what may run next ----------------------------------------------------------------------------------------------


def _loss(stage: Stage, lost: Mapping[Stage, str]) -> str:
    """Why a stage cannot run, "" where nothing stands in its way."""
    return next((lost[source] for source in stage.inputs.values() if source in lost), "")


def _exclusion(stage: Stage, result: Result) -> str:
    return f"excluded: {stage.label}: {result.verdict.reason or 'not accepted'}"


class _Schedule:
    """Which stage may run next, and the book of what happened; knows nothing of processes."""

    def __init__(self, rows: Sequence[PlanRow], store: Store, on_event: OnEvent) -> None:
        self.report = RunReport()
        self.running: dict[int, Stage] = {}
        self.beside: dict[int, list[Stage]] = {}  # run at once with it
        self.tries = 1
        self._store = store
        self._emit = on_event
        self._present = {row.stage for row in rows if row.state == "reuse"}
        self._todo = [row.stage for row in rows if row.state == "run"]  # inputs first
        self._again: dict[Stage, float] = {}  # held by another runner: when to try again
        self._lost: dict[Stage, str] = {}
        # None where it came to nothing with others; and where trainings are followed, as those that run at once have no Trainer.
        self._groups = {stage: None if os.environ.get(VARIABLE) else stage.group for stage in self._todo}
        self._losses = Counter[Stage]()  # of workers
        self._rank = critical_path(self._todo, {stage: stage.cost for stage in self._todo})
        for row in rows:
            if row.state == "reuse":
                self.report.reused.append(row.stage)
                on_event(Event("reused", row.stage))
            elif row.state == "run":
                on_event(Event("planned", row.stage))
            else:
                self._skip(row.stage, row.reason)

    @property
    def unfinished(self) -> bool:
        return bool(self._todo or self.running)

    def next(self) -> tuple[Stage, list[Stage]] | None:
        """Take the ready stage that the longest chain of work hangs on, and those that can be run at once with it.

        A stage that others can join waits for them as long as there is other work.
        """
        now = time.monotonic()
        ready = [s for s in self._todo if self._present.issuperset(s.inputs.values()) and self._again.get(s, 0.0) <= now]
        if not ready:
            return None
        ready.sort(key=self._rank.__getitem__, reverse=True)
        stage = next((s for s in ready if self._groups[s] is None), ready[0])
        group, most = self._groups[stage], stage.placement.get("together", 1)
        taken = [stage] if group is None else [s for s in ready if self._groups[s] == group][:most]
        for each in taken:
            self._todo.remove(each)
        return stage, taken[1:]

    def hear(self, worker: int, message: Message) -> None:
        """Take down what a worker says, or what is said of it."""
        stage = self.running[worker]
        match message:
            case Started():
                self._emit(Event("started", stage, worker))
                return
            case Progressed(fraction, text):
                self._emit(Event("progress", stage, worker, fraction, text))
                return
            case Broken(error):
                raise error
        del self.running[worker]
        others = self.beside.pop(worker)
        for other in reversed(others):
            if (result := self._store.get(other)) is not None:
                self._finish(worker, other, result, reused=False)
            else:
                self._todo.insert(0, other)
                if not isinstance(message, Busy):
                    self._groups[other] = None
        match message:
            case Busy():
                if stage not in self._again:
                    self._emit(Event("waiting", stage, message="another runner is at it"))
                self._again[stage] = time.monotonic() + _LOOK_AGAIN
                self._todo.insert(0, stage)  # inputs still come first
            case Finished(result, reused):
                self._finish(worker, stage, result, reused=reused)
            case Failed(text, folder):
                self._fail(worker, stage, text, folder)
            case Lost(text) if others:  # such as for the memory that all needed together
                self._groups[stage] = None
                self._emit(Event("waiting", stage, message=f"{text}; tried again by itself"))
                self._todo.insert(0, stage)
            case Lost(text) if self._losses[stage] + 1 < self.tries:
                self._losses[stage] += 1
                self._emit(Event("waiting", stage, message=f"{text}; tried again ({self._losses[stage] + 1} of {self.tries})"))
                self._todo.insert(0, stage)
            case Lost(text):
                with self._store.claim(stage) as claim:
                    folder = claim.fail(text) if claim else self._store.failure(stage)
                self._fail(worker, stage, text, folder)

    def _finish(self, worker: int, stage: Stage, result: Result, *, reused: bool) -> None:
        (self.report.reused if reused else self.report.done).append(stage)
        self._present.add(stage)
        self._emit(Event("reused" if reused else "done", stage, worker))
        if not result.verdict.accepted:
            self._lose(stage, _exclusion(stage, result))

    def _fail(self, worker: int, stage: Stage, message: str, folder: Path) -> None:
        self.report.failed.append(FailedStage(stage, message, folder))
        self._emit(Event("failed", stage, worker, message=message))
        self._lose(stage, f"blocked: {stage.label} failed")

    def _lose(self, stage: Stage, reason: str) -> None:
        self._lost[stage] = reason
        for other in [*self._todo]:
            if why := _loss(other, self._lost):
                self._todo.remove(other)
                self._skip(other, why)

    def _skip(self, stage: Stage, reason: str) -> None:
        self._lost[stage] = reason
        self.report.skipped.append(SkippedStage(stage, reason))
        self._emit(Event("skipped", stage, message=reason))


def critical_path(stages: Sequence[Stage], cost: Mapping[Stage, float]) -> dict[Stage, float]:
    """Per stage the cost of the longest chain that starts with it; ``stages`` come inputs first."""
    chain = dict.fromkeys(stages, 0.0)
    for stage in reversed(stages):
        chain[stage] += cost[stage]
        for source in stage.inputs.values():
            if source in chain:
                chain[source] = max(chain[source], chain[stage])
    return chain


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM end a run the way Ctrl-C does, through the clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
