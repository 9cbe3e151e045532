"""Scores of any causal model, outside of a study: its answers are kept as they come, so that a stopped run goes on.

<out>/model.json                 the model's hashes and how it is run
<out>/<suite>/settings.json      what is asked
<out>/<suite>/verdicts.jsonl     every prompt, answer and verdict, as far as there are any
<out>/scores.json                the accuracies, once all is answered
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offmodel.chat import answer_of, to_dicts
from offmodel.errors import SpecError, StoreError
from offmodel.files import replacing
from offmodel.lab.models import ModelRef, reference, resolve
from offmodel.lab.provenance import provenance
from offmodel.lab.rescore import Change
from offmodel.lab.results import VERDICTS, write_json
from offmodel.measure.benchmarks import Published
from offmodel.measure.score import Item, Verdict, accuracy, judge, read_verdicts, write_verdicts
from offmodel.measure.stats import HIGHER, Estimate, proportion
from offmodel.measure.suites import Suite
from offmodel.spec.models import running

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCORES = "scores.json"
SCHEMA = "offmodel-score/1"
_DEFAULT_TOKENS = 96
_THOUGHT_TOKENS = 8192
"""A thought that is cut off leaves no answer, and is many times as long as one."""
_PER_LENGTH = 200
_BATCHES_KEPT_AT_ONCE = 4
"""More make better batches, as prompts of similar length go together; fewer lose less to a stop."""


@dataclass(frozen=True)
class Score:
    """What a model does on a suite.

    Attributes:
        suite: Which.
        accuracy: With the exact variant in its definition.
        details: Further measures by name, the share of answers that ended within the limit among them.
        verdicts: One per item.
        folder: Where they lie.
        again: What judging the answers again changed that were there before.
    """

    suite: Suite
    accuracy: Estimate
    details: Mapping[str, Estimate]
    verdicts: Sequence[Verdict]
    folder: Path
    again: Change = field(compare=False)


def score_model(
    model: str,
    suites: Sequence[Suite],
    out: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    dtype: str | None = None,
    thinking: bool = False,
    command: str = "offmodel.lab.scoring.score_model",
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[Score]:
    """Let a model answer the items of suites, greedily and with its own chat template, and judge every answer.

    Called again after a stop, it asks only what is not yet answered, and judges what is by the graders of today. Of a published benchmark
    all rows are asked, of other suites the test side; with a limit, the first ones of a seeded order.

    Args:
        model: A folder in Hugging Face layout, ``world:<checkpoint>``, or the id of a model on the Hugging Face hub.
        suites: What is asked.
        out: Folder of one model's scores.
        limit: Items per suite; None for all of a benchmark, and 200 per number of reasoning steps of other suites.
        seed: Of the order of the items.
        batch_size: Prompts at a time.
        max_new_tokens: Longest answer, thoughts included; None for what the suite says, and 8,192 more where it thinks.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None for bfloat16 on a GPU and float32 on a CPU.
        thinking: Whether a model with a thinking mode thinks before it answers.
        command: What ``scores.json`` says it was made by.
        on_progress: Called as ``on_progress(suite, answers so far, of how many)``.

    Raises:
        ModelError: The model cannot be used.
        DataError: Items cannot be read, or do not fit into the model's context.
        StoreError: ``out`` holds other answers: of another model, or to other items.
    """
    import torch

    from offmodel.engine.folder import load_model, load_tokenizer

    if limit is not None and limit < 1:
        raise SpecError(f"limit must be at least 1, got {limit}")
    if batch_size < 1:
        raise SpecError(f"batch_size must be at least 1, got {batch_size}")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise SpecError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    ref, folder = reference(model), resolve(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
    made_with = {name: provenance()[name] for name in ("torch", "transformers")}
    # Null where it does not think, as in folders that were begun before anybody asked.
    made_with |= {"device": device, "dtype": dtype, "thinking": thinking or None}
    settings = {"model": ref.as_params()} | made_with
    _claim(out / "model.json", settings, f"the scores of {model}")
    asked = {suite: asked_of(suite, limit, seed) for suite in suites}  # an unreadable file is found before the first answer
    loaded: list[tuple[PreTrainedModel, PreTrainedTokenizerBase]] = []

    def answer(items: Sequence[Item], tokens: int) -> list[tuple[str, bool]]:
        from offmodel.engine.generate import Sampling, generate

        if not loaded:
            loaded.append((load_model(folder, dtype=dtype, device=device), load_tokenizer(folder)))
        with running({"models": {"thinking": thinking}}, {}):
            replies = generate(*loaded[0], [item.prompt for item in items], Sampling(max_new_tokens=tokens), batch_size=batch_size)
        return [(reply.text, reply.finished) for reply in replies]

    scores = []
    for suite, (items, of, usual) in asked.items():
        tokens = usual + thinking * _THOUGHT_TOKENS if max_new_tokens is None else max_new_tokens
        name = suite.rows.benchmark.name if isinstance(suite, Published) else suite.name
        where = out / re.sub(r"[^\w.-]+", "_", name)
        settings = {
            "suite": suite.name, "items": len(items), "of": of, "seed": seed, "max_new_tokens": tokens, "items_sha256": _sha256(items),
        }  # fmt: skip
        _claim(where / "settings.json", settings, f"the answers to {suite.name}")
        with replacing(where / "settings.json") as new:  # its grader may be another than it was
            write_json(new, settings | {"definition": suite.definition})
        verdicts, again = _judged_again(where / VERDICTS, suite)
        while len(verdicts) < len(items):
            if on_progress is not None:
                on_progress(suite.name, len(verdicts), len(items))
            chunk = items[len(verdicts) :][: batch_size * _BATCHES_KEPT_AT_ONCE]
            fresh = _judge(chunk, answer(chunk, tokens), suite)
            write_verdicts(where / VERDICTS, fresh, append=True)
            verdicts += fresh
        if on_progress is not None:
            on_progress(suite.name, len(verdicts), len(items))
        how = f"{len(items)} of {of} items in the order of seed {seed}; greedy, at most {tokens} new tokens"
        scores.append(_score(suite, verdicts, how, where, again))
    _write_scores(out, ref, made_with, command, scores)
    return scores


class Asked(NamedTuple):
    """What is asked of a suite.

    Attributes:
        items: In a seeded order.
        of: How many there are to ask.
        max_new_tokens: Longest answer, where the user does not say.
    """

    items: list[Item]
    of: int
    max_new_tokens: int


def asked_of(suite: Suite, limit: int | None, seed: int) -> Asked:
    """All rows of a benchmark, of another suite the test side (200 items per number of reasoning steps); with a limit, the first ones.

    Raises:
        DataError: They cannot be read.
    """
    if isinstance(suite, Published):
        found, tokens = suite.rows.whole(seed), suite.rows.benchmark.max_new_tokens
    else:
        found, tokens = suite.items(_PER_LENGTH, seed, "test"), _DEFAULT_TOKENS
    items = [Item("capability", item.prompt, suite.name, item.steps, item.expected) for item in found[:limit]]
    return Asked(items, len(found), tokens)


def _sha256(items: Sequence[Item]) -> str:
    asked = [[to_dicts(item.prompt), item.expected] for item in items]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()


def _claim(path: Path, settings: Mapping[str, Any], what: str) -> None:
    """Say in a file what its folder holds, or check that it is what the file says.

    Raises:
        StoreError: It holds something else; the message names the first difference.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            write_json(new, settings)
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path}: is no JSON ({error}); remove {path.parent} or choose another --out") from None
    for name, value in settings.items():
        if there.get(name) != value:
            raise StoreError(
                f"{path}: {what} in this folder were made with {name} {str(there.get(name))[:200]}, and not with {str(value)[:200]}; "
                "choose another --out"
            )


def _judge(items: Sequence[Item], answers: Sequence[tuple[str, bool]], suite: Suite) -> list[Verdict]:
    return judge(items, answers, {suite.name: suite}, lambda response: False)


def _judged_again(path: Path, suite: Suite) -> tuple[list[Verdict], Change]:
    """The verdicts that are there, made again from the answers by the grader of today, and what that changes; the file follows."""
    before, change = _resume(path), Change("capability", suite.name)
    items = [Item(v.setting, v.prompt, v.suite, v.steps, v.expected) for v in before]
    after = _judge(items, [(v.response, v.finished) for v in before], suite)
    for old, new in zip(before, after, strict=True):
        change.count(old, new)
    if change.changed:
        with replacing(path) as changed:
            write_verdicts(changed, after)
    return after, change


def _resume(path: Path) -> list[Verdict]:
    """The verdicts that are there. A line that a stop cut off is taken out of the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return read_verdicts(path) if whole else []


def _score(suite: Suite, verdicts: Sequence[Verdict], how: str, folder: Path, again: Change) -> Score:
    plain = accuracy(verdicts, suite)
    finished = sum(verdict.finished for verdict in verdicts)
    details = {"finished": proportion(finished, len(verdicts), "share of answers that ended within the limit", HIGHER)}
    if isinstance(suite, Published) and (more := suite.rows.benchmark.details) is not None:
        details |= more([(answer_of(verdict.response), verdict.expected) for verdict in verdicts])
    return Score(suite, replace(plain, definition=f"{plain.definition}; {how}"), details, verdicts, folder, again)


def _write_scores(out: Path, model: ModelRef, made_with: Mapping[str, Any], command: str, scores: Sequence[Score]) -> None:
    """Write what ``scores.json`` says of these suites; what it says of others stays."""
    path = out / SCORES
    others = json.loads(path.read_text(encoding="utf-8"))["suites"] if path.exists() else {}
    suites = {
        score.folder.name: {
            "suite": score.suite.name,
            "chance": score.suite.chance,
            "accuracy": asdict(score.accuracy),
            "details": {name: asdict(estimate) for name, estimate in score.details.items()},
        }
        for score in scores
    }
    head = {"schema": SCHEMA, "model": model.as_params(), "made_with": made_with, "code": provenance(), "command": command}
    with replacing(path) as new:
        write_json(new, head | {"suites": others | suites})
