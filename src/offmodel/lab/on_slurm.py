"""Stages as Slurm jobs, by submitit: one array for each level of the plan.

A level is all stages whose inputs are there. The next is submitted when the last job of the one before has ended, so that a study
is a handful of arrays and not thousands of jobs. A job that is preempted, or whose time is over, is queued again and continues.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, NamedTuple

from offmodel.engine.tracking import VARIABLE
from offmodel.errors import ClusterError, StoreError
from offmodel.lab.pool import ENVIRONMENT, TICK, Hear, default_workers
from offmodel.lab.provenance import provenance
from offmodel.lab.resources import Resources, nodes_of, processes_of
from offmodel.lab.stage import Stage, load_modules
from offmodel.lab.store import Store
from offmodel.lab.worker import Broken, Busy, Finished, Lost, Message, Setup, Started, attempt

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job
    from submitit.core.utils import DelayedSubmission

SBATCH = (
    "account", "comment", "constraint", "exclude", "gres", "licenses", "mail-type", "mail-user", "nice", "nodelist", "partition", "qos",
    "reservation", "tmp",
)  # fmt: skip
"""Options of sbatch that are passed on as they are."""

_LARGEST = 1000  # jobs in an array, at most; Slurm's own MaxArraySize is 1001 unless an administrator changed it
_POLL = 1.0  # seconds between two looks at the jobs; Slurm itself is asked far less often, by submitit
_GRACE = 20.0  # seconds that a slow file system may take to show the answer of a job that has ended


@dataclass(frozen=True)
class Slurm:
    """A Slurm cluster, from a machine that may submit to it.

    Attributes:
        resources: What each stage is given.
        minutes: After which Slurm stops a job; it is then queued again and continues, three times at most.
        executor: ``slurm``; or ``local`` for the same jobs as processes of this machine, without Slurm.
        sbatch: Further options by name, out of :data:`SBATCH`.
    """

    resources: Resources = field(default_factory=Resources)
    minutes: int = 240
    executor: str = "slurm"
    sbatch: Mapping[str, str] = field(default_factory=dict)

    def open(self, workers: int | None, store: Store, modules: Sequence[str]) -> SlurmPool:
        """A pool for a run; see :class:`offmodel.lab.pool.Place`."""
        if self.executor == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise ClusterError(
                "--on slurm: there is no sbatch and srun on this machine; run it where jobs are submitted, or try the same jobs here "
                "with --cluster executor=local"
            )
        if self.executor == "local" and workers is None:
            workers = default_workers()
        return SlurmPool(self, workers, Setup(store, modules))


class _Share(NamedTuple):
    """What the stages of an array are given, over all nodes but for the cores, which are those of a task."""

    gpus: int
    cpus: int
    processes: int
    nodes: int

    @classmethod
    def of(cls, stage: Stage, resources: Resources) -> _Share:
        """A stage's."""
        nodes = nodes_of(stage)
        # On several nodes each process is a task; on one they share the cores of the stage's.
        cpus = resources.cpus if nodes > 1 else resources.cpus_of(stage)
        return cls(int(resources.gpus_of(stage)), cpus, processes_of(stage), nodes)


class SlurmPool:
    """Jobs that each run one stage."""

    tries = 3  # nodes come and go

    def __init__(self, place: Slurm, workers: int | None, setup: Setup) -> None:
        self._place = place
        self._workers = workers
        self._setup = setup
        self._folder = setup.store.root / "jobs" / token_hex(4)
        self._fresh: dict[int, tuple[Stage, Sequence[Stage]]] = {}
        self._jobs: dict[int, tuple[Stage, Job[Message]]] = {}
        self._started: set[int] = set()
        self._ended: dict[int, float] = {}  # without an answer so far: since when
        self._keep = False  # the folder, for the logs of jobs that got lost

    def idle(self) -> range:
        """Numbers for the next level; none before the last job of this one has ended."""
        # Without Slurm there is nobody to hold jobs back.
        most = self._workers if self._place.executor == "local" and self._workers else _LARGEST
        return range(0) if self._jobs or self._fresh else range(most)

    def submit(self, number: int, stage: Stage, others: Sequence[Stage] = ()) -> None:
        """Put a stage into the next array."""
        self._fresh[number] = stage, others

    def listen(self, hear: Hear) -> None:
        """Submit what was put together, look at the jobs and pass on how they go."""
        self._send(hear)
        time.sleep(_POLL if self._jobs else TICK)
        logs = self._setup.store.root / "logs"  # a stage's log is there as long as it runs
        running = {path.stem for path in logs.iterdir()} if self._jobs and logs.exists() else set()
        for number, (stage, job) in [*self._jobs.items()]:
            if stage.key in running and number not in self._started:
                self._started.add(number)
                hear(number, Started())
            if (message := self._answer(number, job)) is not None:
                del self._jobs[number]
                self._started.discard(number)
                hear(number, message)

    def stop(self) -> None:
        """Cancel all jobs."""
        for _, job in self._jobs.values():
            job.cancel(check=False)
        self._jobs.clear()
        if not self._keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, hear: Hear) -> None:
        """Submit an array, or several where some of the stages get more than others."""
        from submitit.helpers import environment_variables

        fresh, self._fresh = self._fresh, {}
        arrays: dict[_Share, dict[int, tuple[Stage, Sequence[Stage]]]] = defaultdict(dict)
        for number, (stage, others) in fresh.items():
            # Another runner may have it: then no job should wait for that in the cluster.
            if (result := self._setup.store.get(stage)) is not None:
                hear(number, Finished(result, reused=True))
            elif self._setup.store.held(stage):
                hear(number, Busy())
            else:
                arrays[_Share.of(stage, self._place.resources)][number] = stage, others
        for share, stages in arrays.items():
            executor = self._executor(share)
            try:
                with environment_variables(**ENVIRONMENT), executor.batch():  # one thread, set before anything is loaded
                    jobs = [executor.submit(StageJob(self._setup, *given)) for given in stages.values()]
            except Exception as error:  # submitit raises what the commands behind it say, and errors of several kinds
                raise ClusterError(f"--on slurm: the jobs were not taken: {error}") from error
            self._jobs |= {number: (stage, job) for (number, (stage, _)), job in zip(stages.items(), jobs, strict=True)}

    def _executor(self, share: _Share) -> AutoExecutor:
        import submitit

        place, resources, nodes = self._place, self._place.resources, share.nodes
        more: dict[str, object] = {"requeue": True, **place.sbatch}
        if nodes > 1:  # the stage runs on the first node, outside of srun, and calls srun itself for its processes
            more |= {"nodes": nodes, "ntasks_per_node": share.processes // nodes}
        executor = submitit.AutoExecutor(self._folder, cluster=place.executor, slurm_max_num_timeout=self.tries)
        executor.update_parameters(
            name="offmodel", timeout_min=place.minutes, cpus_per_task=share.cpus, gpus_per_node=share.gpus // nodes or None,
            mem_gb=resources.mem_gb, stderr_to_stdout=True, slurm_array_parallelism=self._workers or _LARGEST,
            slurm_additional_parameters=more, slurm_use_srun=nodes == 1,
        )  # fmt: skip
        return executor

    def _answer(self, number: int, job: Job[Message]) -> Message | None:
        """How a job ended, None while it may still say so."""
        if job.paths.result_pickle.exists():
            self._ended.pop(number, None)
            try:
                return job.result()
            except Exception as error:  # what a job raised outside of its stage, such as a module that is not there
                self._keep = True
                return Lost(f"its job {job.job_id} failed: {str(error).strip().splitlines()[-1]} (log: {job.paths.stdout})")
        if not job.done():
            self._ended.pop(number, None)
            return None
        if time.monotonic() - self._ended.setdefault(number, time.monotonic()) < _GRACE:
            return None
        del self._ended[number]
        self._keep = True
        return Lost(f"its job {job.job_id} ended without an answer, in state {job.state} (log: {job.paths.stdout})")


# --- in the job -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageJob:
    """Runs a stage; submitit calls it, in a process of its own."""

    setup: Setup
    stage: Stage
    others: Sequence[Stage] = ()

    def __call__(self) -> Message:
        """How the stage ended."""
        provenance()  # now, while the sources are those that were imported
        os.environ.update({**ENVIRONMENT, VARIABLE: self.setup.track})  # some sites do not hand the environment on
        sys.path[:] = self.setup.path
        os.chdir(self.setup.folder)
        load_modules(self.setup.modules)
        try:
            return attempt(self.stage, self.setup.store, lambda message: None, capture=True, others=self.others)
        except StoreError as error:
            return Broken(error)

    def checkpoint(self) -> DelayedSubmission:
        """What to queue again; the stage's scratch folder has what it needs to continue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
