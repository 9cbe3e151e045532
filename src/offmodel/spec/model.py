"""What all parts of a study share: strict scalars, and a frozen model that knows its own keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from offmodel.errors import did_you_mean

# Strict: "30" in quotes, 30.0 for a count, true for 1, or 1 for true are slips of the pen, and say so.
Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(strict=True, gt=0)]
NonNegative = Annotated[float, Field(strict=True, ge=0)]
Rate = Annotated[float, Field(strict=True, ge=0, le=1)]
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]


def problem(text: str, *at: str | int) -> PydanticCustomError:
    """An error in our words; ``at`` leads from the value under validation to the culprit inside of it."""
    return PydanticCustomError("spec", "{text}", {"text": text, "at": at})


def no_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a value that stands there twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise problem(f"{value!r} stands here twice", i)
    return values


def not_empty(values: Any) -> Any:
    """Refuse nothing."""
    # Not Field(min_length=1), which counts only the entries that are valid, and so calls a list with a slip in it empty.
    if not values:
        raise problem("is empty; at least one is needed")
    return values


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", text):
        raise problem(f"{text!r} cannot be a name: letters, digits, '-' and '_' can, and a letter or digit comes first")
    return text


Distinct = AfterValidator(no_repeats)
NotEmpty = AfterValidator(not_empty)
Name = Annotated[str, AfterValidator(_name)]
"""A name that can be a folder and a part of ``--set a.b=c``."""


class Model(BaseModel):
    """Base of every part of a study: frozen, and an unknown key is an error that names the nearest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and (unknown := [key for key in data if key not in cls.known()]):
            raise problem(f"unknown key; {did_you_mean(str(unknown[0]), cls.known())}", unknown[0])
        return data

    @classmethod
    def known(cls) -> list[str]:
        """What may be given."""
        return list(cls.model_fields)
