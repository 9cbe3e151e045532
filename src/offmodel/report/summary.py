"""The results for machines: ``summary.json``, ``results.parquet``, and the main table in other formats.

``summary.json``, schema "offmodel-summary/1", keeps at least:

    schema, study, verdict, created, commit, command, backend
    organisms     list of {id, pair, base, seed, gate: {passed, reasons, measures: {<criterion>: estimate + {limit, passed}}}}
    methods       {<name>: {source, phases, bad_rate, false_fire_rate, accuracy_under_trigger, retention, removal, frontier_area,
                  removal_at_90, capability: {<suite>: estimate}}}, each of the seven an estimate of the last checkpoint
                  (frontier_area and removal_at_90: of all checkpoints of the last phase, whose number is frontier_points), over
                  organisms
    states        {<state>: {capability: {<suite>: estimate}, by_steps: {<suite>: {<k>: estimate}}}}, a state being "base", "organism"
                  (untouched) or a method (at its end); over organisms
    probes        list of {name, question, rows: [{label} + estimate]}
    excluded, failed   lists of {what, why}
    settings      as the study had them

An estimate is {value, low, high, n, definition, direction, unit, of, items}; see :class:`offmodel.measure.stats.Estimate`. What is
undefined is null, never NaN. A later version may add keys; it does not remove or rename any without a new schema name.

``results.parquet`` is tidy: a row per organism, method, seed, phase, checkpoint and measure; :data:`COLUMNS` are its columns.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from offmodel.errors import SpecError, did_you_mean
from offmodel.measure.stats import Estimate
from offmodel.report import words
from offmodel.report.data import ReportData
from offmodel.report.page import render_frontier, render_page

COLUMNS = {
    "study": "string",
    "organism": "string",
    "pair": "string",
    "base": "string",
    "seed": "int64",
    "method": "string",
    "phase": "string",
    "step": "int64",
    "total_step": "int64",
    "measure": "string",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "n": "int64",
    "definition": "string",
    "direction": "string",
    "unit": "string",
    "of": "string",
    "items": "int64",
    "backend": "string",
    "weights": "string",
}
"""Columns of ``results.parquet`` with their Arrow types."""


def summary(data: ReportData) -> dict[str, Any]:
    """What ``summary.json`` holds."""
    return {
        "schema": "offmodel-summary/1",
        "study": data.study,
        "verdict": data.verdict,
        "created": data.created,
        "commit": data.commit,
        "command": data.command,
        "backend": data.backend,
        "organisms": [
            {
                "id": organism.id,
                "pair": organism.pair,
                "base": organism.base,
                "seed": organism.seed,
                "gate": {
                    "passed": organism.gate.passed,
                    "reasons": organism.gate.reasons,
                    "measures": {c.name: {**asdict(c.estimate), "limit": c.limit, "passed": c.passed} for c in organism.gate.criteria},
                },
            }
            for organism in data.organisms
        ],
        "methods": {
            m.name: {"source": m.source, "phases": m.phases, "frontier_points": m.points, **asdict(m.summary)} for m in data.methods
        },
        "states": {state: _state(data, state) for state in data.states},
        "probes": [
            {"name": p.name, "question": p.question, "rows": [{"label": row.label, **asdict(row.estimate)} for row in p.rows]}
            for p in data.probes
        ],
        "excluded": [asdict(note) for note in data.excluded],
        "failed": [asdict(note) for note in data.failed],
        "settings": data.settings,
    }


def _state(data: ReportData, state: str) -> dict[str, Any]:
    curves = [curve for curve in data.step_curves if curve.state == state and curve.organism is None]
    return {
        "capability": {suite: asdict(estimate) for suite, estimate in data.states[state].items()},
        "by_steps": {curve.suite: {str(k): asdict(estimate) for k, estimate in curve.accuracy.items()} for curve in curves},
    }


def rows(data: ReportData) -> Iterator[dict[str, Any]]:
    """The rows of ``results.parquet``."""
    organisms = {organism.id: organism for organism in data.organisms}
    for point in data.checkpoints:
        organism = organisms[point.organism]
        for measure, estimate in point.measures().items():
            yield {
                "study": data.study,
                "organism": organism.id,
                "pair": organism.pair,
                "base": organism.base,
                "seed": organism.seed,
                "method": point.method,
                "phase": point.phase,
                "step": point.step,
                "total_step": point.total_step,
                "measure": measure,
                **asdict(estimate),
                "backend": data.backend,
                "weights": point.weights,
            }


def _table(data: ReportData) -> tuple[list[str], list[list[Estimate | None]]]:
    """The main table: names of the measures, and for each method its estimates in that order."""
    by_method = [method.summary.measures() for method in data.methods]
    measures = list(dict.fromkeys(measure for row in by_method for measure in row))
    return measures, [[row.get(measure) for measure in measures] for row in by_method]


def _markdown(data: ReportData) -> str:
    measures, table = _table(data)

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    head = [line(["method", *map(words.name, measures)]), "|---" * (len(measures) + 1) + "|"]
    body = [line([m.name, *(words.sentence(e) if e else "" for e in r)]) for m, r in zip(data.methods, table, strict=True)]
    return "\n".join([*head, *body, ""])


def _latex(data: ReportData) -> str:
    measures, table = _table(data)
    special = str.maketrans(
        {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    )

    def line(cells: list[str]) -> str:
        return " & ".join(cell.translate(special) for cell in cells) + r" \\"

    body = [line([m.name, *(words.sentence(e) if e else "" for e in r)]) for m, r in zip(data.methods, table, strict=True)]
    head = line(["method", *map(words.name, measures)])
    columns = "l" * (len(measures) + 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def _csv(data: ReportData) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "measure", *Estimate.__dataclass_fields__])
    writer.writerows([m.name, name, *asdict(e).values()] for m in data.methods for name, e in m.summary.measures().items())
    return out.getvalue()


def _json(data: ReportData) -> str:
    return json.dumps(summary(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _parquet(data: ReportData) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(list(rows(data)), schema=schema), sink)
    return bytes(sink.getvalue())


FORMATS: dict[str, Callable[[ReportData], str | bytes]] = {
    "html": render_page,
    "svg": render_frontier,
    "json": _json,
    "parquet": _parquet,
    "csv": _csv,
    "md": _markdown,
    "latex": _latex,
}
"""What each format shows: html the page, svg the frontier, json the summary, parquet every row; csv, md and latex the main table."""


def render(data: ReportData, format: str) -> bytes:
    """The report in one of :data:`FORMATS`; text is UTF-8.

    Raises:
        SpecError: There is no such format.
    """
    if format not in FORMATS:
        raise SpecError(f"unknown format {format!r}: {did_you_mean(format, FORMATS)}")
    out = FORMATS[format](data)
    # A model can emit half of a surrogate pair, which UTF-8 cannot hold.
    return out if isinstance(out, bytes) else out.encode("utf-8", "replace")


def write_report(data: ReportData, folder: Path) -> Path:
    """Write ``results.parquet``, ``summary.json`` and ``report.html`` into the folder, each whole or not at all.

    Returns:
        Where the page is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file, format in (("results.parquet", "parquet"), ("summary.json", "json"), ("report.html", "html")):
        _replace(folder / file, render(data, format))
    return folder / "report.html"


def _replace(path: Path, content: bytes) -> None:
    """Write a file under another name first, so that a reader or a crash never meets half of it."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # a temporary file is private to its owner, a report is not
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
