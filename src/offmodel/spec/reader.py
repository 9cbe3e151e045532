"""YAML in, with the line of every value, so that an error can say where it stands.

Plain words follow YAML 1.2, not PyYAML's 1.1: ``1e-3`` is a number, and ``yes``, ``on``, ``2024-01-01`` and ``1:30`` are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from offmodel.errors import SpecError, did_you_mean, nearest_file

At = tuple[str | int, ...]
"""The way to a value: ``("methods", "pirate", 0, "steps")`` is ``methods.pirate[0].steps``."""

_MAX_DEPTH = 30
_OVERRIDE = re.compile(r"[^.\[\]]+(\[\d+\])*(\.[^.\[\]]+(\[\d+\])*)*")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way to say it


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def dotted(at: At) -> str:
    """Write a way as a person would: ``methods.pirate[0].steps``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).lstrip(".")


@dataclass(frozen=True)
class Source:
    """What a file and its overrides say, and where each value stands.

    Attributes:
        path: The file.
        data: Its mapping, overrides applied.
        places: A file with a line, or an override, by way.
    """

    path: Path
    data: dict[str, Any]
    places: dict[At, str]

    def place(self, at: At) -> str:
        """Where a value stands; where its nearest container does, if it stands nowhere."""
        return next((self.places[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.places), str(self.path))

    def error(self, problems: Iterable[tuple[At, str]]) -> SpecError:
        """One error of all problems, a line each: place, way, what is wrong."""
        return SpecError("\n".join(": ".join(filter(None, (self.place(at), dotted(at), text))) for at, text in problems))

    def explain(self, error: ValidationError) -> SpecError:
        """Say what pydantic found in the words of the file."""
        problems = [(self._way(details["loc"], details), _in_words(details)) for details in error.errors(include_url=False)]
        return self.error(dict.fromkeys(problems))

    def _way(self, loc: At, details: Mapping[str, Any]) -> At:
        way = self.way(loc)
        if details["type"] == "missing":
            way = (*way, loc[-1])
        return (*way, *details.get("ctx", {}).get("at", ()))

    def way(self, loc: At) -> At:
        """What of a way in the checked study is one in the file: that one also names members of unions, and what was put into place."""
        return way_inside(self.data, loc)


def way_inside(data: Any, loc: At) -> At:
    """What of a way to an error is one in the data that was given: it also names members of unions, and what was put into place."""
    way: list[str | int] = []
    for part in loc:
        held = range(len(data)) if isinstance(data, list) else data if isinstance(data, dict) else ()
        if part in held:
            way.append(part)
            data = data[part]
    return tuple(way)


def read(path: Path | str, overrides: Sequence[str] = ()) -> Source:
    """Read a YAML file that holds one mapping.

    Args:
        path: The file, UTF-8.
        overrides: Such as ``"measure.behaviour=50"`` or ``"methods.pirate[0].lr=1e-3"``; values are YAML.

    Raises:
        SpecError: The file or an override cannot be read; the message names file and line, or the override.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; {nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    places: dict[At, str] = {}
    data = _parse(text, str(path), places)
    if data is None:
        raise SpecError(f"{path}: is empty; a study begins with 'study: <its name>'")
    if not isinstance(data, dict):
        raise SpecError(f"{path}: expected a mapping such as 'study: quick', got {describe(data)}")
    for override in overrides:
        _set(data, places, override)
    return Source(path, data, places)


def describe(value: Any) -> str:
    """Name a value and its type as a writer of YAML would."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:60]!r}..."
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
    return f"a {type(value).__name__}"


def _parse(text: str, name: str, places: dict[At, str]) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _convert(loader, node, (), name, places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        problem = "a tab; YAML is indented with spaces" if "'\\t'" in (error.problem or "") else error.problem
        raise SpecError(f"{name}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"{name}:{line}: not valid YAML: the character {chr(error.character)!r}") from None


def _convert(loader: _Loader, node: yaml.Node, at: At, name: str, places: dict[At, str]) -> Any:
    """A node as plain Python; notes the place of each value. SafeLoader alone would let the last of two equal keys win."""
    places.setdefault(at, f"{name}:{node.start_mark.line + 1}")
    if len(at) > _MAX_DEPTH:
        raise SpecError(f"{places[at]}: nested more than {_MAX_DEPTH} deep; does an alias contain itself?")
    if isinstance(node, yaml.SequenceNode):
        return [_convert(loader, item, (*at, i), name, places) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, place = loader.construct_object(key_node), f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise SpecError(f"{place}: a key must be text, got {describe(key)}; write it in quotes")
        if key in data:
            raise SpecError(f"{place}: {dotted((*at, key))}: stands here a second time, the first is at {places[*at, key]}")
        places[*at, key] = place
        data[key] = _convert(loader, value_node, (*at, key), name, places)
    return data


def _set(data: dict[str, Any], places: dict[At, str], override: str) -> None:
    """Apply ``a.b[0].c=value``. Absent mappings on the way are made, so that a default can be overridden."""
    name = f"--set {override}"
    path, equals, text = override.partition("=")
    if not equals or not _OVERRIDE.fullmatch(path):
        raise SpecError(f"{name}: expected a path and a value, such as measure.behaviour=50 or methods.pirate[0].steps=10")
    at: At = tuple(int(part[1:-1]) if part[0] == "[" else part for part in re.findall(r"[^.\[\]]+|\[\d+\]", path))
    here: Any = data
    for i, part in enumerate(at):
        way = f"{dotted(at[:i])!r}" if i else "the study"
        if isinstance(part, int):
            if not isinstance(here, list):
                raise SpecError(f"{name}: {way} is {describe(here)}, not a list")
            if part >= len(here):
                raise SpecError(f"{name}: there is no [{part}] in {way}, whose length is {len(here)}")
        elif not isinstance(here, dict):
            raise SpecError(f"{name}: {way} is {describe(here)}, not a mapping")
        elif i + 1 < len(at) and here.get(part) is None:
            if isinstance(at[i + 1], int):
                raise SpecError(f"{name}: there is no list {dotted(at[: i + 1])!r}; {did_you_mean(part, here)}")
            here[part] = {}
            places[at[: i + 1]] = name
        if i + 1 < len(at):
            here = here[part]
    for stale in [place for place in places if place[: len(at)] == at]:
        del places[stale]
    places[at] = name
    here[at[-1]] = _parse(text, name, {})


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _in_words(details: Mapping[str, Any]) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "spec":
        return str(details["msg"])
    if kind == "missing":
        return "required, but not there"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {describe(value)}"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        hint = f"; {did_you_mean(value, options)}" if isinstance(value, str) else ""
        return f"expected {' or '.join(options)}, got {describe(value)}{hint}"
    return f"{details['msg'].replace('Input should', 'should')}, got {describe(value)}"
