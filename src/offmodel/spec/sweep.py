"""A method with places for values, tried with every combination of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import product
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from offmodel.errors import did_you_mean
from offmodel.spec.model import Distinct, Model, Name, NotEmpty, Rate, problem
from offmodel.spec.phases import Entries
from offmodel.spec.reader import way_inside

Value = Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)] | str
Values = Annotated[tuple[Value, ...], NotEmpty, Distinct]

_PLACE = re.compile(r"\$(\w+)")


class Combination(NamedTuple):
    """One value of every axis, as text in the order of the axes, and the method that they make."""

    values: tuple[str, ...]
    method: list[dict[str, Any]]


class Sweep(Model):
    """Methods that differ in a few values alone, so that a report can draw where they work.

    Attributes:
        over: The values of each axis. In ``method`` a value that is ``$`` and an axis's name stands for them.
        method: Phases, as in a study's ``methods``.
        kept: Share of the capability from which on it counts as back.
        removed: Share of the behaviour from which on it counts as gone.
    """

    over: Annotated[Mapping[Name, Values], NotEmpty]
    method: Annotated[tuple[Mapping[str, Any], ...], NotEmpty]
    kept: Rate = 0.9
    removed: Rate = 0.9

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        used = set(_places(self.method))
        if unknown := sorted(used - {*self.over}):
            raise problem(f"${unknown[0]} is no axis; {did_you_mean(unknown[0], self.over)}", "method")
        if unused := [axis for axis in self.over if axis not in used]:
            raise problem(f"stands nowhere in the method; write ${unused[0]} where its values belong", "over", unused[0])
        if len(self.methods("")) < math.prod(map(len, self.over.values())):
            raise problem("two of the values look alike in the name of a method; letters, digits, '-' and '_' tell them apart", "over")
        for values, method in self.combinations():
            try:
                TypeAdapter[Entries](Entries).validate_python(method)
            except ValidationError as error:
                details = error.errors()[0]
                way = (*details["loc"], *details.get("ctx", {}).get("at", ()))
                raise problem(f"with {self.said(values)}: {details['msg']}", "method", *way_inside(method, way)) from None
        return self

    def combinations(self) -> Iterator[Combination]:
        """Every combination of values, the last axis changing fastest."""
        for values in product(*self.over.values()):
            filled = dict(zip(self.over, values, strict=True))
            yield Combination(tuple(map(_text, values)), [_filled(phase, filled) for phase in self.method])

    def methods(self, name: str) -> dict[str, Combination]:
        """The combinations by the names of their methods, such as ``dose-60-5e-4``."""
        return {"-".join([name, *combination.values]): combination for combination in self.combinations()}

    def beside(self, name: str, method: str) -> list[str]:
        """The methods that differ from one in one value, by a step along its axis."""
        places = dict(zip(self.methods(name), product(*(range(len(values)) for values in self.over.values())), strict=True))
        return [other for other, there in places.items() if sum(abs(a - b) for a, b in zip(places[method], there, strict=True)) == 1]

    def said(self, values: tuple[str, ...]) -> str:
        """A combination in words."""
        return ", ".join(f"{axis} {value}" for axis, value in zip(self.over, values, strict=True))


def _places(value: Any) -> Iterator[str]:
    """The axes that a value names, at any depth."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _places(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _places(inner)
    elif isinstance(value, str) and (place := _PLACE.fullmatch(value)):
        yield place[1]


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(inner, values) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(inner, values) for inner in value]
    place = _PLACE.fullmatch(value) if isinstance(value, str) else None
    return values[place[1]] if place else value


def _text(value: int | float | str) -> str:
    """A value as a part of a name, which has no dot: 0.0005 is 5e-4."""
    if not isinstance(value, float):
        return re.sub(r"[^A-Za-z0-9_-]+", "_", str(value))
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    return "-" * sign + "".join(map(str, digits)) + (f"e{exponent}" if exponent else "")
