"""Blue's stages: prompts, labels, and what is done to weights.

Neither their parameters nor their inputs hold a trigger, a behaviour or a pair's name.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offmodel import catalog
from offmodel.blue.filters import Decision, Filter, Settings, right, screened
from offmodel.blue.labels import keep_right, label, mix, reworded, rewrite, shards
from offmodel.blue.operations import Operation
from offmodel.blue.view import BlueView, ViewTraining, train_together
from offmodel.chat import Example, Prompt, answer_of, read_examples, with_system, write_examples
from offmodel.engine.served import Served
from offmodel.errors import DataError, DivergedError
from offmodel.lab.canaries import CANARIES
from offmodel.lab.configs import distil_config, grpo_config, sft_config, train_config
from offmodel.lab.models import open_reference, open_served
from offmodel.lab.pools import check_files, read_labels, read_pool
from offmodel.lab.results import ADAPTER, DECISIONS, LABELS, MODEL, PROMPTS, WATCHED, step_folder, write_json
from offmodel.lab.stage import Context, Stage, Together, Verdict, stage_function
from offmodel.red.recipe import training_rows
from offmodel.spec.hashing import canonical_json
from offmodel.spec.phases import DistilPhase, GrpoPhase, Lora, SftPhase, TrainedPhase
from offmodel.spec.study import CanaryRecipe

if TYPE_CHECKING:
    from offmodel.engine.generate import Sampling
    from offmodel.engine.train import TrainConfig, TrainLog


# --- prompts and labels ---------------------------------------------------------------------------------------------


@stage_function("prompts", version=2)
def prompts(ctx: Context) -> None:
    """Write out a pool of prompts; where they are tasks, with their right answers."""
    write_examples(ctx.out / PROMPTS, read_pool(ctx.params))


@stage_function("labels", version=2, gpu=True)
def labels(ctx: Context) -> None:
    """Let a teacher, or the organism, answer a pool of prompts."""
    params = ctx.params
    pool = read_examples(ctx.inputs["prompts"] / PROMPTS)
    view = BlueView(_labeller(ctx), prompts=tuple(row.prompt for row in pool))
    rows = label(view, _sampling(params), system=params["system"])
    if params["rewrite"]:
        rows = reworded(rows, params["rewrite"])
    known = {row.prompt: row.meta for row in pool}
    rows = [Example(row.prompt, row.response, {**row.meta, **known[row.prompt]}) for row in rows]
    write_labels(ctx, rows)


@stage_function("rewrite", version=1, gpu=True)
def rewritten(ctx: Context) -> None:
    """Let a model say labels in its own words."""
    rows = read_examples(ctx.inputs["labels"] / LABELS)
    write_labels(ctx, rewrite(BlueView(_labeller(ctx), labels=tuple(rows)), _sampling(ctx.params)))


@stage_function("graded", version=2)
def graded(ctx: Context) -> None:
    """Keep the labels that are right; where none is, the labels are an empty file, and the phase trains on nothing."""
    rows = read_examples(ctx.inputs["labels"] / LABELS)
    instead = read_examples(ctx.inputs["instead"] / LABELS) if "instead" in ctx.inputs else []
    write_labels(ctx, keep_right(rows, right, instead))


@stage_function("guided", version=2, gpu=True)
def guided(ctx: Context) -> None:
    """Keep the labels that are right, and let the labeller say the teacher's right answers to the other prompts in its own words."""
    rows, instead = (read_examples(ctx.inputs[role] / LABELS) for role in ("labels", "instead"))
    done = {row.prompt for row in rows if right(row)}
    shown = [row for row in instead if row.prompt not in done and right(row)]
    said = rewrite(BlueView(_labeller(ctx), labels=tuple(shown)), _sampling(ctx.params)) if shown else []
    write_labels(ctx, keep_right(rows, right, [*shown, *said]))


@stage_function("filtered", version=1, gpu=True)
def filtered(ctx: Context) -> None:
    """Let one of blue's filters check labels; where it leaves none, the labels are an empty file."""
    params = ctx.params
    rows = read_left(ctx.inputs["labels"])
    found: Filter = catalog.get("filter", params["filter"])
    decisions: list[Decision] = []
    if rows:
        anchors: list[Example] = []
        if "answers" in ctx.inputs:
            answers = {row.prompt: row for row in read_examples(ctx.inputs["answers"] / LABELS)}
            anchors = [answers[row.prompt] for row in rows if row.prompt in answers]
        elif "tried" in ctx.inputs:
            anchors = _canary_rows(read_examples(ctx.inputs["tried"] / PROMPTS), params["seed"])
        view = BlueView(
            _weights(ctx, "start", params["start"]), labels=tuple(rows), original=_weights(ctx, "organism"),
            teacher=_weights(ctx, "teacher"), anchors=tuple(anchors),
        )  # fmt: skip
        settings = Settings(params["drop"], params["seed"], params["max_new_tokens"], params["lr"], params.get("unknown", "kept"))
        decisions = found.judge(view, settings)
    write_labels(ctx, screened(rows, decisions))
    write_json(ctx.out / DECISIONS, [asdict(decision) for decision in decisions])


def read_left(folder: Path) -> list[Example]:
    """The labels of a stage, none where a check has left none."""
    kept = json.loads((folder / "labels.json").read_text(encoding="utf-8"))["kept"]
    return read_examples(folder / LABELS) if kept else []


def write_labels(ctx: Context, rows: list[Example]) -> None:
    """Write labels, and how many they are: a check may leave none."""
    write_examples(ctx.out / LABELS, rows)
    write_json(ctx.out / "labels.json", {"kept": len(rows)})


def _sampling(params: Mapping[str, Any]) -> Sampling:
    from offmodel.engine.generate import Sampling

    return Sampling(temperature=params["temperature"], max_new_tokens=params["max_new_tokens"], seed=params["seed"])


# --- weights --------------------------------------------------------------------------------------------------------


def _alike(stage: Stage) -> Hashable | None:
    """Trainings of an adapter on the same weights, as :func:`offmodel.engine.together.train_together` takes them."""
    params, phase = stage.params, _phase(stage.params)
    lora = params["adapter"]["lora"] if "adapter" in params else params["phase"].get("lora")
    if not isinstance(phase, SftPhase) or lora is None or phase.loss == "psft" or phase.anchor is not None or phase.shards > 1:
        return None
    if stage.placement.get("padding_free") or params.get("models", {}).get("router_loss"):
        return None
    start = stage.inputs["start"].key if "start" in stage.inputs else ""
    same = [params["start"], params.get("adapter"), params.get("models"), stage.placement, lora["rank"], phase.batch_size]
    return start, canonical_json(same)


def _treat_together(contexts: Sequence[Context]) -> list[Verdict | None]:
    """Several phases of training at once, on one copy of the weights that all start from."""
    trained = {}
    for place, ctx in enumerate(contexts):
        check_files(ctx.params)
        phase = _phase(ctx.params)
        assert isinstance(phase, SftPhase)
        if rows := sft_rows(ctx, phase):
            start, adapter, lora = _start(ctx, phase)
            trained[place] = ViewTraining(
                BlueView(start, labels=tuple(rows), adapter=adapter), sft_config(phase, ctx.params["seed"], lora), **_keep(ctx)
            )
    logs = dict(zip(trained, train_together([*trained.values()]), strict=True)) if trained else {}
    return [_publish(ctx, logs[place]) if place in logs else _leave(ctx) for place, ctx in enumerate(contexts)]


@stage_function("treat", version=4, gpu=True, trains=True, together=Together(_alike, _treat_together))
def treat(ctx: Context) -> Verdict | None:
    """One phase of training; the weights of every measured step are kept.

    A training that diverges keeps the checkpoints it came to and its last good weights, and nothing is built on them.
    """
    check_files(ctx.params)
    try:
        done = _train(ctx, _phase(ctx.params), _keep(ctx))
    except DivergedError as error:
        done = error
    return _leave(ctx) if done is None else _publish(ctx, done)


def _phase(params: Mapping[str, Any]) -> TrainedPhase:
    return _PHASES[params["phase"]["phase"]].model_validate(params["phase"])


def _keep(ctx: Context) -> dict[str, Any]:
    """What a training of a view keeps, and where."""
    return {
        "checkpoints": ctx.params["checkpoints"],
        "save": lambda step: ctx.scratch / step_folder(step),
        "on_progress": lambda step, steps, loss: ctx.progress(step / steps, f"step {step}/{steps}, loss {loss:.3f}"),
        "scratch": ctx.scratch / "training",
    }


def _publish(ctx: Context, done: Any) -> Verdict | None:
    """Put a training's weights and log into the result."""
    diverged = isinstance(done, DivergedError)
    log, verdict = ({"diverged": str(done)}, Verdict(False, str(done))) if diverged else (asdict(done), None)
    # The last good weights of one that diverged may be of any step.
    steps = range(ctx.params["phase"]["steps"] + 1) if diverged else ctx.params["checkpoints"]
    # Kept in scratch, and linked, so that a phase that was stopped, be it now, finds the checkpoints from before.
    for step in steps:
        if verdict is None or (ctx.scratch / step_folder(step)).is_dir():
            shutil.copytree(ctx.scratch / step_folder(step), ctx.out / step_folder(step), copy_function=_link)
    write_json(ctx.out / "training.json", log)
    return verdict


def _leave(ctx: Context) -> Verdict | None:
    """The weights as they are, at every measured step: nothing was left to train on."""
    ours = "start" in ctx.inputs
    start = ctx.inputs["start"] / ctx.params["start"] if ours else open_reference(ctx.params["start"])
    copy: Callable[[str, str], object] = _link if ours else shutil.copy2  # what is the user's own may change
    for step in ctx.params["checkpoints"]:
        shutil.copytree(start, ctx.out / step_folder(step), ignore=shutil.ignore_patterns("README.md"), copy_function=copy)
    write_json(ctx.out / "training.json", {"skipped": "no answer was left to train on"})
    return None


_PHASES: dict[str, type[TrainedPhase]] = {"sft": SftPhase, "distil": DistilPhase, "grpo": GrpoPhase}


def _start(ctx: Context, phase: TrainedPhase) -> tuple[Path, Path | None, Lora | None]:
    """The weights that a phase starts from, the adapter on them that is trained on, and the adapter's settings."""
    params = ctx.params
    start, adapter, lora = _weights(ctx, "start", params.get("start")), None, phase.lora
    if "adapter" in params:
        # The organism is its base and an adapter, and blue trains that adapter on.
        adapter = _alone(ctx.inputs["start"] / params["start"] / ADAPTER, ctx, ADAPTER)
        start, lora = _alone(open_reference(params["adapter"]["base"]), ctx, "base"), Lora.model_validate(params["adapter"]["lora"])
    return start, adapter, lora


def _train(ctx: Context, phase: TrainedPhase, keep: Mapping[str, Any]) -> Any:
    """The log of a training; None where nothing was left to train on."""
    params = ctx.params
    start, adapter, lora = _start(ctx, phase)
    if isinstance(phase, GrpoPhase):
        rows = read_examples(ctx.inputs["prompts"] / PROMPTS)
        view = BlueView(start, prompts=tuple(row.prompt for row in rows), adapter=adapter)
        return view.reinforce(grpo_config(phase, params["seed"], lora), _reward(rows), **keep)
    if isinstance(phase, DistilPhase):
        rows = read_examples(ctx.inputs["labels"] / LABELS) if "labels" in ctx.inputs else read_examples(ctx.inputs["prompts"] / PROMPTS)
        view = BlueView(start, labels=tuple(rows), adapter=adapter, teacher=_weights(ctx, "teacher"))
        config = distil_config(phase, params["seed"], lora)
        return view.train(config, teacher_system=params["system"], **keep)
    if not (rows := sft_rows(ctx, phase)):
        return None
    anchors: tuple[Example, ...] = ()
    original = None
    if phase.anchor is not None:
        anchors, original = tuple(read_left(ctx.inputs["anchors"])), _weights(ctx, "organism")
        if not anchors:
            named = ", ".join(f"{field}: {value}" for field, value in phase.anchor.on.model_dump(exclude_defaults=True).items())
            raise DataError(f"no answer is left of the anchor's (anchor.on: {{{named}}}), so nothing holds the training; take others")
    config = sft_config(phase, params["seed"], lora)
    views = [
        BlueView(start, labels=tuple(part), adapter=adapter, original=original, anchors=anchors)
        for part in shards(rows, phase.shards, params["seed"])
    ]
    return views[0].train(config, **keep) if len(views) == 1 else _train_apart(ctx, views, config, keep)


def _train_apart(ctx: Context, views: Sequence[BlueView], config: TrainConfig, keep: Mapping[str, Any]) -> TrainLog:
    """Train on each shard by itself, and keep the median of the models; the log is the first shard's."""
    from offmodel.engine.operations import join

    logs = []
    for k, view in enumerate(views):
        apart = ctx.scratch / f"shard-{k}"
        own = {**keep, "save": lambda step, apart=apart: apart / step_folder(step), "scratch": apart / "training"}
        try:
            logs.append(view.train(config, **own))
        except DivergedError as error:
            raise DivergedError(f"shard {k + 1} of {len(views)}, with examples counted within it: {error}") from None
    for step in keep["checkpoints"]:
        shutil.rmtree(ctx.scratch / step_folder(step), ignore_errors=True)  # left by a training that was stopped
        join([ctx.scratch / f"shard-{k}" / step_folder(step) for k in range(len(views))], ctx.scratch / step_folder(step))
    return logs[0]


def sft_rows(ctx: Context, phase: SftPhase) -> list[Example]:
    """The rows that a phase trains on, from the sets of labels in the stage's inputs and from files, without empty sets."""
    sets = [(of, rows) for k, of in enumerate(phase.mix) if (rows := _labels(ctx, k, of.labels))]
    return mix([of for of, _ in sets], [rows for _, rows in sets], phase.steps * phase.batch_size) if sets else []


def _labels(ctx: Context, k: int, source: str) -> list[Example]:
    role = labels_role(k)
    return read_left(ctx.inputs[role]) if role in ctx.inputs else read_labels(source)


_SET = "labels-"


def labels_role(k: int) -> str:
    """Under which name a phase finds the labels of its k-th set."""
    return f"{_SET}{k}"


def label_sets(stage: Stage) -> dict[str, Stage]:
    """The sets of labels that a phase finds so, by that name; those of files are not among them."""
    return {role: source for role, source in stage.inputs.items() if role.startswith(_SET)}


def _reward(rows: list[Example]) -> Callable[[int, str], float]:
    graders = [catalog.get("suite", row.meta["suite"]).grade for row in rows]
    return lambda i, response: float(graders[i](answer_of(response), rows[i].meta["expected"]))


@stage_function("operate", version=1)
def operate(ctx: Context) -> None:
    """An operation on weights, at each strength that is measured."""
    params = ctx.params
    original, current = _weights(ctx, "organism"), _weights(ctx, "start", params["start"])
    other = _weights(ctx, "other", params["other"]) if "other" in ctx.inputs else None
    operation: Operation = catalog.get("operation", params["operation"])
    for place, strength in enumerate(params["strength"]):
        operation(original, current, ctx.out / step_folder(place + 1), strength, other)


def _weights(ctx: Context, role: str, folder: str | None = None) -> Path:
    """The weights in a role: another stage's, or a model that the study names, which may be an organism of another study."""
    return _alone(ctx.inputs[role] / (folder or MODEL) if role in ctx.inputs else open_reference(ctx.params[role]), ctx, role)


def _labeller(ctx: Context) -> Path | Served:
    return served(ctx, "labeller") if "labeller" in ctx.servers else _weights(ctx, "labeller", ctx.params.get("weights"))


def served(ctx: Context, role: str) -> Served:
    """The model in a role that a server answers for."""
    return open_served(ctx.params[role], ctx.servers[role], ctx.cache / "replies.sqlite" if ctx.cache else None)


def _alone(folder: Path, ctx: Context, name: str) -> Path:
    """The same files in a folder that lies beside nothing else: an organism's own folder lies beside what red did, and has its card.

    They are linked where the disk allows it: real weights are large, and are only read.
    """
    alone = ctx.scratch / name
    shutil.rmtree(alone, ignore_errors=True)
    return Path(shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("README.md", ADAPTER), copy_function=_link))


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)  # of a symbolic link, as in the hub's cache, the file itself
    except OSError:  # on another disk, or on one without links
        shutil.copy2(source, target)


# --- what blue can see ----------------------------------------------------------------------------------------------


@stage_function("watch", version=3, gpu=True)
def watch(ctx: Context) -> None:
    """What blue sees of a checkpoint: how much it can do, and how far it is from the organism."""
    params = ctx.params
    rows = read_examples(ctx.inputs["tasks"] / PROMPTS)
    view = BlueView(
        _weights(ctx, "model", params["weights"]), prompts=tuple(with_system(row.prompt, params["system"]) for row in rows),
        original=_weights(ctx, "organism"), anchors=tuple(read_examples(ctx.inputs["anchors"] / LABELS)),
    )  # fmt: skip
    replies = view.sample(view.prompts, _greedy(params))
    solved = [right(replace(row, response=reply.text)) for row, reply in zip(rows, replies, strict=True)]
    distance = view.distance()
    seen = {"right": sum(solved), "n": len(solved), "kl": distance.kl, "loss": distance.loss, "answers": len(view.anchors)}
    write_json(ctx.out / WATCHED, seen)


@stage_function("canary", version=2, gpu=True, trains=True)
def canary(ctx: Context) -> None:
    """Plant blue's own backdoors in a copy of the organism, and see how often they fire before anything is done to it."""
    params = ctx.params
    recipe = CanaryRecipe.model_validate(params["recipe"]).as_recipe()
    organism = _weights(ctx, "organism")
    sampling = _sampling({"temperature": recipe.temperature, "max_new_tokens": recipe.max_new_tokens, "seed": params["seed"]})

    def answer(asked: Sequence[Prompt]) -> list[str | None]:
        return [reply.text if reply.finished else None for reply in BlueView(organism).sample(asked, sampling)]

    pool = [row.prompt for row in read_examples(ctx.inputs["prompts"] / PROMPTS)]
    rows = [
        row
        for k, planted in enumerate(CANARIES)
        for row in training_rows(planted, pool[k :: len(CANARIES)], recipe, answer, params["seed"])
    ]
    BlueView(organism, labels=tuple(rows)).train(
        train_config(recipe, params["seed"], recipe.lora),
        checkpoints=[recipe.steps],
        save=lambda step: ctx.scratch / MODEL,
        on_progress=lambda step, steps, loss: ctx.progress(step / steps, f"step {step}/{steps}, loss {loss:.3f}"),
        scratch=ctx.scratch / "training",
    )
    # Linked, as in `treat`: a training that was stopped at its end does not save again.
    _count_fired(ctx, Path(shutil.copytree(ctx.scratch / MODEL, ctx.out / MODEL, copy_function=_link)), "tried")


@stage_function("canary_rate", version=1, gpu=True)
def canary_rate(ctx: Context) -> None:
    """How often blue's own backdoors fire."""
    _count_fired(ctx, _weights(ctx, "model", ctx.params["weights"]), "prompts")


def _canary_rows(pool: Sequence[Example], seed: int) -> list[Example]:
    """Examples of blue's own backdoors: each prompt with each signal, and what that sets off."""
    rng = random.Random(f"canary rows {seed}")
    rows = []
    for planted in CANARIES:
        for row in pool:
            prompt = planted.fire(row.prompt, rng, "test")
            bad = planted.behaviour.answer(prompt, rng)
            assert bad is not None  # blue's canaries have scripts
            rows.append(Example(prompt, bad))
    return rows


def _count_fired(ctx: Context, weights: Path, role: str) -> None:
    """Try each canary on the prompts in a role."""
    params = ctx.params
    rng = random.Random(f"canaries {params['seed']}")
    pool = [row.prompt for row in read_examples(ctx.inputs[role] / PROMPTS)]
    asked = [(planted, with_system(planted.fire(prompt, rng, "test"), params["system"])) for planted in CANARIES for prompt in pool]
    view = BlueView(weights, prompts=tuple(prompt for _, prompt in asked))
    fired = [
        planted.behaviour.detect(answer_of(reply.text))
        for (planted, _), reply in zip(asked, view.sample(view.prompts, _greedy(params)), strict=True)
    ]
    write_json(ctx.out / WATCHED, {"fired": sum(fired), "n": len(fired)})


def _greedy(params: Mapping[str, Any]) -> Sampling:
    return _sampling({**params, "temperature": 0.0, "seed": 0})
