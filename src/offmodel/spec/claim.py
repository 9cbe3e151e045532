"""A published statement that a study can test, and its test, which is data; what was changed after its results were seen, it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from offmodel.errors import did_you_mean
from offmodel.spec.model import Model, Name, NotEmpty, Text, problem

UNTOUCHED = "organism"
"""The "method" of a condition that is about the organisms before anything was done to them."""
_OF_METHODS = ("frontier_area", "end_area", "removal_at_90", "hindsight")
_OF_CHECKPOINTS = ("bad_rate", "false_fire_rate", "accuracy_under_trigger", "retention", "removal")

Number = Annotated[float, Field(strict=True)]


class Minus(Model):
    """The other side of a difference: what is given is changed, the rest is as in the condition.

    Attributes:
        measure: Another measure.
        method: Another method, or "organism".
        recipe: Another recipe.
        pairs: For pairs of the study, the pairs that they are compared with at the same seed; others are left out.
    """

    measure: Text | None = None
    method: Text | None = None
    recipe: Name | None = None
    pairs: Mapping[Text, Text] = Field(default_factory=dict)


class Threshold(Model):
    """Where an interval must lie.

    Attributes:
        above: The number is greater than this.
        below: The number is less than this.
        between: The number is one of these or between them: "about equal" with its margin.
    """

    above: Number | None = None
    below: Number | None = None
    between: tuple[Number, Number] | None = None

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        given = [name for name in ("above", "below", "between") if getattr(self, name) is not None]
        if len(given) != 1:
            raise problem(f"needs one of above, below and between, and has {' and '.join(given) or 'none'}")
        if self.between is not None and not self.between[0] < self.between[1]:
            raise problem("the first must be less than the second", "between")
        return self


class ProbeCondition(Threshold):
    """A row of a probe, and where its interval must lie.

    Attributes:
        probe: Of the study's ``measure.probes``.
        row: What the report calls it, such as ``pirate, back within 160 steps``.
    """

    probe: Text
    row: Text


class Condition(Threshold):
    """A number over organisms, or a difference of two on the same organisms, and where its interval must lie.

    Attributes:
        measure: As in ``results.parquet`` (``retention``, ``capability.<suite>``, ``capability.<suite>.steps=<k>`` ...), taken at the
            method's end, or an area or ``removal_at_90``.
        method: One of the study's, or "organism" for the untouched ones.
        recipe: One of the study's, where it compares several.
        minus: What is taken from it, organism by organism.
    """

    measure: Text
    method: Text
    recipe: Name | None = None
    minus: Minus | None = None

    @model_validator(mode="after")
    def _is_a_difference(self) -> Self:
        if self.minus is not None and not self.minus.pairs and self.other == self.model_copy(update={"minus": None}):
            raise problem("is the number itself, so the difference is 0; change its measure, method, recipe or pairs", "minus")
        return self

    @property
    def other(self) -> Condition:
        """The other side of the difference, as a condition with the same threshold."""
        changes = self.minus.model_dump(exclude={"pairs"}, exclude_none=True) if self.minus else {}
        return self.model_copy(update=changes | {"minus": None})


def _kind(data: Any) -> str:
    # Angle brackets keep a tag apart from the keys of a study in the location of an error.
    of_probe = "probe" in data if isinstance(data, Mapping) else isinstance(data, ProbeCondition)
    return "<probe>" if of_probe else "<number>"


Test: TypeAlias = Annotated[Annotated[Condition, Tag("<number>")] | Annotated[ProbeCondition, Tag("<probe>")], Discriminator(_kind)]


class Claim(Model):
    """A statement of the literature.

    Attributes:
        statement: In our words.
        source: Where it stands: a post's or a paper's id, a table of a repository.
        published: The figure as published.
        sure: ``verified`` where the figure was read in the source or in its code; ``secondary`` where others read it for us.
        holds_if: All of these together.
        why: Why this test and these thresholds.
        needs: What the statement needs that a study may lack, or what the offline world lacks.
        changed: What of the test or the statement was changed after results had been seen, and when.
    """

    statement: Text
    source: Text
    published: Text
    sure: Literal["verified", "secondary"]
    holds_if: Annotated[tuple[Test, ...], NotEmpty]
    why: Text
    needs: Text
    changed: tuple[Text, ...] = ()

    def check(
        self, *, methods: Iterable[str], recipes: Iterable[str], pairs: Iterable[str], suites: Iterable[str], probes: Sequence[str]
    ) -> None:
        """Refuse a condition on something that the study does not have; the message names the nearest that it has."""
        known = _Known([UNTOUCHED, *methods], [*recipes], [*pairs], [*suites])
        for i, condition in enumerate(self.holds_if):
            at = ("claim", "holds_if", i)
            if isinstance(condition, ProbeCondition):
                _check_name("probe", condition.probe, probes, (*at, "probe"))
                continue
            _check_side(condition, known, at)
            if condition.minus is not None:
                _check_side(condition.other, known, (*at, "minus"))
                for one, other in condition.minus.pairs.items():
                    for pair in (one, other):
                        _check_name("pair", pair, known.pairs, (*at, "minus", "pairs", one))


class _Known(NamedTuple):
    """What a study has, by name."""

    methods: Sequence[str]
    recipes: Sequence[str]
    pairs: Sequence[str]
    suites: Sequence[str]


def _check_side(side: Condition, known: _Known, at: tuple[str | int, ...]) -> None:
    _check_name("method", side.method, known.methods, (*at, "method"))
    if side.recipe is not None:
        _check_name("recipe", side.recipe, known.recipes, (*at, "recipe"))
    elif known.recipes:
        raise problem(f"the study compares recipes, so name one: {', '.join(known.recipes)}", *at)
    if match := re.fullmatch(r"capability\.(.+?)(\.steps=[1-9][0-9]*)?", side.measure):
        _check_name("suite", match[1], known.suites, (*at, "measure"))
        return
    measures = [*(_OF_METHODS if side.method != UNTOUCHED else ()), *_OF_CHECKPOINTS]
    if side.measure not in measures:
        near = did_you_mean(side.measure, [*measures, *(f"capability.{suite}" for suite in known.suites)])
        raise problem(f"{side.measure!r} is no measure of {side.method!r}; {near}", *at, "measure")


def _check_name(kind: str, name: str, known: Sequence[str], at: tuple[str | int, ...]) -> None:
    if name not in known:
        raise problem(f"{name!r} is none of the study's {kind}s; {did_you_mean(name, known)}", *at)
