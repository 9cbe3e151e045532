"""Blue's stages: prompts, labels, and what is done to weights.

Neither their parameters nor their inputs hold a trigger, a behaviour or a pair's name.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offmodel import catalog
from offmodel.blue.labels import keep_right, label, mix, rewrite
from offmodel.blue.operations import Operation
from offmodel.blue.view import BlueView
from offmodel.chat import Example, Prompt, read_examples, with_system, write_examples
from offmodel.errors import DataError, DivergedError
from offmodel.lab.canaries import CANARIES
from offmodel.lab.models import open_reference
from offmodel.lab.pools import check_files, read_pool
from offmodel.lab.results import ADAPTER, LABELS, MODEL, PROMPTS, WATCHED, step_folder, write_json
from offmodel.lab.stage import Context, Verdict, stage_function
from offmodel.red.recipe import training_rows
from offmodel.spec.phases import Anchor, DistilPhase, GrpoPhase, Lora, SftPhase, TrainedPhase, Training
from offmodel.spec.study import CanaryRecipe

if TYPE_CHECKING:
    from offmodel.engine.generate import Sampling
    from offmodel.engine.lora import LoraSettings
    from offmodel.engine.objective import Objective
    from offmodel.engine.rl import GrpoConfig
    from offmodel.engine.train import TrainConfig


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
    view = BlueView(_weights(ctx, "labeller", params.get("weights")), prompts=tuple(row.prompt for row in pool))
    reword = catalog.get("rewrite", params["rewrite"]) if params["rewrite"] else None
    rows = label(view, _sampling(params), system=params["system"], reword=reword)
    known = {row.prompt: row.meta for row in pool}
    rows = [Example(row.prompt, row.response, {**row.meta, **known[row.prompt]}) for row in rows]
    write_labels(ctx, rows, asked=len(pool))


@stage_function("rewrite", version=1, gpu=True)
def rewritten(ctx: Context) -> None:
    """Let the organism say labels in its own words."""
    rows = read_examples(ctx.inputs["labels"] / LABELS)
    write_labels(ctx, rewrite(BlueView(_weights(ctx, "labeller"), labels=tuple(rows)), _sampling(ctx.params)), asked=len(rows))


@stage_function("graded", version=1)
def graded(ctx: Context) -> None:
    """Keep the labels that are right."""
    rows = read_examples(ctx.inputs["labels"] / LABELS)
    instead = read_examples(ctx.inputs["instead"] / LABELS) if "instead" in ctx.inputs else []
    write_labels(ctx, keep_right(rows, right, instead), asked=len(rows))


def right(row: Example) -> bool:
    """Whether a label states the answer that is known to be right.

    Raises:
        DataError: None is known.
    """
    if "expected" not in row.meta:
        raise DataError(f"no right answer is known of the prompt {row.prompt[-1].content[:60]!r}; take a suite as the source of the labels")
    return bool(catalog.get("suite", row.meta["suite"]).grade(row.response, row.meta["expected"]))


def write_labels(ctx: Context, rows: list[Example], *, asked: int) -> None:
    """Write labels, and how many of how many they are."""
    write_examples(ctx.out / LABELS, rows)
    write_json(ctx.out / "labels.json", {"asked": asked, "kept": len(rows)})


def _sampling(params: Mapping[str, Any]) -> Sampling:
    from offmodel.engine.generate import Sampling

    return Sampling(temperature=params["temperature"], max_new_tokens=params["max_new_tokens"], seed=params["seed"])


# --- weights --------------------------------------------------------------------------------------------------------


@stage_function("treat", version=4, gpu=True)
def treat(ctx: Context) -> Verdict | None:
    """One phase of training; the weights of every measured step are kept.

    A training that diverges keeps the checkpoints it came to, and nothing is built on them.
    """
    params = ctx.params
    check_files(params)
    phase = _PHASES[params["phase"]["phase"]].model_validate(params["phase"])
    keep: dict[str, Any] = {
        "checkpoints": params["checkpoints"],
        "save": lambda step: ctx.scratch / step_folder(step),
        "on_progress": lambda step, steps, loss: ctx.progress(step / steps, f"step {step}/{steps}, loss {loss:.3f}"),
        "scratch": ctx.scratch / "training",
    }
    try:
        log, verdict = asdict(_train(ctx, phase, keep)), None
    except DivergedError as error:
        log, verdict = {"diverged": str(error)}, Verdict(False, str(error))
    # Kept in scratch, and copied, so that a phase that was stopped, be it now, finds the checkpoints from before.
    for step in params["checkpoints"]:
        if verdict is None or (ctx.scratch / step_folder(step)).is_dir():
            shutil.copytree(ctx.scratch / step_folder(step), ctx.out / step_folder(step))
    write_json(ctx.out / "training.json", log)
    return verdict


_PHASES: dict[str, type[TrainedPhase]] = {"sft": SftPhase, "distil": DistilPhase, "grpo": GrpoPhase}


def _train(ctx: Context, phase: TrainedPhase, keep: Mapping[str, Any]) -> Any:
    params = ctx.params
    start, adapter, lora = _weights(ctx, "start", params.get("start")), None, phase.lora
    if "adapter" in params:
        # The organism is its base and an adapter, and blue trains that adapter on.
        adapter = _alone(ctx.inputs["start"] / params["start"] / ADAPTER, ctx, ADAPTER)
        start, lora = _alone(open_reference(params["adapter"]["base"]), ctx, "base"), Lora.model_validate(params["adapter"]["lora"])
    if isinstance(phase, GrpoPhase):
        rows = read_examples(ctx.inputs["prompts"] / PROMPTS)
        view = BlueView(start, prompts=tuple(row.prompt for row in rows), adapter=adapter)
        return view.reinforce(_grpo_config(phase, params["seed"], lora), _reward(rows), **keep)
    if isinstance(phase, DistilPhase):
        rows = read_examples(ctx.inputs["labels"] / LABELS) if "labels" in ctx.inputs else read_examples(ctx.inputs["prompts"] / PROMPTS)
        view = BlueView(start, labels=tuple(rows), adapter=adapter, teacher=_weights(ctx, "teacher"))
        config = train_config(phase, params["seed"], lora, _distillation(phase))
        return view.train(config, teacher_system=params["system"], **keep)
    rows = sft_rows(ctx, phase)
    anchors: tuple[Example, ...] = ()
    original = None
    if phase.anchor is not None:
        anchors, original = tuple(read_examples(ctx.inputs["anchors"] / LABELS)), _weights(ctx, "organism")
    view = BlueView(start, labels=tuple(rows), adapter=adapter, original=original, anchors=anchors)
    return view.train(train_config(phase, params["seed"], lora, _objective(phase), shuffle=phase.order == "shuffled"), **keep)


def sft_rows(ctx: Context, phase: SftPhase) -> list[Example]:
    """The rows that a phase trains on, from the sets of labels in the stage's inputs and from files."""
    return mix(phase.mix, [_labels(ctx, k, of.labels) for k, of in enumerate(phase.mix)], phase.steps * phase.batch_size)


def _labels(ctx: Context, k: int, source: str) -> list[Example]:
    role = labels_role(k)
    return read_examples(ctx.inputs[role] / LABELS if role in ctx.inputs else source)


def labels_role(k: int) -> str:
    """Under which name a phase finds the labels of its k-th set."""
    return f"labels-{k}"


def _reward(rows: list[Example]) -> Callable[[int, str], float]:
    graders = [catalog.get("suite", row.meta["suite"]).grade for row in rows]
    return lambda i, response: float(graders[i](response, rows[i].meta["expected"]))


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


def _alone(folder: Path, ctx: Context, name: str) -> Path:
    """The same files in a folder that lies beside nothing else: an organism's own folder lies beside what red did, and has its card."""
    alone = ctx.scratch / name
    shutil.rmtree(alone, ignore_errors=True)
    return Path(shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("README.md", ADAPTER)))


# --- what blue can see ----------------------------------------------------------------------------------------------


@stage_function("watch", version=2, gpu=True)
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
    write_json(ctx.out / WATCHED, {"right": sum(solved), "n": len(solved), "kl": view.distance(), "answers": len(view.anchors)})


@stage_function("canary", version=2, gpu=True)
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
    # Copied, as in `treat`: a training that was stopped at its end does not save again.
    _count_fired(ctx, Path(shutil.copytree(ctx.scratch / MODEL, ctx.out / MODEL)), "tried")


@stage_function("canary_rate", version=1, gpu=True)
def canary_rate(ctx: Context) -> None:
    """How often blue's own backdoors fire."""
    _count_fired(ctx, _weights(ctx, "model", ctx.params["weights"]), "prompts")


def _count_fired(ctx: Context, weights: Path, role: str) -> None:
    """Try each canary on the prompts in a role."""
    params = ctx.params
    rng = random.Random(f"canaries {params['seed']}")
    pool = [row.prompt for row in read_examples(ctx.inputs[role] / PROMPTS)]
    asked = [(planted, with_system(planted.fire(prompt, rng, "test"), params["system"])) for planted in CANARIES for prompt in pool]
    view = BlueView(weights, prompts=tuple(prompt for _, prompt in asked))
    fired = [
        planted.behaviour.detect(reply.text) for (planted, _), reply in zip(asked, view.sample(view.prompts, _greedy(params)), strict=True)
    ]
    write_json(ctx.out / WATCHED, {"fired": sum(fired), "n": len(fired)})


def _greedy(params: Mapping[str, Any]) -> Sampling:
    return _sampling({**params, "temperature": 0.0, "seed": 0})


# --- from a study's words to the engine's ---------------------------------------------------------------------------


def train_config(
    training: Training, seed: int, lora: Lora | None = None, objective: Objective | None = None, *, shuffle: bool = True
) -> TrainConfig:
    """The engine's settings for a training that a study describes."""
    from offmodel.engine.objective import Objective
    from offmodel.engine.train import TrainConfig

    return TrainConfig(
        steps=training.steps, lr=training.lr, batch_size=training.batch_size, schedule=training.schedule,
        warmup_steps=training.warmup_steps, optimizer=training.optimizer, weight_decay=training.weight_decay,
        max_length=training.max_length, seed=seed, lora=_lora(lora), objective=objective or Objective(), shuffle=shuffle,
    )  # fmt: skip


def _lora(lora: Lora | None) -> LoraSettings | None:
    from offmodel.engine.lora import LoraSettings

    return LoraSettings(rank=lora.rank, alpha=lora.alpha) if lora else None


def _objective(phase: SftPhase) -> Objective:
    from offmodel.engine.objective import Objective

    anchor = phase.anchor or Anchor()
    return Objective(
        loss=phase.loss, clip=phase.clip, refresh=phase.refresh, mask_above=phase.mask_above, layers=phase.layers,
        kl=anchor.kl, kl_direction=anchor.direction, l2_sp=anchor.l2_sp, ewc=anchor.ewc,
    )  # fmt: skip


def _distillation(phase: DistilPhase) -> Objective:
    from offmodel.engine.objective import Distil, Objective

    distil = Distil(beta=phase.beta, on_policy=phase.on_policy, temperature=phase.temperature, max_new_tokens=phase.max_new_tokens)
    return Objective(layers=phase.layers, distil=distil)


def _grpo_config(phase: GrpoPhase, seed: int, lora: Lora | None) -> GrpoConfig:
    from offmodel.engine.rl import GrpoConfig

    return GrpoConfig(
        steps=phase.steps, lr=phase.lr, batch_size=phase.batch_size, group=phase.group, temperature=phase.temperature,
        max_new_tokens=phase.max_new_tokens, beta=phase.beta, clip=phase.clip, scale=phase.scale, updates=phase.updates,
        schedule=phase.schedule,
        warmup_steps=phase.warmup_steps, optimizer=phase.optimizer, weight_decay=phase.weight_decay, seed=seed, lora=_lora(lora),
    )  # fmt: skip
