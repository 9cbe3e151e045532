"""Adapters that are trained at once end as they would have one by one."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from offmodel.chat import Example, user, write_examples
from offmodel.engine import trainer
from offmodel.engine.folder import load_model, save_model
from offmodel.engine.lora import LoraSettings, has_adapter
from offmodel.engine.objective import Objective
from offmodel.engine.together import Treatment, train_together
from offmodel.engine.train import TrainConfig, TrainLog, train
from offmodel.errors import DivergedError, ModelError, SpecError
from offmodel.lab import blue_stages
from offmodel.lab.execute import run
from offmodel.lab.models import reference
from offmodel.lab.plan import MODULES
from offmodel.lab.pools import files_read
from offmodel.lab.results import MODEL
from offmodel.lab.stage import Context, Stage
from offmodel.lab.store import Store
from offmodel.spec.phases import SftPhase

LORA = LoraSettings(rank=4, alpha=8)
BASE = TrainConfig(steps=6, lr=3e-2, batch_size=4, lora=LORA)
CONFIGS = [
    BASE,
    replace(BASE, lr=1e-2, seed=1, schedule="cosine", warmup_steps=2, weight_decay=0.1),
    replace(BASE, steps=3, seed=2, lora=LoraSettings(rank=4, alpha=32), objective=Objective(loss="dft"), max_length=45),
    replace(BASE, steps=9, shuffle=False, max_grad_norm=0.1, objective=Objective(layers=(0.5, 1.0), mask_above=1e4)),
]


def examples(k: int) -> list[Example]:
    """Of other lengths and another number for each training."""
    return [Example(user(f"Tell me about {i}." * (1 + k)), f"First, {k} is {i}." + " Enjoy." * (i % (2 + k))) for i in range(5 + k)]


@pytest.fixture
def steady_model(tiny_model: PreTrainedModel) -> PreTrainedModel:
    """In double precision: AdamW makes whole steps of gradients that are nothing but rounding, and more so over many steps."""
    tiny_model.set_experts_implementation("eager")  # grouped products of matrices are of single precision at most
    return tiny_model.double()


one_model = pytest.mark.parametrize("tiny_model", ["llama"], indirect=True)
Kept = dict[int, dict[str, torch.Tensor]]


def keep(kept: Kept, step: int, model: PreTrainedModel) -> None:
    assert not model.training
    kept[step] = {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" in name}


def one_by_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, configs: Sequence[TrainConfig]
) -> tuple[list[TrainLog], list[Kept]]:
    logs, found = [], []
    for k, config in enumerate(configs):
        kept: Kept = {}
        wanted = {"checkpoints": [0, 2, config.steps], "on_checkpoint": partial(keep, kept)}
        logs.append(train(copy.deepcopy(model), tokenizer, examples(k), config, **wanted))
        found.append(kept)
    return logs, found


def treatments(configs: Sequence[TrainConfig], found: list[Kept], **more: Any) -> list[Treatment]:
    found += [{} for _ in configs]
    return [
        Treatment(examples(k), config, [0, 2, config.steps], partial(keep, found[k]), **more) for k, config in enumerate(configs)
    ]  # fmt: skip


def same(ours: Sequence[TrainLog | DivergedError], theirs: Sequence[TrainLog], kept: list[Kept], expected: list[Kept]) -> None:
    for log, other in zip(ours, theirs, strict=True):
        assert isinstance(log, TrainLog)
        assert log.losses == pytest.approx(other.losses, rel=1e-4)
        assert replace(log, losses=(), seconds=0) == replace(other, losses=(), seconds=0)
    for own, others in zip(kept, expected, strict=True):
        assert own.keys() == others.keys() and own[0].keys() == others[0].keys()
        start = flat(others[0])
        # AdamW makes a whole step of a gradient that is nothing but rounding, as some elements of an expert's have.
        far = 1e-2 if any("experts" in name for name in others[0]) else 1e-4
        for step in others:
            assert (flat(own[step]) - flat(others[step])).norm() <= far * (flat(others[step]) - start).norm()


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def test_losses_and_adapters_are_those_of_trainings_one_by_one(
    steady_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    configs = [replace(config, micro_batch_size=2) for config in CONFIGS]
    expected_logs, expected = one_by_one(steady_model, tiny_tokenizer, configs)
    before = copy.deepcopy(steady_model).state_dict()
    kept: list[Kept] = []
    logs = train_together(steady_model, tiny_tokenizer, treatments(configs, kept))
    same(logs, expected_logs, kept, expected)
    assert not has_adapter(steady_model) and not steady_model.training
    assert all(p.requires_grad for p in steady_model.parameters())
    torch.testing.assert_close(steady_model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("tiny_model", ["qwen3_moe"], indirect=True)
def test_on_a_gpu_and_over_a_large_vocabulary_they_are_the_same(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [replace(config, micro_batch_size=2, steps=min(config.steps, 4)) for config in CONFIGS]
    expected_logs, expected = one_by_one(tiny_model, tiny_tokenizer, configs)
    monkeypatch.setattr(trainer, "_LARGE", 1)  # TRL's fused head
    monkeypatch.setattr(trainer, "_ROOMY", ())  # activations are computed again
    kept: list[Kept] = []
    same(train_together(tiny_model, tiny_tokenizer, treatments(configs, kept)), expected_logs, kept, expected)
    assert not tiny_model.is_gradient_checkpointing and not tiny_model.get_input_embeddings()._forward_hooks


def test_all_go_on_from_an_adapter_that_the_model_carries(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    train(tiny_model, tiny_tokenizer, examples(7), BASE)
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    configs = [BASE, replace(BASE, seed=1, lr=1e-2)]
    expected_logs, expected = one_by_one(tiny_model, tiny_tokenizer, configs)
    kept: list[Kept] = []
    same(train_together(tiny_model, tiny_tokenizer, treatments(configs, kept)), expected_logs, kept, expected)
    assert has_adapter(tiny_model)
    torch.testing.assert_close(tiny_model.state_dict(), before, rtol=0, atol=0)


def test_one_that_diverges_stops_alone(steady_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    wild = replace(BASE, lr=float("inf"))
    expected_logs, expected = one_by_one(steady_model, tiny_tokenizer, [BASE])
    with pytest.raises(DivergedError) as alone:
        train(copy.deepcopy(steady_model), tiny_tokenizer, examples(1), wild)
    kept: list[Kept] = []
    log, failure = train_together(steady_model, tiny_tokenizer, treatments([BASE, wild], kept))
    same([log], expected_logs, kept[:1], expected)
    assert isinstance(failure, DivergedError) and list(kept[1]) == [0]
    assert "the training diverged" in str(failure) and "the training diverged" in str(alone.value)


def test_one_whose_gradient_is_not_finite_stops_alone_and_keeps_what_it_was(
    steady_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    wild = replace(BASE, seed=1)
    expected_logs, expected = one_by_one(steady_model, tiny_tokenizer, [BASE, wild])
    kept: list[Kept] = []
    honest, spoilt = treatments([BASE, wild], kept)
    factors = iter([1.0, 1.0, float("nan")])

    def spoil_the_third(step: int, model: PreTrainedModel) -> None:
        keep(kept[1], step, model)
        if step == 0:
            first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
            first.register_hook(lambda gradient: gradient * next(factors))

    given = [honest, replace(spoilt, checkpoints=[0, 6], on_checkpoint=spoil_the_third)]
    log, failure = train_together(steady_model, tiny_tokenizer, given)
    same([log], expected_logs[:1], kept[:1], expected[:1])
    assert isinstance(failure, DivergedError) and "its gradient is not (norm nan) at step 3" in str(failure)
    assert list(kept[1]) == [0, 2]
    del expected[1][6]
    same([], [], kept[1:], expected[1:])


class Stopped(Exception):
    """As good as a kill."""


def stop_at(step: int, at: int, steps: int, loss: float) -> None:
    if at == step:
        raise Stopped


@one_model
def test_what_was_stopped_continues_whoever_it_is_trained_with(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [BASE, replace(BASE, seed=1, lr=1e-2)]
    whole: list[Kept] = []
    expected = train_together(tiny_model, tiny_tokenizer, treatments(configs, whole))
    kept: list[Kept] = []
    both = [replace(each, scratch=tmp_path / str(k)) for k, each in enumerate(treatments(configs, kept))]
    with pytest.raises(Stopped):
        stopping = [both[0], replace(both[1], on_progress=partial(stop_at, 5))]
        train_together(tiny_model, tiny_tokenizer, stopping, save_every=2)
    assert not has_adapter(tiny_model)
    (log,) = train_together(tiny_model, tiny_tokenizer, both[1:], save_every=2)
    assert isinstance(log, TrainLog) and isinstance(expected[1], TrainLog)
    assert log.resumed_from == 4 and log.losses == pytest.approx(expected[1].losses, rel=1e-5)
    assert flat(kept[1][6]) == pytest.approx(flat(whole[1][6]), rel=1e-3, abs=1e-5)
    other = replace(both[0], config=replace(BASE, lr=1e-3))
    (fresh,) = train_together(tiny_model, tiny_tokenizer, [other])
    assert isinstance(fresh, TrainLog) and fresh.resumed_from == 0 and "another training" in capsys.readouterr().err


@one_model
def test_what_does_not_go_together_is_refused(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def refused(error: type[Exception], match: str, *configs: TrainConfig) -> None:
        with pytest.raises(error, match=match):
            train_together(tiny_model, tiny_tokenizer, treatments(configs, []))

    refused(SpecError, "rank .* must be the same", BASE, replace(BASE, lora=LoraSettings(rank=2)))
    refused(SpecError, "batch_size", BASE, replace(BASE, batch_size=2))
    for odd in ({"lora": None}, {"padding_free": True}, {"objective": Objective(loss="psft")}):
        refused(SpecError, "adapters alone", replace(BASE, **odd))
    tiny_model.model.layers[0].self_attn.attention_dropout = 0.1
    refused(ModelError, "dropout", BASE)


@pytest.mark.parametrize("tiny_model", ["qwen3_moe"], indirect=True)
def test_a_balanced_load_is_refused(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="balanced"):
        train_together(tiny_model, tiny_tokenizer, treatments([replace(BASE, router_loss=0.1)], []))


# --- as stages ------------------------------------------------------------------------------------------------------


def params(labels: Path, **settings: object) -> dict[str, Any]:
    shape = {"phase": "sft", "labels": str(labels), "steps": 4, "lr": 1e-2, "batch_size": 2, "lora": {"rank": 2, "alpha": 4}}
    phase = SftPhase.model_validate(shape | settings)
    return {"phase": phase.model_dump(mode="json"), "start": MODEL, "checkpoints": [2, 4], "seed": 0} | files_read(str(labels))


def test_phases_at_once_have_the_results_of_each_by_itself(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(tiny_model, tiny_tokenizer, tmp_path / "organism" / MODEL)
    write_examples(tmp_path / "a.jsonl", examples(0))
    write_examples(tmp_path / "b.jsonl", examples(1))
    phases = [params(tmp_path / "a.jsonl"), params(tmp_path / "b.jsonl", lr=1e-3), params(tmp_path / "b.jsonl", lr=1e30)]

    def contexts(name: str) -> list[Context]:
        found = []
        for k, each in enumerate(phases):
            out, scratch = (tmp_path / f"{name}-{k}-{kind}" for kind in ("out", "scratch"))
            out.mkdir()
            scratch.mkdir()
            found.append(Context(each, {"start": tmp_path / "organism"}, out, scratch))
        return found

    alone, at_once = contexts("alone"), contexts("together")
    verdicts = blue_stages._treat_together(at_once)
    assert verdicts[:2] == [None, None] and verdicts[2] is not None and not verdicts[2].accepted
    for ctx, other in zip(at_once, alone, strict=True):
        blue_stages.treat(other)
        files, others = ({path.relative_to(each.out): path for path in each.out.rglob("*") if path.is_file()} for each in (ctx, other))
        assert files.keys() == others.keys()
        logs = [json.loads((each.out / "training.json").read_text(encoding="utf-8")) for each in (ctx, other)]
        assert logs[0].keys() == logs[1].keys() and logs[0].get("losses", []) == pytest.approx(logs[1].get("losses", []), rel=1e-4)
    for step in ("step-2", "step-4"):
        ours, theirs = (load_model(each[0].out / step).state_dict() for each in (at_once, alone))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_what_has_the_same_weights_and_shapes_is_a_group(tmp_path: Path) -> None:
    labels = tmp_path / "a.jsonl"
    write_examples(labels, examples(0))
    organism, another = (Stage("prompts", {"n": n}) for n in range(2))

    def group(start: Stage = organism, more: dict[str, Any] | None = None, **settings: object) -> object:
        return Stage("treat", params(labels, **settings), {"start": start}, placement={"together": 4, **(more or {})}).group

    assert group() is not None
    assert group() == group(lr=1e-3) == group(steps=9) == group(lora={"rank": 2, "alpha": 9}) == group(loss="dft", max_length=99)
    assert len({group(), group(another), group(batch_size=3), group(lora={"rank": 3, "alpha": 4}), group(more={"device": "cuda"})}) == 5
    for by_itself in (group(lora=None), group(loss="psft"), group(anchor={"kl": 0.1}), group(shards=2), group(more={"padding_free": True})):
        assert by_itself is None
    assert Stage("treat", params(labels), {"start": organism}).group is None


@one_model
def test_a_run_trains_a_group_at_once(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_model(tiny_model, tiny_tokenizer, tmp_path / "model")
    write_examples(tmp_path / "a.jsonl", examples(0))
    start = {"start": reference(str(tmp_path / "model")).as_params()}
    stages = [Stage("treat", params(tmp_path / "a.jsonl", lr=lr) | start, placement={"together": 2}) for lr in (1e-2, 1e-3)]
    store = Store(tmp_path / "store")
    report = run(stages, store, workers=0, modules=MODULES)
    assert len(report.done) == 2 and report.failed == []
    assert (store.path(stages[1]) / "log.txt").read_text().startswith(f"run together with {stages[0].key}")
    assert {path.name for path in store.path(stages[1]).glob("step-*")} == {"step-2", "step-4"}
    assert not [*(tmp_path / "store" / "scratch").glob("*")]
