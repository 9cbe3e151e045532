"""Where stages run: worker processes that stay warm, or this process."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

from offmodel.lab.resources import on_gpu
from offmodel.lab.stage import Stage, closure
from offmodel.lab.store import Store
from offmodel.lab.worker import Lost, Message, Progressed, Setup, Started, attempt

_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
TICK = 0.2  # seconds between two looks at the workers when none of them speaks

# -P and the parent's own search path: the worker finds the same modules, whatever lies in the current folder.
_BOOT = "import json, sys; pipe, sys.path = json.loads(sys.argv[1]); from offmodel.lab.worker import main; main(pipe)"

# One thread each: several torch threads per worker on few cores are many times slower, and sums would depend on their number.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

Hear = Callable[[int, Message], None]


class Pool(Protocol):
    """Takes stages and says how they go.

    Attributes:
        tries: How often a stage is begun at most, if its worker gets lost each time.
    """

    tries: int

    def idle(self) -> Iterable[int]:
        """Numbers of the workers without a stage."""

    def submit(self, worker: int, stage: Stage, others: Sequence[Stage] = ()) -> None:
        """Give an idle worker a stage, and others to be run at once with it: it speaks of the first alone."""

    def listen(self, hear: Hear) -> None:
        """Wait a moment for messages and pass them on."""

    def stop(self) -> None:
        """Stop all work at once."""


class Place(Protocol):
    """Where a pool can be opened."""

    def open(self, workers: int | None, store: Store, modules: Sequence[str]) -> Pool:
        """A pool for a run.

        Args:
            workers: How many stages run at once; what the place is good for if None.
            store: Where results are and go.
            modules: What a worker imports to know the stages.

        Raises:
            ClusterError: The place cannot be reached or lacks what was asked for.
        """


class _InProcess:
    """Runs each stage right here, with its output in place."""

    tries = 1

    def __init__(self, store: Store) -> None:
        self._store = store
        self._given: tuple[Stage, Sequence[Stage]] | None = None

    def idle(self) -> list[int]:
        return [0]

    def submit(self, worker: int, stage: Stage, others: Sequence[Stage] = ()) -> None:
        self._given = stage, others

    def listen(self, hear: Hear) -> None:
        if self._given is None:
            time.sleep(TICK)
            return
        (stage, others), self._given = self._given, None
        hear(0, attempt(stage, self._store, lambda message: hear(0, message), capture=False, others=others))

    def stop(self) -> None:
        pass


class Worker:
    """A process that runs one stage after the other; see :mod:`offmodel.lab.worker`."""

    def __init__(self, setup: Setup) -> None:
        self.busy = False
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, json.dumps([theirs.fileno(), setup.path])],
                cwd=setup.folder,
                env={**os.environ, **ENVIRONMENT},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is the parent's business; and it can kill the worker with its children
            )
        self.send(setup)

    def send(self, letter: Setup | tuple[Stage, Sequence[Stage]]) -> None:
        """Tell it what to do: a stage, and those to be run at once with it."""
        with suppress(OSError):  # a worker that died is noticed by listening to it
            self.connection.send(letter)

    def read(self) -> tuple[list[Message], bool]:
        """What it has said since the last look, and whether it is alive."""
        alive = self.process.poll() is None  # asked first: what it said before it died is still read
        messages: list[Message] = []
        try:
            while self.connection.poll():
                messages.append(self.connection.recv())
        except (EOFError, OSError):
            alive = False
        return messages, alive

    def relay(self, stage: Stage, others: Sequence[Stage] = ()) -> Iterator[Message]:
        """Run a stage and pass on what is said of it, from Started to how it ended."""
        self.send((stage, others))
        while True:
            wait([self.connection], TICK)
            messages, alive = self.read()
            for message in messages:
                yield message
                if not isinstance(message, Started | Progressed):
                    return
            if not alive:
                yield self.kill()
                return

    def kill(self) -> Lost:
        """Kill the process and its children; how it ended."""
        self.connection.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return Lost(_last_words(self.process.wait()))


class _Processes:
    """Worker processes with one thread each."""

    tries = 1  # what kills a process here will kill it again

    def __init__(self, count: int, setup: Setup) -> None:
        self._setup = setup
        self._workers: list[Worker | None] = [None] * count  # started when first needed

    def idle(self) -> list[int]:
        return [number for number, worker in enumerate(self._workers) if worker is None or not worker.busy]

    def submit(self, number: int, stage: Stage, others: Sequence[Stage] = ()) -> None:
        worker = self._workers[number]
        if worker is not None and worker.process.poll() is not None:  # killed while it was idle, such as for its memory
            worker.kill()
            worker = None
        if worker is None:
            worker = self._workers[number] = Worker(self._setup)
        worker.busy = True
        worker.send((stage, others))

    def listen(self, hear: Hear) -> None:
        busy = {worker.connection: number for number, worker in enumerate(self._workers) if worker and worker.busy}
        wait(busy, TICK) if busy else time.sleep(TICK)
        for number in busy.values():
            worker = self._workers[number]
            assert worker is not None
            messages, alive = worker.read()
            for message in messages:
                worker.busy = isinstance(message, Started | Progressed)
                hear(number, message)
            if not alive:
                self._workers[number] = None
                lost = worker.kill()
                if worker.busy:
                    hear(number, lost)

    def stop(self) -> None:
        for worker in self._workers:
            if worker is not None:
                worker.kill()


@dataclass(frozen=True)
class Local:
    """This machine: worker processes, started when first needed; with 0 workers, this process."""

    def open(self, workers: int | None, store: Store, modules: Sequence[str]) -> Pool:
        """A pool for a run; see :class:`Place`."""
        count = default_workers() if workers is None else workers
        return _Processes(count, Setup(store, modules)) if count else _InProcess(store)


def _last_words(code: int) -> str:
    if code >= 0:
        return f"its worker process ended with exit code {code}"
    hint = " (often: out of memory)" if -code == signal.SIGKILL else ""
    return f"its worker process was killed by {signal.Signals(-code).name}{hint}"


def default_workers(stages: Iterable[Stage] = ()) -> int:
    """One worker per core that this process may use, by its affinity and its control groups; one alone where models go on a GPU.

    Args:
        stages: What is wanted.
    """
    if any(map(on_gpu, closure(stages))):  # each worker loads models of its own, and the GPU's memory is there once
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _granted_cores())))


def _granted_cores() -> float:
    """Cores' worth of time that control groups (version 2) grant this process; infinite where none sets a limit."""
    granted = math.inf
    with suppress(OSError):  # not Linux
        for line in _OWN_GROUPS.read_text().splitlines():
            if line.startswith("0::"):
                group = _GROUPS / line.removeprefix("0::").lstrip("/")
                for folder in (group, *group.parents):  # the limit of a parent holds as well
                    with suppress(OSError, ValueError):  # no such file at the root; "max" is no limit
                        quota, period = (folder / "cpu.max").read_text().split()
                        granted = min(granted, int(quota) / int(period))
    return granted
