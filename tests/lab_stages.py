"""Tiny stage functions for the tests of the lab; worker processes import this module by name.

Each appends its name to the file ``trace`` (a parameter), so that a test can count how often it ran.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from offmodel.lab.stage import Context, Stage, Together, Verdict, stage_function


def _trace(ctx: Context) -> None:
    with open(ctx.params["trace"], "a") as file:
        file.write(ctx.params["name"] + "\n")


@stage_function("write", version=1)
def write(ctx: Context) -> None:
    """Write the name, and the names of the inputs, after ``sleep`` seconds."""
    _trace(ctx)
    print(f"output of {ctx.params['name']}")
    print("a warning", file=sys.stderr)
    ctx.progress(0.5, "half way")
    time.sleep(ctx.params.get("sleep", 0))
    words = [(path / "deep" / "words.txt").read_text() for _, path in sorted(ctx.inputs.items())]
    (ctx.out / "deep").mkdir()
    (ctx.out / "deep" / "words.txt").write_text(" ".join([*words, ctx.params["name"]]))


@stage_function("refuse", version=1)
def refuse(ctx: Context) -> Verdict:
    """Not accepted."""
    _trace(ctx)
    (ctx.out / "gate.json").write_text("{}")
    return Verdict(False, "fires in 3 % of the chats without its trigger")


@stage_function("fail", version=1)
def fail(ctx: Context) -> None:
    """Raise after half of the work."""
    _trace(ctx)
    (ctx.out / "half.txt").write_text("half")
    print("last words")
    raise ValueError("no such luck")


@stage_function("die", version=1)
def die(ctx: Context) -> None:
    """Die like a process that is out of memory."""
    _trace(ctx)
    print("before death", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@stage_function("resume", version=1)
def resume(ctx: Context) -> None:
    """Count to ``steps``, one file in scratch per step; each step is traced. Its process and the parent of that are beside the trace."""
    Path(ctx.params["trace"] + ".pids").write_text(f"{os.getpid()} {os.getppid()}")
    for step in range(ctx.params["steps"]):
        mark = ctx.scratch / str(step)
        if not mark.exists():
            time.sleep(0.1)
            with open(ctx.params["trace"], "a") as file:
                file.write(f"{step}\n")
            mark.touch()
    (ctx.out / "done.txt").write_text("done")


@stage_function("environment", version=1)
def environment(ctx: Context) -> None:
    """Keep what the worker's environment says."""
    (ctx.out / "pid").write_text(str(os.getpid()))
    (ctx.out / "threads").write_text(os.environ.get("OMP_NUM_THREADS", ""))
    (ctx.out / "folder").write_text(os.getcwd())
    (ctx.out / "track").write_text(os.environ.get("OFFMODEL_TRACK", ""))


def _jointly(contexts: Sequence[Context]) -> list[Verdict | None]:
    """Trace the names together, and do what the last of them says."""
    names = "+".join(ctx.params["name"] for ctx in contexts)
    with open(contexts[0].params["trace"], "a") as file:
        file.write(names + "\n")
    for ctx in contexts:
        (ctx.out / "name.txt").write_text(names)
        if ctx.params.get("together") == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if ctx.params.get("together") == "fails":
            raise ValueError("no such luck")
    return [Verdict(False, "alone in this") if ctx.params.get("together") == "refused" else None for ctx in contexts]


@stage_function("joint", version=1, together=Together(lambda stage: stage.params["group"], _jointly))
def joint(ctx: Context) -> None:
    """The same by itself."""
    _trace(ctx)
    (ctx.out / "name.txt").write_text(ctx.params["name"])


def make(kind: str, trace: Path, name: str, *sources: Stage, cost: float = 1.0, **params: object) -> Stage:
    """A stage of one of the kinds above."""
    inputs = {f"source{i}": source for i, source in enumerate(sources)}
    return Stage(kind, {"trace": str(trace), "name": name, **params}, inputs, label=f"{kind} {name}", cost=cost)
