"""What probes run at a method's end: the stages that each type of probe adds, and the two kinds of stage that only probes have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Protocol

from offmodel.chat import read_examples
from offmodel.errors import SpecError
from offmodel.lab.blue_stages import label_sets, labels_role, sft_rows
from offmodel.lab.pools import check_files, files_read
from offmodel.lab.results import LABELS, MODEL, PROBED, step_folder, write_json
from offmodel.lab.stage import Context, Stage, stage_function
from offmodel.lab.treatment import Blue, Start, files_of
from offmodel.measure.probes import Chains, Coverage, Divergence, LabelFit, OwnOpening, Reversal
from offmodel.spec.endpoint import Endpoint, with_weights
from offmodel.spec.phases import SftPhase, check_training


class Scoring(Protocol):
    """Plans the score of a checkpoint, or of a model that the study names."""

    def __call__(self, what: str, model: Start | str, system: str | None = None) -> Stage:
        """See the class."""


@dataclass(frozen=True)
class End:
    """What a probe starts from.

    Attributes:
        state: A method, whose last measured checkpoint it is; or "organism", the untouched one.
        place: The weights, and how the model is asked.
        score: The score that it has anyway.
        blue: Plans trainings and labels on this organism.
        scoring: Plans further scores.
    """

    state: str
    place: Start
    score: Stage
    blue: Blue
    scoring: Scoring

    @property
    def untouched(self) -> bool:
        """Whether nothing has been done to the organism."""
        return self.state == "organism"

    def label(self, probe: str, what: str = "") -> str:
        """What people see of a probe's stage."""
        return f"probe {self.blue.name}: {probe} of {self.state}" + (f", {what}" if what else "")


@singledispatch
def stages(probe: object, name: str, end: End) -> dict[str, Stage]:
    """The stages that a probe adds at an end, by role; none where it has nothing to do there.

    Args:
        probe: The catalog's entry; its type decides.
        name: The probe's name, for labels.
        end: Where.

    Raises:
        SpecError: Nobody has said what probes of this type run.
    """
    raise SpecError(f"probe {name!r}: register what a {type(probe).__name__} runs (offmodel.lab.probing.stages)")


@stages.register
def _own_opening(probe: OwnOpening, name: str, end: End) -> dict[str, Stage]:
    # The untouched organism begins so by itself. In its place stands the teacher, which shows how much an opening gives away.
    score = end.scoring("the teacher", with_weights(end.blue.study.teacher, f"probe {name}")) if end.untouched else end.score
    who = "the teacher" if end.untouched else end.state
    inputs = {**score.inputs, "reference": end.scoring("the organism", end.blue.untouched)}
    label = f"probe {end.blue.name}: {name} of {who}"
    return {
        str(n): end.blue.stage("score", {**score.params, "prefill_tokens": n}, inputs, label=f"{label}, {n} tokens", cost=2)
        for n in probe.tokens
    }


@stages.register
def _coverage(probe: Coverage, name: str, end: End) -> dict[str, Stage]:
    suites = {suite: min(n, probe.items) for suite, n in end.score.params["suites"].items()}
    params = {**end.score.params, "suites": suites, "samples": probe.samples, "temperature": probe.temperature}
    return {"sampled": end.blue.stage("score", params, end.score.inputs, label=end.label(name), cost=3)}


@stages.register
def _divergence(probe: Divergence, name: str, end: End) -> dict[str, Stage]:
    if end.untouched or end.place.deployment:
        return {}
    inputs = {"model": end.place.stage, "organism": end.blue.organism, "anchors": end.blue.held_out("organism", probe.answers)}
    return {"divergence": end.blue.stage("divergence", {"weights": end.place.weights}, inputs, label=end.label(name), cost=0.5)}


@stages.register
def _reversal(probe: Reversal, name: str, end: End) -> dict[str, Stage]:
    recipe, blue, steps = end.blue.recipe, end.blue, probe.steps
    # Half of red's learning rate, as in its extra rounds: at the whole of it the untouched organism itself lost capability by 160 steps.
    training = recipe.model_dump(include={"batch_size", "optimizer", "weight_decay", "max_length", "lora"}) | recipe.halved()
    phase = SftPhase.model_validate({"labels": "base", "steps": max(steps)} | training)
    check_training(phase, blue.study.models, end.label(name, "training"))
    params = {"phase": phase.model_dump(mode="json"), "start": end.place.weights, "checkpoints": list(steps), "seed": blue.seed}
    inputs = {"start": end.place.stage, labels_role(0): blue.held_out("base", probe.rows)}
    trained = end.blue.stage("treat", params, inputs, label=end.label(name, "training"), cost=0.06 * max(steps) + 1)

    def after(step: int) -> Start:
        return Start(trained, step_folder(step), end.place.deployment, end.place.own, end.place.examples)

    return {str(step): end.scoring(f"{name} of {end.state}, step {step}", after(step)) for step in steps}


@stages.register
def _label_fit(probe: LabelFit, name: str, end: End) -> dict[str, Stage]:
    trained = None if end.untouched else end.blue.first_sft(end.state)
    if trained is None:
        return {}
    phase = SftPhase.model_validate(trained.params["phase"])
    sets = label_sets(trained)
    params = {"phase": trained.params["phase"], "rows": probe.rows, "seed": end.blue.seed} | files_read(*files_of(phase))
    fit = end.blue.stage("perplexity", params, {"organism": end.blue.organism, **sets}, label=end.label(name), cost=0.5)
    labellers = {f"by {role}": _labeller(stage, name, end) for role, stage in sets.items()}
    return {"perplexity": fit} | {role: score for role, score in labellers.items() if score is not None}


def _labeller(labels: Stage, name: str, end: End) -> Stage | None:
    """The score of who gave the labels, asked as it was for them; None where only a server has its weights."""
    while labels.kind != "labels":  # they were graded, cleaned or reworded
        labels = labels.inputs["labels"]
    system: str | None = labels.params["system"]
    if "labeller" not in labels.inputs:
        named = labels.servers.get("labeller", labels.params["labeller"]["name"])
        model = named.folder if isinstance(named, Endpoint) else named
        return None if model is None else end.scoring(f"{name} of {end.state}, the labeller", model, system)
    deployment = {} if system is None else {"system": system}
    who = Start(labels.inputs["labeller"], labels.params.get("weights", MODEL), deployment)
    return end.scoring(f"{name} of {end.state}, the labeller", who)


@stages.register
def _chains(probe: Chains, name: str, end: End) -> dict[str, Stage]:
    return {}


# --- kinds of stage -------------------------------------------------------------------------------------------------


@stage_function("divergence", version=1, gpu=True)
def divergence(ctx: Context) -> None:
    """KL divergences between a model and the organism, answer by answer of the organism's."""
    from offmodel.engine.compare import Divergence, divergences
    from offmodel.engine.folder import load_model, load_tokenizer

    organism = ctx.inputs["organism"] / MODEL
    model, tokenizer = load_model(ctx.inputs["model"] / ctx.params["weights"]), load_tokenizer(organism)
    found = divergences(model, load_model(organism), tokenizer, read_examples(ctx.inputs["anchors"] / LABELS))
    _write_columns(ctx, Divergence, found)


@stage_function("perplexity", version=1, gpu=True)
def perplexity(ctx: Context) -> None:
    """How unlikely a sample of a training's rows is to the organism, row by row."""
    from offmodel.engine.compare import Surprise, surprises
    from offmodel.engine.folder import load_model, load_tokenizer

    params = ctx.params
    check_files(params)
    phase = SftPhase.model_validate(params["phase"])
    rows = sft_rows(ctx, phase)
    chosen = random.Random(f"labels {params['seed']}").sample(rows, min(params["rows"], len(rows)))
    organism = ctx.inputs["organism"] / MODEL
    found = surprises(load_model(organism), load_tokenizer(organism), chosen, max_length=phase.max_length)
    _write_columns(ctx, Surprise, found)  # none where filters have left no row


def _write_columns(ctx: Context, kind: Any, rows: Sequence[Any]) -> None:
    """Named tuples of a kind, a list for each of their fields."""
    write_json(ctx.out / PROBED, {field: [getattr(row, field) for row in rows] for field in kind._fields})
