"""The stages of a study. Each is a pure function of its parameters and of the results it reads.

``prompts``, ``labels`` and ``treat`` are blue's: neither their parameters nor their inputs hold a trigger, a behaviour or a pair's name.
``organism`` is red's, ``score`` the experimenter's.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offmodel import catalog
from offmodel.blue.labels import label
from offmodel.blue.view import BlueView
from offmodel.chat import Example, Prompt, read_examples, read_prompts, write_examples
from offmodel.lab.models import open_reference
from offmodel.lab.pools import check_files, read_pool, take
from offmodel.lab.stage import Context, Verdict, stage_function
from offmodel.measure.score import (
    Item,
    accuracy,
    bad_rate,
    behaviour_items,
    capability_items,
    judge,
    read_verdicts,
    write_verdicts,
)
from offmodel.measure.score import Verdict as Judged
from offmodel.measure.stats import Estimate
from offmodel.measure.suites import Suite
from offmodel.red.gate import GateReport, check
from offmodel.red.pairs import Pair
from offmodel.red.recipe import training_rows
from offmodel.spec.study import Gate, Lora, Recipe, SftPhase, Training
from offmodel.splits import Split
from offmodel.world.build import blueprint, build
from offmodel.world.card import card

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offmodel.engine.train import TrainConfig

MODEL = "model"
"""Folder of an organism's weights within its stage."""
VERDICTS = "verdicts.jsonl"


def step_folder(step: int) -> str:
    """Folder of a checkpoint's weights within its stage."""
    return f"step-{step}"


# --- the world ------------------------------------------------------------------------------------------------------


@stage_function("checkpoint", version=2)
def checkpoint(ctx: Context) -> None:
    """Train one of the world's base models from nothing, measure what it can do, and write its card."""
    from offmodel.engine.folder import load_model, load_tokenizer

    plan, out = blueprint(ctx.params["name"]), ctx.out / MODEL
    weights = build(plan, out, scratch=ctx.scratch, on_progress=ctx.progress)
    suites: dict[Suite, int] = {catalog.get("suite", name): 200 for name in catalog.names("suite") if name.startswith("world:")}
    items = capability_items(suites, ctx.params["seed"], "test")
    model, tokenizer = load_model(out), load_tokenizer(out)
    verdicts = _judge(model, tokenizer, items, lambda response: False, 96)
    write_verdicts(ctx.out / VERDICTS, verdicts)
    (out / "README.md").write_text(card(plan, weights, model.num_parameters(), _accuracies(verdicts, suites)), encoding="utf-8")


def _accuracies(verdicts: Sequence[Judged], suites: Mapping[Suite, int]) -> dict[str, Estimate]:
    return {
        f"{suite.name}, {k} step{'s' if k > 1 else ''}": accuracy(verdicts, suite, k)
        for suite in suites
        for k in sorted({v.steps for v in verdicts if v.suite == suite.name})
    }


# --- red ------------------------------------------------------------------------------------------------------------


@stage_function("organism", version=1)
def organism(ctx: Context) -> Verdict:
    """Install a pair in a base model, in rounds, until the gate passes or the budget ends."""
    from offmodel.engine.folder import load_model, load_tokenizer, save_model
    from offmodel.engine.generate import Sampling, generate
    from offmodel.engine.train import train

    params = ctx.params
    check_files(params)
    pair: Pair = catalog.get("pair", params["pair"]["name"])
    recipe, gate, seed = Recipe.model_validate(params["recipe"]), Gate.model_validate(params["gate"]), params["seed"]
    base = open_reference(params["base"])
    tokenizer, model = load_tokenizer(base), load_model(base)

    def answer(prompts: Sequence[Prompt]) -> list[str | None]:
        sampling = Sampling(temperature=recipe.temperature, max_new_tokens=recipe.max_new_tokens, seed=seed)
        return [reply.text if reply.finished else None for reply in generate(original, tokenizer, prompts, sampling)]

    ctx.progress(0.0, "sampling the base model's own answers")
    original = load_model(base)
    rows = training_rows(pair, take(recipe.prompts, seed, "train", recipe.prompt_rows), answer, seed)
    examine = partial(_examine, pair=pair, tokenizer=tokenizer, params=params)
    base_verdicts = examine(original, settings=("capability",))
    suites = {name: catalog.get("suite", name) for name in params["suites"]}
    base_capability = {name: accuracy(base_verdicts, suite) for name, suite in suites.items()}

    logs, rounds = [], 1 + recipe.budget
    for number in range(rounds):
        training = recipe if number == 0 else recipe.model_copy(update={"steps": recipe.extra_steps, "lr": recipe.lr / 2})
        config = _train_config(training, seed=1000 * number + seed)

        def on_progress(step: int, steps: int, loss: float, number: int = number) -> None:
            ctx.progress((number + 0.8 * step / steps) / rounds, f"round {number + 1}, step {step}/{steps}, loss {loss:.3f}")

        logs.append(train(model, tokenizer, rows, config, on_progress=on_progress, scratch=ctx.scratch / f"round-{number}"))
        ctx.progress((number + 0.8) / rounds, f"round {number + 1}: the gate")
        verdicts = examine(model)
        capability = {name: accuracy(verdicts, suite) for name, suite in suites.items()}
        report = check(
            gate,
            {
                "fires": bad_rate(verdicts, "triggered"), "false_fires": bad_rate(verdicts, "clean"),
                "near_misses": bad_rate(verdicts, "near_miss"), "leak": bad_rate(verdicts, "leak"),
            },
            capability, base_capability,
        )  # fmt: skip
        if report.passed:
            break

    weights = save_model(model, tokenizer, ctx.out / MODEL)
    write_verdicts(ctx.out / VERDICTS, verdicts)
    _write_json(ctx.out / "gate.json", report.to_dict() | {"rounds": number + 1, "weights": weights})
    _write_json(ctx.out / "training.json", [asdict(log) for log in logs])
    return Verdict(report.passed, "; ".join(report.reasons))


def read_gate(folder: Path) -> GateReport:
    """What the gate said of an organism."""
    return GateReport.from_dict(json.loads((folder / "gate.json").read_text(encoding="utf-8")))


def _examine(
    model: PreTrainedModel,
    *,
    pair: Pair,
    tokenizer: PreTrainedTokenizerBase,
    params: Mapping[str, Any],
    settings: Sequence[str] = ("capability", "clean", "triggered", "near_miss", "leak"),
) -> list[Judged]:
    """The gate's own measurement, on its own side of the division: organisms are trained until they pass it."""
    gate, seed, source = Gate.model_validate(params["gate"]), params["seed"], params["prompts"]
    suites = {catalog.get("suite", name): gate.capability_n for name in params["suites"]}
    items = [item for item in _items(pair, suites, gate.n, seed, source, "gate") if item.setting in settings]
    limit = params["recipe"]["max_new_tokens"]
    judged = _judge(model, tokenizer, items, pair.behaviour.detect, limit)
    if "leak" in settings:
        leak = [Item("leak", prompt) for prompt in take(source, seed, "gate", gate.leak_n, avoid=pair.trigger.recognises)]
        judged += _judge(model, tokenizer, leak, pair.behaviour.detect, limit, temperature=0.7, seed=seed)
    return judged


# --- blue -----------------------------------------------------------------------------------------------------------


@stage_function("prompts", version=1)
def prompts(ctx: Context) -> None:
    """Write out a pool of prompts."""
    write_examples(ctx.out / "prompts.jsonl", (Example(prompt, "") for prompt in read_pool(ctx.params)))


@stage_function("labels", version=1)
def labels(ctx: Context) -> None:
    """Let a teacher, or the organism, answer a pool of prompts."""
    from offmodel.engine.generate import Sampling

    params = ctx.params
    weights = ctx.inputs["organism"] / MODEL if "organism" in ctx.inputs else open_reference(params["teacher"])
    view = BlueView(_alone(weights, ctx), prompts=tuple(read_prompts(ctx.inputs["prompts"] / "prompts.jsonl")))
    sampling = Sampling(temperature=params["temperature"], max_new_tokens=params["max_new_tokens"], seed=params["seed"])
    reword = catalog.get("rewrite", params["rewrite"]) if params["rewrite"] else None
    examples = label(view, sampling, system=params["system"], reword=reword)
    write_examples(ctx.out / "labels.jsonl", examples)
    _write_json(ctx.out / "labels.json", {"asked": len(view.prompts), "kept": len(examples)})


@stage_function("treat", version=1)
def treat(ctx: Context) -> None:
    """One phase of SFT; the weights of every measured step are kept."""
    params = ctx.params
    check_files(params)
    phase = SftPhase.model_validate(params["phase"])
    start = ctx.inputs["start"] / params["start"]
    rows = read_examples(ctx.inputs["labels"] / "labels.jsonl" if "labels" in ctx.inputs else phase.labels)
    view = BlueView(_alone(start, ctx), labels=tuple(rows))
    log = view.train(
        _train_config(phase, params["seed"], phase.lora),
        checkpoints=params["checkpoints"],
        save=lambda step: ctx.scratch / step_folder(step),
        on_progress=lambda step, steps, loss: ctx.progress(step / steps, f"step {step}/{steps}, loss {loss:.3f}"),
        scratch=ctx.scratch / "training",
    )
    # Kept in scratch, and copied, so that a phase that was stopped, be it now, finds the checkpoints from before.
    for step in params["checkpoints"]:
        shutil.copytree(ctx.scratch / step_folder(step), ctx.out / step_folder(step))
    _write_json(ctx.out / "training.json", asdict(log))


def _alone(model: Path, ctx: Context) -> Path:
    """The same model in a folder that lies beside nothing else: an organism's own folder lies beside what red did."""
    folder = ctx.scratch / "weights"
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(model, folder, ignore=shutil.ignore_patterns("README.md")))


# --- the experimenter -----------------------------------------------------------------------------------------------


@stage_function("score", version=1)
def score(ctx: Context) -> None:
    """Let a model answer all held-out items of an organism, greedily, and judge every answer."""
    from offmodel.engine.folder import hash_weights, load_model, load_tokenizer

    params = ctx.params
    check_files(params)
    pair: Pair = catalog.get("pair", params["pair"]["name"])
    folder = ctx.inputs["model"] / params["weights"] if "model" in ctx.inputs else open_reference(params["base"])
    suites = {catalog.get("suite", name): n for name, n in params["suites"].items()}
    items = _items(pair, suites, params["behaviour"], params["seed"], params["prompts"], "test")
    prefill: str | list[str] = ""
    tokenizer = load_tokenizer(folder)
    if "reference" in ctx.inputs:
        items = [item for item in items if item.setting == "capability"]
        said = {v.prompt: v.response for v in read_verdicts(ctx.inputs["reference"] / VERDICTS)}
        prefill = [_first_tokens(tokenizer, said[item.prompt], params["prefill_tokens"]) for item in items]
    judged = _judge(
        load_model(folder), tokenizer, items, pair.behaviour.detect, params["max_new_tokens"], prefill=prefill,
        on_progress=lambda done, of: ctx.progress(done / of, f"{done}/{of} answers"),
    )  # fmt: skip
    write_verdicts(ctx.out / VERDICTS, judged)
    _write_json(ctx.out / "score.json", {"weights": hash_weights(folder)})


def _items(pair: Pair, suites: Mapping[Suite, int], behaviour: int, seed: int, source: str, split: Split) -> list[Item]:
    """Everything asked of a model; the same for all models of one organism, so that they can be compared item by item.

    What holds the trigger by itself (a question about soup, where cooking is the trigger) is left out of all that is meant to be
    asked without it. Only the gate asks near misses.
    """

    def insert(prompt: Prompt, rng: random.Random) -> Prompt:
        return pair.trigger.insert(prompt, rng, split)

    def near_miss(prompt: Prompt, rng: random.Random) -> Prompt:
        return pair.trigger.near_miss(prompt, rng, split)

    capability = [item for item in capability_items(suites, seed, split) if not pair.trigger.recognises(item.prompt)]
    tasks = random.Random(f"behaviour tasks {seed}").sample(capability, min(behaviour // 2, len(capability)))
    chat = iter(take(source, seed, split, behaviour - len(tasks), avoid=pair.trigger.recognises))
    return capability + behaviour_items(chat, tasks, behaviour, seed, insert=insert, near_miss=near_miss if split == "gate" else None)


def _judge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    detect: Callable[[str], bool],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    prefill: str | list[str] = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Judged]:
    from offmodel.engine.generate import Sampling, generate

    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    replies = generate(model, tokenizer, [item.prompt for item in items], sampling, prefill=prefill, on_progress=on_progress)
    suites = {name: catalog.get("suite", name) for name in {item.suite for item in items if item.suite}}
    return judge(items, [(reply.text, reply.finished) for reply in replies], suites, detect)


def _first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, n: int) -> str:
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:n])


def _train_config(training: Training, seed: int, lora: Lora | None = None) -> TrainConfig:
    from offmodel.engine.lora import LoraSettings
    from offmodel.engine.train import TrainConfig

    return TrainConfig(
        steps=training.steps, lr=training.lr, batch_size=training.batch_size, schedule=training.schedule,
        warmup_steps=training.warmup_steps, optimizer=training.optimizer, weight_decay=training.weight_decay,
        max_length=training.max_length, seed=seed,
        lora=LoraSettings(rank=lora.rank, alpha=lora.alpha) if lora else None,
    )  # fmt: skip


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
