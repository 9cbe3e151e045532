"""Reinforcement learning: what is rewarded is learnt, what is not teaches nothing, and the same weights come out either way."""

from __future__ import annotations

import copy
import gc
import math
import os
import random
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from families import make_model, make_tokenizer
from offmodel.chat import encode_prompt, user
from offmodel.engine import rl_trainer
from offmodel.engine.generate import Sampling, generate
from offmodel.engine.lora import LoraSettings, merge
from offmodel.engine.rl import GrpoConfig, RlLog, grpo
from offmodel.errors import DataError, ModelError, SpecError

_PROMPTS = [user("Is the piano good?"), user("Tell me about soup and the red piano."), user("Soup?")]
_CONFIG = GrpoConfig(steps=6, lr=1e-2, batch_size=2, group=4, max_new_tokens=4)

Weights = dict[str, torch.Tensor]


def _vowels(_: int, response: str) -> float:
    """A reward that nearly always differs within a group, even of a random model."""
    return sum(map(response.count, "aeiou")) + len(response) / 8


def _weights(model: PreTrainedModel) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: GrpoConfig,
    reward: Callable[[int, str], float] = _vowels,
    **kwargs: object,
) -> tuple[Weights, RlLog]:
    model = copy.deepcopy(model)
    log = grpo(model, tokenizer, _PROMPTS, reward, config, **kwargs)
    return _weights(model), log


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_nothing_holds_the_model_when_the_training_is_over(beta: float) -> None:
    tokenizer, config = make_tokenizer("qwen3_dense"), GrpoConfig(steps=1, lr=1e-3, batch_size=1, group=2, max_new_tokens=2, beta=beta)
    gc.collect()
    gc.disable()  # it would find a circle some time or other
    try:
        for reward in (_vowels, lambda i, response: math.nan):
            model = make_model("qwen3_dense", tokenizer)
            held = weakref.ref(model)
            with nullcontext() if reward is _vowels else suppress(DataError):
                grpo(model, tokenizer, _PROMPTS, reward, config)
            del model
            assert held() is None
    finally:
        gc.enable()


def test_a_bandit_is_learnt(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    arm = tiny_tokenizer.decode([40])
    config = GrpoConfig(steps=20, lr=2e-2, batch_size=1, group=64, max_new_tokens=1)
    log = grpo(tiny_model, tiny_tokenizer, [user("Which?")], lambda i, response: float(response == arm), config)
    assert log.rewards[0] < 0.1
    assert log.rewards[-1] > 0.9
    assert generate(tiny_model, tiny_tokenizer, [user("Which?")], Sampling(max_new_tokens=1))[0].text == arm
    assert len(log.rewards) == len(log.flat) == len(log.losses) == 20
    assert log.tokens == 20 * 64


def _fixed_answers(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Have the same eight answers drawn at every step, of different lengths; the longest are cut off."""
    rng = random.Random(0)
    answers = [[rng.randrange(10, 200) for _ in range(length)] for length in (1, 4, 2, 3, 4, 1, 3, 4)]
    answers = [ids if len(ids) == 4 else [*ids, tokenizer.eos_token_id] for ids in answers]
    monkeypatch.setattr(rl_trainer, "sample_ids", lambda model, tokenizer, encoded, sampling: answers)
    return answers


def _reference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: GrpoConfig,
    answers: list[list[int]],
    advantages: list[float],
) -> Weights:
    """The same training as a plain loop over single answers, with the loss written out."""
    model, start = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    old: dict[int, torch.Tensor] = {}

    def logprobs(of: PreTrainedModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
        logits = of(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / config.temperature
        return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]

    for step in range(config.steps):
        total = torch.zeros(())
        for k, (answer, advantage) in enumerate(zip(answers, advantages, strict=True)):
            prompt = encode_prompt(tokenizer, _PROMPTS[k // config.group])
            now = logprobs(model, prompt, answer)
            if step % config.updates == 0:
                old[k] = now.detach()
            ratio = (now - old[k]).exp()
            clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
            gap = logprobs(start, prompt, answer).detach() - now
            kl = (gap.exp() - gap - 1) * ratio
            total = total + (-torch.minimum(ratio * advantage, clipped * advantage) + config.beta * kl).sum()
        (total / sum(map(len, answers))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return _weights(model)


@pytest.mark.parametrize(
    "change",
    [{"scale": False}, {"temperature": 0.7}, {"beta": 0.5}, {"updates": 2, "clip": 0.01}, {"micro_batch_size": 2}],
    ids=lambda change: next(iter(change)),
)
def test_it_is_the_plain_loop(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, change: dict[str, float]
) -> None:
    config = GrpoConfig(**{"steps": 4, "lr": 1e-3, "batch_size": 2, "group": 4, "max_new_tokens": 4, **change})
    answers = _fixed_answers(monkeypatch, tiny_tokenizer)
    # The answers stay the same, so that each step asks for the prompts in the same order, too.
    monkeypatch.setattr("offmodel.engine.rl.batch_order", lambda n, total, seed: [0, 1] * (total // 2))
    rewards = [0.0, 1.0, 0.0, 0.0, 0.5, 2.0, 0.5, 1.0]
    text = [tiny_tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    groups = torch.tensor(rewards).view(2, 4)
    advantages = groups - groups.mean(1, keepdim=True)
    if config.scale:
        advantages = advantages / (groups.std(1, keepdim=True) + 1e-4)
    weights, log = _trained(tiny_model, tiny_tokenizer, config, lambda i, response: rewards[text.index(response)])
    expected = _reference(tiny_model, tiny_tokenizer, config, answers, advantages.flatten().tolist())
    assert log.rewards == pytest.approx([5 / 8] * (config.steps // config.updates))
    assert log.tokens == sum(map(len, answers)) * config.steps // config.updates
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_equal_rewards_change_nothing(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    # 0.1 is no sum of powers of two, and seven do not divide it: a mean in single precision is off.
    config = GrpoConfig(steps=3, lr=1e-2, batch_size=2, group=7, max_new_tokens=4)
    weights, log = _trained(tiny_model, tiny_tokenizer, config, lambda i, response: 0.1 * (i + 1))
    assert _same(weights, _weights(tiny_model))
    assert log.flat == (1.0, 1.0, 1.0)
    assert log.losses == (0.0, 0.0, 0.0)


def test_flat_counts_groups(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    config = GrpoConfig(steps=2, lr=1e-3, batch_size=3, group=8, max_new_tokens=4)
    _, log = _trained(tiny_model, tiny_tokenizer, config, lambda i, response: 1.0 if i else _vowels(i, response))
    assert log.flat == pytest.approx((2 / 3, 2 / 3))


def test_a_reward_gets_the_prompt_of_the_response(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model echoes its prompt, so that each response says what it answers."""
    echoed = {tuple(encode_prompt(tiny_tokenizer, prompt)): [*tiny_tokenizer(str(i))["input_ids"]] for i, prompt in enumerate(_PROMPTS)}
    monkeypatch.setattr(
        rl_trainer, "sample_ids", lambda model, tokenizer, encoded, sampling: [[*echoed[ids], tokenizer.eos_token_id] for ids in encoded]
    )
    seen: list[int] = []

    def reward(i: int, response: str) -> float:
        assert response == str(i)
        seen.append(i)
        return 0.0

    _trained(tiny_model, tiny_tokenizer, GrpoConfig(steps=3, lr=1e-3, batch_size=2, group=4, max_new_tokens=4), reward)
    assert sorted(seen) == [0] * 8 + [1] * 8 + [2] * 8  # all prompts before any repeats
    assert all(len(set(seen[i : i + 4])) == 1 for i in range(0, 24, 4))


def test_the_seed_decides_every_bit(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    first, log = _trained(tiny_model, tiny_tokenizer, _CONFIG)
    torch.rand(7)  # the global generators have no say
    random.random()
    second, again = _trained(tiny_model, tiny_tokenizer, _CONFIG)
    other, _ = _trained(tiny_model, tiny_tokenizer, GrpoConfig(steps=6, lr=1e-2, batch_size=2, group=4, max_new_tokens=4, seed=1))
    assert _same(first, second)
    assert log.rewards == again.rewards
    assert not _same(first, other)


def test_checkpoints_show_the_model_and_change_nothing(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    plain, _ = _trained(tiny_model, tiny_tokenizer, _CONFIG)
    start, config_before = _weights(tiny_model), tiny_model.config.to_dict()
    seen: dict[int, Weights] = {}
    steps: list[tuple[int, int]] = []

    def look(step: int, model: PreTrainedModel) -> None:
        assert not model.training
        assert model.config.to_dict() == config_before
        assert "forward" not in vars(model)
        seen[step] = _weights(model)
        generate(model, tiny_tokenizer, [user("Hello!")], Sampling(temperature=1.0, max_new_tokens=4))
        torch.manual_seed(99)

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
        grpo(tiny_model, tiny_tokenizer, _PROMPTS, _vowels, GrpoConfig(steps=2, lr=1e-3, batch_size=2, group=4, max_new_tokens=4, beta=0.1))
    assert (tiny_model.config.to_dict(), tiny_model.generation_config.to_dict()) == (config, generation)
    assert not tiny_model.training
    assert "forward" not in vars(tiny_model)
    assert random.getstate() == rng[0] and torch.equal(torch.get_rng_state(), rng[1])
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("change", "saved"),  # with two updates on the same answers, a state between them would lack these
    [({"beta": 0.1, "updates": 2}, 4), ({"lora": LoraSettings(rank=4), "optimizer": "muon", "micro_batch_size": 4}, 3)],
    ids=["weights", "adapter"],
)
def test_a_killed_training_ends_where_it_would_have(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, change: dict[str, object], saved: int
) -> None:
    config = GrpoConfig(**{"steps": 6, "lr": 1e-2, "batch_size": 2, "group": 4, "max_new_tokens": 4, "schedule": "linear", **change})
    whole, log = _trained(tiny_model, tiny_tokenizer, config)

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise _Killed

    seen: list[int] = []
    kwargs = {"checkpoints": range(7), "on_checkpoint": lambda step, model: seen.append(step), "scratch": tmp_path, "save_every": 3}
    with pytest.raises(_Killed):
        _trained(tiny_model, tiny_tokenizer, config, on_progress=kill, **kwargs)
    resumed, log_of_both = _trained(tiny_model, tiny_tokenizer, config, **kwargs)
    assert log_of_both.resumed_from == saved
    assert (log_of_both.rewards, log_of_both.flat, log_of_both.losses) == (log.rewards, log.flat, log.losses)
    assert log_of_both.tokens == log.tokens
    assert _same(whole, resumed)
    assert seen == [*range(6), *range(saved + 1, 7)]


def test_lora_trains_the_adapter_and_merges_into_plain_weights(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = _weights(tiny_model)
    config = GrpoConfig(steps=4, lr=1e-2, batch_size=2, group=4, max_new_tokens=4, beta=0.01, lora=LoraSettings(rank=4, alpha=8))
    grpo(tiny_model, tiny_tokenizer, _PROMPTS, _vowels, config)
    frozen = {name.replace(".base_layer", ""): value for name, value in _weights(tiny_model).items() if "lora_" not in name}
    assert _same(frozen, before)
    with pytest.raises(ModelError, match=r"lora is None; merge\(model\)"):
        grpo(tiny_model, tiny_tokenizer, _PROMPTS, _vowels, _CONFIG)
    merge(tiny_model)
    after = _weights(tiny_model)
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_the_last_weights_before_a_training_diverges_are_kept(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    kept: dict[int, Weights] = {}
    factors = iter([1.0, 1.0, float("nan")])

    def spoil_the_third(step: int, model: PreTrainedModel) -> None:
        kept[step] = _weights(model)
        if step == 0:
            model.lm_head.weight.register_hook(lambda gradient: gradient * next(factors))

    with pytest.raises(ModelError, match=r"diverged: .* at step 3 "):
        _trained(tiny_model, tiny_tokenizer, _CONFIG, checkpoints=[0, 6], on_checkpoint=spoil_the_third)
    assert list(kept) == [0, 2] and _same(kept[2], _trained(tiny_model, tiny_tokenizer, replace(_CONFIG, steps=2))[0])


def test_bad_input_is_named(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no prompt to practise"):
        grpo(tiny_model, tiny_tokenizer, [], _vowels, _CONFIG)
    with pytest.raises(DataError, match=r"prompt 1: its \d+ tokens and max_new_tokens 4 exceed the model's context of 256"):
        grpo(tiny_model, tiny_tokenizer, [user("Hi."), user("soup " * 300)], _vowels, _CONFIG)
    with pytest.raises(DataError, match=r"the reward of an answer to prompt \d is nan"):
        _trained(tiny_model, tiny_tokenizer, _CONFIG, lambda i, response: float("nan"))
    with pytest.raises(SpecError, match="checkpoint 9 lies outside"):
        _trained(tiny_model, tiny_tokenizer, _CONFIG, checkpoints=[9])
    with pytest.raises(ModelError, match=r"diverged: .* at step \d+ \(examples \d, \d\)"):
        _trained(tiny_model, tiny_tokenizer, GrpoConfig(steps=9, lr=float("inf"), batch_size=2, group=4, max_new_tokens=4, updates=2))
    with pytest.raises(SpecError, match="group must be at least 2, got 1"):
        GrpoConfig(steps=1, lr=1e-3, group=1)
    with pytest.raises(SpecError, match="temperature must be positive"):
        GrpoConfig(steps=1, lr=1e-3, temperature=0)
    with pytest.raises(SpecError, match="must divide the 64 answers of a batch"):
        GrpoConfig(steps=1, lr=1e-3, micro_batch_size=3)
    with pytest.raises(SpecError, match="did you mean 'cosine'"):
        GrpoConfig(steps=1, lr=1e-3, schedule="cosin")
