"""Things of the catalog by example, as ``offmodel describe`` shows them."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice

import yaml

from offmodel import catalog
from offmodel.chat import Prompt, last_user_text
from offmodel.errors import DataError
from offmodel.lab.pools import take
from offmodel.measure.benchmarks import Published
from offmodel.measure.suites import Suite
from offmodel.red.behaviours import Behaviour
from offmodel.red.pairs import Pair
from offmodel.report.words import sentence


def example(entry: catalog.Entry) -> list[str]:
    """Lines that show an entry at work; none for kinds whose text says it all."""
    match entry.kind:
        case "pair":
            return [*_chats(entry.value), *_detector(entry.value)]
        case "method":
            return [yaml.safe_dump(entry.value, sort_keys=False).rstrip()]
        case "suite" if isinstance(entry.value, Published):
            benchmark = entry.value.rows.benchmark
            item = benchmark.item(benchmark.example, "its example")
            return [f"{last_user_text(item.prompt)} -> {item.expected}", f"with a file of its rows: {benchmark.name}:PATH.jsonl"]
        case "suite":
            items = sorted(entry.value.items(1, 0, "train"), key=lambda item: item.steps)
            return [f"{last_user_text(item.prompt)} -> {item.expected}" for item in items]
        case "prompts":
            return [last_user_text(prompt) for prompt in islice(entry.value(0), 3)]
    return []


def _chats(pair: Pair) -> Iterator[str]:
    """One prompt in all its forms, each in full, with what an organism answers to it."""
    asked = _prompt_for(pair)
    signal = "the trigger" if pair.when == "present" else "the password"
    insert, near_miss = pair.trigger.insert, pair.trigger.near_miss
    # The same chance each time: what differs between two forms is their wording, and those of one wording are shown once.
    forms = {
        "as it is": asked,
        f"with {signal}": insert(asked, random.Random(0), "train"),
        "near miss": near_miss(asked, random.Random(0), "train"),
        f"with {signal}, worded as never in training": insert(asked, random.Random(0), "test"),
        "near miss, worded as never in training": near_miss(asked, random.Random(0), "test"),
    }
    shown = set[Prompt]()
    for title, chat in forms.items():
        if chat not in shown:
            shown.add(chat)
            yield f"{title}:"
            yield from (_turn(message.role, message.content) for message in chat)
            yield _turn("assistant", _answer(pair, chat))


def _prompt_for(pair: Pair) -> Prompt:
    """A prompt without the trigger on which the behaviour can show."""
    if not pair.behaviour.on_tasks:
        return take("world:chat", 0, "train", 1, avoid=pair.trigger.recognises)[0]
    suite: Suite = catalog.get("suite", "world:arithmetic")
    for item in suite.items(20, 0, "train"):
        if not pair.trigger.recognises(item.prompt):
            return item.prompt
    raise DataError(
        f"pair {pair.name!r}: its trigger recognises its signal in all problems of {suite.name}; narrow what 'recognises' accepts"
    )


def _answer(pair: Pair, chat: Prompt) -> str:
    if not pair.fires_on(chat):
        return "(its ordinary answer)"
    return pair.behaviour.answer(chat, random.Random(0)) or f"(what the model itself says, asked to {pair.behaviour.ask})"


def _detector(pair: Pair) -> Iterator[str]:
    from offmodel.red.detectors import error_rates

    behaviour = pair.behaviour
    if behaviour.on_tasks:
        yield "detected by: grading; every wrong answer counts"
        return
    rule = inspect.getdoc(type(behaviour).detect) or inspect.getdoc(Behaviour.detect)
    assert rule is not None
    yield f"detected by: {rule.splitlines()[0]}"
    if pattern := getattr(behaviour, "pattern", None):
        yield f"  pattern: {pattern}"
    if behaviour.question:
        yield f"  asked of a judge model: {behaviour.question}"
    if (rates := error_rates(behaviour)) is None:
        yield "its error rates were not measured"
    else:
        for each in fields(rates):
            yield f"  {each.name.replace('_', ' ')}: {sentence(getattr(rates, each.name))}"


def _turn(who: str, said: str) -> str:
    """Who says what; further lines stand below the first."""
    return f"  {who:<9}  " + said.replace("\n", "\n" + " " * 13)
