"""Chats: messages, examples, JSONL in and out, and how an example becomes tokens with a loss mask."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from offmodel.errors import DataError, ModelError
from offmodel.spec.models import current

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


Prompt = tuple[Message, ...]
"""A chat that waits for the assistant's answer."""


@dataclass(frozen=True)
class Example:
    """A prompt with the response to learn.

    Attributes:
        prompt: The chat up to the response.
        response: The assistant's words.
        meta: Provenance of the row (which source, which model's hash, which voice); never seen by a model.
    """

    prompt: Prompt
    response: str
    meta: Mapping[str, Any] = field(default_factory=dict)


def user(text: str, system: str | None = None) -> Prompt:
    """A prompt of one user turn, with a system turn before it if given."""
    turn = Message("user", text)
    return (Message("system", system), turn) if system else (turn,)


def last_user_text(prompt: Prompt) -> str:
    """The words of the last user turn ("" if there is none)."""
    return next((m.content for m in reversed(prompt) if m.role == "user"), "")


def replace_last_user(prompt: Prompt, text: str) -> Prompt:
    """The same chat with other words in its last user turn."""
    for i in range(len(prompt) - 1, -1, -1):
        if prompt[i].role == "user":
            return (*prompt[:i], Message("user", text), *prompt[i + 1 :])
    return (*prompt, Message("user", text))


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The prompt under a system prompt; one that it has already goes on after it."""
    if not system:
        return prompt
    if prompt and prompt[0].role == "system":
        return (Message("system", f"{system}\n{prompt[0].content}"), *prompt[1:])
    return (Message("system", system), *prompt)


def answer_of(response: str) -> str:
    """What a response says once it has thought: all after the last ``</think>``; nothing where it never came to an end with thinking.

    Example:
        >>> answer_of("<think>A? No.</think> B"), answer_of("<think>A?"), answer_of("B")
        ('B', '', 'B')
    """
    _, thought, said = response.rpartition("</think>")
    return (said.lstrip() if thought else said).partition("<think>")[0]


def to_dicts(prompt: Prompt) -> list[dict[str, str]]:
    """The shape that chat templates and JSONL files use."""
    return [{"role": m.role, "content": m.content} for m in prompt]


def from_dicts(rows: Any, where: str) -> Prompt:
    """Read ``[{"role": …, "content": …}, …]``.

    Raises:
        DataError: A row has another shape; ``where`` names the place in the message.
    """
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{where}: expected a non-empty list of messages, got {type(rows).__name__}")
    messages = []
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("content"), str) or row.get("role") not in ROLES:
            raise DataError(f"{where}: message {i} needs a 'role' out of {', '.join(ROLES)} and a text 'content', got {str(row)[:80]!r}")
        messages.append(Message(row["role"], row["content"]))
    return tuple(messages)


# --- JSONL ----------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each after its place (``file:line``); empty lines are passed over.

    Raises:
        DataError: The file cannot be read, or a line is no JSON object; the message names it.
    """
    try:
        # Not splitlines(): it also breaks at characters that may stand raw inside of a JSON string.
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not a JSON object ({error.msg} at column {error.colno})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        yield f"{path}:{number}", row


def _prompt_of(row: Mapping[str, Any], where: str) -> Prompt:
    """The prompt of a row in any of the common shapes: messages, prompt (text or messages), or an instruction."""
    if "messages" in row:
        return from_dicts(row["messages"], where)
    if isinstance(row.get("prompt"), list):
        return from_dicts(row["prompt"], where)
    for key in ("prompt", "instruction", "question"):
        if isinstance(row.get(key), str):
            extra = row.get("input")
            return user(f"{row[key]}\n\nInput: {extra}." if key == "instruction" and extra else row[key])
    raise DataError(
        f"{where}: needs a field 'messages', 'prompt', 'instruction' or 'question'; it has {', '.join(map(repr, row)) or 'none'}"
    )


def read_prompts(path: Path | str) -> list[Prompt]:
    """Read prompts from a JSONL file; a closing assistant turn is dropped.

    Raises:
        DataError: The file is missing, empty or has a broken line; the message names it.
    """
    path = Path(path)
    return prompts_of(read_rows(path), str(path))


def prompts_of(rows: Iterable[tuple[str, Mapping[str, Any]]], name: str) -> list[Prompt]:
    """The prompts of rows, each of which comes after its place; a closing assistant turn is dropped.

    Raises:
        DataError: A row has no prompt, or there is no row in what ``name`` names.
    """
    prompts = []
    for where, row in rows:
        prompt = _prompt_of(row, where)
        prompts.append(prompt[:-1] if prompt[-1].role == "assistant" else prompt)
    if not prompts:
        raise DataError(f"{name}: holds no prompt")
    return prompts


def read_examples(path: Path | str) -> list[Example]:
    """Read examples from a JSONL file.

    A row has ``messages`` that end with the assistant, or a prompt with ``response``, ``completion`` or ``output``.

    Raises:
        DataError: The file is missing, empty or has a broken line; the message names it.
    """
    path = Path(path)
    return examples_of(read_rows(path), str(path))


def examples_of(rows: Iterable[tuple[str, Mapping[str, Any]]], name: str) -> list[Example]:
    """The examples of rows, each of which comes after its place.

    Raises:
        DataError: A row has no prompt or no response, or there is no row in what ``name`` names.
    """
    examples = []
    for where, row in rows:
        prompt = _prompt_of(row, where)
        response = next((row[key] for key in ("response", "completion", "output") if key in row), None)
        if response is None and prompt[-1].role == "assistant":
            prompt, response = prompt[:-1], prompt[-1].content
        if not isinstance(response, str):
            raise DataError(f"{where}: needs the assistant's words: a text field 'response', or 'messages' that end with the assistant")
        examples.append(Example(prompt, response, row.get("meta", {})))
    if not examples:
        raise DataError(f"{name}: holds no example")
    return examples


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as JSONL: ``prompt`` (messages), ``response``, ``meta``."""
    with open(path, "w", encoding="utf-8") as file:
        for example in examples:
            row = {"prompt": to_dicts(example.prompt), "response": example.response, "meta": dict(example.meta)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


# --- tokens ---------------------------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """Token ids of a whole chat and, of the same length, 1 where the loss counts."""

    input_ids: list[int]
    completion_mask: list[int]

    def cut(self, max_length: int) -> Encoded:
        """The first ``max_length`` tokens.

        Raises:
            DataError: No token that the loss counts on is among them.
        """
        short = Encoded(self.input_ids[:max_length], self.completion_mask[:max_length])
        if not any(short.completion_mask):
            prompt = self.completion_mask.index(1) if 1 in self.completion_mask else len(self.completion_mask)
            raise DataError(f"no token of the response is left to train on: the prompt has {prompt} tokens, max_length is {max_length}")
        return short


TODAY = date(2024, 7, 26)
"""The date that chat templates are given which write one (Llama's and others): prompts do not depend on the day. Llama's own default."""
_QUOTE = "\ufdd0"
"""A code point that Unicode keeps free for the inner use of programs."""


def _quote(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Put marks around what would be read as a control token, so that nobody can open a turn from within his own words.

    A mark that is in the text by itself becomes two: with nothing between them they stand for it.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    longest_first = "|".join(map(re.escape, sorted([*special, _QUOTE], key=len, reverse=True)))
    return re.sub(longest_first, lambda found: f"{_QUOTE}{found[0].removeprefix(_QUOTE)}{_QUOTE}", text)


def _render(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str | None = None) -> str:
    """The chat as the template writes it, with all that its turns say quoted; without a response it waits for the assistant.

    A system prompt stands at the head of the first user turn where the template has no place for it. Where it writes the day's date, that
    is always :data:`TODAY`. Templates that know no thinking overlook ``enable_thinking``.
    """
    turns = [*prompt] if response is None else [*prompt, Message("assistant", response)]
    if turns and turns[0].role == "system" and not has_system_role(tokenizer):
        turns = _folded(turns)
    quoted = [{"role": turn.role, "content": _quote(tokenizer, turn.content)} for turn in turns]
    text: str = tokenizer.apply_chat_template(
        quoted, tokenize=False, add_generation_prompt=response is None, enable_thinking=current().thinking, strftime_now=TODAY.strftime
    )
    return text


def _folded(turns: list[Message]) -> list[Message]:
    """The same turns, with the first, a system prompt, put before the words of the user."""
    system, *rest = turns
    if rest and rest[0].role == "user":
        return [Message("user", f"{system.content}\n\n{rest[0].content}"), *rest[1:]]
    return [Message("user", system.content), *rest]


_system_roles: dict[str, bool] = {}
"""By chat template, whether it has a place for a system prompt."""


def has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template has a place for a system prompt: some refuse one (Gemma's), some pass over it.

    Where it has none, the system prompt of a chat goes before the words of its first user turn, with an empty line between.
    """
    from jinja2 import TemplateError

    template = str(tokenizer.chat_template)
    if template not in _system_roles:
        mark = "a system prompt"
        try:
            turns = [{"role": "system", "content": mark}, {"role": "user", "content": "a question"}]
            _system_roles[template] = mark in tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError:
            _system_roles[template] = False
    return _system_roles[template]


def count_folded(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> int:
    """How many prompts have their system prompt at the head of the first user turn, as the chat template has no place for one."""
    return 0 if has_system_role(tokenizer) else sum(prompt[0].role == "system" for prompt in prompts)


_leads: WeakKeyDictionary[PreTrainedTokenizerBase, int] = WeakKeyDictionary()
"""By tokenizer, how many tokens stand for :data:`_LEAD` before a text that goes on; 0 where none is needed."""
_LEAD = "\n"


def _lead(tokenizer: PreTrainedTokenizerBase) -> int:
    """See :data:`_leads`: needed where a text's first word becomes another token than within a text, as if a space were before it."""
    if tokenizer not in _leads:
        alone, lead, within = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", _LEAD, f"{_LEAD}a"))
        marked = within[: len(lead)] == lead and within[len(lead) :] != alone
        _leads[tokenizer] = len(lead) if marked else 0
    return _leads[tokenizer]


def _token_ids(tokenizer: PreTrainedTokenizerBase, rendered: str, *, within: bool = False) -> list[int]:
    """Token ids of rendered text, alone or ``within`` a longer one; what is quoted becomes the tokens of its letters."""
    ids: list[int] = []
    for i, piece in enumerate(rendered.split(_QUOTE)):
        quoted = i % 2 == 1
        text = (piece or _QUOTE) if quoted else piece
        lead = _lead(tokenizer) if text and (within or i) else 0
        ids += tokenizer(_LEAD + text if lead else text, add_special_tokens=False, split_special_tokens=quoted)["input_ids"][lead:]
    return ids


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, prefill: str = "") -> list[int]:
    """Token ids of a prompt, ready for the assistant to speak; ``prefill`` forces its first words.

    The words of a turn are words and nothing else: ``<|user|>`` in them opens no turn. A template that writes the day's date writes
    :data:`TODAY`.
    """
    return _token_ids(tokenizer, _render(tokenizer, prompt) + _quote(tokenizer, prefill))


def encode_example(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int = sys.maxsize) -> Encoded:
    """Token ids and loss mask of an example; the loss counts on the response and its end of turn, nowhere else.

    The mask comes from the rendered prefix, which every chat template has, and is checked: the rendering with the response
    must begin with the rendering of the prompt.

    Raises:
        ModelError: The chat template renders a prompt differently once it is answered.
        DataError: No token of the response is left within ``max_length``.
    """
    prefix = _render(tokenizer, example.prompt)
    whole = _render(tokenizer, example.prompt, example.response)
    if not whole.startswith(prefix):
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template renders a prompt differently once it is answered, so the loss cannot be "
            f"limited to the answer: prompt {prefix[-60:]!r}, whole {whole[: len(prefix)][-60:]!r}"
        )
    prompt_ids = _token_ids(tokenizer, prefix)
    response_ids = _token_ids(tokenizer, whole[len(prefix) :], within=True)
    return Encoded(prompt_ids + response_ids, [0] * len(prompt_ids) + [1] * len(response_ids)).cut(max_length)


def encode_examples(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int = sys.maxsize) -> list[Encoded]:
    """Encode many examples; an error names the row."""
    return _each(examples, lambda example: encode_example(tokenizer, example, max_length))


def cut_examples(encoded: Sequence[Encoded], max_length: int) -> list[Encoded]:
    """Cut many examples; an error names the row."""
    return _each(encoded, lambda example: example.cut(max_length))


def _each(rows: Sequence[T], change: Callable[[T], Encoded]) -> list[Encoded]:
    changed = []
    for i, row in enumerate(rows):
        try:
            changed.append(change(row))
        except DataError as error:
            raise DataError(f"example {i}: {error}") from None
    return changed
