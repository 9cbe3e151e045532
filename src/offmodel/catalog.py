"""The one registry of everything that has a name: triggers, behaviours, pairs, recipes, methods, phases, suites.

A part of offmodel registers itself with a decorator or a call; another package does the same and names its module under the
entry-point group ``offmodel``, so that nothing of ours has to be edited:

    [project.entry-points.offmodel]
    my_pairs = "my_package.pairs"
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from offmodel.errors import SpecError, did_you_mean

T = TypeVar("T")

_BUILT_IN = ("offmodel.red", "offmodel.blue", "offmodel.measure", "offmodel.world")
_entries: dict[str, dict[str, Entry]] = {}
_loaded = False


@dataclass(frozen=True)
class Entry:
    """A named thing with what ``offmodel describe`` says about it."""

    kind: str
    name: str
    value: Any
    source: str
    text: str


def add(kind: str, name: str, value: T, *, source: str, text: str | None = None) -> T:
    """Register ``value`` under a kind and a name.

    Args:
        kind: Such as ``"pair"`` or ``"method"``.
        name: How a study refers to it.
        value: The thing itself.
        source: Where it comes from: an arXiv id, a post, or "offmodel".
        text: What it does; the docstring of ``value`` where left out.

    Raises:
        SpecError: The name is taken: two things under one name would silently hide each other.
    """
    taken = _entries.setdefault(kind, {})
    if name in taken:
        raise SpecError(f"{kind} {name!r} is registered twice (sources: {taken[name].source!r} and {source!r})")
    taken[name] = Entry(kind, name, value, source, inspect.cleandoc(text or value.__doc__ or ""))
    return value


def register(kind: str, name: str, *, source: str) -> Callable[[T], T]:
    """Decorator form of :func:`add`."""
    return lambda value: add(kind, name, value, source=source)


def load() -> None:
    """Import the built-in parts and every package that names itself under the entry-point group ``offmodel``.

    Raises:
        SpecError: Such a package cannot be imported.
    """
    global _loaded
    if _loaded:
        return
    for module in _BUILT_IN:
        importlib.import_module(module)
    for point in entry_points(group="offmodel"):
        try:
            point.load()
        except Exception as error:
            raise SpecError(f"the package that adds {point.name!r} to the catalog ({point.value}) cannot be imported: {error}") from error
    _loaded = True


def kinds() -> list[str]:
    """Every kind that has entries."""
    load()
    return sorted(_entries)


def names(kind: str) -> list[str]:
    """Names under a kind, in alphabetical order."""
    load()
    return sorted(_entries.get(kind, {}))


def entry(kind: str, name: str) -> Entry:
    """Look an entry up.

    Raises:
        SpecError: There is none; the message names the nearest.
    """
    load()
    found = _entries.get(kind, {}).get(name)
    if found is None:
        raise SpecError(f"unknown {kind} {name!r}: {did_you_mean(name, names(kind))}")
    return found


def get(kind: str, name: str) -> Any:
    """The registered thing itself; see :func:`entry`."""
    return entry(kind, name).value
