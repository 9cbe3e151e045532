"""Stages as Ray tasks: on this machine, or on a cluster that is already there.

Ray decides where a task runs, and carries what is said of it; the worker behind it is the one that runs stages on this machine, too.
Models and labels lie in the store, a folder that all nodes share: nothing but stages and messages goes through Ray's objects.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offmodel.errors import ClusterError
from offmodel.lab.pool import TICK, Hear, Worker, default_workers
from offmodel.lab.resources import Resources, processes_of
from offmodel.lab.stage import Stage
from offmodel.lab.store import Store
from offmodel.lab.worker import Lost, Message, Progressed, Setup, Started

_OBJECTS = 80 * 1024**2  # bytes for Ray's objects, about the least it takes: messages need next to none


@dataclass(frozen=True)
class Ray:
    """A Ray cluster.

    Attributes:
        resources: What each stage is given.
        address: Of a running cluster: ``auto`` on one of its nodes, or ``host:port``. If None, one is started on this machine, reachable
            from this machine only, and stopped after the run.
    """

    resources: Resources = field(default_factory=Resources)
    address: str | None = None

    def open(self, workers: int | None, store: Store, modules: Sequence[str]) -> RayPool:
        """A pool for a run; see :class:`offmodel.lab.pool.Place`."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray asks this variable alone
        if self.address is None and "ray" not in sys.modules:
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # its name for: listen on the loopback address only
        import ray

        ours = not ray.is_initialized()
        if ours and self.address is None:
            cpus = (default_workers() if workers is None else max(workers, 1)) * self.resources.cpus
            ray.init(
                "local", num_cpus=cpus, object_store_memory=_OBJECTS, include_dashboard=False, log_to_driver=False, logging_level="error"
            )
        elif ours and self.address is not None:
            try:
                _knock(self.address)
                ray.init(self.address, log_to_driver=False, logging_level="error")
            except (OSError, RuntimeError, ValueError) as error:
                raise ClusterError(f"--cluster address={self.address}: no Ray cluster can be reached there ({error})") from error
        pool = RayPool(workers, Setup(store, modules), self.resources, ours=ours)
        try:
            pool.check()
        except ClusterError:
            pool.stop()
            raise
        return pool


def _knock(address: str) -> None:
    """Say at once that nobody is there; Ray itself would try for minutes."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not (host and port.isdigit()):
            raise ValueError("expected auto, or HOST:PORT such as 10.0.0.5:6379")
        socket.create_connection((host, int(port)), timeout=10).close()


class RayPool:
    """Ray tasks, each of which hands a stage to a worker process beside it."""

    tries = 3  # nodes come and go

    def __init__(self, workers: int | None, setup: Setup, resources: Resources, *, ours: bool) -> None:
        self._workers = workers
        self._setup = setup
        self._resources = resources
        self._ours = ours
        self._tasks: dict[int, Any] = {}

    def check(self, processes: int = 1) -> None:
        """Refuse to wait for what no node has.

        Args:
            processes: In how many a stage computes.

        Raises:
            ClusterError: No node has as much of something as a stage is to be given.
        """
        import ray

        wanted = {"CPU": self._resources.cpus, "GPU": self._resources.gpus, "memory": (self._resources.mem_gb or 0) * 1e9}
        for name, amount in wanted.items():
            most = max((node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"]), default=0)
            times = 1 if name == "memory" else processes
            if amount * times > most:
                unit, key = {"CPU": (1, "cpus"), "GPU": (1, "gpus"), "memory": (1e9, "mem_gb")}[name]
                many = f" for each of {times} processes" if times > 1 else ""
                raise ClusterError(
                    f"--cluster {key}={amount / unit:g}{many}: no node of the Ray cluster has that much; the most is {most / unit:g}"
                )

    def idle(self) -> list[int]:
        """Numbers without a stage; as many as the cluster's cores are good for at the moment, unless the run says how many."""
        import ray

        count = self._workers or max(1, int(ray.cluster_resources().get("CPU", 0) // self._resources.cpus))
        return [number for number in range(count) if number not in self._tasks]

    def submit(self, number: int, stage: Stage, others: Sequence[Stage] = ()) -> None:
        """Make a stage a task."""
        import ray

        if processes_of(stage) > 1:
            self.check(processes_of(stage))
        memory = None if self._resources.mem_gb is None else int(self._resources.mem_gb * 1e9)
        task = ray.remote(_run).options(
            name=f"offmodel:{stage.key}", num_cpus=self._resources.cpus_of(stage), num_gpus=self._resources.gpus_of(stage), memory=memory,
            num_returns="streaming", max_retries=0,  # the run itself tries again, and says so
        )  # fmt: skip
        self._tasks[number] = task.remote(self._setup, stage, others)

    def listen(self, hear: Hear) -> None:
        """Pass on what tasks say."""
        import ray

        if not self._tasks:
            time.sleep(TICK)
            return
        numbers = {task: number for number, task in self._tasks.items()}
        if not ray.wait([*numbers], timeout=TICK)[0]:
            return
        for task in ray.wait([*numbers], num_returns=len(numbers), timeout=0)[0]:
            message = _next(task)
            if not isinstance(message, Started | Progressed):
                del self._tasks[numbers[task]]
            hear(numbers[task], message)

    def stop(self) -> None:
        """Stop all tasks, and Ray where it was started for this run."""
        import ray

        for task in self._tasks.values():
            with suppress(Exception):  # it may have ended by itself
                ray.cancel(task, force=True)
        self._tasks.clear()
        if self._ours:
            ray.shutdown()


def _next(task: Any) -> Message:
    """The next message of a task that has one."""
    import ray

    try:
        message: Message = ray.get(next(task))
        return message
    except StopIteration:
        return Lost("its Ray task ended without a word")
    except ray.exceptions.RayError as error:
        return Lost(f"its Ray task was lost: {str(error).strip().splitlines()[0]}")


# --- on the node ----------------------------------------------------------------------------------------------------

_warm: dict[tuple[Path, tuple[str, ...]], Worker] = {}
"""The worker of this Ray process, which runs its stages one after the other. Ray ends the process itself after a task with a GPU."""


def _run(setup: Setup, stage: Stage, others: Sequence[Stage]) -> Iterator[Message]:
    """Run a stage and yield what is said of it; the task."""
    key = setup.store.root, tuple(setup.modules)
    if key not in _warm:
        for other in _warm.values():
            other.kill()
        _warm.clear()
        _warm[key] = Worker(setup)
    for message in _warm[key].relay(stage, others):
        if isinstance(message, Lost):
            del _warm[key]
        yield message
