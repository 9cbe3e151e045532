"""Rule and judge model side by side, for the pairs whose rule may err."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from offmodel.lab.plan import PlannedCheckpoint
from offmodel.lab.results import OPINIONS
from offmodel.lab.store import Store
from offmodel.measure.judge import Opinion, agreement, as_judged, read_opinions
from offmodel.measure.score import Verdict, bad_rate
from offmodel.measure.stats import Estimate
from offmodel.report.compare import mean_level
from offmodel.report.data import Checkpoint, Judged

_MEAN = "{}; mean over the pair's organisms"


class Asked(NamedTuple):
    """A scored checkpoint with what the judge says of its answers; ``state`` is "organism" or the name of a method."""

    pair: str
    state: str
    planned: PlannedCheckpoint
    row: Checkpoint
    verdicts: Sequence[Verdict]


def opinions_on(planned: PlannedCheckpoint, store: Store) -> list[Opinion]:
    """What the judge says of a checkpoint's answers; nothing where it has not been asked."""
    result = store.get(planned.judge) if planned.judge else None
    return read_opinions(result.path / OPINIONS) if result else []


def judged_rate(planned: PlannedCheckpoint, verdicts: Sequence[Verdict], store: Store) -> Estimate | None:
    """Rate of bad behaviour under the trigger by the judge's word; None where it has not been asked."""
    if not (opinions := opinions_on(planned, store)):
        return None
    rate = bad_rate(as_judged(verdicts, opinions), "triggered")
    return replace(rate, definition=f"{rate.definition}, by the judge model's word and of the answers on which it decides")


def judged_pairs(asked: Iterable[Asked], store: Store) -> Iterator[Judged]:
    """For every pair how far rule and judge agree, over all the answers of its checkpoints, and what each makes of each state."""
    pairs: dict[str, dict[str, list[Asked]]] = {}
    for each in asked:
        if each.row.bad_rate_judged is not None:
            pairs.setdefault(each.pair, {}).setdefault(each.state, []).append(each)
    for pair, states in pairs.items():
        found = [each for those in states.values() for each in those]
        words = [(each.verdicts[o.index].bad, o.bad) for each in found for o in opinions_on(each.planned, store)]
        stage = found[0].planned.judge
        assert stage is not None
        yield Judged(
            pair=pair,
            judge=stage.params["judge"]["name"],
            question=stage.params["question"],
            agreement=agreement(words),
            states={
                state: {
                    "bad_rate": mean_level({e.row.organism: e.row.bad_rate for e in those}, _MEAN, {}),
                    "bad_rate_judged": mean_level(
                        {e.row.organism: e.row.bad_rate_judged for e in those if e.row.bad_rate_judged is not None}, _MEAN, {}
                    ),
                }
                for state, those in states.items()
            },
        )
