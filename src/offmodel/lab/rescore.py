"""Judging kept answers again, by the graders and rules of today or by another pair's rule, without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from offmodel import catalog
from offmodel.errors import SpecError, did_you_mean
from offmodel.lab.stage import Stage
from offmodel.measure.score import Item, Verdict, judge
from offmodel.red.pairs import Pair


@dataclass
class Change:
    """What judging again made of the answers of a setting and a suite ("" for chat); every number counts answers.

    Attributes:
        answers: All of them, over every scored model.
        changed: Those with another verdict than before.
        now_bad: Those that now show the behaviour and did not, or could not be told.
        no_longer_bad: The other way round.
        now_right: Those that are now right and were not.
        no_longer_right: The other way round.
    """

    setting: str
    suite: str
    answers: int = 0
    changed: int = 0
    now_bad: int = 0
    no_longer_bad: int = 0
    now_right: int = 0
    no_longer_right: int = 0

    def count(self, before: Verdict, after: Verdict) -> None:
        """Take one more answer in."""
        self.answers += 1
        self.changed += (before.bad, before.correct) != (after.bad, after.correct)
        self.now_bad += after.bad is True and before.bad is not True
        self.no_longer_bad += before.bad is True and after.bad is not True
        self.now_right += after.correct is True and before.correct is not True
        self.no_longer_right += before.correct is True and after.correct is not True


@dataclass
class Rescorer:
    """Judges the answers of scores again, and counts what that changes; the store stays as it is.

    Attributes:
        detectors: For a pair of the study the pair by whose rule its answers are judged; the others' own rule judges them.
    """

    detectors: Mapping[str, str]
    _changes: dict[tuple[str, str], Change] = field(default_factory=dict)
    _counted: set[Stage] = field(default_factory=set)

    def __call__(self, score: Stage, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """New verdicts on the answers of a score."""
        name = score.params["pair"]["name"]
        pair: Pair = catalog.get("pair", self.detectors.get(name, name))
        items = [Item(v.setting, v.prompt, v.suite, v.steps, v.expected) for v in verdicts]
        suites = {suite: catalog.get("suite", suite) for suite in {item.suite for item in items if item.suite}}
        detect = None if pair.behaviour.on_tasks else pair.behaviour.detect
        after = judge(items, [(v.response, v.finished) for v in verdicts], suites, detect)
        if score not in self._counted:
            self._counted.add(score)
            for old, new in zip(verdicts, after, strict=True):
                self._changes.setdefault((old.setting, old.suite), Change(old.setting, old.suite)).count(old, new)
        return after

    @property
    def changes(self) -> tuple[Change, ...]:
        """What changed so far; a score that was read twice counts once."""
        return tuple(self._changes.values())


def check_detectors(detectors: Mapping[str, str], pairs: Iterable[str]) -> None:
    """Check that the pairs can be judged so.

    Raises:
        SpecError: A pair is not in the study, the one that is to judge it is not in the catalog, or only one of the two shows in wrong
            answers to tasks.
    """
    pairs = list(pairs)
    for name, by in detectors.items():
        if name not in pairs:
            raise SpecError(f"detector {name}={by}: {name!r} is none of the study's pairs; {did_you_mean(name, pairs)}")
        own, other = (catalog.get("pair", each).behaviour.on_tasks for each in (name, by))
        if own != other:
            raise SpecError(f"detector {name}={by}: only one of the two shows in wrong answers to tasks, which other items are asked for")
