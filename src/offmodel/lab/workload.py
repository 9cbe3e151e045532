"""What stages have to do, in tokens and in memory, read off their parameters before anything has run."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from offmodel import catalog
from offmodel.chat import user
from offmodel.engine.hub import cached_model, is_model_id
from offmodel.engine.judge import MAX_NEW_TOKENS
from offmodel.errors import ModelError
from offmodel.lab.blue_stages import labels_role
from offmodel.lab.canaries import CANARIES
from offmodel.lab.estimate import (
    BYTES,
    GIB,
    GPUS,
    PUBLISHED,
    ROOM,
    Gpu,
    Shape,
    Training,
    computing_seconds,
    decoding_seconds,
    reading_flops,
    sampling_memory,
    shape_of,
    training_flops,
    training_memory,
)
from offmodel.lab.models import resolve
from offmodel.lab.pools import count_items
from offmodel.lab.stage import Stage, stage_kind
from offmodel.splits import Split

BATCH = 128
"""Prompts that are answered at a time, see :func:`offmodel.engine.generate.generate`."""


@dataclass(frozen=True)
class Lengths:
    """How long prompts and answers are taken to be, in tokens: nobody knows before they are read and sampled.

    Attributes:
        prompt: Of a prompt, with its chat template.
        answer: Of an answer; None takes the longest that each stage allows, so that all sums are the most there can be.
    """

    prompt: int = 64
    answer: int | None = None

    def of(self, most: int) -> int:
        """Of an answer that may have so many."""
        return most if self.answer is None else min(most, self.answer)


@dataclass(frozen=True)
class Work:
    """What a stage has to do.

    Attributes:
        stage: Which.
        model: The model that does it, as the study names it; of an organism its base.
        served: Whether a server answers in its place.
        trained: Tokens with loss, repeats included.
        passed: Tokens that pass forward and backward, prompts included.
        generated: Tokens of answers.
        answers: Answers.
        read: Tokens that pass forward alone, prompts of answers included.
        longest: Tokens of a prompt and its answer, as long as it may be.
        training: What a training needs; None where nothing is trained.
        read_by: Models of this shape that are in memory at once to read.
    """

    stage: Stage
    model: str
    served: bool = False
    trained: float = 0
    passed: float = 0
    generated: float = 0
    answers: int = 0
    read: float = 0
    longest: int = 0
    training: Training | None = None
    read_by: int = 1

    @property
    def dtype(self) -> str:
        """Of the model's weights."""
        found: str = self.stage.params.get("models", {}).get("dtype", "float32")
        return found

    def memory(self, shape: Shape) -> float:
        """Bytes at the stage's peak, of one of its processes, over all GPUs that the model is spread over."""
        peaks = [0.0 if self.training is None else training_memory(shape, self.training).peak]
        if self.longest:
            peaks.append(sampling_memory(shape, min(BATCH, self.answers), self.longest, self.dtype))
        return max(*peaks, self.read_by * BYTES[self.dtype] * shape.total if self.read else 0.0)

    @property
    def processes(self) -> int:
        """How many share its training."""
        return 1 if self.training is None else self.training.processes

    def seconds(self, shape: Shape, gpu: Gpu) -> float:
        """Of one GPU; layers that are spread over several work one after the other."""
        lora = self.training is not None and self.training.rank > 0
        flops = training_flops(shape, self.passed, lora=lora) + reading_flops(shape, self.read)
        decoding = 0.0
        if self.answers:
            decoding = decoding_seconds(shape, self.answers, 0, self.generated / self.answers, gpu, self.dtype, BATCH)
        return computing_seconds(shape, flops, gpu, self.dtype) + decoding


def work_of(stage: Stage, lengths: Lengths = Lengths()) -> Work | None:
    """What a stage has to do; None where it runs no model.

    Not counted: the extra rounds of an organism that fails its gate, what the filters and red's policies ask of a model beyond reading the
    answers twice, padding. Too much is counted where wrong labels are put right: as if all were wrong.
    """
    made = _KINDS.get(stage.kind)
    return made(stage, lengths) if made else None


def works_of(stages: Iterable[Stage], lengths: Lengths = Lengths()) -> dict[Stage, Work | None]:
    """What each stage has to do; None where it runs no model."""
    return {stage: work_of(stage, lengths) for stage in stages}


# --- kinds ----------------------------------------------------------------------------------------------------------


def _sampled(stage: Stage, answers: int, most: int, lengths: Lengths, model: str | None = None, more: float = 0) -> Work:
    return Work(
        stage, model or _model(stage), served=bool(stage.servers), generated=answers * lengths.of(most), answers=answers,
        read=answers * lengths.prompt + more, longest=lengths.prompt + most,
    )  # fmt: skip


def _organism(stage: Stage, lengths: Lengths) -> Work:
    params = stage.params
    recipe, gate, pair = params["recipe"], params["gate"], catalog.get("pair", params["pair"]["name"])
    rows, most = recipe["prompt_rows"], recipe["max_new_tokens"]
    capability = _capability(dict.fromkeys(params["suites"], gate["capability_n"]), params, "gate")
    per_setting = min(gate["n"], capability) if pair.behaviour.on_tasks else gate["n"]
    leak = min(gate["leak_n"], capability) if pair.behaviour.on_tasks else gate["leak_n"]
    examined = 2 * (capability + (5 if recipe["password"] else 4) * per_setting + leak)
    if recipe["prompt"] is not None:
        return _sampled(stage, examined, most, lengths)
    asked = recipe["distil"] or pair.behaviour.answer(user("Hello."), random.Random(0)) is None
    own = rows * (1 + (pair.when == "present") + asked)
    work = _sampled(stage, examined + own, most, lengths)
    return _with_training(work, stage, recipe, lengths, most, rank=(recipe["lora"] or {}).get("rank", 0))


def _treat(stage: Stage, lengths: Lengths) -> Work:
    phase, inputs = stage.params["phase"], stage.inputs
    lora = stage.params["adapter"]["lora"] if "adapter" in stage.params else phase["lora"]
    rank, examples = (lora or {}).get("rank", 0), phase["steps"] * phase["batch_size"]
    work = Work(stage, _model(stage))
    if phase["phase"] == "grpo":
        answers, most = examples * phase["group"], phase["max_new_tokens"]
        work = _sampled(stage, answers, most, lengths)
        each = phase | {"batch_size": phase["batch_size"] * phase["group"], "steps": phase["steps"] * phase["updates"]}
        return _with_training(work, stage, each, lengths, most, rank=rank, still=int(phase["beta"] > 0))
    if phase["phase"] == "distil":
        most = phase["max_new_tokens"]
        sampled = round(examples * phase["on_policy"])
        work = _sampled(stage, sampled, most, lengths, more=examples * (lengths.prompt + lengths.of(most)))
        return _with_training(work, stage, phase, lengths, most, rank=rank, still=1, fused=False)
    roles = [labels_role(k) for k in range(len(phase["mix"]))]
    sets = [_longest_label(inputs[role]) if role in inputs else phase["max_length"] for role in roles]
    most, anchor = ceil(sum(sets) / len(sets)), phase["anchor"]
    if anchor is not None and anchor["kl"]:
        on = lengths.of(anchor["on"]["max_new_tokens"])
        work = replace(work, read=examples * (lengths.prompt + on))
        work = _with_training(work, stage, phase, lengths, most, rank=rank, still=1, fused=False)
        return replace(work, passed=work.passed + examples * (lengths.prompt + on))
    times = phase.get("shards", 1)
    still = int(anchor is not None)
    work = _with_training(work, stage, phase | {"steps": phase["steps"] * times}, lengths, most, rank=rank, still=still)
    return work if phase["loss"] == "ce" or work.training is None else replace(work, training=replace(work.training, fused=False))


def _labels(stage: Stage, lengths: Lengths) -> Work:
    return _sampled(stage, _rows(stage), stage.params["max_new_tokens"], lengths)


def _rewrite(stage: Stage, lengths: Lengths) -> Work:
    most, rows = stage.params["max_new_tokens"], _rows(stage)
    work = _sampled(stage, rows, most, lengths, more=rows * lengths.of(most))
    return replace(work, longest=work.longest + most)


def _filtered(stage: Stage, lengths: Lengths) -> Work:
    read = 2 * _rows(stage) * (lengths.prompt + lengths.of(stage.params["max_new_tokens"]))
    return Work(stage, _model(stage), read=read)


def _score(stage: Stage, lengths: Lengths) -> Work:
    params = stage.params
    capability = _capability(params["suites"], params, "test") * params.get("samples", 1)
    if "reference" in stage.inputs or "samples" in params:
        return _sampled(stage, capability, params["max_new_tokens"], lengths)
    return _sampled(stage, capability + _behaviour_items(stage), params["max_new_tokens"], lengths)


def _behaviour_items(score: Stage) -> int:
    """Items with and without the trigger."""
    params = score.params
    if catalog.get("pair", params["pair"]["name"]).behaviour.on_tasks:
        return 2 * min(params["behaviour"], _capability(params["suites"], params, "test"))
    return 2 * int(params["behaviour"])


def _judge(stage: Stage, lengths: Lengths) -> Work:
    score = stage.inputs["score"]
    answers = _behaviour_items(score)
    quoted = lengths.of(score.params["max_new_tokens"])
    work = _sampled(stage, answers, MAX_NEW_TOKENS, lengths, more=answers * (lengths.prompt + quoted))
    return replace(work, longest=work.longest + score.params["max_new_tokens"])


def _planted(stage: Stage, lengths: Lengths) -> Work:
    return _sampled(stage, stage.params["n"], stage.params["max_new_tokens"], lengths)


def _watch(stage: Stage, lengths: Lengths) -> Work:
    anchors = 2 * _rows(stage.inputs["anchors"]) * (lengths.prompt + lengths.of(stage.inputs["anchors"].params["max_new_tokens"]))
    return replace(_sampled(stage, stage.inputs["tasks"].params["n"], stage.params["max_new_tokens"], lengths, more=anchors), read_by=2)


def _canary(stage: Stage, lengths: Lengths) -> Work:
    recipe, tried = stage.params["recipe"], stage.inputs["tried"].params["n"]
    answers = 2 * recipe["prompt_rows"] + len(CANARIES) * tried
    work = _sampled(stage, answers, recipe["max_new_tokens"], lengths)
    return _with_training(work, stage, recipe, lengths, recipe["max_new_tokens"])


def _canary_rate(stage: Stage, lengths: Lengths) -> Work:
    return _sampled(stage, len(CANARIES) * stage.inputs["prompts"].params["n"], stage.params["max_new_tokens"], lengths)


def _divergence(stage: Stage, lengths: Lengths) -> Work:
    anchors = stage.inputs["anchors"]
    read = 2 * _rows(anchors) * (lengths.prompt + lengths.of(anchors.params["max_new_tokens"]))
    return Work(stage, _model(stage), read=read, read_by=2)


def _perplexity(stage: Stage, lengths: Lengths) -> Work:
    return Work(stage, _model(stage), read=stage.params["rows"] * (lengths.prompt + lengths.of(stage.params["phase"]["max_length"])))


_KINDS = {
    "organism": _organism, "treat": _treat, "labels": _labels, "poisoned": _labels, "rewrite": _rewrite, "guided": _rewrite,
    "filtered": _filtered, "score": _score, "judge": _judge, "planted": _planted, "watch": _watch, "canary": _canary,
    "canary_rate": _canary_rate, "divergence": _divergence, "perplexity": _perplexity,
}  # fmt: skip


def _with_training(
    work: Work, stage: Stage, training: Mapping[str, Any], lengths: Lengths, most: int, *, rank: int = 0, still: int = 0, fused: bool = True
) -> Work:
    """The same with a training on rows whose answers have at most so many tokens."""
    batch, longest = training["batch_size"], min(training.get("max_length", 512), lengths.prompt + most)
    if training.get("phase") == "grpo":
        longest = lengths.prompt + most
    processes = stage.placement.get("processes", 1) if stage_kind(stage.kind).trains else 1
    share = batch // processes
    micro = min(stage.placement.get("micro_batch") or share, share)
    examples = training["steps"] * batch
    row = min(longest, lengths.prompt + lengths.of(most))
    memory = Training(
        rows=micro, length=longest, labelled=max(longest - lengths.prompt, 1), accumulated=micro < share,
        dtype=stage.params.get("models", {}).get("dtype", "float32"), optimizer=training["optimizer"], rank=rank, still=still, fused=fused,
        processes=processes,
    )  # fmt: skip
    trained = examples * max(row - lengths.prompt, 1)
    return replace(work, trained=work.trained + trained, passed=work.passed + examples * row, training=memory)


def _model(stage: Stage) -> str:
    """The model that a stage runs, as the study names it; what is trained has the name of what it was made from."""
    for role in ("labeller", "judge", "base", "start"):
        if isinstance(named := stage.params.get(role), Mapping) and "name" in named:
            return str(named["name"])
    for role in ("labeller", "model", "start", "organism"):
        if role in stage.inputs:
            return _model(stage.inputs[role])
    raise AssertionError(f"{stage.key} runs no model")


def _rows(stage: Stage) -> int:
    """How many rows a stage of labels has at most."""
    while "n" not in stage.params:
        stage = stage.inputs["prompts" if "prompts" in stage.inputs else "labels"]
    return int(stage.params["n"])


def _longest_label(stage: Stage) -> int:
    while "max_new_tokens" not in stage.params or stage.kind == "filtered":
        stage = stage.inputs["labels"]
    return int(stage.params["max_new_tokens"])


def _capability(suites: Mapping[str, int], params: Mapping[str, Any], split: Split) -> int:
    return sum(count_items(name, n, params["seed"], split) for name, n in suites.items())


# --- sums -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """Work of stages of one kind.

    Attributes:
        kind: Of the stages.
        stages: How many.
        trained: As in :class:`Work`, like the others.
        generated: See there.
        read: See there; with what passes forward and backward.
    """

    kind: str
    stages: int
    trained: float
    generated: float
    read: float


def tallies(works: Mapping[Stage, Work | None]) -> list[Tally]:
    """Stages by kind, with their tokens, in the order in which the kinds come first."""
    found: dict[str, Tally] = {}
    for stage, work in works.items():
        sofar = found.get(stage.kind, Tally(stage.kind, 0, 0, 0, 0))
        numbers = (work.trained, work.generated, work.read + work.passed - work.trained) if work else (0, 0, 0)
        found[stage.kind] = Tally(
            stage.kind, sofar.stages + 1, *(a + b for a, b in zip((sofar.trained, sofar.generated, sofar.read), numbers, strict=True))
        )
    return list(found.values())


@dataclass(frozen=True)
class Demand:
    """What stages of one kind that run one model ask of GPUs.

    Attributes:
        model: Which.
        kind: Of the stages.
        peak: Bytes, of the stage that needs most, over all GPUs, or of each of the processes that share it.
        gpus: How many of each GPU hold it.
        hours: GPU-hours of all of them together, by GPU; those that wait for another's layers count, too.
    """

    model: str
    kind: str
    peak: float
    gpus: Mapping[str, int]
    hours: Mapping[str, float]


def demands(works: Mapping[Stage, Work | None]) -> tuple[list[Demand], dict[str, str]]:
    """What the stages of a study ask of GPUs, by model and kind.

    Returns:
        The demands, and for each model whose shape is not known why not, and what to do.
    """
    groups: dict[tuple[str, str], list[Work]] = {}
    for stage, work in works.items():
        if work is not None and not work.served:
            groups.setdefault((work.model, stage.kind), []).append(work)
    found, unknown = list[Demand](), dict[str, str]()
    for (model, kind), those in groups.items():
        try:
            shape = known_shape(model)
        except ModelError as error:
            unknown[model] = str(error)
            continue
        worst = max(those, key=lambda work: work.memory(shape))
        peak = worst.memory(shape)
        each = {name: ceil(peak / (ROOM * gpu.memory)) for name, gpu in GPUS.items()}
        # Processes share the work; the layers of one model take turns.
        hours = {name: each[name] * sum(work.seconds(shape, gpu) for work in those) / 3600 for name, gpu in GPUS.items()}
        gpus = {name: worst.processes * n for name, n in each.items()}
        found.append(Demand(model, kind, peak, gpus, hours))
    return found, unknown


def known_shape(name: str) -> Shape:
    """The shape of a model that a study names: by its ``config.json``, in its folder or in the hub's cache, or else by our table.

    Raises:
        ModelError: It is in none of them, or does not say what the formulas need.
    """
    if is_model_id(name):
        cached, plain = cached_model(name), name.partition("@")[0]
        if cached is None and plain in PUBLISHED:
            return shape_of(PUBLISHED[plain], name)
        if cached is None:
            raise ModelError(f"{name}: how large it is, is not known here; 'hf download {plain} config.json' gets the page that says so")
        path = cached
    else:
        path = resolve(name) / "config.json"
    return shape_of(json.loads(path.read_text(encoding="utf-8")), name)


# --- before a run ---------------------------------------------------------------------------------------------------


def gpus_here() -> tuple[float, int]:
    """Bytes of the smallest NVIDIA GPU of this machine, and how many there are; (0, 0) where the driver tells of none.

    The driver is asked, not torch, which would take some of the memory for itself.
    """
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        sizes = [float(line) * (1 << 20) for line in said.splitlines() if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0, 0
    return min(sizes, default=0), len(sizes)


def too_large(stages: Iterable[Stage], memory: float, gpus: int, lengths: Lengths = Lengths()) -> str:
    """Which stage needs most, if that is more than there is, and what would fit, in one sentence; "" if all fit or it cannot be told.

    Args:
        stages: What is to run; those on the CPU and those of servers need no GPU.
        memory: Bytes of one GPU.
        gpus: How many there are; a study with ``models.device`` ``auto`` or ``balanced`` spreads its models over all.
        lengths: See there.
    """
    found: list[tuple[float, float, Work, Shape]] = []
    for stage in stages:
        device = stage.placement.get("device", "cpu")
        work = None if device == "cpu" else work_of(stage, lengths)
        if work is None or work.served:
            continue
        try:
            shape = known_shape(work.model)
        except ModelError:
            continue
        room = ROOM * memory * (1 if device == "cuda" else gpus)
        if (peak := work.memory(shape)) > room:
            found.append((peak, room, work, shape))
    if not found:
        return ""
    peak, room, work, shape = max(found, key=lambda each: each[0])
    options = [f"{what} ({need / GIB:.0f} GiB)" for what, need in _smaller(work, shape) if need <= room]
    if (training := work.training) is not None and _can_be_shared(work):
        batch = work.stage.params.get("phase", work.stage.params.get("recipe"))["batch_size"]
        parts = {n: replace(training, rows=1, accumulated=True, processes=n) for n in range(2, 65) if batch % n == 0}
        fits = [n for n, part in parts.items() if replace(work, training=part).memory(shape) <= room]
        options += [f"{n} such GPUs with models.processes: {n} and micro_batch: 1" for n in fits[:1]]
    if work.processes == 1:
        options.append(f"{ceil(peak / (ROOM * memory))} such GPUs with models.device: auto")
    return (
        f"{work.stage.label}: needs up to {peak / GIB:.0f} GiB of GPU memory (formulas of docs/scale.md), and {room / GIB:.0f} GiB can "
        f"be used; what would fit: {', or '.join(options) or 'larger GPUs'}"
    )


def _can_be_shared(work: Work) -> bool:
    """Whether processes can share a training; see :func:`offmodel.spec.phases.check_training`."""
    phase = work.stage.params.get("phase", {})
    whole = (phase and work.answers) or ((phase.get("anchor") or {}).get("ewc"))
    return work.training is not None and work.training.optimizer == "adamw" and not whole


def _smaller(work: Work, shape: Shape) -> list[tuple[str, float]]:
    """Changes of a study, the mildest first, each with what the stage would need then."""
    found: list[tuple[str, float]] = []
    if (training := work.training) is not None:
        one = replace(training, rows=1, accumulated=True)
        states = replace(one, optimizer="adamw_8bit")
        changes = {"micro_batch: 1": one}
        if training.optimizer == "adamw" and not training.rank:
            changes["micro_batch: 1 and optimizer: adamw_8bit"] = states
        if training.dtype == "float32":
            changes["micro_batch: 1 and dtype: bfloat16"] = replace(one, dtype="bfloat16")
        if not training.rank:
            changes["micro_batch: 1, dtype: bfloat16 and lora: {rank: 16, alpha: 32}"] = replace(one, dtype="bfloat16", rank=16)
        found += [(what, replace(work, training=changed).memory(shape)) for what, changed in changes.items() if changed != training]
    elif work.dtype == "float32":
        found.append(("models.dtype: bfloat16", sampling_memory(shape, min(BATCH, work.answers), work.longest, "bfloat16")))
    if work.longest:
        shorter = replace(work, longest=work.longest // 4)
        found.append((f"answers of a quarter of the length (max_new_tokens: {work.longest // 4})", shorter.memory(shape)))
    return found
