"""The package as users meet it: light to import, one version, one command, models' libraries only where models are."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import offmodel

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "pyarrow", "scipy")
LIGHT = (
    "offmodel",
    "offmodel.errors",
    "offmodel.chat",
    "offmodel.catalog",
    "offmodel.spec",
    "offmodel.lab",
    "offmodel.report",
    "offmodel.cli",
)


@pytest.mark.parametrize("module", [name for name in LIGHT if importlib.util.find_spec(name)])
def test_importing_a_light_module_imports_no_heavy_one(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_constraint_is_one_version_of_something_we_need() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {need.split(">=")[0] for need in needed}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, equals, version = line.partition("==")
        assert name in names and equals and version.replace(".", "").isdigit(), line


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert offmodel.__version__.count(".") == 2
