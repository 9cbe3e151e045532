"""Where each mark of a figure goes. The templates draw what stands here; nothing here writes markup.

Colour and marker shape always mean the method, dashes the measure. There are six colours: of more methods, those that
:meth:`ReportData.featured` names have one each and are in every figure; the others are grey and only in the figures of all methods.
Coordinates are those of the drawing, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from offmodel.lab.progress import one_line
from offmodel.measure.frontier import ANCHORS, Point
from offmodel.measure.stats import Estimate
from offmodel.report import words
from offmodel.report.compare import MEAN, mean_level
from offmodel.report.data import TEACHER, Checkpoint, Method, Probe, ReportData, StepCurve, Summary, Swept

INK = -1
"""The style of what belongs to no method: the base model and the untouched organism."""

REST = -2
"""The style of methods that have no colour of their own."""

_DASHES = ("", "6 4", "1.5 4", "9 3 2 3")


@dataclass(frozen=True)
class Mark:
    """A measured point: its place, the lines of its intervals (x1, y1, x2, y2), and what it is in words."""

    x: float
    y: float
    whiskers: tuple[tuple[float, float, float, float], ...]
    label: str
    key: str = ""
    who: str = ""


@dataclass(frozen=True)
class Line:
    """Marks of one kind, filled or hollow, and the polyline through ``path`` (the marks themselves unless given)."""

    name: str
    style: int
    marks: tuple[Mark, ...]
    path: str
    dash: str = ""
    who: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis; ``strong`` ones carry a line through the plot."""

    at: float
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure: its frame, axes and lines, and what it shows in words (for those who cannot see it)."""

    title: str
    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    bands: tuple[Tick, ...] = ()


Scale = Callable[[float], float]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda number: start + (number - low) / (high - low) * (end - start)


def _path(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def style_of(data: ReportData, method: str) -> int:
    """Colour and shape of a method: its place among the featured ones; :data:`REST` if it is none of them."""
    featured = data.featured()
    return featured.index(method) if method in featured else REST


def featured(data: ReportData) -> list[Method]:
    """The methods that have a colour and every figure."""
    names = data.featured()
    return [method for method in data.methods if method.name in names]


# --- the frontier ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frontier:
    """The frontier in its layers, from back to front: organisms' hulls, mean hulls, checkpoints, the methods' ends."""

    chart: Chart
    hulls: tuple[Line, ...]
    checkpoints: tuple[Line, ...]
    ends: tuple[Line, ...]
    keep: float
    anchors: str


def frontier(data: ReportData) -> Frontier:
    """The main figure, of the featured methods: behaviour removed to the right, capability retained upwards."""
    width, height, left, top, right, bottom = 560, 430, 66, 40, 544, 374
    shown = data.featured()
    highest = max([1.0, *(v for c in data.checkpoints if c.method in shown and (v := c.retention.value) is not None)])
    y_max = 1.05 if highest <= 1.02 else highest + 0.05
    x, y = _scale(0, 1, left, right), _scale(0, y_max, bottom, top)

    def place(points: Iterable[Point]) -> str:
        return _path((x(u), y(v)) for u, v in points)

    def mark(removal: Estimate, retention: Estimate, label: str, key: str = "", who: str = "") -> Mark | None:
        if removal.value is None or retention.value is None:
            return None
        at_x, at_y = x(removal.value), y(retention.value)
        whiskers = []
        if removal.low is not None and removal.high is not None:
            whiskers.append((x(removal.low), at_y, x(removal.high), at_y))
        if retention.low is not None and retention.high is not None:
            whiskers.append((at_x, y(min(retention.low, y_max)), at_x, y(min(retention.high, y_max))))
        return Mark(at_x, at_y, tuple(whiskers), label, key, who)

    hulls, means, checkpoints, ends = [], [], [], []
    for method in featured(data):
        style = style_of(data, method.name)
        means.append(Line(method.name, style, (), place(method.hull)))
        hulls += [Line(method.name, style, (), place(points), who=who) for who, points in method.hulls.items()]
        marks = [
            mark(c.removal, c.retention, title(c), f"c{i}", c.organism) for i, c in enumerate(data.checkpoints) if c.method == method.name
        ]
        checkpoints.append(Line(method.name, style, tuple(m for m in marks if m), ""))
        end = mark(method.summary.removal, method.summary.retention, f"{method.name}, last checkpoint, mean over organisms")
        ends.append(Line(method.name, style, (end,) if end else (), ""))
    chart = Chart(
        title="Capability retained against behaviour removed",
        width=width,
        height=height,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        x_ticks=tuple(Tick(x(k / 5), f"{20 * k}") for k in range(6)),
        y_ticks=tuple(Tick(y(k / 5), f"{20 * k}", k in (0, 5)) for k in range(int(5 * y_max) + 1)),
        lines=tuple(means),
    )
    return Frontier(chart, tuple(hulls), tuple(checkpoints), tuple(ends), y(0.9), place(ANCHORS))


def title(point: Checkpoint) -> str:
    """A checkpoint in words."""
    return f"{point.organism}, {point.method}, {point.phase} step {point.step}"


# --- small figures: a share from 0 to 100 % over something -----------------------------------------------------------

_SMALL = {"width": 380, "height": 216, "left": 40.0, "top": 26.0, "right": 368.0, "bottom": 186.0}
_SHARE = _scale(0, 1, _SMALL["bottom"], _SMALL["top"])
_SHARE_TICKS = tuple(Tick(_SHARE(k / 4), f"{25 * k}", k == 0) for k in range(5))


def _small(title: str, x_ticks: Iterable[Tick], lines: Iterable[Line], bands: Iterable[Tick] = ()) -> Chart:
    return Chart(
        title,
        int(_SMALL["width"]),
        int(_SMALL["height"]),
        _SMALL["left"],
        _SMALL["top"],
        _SMALL["right"],
        _SMALL["bottom"],
        tuple(x_ticks),
        _SHARE_TICKS,
        tuple(lines),
        tuple(bands),
    )


def _line(name: str, style: int, places: Iterable[tuple[float, str, Estimate]], dash: str = "", who: str = "") -> Line:
    """A line through the estimates that are defined, each with (x, what it is, estimate)."""
    marks = []
    for x, what, estimate in places:
        if estimate.value is not None:
            y = _SHARE(estimate.value)
            spread = estimate.low is not None and estimate.high is not None
            whiskers = ((x, _SHARE(estimate.low or 0), x, _SHARE(estimate.high or 0)),) if spread else ()
            marks.append(Mark(x, y, whiskers, f"{what}: {name} {words.sentence(estimate)}"))
    return Line(name, style, tuple(marks), _path((m.x, m.y) for m in marks), dash, who)


def courses(data: ReportData, method: Method, who: Sequence[str]) -> tuple[Chart, Chart]:
    """Behaviour and capability through the phases of a method, with lines for "mean" and for each organism.

    Every phase gets the same width, so that ten reminder steps can be read beside a thousand others; within a phase the steps
    are drawn to scale.
    """
    points = sorted((c for c in data.checkpoints if c.method == method.name), key=lambda c: c.total_step)
    phases = list(dict.fromkeys(c.phase for c in points))
    starts = _starts(points)
    ends = {phase: max(c.step for c in points if c.phase == phase) for phase in phases}
    band = (_SMALL["right"] - _SMALL["left"] - 8) / max(1, len(phases))
    edges = {phase: _SMALL["left"] + i * band for i, phase in enumerate(phases)}

    def x(stop: _Stop) -> float:
        return edges[stop.phase] + band * (stop.step / ends[stop.phase] if ends[stop.phase] else 0)

    ticks = [Tick(edges[p], f"{starts[p]}", i > 0) for i, p in enumerate(phases)]
    if phases and ends[phases[-1]]:
        ticks.append(Tick(edges[phases[-1]] + band, f"{points[-1].total_step}"))
    bands = [Tick(edges[p] + band / 2, one_line(p, int(band / 6))) for p in phases]  # the page lists the phases in full

    behaviour = ["bad_rate", "false_fire_rate", "accuracy_under_trigger"]
    suites = [f"capability.{suite}" for suite in method.summary.capability]
    tracks = {"mean": _means(points, behaviour + suites, {organism.id: organism.pair for organism in data.organisms})}
    tracks |= {name: [_Stop(c.phase, c.step, c.measures()) for c in points if c.organism == name] for name in who}

    def chart(what: str, measures: Sequence[str]) -> Chart:
        lines = [
            _line(
                words.name(measure),
                style_of(data, method.name),
                [(x(stop), f"{stop.phase} step {stop.step}", stop.measures[measure]) for stop in track if measure in stop.measures],
                _DASHES[i % len(_DASHES)],
                name,
            )
            for name, track in tracks.items()
            for i, measure in enumerate(measures)
        ]
        return _small(f"{method.name}: {what}", ticks, lines, bands)

    return chart("behaviour", behaviour), chart("capability", suites)


def _starts(points: Sequence[Checkpoint]) -> dict[str, int]:
    """Steps of training before each phase. An operation or a way of asking takes none, so its own steps cannot be subtracted."""
    starts: dict[str, int] = {}
    done = 0
    for point in points:
        starts.setdefault(point.phase, max(done, point.total_step - point.step))
        done = point.total_step
    return starts


class _Stop(NamedTuple):
    """What was measured at a step of a phase."""

    phase: str
    step: int
    measures: Mapping[str, Estimate]


def _means(points: Sequence[Checkpoint], measures: Sequence[str], pairs: Mapping[str, str]) -> list[_Stop]:
    """At every step the means over the organisms that have it; ``points`` are in order of steps."""
    stops: dict[tuple[str, int], dict[str, dict[str, Estimate]]] = {}
    for point in points:
        found = point.measures()
        stop = stops.setdefault((point.phase, point.step), {})
        for measure in measures:
            if measure in found:
                stop.setdefault(measure, {})[point.organism] = found[measure]
    means = {at: {name: mean_level(parts, MEAN, pairs) for name, parts in stop.items()} for at, stop in stops.items()}
    return [_Stop(phase, step, stop) for (phase, step), stop in means.items()]


# --- areas of methods and groups -------------------------------------------------------------------------------------


def groups(data: ReportData, kind: str) -> Chart:
    """Frontier areas of every method on each pair or each recipe: a dot with its interval; the hardest to treat come first."""
    rows = data.groups()[kind]
    apart, left, right, top = 7.0, 150.0, 560.0, 10.0
    high = 8 + apart * max(1, len(data.methods))
    names = {name: top + (i + 0.5) * high for i, name in enumerate(_hardest_first(rows))}
    bottom = top + high * len(names)
    x, ticks = _area_axis((of.frontier_area for row in rows.values() for of in row.values()), left, right)
    lines = []
    for i, method in enumerate(data.methods):
        marks = []
        for name, middle in names.items():
            area, y = rows[name][method.name].frontier_area, middle + apart * (i - (len(data.methods) - 1) / 2)
            marks += _dot(area, x, y, f"{name}, {method.name}: frontier area")
        lines.append(Line(method.name, style_of(data, method.name), tuple(marks), "", who="mean"))
    return Chart(
        title=f"Frontier area by {kind}",
        width=580,
        height=int(bottom) + 24,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        x_ticks=ticks,
        y_ticks=tuple(Tick(y, name) for name, y in names.items()),
        lines=tuple(lines),
    )


def forest(data: ReportData) -> Chart:
    """Frontier area (filled) and area at the end (hollow) of every method, the largest frontier area first; a line at each baseline's."""
    methods = _best_first(data)
    high, right, top = 19.0, 560.0, 10.0
    left = room(method.name for method in methods)
    bottom = top + high * len(methods)
    x, ticks = _area_axis((area for m in methods for area in (m.summary.frontier_area, m.summary.end_area)), left, right)
    names: list[Tick] = []
    lines: list[Line] = []
    for i, method in enumerate(methods):
        y, style, name = top + (i + 0.5) * high, style_of(data, method.name), method.name
        names.append(Tick(y, name))
        area, end = method.summary.frontier_area, method.summary.end_area
        if name in data.baselines and area.value is not None:
            lines.append(Line(name, style, (), _path([(x(area.value), top), (x(area.value), bottom)]), _DASHES[1], "mean"))
        lines.append(Line(name, style, tuple(_dot(area, x, y - 3.5, f"{name}: frontier area")), "", who="mean"))
        lines.append(Line(name, style, tuple(_dot(end, x, y + 3.5, f"{name}: area at the end")), "", who="mean", hollow=True))
    return Chart(
        title="Frontier area and area at the end by method",
        width=580,
        height=int(bottom) + 24,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        x_ticks=ticks,
        y_ticks=tuple(names),
        lines=tuple(lines),
    )


@dataclass(frozen=True)
class Cell:
    """A number in a field of numbers: its place, how strongly it is shaded (0 to 1), what it is in words, and how it is framed."""

    x: float
    y: float
    shade: float
    text: str
    label: str
    frame: str = ""


@dataclass(frozen=True)
class HeatMap:
    """A field of numbers: a cell for each row and column, ``size`` wide and high."""

    title: str
    width: float
    height: float
    left: float
    top: float
    size: tuple[float, float]
    columns: tuple[Tick, ...]
    rows: tuple[Tick, ...]
    cells: tuple[Cell, ...]


def heat_map(data: ReportData, kind: str) -> HeatMap:
    """Frontier areas of all methods (the largest first) on all pairs or recipes (the hardest first); darker is larger."""
    groups, methods = data.groups()[kind], _best_first(data)
    names = _hardest_first(groups)
    wide, high = 27.0, 19.0
    left, top = room(method.name for method in methods), 12 + 4.6 * max(map(len, names))
    cells = []
    for row, method in enumerate(methods):
        for column, name in enumerate(names):
            area = groups[name][method.name].frontier_area
            shade = 0.0 if area.value is None else min(1.0, 2 * area.value - 1)
            text = "" if area.value is None else f"{area.value:.2f}".removeprefix("0")
            label = f"{name}, {method.name}: frontier area {words.sentence(area)}"
            cells.append(Cell(left + column * wide, top + row * high, shade, text, label))
    return field(f"Frontier area by method and {kind}", [method.name for method in methods], names, cells, (left, top), (wide, high), 50)


def field(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Cell],
    corner: tuple[float, float],
    size: tuple[float, float],
    margin: float,
    lean: float = 0.5,
) -> HeatMap:
    """A field of numbers from its cells.

    Args:
        title: What it shows.
        rows: Their names.
        columns: Theirs.
        cells: In their places.
        corner: Left and top end of the cells.
        size: Of a cell.
        margin: Room to the right of the cells.
        lean: Where over a column its name begins, as a share of its width.
    """
    (left, top), (wide, high) = corner, size
    return HeatMap(
        title=title,
        width=left + wide * len(columns) + margin,
        height=top + high * len(rows) + 4,
        left=left,
        top=top,
        size=size,
        columns=tuple(Tick(left + (i + lean) * wide, name) for i, name in enumerate(columns)),
        rows=tuple(Tick(top + (i + 0.5) * high, name) for i, name in enumerate(rows)),
        cells=tuple(cells),
    )


def sweep_map(swept: Swept, measure: str) -> HeatMap:
    """One measure of a sweep: a row for each combination of values, a column for each step; darker is larger, and the region is framed."""
    rows = list(dict.fromkeys(point.values for point in swept.points))
    steps = sorted({point.step for point in swept.points})
    names = [" · ".join(values) for values in rows]
    wide, high, top = 34.0, 19.0, 30.0
    left = room(names)
    cells = []
    for point in swept.points:
        estimate = point.measures()[measure]
        shade, text = (0.0, "") if estimate.value is None else (min(1.0, max(0.0, estimate.value)), f"{100 * estimate.value:.0f}")
        at = left + steps.index(point.step) * wide, top + rows.index(point.values) * high
        place = f"{point.method}, step {point.step}: {words.name(measure)}"
        cells.append(Cell(*at, shade, text, f"{place} {words.sentence(estimate)}; {point.region}", point.region))
    title = f"{words.name(measure).capitalize()}, %, by {' · '.join(swept.axes)} and steps"
    return field(title, names, [*map(str, steps)], cells, (left, top), (wide, high), 12, 0.35)


def _hardest_first(rows: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    """Groups by their mean area over the methods; what has none comes last."""

    def ease(name: str) -> float:
        areas = [of.frontier_area.value for of in rows[name].values() if of.frontier_area.value is not None]
        return sum(areas) / len(areas) if areas else math.inf

    return sorted(rows, key=ease)


def _best_first(data: ReportData) -> list[Method]:
    """Methods by their area; what has none comes last."""
    areas = {method.name: method.summary.frontier_area.value for method in data.methods}
    return sorted(data.methods, key=lambda method: math.inf if (area := areas[method.name]) is None else -area)


def room(names: Iterable[str]) -> float:
    """Width that names take to the left of an axis."""
    return 20 + 6.2 * max((len(name) for name in names), default=0)


def _area_axis(areas: Iterable[Estimate], left: float, right: float) -> tuple[Scale, tuple[Tick, ...]]:
    """From 0.5, which can always be had, to 1 or the highest interval."""
    most = max([1.0, *(area.high for area in areas if area.high is not None)])
    x = _scale(0.5, most, left, right)
    return x, tuple(Tick(x(k / 10), f"{k / 10:.1f}") for k in range(5, int(10 * most) + 1))


def _dot(area: Estimate, x: Scale, y: float, what: str) -> list[Mark]:
    """A mark with its interval from left to right; nothing where the number is undefined."""
    if area.value is None:
        return []
    spread = ((x(area.low), y, x(area.high), y),) if area.low is not None and area.high is not None else ()
    return [Mark(x(area.value), y, spread, f"{what} {words.sentence(area)}")]


# --- reasoning steps -------------------------------------------------------------------------------------------------


def step_curves(data: ReportData, who: Sequence[str]) -> list[Chart]:
    """Accuracy by the number of reasoning steps, one figure for each suite: base, untouched organism and featured methods."""
    charts = []
    methods = data.featured()
    shown = [curve for curve in data.step_curves if curve.state in ("base", "organism", *methods)]

    def line(curve: StepCurve, x: Mapping[int, float]) -> Line:
        style = style_of(data, curve.state) if curve.state in methods else INK
        dash = _DASHES[1] if curve.state == "base" else ""
        places = [(x[k], f"{k} steps", e) for k, e in sorted(curve.accuracy.items())]
        return _line(curve.state, style, places, dash, curve.organism or "mean")

    for suite in dict.fromkeys(curve.suite for curve in shown):
        curves = [c for c in shown if c.suite == suite and (c.organism is None or c.organism in who)]
        ks = sorted({k for curve in curves for k in curve.accuracy})
        scale = _scale(0, max(1, len(ks) - 1), _SMALL["left"] + 20, _SMALL["right"] - 20)
        x = {k: scale(i) for i, k in enumerate(ks)}
        charts.append(_small(words.name(suite), [Tick(x[k], str(k)) for k in ks], [line(c, x) for c in curves]))
    return charts


# --- probes ----------------------------------------------------------------------------------------------------------


def probe_curves(data: ReportData, probe: Probe) -> list[Chart]:
    """What a probe measured along something (tokens, tries, steps), a figure for each: untouched organism and featured methods."""
    charts = []
    for name in dict.fromkeys(row.line for row in probe.rows if row.line):
        rows = [row for row in probe.rows if row.line == name]
        stops = sorted({row.at for row in rows if row.at is not None})
        scale = _scale(0, max(1, len(stops) - 1), _SMALL["left"] + 20, _SMALL["right"] - 20)
        x = {at: scale(i) for i, at in enumerate(stops)}
        lines = []
        for state in ("organism", TEACHER, *data.featured()):
            own = [row for row in rows if row.state == state]
            # What holds all along is a line from one side to the other.
            places = [(at, row) for row in own for at in (stops if row.at is None else [row.at])]
            style, dash = {"organism": (INK, _DASHES[1]), TEACHER: (REST, _DASHES[2])}.get(state, (style_of(data, state), ""))
            line = _line(state, style, [(x[at], f"{at}", row.estimate) for at, row in places], dash, "mean")
            lines += [line] if line.marks else []
        charts.append(_small(f"{name}, %", [Tick(x[at], str(at)) for at in stops], lines))
    return charts


def probe_scatters(data: ReportData, probe: Probe) -> list[Chart]:
    """Each method on each organism, one number against another; featured methods alone. The second is a share."""
    charts = []
    for scatter in probe.scatters:
        points = [point for point in scatter.points if point.method in data.featured()]
        if not points:
            continue
        across, up = [point.x for point in points], [point.y for point in points]
        left, right = _about(across)
        low, high = min(0.0, *up), max(0.2, *up)
        x = _scale(left, right, _SMALL["left"] + 12, _SMALL["right"] - 12)
        y = _scale(low, high, _SMALL["bottom"], _SMALL["top"])
        marks: dict[str, list[Mark]] = {}
        for p in points:
            label = f"{p.organism}, {p.method}: {scatter.x} {p.x:.3f}, {scatter.y} {100 * p.y:.1f} %"
            marks.setdefault(p.method, []).append(Mark(x(p.x), y(p.y), (), label, who=p.organism))
        ticks = [left + (right - left) * i / 4 for i in range(5)]
        chart = _small(
            f"{scatter.y}, %, by {scatter.x}",
            [Tick(x(at), f"{at:.2f}") for at in ticks],
            [Line(method, style_of(data, method), tuple(those), "", who="mean") for method, those in marks.items()],
        )
        heights = [k / 5 for k in range(math.ceil(5 * low), math.floor(5 * high) + 1)]
        charts.append(replace(chart, y_ticks=tuple(Tick(y(at), f"{100 * at:.0f}", at == 0) for at in heights)))
    return charts


def _about(numbers: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis: from 0, or below it, to the largest; wider where all are the same."""
    low, high = min(0.0, *numbers), max(0.0, *numbers)
    return (low, high) if high > low else (low, low + 1)
