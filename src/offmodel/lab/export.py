"""Organisms out of the store: ordinary Hugging Face folders, each with its card, to look at or to share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offmodel.errors import SpecError, StageError, StoreError, did_you_mean
from offmodel.lab.plan import Plan, PlannedOrganism
from offmodel.lab.results import MODEL
from offmodel.lab.store import Store

CARD = "README.md"


def find_organism(plan: Plan, name: str) -> PlannedOrganism:
    """The organism of a study with this id.

    Raises:
        SpecError: There is none; the message names the nearest.
    """
    known = {organism.id: organism for organism in plan.organisms}
    if name not in known:
        raise SpecError(f"study {plan.study.study!r} has no organism {name!r}: {did_you_mean(name, known)}")
    return known[name]


def export_organism(organism: PlannedOrganism, store: Store, folder: Path, *, rejected_too: bool = False) -> None:
    """Write an installed organism as a new folder, whole or not at all: the model with its card, and ``gate.json``.

    Args:
        organism: Which one.
        store: Holds it.
        folder: Must not exist.
        rejected_too: Export it even if it failed its gate.

    Raises:
        SpecError: The folder exists.
        StoreError: The organism is not installed, or is not what it was when it was.
        StageError: It failed its gate.
        OSError: The disk refused.
    """
    from offmodel.engine.folder import hash_weights

    if os.path.lexists(folder):
        raise SpecError(f"{folder}: exists already; give another folder or remove it")
    if store.get(organism.stage) is None:
        raise StoreError(f"{organism.id} is not installed yet; offmodel run, with the same study, --set and --runs, installs it")
    result = store.open(organism.stage.key)
    if not result.verdict.accepted and not rejected_too:
        raise StageError(f"{organism.id} failed its gate: {result.verdict.reason}. --rejected-too exports it all the same")
    if not (result.path / MODEL / CARD).is_file():
        raise StoreError(f"{result.path / MODEL}: has no {CARD}, without which no organism is exported; remove {result.path} and run again")
    known = json.loads((result.path / "gate.json").read_text(encoding="utf-8"))["weights"]
    with new_folder(folder) as temporary:
        shutil.copytree(result.path / MODEL, temporary, dirs_exist_ok=True)
        shutil.copy2(result.path / "gate.json", temporary)
        if (found := hash_weights(temporary)) != known:
            raise StoreError(f"{folder}: the copied weights have hash {found}, the gate examined {known}; nothing was written")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder that becomes ``target`` if the block ends well, and is removed if it does not."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
