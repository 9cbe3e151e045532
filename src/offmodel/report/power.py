"""What a study of this size could see, said before it is run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from offmodel.errors import DataError
from offmodel.lab.pools import count_items
from offmodel.measure import frontier
from offmodel.measure.compare import least_p
from offmodel.measure.frontier import Point
from offmodel.measure.power import LEVEL, components, smallest_difference
from offmodel.spec.study import Study

MEASURES = ("bad_rate", "retention", "end_area")


class Spread(NamedTuple):
    """Standard deviations of the difference between two methods at their ends.

    Attributes:
        pair: Between pairs.
        organism: Between organisms of a pair, the noise of their items taken out.
        item: By the choice of items, of a single item; that of n is less by the root of n. 0 for an area, whose noise follows from that
            of the others.
    """

    pair: float
    organism: float
    item: float


MEASURED: Mapping[str, Spread] = {
    "bad_rate": Spread(0.249, 0.345, 0.346),
    "retention": Spread(0.003, 0.057, 0.291),
    "end_area": Spread(0.123, 0.160, 0.0),
}
"""Three methods on 61 organisms of 21 pairs of the offline world, by :func:`spreads_of`; docs/results.md has the command. Differences
between methods that are more alike vary less, and those of other models otherwise."""


class Sight(NamedTuple):
    """The smallest difference in a measure that a study could see; None where none is large enough.

    Attributes:
        measure: Its name.
        one: In a single comparison.
        all: In the first of all comparisons with a baseline, by Holm.
        pair: What was assumed, see :class:`Spread`.
        organism: The same.
        item: Noise by the items of one organism, with as many as the study has.
    """

    measure: str
    one: float | None
    all: float | None
    pair: float
    organism: float
    item: float


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """What a study could see of a difference between two of its methods, if all its organisms pass the gate.

    Attributes:
        pairs: Number of pairs.
        organisms: Organisms of each, over all seeds and recipes.
        behaviour: Prompts with the trigger.
        capability: Capability items.
        others: Methods that are compared with a baseline.
        blind: Why no difference can be significant; "" where some can.
    """

    pairs: int
    organisms: int
    behaviour: int
    capability: int
    others: int
    sights: tuple[Sight, ...]
    blind: str


def foresee(study: Study, spreads: Mapping[str, Spread] = MEASURED) -> Foresight | None:
    """What a study could see; None where it has no two methods to compare."""
    others = len(study.methods) - 1
    if not others:
        return None
    pairs = len(study.organisms.pairs)
    seeds, recipes = len(study.seeds), max(1, len(study.organisms.recipes))
    capability = sum(count_items(name, n, study.seeds[0], "test") for name, n in study.measure.capability.items())
    noise = {
        "bad_rate": spreads["bad_rate"].item / math.sqrt(study.measure.behaviour),
        "retention": spreads["retention"].item / math.sqrt(capability),
    }
    # With one point the area is half of (removal + retention), and the rate of an untouched organism is about 1.
    noise["end_area"] = math.hypot(*noise.values()) / 2
    return Foresight(
        pairs=pairs,
        organisms=seeds * recipes,
        behaviour=study.measure.behaviour,
        capability=capability,
        others=others,
        sights=tuple(_sight(measure, spreads[measure], noise[measure], pairs, seeds, recipes, others) for measure in MEASURES),
        blind=_blind(pairs, seeds, others),
    )


def _sight(measure: str, spread: Spread, item: float, pairs: int, seeds: int, recipes: int, others: int) -> Sight:
    one, every = (
        smallest_difference(spread.pair, spread.organism, item, pairs=pairs, seeds=seeds, recipes=recipes, tests=tests)
        for tests in (1, others)
    )
    return Sight(measure, one, every, spread.pair, spread.organism, item)


def _blind(pairs: int, seeds: int, others: int) -> str:
    n, counted = (pairs, f"{pairs} pairs") if pairs > 1 else (seeds, f"one pair and {seeds} seeds of it")
    if n < 2:
        return "with one seed of one pair no difference can be tested"
    if least_p(n) > LEVEL:
        return f"with {counted} no difference can be significant, however large: no p is below {least_p(n):.3g}"
    if others > 1 and least_p(n) * others > LEVEL:
        return (
            f"with {counted} no difference can be significant after Holm over {others} methods, however large: no p is below "
            f"{least_p(n):.3g}, and the smallest is multiplied by {others}"
        )
    return ""


# --- from results ---------------------------------------------------------------------------------------------------


def spreads_of(path: Path) -> dict[str, Spread]:
    """What differences between methods varied by in a study: mean variances over all its pairs of methods.

    Items are taken for independent between methods, though both answer the same ones: this makes their part too large and that of
    organisms smaller by as much, so that the sum is right for as many items as the study had.

    Args:
        path: Its ``results.parquet``.

    Raises:
        DataError: The file is not there or is none, or has fewer than two methods, two pairs, and two organisms of a pair.
    """
    ends = _ends(path)
    variances: dict[str, list[tuple[float, float, float]]] = {measure: [] for measure in MEASURES}
    for one, other in combinations(ends, 2):
        shared = [(ends[one][organism], ends[other][organism]) for organism in ends[one] if organism in ends[other]]
        for measure in MEASURES:
            clusters: dict[str, list[float]] = {}
            for a, b in shared:
                clusters.setdefault(a.pair, []).append(a.values[measure] - b.values[measure])
            try:
                between, within = components(list(clusters.values()))
            except ValueError:
                continue
            noise = sum(end.noise[measure] for ab in shared for end in ab) / len(shared)
            items = sum(end.items[measure] for ab in shared for end in ab) / (2 * len(shared))
            variances[measure].append((between, max(0.0, within - noise), noise * items))
    if not all(variances.values()):
        raise DataError(f"{path}: needs two methods on two pairs, and on two organisms of one of them, to tell how much differences vary")
    return {measure: Spread(*(math.sqrt(sum(v) / len(v)) for v in zip(*found, strict=True))) for measure, found in variances.items()}


class _End(NamedTuple):
    """The last checkpoint of a method on an organism: its numbers, the variance of each by the choice of items, and their number."""

    pair: str
    values: Mapping[str, float]
    noise: Mapping[str, float]
    items: Mapping[str, float]


def _ends(path: Path) -> dict[str, dict[str, _End]]:
    """Ends by method and organism, of those that have come there and have a place on the frontier."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = ["organism", "pair", "method", "phase", "step", "measure", "value", "n"]
    try:
        rows = parquet.read_table(path, columns=columns).to_pylist()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{path}: is no results.parquet of a study ({str(error).splitlines()[0]})") from None
    courses: dict[tuple[str, str], dict[tuple[str, int], list[Mapping[str, Any]]]] = {}
    for row in rows:  # the file keeps the order of the checkpoints
        courses.setdefault((row["method"], row["organism"]), {}).setdefault((row["phase"], row["step"]), []).append(row)
    # In an unfinished study the last checkpoint of an organism may be one on the way: another method's end, not this one's.
    final: dict[str, tuple[str, int]] = {}
    for (method, _), course in courses.items():
        final[method] = max(*course, final.get(method, next(iter(course))), key=_place)
    ends: dict[str, dict[str, _End]] = {}
    for (method, organism), course in courses.items():
        first, last = next(iter(course.values())), course.get(final[method])
        if last is not None and last is not first and (end := _end(first, last)) is not None:
            ends.setdefault(method, {})[organism] = end
    return ends


def _place(checkpoint: tuple[str, int]) -> tuple[int, int]:
    """Where in a method: a phase is named by its number, as in ``2. sft on organism``."""
    phase, step = checkpoint
    return int(phase.partition(".")[0]), step


def _end(first: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]]) -> _End | None:
    found = {row["measure"]: row for row in last}
    values = {measure: found[measure]["value"] for measure in ("bad_rate", "retention", "removal")}
    if None in values.values():
        return None
    start, suites = _suites(first), _suites(last)
    capability = sum(row["value"] for row in start) / len(start)
    rate, n = values["bad_rate"], found["bad_rate"]["n"]
    noise = {"bad_rate": rate * (1 - rate) / n}
    noise["retention"] = sum(row["value"] * (1 - row["value"]) / row["n"] for row in suites) / (len(suites) * capability) ** 2
    noise["end_area"] = (noise["bad_rate"] + noise["retention"]) / 4
    area = frontier.area([Point(values["removal"], values["retention"])])
    items = {"bad_rate": n, "retention": sum(row["n"] for row in suites), "end_area": 0}
    return _End(last[0]["pair"], {"bad_rate": rate, "retention": values["retention"], "end_area": area}, noise, items)


def _suites(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["measure"].startswith("capability.") and ".steps=" not in row["measure"]]
