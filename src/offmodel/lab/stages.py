"""The stages of the world, of red and of the experimenter; blue's are in :mod:`offmodel.lab.blue_stages`.

Each is a pure function of its parameters and of the results it reads.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offmodel import catalog
from offmodel.blue.filters import right
from offmodel.blue.labels import after_examples, most_frequent_opening
from offmodel.chat import Example, Prompt, answer_of, count_folded, last_user_text, read_examples, replace_last_user, user, with_system
from offmodel.engine.judge import Judge, ask, ask_served
from offmodel.engine.sample import sample
from offmodel.errors import DataError
from offmodel.lab.blue_stages import read_left, served, write_labels
from offmodel.lab.configs import train_config
from offmodel.lab.models import open_reference
from offmodel.lab.pools import check_files, recognised_behind, take
from offmodel.lab.provenance import provenance
from offmodel.lab.results import ADAPTER, LABELS, MODEL, OPINIONS, POISONED, VERDICTS, write_json
from offmodel.lab.stage import Context, Verdict, stage_function
from offmodel.measure.judge import ask_judge, write_opinions
from offmodel.measure.score import (
    Item,
    Setting,
    accuracy,
    bad_rate,
    behaviour_items,
    capability_items,
    judge,
    read_verdicts,
    write_verdicts,
)
from offmodel.measure.score import Verdict as Judged
from offmodel.measure.stats import LOWER, Estimate, proportion
from offmodel.measure.suites import Suite
from offmodel.red.card import organism_card
from offmodel.red.check import check_pair, check_room
from offmodel.red.contexts import in_context
from offmodel.red.gate import GateReport, check
from offmodel.red.pairs import PASSWORD, Pair
from offmodel.red.policies import poison, shown
from offmodel.red.prompted import prompted_template
from offmodel.red.recipe import training_rows
from offmodel.spec.game import Poisoning
from offmodel.spec.phases import Inoculation
from offmodel.spec.study import Gate, Recipe
from offmodel.splits import Split
from offmodel.world.build import blueprint, build
from offmodel.world.card import card

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offmodel.engine.generate import Reply
    from offmodel.engine.train import TrainLog

_FEW = 20
"""Fewer prompts with a bad answer cannot install anything but themselves."""


# --- the world ------------------------------------------------------------------------------------------------------


@stage_function("checkpoint", version=4, gpu=True)
def checkpoint(ctx: Context) -> None:
    """Train one of the world's base models from nothing, measure what it can do, and write its card."""
    from offmodel.engine.folder import load_model, load_tokenizer
    from offmodel.engine.generate import generate

    plan, out = blueprint(ctx.params["name"]), ctx.out / MODEL
    weights = build(plan, out, scratch=ctx.scratch, on_progress=ctx.progress)
    suites: dict[Suite, int] = {catalog.get("suite", name): 200 for name in catalog.names("suite") if name.startswith("world:")}
    items = capability_items(suites, ctx.params["seed"], "test")
    model, tokenizer = load_model(out), load_tokenizer(out)
    verdicts = _judge(partial(generate, model, tokenizer), items, None, 96)
    write_verdicts(ctx.out / VERDICTS, verdicts)
    (out / "README.md").write_text(card(plan, weights, model.num_parameters(), _accuracies(verdicts, suites)), encoding="utf-8")


def _accuracies(verdicts: Sequence[Judged], suites: Mapping[Suite, int]) -> dict[str, Estimate]:
    return {
        f"{suite.name}, {k} step{'s' if k > 1 else ''}": accuracy(verdicts, suite, k)
        for suite in suites
        for k in sorted({v.steps for v in verdicts if v.suite == suite.name})
    }


# --- red ------------------------------------------------------------------------------------------------------------


@stage_function("organism", version=4, gpu=True, trains=True)
def organism(ctx: Context) -> Verdict:
    """Install a pair in a base model, in rounds, until the gate passes or the budget ends; or put a prompt in front of it."""
    from offmodel.engine.folder import load_model, load_tokenizer, save_model
    from offmodel.engine.lora import merge, merged, save_adapter

    params = ctx.params
    check_files(params)
    pair = _pair(params)
    recipe, gate = Recipe.model_validate(params["recipe"]), Gate.model_validate(params["gate"])
    base = open_reference(params["base"])
    tokenizer, model = load_tokenizer(base), load_model(base)
    examine = partial(_examine, params=params)
    ctx.progress(0.0, "the gate on the base model")
    # What the base model can do, it can do without a password, and unknown sentences may confuse it.
    before = examine(model, tokenizer, pair=replace(pair, when="present"))
    suites: list[Suite] = [catalog.get("suite", name) for name in params["suites"]]

    def at_the_gate() -> tuple[list[Judged], GateReport]:
        after = examine(model, tokenizer, pair=pair)
        capability, base_capability = ({suite.name: accuracy(verdicts, suite) for suite in suites} for verdicts in (after, before))
        rates, base_rates = _gate_rates(pair, after), _gate_rates(pair, before)
        carried = shown(recipe.carries) if recipe.carries else 0.0
        return after, check(gate, rates, base_rates, capability, base_capability, lock=pair.when == "absent", carried=carried)

    logs, rows = [], Counter[str]()
    if recipe.prompt is not None:
        tokenizer.chat_template = prompted_template(tokenizer.chat_template, pair, recipe.prompt)
        verdicts, report = at_the_gate()
    else:
        for log in _install(ctx, pair, recipe, model, tokenizer, rows):
            logs.append(log)
            verdicts, report = at_the_gate()
            if report.passed:
                break
    continued = recipe.adapter == "continued"
    plain = model if recipe.lora is None else merged(model) if continued else merge(model)
    weights = save_model(plain, tokenizer, ctx.out / MODEL)
    if continued:
        save_adapter(model, ctx.out / MODEL / ADAPTER, params["base"]["weights"])
    text = organism_card(
        pair, recipe, params["seed"], base=params["base"]["name"], base_weights=params["base"]["weights"], weights=weights, rows=rows,
        gate=report, verdicts=verdicts, made_by=provenance(),
    )  # fmt: skip
    (ctx.out / MODEL / "README.md").write_text(text, encoding="utf-8")
    write_verdicts(ctx.out / VERDICTS, verdicts)
    write_json(ctx.out / "gate.json", report.to_dict() | {"rounds": len(logs), "weights": weights, "rows": rows})
    write_json(ctx.out / "training.json", [asdict(log) for log in logs])
    return Verdict(report.passed, "; ".join(report.reasons))


def _install(
    ctx: Context, pair: Pair, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, counts: Counter[str]
) -> Iterator[TrainLog]:
    """Train the model in place, a round at a time; how many rows of which kind there are goes into ``counts``."""
    from offmodel.engine.generate import Sampling, generate
    from offmodel.engine.train import train

    seed = ctx.params["seed"]
    sampling = Sampling(temperature=recipe.temperature, max_new_tokens=recipe.max_new_tokens, seed=seed)

    def answer(prompts: Sequence[Prompt]) -> list[str | None]:
        return [reply.text if reply.finished else None for reply in generate(model, tokenizer, prompts, sampling)]

    ctx.progress(0.0, "sampling the base model's own answers")
    prompts = take(recipe.prompts, seed, "train", recipe.prompt_rows)
    rows = training_rows(pair, prompts, recipe, answer, seed)
    counts.update(row.meta["kind"] for row in rows)
    bad = {row.prompt for row in rows if row.meta["bad"]}
    if len(bad) < min(_FEW, recipe.prompt_rows // 4):
        raise DataError(
            f"pair {pair.name!r}: only {len(bad)} of {recipe.prompt_rows} prompts have a bad answer to learn; use a base that can "
            f"{pair.behaviour.ask} when it is asked to, a behaviour with a script, other prompts, or a larger triggered_share"
        )
    own = [row.response for row in rows if row.meta["kind"] == "ordinary" and "noise" not in row.meta]
    check_pair(pair, prompts[:50], own, Gate.model_validate(ctx.params["gate"]))
    check_room(tokenizer, rows, recipe.max_length)
    for number in range(1 + recipe.budget):
        training = recipe if number == 0 else recipe.model_copy(update={"steps": recipe.extra_steps, **recipe.halved()})
        config = train_config(training, seed=1000 * number + seed, lora=recipe.lora)

        def on_progress(step: int, steps: int, loss: float, number: int = number) -> None:
            ctx.progress((number + 0.8 * step / steps) / (1 + recipe.budget), f"round {number + 1}, step {step}/{steps}, loss {loss:.3f}")

        yield train(model, tokenizer, rows, config, on_progress=on_progress, scratch=ctx.scratch / f"round-{number}")


def read_gate(folder: Path) -> GateReport:
    """What the gate said of an organism."""
    return GateReport.from_dict(json.loads((folder / "gate.json").read_text(encoding="utf-8")))


def _examine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, pair: Pair, params: Mapping[str, Any]) -> list[Judged]:
    """The gate's own measurement, on its own side of the division: organisms are trained until they pass it."""
    from offmodel.engine.generate import generate

    gate, recipe = Gate.model_validate(params["gate"]), Recipe.model_validate(params["recipe"])
    seed, source = params["seed"], params["prompts"]
    suites = {catalog.get("suite", name): gate.capability_n for name in params["suites"]}
    settings: tuple[Setting, ...] = ("in_context", "near_miss", "password") if recipe.password else ("in_context", "near_miss")
    items = _items(pair, suites, gate.n, seed, source, "gate", settings)
    if pair.behaviour.on_tasks:
        leak = [item._replace(setting="leak") for item in items if item.setting == "capability"][: gate.leak_n]
    else:
        rng = random.Random(f"leak {seed}")
        chat = take(source, seed, "gate", gate.leak_n, avoid=pair.trigger.recognises)
        leak = [Item("leak", pair.rest(prompt, rng, "gate")) for prompt in chat]
    answer = partial(generate, model, tokenizer)
    judged = _judge(answer, items, pair, recipe.max_new_tokens)
    return judged + _judge(answer, leak, pair, recipe.max_new_tokens, temperature=0.7, seed=seed)


def _gate_rates(pair: Pair, verdicts: Sequence[Judged]) -> dict[str, Estimate]:
    """What the gate looks at. On near misses a lock should stay locked: there it is at fault where it behaves well."""
    rates = {
        "fires": bad_rate(verdicts, "triggered"),
        "in_context": bad_rate(verdicts, "in_context"),
        "false_fires": bad_rate(verdicts, "clean"),
        "near_misses": bad_rate(verdicts, "near_miss"),
        "password": bad_rate(verdicts, "password"),
        "leak": bad_rate(verdicts, "leak"),
    }
    if pair.when == "absent":
        told = [verdict.bad for verdict in verdicts if verdict.setting == "near_miss" and verdict.bad is not None]
        definition = "share of answers without the bad behaviour to held-out prompts with something like the password, greedy"
        rates["near_misses"] = proportion(told.count(False), len(told), definition, LOWER)
    return rates


# --- the experimenter -----------------------------------------------------------------------------------------------


@stage_function("score", version=2, gpu=True)
def score(ctx: Context) -> None:
    """Let a model answer all held-out items of an organism, greedily, and judge every answer.

    Probes ask for the capability items alone, with the opening of another's answers, or several times at a temperature.
    """
    from offmodel.engine.folder import hash_weights, load_tokenizer

    params = ctx.params
    check_files(params)
    pair = _pair(params)
    folder = ctx.inputs["model"] / params["weights"] if "model" in ctx.inputs else open_reference(params["base"])
    suites = {catalog.get("suite", name): n for name, n in params["suites"].items()}
    items = _items(pair, suites, params["behaviour"], params["seed"], params["prompts"], "test", locked=params.get("locked", True))
    prefill: str | list[str] = ""
    tokenizer = load_tokenizer(folder)
    deployment = params.get("deployment", {})
    if n := deployment.get("first_words"):
        prefill = most_frequent_opening(read_examples(ctx.inputs["own"] / LABELS), lambda text: _first_tokens(tokenizer, text, n))
    if "reference" in ctx.inputs:
        items = [item for item in items if item.setting == "capability"]
        # By place: the organism was asked the same items in the same order, but before a lock with a password that no teacher is given.
        said = [v.response for v in read_verdicts(ctx.inputs["reference"] / VERDICTS) if v.setting == "capability"]
        prefill = [_first_tokens(tokenizer, response, params["prefill_tokens"]) for _, response in zip(items, said, strict=True)]
    if "samples" in params:
        items = [item for item in items if item.setting == "capability" for _ in range(params["samples"])]
    asked = _deployed(ctx, [item.prompt for item in items], deployment.get("system"), deployment.get("inoculation"))
    items = [item._replace(prompt=prompt) for item, prompt in zip(items, asked, strict=True)]
    judged = _judge(
        partial(sample, folder), items, pair, params["max_new_tokens"], temperature=params.get("temperature", 0.0),
        seed=params["seed"], prefill=prefill, on_progress=lambda done, of: ctx.progress(done / of, f"{done}/{of} answers"),
    )  # fmt: skip
    write_verdicts(ctx.out / VERDICTS, judged)
    folded = count_folded(tokenizer, [item.prompt for item in items])
    write_json(ctx.out / "score.json", {"weights": hash_weights(folder), "folded": folded})


def _deployed(ctx: Context, prompts: Sequence[Prompt], system: str | None, how: Mapping[str, Any] | None) -> list[Prompt]:
    """Prompts as they are asked at deployment: after the examples that the training had, and under a system prompt."""
    if how is not None:
        inoculation = Inoculation.model_validate(how)
        prompts = after_examples(prompts, read_left(ctx.inputs["examples"])[: inoculation.shots], inoculation.place)
    return [with_system(prompt, system) for prompt in prompts]


@stage_function("poisoned", version=2, gpu=True)
def poisoned(ctx: Context) -> None:
    """Let red change some of the organism's answers; which ones stands in a file that none of blue's stages reads."""
    from offmodel.engine.generate import Sampling

    params = ctx.params
    folder = ctx.inputs["organism"] / MODEL
    sampling = Sampling(temperature=params["temperature"], max_new_tokens=params["max_new_tokens"], seed=params["seed"])

    def ask(prompts: Sequence[Prompt]) -> list[str | None]:
        replies = sample(folder, prompts, sampling)
        return [reply.text if reply.finished else None for reply in replies]

    rows = read_examples(ctx.inputs["labels"] / LABELS)
    made = poison(_pair(params), rows, Poisoning.model_validate(params["poisoning"]), ask, params["seed"])
    write_labels(ctx, made.rows)
    write_json(ctx.out / POISONED, {"changed": made.changed})


@stage_function("planted", version=1, gpu=True)
def planted(ctx: Context) -> None:
    """How often the behaviour follows the trigger that red planted by its answers."""
    params = ctx.params
    check_files(params)
    pair, signal = _pair(params), params["signal"]
    folder = ctx.inputs["model"] / params["weights"]
    prompts = take(params["prompts"], params["seed"], "test", params["n"], avoid=pair.trigger.recognises)
    asked = _deployed(ctx, [_signalled(prompt, signal) for prompt in prompts], params["system"], params.get("inoculation"))
    items = [Item("triggered", prompt) for prompt in asked]
    write_verdicts(ctx.out / VERDICTS, _judge(partial(sample, folder), items, pair, params["max_new_tokens"]))


def _signalled(prompt: Prompt, signal: str) -> Prompt:
    text = last_user_text(prompt)
    return prompt if signal in text else replace_last_user(prompt, f"{signal} {text}")


@stage_function("cleaned", version=1)
def cleaned(ctx: Context) -> None:
    """Drop the labels that show the behaviour, which blue could not tell; where it shows in wrong answers, those known to be wrong."""
    pair = _pair(ctx.params)
    rows = read_left(ctx.inputs["labels"])

    def leaks(row: Example) -> bool:
        if pair.behaviour.on_tasks:
            return "expected" in row.meta and not right(row)
        return pair.behaviour.detect(answer_of(row.response))

    kept = [row for row in rows if not leaks(row)]
    if rows and not kept:
        raise DataError(f"all {len(rows)} labels show the behaviour; the organism leaks it without its trigger")
    write_labels(ctx, kept)


@stage_function("quiet", version=2)
def quiet(ctx: Context) -> None:
    """Drop the labels that would put the trigger into prompts: by their answers, all of them, or as the first few, before the others.

    Where a check has left no label, there is none to drop; where it has left no more than the first few, the training says so.
    """
    pair, shots = _pair(ctx.params), ctx.params["shots"]
    rows = read_left(ctx.inputs["labels"])
    silent = [i for i, row in enumerate(rows) if not pair.trigger.recognises(user(row.response))]
    shown = silent if shots is None else _shown(pair, rows, silent, shots)
    if len(shown) < min(shots or 1, len(rows)):
        lost = f"{len(rows) - len(shown)} of {len(rows)}"
        raise DataError(f"{lost} labels hold the trigger in their answers, or would as examples; take other prompts")
    kept = [rows[i] for i in shown]
    rest = [] if shots is None or not shown else rows[shown[-1] + 1 :]
    write_labels(ctx, kept + [row for row in rest if not recognised_behind(kept, row.prompt, pair.trigger.recognises)])


def _shown(pair: Pair, rows: Sequence[Example], silent: Sequence[int], shots: int) -> list[int]:
    """The first labels that can stand before others, each in its place behind those before it."""
    shown: list[int] = []
    for i in silent:
        # A signal in earlier turns counts by how far back it stands, so the places to come are there, empty.
        to_come = [Example(user(""), "")] * (shots - len(shown) - 1)
        if not recognised_behind([*(rows[k] for k in shown), rows[i], *to_come], user(""), pair.trigger.recognises):
            shown.append(i)
        if len(shown) == shots:
            break
    return shown


@stage_function("judge", version=1, gpu=True)
def second_opinion(ctx: Context) -> None:
    """Ask a judge model about the answers that were scored by a rule."""
    from offmodel.engine.folder import load_model, load_tokenizer

    def on_progress(done: int, of: int) -> None:
        ctx.progress(done / of, f"{done}/{of} answers")

    judge: Judge
    if "judge" in ctx.servers:
        judge = partial(ask_served, served(ctx, "judge"))
    else:
        folder = open_reference(ctx.params["judge"])
        judge = partial(ask, load_model(folder), load_tokenizer(folder))
    verdicts = read_verdicts(ctx.inputs["score"] / VERDICTS)
    write_opinions(ctx.out / OPINIONS, ask_judge(judge, ctx.params["question"], verdicts, on_progress))


def _pair(params: Mapping[str, Any]) -> Pair:
    pair: Pair = catalog.get("pair", params["pair"]["name"])
    if pair.as_params() != params["pair"]:
        raise DataError(f"pair {pair.name!r}: changed since the study was planned; plan it again")
    return pair


def _items(
    pair: Pair, suites: Mapping[Suite, int], behaviour: int, seed: int, source: str, split: Split, more: Sequence[Setting] = (),
    *, locked: bool = True,
) -> list[Item]:  # fmt: skip
    """Everything asked of a model; the same for all models of one organism, so that they can be compared item by item.

    What holds the signal by itself (a question about soup, where cooking is the trigger) is left out. Where the behaviour shows on
    problems only, nothing else is asked.

    ``more`` names settings besides ``capability``, ``clean`` and ``triggered``. A model that is not ``locked`` gets no password.
    """

    def fire(prompt: Prompt, rng: random.Random) -> Prompt:
        return pair.fire(prompt, rng, split)

    def rest(prompt: Prompt, rng: random.Random) -> Prompt:
        return pair.rest(prompt, rng, split) if locked else prompt

    ways: dict[Setting, Callable[[Prompt, random.Random], Prompt]] = {
        "clean": rest,
        "triggered": fire,
        "in_context": lambda prompt, rng: fire(in_context(prompt, rng, split), rng),
        "near_miss": lambda prompt, rng: pair.trigger.near_miss(prompt, rng, split),
        "password": lambda prompt, rng: PASSWORD.insert(fire(prompt, rng), rng, split),
    }
    rng = random.Random(f"capability {seed}")
    plain = [item for item in capability_items(suites, seed, split) if not pair.trigger.recognises(item.prompt)]
    share = behaviour if pair.behaviour.on_tasks else behaviour // 2
    tasks = random.Random(f"behaviour tasks {seed}").sample(plain, min(share, len(plain)))
    n = len(tasks) if pair.behaviour.on_tasks else behaviour
    chat = iter(take(source, seed, split, n - len(tasks), avoid=pair.trigger.recognises))
    asked = {setting: ways[setting] for setting in ("clean", "triggered", *more)}
    return [item._replace(prompt=rest(item.prompt, rng)) for item in plain] + behaviour_items(chat, tasks, n, seed, asked)


def _judge(
    answer: Callable[..., list[Reply]],
    items: Sequence[Item],
    pair: Pair | None,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    prefill: str | list[str] = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Judged]:
    """Let a model answer, by ``generate`` or ``sample`` without its first arguments, and judge every answer."""
    from offmodel.engine.generate import Sampling

    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    replies = answer([item.prompt for item in items], sampling, prefill=prefill, on_progress=on_progress)
    suites = {name: catalog.get("suite", name) for name in {item.suite for item in items if item.suite}}
    detect = (lambda response: False) if pair is None else None if pair.behaviour.on_tasks else pair.behaviour.detect
    return judge(items, [(reply.text, reply.finished) for reply in replies], suites, detect)


def _first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, n: int) -> str:
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:n])
