"""The one registry of everything that has a name: triggers, behaviours, pairs, recipes, methods, phases, suites.

A part of offmodel registers itself with a decorator or a call; another package does the same and names its module under the
entry-point group ``offmodel``, so that nothing of ours has to be edited:

    [project.entry-points.offmodel]
    my_pairs = "my_package.pairs"

A single file needs no package: a study names it under ``extensions``, and a command takes it with ``--with``.

Some things can be told which file to read (``gsm8k:rows.jsonl``): their value has a method ``on_file(path)`` that gives the thing on that
file, and the file's SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from offmodel.errors import OffmodelError, SpecError, did_you_mean, nearest_file

T = TypeVar("T")

_BUILT_IN = ("offmodel.red", "offmodel.blue", "offmodel.measure", "offmodel.world")
_entries: dict[str, dict[str, Entry]] = {}
_loaded = False
_extending = False  # while an extension is imported


@dataclass(frozen=True)
class Entry:
    """A named thing with what ``offmodel describe`` says about it.

    Attributes:
        kind: Such as ``"pair"``.
        name: Unique within the kind.
        value: The thing itself.
        source: Where it comes from.
        text: What it does.
        code: SHA-256 of the file that registered it, as it was then, or of the file that it was told to read; part of the key of every
            stage that uses it. None for what is offmodel's own, whose changes the versions of the stages tell.
    """

    kind: str
    name: str
    value: Any
    source: str
    text: str
    code: str | None = None


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
    taken[name] = Entry(kind, name, value, source, inspect.cleandoc(text or value.__doc__ or ""), _code_of_caller())
    return value


def register(kind: str, name: str, *, source: str) -> Callable[[T], T]:
    """Decorator form of :func:`add`."""
    return lambda value: add(kind, name, value, source=source)


def _code_of_caller() -> str | None:
    """What :attr:`Entry.code` says of the module that registers something now; None also where its text cannot be had."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals is globals():
        frame = frame.f_back
    if frame is None or str(frame.f_globals.get("__name__")).partition(".")[0] == "offmodel":
        return None
    file = frame.f_code.co_filename
    linecache.checkcache(file)
    lines = linecache.getlines(file, frame.f_globals)  # a module's text may lie in an archive, or in the cell of a notebook
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


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


def load_extension(name: str) -> None:
    """Import a Python file, or a module, that registers what the catalog lacks; a second time it does nothing.

    Args:
        name: The path of a file, which ends with ``.py``, or a module's dotted name.

    Raises:
        SpecError: It is not there or cannot be imported; then nothing of it stays registered.
    """
    global _extending
    load()  # first: where both register the same name, it is the extension that takes a name which is taken
    before = {kind: dict(entries) for kind, entries in _entries.items()}
    outer, _extending = _extending, True
    try:
        if name.endswith(".py"):
            _import_file(Path(name))
        else:
            importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script that is none to be imported may well exit
        _entries.clear()
        _entries.update(before)
        raise SpecError(f"extension {name!r}: {_import_problem(name, error)}") from error
    finally:
        _extending = outer


def extending() -> bool:
    """Whether an extension is being imported: what it does now, it does in every process that knows it."""
    return _extending


def _import_file(path: Path) -> None:
    file = path.resolve()
    # Classes are looked up by the name of their module, so the file gets one, the same in every process.
    name = f"offmodel_extension_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    script = getattr(sys.modules["__main__"], "__file__", None)  # it may run the study that names it
    if name in sys.modules or (script is not None and Path(script).resolve() == file):
        return
    if not file.exists():
        raise SpecError(f"no such file; {nearest_file(path)}")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # the name ends with .py
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _import_problem(name: str, error: BaseException) -> str:
    """What went wrong, after the file and the line of the extension where it did."""
    if isinstance(error, ModuleNotFoundError) and not name.endswith(".py") and f"{name}.".startswith(f"{error.name}."):
        return "no such module; a file is named by its path, such as my_pair.py"
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    said = str(error) if isinstance(error, OffmodelError) else f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    return f"{own[0].filename}:{own[0].lineno}: {said}" if own else said


def kinds() -> list[str]:
    """Every kind that has entries."""
    load()
    return sorted(_entries)


def names(kind: str) -> list[str]:
    """Names under a kind, in alphabetical order."""
    load()
    return sorted(_entries.get(kind, {}))


def has(kind: str, name: str) -> bool:
    """Whether :func:`entry` has such an entry, or would have it if its file were there."""
    return name in names(kind) or _reader(kind, name) is not None


def entry(kind: str, name: str) -> Entry:
    """Look an entry up; ``<name>:<path>`` is one that reads a file.

    Raises:
        SpecError: There is none; the message names the nearest.
    """
    load()
    found = _entries.get(kind, {}).get(name)
    if found is not None:
        return found
    reader = _reader(kind, name)
    if reader is None:
        raise SpecError(f"unknown {kind} {name!r}: {did_you_mean(name, names(kind))}")
    value, sha256 = reader.value.on_file(name.partition(":")[2])
    return replace(reader, name=name, value=value, text=value.definition, code=sha256 + (reader.code or ""))


def _reader(kind: str, name: str) -> Entry | None:
    """The entry that is told to read a file by ``<name>:<path>``; None where the name does not do that."""
    plain, _, path = name.partition(":")
    found = _entries.get(kind, {}).get(plain)
    return found if path and found is not None and hasattr(found.value, "on_file") else None


def get(kind: str, name: str) -> Any:
    """The registered thing itself; see :func:`entry`."""
    return entry(kind, name).value
