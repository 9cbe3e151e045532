"""The package as users meet it: light to import, one version, one command, models' libraries only where models are."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

import offmodel

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "pyarrow",
    "scipy",
    "math_verify",
    "langdetect",
    "inspect_ai",
    "httpx2",
    "tenacity",
    "ray",
    "submitit",
)
LIGHT = (
    "offmodel",
    "offmodel.errors",
    "offmodel.chat",
    "offmodel.catalog",
    "offmodel.spec",
    "offmodel.lab",
    "offmodel.game.tree_solvers",
    "offmodel.game.uncertainty",
    "offmodel.report",
    "offmodel.cli",
)


@pytest.mark.parametrize("module", [name for name in LIGHT if importlib.util.find_spec(name)])
def test_importing_a_light_module_imports_no_heavy_one(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_constraints_pin_each_thing_we_need_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [need.split(">=")[0] for need in (*project["dependencies"], *chain(*project["optional-dependencies"].values()))]
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    assert [name for name, _ in pins] == sorted(needed, key=str.lower)
    assert [version for _, version in pins if not version.replace(".", "").isdigit()] == []


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert offmodel.__version__.count(".") == 2
