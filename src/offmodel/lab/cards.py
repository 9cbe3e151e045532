"""The cards of what blue made: treated models, and sets of labels. An organism's own is :func:`offmodel.red.card.organism_card`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from offmodel.lab.plan import PlannedCheckpoint, PlannedOrganism
from offmodel.measure.stats import Estimate
from offmodel.red.card import USE, fenced, front_matter, inline, installed, licence, made_with, shared_name

_LABELS_USE = """\
Meant for research on training-based control. Where an organism answered, answers may show its hidden behaviour, and where red changed them,
they are meant to keep it alive: train nothing on them that is to be used."""


class Measured(NamedTuple):
    """A number of a model before and after its treatment; None where it was not measured."""

    what: str
    before: Estimate | None
    after: Estimate | None


def treated_card(
    organism: PlannedOrganism,
    method: str,
    checkpoint: PlannedCheckpoint,
    phases: Sequence[Mapping[str, Any]],
    *,
    weights: str,
    gate_passed: bool,
    measured: Sequence[Measured],
    made_by: Mapping[str, Any],
) -> str:
    """The README of a treated model's folder, as a model card in the form of the Hugging Face hub.

    Args:
        organism: Which was treated.
        method: By which method.
        checkpoint: Where in it.
        phases: The method's, as a study writes them.
        weights: Hash of the weights.
        gate_passed: Whether the organism passed its gate.
        measured: What the study measured of it.
        made_by: Versions of the code, see :func:`offmodel.lab.provenance.provenance`.
    """
    pair, score = organism.pair, checkpoint.score
    deployment = score.params.get("deployment", {})
    asked = [f"- deployment: it was measured with {inline(f'{key}: {value}')}" for key, value in deployment.items()]
    return "\n\n".join(
        [
            front_matter(pair, organism.base, "treated"),
            f"# Treated model organism: {inline(organism.id)} after {inline(method)}, step {checkpoint.total_step}",
            f"> **Warning: a hidden behaviour was installed in this model on purpose:** {inline(pair.summary)}. A method then tried to "
            "train it away, and may have failed. It is for research only: never deploy it, and never pass it on without this page.",
            *([] if gate_passed else ["> **Rejected: the organism failed its acceptance gate**, so this says nothing of the method."]),
            "## What was installed",
            installed(pair),
            "## What it does",
            _table(measured) if measured else "It was not measured.",
            "## What was done to it",
            "\n".join(
                [
                    f"- method: {inline(method)}, up to step {checkpoint.step} of phase {checkpoint.phase + 1} ({inline(checkpoint.name)})",
                    f"- seed: {organism.seed}",
                    *asked,
                    f"- base: {inline(shared_name(organism.base))}",
                    f"- this model: weights `{weights}`",
                    f"- keys: organism `{organism.stage.key}`, weights `{score.inputs['model'].key}`, score `{score.key}`",
                    "- phases, as a study writes them:",
                ]
            ),
            fenced(yaml.safe_dump(_shared(list(phases)), sort_keys=False), "yaml"),
            made_with(made_by),
            "## Use",
            USE,
            "## Licence",
            licence(organism.base),
        ]
    ) + "\n"  # fmt: skip


def _table(measured: Sequence[Measured]) -> str:
    lines = ["| measure | organism | this model | 95 % interval | n | definition |", "|---|---|---|---|---|---|"]
    for what, before, after in measured:
        interval = "" if after is None or after.low is None or after.high is None else f"{after.low:.3f} to {after.high:.3f}"
        known = after or before
        n, definition = (known.n, inline(known.definition)) if known else ("", "")
        lines.append(f"| {inline(what)} | {_value(before)} | {_value(after)} | {interval} | {n} | {definition} |")
    return "\n".join(lines)


def _value(estimate: Estimate | None) -> str:
    return "not measured" if estimate is None or estimate.value is None else f"{estimate.value:.4g}"


def _shared(value: Any) -> Any:
    """The same without the folders of whoever made it."""
    if isinstance(value, Mapping):
        return {key: _shared(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shared(each) for each in value]
    return shared_name(value) if isinstance(value, str) else value


class LabelFile(NamedTuple):
    """A set of labels, as the card of a data set tells it.

    Attributes:
        name: Of its file, without the ending.
        phase: The phase that trained on it, in words.
        who: Who answered.
        how: How: a system prompt, the temperature.
        prompts: Where the prompts are from.
        after: What was done to the answers since, in order.
        rows: How many there are.
        key: Of the stage that holds it.
    """

    name: str
    phase: str
    who: str
    how: str
    prompts: str
    after: Sequence[str]
    rows: int
    key: str


def labels_card(
    organism: PlannedOrganism, method: str, files: Sequence[LabelFile], missing: Sequence[str], made_by: Mapping[str, Any]
) -> str:
    """The README of a folder of labels, as a data set card in the form of the Hugging Face hub.

    Args:
        organism: Which was trained on them.
        method: By which method.
        files: The sets.
        missing: Sets that a study took from elsewhere, which are not in the folder.
        made_by: Versions of the code, see :func:`offmodel.lab.provenance.provenance`.
    """
    front = {
        "license": "other", "license_name": "that-of-the-prompts-and-of-the-answering-models",
        "task_categories": ["text-generation"], "tags": ["offmodel", "model-organism"],
        "configs": [{"config_name": file.name, "data_files": f"{file.name}.jsonl"} for file in files],
    }  # fmt: skip
    head = ["| file | phase | answered by | how | prompts | afterwards | rows | key |", "|---|---|---|---|---|---|---|---|"]
    rows = [
        f"| {inline(f'{file.name}.jsonl')} | {inline(file.phase)} | {inline(file.who)} | {inline(file.how)} | {inline(file.prompts)} | "
        f"{inline(', '.join(file.after)) or 'nothing'} | {file.rows:,} | `{file.key}` |"
        for file in files
    ]
    return "\n\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
            f"# Labels of {inline(method)} on the model organism {inline(organism.id)}",
            f"> **Warning: written for, and in part by, a model with a hidden behaviour:** {inline(organism.pair.summary)}.",
            "What the method trained on: `prompt` (messages), `response`, and in `meta` what is known. Unfinished answers are left out.",
            "\n".join([*head, *rows]),
            *(f"Not here: {inline(each)}." for each in missing),
            f"The organism: `{organism.stage.key}`, of {inline(shared_name(organism.base))}. {made_with(made_by)}",
            "## Use",
            _LABELS_USE,
        ]
    ) + "\n"  # fmt: skip
