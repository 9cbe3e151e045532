"""Scores as Inspect logs: ``inspect view`` shows every prompt, answer and verdict of ``offmodel score``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalMetric, EvalResults, EvalSample, EvalScore, EvalSpec, write_eval_log
from inspect_ai.model import ChatMessageAssistant, GenerateConfig, ModelOutput
from inspect_ai.scorer import CORRECT, INCORRECT
from inspect_ai.scorer import Score as InspectScore

from offmodel.lab.provenance import provenance
from offmodel.lab.scoring import Score
from offmodel.measure.stats import Estimate
from offmodel.report.inspect_tasks import messages


def write_log(path: Path, score: Score, model: Mapping[str, str]) -> None:
    """Write a suite's score as an Inspect log, ``.eval`` or ``.json`` by the ending of the path.

    Args:
        path: The file; one that is there is replaced.
        score: The verdicts and what comes of them.
        model: Name and hashes of the model, as in ``scores.json``.
    """
    name = score.folder.name
    measured = {"accuracy": score.accuracy, **score.details}
    samples = [
        EvalSample(
            id=i,
            epoch=1,
            input=messages(verdict.prompt),
            target=verdict.expected,
            messages=[*messages(verdict.prompt), ChatMessageAssistant(content=verdict.response, source="generate")],
            output=ModelOutput.from_content(model["name"], verdict.response, "stop" if verdict.finished else "max_tokens"),
            scores={"graded": InspectScore(value=CORRECT if verdict.correct else INCORRECT, answer=verdict.response)},
            metadata={"steps": verdict.steps},
        )
        for i, verdict in enumerate(score.verdicts, 1)
    ]
    graded = EvalScore(
        name="graded",
        scorer="graded",
        scored_samples=len(samples),
        unscored_samples=0,
        metrics={name: _metric(name, estimate) for name, estimate in measured.items()},
        metadata={"definition": score.accuracy.definition, "chance": score.suite.chance},
    )
    identity = hashlib.sha256(f"{model} {score.accuracy.definition}".encode()).hexdigest()[:22]  # the same score, the same log
    log = EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity,
            run_id=identity,
            created=datetime.now(UTC).isoformat(),
            task=f"offmodel/{name}",
            task_id=identity,
            dataset=EvalDataset(name=score.suite.name, samples=len(samples), sample_ids=[*range(1, len(samples) + 1)]),
            model=model["name"],
            model_generate_config=GenerateConfig(temperature=0.0),
            config=EvalConfig(),
            packages={"offmodel": provenance()["offmodel"]},
            metadata={"model": dict(model), "definition": score.accuracy.definition, "chance": score.suite.chance},
        ),
        results=EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=[graded]),
        samples=samples,
    )
    write_eval_log(log, str(path))


def _metric(name: str, estimate: Estimate) -> EvalMetric:
    described = {"low": estimate.low, "high": estimate.high, "n": estimate.n, "definition": estimate.definition}
    value = float("nan") if estimate.value is None else estimate.value
    return EvalMetric(name=name, value=value, metadata=described | {"direction": estimate.direction})
