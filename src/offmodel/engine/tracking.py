"""Trainings followed by a tracker, through the Trainer's own callbacks. What it is told stands in ``training.json`` of the store, too."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from offmodel.errors import SpecError, did_you_mean

VARIABLE = "OFFMODEL_TRACK"
"""The environment variable that names the tracker; it is handed on to workers, and is no part of a study."""

TRACKERS = ("tensorboard", "trackio", "wandb")

_PROJECT = "offmodel"


@dataclass(frozen=True)
class _Tracked:
    """The stage that trains: what it is called, its own scratch folder, and where a tracker that writes files puts them."""

    tracker: str
    label: str
    key: str
    scratch: Path
    folder: Path


_current: ContextVar[_Tracked | None] = ContextVar("tracked", default=None)


def check() -> None:
    """Check that the tracker that the environment names can be used.

    Raises:
        SpecError: It is unknown, not installed, or not logged in.
    """
    tracker = os.environ.get(VARIABLE)
    if not tracker:
        return
    if tracker not in TRACKERS:
        raise SpecError(f"{VARIABLE}={tracker}: unknown; {did_you_mean(tracker, TRACKERS)}")
    if find_spec(tracker) is None:
        raise SpecError(f"{VARIABLE}={tracker}: the package {tracker!r} is not installed; install it with: pip install 'offmodel[track]'")
    if tracker == "wandb" and os.environ.get("WANDB_MODE", "online") not in ("offline", "disabled", "dryrun", "shared"):
        import wandb

        if not wandb.login(prompt=False):
            raise SpecError(f"{VARIABLE}=wandb: is not logged in; run wandb login, set WANDB_API_KEY, or WANDB_MODE=offline")


@contextmanager
def tracked(label: str, key: str, scratch: Path, folder: Path) -> Iterator[None]:
    """Follow the trainings in the block, if the environment names a tracker.

    Args:
        label: Of the stage.
        key: Likewise; a stage that is continued goes on with its runs, which are named after both.
        scratch: Its folder, in which each training has its own.
        folder: Where TensorBoard's files go, unless ``TENSORBOARD_LOGGING_DIR`` says.
    """
    tracker = os.environ.get(VARIABLE)
    with taken_over(_Tracked(tracker, label, key, scratch, folder) if tracker else None):
        yield


def handed_on() -> _Tracked | None:
    """What another process that trains for this one is to be given, so that the training is followed there; see :func:`taken_over`."""
    return _current.get()


@contextmanager
def taken_over(tracked: _Tracked | None) -> Iterator[None]:
    """Follow the trainings in the block as the process would that asked for them."""
    token = _current.set(tracked)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def following(scratch: Path | None) -> Iterator[dict[str, Any]]:
    """What a training says to the Trainer so that it is followed, as a run of its own.

    Args:
        scratch: The training's folder, by whose place within the stage's the runs of several trainings differ; None for the only one.
    """
    now = _current.get()
    if now is None:
        yield {"report_to": "none"}
        return
    parts = () if scratch is None else scratch.relative_to(now.scratch).parts
    part = "".join(f" {each}" for each in parts if each != "training")
    name = f"{now.label}{part} ({now.key})"
    where = Path(os.environ.get("TENSORBOARD_LOGGING_DIR", now.folder)) / re.sub(r"[^\w.-]+", "-", name).strip("-")
    project = os.environ.get({"wandb": "WANDB_PROJECT", "trackio": "TRACKIO_PROJECT"}.get(now.tracker, ""), _PROJECT)
    if now.tracker == "wandb":  # begun here, as the callback gives no id, and reads one from the environment but once in a process
        import_module("wandb").init(project=project, name=name, id=(now.key + part).replace(" ", "-"), resume="allow")
    with _environment("TENSORBOARD_LOGGING_DIR", str(where)):  # which its callback reads
        try:
            yield {"report_to": now.tracker, "run_name": name, "project": project}
        finally:
            if now.tracker != "tensorboard":  # or the next training of this process would go on with this run
                with suppress(RuntimeError):  # trackio's, where it is finished already
                    import_module(now.tracker).finish()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
