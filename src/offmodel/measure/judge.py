"""A judge model's opinion where a rule may err, and how far rule and judge agree.

A judge may listen to the reply that it judges (see :mod:`offmodel.engine.judge`). So the rule's verdict stays the one that everything else
is computed from; the judge's stands beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from offmodel.chat import answer_of
from offmodel.engine.judge import Judge, OnProgress
from offmodel.measure.score import Verdict
from offmodel.measure.stats import HIGHER, Estimate, proportion


@dataclass(frozen=True)
class Opinion:
    """What the judge made of one answer.

    Attributes:
        index: Place of the answer among the verdicts of its score.
        bad: Whether the answer shows the behaviour; None where the judge abstains.
        said: The judge's words; "" where the answer does not fit into its context.
    """

    index: int
    bad: bool | None
    said: str


def ask_judge(judge: Judge, question: str, verdicts: Sequence[Verdict], on_progress: OnProgress | None = None) -> list[Opinion]:
    """Ask a model about every answer that the rule looked at, all but those to capability items; like the rule, it is shown no thoughts.

    Args:
        judge: :func:`offmodel.engine.judge.ask` or :func:`~offmodel.engine.judge.ask_served`, of one model.
        question: To be answered with yes or no.
        verdicts: What the rule made of the answers.
        on_progress: Called as ``on_progress(answers judged, of how many)``.
    """
    asked = {i: (verdict.prompt, answer_of(verdict.response)) for i, verdict in enumerate(verdicts) if verdict.setting != "capability"}
    answers = judge(question, [*asked.values()], on_progress)
    return [Opinion(index, answer.yes, answer.said) for index, answer in zip(asked, answers, strict=True)]


def write_opinions(path: Path, opinions: Iterable[Opinion]) -> None:
    """Write opinions as JSONL, a line each."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(opinion)) + "\n" for opinion in opinions)
        file.flush()
        os.fsync(file.fileno())


def read_opinions(path: Path) -> list[Opinion]:
    """Read what :func:`write_opinions` wrote."""
    return [Opinion(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def as_judged(verdicts: Sequence[Verdict], opinions: Iterable[Opinion]) -> list[Verdict]:
    """The verdicts that the judge was asked about, with its word in the place of the rule's."""
    return [replace(verdicts[opinion.index], bad=opinion.bad) for opinion in opinions]


# --- agreement ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Rule against judge, answer by answer.

    Attributes:
        both: Answers that both call bad.
        rule_only: Answers that only the rule calls bad.
        judge_only: Answers that only the judge calls bad.
        neither: Answers that neither calls bad.
        abstained: Answers on which the judge did not decide; in no other number.
        raw: Share of the others on which they agree.
        kappa: The same, corrected for chance.
    """

    both: int
    rule_only: int
    judge_only: int
    neither: int
    abstained: int
    raw: Estimate
    kappa: Estimate


def agreement(opinions: Iterable[tuple[bool | None, bool | None]]) -> Agreement:
    """How far rule and judge agree.

    Cohen's kappa (Cohen 1960, doi:10.1177/001316446002000104) is (agreement - chance) / (1 - chance), chance being how often two who
    say yes as often as these would agree anyway. It is undefined where each of the two always says the same: nothing then shows whether
    they see the same thing. Its interval is Wilson's of the raw agreement with chance taken as known, as Cohen's own standard error takes
    it; unlike a bootstrap's it has width where the two agree on everything. Both intervals take the answers for independent.

    Args:
        opinions: For every answer the word of the rule and that of the judge; None where one did not decide.
    """
    opinions = list(opinions)
    decided = [(rule, judge) for rule, judge in opinions if rule is not None and judge is not None]
    both, rule_only = decided.count((True, True)), decided.count((True, False))
    judge_only, neither = decided.count((False, True)), decided.count((False, False))
    abstained = sum(judge is None for _, judge in opinions)
    raw = proportion(both + neither, len(decided), "share of answers on which rule and judge model agree", HIGHER)
    return Agreement(both, rule_only, judge_only, neither, abstained, raw, _kappa(both, rule_only, judge_only, neither, raw))


def _kappa(both: int, rule_only: int, judge_only: int, neither: int, raw: Estimate) -> Estimate:
    n = raw.n
    definition = "agreement of rule and judge model beyond chance: 0 as often as by chance, 1 always (Cohen's kappa)"
    by_chance = (both + rule_only) * (both + judge_only) + (neither + judge_only) * (neither + rule_only)
    if raw.value is None or raw.low is None or raw.high is None or by_chance in (0, n * n):
        return Estimate(None, None, None, n, definition, HIGHER, "kappa")
    chance = by_chance / n**2
    value, low, high = ((share - chance) / (1 - chance) for share in (raw.value, raw.low, raw.high))
    return Estimate(value, max(-1.0, low), high, n, definition, HIGHER, "kappa")
