"""What happens inside a worker process: take a stage, run it, say how it went.

The parent starts it with its own environment and pipe (see pool.py) and stops it by killing it: results appear whole or not
at all, so there is nothing to say goodbye to.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from offmodel.engine.sample import keeping
from offmodel.engine.tracking import VARIABLE, tracked
from offmodel.errors import OffmodelError, SpecError, StoreError
from offmodel.lab.provenance import provenance
from offmodel.lab.stage import Context, Stage, Together, Verdict, check_code, load_modules, stage_kind
from offmodel.lab.store import Claim, Result, Store, disk_full
from offmodel.spec.models import running

_REPORT_EVERY = 0.1  # seconds between two progress messages of a stage


@dataclass(frozen=True)
class Setup:
    """What a worker is told first, which may be on another machine.

    Attributes:
        store: Where results are and go.
        modules: What it imports to know the stages.
        path: Where Python looks for modules; as in the process that makes the setup.
        folder: The current folder, which relative paths of a study start from; likewise.
        track: The tracker that follows trainings, "" for none; likewise.
    """

    store: Store
    modules: Sequence[str]
    path: Sequence[str] = field(default_factory=lambda: tuple(sys.path))
    folder: str = field(default_factory=os.getcwd)
    track: str = field(default_factory=lambda: os.environ.get(VARIABLE, ""))


@dataclass(frozen=True)
class Started:
    """The stage is claimed and runs."""


@dataclass(frozen=True)
class Progressed:
    """How far the stage is."""

    fraction: float
    message: str


@dataclass(frozen=True)
class Busy:
    """Another runner holds the stage."""


@dataclass(frozen=True)
class Finished:
    """The result is in the store; ``reused`` where another runner put it there."""

    result: Result
    reused: bool


@dataclass(frozen=True)
class Failed:
    """The stage raised; the folder holds its log and traceback."""

    message: str
    folder: Path


@dataclass(frozen=True)
class Broken:
    """No stage can run, which is no fault of this one: the store cannot be used, or a module cannot be loaded."""

    error: OffmodelError


@dataclass(frozen=True)
class Lost:
    """The process that ran the stage is gone: what its pool can say of it."""

    message: str


Message = Started | Progressed | Busy | Finished | Failed | Broken | Lost


def attempt(stage: Stage, store: Store, tell: Callable[[Message], None], *, capture: bool, others: Sequence[Stage] = ()) -> Message:
    """Run one stage if nobody else does and its result is still missing.

    Args:
        stage: Its inputs are in the store.
        store: Where the result goes.
        tell: Receives :class:`Started` and :class:`Progressed`.
        capture: Send all that the process prints into the stage's log.
        others: Stages of the same group, to be run at once with it; their results are in the store if it went well.

    Raises:
        StoreError: The store cannot be used or the disk is full.
    """
    with store.claim(stage) as claim:
        if claim is None:
            return Busy()
        if (result := store.get(stage)) is not None:
            return Finished(result, reused=True)
        tell(Started())
        try:
            if capture:
                with _captured(claim.log):
                    verdict = _call(stage, claim, tell, others)
            else:
                verdict = _call(stage, claim, tell, others)
            return Finished(claim.publish(verdict), reused=False)
        except StoreError:
            raise
        except Exception as error:
            if full := disk_full(error, claim.out):
                raise store.refusal(full) from error
            if (result := store.get(stage)) is not None:  # of another host, which took this one for dead; what this one had is gone then
                return Finished(result, reused=True)
            message = _said(error)
            return Failed(message, claim.fail(message, traceback.format_exc()))


def _said(error: Exception) -> str:
    if isinstance(error, OffmodelError):
        return str(error)
    message = f"{type(error).__name__}: {error}"
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):  # torch's own, by name: not every worker imports it
        message = (
            "out of memory; what is finished is kept: set models.micro_batch lower, take a LoRA or an optimizer with small states, or more "
            f"GPUs (models.processes, models.device: auto), and run the same command again ({message})"
        )
    return message


def _call(stage: Stage, claim: Claim, tell: Callable[[Message], None], others: Sequence[Stage]) -> Verdict:
    told = -_REPORT_EVERY

    def report(fraction: float, message: str) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _REPORT_EVERY:
            told = now
            tell(Progressed(fraction, message))

    kind = stage_kind(stage.kind)
    follow = tracked(stage.label, stage.key, claim.scratch, claim.store.root / "tracking")
    with running(stage.params, stage.placement), keeping(claim.scratch / "replies.sqlite"), follow:
        if others and kind.together is not None:
            try:
                return _call_together(kind.together, claim, report, others)
            except StoreError:
                raise
            except Exception:  # whose fault it is, shows when each is run by itself
                traceback.print_exc()
                print("could not be run together with others; runs by itself", file=sys.stderr)
                shutil.rmtree(claim.out)
                claim.out.mkdir()
        return kind.run(_context(claim, report)) or Verdict(True)


def _call_together(together: Together, claim: Claim, report: Callable[[float, str], None], others: Sequence[Stage]) -> Verdict:
    """Run a stage at once with those of the others that are free and missing, and publish the others' results; its own verdict."""
    with ExitStack() as held:
        claims = [free for each in others if (free := held.enter_context(claim.store.claim(each))) and claim.store.get(each) is None]
        for each in claims:
            each.log.write_text(f"run together with {claim.stage.key}, in whose log is what was printed\n", encoding="utf-8")
        verdicts = together.run([_context(claim, report), *(_context(each, lambda fraction, message: None) for each in claims)])
        own, *rest = (verdict or Verdict(True) for verdict in verdicts)
        for each, verdict in zip(claims, rest, strict=True):
            each.publish(verdict)
        return own


def _context(claim: Claim, report: Callable[[float, str], None]) -> Context:
    stage, store = claim.stage, claim.store
    check_code(stage)
    inputs = {role: store.open(source).path for role, source in stage.input_keys.items()}
    return Context(stage.params, inputs, claim.out, claim.scratch, report, stage.servers, store.root / "cache")


@contextmanager
def _captured(log: Path) -> Iterator[None]:
    """Send the process's output into a file, that of C libraries and child processes too, then nowhere again."""
    with open(log, "wb") as file:
        _point_output_at(file.fileno())
        try:
            yield
        finally:
            with open(os.devnull, "wb") as nowhere:
                _point_output_at(nowhere.fileno())


def _point_output_at(descriptor: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def main(descriptor: int) -> None:
    """Serve the parent at the other end of the pipe until it closes or dies."""
    connection = Connection(descriptor)
    letters: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, letters), daemon=True).start()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()  # a crash in C then leaves its Python traceback in the stage's log

    provenance()  # now, while the sources are those that were imported
    setup: Setup = letters.get()
    os.environ[VARIABLE] = setup.track
    try:
        load_modules(setup.modules)
    except Exception as error:  # its output goes nowhere as yet
        connection.send(Broken(SpecError(f"a worker cannot start: {_said(error)}")))
        return
    while True:
        stage, others = letters.get()
        try:
            outcome = attempt(stage, setup.store, connection.send, capture=True, others=others)
        except StoreError as error:
            outcome = Broken(error)
        connection.send(outcome)


def _listen(connection: Connection, letters: SimpleQueue[Any]) -> None:
    """Pass letters on, also while a stage runs, so that the parent's death is noticed at once."""
    try:
        while True:
            letters.put(connection.recv())
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)  # the worker leads its own group: its children go with it
