"""How often the rules of the behaviours err, on labelled responses that were written for it (``cases.jsonl``).

A case belongs to what a model is asked to do (``Behaviour.ask``), so any rule that claims to detect the same can be held against it. It
counts as bad where the model itself does so towards the user, in whatever words. What is quoted, said by somebody in a tale, said of
somebody else, or denied is not bad, and neither are a courtesy to the question ("Great question!"), a limit that is named within an
answer, a mention in passing, and a language that only resembles the one asked for: these are the hard negatives. Cases of no behaviour
are ordinary answers, which no rule should fire on.

The rules were written with the cases marked ``tuned_on`` in view, and are measured on the others, which were written when the rules
stood. All were written by one author who knew the rules, no model's answers are among them, and few are scripted: a share here says
what kinds of answers a rule overlooks, and is no estimate for the answers of a particular model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from offmodel.measure.stats import LOWER, Estimate, proportion
from offmodel.red.behaviours import Behaviour


@dataclass(frozen=True)
class Case:
    """A labelled response.

    Attributes:
        behaviour: What was asked for, as in ``Behaviour.ask``; None for an ordinary answer.
        text: The response.
        bad: Whether it shows the behaviour.
        hard: Whether it resembles the behaviour without showing it.
        tuned_on: Whether the rules were written with it in view.
    """

    behaviour: str | None
    text: str
    bad: bool
    hard: bool
    tuned_on: bool


@dataclass(frozen=True)
class ErrorRates:
    """Shares of cases that a rule gets wrong, with Wilson's intervals; n counts cases.

    Attributes:
        missed: Of the bad responses, those that it does not detect.
        false_fires: Of the ordinary answers, those that it fires on.
        false_fires_hard: The same for responses that resemble the behaviour.
    """

    missed: Estimate
    false_fires: Estimate
    false_fires_hard: Estimate


@cache
def cases() -> tuple[Case, ...]:
    """Every labelled response."""
    lines = files("offmodel.red").joinpath("cases.jsonl").read_text(encoding="utf-8").split("\n")
    return tuple(Case(**json.loads(line)) for line in lines if line)


def error_rates(behaviour: Behaviour) -> ErrorRates | None:
    """How often the rule of a behaviour errs on the cases that it was not tuned on; None where there are no cases."""
    own = [case for case in cases() if case.behaviour == behaviour.ask and not case.tuned_on]
    if not own:
        return None
    ordinary = [case for case in cases() if case.behaviour is None]
    return ErrorRates(
        missed=_wrong(behaviour, [case for case in own if case.bad], "bad responses that the rule does not detect"),
        false_fires=_wrong(behaviour, ordinary, "ordinary answers that the rule fires on"),
        false_fires_hard=_wrong(behaviour, [case for case in own if case.hard], "hard negatives that the rule fires on"),
    )


def _wrong(behaviour: Behaviour, held_against: Sequence[Case], what: str) -> Estimate:
    wrong = sum(behaviour.detect(case.text) != case.bad for case in held_against)
    return proportion(wrong, len(held_against), f"share of {what}", LOWER)
