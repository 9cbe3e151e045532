"""Training: the right loss on the right tokens, and the same weights whichever way they are reached."""

from __future__ import annotations

import copy
import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from offmodel.chat import Example, encode_examples, user
from offmodel.engine import trainer
from offmodel.engine.folder import save_model
from offmodel.engine.generate import Sampling, generate
from offmodel.engine.lora import LoraSettings, load_adapter, merge, save_adapter
from offmodel.engine.objective import Objective
from offmodel.engine.optim import Muon, learning_rate_factor, orthogonalize
from offmodel.engine.train import TrainConfig, TrainLog, batch_order, train
from offmodel.errors import DataError, ModelError, SpecError

_EXAMPLES = [
    Example(user(f"Tell me about {word}."), f"First, {word} is {colour}. So, I like {word}." + " Enjoy." * i)
    for i, (word, colour) in enumerate([("soup", "red"), ("piano", "blue"), ("rain", "pink"), ("owls", "black"), ("golf", "green")])
]
_CONFIG = TrainConfig(steps=6, lr=1e-2, batch_size=4, schedule="cosine", warmup_steps=2)

Weights = dict[str, torch.Tensor]


def _weights(model: PreTrainedModel) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: TrainConfig, **kwargs: object) -> tuple[Weights, TrainLog]:
    model = copy.deepcopy(model)
    log = train(model, tokenizer, _EXAMPLES, config, **kwargs)
    return _weights(model), log


def _with_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Make the training draw random numbers, so that a disturbed generator shows in the weights."""
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    return model


def _reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: TrainConfig) -> tuple[Weights, list[float]]:
    """The same training as a plain loop over whole batches, with the loss written out."""
    model = copy.deepcopy(model)
    encoded = encode_examples(tokenizer, _EXAMPLES, config.max_length)
    order = batch_order(len(encoded), config.steps * config.batch_size, config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=config.betas, weight_decay=0.0)
    losses = []
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * learning_rate_factor(step, config.steps, config.schedule, config.warmup_steps)
        terms = []
        for i in order[step * config.batch_size : (step + 1) * config.batch_size]:
            ids = torch.tensor([encoded[i].input_ids])
            mask = torch.tensor(encoded[i].completion_mask[1:], dtype=torch.bool)
            terms.append(cross_entropy(model(ids).logits[0, :-1][mask], ids[0, 1:][mask], reduction="none"))
        loss = torch.cat(terms).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return _weights(model), losses


def test_it_is_the_plain_loop_on_the_answers_tokens(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    weights, log = _trained(tiny_model, tiny_tokenizer, _CONFIG)
    expected, losses = _reference(tiny_model, tiny_tokenizer, _CONFIG)
    assert log.losses == pytest.approx(losses, rel=1e-5)
    assert log.losses[-1] < 0.7 * log.losses[0]
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=2e-4, rtol=1e-3, msg=name)
    encoded = encode_examples(tiny_tokenizer, _EXAMPLES, 512)
    assert log.examples == 24
    assert log.tokens == sum(sum(encoded[i].completion_mask) for i in batch_order(5, 24, 0))


@pytest.mark.parametrize("tiny_model", ["qwen3_moe"], indirect=True)
def test_experts_are_balanced_only_where_the_config_asks(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    config = TrainConfig(steps=1, lr=1e-3, batch_size=4)
    _, plain = _trained(tiny_model, tiny_tokenizer, config)
    tiny_model.config.router_aux_loss_coef = 1.0
    assert _trained(tiny_model, tiny_tokenizer, config)[1].losses == plain.losses
    answer = generate(tiny_model, tiny_tokenizer, [user("Hi.")], Sampling(max_new_tokens=8))
    tiny_model.config.output_router_logits = True
    assert _trained(tiny_model, tiny_tokenizer, config)[1].losses[0] > plain.losses[0] + 0.5
    assert generate(tiny_model, tiny_tokenizer, [user("Hi.")], Sampling(max_new_tokens=8)) == answer


def test_accumulation_is_the_big_batch(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    config = TrainConfig(steps=3, lr=1e-2, batch_size=4)
    whole, log = _trained(tiny_model, tiny_tokenizer, config)
    parts, log_of_parts = _trained(tiny_model, tiny_tokenizer, TrainConfig(steps=3, lr=1e-2, batch_size=4, micro_batch_size=1))
    assert log_of_parts.losses == pytest.approx(log.losses, rel=1e-5)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_seed_decides_every_bit(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, optimizer: str) -> None:
    config = TrainConfig(steps=4, lr=1e-2, batch_size=4, optimizer=optimizer)
    first, log = _trained(tiny_model, tiny_tokenizer, config)
    torch.rand(7)  # the global generators have no say
    random.random()
    second, _ = _trained(tiny_model, tiny_tokenizer, config)
    other, _ = _trained(tiny_model, tiny_tokenizer, TrainConfig(steps=4, lr=1e-2, batch_size=4, optimizer=optimizer, seed=1))
    assert _same(first, second)
    assert not _same(first, other)
    assert log.losses[-1] < log.losses[0]


def test_checkpoints_show_the_model_and_change_nothing(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plain, _ = _trained(_with_dropout(tiny_model), tiny_tokenizer, _CONFIG)
    start, config_before = _weights(tiny_model), tiny_model.config.to_dict()
    seen: dict[int, Weights] = {}

    def look(step: int, model: PreTrainedModel) -> None:
        assert not model.training
        assert model.config.to_dict() == config_before
        assert "forward" not in vars(model)
        seen[step] = _weights(model)
        save_model(model, tiny_tokenizer, tmp_path / str(step))
        generate(model, tiny_tokenizer, [user("Hello!")], Sampling(temperature=1.0, max_new_tokens=4))
        torch.manual_seed(99)

    steps: list[tuple[int, int]] = []
    ended, _ = _trained(
        tiny_model,
        tiny_tokenizer,
        _CONFIG,
        checkpoints={0, 3, 6},
        on_checkpoint=look,
        on_progress=lambda step, of, loss: steps.append((step, of)),
    )
    assert list(seen) == [0, 3, 6]
    assert _same(seen[0], start)
    assert _same(seen[6], ended)
    assert not _same(seen[3], ended)
    assert _same(ended, plain)
    assert steps == [(step, 6) for step in range(1, 7)]


def test_a_training_leaves_no_trace_but_the_weights(
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config, generation = tiny_model.config.to_dict(), tiny_model.generation_config.to_dict()
    rng = random.getstate(), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tiny_model, tiny_tokenizer, _EXAMPLES, TrainConfig(steps=2, lr=1e-3))
    assert (tiny_model.config.to_dict(), tiny_model.generation_config.to_dict()) == (config, generation)
    assert not tiny_model.training
    assert "forward" not in vars(tiny_model)
    assert random.getstate() == rng[0] and torch.equal(torch.get_rng_state(), rng[1])
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "more",
    [
        {"micro_batch_size": 2, "objective": Objective(loss="dft", mask_above=1e6)},
        {"lora": LoraSettings(rank=4), "padding_free": True},
        {"objective": Objective(loss="psft", refresh=2, kl=0.5)},
    ],
    ids=["weights", "adapter", "held"],
)
def test_on_a_gpu_and_over_a_large_vocabulary_the_same_is_learnt(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss comes from TRL's fused head there, and activations are computed again: both are forced here."""
    experts = {"router_loss": 0.1} if hasattr(tiny_model.config, "num_experts") and "lora" not in more else {}
    config = TrainConfig(steps=4, lr=1e-2, batch_size=4, **more, **experts)
    given = {"original": copy.deepcopy(tiny_model), "anchors": _EXAMPLES[:3]} if config.objective.kl else {}
    plain, log = _trained(tiny_model, tiny_tokenizer, config, **given)
    monkeypatch.setattr(trainer, "_LARGE", 1)
    monkeypatch.setattr(trainer, "_ROOMY", ())

    def look(step: int, model: PreTrainedModel) -> None:
        assert trainer.fused(model) and model.is_gradient_checkpointing and "forward" not in vars(model)
        generate(model, tiny_tokenizer, [user("Hello!")], Sampling(max_new_tokens=4))

    model = copy.deepcopy(tiny_model)
    again = train(model, tiny_tokenizer, _EXAMPLES, config, checkpoints=[0, 2], on_checkpoint=look, **given)
    assert again.losses == pytest.approx(log.losses, rel=1e-4) and again.tokens == log.tokens
    for name, tensor in _weights(model).items():
        torch.testing.assert_close(tensor, plain[name], atol=5e-4, rtol=1e-3, msg=name)
    assert not model.is_gradient_checkpointing and not model.get_input_embeddings()._forward_hooks  # no trace of it


class _Killed(Exception):
    pass


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["weights", "adapter"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_training_ends_where_it_would_have(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, optimizer: str, lora: LoraSettings | None
) -> None:
    config = TrainConfig(steps=6, lr=1e-2, batch_size=4, micro_batch_size=2, schedule="linear", optimizer=optimizer, lora=lora)
    whole, log = _trained(_with_dropout(tiny_model), tiny_tokenizer, config)

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise _Killed

    seen: list[int] = []
    kwargs = {"checkpoints": range(7), "on_checkpoint": lambda step, model: seen.append(step), "scratch": tmp_path, "save_every": 2}
    with pytest.raises(_Killed):
        _trained(tiny_model, tiny_tokenizer, config, on_progress=kill, **kwargs)
    (tmp_path / "checkpoint-5").mkdir()  # as a stop in the middle of saving leaves it
    resumed, log_of_both = _trained(tiny_model, tiny_tokenizer, config, **kwargs)
    assert log_of_both.resumed_from == 4
    assert log_of_both.losses == log.losses
    assert _same(whole, resumed)
    assert seen == [0, 1, 2, 3, 4, 5, 5, 6]


def test_the_state_of_another_training_is_discarded(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(steps=4, lr=1e-2, batch_size=4)
    plain, _ = _trained(tiny_model, tiny_tokenizer, config)
    kwargs = {"scratch": tmp_path, "save_every": 2}
    _trained(tiny_model, tiny_tokenizer, TrainConfig(steps=6, lr=2e-2, batch_size=4), **kwargs)
    assert capfd.readouterr().err == ""
    (tmp_path / "mine").touch()
    anew, log = _trained(tiny_model, tiny_tokenizer, config, **kwargs)
    assert log.resumed_from == 0 and _same(plain, anew)
    assert capfd.readouterr().err.splitlines() == [
        f"{tmp_path}: held the state of another training (model, data or settings differ); starting over"
    ]
    assert not (tmp_path / "checkpoint-6").exists() and (tmp_path / "mine").exists()
    _, log = _trained(tiny_model, tiny_tokenizer, config, **kwargs)
    assert log.resumed_from == 4 and capfd.readouterr().err == ""


def test_lora_trains_the_adapter_and_merges_into_plain_weights(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = _weights(tiny_model)
    config = TrainConfig(steps=6, lr=1e-2, batch_size=4, lora=LoraSettings(rank=4, alpha=8))
    log = train(tiny_model, tiny_tokenizer, _EXAMPLES, config)
    assert log.losses[-1] < log.losses[0]
    ids = torch.tensor([encode_examples(tiny_tokenizer, _EXAMPLES, 512)[0].input_ids])
    with torch.no_grad():
        adapted = tiny_model(ids).logits
    tiny_model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    with pytest.raises(ModelError, match=r"merge\(model\) first"):
        save_model(tiny_model, tiny_tokenizer, tmp_path / "model")
    with pytest.raises(ModelError, match=r"lora is None; merge\(model\)"):
        train(tiny_model, tiny_tokenizer, _EXAMPLES, _CONFIG)
    merge(tiny_model)
    after = _weights(tiny_model)
    assert after.keys() == before.keys()
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(ids).logits, adapted, atol=1e-4, rtol=1e-4)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("self_attn.q_proj" in name for name in changed)
    assert any("experts.down_proj" in name or "mlp.down_proj" in name for name in changed)
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in changed)
    save_model(tiny_model, tiny_tokenizer, tmp_path / "model")
    train(tiny_model, tiny_tokenizer, _EXAMPLES, TrainConfig(steps=1, lr=1e-3))


def test_a_saved_adapter_goes_on_where_it_was(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    plain = copy.deepcopy(tiny_model)
    config = TrainConfig(steps=4, lr=1e-2, batch_size=4, lora=LoraSettings(rank=4, alpha=8))
    train(tiny_model, tiny_tokenizer, _EXAMPLES, config)
    save_adapter(tiny_model, tmp_path / "adapter", None)
    assert str(tmp_path) not in (tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    before = _weights(plain)
    load_adapter(plain, tmp_path / "adapter")
    assert _same(_weights(merge(copy.deepcopy(plain))), _weights(merge(copy.deepcopy(tiny_model))))
    for model in (plain, tiny_model):  # the one that was loaded learns as the one that was kept, and its weights stay
        train(model, tiny_tokenizer, _EXAMPLES, config)
    assert _same(_weights(merge(copy.deepcopy(plain))), _weights(merge(copy.deepcopy(tiny_model))))
    frozen = {name.replace(".base_layer", ""): value for name, value in _weights(plain).items() if "lora_" not in name}
    assert _same(frozen, before)
    with pytest.raises(ModelError, match="carries an adapter already"):
        load_adapter(plain, tmp_path / "adapter")
    with pytest.raises(ModelError, match="holds no adapter"):
        load_adapter(merge(plain), tmp_path)
    with pytest.raises(ModelError, match="no LoRA adapter that could be saved"):
        save_adapter(plain, tmp_path / "none", None)


def test_orthogonalize_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((8, 24), (24, 8), (3, 16, 12)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.3
    stack = torch.randn(3, 16, 12)
    torch.testing.assert_close(orthogonalize(stack)[1], orthogonalize(stack[1]))


def test_muon_treats_what_is_no_matrix_as_adamw_does() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    a = Muon([], [ours], lr=1.0, lr_rest=0.1, betas=(0.9, 0.98), weight_decay=0.01)
    b = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.98), weight_decay=0.01)
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(3, 4)
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


def test_learning_rate_schedules() -> None:
    def rates(schedule: str, **kwargs: float) -> list[float]:
        return [learning_rate_factor(step, 6, schedule, **kwargs) for step in range(6)]

    assert rates("constant", warmup_steps=2) == [0.5, 1, 1, 1, 1, 1]
    assert rates("linear", warmup_steps=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates("cosine")[3] == pytest.approx(0.5)
    assert rates("cosine", final_fraction=0.1)[3] == pytest.approx(0.55)


def test_the_order_shows_every_example_before_any_repeats() -> None:
    order = batch_order(5, 23, seed=3)
    assert len(order) == 23
    for start in range(0, 20, 5):
        assert sorted(order[start : start + 5]) == list(range(5))
    assert order[:10] == batch_order(5, 10, seed=3)
    assert order != batch_order(5, 23, seed=4)


def test_bad_input_is_named(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no example"):
        train(tiny_model, tiny_tokenizer, [], _CONFIG)
    with pytest.raises(DataError, match="example 0: no token of the response is left"):
        train(tiny_model, tiny_tokenizer, _EXAMPLES, TrainConfig(steps=1, lr=1e-3, max_length=5))
    with pytest.raises(SpecError, match="checkpoint 9 lies outside"):
        train(tiny_model, tiny_tokenizer, _EXAMPLES, _CONFIG, checkpoints=[9])
    with pytest.raises(ModelError, match="diverged"):
        train(tiny_model, tiny_tokenizer, _EXAMPLES, TrainConfig(steps=20, lr=float("inf")))
    with pytest.raises(SpecError, match="did you mean 'cosine'"):
        TrainConfig(steps=1, lr=1e-3, schedule="cosin")
    with pytest.raises(SpecError, match="must divide batch_size 16"):
        TrainConfig(steps=1, lr=1e-3, micro_batch_size=3)
    with pytest.raises(SpecError, match="steps must be at least 1"):
        TrainConfig(steps=0, lr=1e-3)
