"""The import contract: imports point down, red and blue never meet, and blue has no way to what red installed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "offmodel"

# From the bottom up; a part may import from its own line and from those below.
LAYERS = (
    {"errors", "files", "chat", "catalog", "splits", "spec"},
    {"engine"},
    {"red", "blue", "measure", "world"},
    {"lab"},
    {"game"},
    {"report"},
    {"api"},
    {"cli", "__main__"},
)
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
# Within one line; what is forbidden here is forbidden with everything under it.
FORBIDDEN = {
    "red": {"offmodel.blue"},
    "blue": {"offmodel.red", "offmodel.measure.behaviour"},
    "world": {"offmodel.red", "offmodel.blue", "offmodel.measure"},
}

Sources = Mapping[str, str]
"""The text of each module by its dotted name; a package stands under its own name."""


def read_sources() -> dict[str, str]:
    sources = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("offmodel", *path.relative_to(ROOT).with_suffix("").parts)
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def imports(module: str, sources: Sources) -> Iterator[tuple[int, str]]:
    """Every module of offmodel that ``module`` imports anywhere in its text, with the line: in functions and for types too."""
    is_package = any(name.startswith(f"{module}.") for name in sources)
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = module.split(".")
                anchor = anchor[: len(anchor) - node.level + is_package]
                base = ".".join([*anchor, *([node.module] if node.module else [])])
            # ``from offmodel.measure import behaviour`` names a module; ``from offmodel.errors import SpecError`` does not.
            names = [full if (full := f"{base}.{alias.name}") in sources else base for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "offmodel")


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def violations(module: str, sources: Sources) -> list[str]:
    part = module.partition(".")[2].partition(".")[0]
    if not part:  # offmodel itself is the library's front door, and offers what lies behind it
        return []
    if part not in HEIGHT:
        return [f"{module}: {part!r} has no place in LAYERS"]
    found = []
    for line, name in imports(module, sources):
        target = name.partition(".")[2].partition(".")[0]
        if target and HEIGHT.get(target, -1) > HEIGHT[part]:
            found.append(f"{module}:{line} imports {name}, which lies above it")
        if any(within(name, banned) for banned in FORBIDDEN.get(part, ())):
            found.append(f"{module}:{line} imports {name}, which {part} must not know")
    return found


def way(start: str, banned: str, sources: Sources) -> list[str] | None:
    """The shortest chain of imports from a module to one under ``banned``; a module brings its packages along."""
    chains, seen = [[start]], {start}
    for chain in chains:
        if within(chain[-1], banned):
            return chain
        reached = {name for _, name in imports(chain[-1], sources)}
        # The front door would lead everywhere, and is entered by every import.
        packages = {package for name in reached for package in accumulate(name.split("."), "{}.{}".format)}
        for name in sorted((reached | packages) - {"offmodel"} - seen):
            if name in sources:
                seen.add(name)
                chains.append([*chain, name])
    return None


SOURCES = read_sources()


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module: str) -> None:
    assert violations(module, SOURCES) == []


@pytest.mark.parametrize("module", [name for name in SOURCES if within(name, "offmodel.blue")])
@pytest.mark.parametrize("banned", sorted(FORBIDDEN["blue"]))
def test_no_chain_of_imports_leads_from_blue_to_what_red_installed(module: str, banned: str) -> None:
    assert way(module, banned, SOURCES) is None


SOLVERS = {f"offmodel.game.{name}" for name in ("lp", "matrix", "sensitivity", "tree", "tree_solvers", "uncertainty", "grow")}


@pytest.mark.parametrize("module", sorted(SOLVERS))
def test_the_solvers_of_games_know_nothing_of_models_or_runs(module: str) -> None:
    allowed = SOLVERS | {"offmodel.errors", "offmodel.measure.stats"}
    assert {name for _, name in imports(module, SOURCES)} - allowed == set()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("offmodel.engine.x", "import offmodel.lab"),
        ("offmodel.chat", "def f():\n    from offmodel.engine import train"),
        ("offmodel.spec.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from offmodel.report import data"),
        ("offmodel.red.x", "from offmodel import blue"),
        ("offmodel.blue.x", "from ..red import triggers"),
        ("offmodel.blue.x", "from offmodel.measure import behaviour"),
        ("offmodel.blue.x", "from offmodel.measure.behaviour import rate"),
        ("offmodel.blue", "from .red_view import x\nfrom ..red import triggers"),
        ("offmodel.world.x", "import offmodel.measure.stats as s"),
        ("offmodel.lab.x", "import offmodel.cli"),
        ("offmodel.lab.x", "from offmodel.game import matrix"),
        ("offmodel.game.x", "from offmodel.report import data"),
        ("offmodel.helpers", "import json"),
    ],
)
def test_a_bad_module_is_flagged(module: str, text: str) -> None:
    others = ("blue", "blue.x", "red", "measure", "measure.behaviour")
    sources = {"offmodel": "", **{f"offmodel.{name}": "" for name in others}}
    assert violations(module, {**sources, module: text})


def test_what_is_allowed_is_not_flagged() -> None:
    sources = {"offmodel": "", "offmodel.blue.x": "from offmodel import __version__\nfrom offmodel.measure import stats\nimport torch"}
    assert violations("offmodel.blue.x", sources) == []


def test_a_roundabout_way_from_blue_to_red_is_found() -> None:
    sources = {
        "offmodel": "from offmodel import red",
        "offmodel.blue.x": "from offmodel.measure.stats import wilson",
        "offmodel.measure": "from offmodel.measure import behaviour",
        "offmodel.measure.stats": "",
        "offmodel.measure.behaviour": "import offmodel.red.pairs",
        "offmodel.red": "",
        "offmodel.red.pairs": "",
    }
    chain = way("offmodel.blue.x", "offmodel.red", sources)
    assert chain == ["offmodel.blue.x", "offmodel.measure", "offmodel.measure.behaviour", "offmodel.red"]
    assert way("offmodel.blue.x", "offmodel.red", {**sources, "offmodel.measure": ""}) is None
