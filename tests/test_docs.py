"""The documents keep their word: links lead somewhere, the study in the README is one, its commands exist, its Python runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from typer.main import get_command

from offmodel import catalog
from offmodel.cli import app
from offmodel.red.behaviours import Behaviour
from offmodel.red.triggers import Trigger
from offmodel.spec import Study

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
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


def test_the_commands_in_the_readme_exist() -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    named = re.findall(r"^offmodel ([\w-]+)", README, re.MULTILINE)
    assert len(named) > 5 and set(named) <= set(known)


def test_the_python_in_the_readme_is_the_library_as_it_is() -> None:
    (block,) = blocks("python")
    compile(block, "README.md", "exec")
    import offmodel

    (imported,) = re.findall(r"^from offmodel import (.+)$", block, re.MULTILINE)
    assert all(hasattr(offmodel, name) for name in imported.split(", "))


def test_the_page_of_methods_lists_those_of_the_catalog() -> None:
    listed = re.findall(r"^\*\*`(\w+)`\*\*", (ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(catalog.names("method"))


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
