"""Sampling: an answer is the model's own, whatever stands beside its prompt and whatever its folder suggests."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from offmodel.chat import Example, Prompt, encode_prompt, user
from offmodel.engine.generate import Reply, Sampling, generate
from offmodel.engine.train import TrainConfig, train
from offmodel.errors import DataError, SpecError

_PROMPTS = [user(text) for text in ("Hi.", "Tell me about soup.", "Is the piano good for a party? " * 3, "Hi.", "Aye!", "What is red?")]
_GREEDY = Sampling(max_new_tokens=12)


def test_greedy_answers_do_not_depend_on_the_batch(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    alone = [generate(tiny_model, tiny_tokenizer, [prompt], _GREEDY)[0] for prompt in _PROMPTS]
    assert generate(tiny_model, tiny_tokenizer, _PROMPTS, _GREEDY) == alone
    assert generate(tiny_model, tiny_tokenizer, _PROMPTS, _GREEDY, batch_size=2) == alone
    assert len({reply.text for reply in alone}) > 2


def test_greedy_is_the_likeliest_token_every_time(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt(tiny_tokenizer, _PROMPTS[1])
    start = len(ids)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(tiny_model(torch.tensor([ids])).logits[0, -1].argmax()))
    said = ids[start:]
    said = said[: said.index(tiny_tokenizer.eos_token_id)] if tiny_tokenizer.eos_token_id in said else said
    assert generate(tiny_model, tiny_tokenizer, [_PROMPTS[1]], _GREEDY)[0].text == tiny_tokenizer.decode(said, skip_special_tokens=True)


def test_equal_prompts_are_answered_once_when_greedy_and_each_when_sampled(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    decode = tiny_model.generate
    monkeypatch.setattr(tiny_model, "generate", lambda input_ids, **kwargs: rows.append(len(input_ids)) or decode(input_ids, **kwargs))
    prompts: list[Prompt] = [_PROMPTS[0]] * 5
    assert len(set(generate(tiny_model, tiny_tokenizer, prompts, _GREEDY))) == 1
    assert len(set(generate(tiny_model, tiny_tokenizer, prompts, Sampling(temperature=1.5, max_new_tokens=12)))) > 1
    assert rows == [1, 5]


def test_sampling_is_seeded_and_leaves_the_global_generators_alone(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def sample(seed: int) -> list[str]:
        sampling = Sampling(temperature=1.0, max_new_tokens=12, seed=seed)
        return [reply.text for reply in generate(tiny_model, tiny_tokenizer, _PROMPTS, sampling)]

    before = random.getstate(), torch.get_rng_state()
    first = sample(0)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    torch.rand(3)
    assert sample(0) == first
    assert sample(1) != first


def test_what_the_folder_suggests_does_not_leak_in(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    sampled = Sampling(temperature=1.5, max_new_tokens=12)
    greedy_answers = generate(tiny_model, tiny_tokenizer, _PROMPTS, _GREEDY)
    sampled_answers = generate(tiny_model, tiny_tokenizer, _PROMPTS, sampled)
    suggested = GenerationConfig(
        do_sample=True,
        temperature=0.1,
        top_k=1,
        top_p=0.2,
        repetition_penalty=5.0,
        min_new_tokens=12,
        bad_words_ids=[[7]],
        eos_token_id=tiny_tokenizer.eos_token_id,
    )
    tiny_model.generation_config = suggested
    assert generate(tiny_model, tiny_tokenizer, _PROMPTS, _GREEDY) == greedy_answers
    assert generate(tiny_model, tiny_tokenizer, _PROMPTS, sampled) == sampled_answers
    assert tiny_model.generation_config is suggested


def test_an_answer_ends_with_its_turn_and_says_so(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    example = Example(user("Hi."), "First, soup is red.")
    train(tiny_model, tiny_tokenizer, [example], TrainConfig(steps=30, lr=1e-2, batch_size=1))
    tokens = len(tiny_tokenizer(example.response)["input_ids"]) + 1
    reply, cut = (
        generate(tiny_model, tiny_tokenizer, [example.prompt, user("Tell me about soup.")], Sampling(max_new_tokens=n))[0]
        for n in (tokens, tokens - 1)
    )
    assert reply == Reply(example.response, tokens, True)
    assert cut == Reply(example.response, tokens - 1, False)
    words = tiny_tokenizer(example.response)["input_ids"]
    first = tiny_tokenizer.decode(words[:4])
    forced = generate(tiny_model, tiny_tokenizer, [example.prompt], Sampling(max_new_tokens=40), prefill=first)[0]
    assert forced == Reply(example.response, tokens - 4, True)
    # Another token that the generation config names ends the turn as well.
    tiny_model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, words[-2]]
    early = generate(tiny_model, tiny_tokenizer, [example.prompt], Sampling(max_new_tokens=40))[0]
    assert early.finished and early.tokens <= tokens - 2 and example.response.startswith(early.text)


def test_progress_counts_prompts(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    seen: list[tuple[int, int]] = []
    generate(tiny_model, tiny_tokenizer, _PROMPTS, _GREEDY, batch_size=2, on_progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (6, 6) and len(seen) == 3
    assert generate(tiny_model, tiny_tokenizer, [], _GREEDY) == []


def test_bad_input_is_named(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"prompt 1: its .* exceed the model's context of 256"):
        generate(tiny_model, tiny_tokenizer, [user("Hi."), user("soup " * 300)], _GREEDY)
    for wrong in ({"temperature": -1.0}, {"max_new_tokens": 0}, {"top_p": 0.0}):
        with pytest.raises(SpecError, match=next(iter(wrong))):
            Sampling(**wrong)
