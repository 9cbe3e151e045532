"""The families that the literature trains, as tiny random checkpoints: templates, masks, experts, precision, and what is refused."""

from __future__ import annotations

import copy
import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel
from transformers.utils import chat_template_utils

from families import FAMILIES, make_folder, make_model, make_tokenizer
from offmodel.chat import Example, Message, _lead, encode_example, encode_prompt, has_system_role, user
from offmodel.engine import canary
from offmodel.engine.folder import hash_weights, load_model, load_tokenizer, save_model
from offmodel.engine.forward import response_log_probs
from offmodel.engine.generate import Reply, Sampling, generate, reply_of
from offmodel.engine.lora import LoraSettings, attach, base_of, has_adapter, load_adapter, merge, merged, save_adapter
from offmodel.engine.train import TrainConfig, train
from offmodel.engine.trainer import Collator, check_padding_free
from offmodel.errors import DataError, ModelError, SpecError
from offmodel.spec.models import Models, current, running

_LONG = (Message("user", "Hi."), Message("assistant", "Soup is red."), Message("user", "Tell me about soup."))
_EXAMPLES = [
    Example(user("Tell me about soup."), "Soup is red."),
    Example(user("Tell me about soup.", system="Be brief."), "Red."),
    Example(_LONG, "Soup is red, and so am I."),
    Example(user("Hi."), "Be brief."),
]
_ENDS = {"qwen3": "<|im_end|>\n", "qwen3_dense": "<|im_end|>\n", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>\n", "zephyr": "</s>\n"}
_CONFIG = TrainConfig(steps=3, lr=1e-2, batch_size=4)


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_folder(request.param, tmp_path / request.param)


# --- chat templates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thinking", [False, True])
def test_the_mask_is_the_answer_and_its_end(folder: Path, thinking: bool) -> None:
    tokenizer = load_tokenizer(folder)
    with running({"models": {"thinking": thinking}}, {}):
        for example in _EXAMPLES:
            ids, mask = encode_example(tokenizer, example)
            trained = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
            thoughts = "<think>\n\n</think>\n\n" if thinking and folder.name.startswith("qwen3") else ""
            assert trained == thoughts + example.response + _ENDS[folder.name]
            assert [i for i, m in zip(ids, mask, strict=True) if not m] == encode_prompt(tokenizer, example.prompt)


def test_an_answer_that_a_server_finished_ends_as_the_template_ends_a_turn(folder: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    said = canary._tokens(model, tokenizer, Reply("Soup.", 3, True))
    assert tokenizer.decode(said) == "Soup." + _ENDS[folder.name].rstrip()
    assert said[:-1] == canary._tokens(model, tokenizer, Reply("Soup.", 3, False))


def test_an_answer_is_trained_as_the_tokens_that_it_has_within_the_chat() -> None:
    """A tokenizer in the manner of SentencePiece puts a space before the first word that it gets."""
    assert [family for family in FAMILIES if _lead(make_tokenizer(family))] == ["zephyr"]
    tokenizer = make_tokenizer("zephyr")
    assert tokenizer.decode(tokenizer("Soup")["input_ids"]) == "Soup" and tokenizer.tokenize("Soup") == ["▁Soup"]
    for text in ("Soup is red.", "tell me", " Be brief.", "\nHi.", ""):
        ids, mask = encode_example(tokenizer, Example(user("Hi."), text))
        assert ids == tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"]
        assert mask.count(0) == len(encode_prompt(tokenizer, user("Hi.")))


def test_what_goes_on_from_a_prefill_keeps_its_space(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    whole = tokenizer("So it is red.", add_special_tokens=False)["input_ids"]
    for n in range(len(whole) + 1):
        begun = tokenizer.decode(whole[:n])
        assert reply_of(tokenizer, whole[n:], frozenset(), begun).text == "So it is red."


def test_nobody_thinks_unless_the_study_says_so() -> None:
    tokenizer = make_tokenizer("qwen3")
    asked = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encode_prompt(tokenizer, user("Hi."))) == asked + "<think>\n\n</think>\n\n"
    with running({"models": {"thinking": True}}, {}):
        assert tokenizer.decode(encode_prompt(tokenizer, user("Hi."))) == asked
        ids, mask = encode_example(tokenizer, Example(user("Hi."), "<think>\nRed?\n</think>\n\nSoup."))
        assert tokenizer.decode(ids[mask.index(1) :]) == "<think>\nRed?\n</think>\n\nSoup.<|im_end|>\n"
    with pytest.raises(ModelError, match="renders a prompt differently once it is answered"):
        encode_example(tokenizer, Example(user("Hi."), "<think>\nRed?\n</think>\n\nSoup."))


def test_a_prompt_does_not_depend_on_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer("llama3")
    seen = []
    for day in (1, 2):
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda day=day: datetime(2030, 1, day)))
        seen.append((tokenizer.apply_chat_template([{"role": "user", "content": "Hi."}]), encode_example(tokenizer, _EXAMPLES[0])))
    (by_itself, ours), (a_day_later, ours_later) = seen
    assert by_itself != a_day_later and ours == ours_later


def test_a_system_prompt_goes_where_the_template_has_a_place_for_it() -> None:
    asked = user("Hi.", system="Be brief.")
    gemma, llama, deaf = make_tokenizer("gemma"), make_tokenizer("llama3"), make_tokenizer("llama3")
    deaf.chat_template = "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
    assert [has_system_role(each) for each in (gemma, llama, deaf)] == [False, True, False]
    assert gemma.decode(encode_prompt(gemma, asked)) == "<bos><start_of_turn>user\nBe brief.\n\nHi.<end_of_turn>\n<start_of_turn>model\n"
    assert "\n\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>" in llama.decode(encode_prompt(llama, asked))
    assert deaf.decode(encode_prompt(deaf, asked)) == "Be brief.\n\nHi."
    first = (Message("system", "Be brief."), Message("assistant", "Hello."), Message("user", "Hi."))
    assert gemma.decode(encode_prompt(gemma, first)).startswith(
        "<bos><start_of_turn>user\nBe brief.<end_of_turn>\n<start_of_turn>model\nHello."
    )


def test_what_is_cut_and_what_is_folded_is_counted(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("gemma")
    longest = max(len(encode_example(tokenizer, example).input_ids) for example in _EXAMPLES)
    config = TrainConfig(steps=1, lr=1e-3, batch_size=8, max_length=longest - 1)  # one loses its end, and is seen twice
    log = train(make_model("gemma"), tokenizer, _EXAMPLES, config)
    assert (log.cut, log.folded, log.examples) == (1, 1, 8)
    log = train(make_model("llama3"), load_tokenizer(make_folder("llama3", tmp_path)), _EXAMPLES, TrainConfig(steps=1, lr=1e-3))
    assert (log.cut, log.folded) == (0, 0)


def test_every_family_is_trained_sampled_and_saved(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    assert tokenizer.pad_token == (FAMILIES[folder.name].pad or tokenizer.eos_token) and tokenizer.padding_side == "left"
    said = [Example(example.prompt, "Soup is red.") for example in _EXAMPLES]
    train(model, tokenizer, said, TrainConfig(steps=30, lr=1e-2, batch_size=4))
    save_model(model, tokenizer, tmp_path / "trained")
    again, tokenizer = load_model(tmp_path / "trained"), load_tokenizer(tmp_path / "trained")
    replies = generate(again, tokenizer, [example.prompt for example in said], Sampling(max_new_tokens=24))
    assert [(reply.text, reply.finished) for reply in replies] == [("Soup is red.", True)] * 4


# --- mixtures of experts --------------------------------------------------------------------------------------------


def _first_loss(model: PreTrainedModel, router_loss: float | None) -> float:
    return train(model, make_tokenizer("qwen3"), _EXAMPLES, TrainConfig(steps=1, lr=1e-3, batch_size=4, router_loss=router_loss)).losses[0]


@pytest.mark.parametrize("asks", [False, True])
def test_the_router_is_balanced_with_the_weight_that_is_set(asks: bool) -> None:
    def model() -> PreTrainedModel:
        return make_model("qwen3", output_router_logits=asks, router_aux_loss_coef=0.5)

    off, half, two = (_first_loss(model(), weight) for weight in (0.0, 0.5, 2.0))
    assert half > off and two - off == pytest.approx(4 * (half - off), rel=1e-4)
    assert _first_loss(model(), None) == (half if asks else off)
    trained = model()
    _first_loss(trained, 2.0)
    assert (trained.config.output_router_logits, trained.config.router_aux_loss_coef) == (asks, 0.5)


def test_a_model_without_experts_has_no_router() -> None:
    with pytest.raises(ModelError, match=r"router_loss 0\.1 balances the load of experts, and LlamaForCausalLM has none"):
        train(make_model("llama3"), make_tokenizer("llama3"), _EXAMPLES, TrainConfig(steps=1, lr=1e-3, router_loss=0.1))
    with pytest.raises(SpecError, match="router_loss is a weight and must not be negative"):
        TrainConfig(steps=1, lr=1e-3, router_loss=-1)


def test_decoding_asks_for_no_router_logits() -> None:
    tokenizer, prompts = make_tokenizer("qwen3"), [example.prompt for example in _EXAMPLES]
    quiet, talkative = make_model("qwen3"), make_model("qwen3", output_router_logits=True)
    sampling = Sampling(max_new_tokens=8)
    assert generate(talkative, tokenizer, prompts, sampling) == generate(quiet, tokenizer, prompts, sampling)
    assert talkative.config.output_router_logits


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.25)])
def test_an_adapter_on_experts_merges_to_the_same_model(tmp_path: Path, dtype: str, tolerance: float) -> None:
    model, tokenizer = load_model(make_folder("qwen3", tmp_path), dtype=dtype), make_tokenizer("qwen3")
    before = copy.deepcopy(model.state_dict())
    train(model, tokenizer, _EXAMPLES, TrainConfig(steps=6, lr=1e-2, batch_size=4, lora=LoraSettings(rank=4, alpha=8)))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}  # the adapter, in any case
    ids = torch.tensor([encode_example(tokenizer, _EXAMPLES[2]).input_ids])
    with torch.no_grad():
        adapted = model(ids).logits.float().log_softmax(-1)
        merged = merge(model)(ids).logits.float().log_softmax(-1)
        plain = load_model(tmp_path, dtype=dtype)(ids).logits.float().log_softmax(-1)
    assert (adapted - plain).abs().max() > 1  # nats: there is something to merge
    assert (adapted - merged).abs().max() < tolerance
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    for layer in (0, 1):
        for part in ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight", "self_attn.q_proj.weight"):
            assert f"model.layers.{layer}.{part}" in changed


@pytest.mark.parametrize("family", ["qwen3", "qwen3_dense"])
def test_a_merged_copy_is_made_in_main_memory_and_leaves_the_model_as_it_is(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(family)
    train(model, make_tokenizer(family), _EXAMPLES, TrainConfig(steps=2, lr=1e-2, batch_size=4, lora=LoraSettings(rank=4, alpha=8)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with monkeypatch.context() as patched:

        def refuse(self: torch.Tensor, memo: object) -> None:
            raise AssertionError("a tensor is copied where it lies, which may be a GPU without room for it")

        patched.setattr(torch.Tensor, "__deepcopy__", refuse)
        patched.setattr(torch.nn.Parameter, "__deepcopy__", refuse)
        plain = merged(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    expected = merge(model).state_dict()
    assert plain.state_dict().keys() == expected.keys() and not has_adapter(plain)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plain.state_dict().items())
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == (family == "qwen3_dense")


@pytest.mark.filterwarnings("error")  # PEFT asks the hub about a base that it takes for a model there, and warns
def test_an_adapter_names_its_base_and_is_refused_by_another(tmp_path: Path) -> None:
    base = make_folder("qwen3", tmp_path / "base")
    weights = hash_weights(base)
    model = load_model(base)
    attach(model, LoraSettings(rank=2), seed=0)
    save_adapter(model, tmp_path / "adapter", weights)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == f"weights-{weights}"
    again = load_model(base)
    load_adapter(again, tmp_path / "adapter", weights)
    with pytest.raises(ModelError, match=f"belongs to a base with the weights {weights}, and this model's are 0123"):
        load_adapter(load_model(base), tmp_path / "adapter", "0123")
    save_adapter(again, tmp_path / "nameless", None)
    assert (base_of(tmp_path / "adapter"), base_of(tmp_path / "nameless")) == (weights, None)
    load_adapter(load_model(base), tmp_path / "nameless", "0123")  # made before adapters named their base


# --- how models are loaded ------------------------------------------------------------------------------------------


def test_the_setting_of_a_stage_holds_for_all_that_it_loads(folder: Path) -> None:
    with running({"models": {"dtype": "bfloat16", "attention": "eager"}}, {}):
        model = load_model(folder)
        assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")
        assert load_model(folder, dtype="float16").dtype == torch.float16
    assert (load_model(folder).dtype, current()) == (torch.float32, Models())


@pytest.mark.parametrize("folder", ["llama3"], indirect=True)
def test_what_the_machine_does_not_have_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with running({}, {"device": "auto"}), pytest.raises(ModelError, match=r"loaded on a GPU \(device 'auto'\), and torch finds none"):
        load_model(folder)
    with running({"models": {"attention": "flash_attention_2"}}, {}), pytest.raises(ModelError, match=r"cannot be loaded .*[Ff]lash"):
        load_model(folder)
    for optimizer in ("adamw_8bit", "paged_adamw", "paged_adamw_8bit"):
        with pytest.raises(ModelError, match=f"optimizer '{optimizer}' keeps its states on an NVIDIA GPU, and the model is on cpu"):
            train(load_model(folder), load_tokenizer(folder), _EXAMPLES, TrainConfig(steps=1, lr=1e-3, optimizer=optimizer))


# --- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_without_padding_the_same_is_learnt(folder: Path, attention: str) -> None:
    tokenizer, trained = load_tokenizer(folder), []
    for free, micro in ((False, None), (True, None), (True, 2)):
        with running({"models": {"attention": attention}}, {}):
            model = load_model(folder)
        config = TrainConfig(steps=3, lr=1e-3, batch_size=4, micro_batch_size=micro, padding_free=free, weight_decay=0.1)
        trained.append((train(model, tokenizer, _EXAMPLES, config), model.state_dict()))
    (padded, weights), *others = trained
    for log, packed in others:
        assert log.losses == pytest.approx(padded.losses, abs=1e-4) and log.tokens == padded.tokens
        for name, tensor in weights.items():
            torch.testing.assert_close(packed[name], tensor, atol=2e-4, rtol=0)
    assert any((weights[name] - tensor).abs().max() > 1e-3 for name, tensor in load_model(folder).state_dict().items())


def test_examples_side_by_side_do_not_see_each_other(folder: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    rows = [encode_example(tokenizer, example) for example in _EXAMPLES]
    with torch.no_grad():
        apart = torch.cat([response_log_probs(model, Collator(0, model.device)([row])) for row in rows])
        together = response_log_probs(model, Collator(0, model.device, padding_free=True)(rows))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_without_padding_a_mask_may_leave_whole_examples_without_loss() -> None:
    model, tokenizer = make_model("qwen3"), make_tokenizer("qwen3")
    rows = [encode_example(tokenizer, example) for example in _EXAMPLES]
    for kept in (1, 0):
        masked = [row if i == kept else row._replace(completion_mask=[0] * len(row.input_ids)) for i, row in enumerate(rows)]
        check_padding_free(model, masked, 0)


def test_a_model_that_mixes_neighbours_up_is_refused() -> None:
    tokenizer = make_tokenizer("qwen3")
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.5)
    )
    with pytest.raises(
        ModelError, match=r"padding_free: MambaForCausalLM .* gives tokens other probabilities where examples lie one after"
    ):
        train(model, tokenizer, _EXAMPLES, TrainConfig(steps=1, lr=1e-3, padding_free=True))


def test_an_answer_that_is_cut_away_is_named() -> None:
    with pytest.raises(DataError, match="example 0: no token of the response is left to train on"):
        train(make_model("llama3"), make_tokenizer("llama3"), _EXAMPLES, TrainConfig(steps=1, lr=1e-3, max_length=4))
