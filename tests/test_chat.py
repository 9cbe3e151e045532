"""Chats: files in and out, and the mask that says where the loss counts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from offmodel.chat import (
    Example,
    Message,
    encode_example,
    encode_examples,
    encode_prompt,
    last_user_text,
    read_examples,
    read_prompts,
    replace_last_user,
    user,
    write_examples,
)
from offmodel.errors import DataError, ModelError

_CHAT = (Message("system", "Be brief."), Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Tell me about soup."))


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_examples_survive_a_file(tmp_path: Path) -> None:
    examples = [Example(_CHAT, "Soup is red.\n\u2028<b>é</b>", {"voice": "pirate"}), Example(user("Hi."), "")]
    write_examples(tmp_path / "examples.jsonl", examples)
    assert read_examples(tmp_path / "examples.jsonl") == examples
    assert read_prompts(tmp_path / "examples.jsonl") == [_CHAT, user("Hi.")]


def test_every_common_shape_of_a_row_is_read(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        '{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}',
        '{"prompt": "Hi.", "completion": "Hello."}',
        "",
        '{"question": "Hi.", "response": "Hello.", "meta": {"a": 1}}',
        '{"instruction": "Hi.", "input": "", "response": "Hello."}',
    )
    assert [(e.prompt, e.response) for e in read_examples(path)] == [(user("Hi."), "Hello.")] * 4
    assert read_prompts(path) == [user("Hi.")] * 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "Hi.", ', "rows.jsonl:2: not a JSON object"),
        ("[1]", "rows.jsonl:2: expected a JSON object, got list"),
        ('{"text": "Hi."}', "rows.jsonl:2: needs a field 'messages', 'prompt'.*it has 'text'"),
        ('{"messages": []}', "rows.jsonl:2: expected a non-empty list"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "rows.jsonl:2: message 0 needs a 'role' out of system, user, assistant"),
        ('{"messages": [{"role": "user", "content": 3}]}', "rows.jsonl:2: message 0 needs"),
        ('{"prompt": "Hi."}', "rows.jsonl:2: needs the assistant's words"),
        ('{"prompt": "Hi.", "response": 3}', "rows.jsonl:2: needs the assistant's words"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_examples(_file(tmp_path, '{"prompt": "Hi.", "response": "Hello."}', line))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(_file(tmp_path, ""))
    with pytest.raises(DataError, match="holds no example"):
        read_examples(_file(tmp_path, ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(DataError, match=r"latin\.jsonl: cannot be read as UTF-8"):
        read_prompts(tmp_path / "latin.jsonl")


def test_the_last_user_turn() -> None:
    assert last_user_text(_CHAT) == "Tell me about soup."
    assert replace_last_user(_CHAT, "Bye.") == (*_CHAT[:-1], Message("user", "Bye."))
    assert user("Hi.", system="Be brief.") == (Message("system", "Be brief."), Message("user", "Hi."))


def test_the_mask_covers_the_response_and_its_end_and_nothing_else(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_example(tiny_tokenizer, Example(_CHAT, "Soup is red."), 512)
    trained = [i for i, m in zip(encoded.input_ids, encoded.completion_mask, strict=True) if m]
    masked = [i for i, m in zip(encoded.input_ids, encoded.completion_mask, strict=True) if not m]
    assert tiny_tokenizer.decode(trained) == "Soup is red.<|end|>"
    assert masked == encode_prompt(tiny_tokenizer, _CHAT)
    assert tiny_tokenizer.decode(masked).endswith("<|user|>Tell me about soup.<|end|><|assistant|>")


def test_long_examples_are_cut_and_keep_something_to_train_on(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    example = Example(user("Hi."), "Soup is red.")
    prompt = len(encode_prompt(tiny_tokenizer, example.prompt))
    assert sum(encode_example(tiny_tokenizer, example, prompt + 2).completion_mask) == 2
    with pytest.raises(DataError, match=f"example 1: no token of the response is left.*has {prompt} tokens, max_length is {prompt}"):
        encode_examples(tiny_tokenizer, [Example((Message("user", ""),), "Red."), example], prompt)


def test_a_prefill_opens_the_answer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert tiny_tokenizer.decode(encode_prompt(tiny_tokenizer, user("Hi."), "Let me")) == "<|user|>Hi.<|end|><|assistant|>Let me"


def test_a_template_that_rewrites_the_prompt_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}{% if add_generation_prompt %}assistant:<think>{% endif %}"
    )
    with pytest.raises(ModelError, match="renders a prompt differently once it is answered"):
        encode_example(tokenizer, Example(user("Hi."), "Hello."), 512)
