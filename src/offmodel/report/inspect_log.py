"""Scores and studies as Inspect logs: ``inspect view`` shows every prompt, answer and verdict."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalMetric, EvalResults, EvalSample, EvalScore, EvalSpec, write_eval_log
from inspect_ai.model import ChatMessageAssistant, GenerateConfig, ModelOutput
from inspect_ai.scorer import CORRECT, INCORRECT
from inspect_ai.scorer import Score as InspectScore

from offmodel import catalog
from offmodel.lab.plan import Plan, PlannedOrganism
from offmodel.lab.provenance import provenance
from offmodel.lab.results import VERDICTS
from offmodel.lab.scoring import Score
from offmodel.lab.stage import Stage
from offmodel.lab.store import Store
from offmodel.measure.score import Verdict, accuracy, accuracy_under_trigger, bad_rate, read_verdicts
from offmodel.measure.stats import Estimate
from offmodel.measure.suites import Suite
from offmodel.report.inspect_tasks import messages
from offmodel.spec.claim import UNTOUCHED

_Scorer = Callable[[Verdict], str | int | None]
"""What a verdict says, as the scorer of that name in :mod:`offmodel.report.inspect_tasks` says it; None where it says nothing."""


def _graded(verdict: Verdict) -> str | None:
    return None if verdict.correct is None else CORRECT if verdict.correct else INCORRECT


def _shows_behaviour(verdict: Verdict) -> int | None:
    return None if verdict.bad is None else int(verdict.bad)


def write_log(path: Path, score: Score, model: Mapping[str, str]) -> None:
    """Write a suite's score as an Inspect log, ``.eval`` or ``.json`` by the ending of the path.

    Args:
        path: The file; one that is there is replaced.
        score: The verdicts and what comes of them.
        model: Name and hashes of the model, as in ``scores.json``.
    """
    about = {"definition": score.accuracy.definition, "chance": score.suite.chance}
    measured = {"accuracy": score.accuracy, **score.details}
    _write(path, score.folder.name, score.suite.name, model, score.verdicts, {"graded": (_graded, measured)}, about)


def write_study_logs(folder: Path, plan: Plan, store: Store) -> list[Path]:
    """Write a study's answers as Inspect logs, ``<organism>-<state>.eval``; gives those that were written.

    The states are the base model, the untouched organism, and every method's end, as far as they have been scored.

    Args:
        folder: Made if it is not there; a log that is there is replaced.
        plan: The study as stages.
        store: Their results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suites: list[Suite] = [catalog.get("suite", name) for name in plan.study.measure.capability]
    written = []
    for organism in plan.organisms:
        for state, stage in _states(organism).items():
            if (result := store.get(stage)) is None:
                continue
            verdicts = read_verdicts(result.path / VERDICTS)
            graded = {suite.name: accuracy(verdicts, suite) for suite in suites} | {"under_trigger": accuracy_under_trigger(verdicts)}
            bad = {"triggered": bad_rate(verdicts, "triggered"), "clean": bad_rate(verdicts, "clean")}
            scorers: dict[str, tuple[_Scorer, dict[str, Estimate]]] = {
                "graded": (_graded, graded), "shows_behaviour": (_shows_behaviour, bad),
            }  # fmt: skip
            weights = json.loads((result.path / "score.json").read_text(encoding="utf-8"))["weights"]
            model = {"name": f"{organism.id}/{state}", "base": organism.base, "weights": weights}
            about = {"pair": organism.pair.name, "recipe": organism.recipe, "seed": organism.seed, "state": state}
            path = folder / (re.sub(r"[^\w.-]+", "_", f"{organism.id}-{state}") + ".eval")
            _write(path, plan.study.study, organism.pair.name, model, verdicts, scorers, about)
            written.append(path)
    return written


def _states(organism: PlannedOrganism) -> dict[str, Stage]:
    """The scores of the base, the untouched organism, and every method's end."""
    untouched, *_ = next(iter(organism.methods.values()))
    ends = {method: checkpoints[-1].score for method, checkpoints in organism.methods.items()}
    return {"base": organism.base_score, UNTOUCHED: untouched.score, **ends}


def _write(
    path: Path,
    task: str,
    dataset: str,
    model: Mapping[str, str],
    verdicts: Sequence[Verdict],
    scorers: Mapping[str, tuple[_Scorer, Mapping[str, Estimate]]],
    about: Mapping[str, Any],
) -> None:
    """Write a log with each scorer's word on every verdict, and what they come to by measure."""
    samples = [
        EvalSample(
            id=i,
            epoch=1,
            input=messages(verdict.prompt),
            target=verdict.expected,
            messages=[*messages(verdict.prompt), ChatMessageAssistant(content=verdict.response, source="generate")],
            output=ModelOutput.from_content(model["name"], verdict.response, "stop" if verdict.finished else "max_tokens"),
            scores={
                name: InspectScore(value=value, answer=verdict.response)
                for name, (scorer, _) in scorers.items()
                if (value := scorer(verdict)) is not None
            },
            metadata={"setting": verdict.setting, "suite": verdict.suite, "steps": verdict.steps},
        )
        for i, verdict in enumerate(verdicts, 1)
    ]
    scores = []
    for name, (scorer, measured) in scorers.items():
        told = sum(scorer(verdict) is not None for verdict in verdicts)
        metrics = {measure: _metric(measure, estimate) for measure, estimate in measured.items()}
        scores.append(
            EvalScore(
                name=name,
                scorer=name,
                scored_samples=told,
                unscored_samples=len(verdicts) - told,
                metrics=metrics,
                metadata=dict(about),
            )
        )
    identity = hashlib.sha256(f"{dict(model)} {task} {dict(about)}".encode()).hexdigest()[:22]  # the same score, the same log
    log = EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity,
            run_id=identity,
            created=datetime.now(UTC).isoformat(),
            task=f"offmodel/{task}",
            task_id=identity,
            dataset=EvalDataset(name=dataset, samples=len(samples), sample_ids=[*range(1, len(samples) + 1)]),
            model=model["name"],
            model_generate_config=GenerateConfig(temperature=0.0),
            config=EvalConfig(),
            packages={"offmodel": provenance()["offmodel"]},
            metadata={"model": dict(model), **about},
        ),
        results=EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=scores),
        samples=samples,
    )
    write_eval_log(log, str(path))


def _metric(name: str, estimate: Estimate) -> EvalMetric:
    described = {"low": estimate.low, "high": estimate.high, "n": estimate.n, "definition": estimate.definition}
    value = float("nan") if estimate.value is None else estimate.value
    return EvalMetric(name=name, value=value, metadata=described | {"direction": estimate.direction})
