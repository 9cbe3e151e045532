"""The page: one HTML file that needs no network, no server and, but for its comforts, no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from offmodel.errors import SpecError
from offmodel.measure.stats import Estimate
from offmodel.report import charts, words
from offmodel.report.data import CHOSEN, GROUPED, Checkpoint, ReportData, Summary, Transcript

_QUOTED = 4  # methods in a transcript, beside the base and the untouched organism


@cache
def templates() -> Environment:
    """Templates in which every value is escaped unless it is our own style or script."""
    env = Environment(
        loader=PackageLoader("offmodel.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters.update(
        name=words.name,
        value=words.value,
        interval=words.interval,
        count=words.count,
        sentence=words.sentence,
        chance=words.chance,
        size=_size,
    )
    return env


def source(name: str) -> Markup:
    """One of our own files (style, script), to be put into the page as it is."""
    loader = templates().loader
    assert loader is not None
    return Markup(loader.get_source(templates(), name)[0])


def render_page(data: ReportData) -> str:
    """The whole page as HTML text.

    Model text is escaped by the templates; the data for the script stands in a JSON block in which ``<``, ``>``, ``&`` and all
    that is not ASCII are escaped too, and the script writes it by ``textContent`` only. The content security policy forbids
    every request and every script but the page's own, by its hash.
    """
    script = source("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    organisms = [o.id for o in data.organisms if any(c.organism == o.id for c in data.checkpoints)]
    featured = charts.featured(data)
    names = [method.name for method in featured]
    shown = [(i, c) for i, c in enumerate(data.checkpoints) if c.method in names]
    template = templates().get_template("page.html")
    return template.render(
        data=data,
        csp=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        css=source("chart.css") + source("page.css"),
        script=script,
        featured=featured,
        rest=[method for method in data.methods if method not in featured],
        compared=[(baseline, rows) for baseline in data.baselines if (rows := [c for c in data.comparisons if c.baseline == baseline])],
        points={method.name: method.points for method in data.methods},
        frontier=charts.frontier(data),
        forest=charts.forest(data),
        organisms=organisms,
        courses=[(method, charts.courses(data, method, organisms)) for method in featured],
        groups=list(data.groups().items()),
        dots=partial(charts.groups, data),
        heat_map=partial(charts.heat_map, data),
        sweep_map=charts.sweep_map,
        told=words.told,
        grouped=GROUPED,
        chosen_measures=CHOSEN,
        step_charts=charts.step_curves(data, organisms),
        step_organisms=[o for o in organisms if any(c.organism == o for c in data.step_curves)],
        styles={method.name: charts.style_of(data, method.name) for method in data.methods},
        glossary=_glossary(data),
        measured=list(dict.fromkeys(m for c in data.checkpoints for m in c.measures() if ".steps=" not in m)),
        suites=[f"capability.{suite}" for suite in next(iter(data.states.values()), ())],
        shown={f"c{i}": c for i, c in shown},
        embedded={"checkpoints": {f"c{i}": _card(c) for i, c in shown}},
        probes=[(probe, charts.probe_curves(data, probe) + charts.probe_scatters(data, probe)) for probe in data.probes],
        transcripts=_by_organism(data),
        quoted=data.featured(_QUOTED),
        settings=list(flat(data.settings)),
    )


def render_frontier(data: ReportData) -> str:
    """The frontier alone as an SVG file."""
    template = templates().get_template("frontier.svg")
    methods = charts.featured(data)
    styles = {method.name: charts.style_of(data, method.name) for method in methods}
    frontier, css = charts.frontier(data), source("chart.css")
    if len(methods) < len(data.methods):  # without a script there is no box to hide the thicket of single organisms
        frontier = replace(frontier, hulls=(), checkpoints=())
    return template.render(frontier=frontier, css=css, methods=methods, of=len(data.methods), styles=styles, organisms=data.organisms)


def render_sweeps(data: ReportData) -> str:
    """The maps of all sweeps alone as an SVG file.

    Raises:
        SpecError: The study has none.
    """
    if not data.sweeps:
        raise SpecError(f"--format sweeps: study {data.study} has no sweeps")
    maps = [(swept, [charts.sweep_map(swept, measure) for measure in ("retention", "removal", "both")]) for swept in data.sweeps]
    return templates().get_template("sweeps.svg").render(maps=maps, css=source("chart.css"), organisms=data.organisms)


def _card(point: Checkpoint) -> dict[str, Any]:
    """What the page shows when a checkpoint is pointed at: a title, a place, and lines of (measure, number, n)."""
    first = {"removal": point.removal, "retention": point.retention}
    lines = [
        [words.name(measure), f"{words.value(e)} {words.interval(e)}".strip(), words.count(e)]
        for measure, e in (first | point.measures()).items()
        if ".steps=" not in measure
    ]
    return {
        "title": point.organism,
        "place": f"{point.method}, {point.phase} step {point.step} ({point.total_step} in all)",
        "lines": [*lines, ["weights", point.weights, ""]],
    }


def _glossary(data: ReportData) -> dict[str, Estimate]:
    """For every measure on the page an estimate that carries its definition and direction."""
    found: dict[str, Estimate] = {}
    sources: list[Summary | Checkpoint] = [*(m.summary for m in data.methods), *data.checkpoints]
    for source in sources:
        for measure, estimate in source.measures().items():
            if ".steps=" not in measure:
                found.setdefault(measure, estimate)
    return found


def _by_organism(data: ReportData) -> dict[str, list[Transcript]]:
    """Transcripts with the replies of the base, of the untouched organism, and of so many methods as are still read side by side."""
    states = ("base", "organism", *data.featured(_QUOTED))
    grouped: dict[str, list[Transcript]] = {}
    for transcript in data.transcripts:
        replies = tuple(reply for reply in transcript.replies if reply.state in states)
        grouped.setdefault(transcript.organism, []).append(replace(transcript, replies=replies))
    return grouped


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as rows of (dotted name, text)."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _size(number: float) -> str:
    """A coordinate without needless digits."""
    return f"{number:.1f}".removesuffix(".0")
