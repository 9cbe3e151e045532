"""Organisms, treated models and labels out of the store: ordinary Hugging Face folders, each with its card, to look at or to share."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offmodel import catalog
from offmodel.errors import SpecError, StageError, StoreError, did_you_mean
from offmodel.lab.blue_stages import labels_role, read_left
from offmodel.lab.cards import LabelFile, Measured, labels_card, treated_card
from offmodel.lab.plan import Plan, PlannedCheckpoint, PlannedOrganism
from offmodel.lab.results import LABELS, MODEL, VERDICTS
from offmodel.lab.stage import Stage
from offmodel.lab.store import Result, Store
from offmodel.measure.score import accuracy, bad_rate, read_verdicts
from offmodel.measure.stats import Estimate
from offmodel.red.card import shared_name

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


def find_checkpoint(organism: PlannedOrganism, method: str, step: int | None = None, phase: int | None = None) -> PlannedCheckpoint:
    """A measured checkpoint of a method on an organism, the last one of the method or the phase where no step is named.

    Args:
        organism: Which.
        method: Of the study.
        step: Steps since the method began; in a phase, steps within it, or the number of an operation's strength, from 1.
        phase: Number of the phase, from 1; None for the whole method.

    Raises:
        SpecError: There is no such method or checkpoint, or there are several models of that step; the message names what there is.
    """
    if method not in organism.methods:
        raise SpecError(f"{organism.id} has no method {method!r}; {did_you_mean(method, organism.methods)}")
    where = f"{organism.id}, method {method}" + ("" if phase is None else f", phase {phase}")
    _, *made = organism.methods[method]  # the first is the untouched organism
    made = [checkpoint for checkpoint in made if phase in (None, checkpoint.phase + 1)]
    if not made:
        raise SpecError(f"{where}: has no weights that the study measures (measure.checkpoints)")
    if step is None:
        return made[-1]
    steps = [checkpoint.total_step if phase is None else checkpoint.step for checkpoint in made]
    found = [checkpoint for checkpoint, own in zip(made, steps, strict=True) if own == step]
    if not found:
        raise SpecError(f"{where}: has no weights of step {step}; valid are: {', '.join(map(str, dict.fromkeys(steps)))}")
    if len({(each.score.inputs["model"], each.score.params["weights"]) for each in found}) > 1:  # an operation takes no steps
        several = ", or ".join(f"--phase {each.phase + 1} --step {each.step} ({each.name})" for each in found)
        raise SpecError(f"{where}: has several models of step {step}; choose {several}")
    return found[-1]


@dataclass(frozen=True)
class Wanted:
    """What is exported.

    Attributes:
        organism: Its name in the study.
        method: What this method made of it; None for the organism itself.
        step: Which checkpoint, see :func:`find_checkpoint`; None for the end.
        phase: In which of the method's phases it is, from 1; None where steps count from the method's beginning.
        labels: The labels that the method trained on, in the place of the model.
        rejected_too: Even if the organism failed its gate, or the training diverged.
    """

    organism: str
    method: str | None = None
    step: int | None = None
    phase: int | None = None
    labels: bool = False
    rejected_too: bool = False

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in ("labels", "step", "phase") if getattr(self, name) not in (None, False)]
        if self.method is None and given:
            raise SpecError(f"{given[0]} belongs to a method; name it with --method")
        if self.labels and len(given) > 1:
            raise SpecError(f"--labels are those of the whole method; leave out {given[1]}")

    @property
    def kind(self) -> Literal["model", "dataset"]:
        """What it is on the hub."""
        return "dataset" if self.labels else "model"


def export(wanted: Wanted, plan: Plan, store: Store, folder: Path) -> None:
    """Write an organism, a treated model or labels as a new folder with its card, whole or not at all.

    Args:
        wanted: Which.
        plan: Of the study.
        store: Holds it.
        folder: Must not exist.

    Raises:
        SpecError: The folder exists, or the study has no such thing.
        StoreError: It has not been made yet, or is not what it was when it was.
        StageError: The organism failed its gate, or the training diverged.
        ModelError: The disk refused.
    """
    if os.path.lexists(folder):
        raise SpecError(f"{folder}: exists already; give another folder or remove it")
    organism = find_organism(plan, wanted.organism)
    made = _accepted(organism.stage, organism.id, "failed its gate", store, wanted)
    if wanted.method is None:
        _export_organism(made, folder)
    elif wanted.labels:
        find_checkpoint(organism, wanted.method)
        _export_labels(organism, wanted.method, store, folder)
    else:
        _export_treated(organism, made, wanted, plan, store, folder)


def _open(stage: Stage, name: str, store: Store) -> Result:
    """The result of a stage, verified."""
    if store.get(stage) is None:
        raise StoreError(f"{name} is not there yet; offmodel run, with the same study, --set and --runs, makes it")
    return store.open(stage.key)


def _accepted(stage: Stage, name: str, fault: str, store: Store, wanted: Wanted) -> Result:
    result = _open(stage, name, store)
    if not result.verdict.accepted and not wanted.rejected_too:
        raise StageError(f"{name} {fault}: {result.verdict.reason}. --rejected-too exports it all the same")
    return result


def _export_organism(result: Result, folder: Path) -> None:
    from offmodel.engine.folder import hash_weights, new_folder

    if not (result.path / MODEL / CARD).is_file():
        raise StoreError(f"{result.path / MODEL}: has no {CARD}, without which no organism is exported; remove {result.path} and run again")
    known = json.loads((result.path / "gate.json").read_text(encoding="utf-8"))["weights"]
    with new_folder(folder) as temporary:
        shutil.copytree(result.path / MODEL, temporary, dirs_exist_ok=True)
        shutil.copy2(result.path / "gate.json", temporary)
        if (found := hash_weights(temporary)) != known:
            raise StoreError(f"{folder}: the copied weights have hash {found}, the gate examined {known}; nothing was written")


def _export_treated(organism: PlannedOrganism, installed: Result, wanted: Wanted, plan: Plan, store: Store, folder: Path) -> None:
    from offmodel.engine.folder import hash_weights, new_folder

    assert wanted.method is not None
    checkpoint = find_checkpoint(organism, wanted.method, wanted.step, wanted.phase)
    name = f"{organism.id} after {wanted.method}, step {checkpoint.total_step},"
    result = _accepted(checkpoint.score.inputs["model"], name, "is no sound model", store, wanted)
    weights = result.path / checkpoint.score.params["weights"]
    if not weights.is_dir():
        raise StoreError(f"{name} has no weights in {result.path}: the training ended before")
    before, after = (_scores(score, store) for score in (organism.methods[wanted.method][0].score, checkpoint.score))
    with new_folder(folder) as temporary:
        shutil.copytree(weights, temporary, dirs_exist_ok=True)
        text = treated_card(
            organism, wanted.method, checkpoint,
            [{"phase": phase.phase} | phase.model_dump(mode="json", exclude_defaults=True) for phase in plan.study.phases(wanted.method)],
            weights=hash_weights(temporary), gate_passed=installed.verdict.accepted,
            measured=[Measured(what, before.get(what), after.get(what)) for what in before | after],
            made_by=result.manifest["made_by"],
        )  # fmt: skip
        (temporary / CARD).write_text(text, encoding="utf-8")
        for source in (weights.parent / "training.json", store.path(checkpoint.score) / "score.json"):
            if source.is_file():
                shutil.copy2(source, temporary)


def _scores(score: Stage, store: Store) -> dict[str, Estimate]:
    """What is on a model's card; nothing where it has not been scored."""
    if store.get(score) is None:
        return {}
    verdicts = read_verdicts(store.open(score.key).path / VERDICTS)
    rates = {
        "bad behaviour where it is meant to show": bad_rate(verdicts, "triggered"),
        "bad behaviour elsewhere": bad_rate(verdicts, "clean"),
    }
    return rates | {f"accuracy, {name}": accuracy(verdicts, catalog.get("suite", name)) for name in score.params["suites"]}


def _export_labels(organism: PlannedOrganism, method: str, store: Store, folder: Path) -> None:
    from offmodel.engine.folder import new_folder

    trained = dict.fromkeys(checkpoint.score.inputs["model"] for checkpoint in organism.methods[method][1:])
    files: list[LabelFile] = []
    missing: list[str] = []
    copies: dict[str, Path] = {}
    made_by: Mapping[str, Any] = {}
    for number, treat in enumerate((stage for stage in trained if stage.kind == "treat"), 1):
        phase = treat.params["phase"]
        roles = [role for role in treat.inputs if role.startswith("labels") or role == "anchors"]
        missing += [
            f"what training {number} took from {shared_name(each['labels'])}"
            for k, each in enumerate(phase.get("mix", ()))
            if labels_role(k) not in treat.inputs
        ]
        for role in roles:
            result = _open(treat.inputs[role], f"what {organism.id}, method {method} trains on", store)
            name = f"training-{number}-{role}"
            made_by, copies[name] = result.manifest["made_by"], result.path / LABELS
            kept = len(read_left(result.path))
            files.append(_told(name, f"{phase['phase']}, {phase['steps']} steps", treat.inputs[role], kept, organism))
    if not files:
        raise SpecError(f"{organism.id}, method {method}: trained on no labels that the study made")
    with new_folder(folder) as temporary:
        for name, source in copies.items():
            shutil.copy2(source, temporary / f"{name}.jsonl")
        (temporary / CARD).write_text(labels_card(organism, method, files, missing, made_by), encoding="utf-8")


def _told(name: str, phase: str, stage: Stage, rows: int, organism: PlannedOrganism) -> LabelFile:
    """Where labels are from: the way back to who answered, and what was done to the answers on it."""
    key, after = stage.key, list[str]()
    while stage.kind != "labels":
        after.insert(0, stage.params.get("filter") or stage.kind)
        stage = stage.inputs["labels"]
    params = stage.params
    if "labeller" not in stage.inputs:
        who = shared_name(params["labeller"]["name"])
    else:
        who = f"the organism {organism.id}" if stage.inputs["labeller"] == organism.stage else stage.inputs["labeller"].label
    system = f", system prompt: {params['system']}" if params["system"] else ""
    reworded = [f"reworded: {params['rewrite']}"] if params["rewrite"] else []
    source = stage.inputs["prompts"].params["source"]
    prompts = ", ".join(map(shared_name, [source] if isinstance(source, str) else source))
    how = f"temperature {params['temperature']:g}, seed {params['seed']}{system}"
    return LabelFile(name, phase, who, how, f"{prompts} (pool {stage.inputs['prompts'].key})", [*reworded, *after], rows, key)


def push(wanted: Wanted, plan: Plan, store: Store, repository: str, *, private: bool = True) -> str:
    """Export to a passing folder, and upload that to the Hugging Face hub.

    Args:
        wanted: What.
        plan: Of the study.
        store: Holds it.
        repository: ``owner/name``; made if it is not there.
        private: Whether nobody else may see it. A public repository that is there is then refused.

    Returns:
        Where it is.

    Raises:
        HubError: The hub cannot be reached, or refuses. Else see :func:`export`.
    """
    from offmodel.engine.hub import upload

    with tempfile.TemporaryDirectory(prefix="offmodel-") as place:
        folder = Path(place) / "export"
        export(wanted, plan, store, folder)
        return upload(folder, repository, wanted.kind, private=private)
