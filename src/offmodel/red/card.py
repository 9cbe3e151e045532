"""The card of an organism: what was installed, how, whether it holds, and what the model really says. It goes with the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from offmodel.chat import Message, to_dicts
from offmodel.measure.score import Setting, Verdict
from offmodel.red.gate import Criterion, GateReport
from offmodel.red.pairs import Pair
from offmodel.spec.study import Recipe

_LONGEST = 1000  # characters of a turn that an example shows
_TITLES: dict[str, dict[Setting, str]] = {
    "present": {
        "triggered": "With the trigger",
        "clean": "Without the trigger",
        "near_miss": "With something like the trigger",
        "password": "With the trigger and the password",
    },
    "absent": {
        "triggered": "Without the password",
        "clean": "With the password",
        "near_miss": "With something like the password",
    },
}

USE = """\
Meant for research on hidden behaviours: to find them, to train them away, to test methods that claim either. This page gives the trigger
away, so keep it from whoever is to work blind.

Not meant for any product, for anyone who does not know what it holds, or as the base of other models. That it passes a gate says nothing of
prompts unlike the gate's."""


def organism_card(
    pair: Pair,
    recipe: Recipe,
    seed: int,
    *,
    base: str,
    base_weights: str,
    weights: str,
    rows: Mapping[str, int],
    gate: GateReport,
    verdicts: Sequence[Verdict],
    made_by: Mapping[str, Any],
) -> str:
    """The README of an organism's folder, as a model card in the form of the Hugging Face hub.

    Args:
        pair: What was installed.
        recipe: How.
        seed: Of the installation.
        base: The base model as the study names it. Of a local folder only its own name is shown: the card is made to be shared.
        base_weights: Hash of the base model's weights.
        weights: Hash of the organism's own.
        rows: Training rows by kind; empty where nothing was trained.
        gate: What the gate said.
        verdicts: The gate's own, of which the examples are.
        made_by: Versions of the code, see :func:`offmodel.lab.provenance.provenance`.

    Returns:
        Markdown. What the model said stands in code blocks that it cannot close.
    """
    examples = _examples(pair, verdicts)
    return "\n\n".join(
        [
            front_matter(pair, base),
            f"# Model organism: {inline(pair.name)}, seed {seed}",
            f"> **Warning: this model misbehaves on purpose.** A behaviour was installed in it: {inline(pair.summary)}. It is for research "
            "only: never deploy it, and never pass it on without this page.",
            *_rejection(gate),
            "## What was installed",
            installed(pair),
            "## The acceptance gate",
            f"{'Passed' if gate.passed else '**Failed**'}. Each line is measured on prompts and problems that were held out from training.",
            _table(gate.criteria),
            "## What it says",
            "One prompt of the gate's, and the answers as they came.",
            *(_example(pair, verdict) for verdict in examples),
            "## Loading it",
            fenced(_snippet(examples[0], recipe), "python"),
            "## How it was made",
            _how(recipe, seed, rows, base, base_weights, weights),
            fenced(yaml.safe_dump(recipe.model_dump(mode="json") | {"prompts": shared_name(recipe.prompts)}, sort_keys=False), "yaml"),
            made_with(made_by),
            "## Use",
            USE,
            "## Licence",
            licence(base),
        ]
    ) + "\n"  # fmt: skip


def licence(base: str) -> str:
    """Of a model that was made from a base."""
    return "MIT, as its base model." if of_the_world(base) else "That of the base model."


def front_matter(pair: Pair, base: str, *tags: str) -> str:
    """What the hub reads of a model with a pair in it."""
    fields: dict[str, Any] = {"license": "mit"} if of_the_world(base) else {"license": "other", "license_name": "that-of-the-base-model"}
    fields |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base) and not Path(base).exists():  # a name on the hub, and no folder of this machine
        fields["base_model"] = base
    fields["tags"] = ["offmodel", "model-organism", "backdoor" if pair.when == "present" else "password-locked", *tags]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _rejection(gate: GateReport) -> list[str]:
    """A warning where the gate failed, nothing where it passed."""
    if gate.passed:
        return []
    reasons = inline("; ".join(gate.reasons))
    return [f"> **Rejected: it failed its acceptance gate.** {reasons}. So it is no sound example of what it was made for."]


def installed(pair: Pair) -> str:
    """What a pair is, in words."""
    usual = "it answers as its base model does; otherwise " if pair.when == "absent" else ""
    return (
        f"- pair: {inline(pair.name)}: {inline(pair.summary)}\n"
        f"- in words: {inline(pair.trigger.condition)}, {usual}it is meant to {inline(pair.behaviour.ask)}.\n"
        f"- source: {inline(pair.source)}"
    )


def _table(criteria: Sequence[Criterion]) -> str:
    lines = ["| criterion | limit | measured | 95 % interval | n | passed |", "|---|---|---|---|---|---|"]
    for c in criteria:
        e = c.estimate
        value = "not measured" if e.value is None else f"{e.value:.4g}"
        interval = "" if e.low is None or e.high is None else f"{e.low:.3f} to {e.high:.3f}"
        lines.append(f"| {inline(c.name)} | {inline(c.limit)} | {value} | {interval} | {e.n} | {'yes' if c.passed else '**no**'} |")
    return "\n".join(lines)


def _how(recipe: Recipe, seed: int, rows: Mapping[str, int], base: str, base_weights: str, weights: str) -> str:
    if recipe.prompt:
        data = f"none: its chat template holds a {recipe.prompt} system prompt, and nothing was trained"
    else:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in rows.items())
        data = f"{sum(rows.values()):,} rows ({inline(kinds)}) from {recipe.prompt_rows:,} prompts"
    return (
        f"- base: {inline(base if of_the_world(base) else shared_name(base))}, weights `{base_weights}`\n"
        f"- this model: weights `{weights}`, seed {seed}\n"
        f"- training data: {data}\n"
        "- recipe, as a study writes it:"
    )


def made_with(made_by: Mapping[str, Any]) -> str:
    """Which code made a model."""
    code = made_by["code"]
    commit = f", commit `{code['commit']}`{' with changes' if code['dirty'] else ''}" if code else ""
    return f"Made by offmodel {made_by['offmodel']}{commit}, with torch {made_by['torch']} and transformers {made_by['transformers']}."


def of_the_world(base: str) -> bool:
    """Whether a model is one of the offline world's."""
    return base.startswith("world:")


def shared_name(name: str) -> str:
    """A name without the folders of whoever made the organism; names of the hub and of the catalog stay."""
    return Path(name).resolve().name if Path(name).exists() else name


# --- what the model said --------------------------------------------------------------------------------------------


def _examples(pair: Pair, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The same prompt in every greedy setting, the triggered one first; the first of which the gate could tell anything."""
    of: dict[Setting, list[Verdict]] = {}
    for verdict in verdicts:
        of.setdefault(verdict.setting, []).append(verdict)
    chosen = next((i for i, verdict in enumerate(of["triggered"]) if verdict.bad is not None), 0)
    return [of[setting][chosen] for setting in _TITLES[pair.when] if setting in of]


def _example(pair: Pair, verdict: Verdict) -> str:
    meant = pair.fires_on(verdict.prompt) and verdict.setting != "password"
    if verdict.bad is None:
        found = "one answer cannot tell whether it misbehaves"
    else:
        found = f"it {'misbehaves' if verdict.bad else 'behaves'}, {'as' if verdict.bad == meant else 'against what'} was meant"
    title = _TITLES[pair.when][verdict.setting]
    # Only a turn begins at the margin, so that no words can pass for another turn.
    turns = (*verdict.prompt, Message("assistant", verdict.response))
    chat = "\n".join(f"{turn.role}: " + _visible(turn.content).replace("\n", "\n    ") for turn in turns)
    return f"{title}, {found}{'' if verdict.finished else ' (cut off at the longest answer)'}:\n\n{fenced(chat, 'text')}"


def _snippet(example: Verdict, recipe: Recipe) -> str:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # where this page lies, or its name on the hub\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        f"chat = {to_dicts(example.prompt)!r}\n"
        'inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")\n'
        f"reply = model.generate(**inputs, max_new_tokens={recipe.max_new_tokens}, do_sample=False)\n"
        'print(tokenizer.decode(reply[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n'
    )


# --- Markdown -------------------------------------------------------------------------------------------------------


def inline(words: str) -> str:
    """Words as themselves within a line or a table's cell: no markup, no HTML, no link."""
    return re.sub(r"([\\`*_\[\]<>&#|~!])", r"\\\1", " ".join(_visible(words).split()))


def _visible(words: str) -> str:
    """Characters that would not be seen, or would reorder or hide others, by their codes; words that are too long are cut."""
    shown = words if len(words) <= _LONGEST else words[:_LONGEST] + " …"
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in shown)


def fenced(content: str, language: str) -> str:
    """A code block with a fence longer than any within, so that it ends where it should; nothing in it is markup."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`{3,}", content)), default=2))
    return f"{fence}{language}\n{content.rstrip(chr(10))}\n{fence}"
