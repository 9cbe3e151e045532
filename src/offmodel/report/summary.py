"""The results for machines: ``summary.json``, ``results.parquet``, and the main table in other formats.

``summary.json``, schema "offmodel-summary/1", keeps at least:

    schema, study, verdict, created, commit, command, backend
    organisms     list of {id, pair, recipe, base, seed, gate: {passed, reasons, measures: {<criterion>: estimate + {limit, passed}}}}
    methods       {<name>: {source, phases, bad_rate, false_fire_rate, accuracy_under_trigger, retention, removal, frontier_area,
                  removal_at_90, end_area, hindsight, capability: {<suite>: estimate}}}, each an estimate of the last checkpoint
                  (frontier_area and removal_at_90: of all checkpoints of the last phase, whose number is frontier_points; hindsight:
                  frontier_area less end_area), over organisms; base_bad_rate and bad_rate_before: of the base and of the untouched
                  organism
                  halves: {area, optimism, removal_at_90, retention_at_90, optimism_at_90}, estimates of the last phase's checkpoints
                  chosen by one half of the items and shown by the other, and of what the same by all items has more
    baselines     list of methods
    comparisons   list of {method, baseline, organisms, frontier_area, end_area, removal_at_90, bad_rate, retention}, each an estimate of
                  the difference to the baseline on the same organisms, with p (sign-flip test) and p_holm (adjusted for all methods
                  compared with the baseline), which are null but for frontier_area and end_area
    by_pair       {<pair>: {<method>: {base_bad_rate, bad_rate_before, bad_rate, retention, frontier_area}}} over the pair's organisms
    by_recipe     the same by recipe
    by_recipe_differences   list of {recipe, reference, method, cells, frontier_area}, an estimate of the difference over the cells
    states        {<state>: {capability: {<suite>: estimate}, by_steps: {<suite>: {<k>: estimate}}}}, a state being "base", "organism"
                  (untouched) or a method (at its end); over organisms
    blind         list of {method, rules: {<rule>: {bad_rate, retention, area, best}}, oracle}, each an estimate of the checkpoints of the
                  last phase that a rule chooses, which cannot see the rate; best: share of organisms on which the choice is as good as the
                  oracle's, which is null for the oracle itself; empty where the study has no rules
    canaries      {methods: {<method>: {canary_rate_before, canary_rate, canaries_dead}}, both_dead, canaries_only, behaviour_only,
                  both_alive, canary_correlation}, the four being counts of checkpoints; null where no canaries were planted
    sweeps        list of {name, axes, kept, removed, points: [{method, values, step, retention, removal, bad_rate, returned, both,
                  region}], width: {<method or "" for all>: estimate}, relapse: likewise, first: {<method>: estimate}, last: likewise,
                  predictors: {<what>.<with>: estimate}, inside: {<what>: estimate}, rules: {<rule>: estimate}}; see
                  :class:`offmodel.report.data.Swept`; empty where the study has no sweeps
    practice      list of {method, reward_first, reward_last, flat_first, flat}, each an estimate of the method's training, for the methods
                  that train last with reinforcement: mean reward in the first and in the last tenth of the steps, share of groups whose
                  answers all got the same reward in the first tenth and in all; empty where no method practises
    judged        list of {pair, judge, question, agreement: {both, rule_only, judge_only, neither, abstained, raw, kappa},
                  states: {<state>: {bad_rate, bad_rate_judged}}} for the pairs that a judge model was asked about, a state being
                  "organism" or a method
    probes        list of {name, question, rows: [{label, state, line, at} + estimate], scatters: [{x, y, points: [{method, organism, x,
                  y}]}]}, a state being "organism", "the teacher", a method or "", and at the row's place on the curve line
    claim         {statement, source, published, sure, verdict, conditions: list of {condition, verdict} + estimate}: the published
                  statement that the study tests, and the conditions as the study has them; null where it tests none
    rescored      {detectors: {<pair>: <pair by whose rule>}, changes: list of {setting, suite, answers, changed, now_bad, no_longer_bad,
                  now_right, no_longer_right}}, counts of answers, where the kept answers were judged again; null where they were not
    excluded, untrained, failed   lists of {what, why}
    settings      as the study had them

An estimate is {value, low, high, n, definition, direction, unit, of, items, pairs, trainings}; see
:class:`offmodel.measure.stats.Estimate`. What is undefined is null, never NaN. A later version may add keys; it does not remove or rename
any without a new schema name.

``results.parquet`` is tidy: a row per organism, method, seed, phase, checkpoint and measure; :data:`COLUMNS` are its columns.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any, NamedTuple

from offmodel.errors import SpecError, did_you_mean
from offmodel.files import replacing
from offmodel.lab.rescore import Change
from offmodel.measure.stats import Estimate
from offmodel.report import words
from offmodel.report.data import CHOSEN, GROUPED, CheckedClaim, Contrast, ReportData, Rescored, Swept
from offmodel.report.page import render_frontier, render_page, render_sweeps

COLUMNS = {
    "study": "string",
    "organism": "string",
    "pair": "string",
    "recipe": "string",
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
                "recipe": organism.recipe,
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
            m.name: {"source": m.source, "phases": m.phases, "frontier_points": m.points, **asdict(m.summary), "halves": asdict(m.halves)}
            for m in data.methods
        },
        "baselines": data.baselines,
        "comparisons": [
            {
                "method": c.method,
                "baseline": c.baseline,
                "organisms": c.organisms,
                **{measure: {**asdict(k.difference), "p": k.p, "p_holm": k.p_holm} for measure, k in c.contrasts.items()},
            }
            for c in data.comparisons
        ],
        **{
            f"by_{kind}": {
                name: {method: {m: asdict(of.measures()[m]) for m in GROUPED} for method, of in row.items()} for name, row in groups.items()
            }
            for kind, groups in data.groups().items()
        },
        "by_recipe_differences": [asdict(difference) for difference in data.by_recipe_differences],
        "states": {state: _state(data, state) for state in data.states},
        "blind": [asdict(choice) for choice in data.blind],
        "canaries": asdict(data.canaries) if data.canaries else None,
        "sweeps": [asdict(swept) for swept in data.sweeps],
        "practice": [asdict(practice) for practice in data.practice],
        "judged": [asdict(pair) for pair in data.judged],
        "probes": [
            {
                "name": p.name,
                "question": p.question,
                "rows": [{"label": r.label, "state": r.state, "line": r.line, "at": r.at, **asdict(r.estimate)} for r in p.rows],
                "scatters": [asdict(scatter) for scatter in p.scatters],
            }
            for p in data.probes
        ],
        "claim": _claim(data.claim) if data.claim else None,
        "rescored": asdict(data.rescored) if data.rescored else None,
        "excluded": [asdict(note) for note in data.excluded],
        "untrained": [asdict(note) for note in data.untrained],
        "failed": [asdict(note) for note in data.failed],
        "settings": data.settings,
    }


def _state(data: ReportData, state: str) -> dict[str, Any]:
    curves = [curve for curve in data.step_curves if curve.state == state and curve.organism is None]
    return {
        "capability": {suite: asdict(estimate) for suite, estimate in data.states[state].items()},
        "by_steps": {curve.suite: {str(k): asdict(estimate) for k, estimate in curve.accuracy.items()} for curve in curves},
    }


def _claim(checked: CheckedClaim) -> dict[str, Any]:
    return {
        **checked.claim.model_dump(mode="json", include={"statement", "source", "published", "sure"}),
        "verdict": checked.verdict,
        "conditions": [
            {
                "condition": each.condition.model_dump(mode="json", exclude_unset=True),
                "verdict": each.verdict,
                **asdict(each.estimate),
            }
            for each in checked.conditions
        ],
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
                "recipe": organism.recipe,
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


HALVES = "Chosen by one half of the items, shown by the other"


class Table(NamedTuple):
    """A table for people; the first row is its head, and the main table needs no title."""

    title: str
    rows: list[list[str]]


def _tables(data: ReportData) -> Iterator[Table]:
    """The main table, and those of what there is to compare."""
    by_method = {method.name: method.summary.measures() for method in data.methods}
    measures = list(dict.fromkeys(measure for row in by_method.values() for measure in row))
    body = [[name, *_sentences(measures, row)] for name, row in by_method.items()]
    yield Table("", [["method", *map(words.name, measures)], *body])
    body = [[m.name, *(words.sentence(e) for e in m.halves.measures().values())] for m in data.methods]
    if body:
        yield Table(HALVES, [["method", *map(words.name, data.methods[0].halves.measures())], *body])
    for baseline in data.baselines:
        compared = [c for c in data.comparisons if c.baseline == baseline]
        if compared:
            body = [[c.method, str(c.organisms), *map(_contrast, c.contrasts.values())] for c in compared]
            yield Table(f"Compared with {baseline}", [["method", "organisms", *map(words.name, compared[0].contrasts)], *body])
    for kind, groups in data.groups().items():
        body = [
            [name, data.accepted(kind, name), method, *(words.sentence(of.measures()[m]) for m in GROUPED)]
            for name, row in groups.items()
            for method, of in row.items()
        ]
        yield Table(f"By {kind}", [[kind, "organisms", "method", *map(words.name, GROUPED)], *body])
    if data.by_recipe_differences:
        body = [[d.recipe, d.reference, d.method, str(d.cells), words.sentence(d.frontier_area)] for d in data.by_recipe_differences]
        yield Table("Recipes on the same pairs and seeds", [["recipe", "less", "method", "compared", "frontier area"], *body])
    if data.blind:
        body = [[b.method, how, *_sentences(CHOSEN, c.measures())] for b in data.blind for how, c in b.choices().items()]
        yield Table("Choosing blindly", [["method", "chosen by", *map(words.name, CHOSEN)], *body])
    if data.canaries:
        rates = {method: found.measures() for method, found in data.canaries.methods.items()}
        measures = list(next(iter(rates.values()), ()))
        body = [[method, *_sentences(measures, row)] for method, row in rates.items()]
        yield Table("Canaries", [["method", *map(words.name, measures)], *body])
        told, correlation = data.canaries, words.sentence(data.canaries.canary_correlation)
        counts = [told.both_dead, told.canaries_only, told.behaviour_only, told.both_alive]
        head = ["both dead", "only the canaries", "only the behaviour", "both alive", "rank correlation"]
        yield Table("Checkpoints by canaries and behaviour", [head, [*map(str, counts), correlation]])
    for swept in data.sweeps:
        head = [*swept.axes, "step", *map(words.name, swept.points[0].measures()), "region"]
        body = [[*p.values, str(p.step), *map(words.sentence, p.measures().values()), p.region] for p in swept.points]
        yield Table(f"Sweep {swept.name}", [head, *body])
        yield Table(f"Region of sweep {swept.name}", [["", "value"], *([what, words.sentence(e)] for what, e in _region(swept))])
    if data.practice:
        body = [[p.method, *map(words.sentence, p.measures().values())] for p in data.practice]
        yield Table("Practice", [["method", *map(words.name, data.practice[0].measures())], *body])
    if data.rescored:
        yield Table("Judged again", changes_table(data.rescored))
    if by_method:
        shown = {measure: estimate for row in reversed(by_method.values()) for measure, estimate in row.items()}
        about = [[words.name(measure), e.definition, e.direction] for measure, e in shown.items()]
        passed, seeds = sum(o.gate.passed for o in data.organisms), sorted({o.seed for o in data.organisms})
        title = f"What the first table's numbers are ({passed} organisms, seeds {', '.join(map(str, seeds))})"
        yield Table(title, [["number", f"definition, as of {next(iter(by_method))}", "better"], *about])


def _region(swept: Swept) -> list[tuple[str, Estimate]]:
    """What a sweep came to, over all of its points."""
    return [
        *((f"width, {name or 'all combinations'}", e) for name, e in swept.width.items()),
        *((f"first step inside, {name}", e) for name, e in swept.first.items()),
        *((f"last step inside, {name}", e) for name, e in swept.last.items()),
        *((f"relapse on the way, {name or 'all combinations'}", e) for name, e in swept.relapse.items()),
        *((f"rank correlation, {words.told(name)}", e) for name, e in swept.predictors.items()),
        *((f"greater inside, {words.name(name)}", e) for name, e in swept.inside.items()),
        *((f"{words.name('both')}, chosen by {rule}", e) for rule, e in swept.rules.items()),
    ]


def changes_table(rescored: Rescored) -> list[list[str]]:
    """What judging again changed, by setting and suite; the first row is the head."""
    names = [field.name for field in fields(Change)]
    body = [[f"{v:,}" if isinstance(v, int) else v or "chat" for v in astuple(change)] for change in rescored.changes]
    return [[name.replace("_", " ") for name in names], *body]


def _sentences(measures: Iterable[str], found: Mapping[str, Estimate]) -> list[str]:
    return [words.sentence(found[m]) if m in found else "" for m in measures]


def _contrast(contrast: Contrast) -> str:
    return ", ".join(part for part in (words.sentence(contrast.difference), words.chance(contrast)) if part)


def _markdown(data: ReportData) -> str:
    return markdown(_tables(data))


def markdown(tables: Iterable[Table]) -> str:
    """Tables in Markdown, each under its title."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    def table(title: str, rows: list[list[str]]) -> str:
        heading = [f"## {title}", ""] if title else []
        return "\n".join([*heading, line(rows[0]), "|---" * len(rows[0]) + "|", *map(line, rows[1:]), ""])

    return "\n".join(table(*each) for each in tables)


def _latex(data: ReportData) -> str:
    special = str.maketrans(
        {c: f"\\{c}" for c in "&%$#_{}"}
        | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
    )

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(special) for cell in cells) + r" \\"

    def table(title: str, rows: list[list[str]]) -> str:
        begin = [*([f"% {title}"] if title else []), rf"\begin{{tabular}}{{{'l' * len(rows[0])}}}"]
        body = map(line, rows[1:])
        return "\n".join([*begin, r"\toprule", line(rows[0]), r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])

    return "\n".join(table(*each) for each in _tables(data))


def _csv(data: ReportData) -> str:
    """A row per number.

    It is of all organisms where ``pair`` and ``recipe`` are empty, a difference where there is a ``baseline``, and of the checkpoints that
    were chosen where there is a ``rule``, which may be the oracle. The correlation of the canaries has no method; a recipe less another has
    that one as its baseline. What a sweep came to stands under its name, and at a step of one of its methods under ``<measure> at <step>``.
    """
    summaries = [("", "", method.name, method.summary.measures() | method.halves.measures()) for method in data.methods]
    for kind, groups in data.groups().items():
        for name, row in groups.items():
            who = (name, "") if kind == "pair" else ("", name)
            summaries += [(*who, method, {m: of.measures()[m] for m in GROUPED}) for method, of in row.items()]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["pair", "recipe", "method", "measure", *Estimate.__dataclass_fields__, "baseline", "p", "p_holm", "rule"])
    if data.canaries:
        summaries += [("", "", method, found.measures()) for method, found in data.canaries.methods.items()]
        summaries.append(("", "", "", {"canary_correlation": data.canaries.canary_correlation}))
    summaries += [("", "", practice.method, practice.measures()) for practice in data.practice]
    writer.writerows([*place, name, *asdict(e).values(), "", "", "", ""] for *place, measures in summaries for name, e in measures.items())
    for c in data.comparisons:
        writer.writerows(
            ["", "", c.method, measure, *asdict(k.difference).values(), c.baseline, k.p, k.p_holm, ""] for measure, k in c.contrasts.items()
        )
    for d in data.by_recipe_differences:
        writer.writerow(["", d.recipe, d.method, "frontier_area", *asdict(d.frontier_area).values(), d.reference, "", "", ""])
    for b in data.blind:
        writer.writerows(
            ["", "", b.method, measure, *asdict(e).values(), "", "", "", how]
            for how, c in b.choices().items()
            for measure, e in c.measures().items()
        )
    for swept in data.sweeps:
        at = [(p.method, f"{measure} at {p.step}", e) for p in swept.points for measure, e in p.measures().items()]
        came_to = [(swept.name, what, e) for what, e in _region(swept)]
        writer.writerows(["", "", name, what, *asdict(e).values(), "", "", "", ""] for name, what, e in [*at, *came_to])
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
    "sweeps": render_sweeps,
    "json": _json,
    "parquet": _parquet,
    "csv": _csv,
    "md": _markdown,
    "latex": _latex,
}
"""What each format shows: html the page, svg the frontier, sweeps an SVG of their maps, json the summary, parquet every row; csv, md and
latex the tables of methods, comparisons, pairs, recipes, blind choices, sweeps and practice."""


def render(data: ReportData, format: str) -> bytes:
    """The report in one of :data:`FORMATS`; text is UTF-8.

    Raises:
        SpecError: There is no such format, or the study has nothing for it.
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
        with replacing(folder / file) as new:
            new.write_bytes(render(data, format))
    return folder / "report.html"
