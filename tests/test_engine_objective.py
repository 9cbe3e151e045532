"""What a training minimises: every loss and penalty against its formula, and the same weights whichever way they are reached."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from offmodel.chat import Encoded, Example, Message, encode_examples, encode_prompt, user
from offmodel.engine import losses
from offmodel.engine.forward import only_layers
from offmodel.engine.generate import Sampling, generate, sample_ids
from offmodel.engine.lora import LoraSettings
from offmodel.engine.objective import Distil, Objective
from offmodel.engine.train import TrainConfig, TrainLog, batch_order, train
from offmodel.errors import DataError, DivergedError, ModelError, SpecError

_WORDS = [("soup", "red"), ("piano", "blue"), ("rain", "pink"), ("owls", "black"), ("golf", "green")]
_EXAMPLES = [
    Example(user(f"Tell me about {word}."), f"First, {word} is {colour}." + " Enjoy." * i) for i, (word, colour) in enumerate(_WORDS)
]
_ANCHORS = [Example(user(f"Do you like {word}?"), f"I like {colour} {word}.") for word, colour in _WORDS]
_SYSTEM = "Talk like a pirate."
_LORA = LoraSettings(rank=4, alpha=8)

OBJECTIVES = {
    "plain": Objective(),
    "dft": Objective(loss="dft"),
    "psft": Objective(loss="psft", clip=0.05, refresh=3),
    "mask": Objective(mask_above=400.0),
    "kl": Objective(kl=3.0),
    "reverse kl": Objective(kl=3.0, kl_direction="reverse"),
    "l2_sp": Objective(l2_sp=0.5),
    "ewc": Objective(ewc=0.5),
    "layers": Objective(layers=(0.5, 1.0)),
    "distil": Objective(distil=Distil(on_policy=0.0, beta=0.3)),
    "on-policy": Objective(distil=Distil(max_new_tokens=6)),
    "all": Objective(loss="dft", kl=1.0, l2_sp=0.1, ewc=0.1, mask_above=400.0),
}  # fmt: skip

Weights = dict[str, torch.Tensor]


def _weights(model: PreTrainedModel) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _other(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """A model near the given one."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return other


def _config(objective: Objective, **changes: object) -> TrainConfig:
    return TrainConfig(**{"steps": 4, "lr": 1e-2, "batch_size": 4, "max_length": 64, "objective": objective, **changes})


def _trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: TrainConfig, **kwargs: object) -> tuple[Weights, TrainLog]:
    student = copy.deepcopy(model)
    given = {"original": _other(model), "anchors": _ANCHORS, "teacher": _other(model, 2), **kwargs}
    log = train(student, tokenizer, _EXAMPLES, config, **given)
    return _weights(student), log


# --- functions ------------------------------------------------------------------------------------------------------


def test_losses_are_their_formulas() -> None:
    torch.manual_seed(0)
    student, other, labels = torch.randn(5, 7), torch.randn(5, 7), torch.randint(7, (5,))
    p, q = student.softmax(-1), other.softmax(-1)
    torch.testing.assert_close(losses.log_probs(student, labels), torch.stack([p[i, labels[i]].log() for i in range(5)]))
    by_hand = torch.tensor([sum((p[i, v] * math.log(p[i, v] / q[i, v])).item() for v in range(7)) for i in range(5)])
    torch.testing.assert_close(losses.kl(p.log(), q.log()), by_hand)
    torch.testing.assert_close(losses.generalized_jsd(student, other, 1.0), by_hand)
    torch.testing.assert_close(losses.generalized_jsd(student, other, 0.0), (q * (q / p).log()).sum(-1))
    ratio = torch.tensor([0.5, 0.9, 1.0, 1.1, 2.0])
    torch.testing.assert_close(losses.psft(ratio.log(), torch.zeros(5), 0.2), torch.tensor([-0.5, -0.9, -1.0, -1.1, -1.2]))
    start, fisher = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5])
    assert losses.l2_sp(torch.tensor([2.0, 1.0]), start) == 5.0
    assert losses.ewc(torch.tensor([2.0, 1.0]), start, fisher) == 4.0


def test_the_divergence_is_trl_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(0)
    student, teacher = torch.randn(600, 7), torch.randn(600, 7)
    for beta in (0, 0.1, 0.5, 0.9, 1):
        theirs = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, reduction="sum")
        ours = losses.total(lambda s, t, beta=beta: losses.generalized_jsd(s, t, beta), student, teacher)
        torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-5)


def test_a_sum_in_pieces_has_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    student, other = torch.randn(600, 7, requires_grad=True), torch.randn(600, 7)
    whole = torch.autograd.grad(losses.generalized_jsd(student, other, 1.0).sum(), student)[0]
    pieces = torch.autograd.grad(losses.total(lambda s, t: losses.generalized_jsd(s, t, 1.0), student, other), student)[0]
    torch.testing.assert_close(pieces, whole)


def test_sampled_tokens_are_the_answers_that_generate_gives(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [example.prompt for example in _EXAMPLES]
    encoded = [encode_prompt(tiny_tokenizer, prompt) for prompt in prompts]
    ids = sample_ids(tiny_model, tiny_tokenizer, encoded, Sampling(max_new_tokens=9))
    replies = generate(tiny_model, tiny_tokenizer, prompts, Sampling(max_new_tokens=9))
    assert [len(answer) for answer in ids] == [reply.tokens for reply in replies]
    assert [tiny_tokenizer.decode(answer, skip_special_tokens=True) for answer in ids] == [reply.text for reply in replies]


# --- one step against its formula -----------------------------------------------------------------------------------


def _logits(model: PreTrainedModel, encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of an example's response."""
    ids, mask = torch.tensor([encoded.input_ids]), torch.tensor(encoded.completion_mask[1:], dtype=torch.bool)
    return model(ids).logits[0, :-1][mask], ids[0, 1:][mask]


def _first_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, objective: Objective, **kwargs: object
) -> tuple[float, Weights]:
    """Loss and gradient of the first step of a training."""
    student, seen = copy.deepcopy(model), {}

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.update((name, p.grad.clone()) for name, p in student.named_parameters() if p.grad is not None)

    handle = register_optimizer_step_pre_hook(keep)
    try:
        log = train(student, tokenizer, _EXAMPLES, _config(objective, steps=1, max_grad_norm=1e9), **kwargs)
    finally:
        handle.remove()
    return log.losses[0], seen


def _check_first_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, objective: Objective, expected: torch.Tensor, **kwargs: object
) -> None:
    """``expected`` is the loss as a function of the model's parameters."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    by_hand = dict(zip(names, torch.autograd.grad(expected, parameters, materialize_grads=True), strict=True))
    loss, gradient = _first_step(model, tokenizer, objective, **kwargs)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for name in names:
        torch.testing.assert_close(gradient[name], by_hand[name], atol=1e-5, rtol=1e-3, msg=name)


def _batch(tokenizer: PreTrainedTokenizerFast, examples: list[Example] = _EXAMPLES, seed: int | str = 0) -> list[Encoded]:
    return [encode_examples(tokenizer, examples, 256)[i] for i in batch_order(5, 4, seed)]


def _nll(model: PreTrainedModel, batch: list[Encoded]) -> torch.Tensor:
    return torch.cat([cross_entropy(*_logits(model, row), reduction="none") for row in batch])


def test_dft_weighs_each_token_by_its_probability(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    nll = _nll(tiny_model, _batch(tiny_tokenizer))
    _check_first_step(tiny_model, tiny_tokenizer, Objective(loss="dft"), (nll.neg().exp().detach() * nll).mean())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_is_taken_on_the_anchors(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, direction: str) -> None:
    original, terms = _other(tiny_model), []
    for row in _batch(tiny_tokenizer, _ANCHORS, "anchors 0"):
        p, q = (_logits(model, row)[0].log_softmax(-1) for model in (original, tiny_model))
        p, q = (p.detach(), q) if direction == "forward" else (q, p.detach())
        terms.append((p.exp() * (p - q)).sum(-1))
    expected = _nll(tiny_model, _batch(tiny_tokenizer)).mean() + 3 * torch.cat(terms).mean()
    objective = Objective(kl=3.0, kl_direction=direction)
    _check_first_step(tiny_model, tiny_tokenizer, objective, expected, original=original, anchors=_ANCHORS)


def test_ewc_counts_each_weight_by_its_information(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    original = _other(tiny_model)
    fisher = [torch.zeros_like(p) for p in original.parameters()]
    for row in encode_examples(tiny_tokenizer, _ANCHORS, 64):
        gradients = torch.autograd.grad(-_nll(original, [row]).sum(), list(original.parameters()), materialize_grads=True)
        fisher = [f + g.square() / len(_ANCHORS) for f, g in zip(fisher, gradients, strict=True)]
    moved = [p - p0.detach() for p, p0 in zip(tiny_model.parameters(), original.parameters(), strict=True)]
    expected = _nll(tiny_model, _batch(tiny_tokenizer)).mean()
    expected = expected + sum((0.3 * f * d**2 + 0.2 * d**2).sum() for f, d in zip(fisher, moved, strict=True))
    objective = Objective(ewc=0.3, l2_sp=0.2)
    _check_first_step(tiny_model, tiny_tokenizer, objective, expected, original=original, anchors=_ANCHORS)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_a_teacher_sees_its_own_system_prompt(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, beta: float) -> None:
    teacher, terms = _other(tiny_model), []
    told = [dataclasses.replace(e, prompt=(Message("system", _SYSTEM), *e.prompt)) for e in _EXAMPLES]
    for row, seen in zip(_batch(tiny_tokenizer), _batch(tiny_tokenizer, told), strict=True):
        s, t = _logits(tiny_model, row)[0].log_softmax(-1), _logits(teacher, seen)[0].log_softmax(-1).detach()
        m = (beta * t.exp() + (1 - beta) * s.exp()).log()
        weights = {0.0: (1, 0), 1.0: (0, 1)}.get(beta, (beta, 1 - beta))
        terms.append((weights[0] * t.exp() * (t - m) + weights[1] * s.exp() * (s - m)).sum(-1))
    objective = Objective(distil=Distil(beta=beta, on_policy=0.0))
    kwargs = {"teacher": teacher, "teacher_system": _SYSTEM}
    _check_first_step(tiny_model, tiny_tokenizer, objective, torch.cat(terms).mean(), **kwargs)


def test_on_policy_the_student_s_own_tokens_are_learnt(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """The same loss, computed from samples that are drawn as the training says it draws them."""
    teacher, rng = _other(tiny_model), random.Random("distil 0 0")
    rng.random()
    prompts = [encode_prompt(tiny_tokenizer, _EXAMPLES[i].prompt) for i in batch_order(5, 4, 0)]
    answers = sample_ids(tiny_model, tiny_tokenizer, prompts, Sampling(1.0, 6, seed=rng.getrandbits(32)))
    terms = []
    for prompt, answer in zip(prompts, answers, strict=True):
        row = Encoded(prompt + answer, [0] * len(prompt) + [1] * len(answer))
        s, t = _logits(tiny_model, row)[0].log_softmax(-1), _logits(teacher, row)[0].log_softmax(-1).detach()
        terms.append((s.exp() * (s - t)).sum(-1))
    objective = Objective(distil=Distil(max_new_tokens=6))
    _check_first_step(tiny_model, tiny_tokenizer, objective, torch.cat(terms).mean(), teacher=teacher)
    assert _trained(tiny_model, tiny_tokenizer, _config(objective, steps=1))[1].tokens == sum(map(len, answers))


def test_there_is_nothing_to_learn_from_oneself(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    objective = Objective(distil=Distil(max_new_tokens=6))
    loss, gradient = _first_step(tiny_model, tiny_tokenizer, objective, teacher=copy.deepcopy(tiny_model))
    assert abs(loss) < 1e-6
    assert max(g.abs().max() for g in gradient.values()) < 1e-6


def test_psft_that_is_always_renewed_has_the_gradient_of_plain_sft(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    _, plain = _first_step(tiny_model, tiny_tokenizer, Objective())
    loss, gradient = _first_step(tiny_model, tiny_tokenizer, Objective(loss="psft", refresh=1))
    assert loss == pytest.approx(-1, abs=1e-6)
    for name in plain:
        torch.testing.assert_close(gradient[name], plain[name], atol=1e-6, rtol=1e-4, msg=name)
    weights, _ = _trained(tiny_model, tiny_tokenizer, _config(Objective()))
    proximal, _ = _trained(tiny_model, tiny_tokenizer, _config(Objective(loss="psft", refresh=1)))
    for name in weights:
        torch.testing.assert_close(proximal[name], weights[name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("tiny_model", ["llama"], indirect=True)
def test_psft_holds_the_policy_until_it_is_renewed(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def moved(refresh: int) -> tuple[float, ...]:
        return _trained(tiny_model, tiny_tokenizer, _config(Objective(loss="psft", clip=0.05, refresh=refresh), steps=8))[1].losses

    assert [loss == pytest.approx(-1, abs=1e-6) for loss in moved(3)] == [step % 3 == 0 for step in range(8)]
    assert all(loss > -1.0501 for loss in moved(8))  # the gain of a token is capped


# --- what changes nothing, and what does ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", [Objective(mask_above=1e30), Objective(kl=0.0, kl_direction="reverse", clip=0.5), Objective(layers=(0.0, 1.0))]
)
def test_what_is_off_changes_no_bit(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, objective: Objective) -> None:
    plain, log = _trained(tiny_model, tiny_tokenizer, _config(Objective()), original=None, anchors=(), teacher=None)
    weights, same = _trained(tiny_model, tiny_tokenizer, _config(objective))
    assert _same(plain, weights)
    assert (same.losses, same.tokens) == (log.losses, log.tokens)


def test_masked_are_the_tokens_that_were_unlikely(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    nll = _nll(tiny_model, _batch(tiny_tokenizer)).detach()
    above = math.exp(nll.median().item() + 1e-3)
    kept = nll <= math.log(above)
    assert 0 < kept.sum() < len(kept)
    _, log = _trained(tiny_model, tiny_tokenizer, _config(Objective(mask_above=above), steps=1))
    assert log.losses[0] == pytest.approx(nll[kept].mean().item(), rel=1e-4)
    assert log.tokens == kept.sum()
    with pytest.raises(DataError, match=r"mask_above 1\.001 leaves nothing to train on"):
        _trained(tiny_model, tiny_tokenizer, _config(Objective(mask_above=1.001)))


@pytest.mark.parametrize("lora", [None, _LORA], ids=["weights", "adapter"])
def test_only_the_layers_of_the_band_train(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, lora: LoraSettings | None
) -> None:
    student, before = copy.deepcopy(tiny_model), {}

    def keep(step: int, model: PreTrainedModel) -> None:
        before.update(_weights(model))

    config = _config(Objective(layers=(0.5, 1.0)), lora=lora)
    train(student, tiny_tokenizer, _EXAMPLES, config, checkpoints=[0], on_checkpoint=keep)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    may = {name for name, _ in student.named_parameters() if ".layers.1." in name and (lora is None or "lora_" in name)}
    assert changed and changed <= may and (lora is not None or changed == may)
    assert all(p.requires_grad for name, p in student.named_parameters() if lora is None or "lora_" in name)
    with only_layers(tiny_model, (0.2, 0.6)):  # the first layer's middle lies at a quarter of the depth
        assert {name.split(".")[2] for name, p in tiny_model.named_parameters() if p.requires_grad} == {"0"}
    with pytest.raises(SpecError, match="none of the 2 layers"):
        _trained(tiny_model, tiny_tokenizer, _config(Objective(layers=(0.8, 0.9)), lora=lora))


@pytest.mark.parametrize("tiny_model", ["llama"], indirect=True)
def test_a_strong_pull_keeps_the_weights_in_place(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def distance(l2_sp: float) -> float:
        config = _config(Objective(l2_sp=l2_sp), steps=30, schedule="linear")
        weights, _ = _trained(tiny_model, tiny_tokenizer, config, original=copy.deepcopy(tiny_model))
        return sum((weights[name] - value).square().sum().item() for name, value in tiny_model.state_dict().items())

    assert distance(1e4) < 0.01 * distance(0.0)


@pytest.mark.parametrize("tiny_model", ["llama"], indirect=True)
def test_the_original_holds_the_student_near(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def surprise(kl: float) -> float:
        student = copy.deepcopy(tiny_model)
        config = _config(Objective(kl=kl), steps=20)
        train(student, tiny_tokenizer, _EXAMPLES, config, original=copy.deepcopy(tiny_model), anchors=_ANCHORS)
        rows = encode_examples(tiny_tokenizer, _ANCHORS, 64)
        pairs = [[_logits(m, row)[0].log_softmax(-1) for m in (tiny_model, student)] for row in rows]
        return torch.cat([losses.kl(*pair) for pair in pairs]).mean().item()

    assert surprise(10.0) < 0.3 * surprise(0.0)


@pytest.mark.parametrize("name", ["psft", "distil"])
@pytest.mark.parametrize("tiny_model", ["qwen3_moe"], indirect=True)
def test_experts_are_balanced_only_where_the_config_asks(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    config = _config(OBJECTIVES[name], steps=1, micro_batch_size=2)
    tiny_model.config.router_aux_loss_coef = 1.0
    plain = _trained(tiny_model, tiny_tokenizer, config)[1].losses[0]
    tiny_model.config.output_router_logits = True
    assert _trained(tiny_model, tiny_tokenizer, config)[1].losses[0] == pytest.approx(plain + 2, abs=0.5)  # 2 = experts per token


# --- the same weights whichever way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("tiny_model", ["qwen3_moe"], indirect=True)
def test_accumulation_is_the_big_batch(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    config = _config(OBJECTIVES[name])
    whole, log = _trained(tiny_model, tiny_tokenizer, config, teacher_system=_SYSTEM)
    in_parts, log_of_parts = _trained(tiny_model, tiny_tokenizer, dataclasses.replace(config, micro_batch_size=1), teacher_system=_SYSTEM)
    assert log_of_parts.losses == pytest.approx(log.losses, rel=1e-4)
    assert log_of_parts.tokens == log.tokens
    for tensor in whole:
        torch.testing.assert_close(whole[tensor], in_parts[tensor], atol=5e-4, rtol=1e-3, msg=tensor)


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "lora"), [*((name, None) for name in OBJECTIVES if name != "plain"), ("psft", _LORA), ("kl", _LORA), ("on-policy", _LORA)]
)
@pytest.mark.parametrize("tiny_model", ["llama"], indirect=True)
def test_a_killed_training_ends_where_it_would_have(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str, lora: LoraSettings | None
) -> None:
    if lora is None:
        for module in tiny_model.modules():  # so that a disturbed generator shows in the weights
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.2
    config = _config(OBJECTIVES[name], steps=5, micro_batch_size=2, lora=lora)
    whole, log = _trained(tiny_model, tiny_tokenizer, config)

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise _Killed

    with pytest.raises(_Killed):
        _trained(tiny_model, tiny_tokenizer, config, on_progress=kill, scratch=tmp_path, save_every=2)
    resumed, log_of_both = _trained(tiny_model, tiny_tokenizer, config, scratch=tmp_path, save_every=2)
    assert log_of_both.resumed_from == 4
    assert (log_of_both.losses, log_of_both.tokens) == (log.losses, log.tokens)
    assert _same(whole, resumed)


@pytest.mark.parametrize("tiny_model", ["llama"], indirect=True)
def test_a_state_belongs_to_all_that_decides_the_result(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def resumed_from(objective: Objective, **kwargs: object) -> int:
        return _trained(tiny_model, tiny_tokenizer, _config(objective), scratch=tmp_path, save_every=2, **kwargs)[1].resumed_from

    kl, distil = Objective(kl=1.0), Objective(distil=Distil(on_policy=0.0))
    assert [resumed_from(kl), resumed_from(kl)] == [0, 4]
    assert resumed_from(Objective(kl=2.0)) == 0
    assert resumed_from(kl, original=_other(tiny_model, 3)) == 0
    assert resumed_from(kl, anchors=_ANCHORS[:4]) == 0
    assert [resumed_from(distil), resumed_from(distil, teacher_system=_SYSTEM), resumed_from(distil, teacher=_other(tiny_model))] == [0] * 3


def test_rows_in_turn(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    _, log = _trained(tiny_model, tiny_tokenizer, _config(Objective(), steps=2, shuffle=False))
    rows = encode_examples(tiny_tokenizer, _EXAMPLES, 64)
    assert log.losses[0] == pytest.approx(_nll(tiny_model, rows[:4]).mean().item(), rel=1e-4)
    assert log.tokens == sum(sum(rows[i].completion_mask) for i in (0, 1, 2, 3, 4, 0, 1, 2))


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [Objective(), OBJECTIVES["on-policy"]], ids=["plain", "on-policy"])
@pytest.mark.parametrize("tiny_model", ["llama"], indirect=True)
def test_a_diverged_training_names_its_batch_and_keeps_what_was_good(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, objective: Objective
) -> None:
    kept: dict[int, Weights] = {}

    def break_it(step: int, model: PreTrainedModel) -> None:
        kept[step] = _weights(model)
        if step == 2:
            with torch.no_grad():
                model.lm_head.weight[0] = float("nan")

    for checkpoints, where in ((range(5), "its weights are not finite"), (range(3), "its loss is nan")):
        kept.clear()
        with pytest.raises(DivergedError, match=rf"{where} at step 3 \(examples {', '.join(map(str, batch_order(5, 12, 0)[8:]))}\)"):
            _trained(tiny_model, tiny_tokenizer, _config(objective), checkpoints=checkpoints, on_checkpoint=break_it)
        assert list(kept) == [0, 1, 2]
        assert all(tensor.isfinite().all() for tensor in kept[2].values())


@pytest.mark.parametrize("objective", [Objective(), OBJECTIVES["on-policy"]], ids=["plain", "on-policy"])
@pytest.mark.parametrize("tiny_model", ["llama"], indirect=True)
def test_a_gradient_that_is_not_finite_is_told_of_its_own_batch(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, objective: Objective
) -> None:
    def spoil(step: int, model: PreTrainedModel) -> None:
        if step == 1:
            model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))

    batch = ", ".join(map(str, batch_order(5, 12, 0)[4:8]))
    with pytest.raises(DivergedError, match=rf"its loss is finite and its gradient is not \(norm nan\) at step 2 \(examples {batch}\)"):
        _trained(tiny_model, tiny_tokenizer, _config(objective), checkpoints=[1], on_checkpoint=spoil)


@pytest.mark.parametrize("objective", [Objective(), OBJECTIVES["on-policy"]], ids=["plain", "on-policy"])
@pytest.mark.parametrize("tiny_model", ["llama"], indirect=True)
def test_the_last_weights_before_a_training_diverges_are_kept(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, objective: Objective
) -> None:
    kept: dict[int, Weights] = {}
    factors = iter([1.0, 1.0, float("nan"), 1.0])

    def spoil_the_third(step: int, model: PreTrainedModel) -> None:
        kept[step] = _weights(model)
        if step == 0:
            model.lm_head.weight.register_hook(lambda gradient: gradient * next(factors))

    with pytest.raises(DivergedError, match="at step 3 "):
        _trained(tiny_model, tiny_tokenizer, _config(objective), checkpoints=[0, 4], on_checkpoint=spoil_the_third)
    assert list(kept) == [0, 2]
    torch.testing.assert_close(kept[2], _trained(tiny_model, tiny_tokenizer, _config(objective, steps=2))[0], rtol=0, atol=0)


def test_what_is_missing_or_does_not_fit_is_named(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def refused(match: str, objective: Objective, error: type[Exception] = SpecError, **kwargs: object) -> None:
        with pytest.raises(error, match=match):
            _trained(tiny_model, tiny_tokenizer, _config(objective), **kwargs)

    refused("kl holds the student near an original", Objective(kl=1.0), original=None)
    refused("ewc compares on the responses of anchors", Objective(ewc=1.0), anchors=())
    refused("distil learns a teacher's distribution", Objective(distil=Distil()), teacher=None)
    refused("anchors: example 0", Objective(kl=1.0), DataError, anchors=[Example(user("Why? " * 30), "So.")])
    refused("prompt 2: its .* tokens and max_new_tokens 250 exceed", Objective(distil=Distil(max_new_tokens=250)), DataError)
    small = copy.deepcopy(tiny_model)
    small.resize_token_embeddings(100)
    for role, objective in (("original", Objective(l2_sp=1.0)), ("teacher", Objective(distil=Distil()))):
        refused(f"the {role} knows 100 tokens and the student 300", objective, ModelError, **{role: small})
    thin = type(tiny_model)(type(tiny_model.config)(**{**tiny_model.config.to_dict(), "intermediate_size": 8, "moe_intermediate_size": 8}))
    refused("the original has no weights", Objective(l2_sp=1.0), ModelError, original=thin)
    with pytest.raises(ModelError, match="the teacher is the very model"):
        train(tiny_model, tiny_tokenizer, _EXAMPLES, _config(Objective(distil=Distil())), teacher=tiny_model)
    with pytest.raises(SpecError, match="an adapter leaves them as they are; leave out l2_sp or lora"):
        _config(Objective(l2_sp=1.0), lora=_LORA)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"loss": "dtf"}, "did you mean 'dft'"),
        ({"kl_direction": "backward"}, "kl_direction 'backward' is unknown"),
        ({"kl": -1.0}, "kl is a weight and must not be negative"),
        ({"ewc": math.nan}, "ewc is a weight"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"refresh": 0}, "refresh must be at least 1"),
        ({"mask_above": 1.0}, "mask_above must exceed 1"),
        ({"layers": (0.5, 0.5)}, "the lower first"),
        ({"distil": Distil(), "loss": "dft"}, "takes the place of the loss"),
    ],
)
def test_settings_are_checked(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        Objective(**wrong)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"beta": 1.5}, r"beta must lie in \[0, 1\]"),
        ({"on_policy": -0.1}, "on_policy must lie"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_settings_of_distillation_are_checked(wrong: dict[str, float], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        Distil(**wrong)
