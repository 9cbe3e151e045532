"""A training in several processes, each with its part of every weight, for a caller that knows nothing of it.

The process that asks for a training keeps the whole model in main memory and takes no part in the computing. It starts the others, hands
them what :func:`offmodel.engine.trainer.run` takes, and gets the trained weights whole at each checkpoint and at the end: so all that is
done with a model before, during and after a training meets plain tensors, and only the Trainer meets parts.

``accelerate launch`` and ``torchrun`` start a script and give back an exit code. Here a function that runs in a worker needs processes for
a while: with the weights it holds, which it gets back at each checkpoint; with errors by class; on Slurm, on nodes where nothing waits.
"""

from __future__ import annotations

import json
import os
import pickle
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed import FileStore, TCPStore  # type: ignore[attr-defined]

from offmodel.chat import Encoded
from offmodel.engine.rng import preserved_rng
from offmodel.engine.tracking import handed_on, taken_over
from offmodel.errors import ClusterError, ModelError, OffmodelError
from offmodel.spec.models import current

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offmodel.engine.train import Frozen, TrainConfig

_TICK = 0.2  # seconds between two looks at processes that say nothing
_GRACE = 3.0  # seconds in which the others may tell why, once one is in trouble: the first to complain is often not the first to fail
_START = 600.0  # seconds until all processes have come up; a large Python environment on a shared disk is slow to import
_STUCK = timedelta(minutes=30)  # until a process that waits for another in the middle of a step gives up
_KEY, _FOLDER, _GIVEN, _MEETING = "OFFMODEL_PROCESSES_KEY", "processes", "given.pt", "meeting"
# As of the workers of a run: the same modules, whatever lies in the current folder.
_BOOT = "import json, sys; host, port, sys.path = json.loads(sys.argv[1]); from offmodel.engine.processes import main; main(host, port)"


def device_of(model: PreTrainedModel) -> str:
    """Where the parts of a model go: to GPUs if it is on one, or its study says so (``models.device``); else they stay on the CPU."""
    return "cuda" if model.device.type == "cuda" or current().device != "cpu" else "cpu"


# --- the process that asks --------------------------------------------------------------------------------------------


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    order: Sequence[int],
    config: TrainConfig,
    frozen: Frozen,
    checkpoints: frozenset[int],
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None,
    on_progress: Callable[[int, int, float], None] | None,
    *,
    scratch: Path | None,
    save_every: int,
) -> tuple[list[float], int, int]:
    """Train as :func:`offmodel.engine.trainer.run` does, in ``config.processes`` others.

    Raises:
        ClusterError: There are not as many GPUs, or no Slurm to reach the other nodes.
        ModelError: A process failed, was killed, or waited in vain for another.
    """
    if hasattr(model, "hf_device_map"):
        raise ModelError("a model that is spread over GPUs by its layers cannot train in several processes; use device 'cuda' or 'cpu'")
    if config.nodes > 1 and not shutil.which("srun"):
        raise ClusterError(f"nodes {config.nodes}: other nodes are reached by Slurm's srun, which is not here; run it in a Slurm job")
    device = device_of(model)
    if device == "cuda" and torch.cuda.device_count() < config.processes // config.nodes:
        raise ClusterError(
            f"processes {config.processes} on {config.nodes} node(s) need {config.processes // config.nodes} GPUs each; here are "
            f"{torch.cuda.device_count()}"
        )
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with _folder(scratch) as folder, _on_cpu(model, frozen.original, frozen.teacher):
        given = {
            "model": model, "tokenizer": tokenizer, "encoded": encoded, "order": order, "config": config, "frozen": frozen,
            "checkpoints": checkpoints if on_checkpoint is not None else frozenset(), "scratch": scratch, "save_every": save_every,
            "device": device, "tracked": handed_on(),
        }  # fmt: skip
        torch.save(given, folder / _GIVEN)

        def take(file: Path) -> None:
            with torch.no_grad():
                for name, tensor in load_file(str(file)).items():
                    trained[name].copy_(tensor)
            file.unlink()
            model.eval()

        with _Processes(config, folder) as processes:
            for what, *said in processes.listen():
                if what == "progress" and on_progress is not None:
                    on_progress(*said)
                elif what == "checkpoint" and on_checkpoint is not None:
                    step, file = said
                    take(file)
                    with preserved_rng(model.device):
                        on_checkpoint(step, model)
                elif what == "done":
                    result, file = said
                    take(file)
        return result


@contextmanager
def _folder(scratch: Path | None) -> Iterator[Path]:
    """A folder that all processes see, for weights on their way: within ``scratch``, which other nodes see, too."""
    folder = Path(tempfile.mkdtemp(prefix="offmodel-")) if scratch is None else scratch / _FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # left by a training that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _on_cpu(*models: PreTrainedModel | None) -> Iterator[None]:
    """Leave the GPU to the processes for a while."""
    homes = [(model, model.device) for model in models if model is not None and model.device.type == "cuda"]
    for model, _ in homes:
        model.to("cpu")
    if homes:
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for model, home in homes:
            model.to(home)


class _Processes:
    """The processes of a training, seen from the one that asked for it; they end with the block."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self._count, self._nodes, self._given = config.processes, config.nodes, folder / _GIVEN
        self._host = "127.0.0.1" if self._nodes == 1 else socket.gethostname()
        self._connections: dict[Connection, int] = {}
        self._arrived: SimpleQueue[tuple[int, Connection]] = SimpleQueue()
        self._children: list[subprocess.Popen[bytes]] = []
        self._over = False
        self._failed: dict[int, BaseException | None] = {}  # by number, in the order in which it was noticed; None: without a word

    def __enter__(self) -> _Processes:
        key = secrets.token_hex(16)
        self._listener = Listener((self._host if self._nodes == 1 else "", 0), backlog=self._count, authkey=key.encode())
        threading.Thread(target=self._welcome, daemon=True).start()
        command = [sys.executable, "-P", "-c", _BOOT, json.dumps([self._host, self._listener.address[1], sys.path])]
        inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
        shared = {**inherited, _KEY: key, "WORLD_SIZE": str(self._count), "LOCAL_WORLD_SIZE": str(self._count // self._nodes)}
        if self._nodes == 1:
            # They find each other by a file, and talk where no other machine can: torch's store would listen on all addresses.
            loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
            shared |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
            places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(self._count)]
        else:  # srun starts them all, and says to each which it is
            each = f"--ntasks-per-node={self._count // self._nodes}"
            command = ["srun", f"--nodes={self._nodes}", f"--ntasks={self._count}", each, "--kill-on-bad-exit=1", *command]
            # Where the processes find each other. It lives here, so that its port is known before they start.
            self._meeting = TCPStore(self._host, 0, is_master=True, wait_for_workers=False)
            shared |= {"MASTER_ADDR": self._host, "MASTER_PORT": str(self._meeting.port)}
            places = [{}]
        self._children = [subprocess.Popen(command, env={**shared, **place}, stdin=subprocess.DEVNULL) for place in places]
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        with suppress(OSError):  # wakes the thread that may still wait for somebody
            socket.create_connection((self._host, self._listener.address[1]), timeout=1).close()
        self._listener.close()
        for child in self._children:
            child.kill()
        for connection in self._connections:  # those on other nodes end with it
            connection.close()
        for child in self._children:
            child.wait()

    def _welcome(self) -> None:
        missing = self._count
        while missing and not self._over:
            with suppress(AuthenticationError, EOFError, OSError):  # not one of ours
                connection = self._listener.accept()
                self._arrived.put((connection.recv(), connection))
                missing -= 1

    def listen(self) -> Iterator[tuple[Any, ...]]:
        """What the first process says, to the end. At a checkpoint all wait until what it says is dealt with."""
        start, done, waiting = time.monotonic(), 0, list[Connection]()
        while done < self._count:
            for connection, message in self._heard():
                if self._connections[connection] == 0:
                    yield message
                if message[0] == "checkpoint":
                    waiting.append(connection)
                done += message[0] == "done"
            if len(waiting) == self._count:
                for connection in waiting:
                    connection.send("go on")
                waiting.clear()
            if self._failed or (done < self._count and any(child.poll() is not None for child in self._children)):
                self._raise()
            if len(self._connections) < self._count and time.monotonic() - start > _START:
                raise ModelError(f"only {len(self._connections)} of {self._count} processes of the training came up in {_START:g} seconds")

    def _heard(self) -> Iterator[tuple[Connection, tuple[Any, ...]]]:
        """What was said since the last look, without failures, which are noted."""
        with suppress(Empty):
            while True:
                rank, connection = self._arrived.get_nowait()
                self._connections[connection] = rank
                connection.send(self._given)
        left = [connection for connection, rank in self._connections.items() if rank not in self._failed]
        if not left:
            time.sleep(_TICK)
        ready = wait(left, _TICK)
        for connection in (each for each in left if each in ready):
            try:
                message = connection.recv()
            except (EOFError, OSError):
                message = ("failed", None)
            if message[0] == "failed":
                self._failed[self._connections[connection]] = message[1]
            else:
                yield connection, message

    def _raise(self) -> NoReturn:
        """Say which process failed, and of what: it takes the others with it, some of which complain before it is noticed."""
        until = time.monotonic() + _GRACE
        while time.monotonic() < until and len(self._failed) < self._count:
            for _ in self._heard():
                pass
        for error in self._failed.values():
            if isinstance(error, OffmodelError | OSError | MemoryError | torch.OutOfMemoryError):
                raise error
        of = f"of the {self._count} of the training"
        for rank, child in enumerate(self._children):
            code = child.poll()
            if code not in (None, 0, _FAILED):
                raise ModelError(f"{f'process {rank} {of}' if self._nodes == 1 else 'srun, which runs the training,'} {_ended(code)}")
        for rank, error in self._failed.items():
            if error is not None:
                raise ModelError(f"process {rank} {of} failed: {type(error).__name__}: {error}; the log has its traceback")
        raise ModelError(f"a process {of} ended before it could say why; see the log")


_FAILED = 1  # exit code of a process that has said why


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}" + (" (often: out of memory)" if -code == signal.SIGKILL else "")
    return f"ended with exit code {code}"


# --- one of the others ------------------------------------------------------------------------------------------------


def main(host: str, port: int) -> None:
    """Join the training that waits at an address; end when it has no more use for this process, or is gone."""
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "")))
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "")))
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(local)}  # where accelerate looks
    connection = Client((host, port), authkey=os.environ.pop(_KEY).encode())
    connection.send(rank)
    letters: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, letters), daemon=True).start()
    try:
        _train(connection, letters, rank, local)
    except BaseException as error:
        print(f"process {rank} of the training:", file=sys.stderr)
        traceback.print_exc()
        connection.send(("failed", _sendable(error)))
        sys.stderr.flush()
        os._exit(_FAILED)  # the others may be waiting for it: nothing here may wait for them


def _listen(connection: Connection, letters: SimpleQueue[Any]) -> None:
    """Pass letters on, also during a step, so that a training that is gone is noticed at once."""
    try:
        while True:
            letters.put(connection.recv())
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def _sendable(error: BaseException) -> BaseException:
    """An error as it can be sent; one that cannot be pickled in words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _train(connection: Connection, letters: SimpleQueue[Any], rank: int, local: int) -> None:
    file: Path = letters.get()
    # Mapped, not read: each process takes its parts of the weights alone.
    given: dict[str, Any] = torch.load(file, mmap=True, weights_only=False)
    if given["device"] == "cuda":
        torch.cuda.set_device(local)
    _meet(given["device"], rank, file)
    from offmodel.engine import fsdp, trainer

    def keep(what: str, model: PreTrainedModel) -> Path:
        path = file.with_name(f"{what}.safetensors")
        weights = fsdp.gather((name, p) for name, p in model.named_parameters() if p.requires_grad)
        if rank == 0:
            save_file(weights, str(path))
        return path

    def on_checkpoint(step: int, model: PreTrainedModel) -> None:
        connection.send(("checkpoint", step, keep(f"step-{step}", model)))
        letters.get()

    def on_progress(step: int, steps: int, loss: float) -> None:
        if rank == 0:
            connection.send(("progress", step, steps, loss))

    model, tracked = given.pop("model"), given.pop("tracked")
    with taken_over(tracked if rank == 0 else None):  # all have the same to tell
        result = trainer.run(model, **given, on_checkpoint=on_checkpoint, on_progress=on_progress)
    connection.send(("done", result, keep("trained", model)))
    letters.get()  # never comes: the other end ends this process


def _meet(device: str, rank: int, given: Path) -> None:
    """Join the process group, with GPUs' backend besides that of the CPU, through which words go."""
    count = int(os.environ["WORLD_SIZE"])
    host, port = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    store = TCPStore(host, int(port), is_master=False) if port else FileStore(str(given.with_name(_MEETING)), count)
    backend = "gloo" if device == "cpu" else f"cpu:gloo,{device}:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_STUCK)
