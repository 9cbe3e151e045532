"""The page of a game, and its numbers for machines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offmodel import catalog
from offmodel.files import replacing
from offmodel.lab.phase_names import phase_name
from offmodel.measure.stats import Estimate
from offmodel.report import words
from offmodel.report.charts import Cell, HeatMap, field, room
from offmodel.report.game import Played
from offmodel.report.page import flat, source, templates
from offmodel.report.trees import shown
from offmodel.spec.game import Poisoning


def write_game(played: Played, folder: Path) -> Path:
    """Write ``game.json``, ``game.svg`` and ``game.html`` into the folder, each whole or not at all.

    Returns:
        Where the page is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(game_summary(played), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    for file, text in (("game.json", numbers), ("game.svg", render_payoffs(played)), ("game.html", render_game(played))):
        with replacing(folder / file) as new:
            new.write_text(text, encoding="utf-8")
    return folder / "game.html"


def game_summary(played: Played) -> dict[str, Any]:
    """What ``game.json`` holds, schema "offmodel-game/2"; estimates are as in ``summary.json``."""
    solution, measured = played.measured.solution, played.measured
    return {
        "schema": "offmodel-game/2",
        "study": played.study.study,
        "verdict": played.verdict,
        "created": played.created,
        "commit": played.commit,
        "command": played.command,
        "price": played.price,
        "seeds": played.seeds,
        "organisms": played.outcomes.organisms,
        "cells": [
            {"blue": row, "red": column, **{kind: asdict(each) for kind, each in numbers._asdict().items()}}
            for (row, column), numbers in played.cells.items()
        ],
        "value": asdict(measured.value),
        "gap": solution.gap,
        "blue": {move: asdict(weight) for move, weight in measured.blue.items()},
        "red": {move: asdict(weight) for move, weight in measured.red.items()},
        "pipelines": {
            move: {"against": d.against, "best": measured.best[move]}
            | {name: asdict(getattr(d, name)) for name in ("retention", "bad_rate", "worst", "exploitability")}
            for move, d in measured.pipelines.items()
        },
        "dominated": [asdict(each) for each in played.dominated],
        "filters": [
            {"blue": row, "red": column, "seconds": s.seconds}
            | {name: asdict(getattr(s, name)) for name in ("poisoned", "caught", "lost", "left")}
            for (row, column), s in played.screened.items()
        ],
        "emptied": [{"blue": row, "red": column, "organisms": n} for row, column, n in played.emptied],
        "silent": [{"blue": row, "red": column, "organisms": n} for row, column, n in played.silent],
        "prices": [{"low": p.low, "high": p.high, "values": p.values, **p.moves._asdict()} for p in played.prices],
        "rates": [{**limit._asdict(), "value": asdict(limit.value)} for limit in played.rates],
        "steps": [{**limit._asdict(), "value": asdict(limit.value)} for limit in played.steps],
        "trees": [
            {"name": t.name, "meaning": t.meaning, "value": asdict(t.value), "gap": t.solution.gap, "method": t.solution.method}
            | {"size": asdict(t.size), "blue": t.solution.blue, "red": t.solution.red}
            for t in played.trees
        ],
        "alarms": played.alarms,
        "path": [
            asdict(step) | {"gains": [asdict(gain) if gain else None for gain in gains]}
            for step, gains in zip(played.growth.path, played.gains, strict=True)
        ],
        "settled": played.growth.settled,
        "doubts": [{**d._asdict(), "payoff": asdict(d.payoff)} for d in played.doubts],
        "settings": played.settings,
    }


def render_game(played: Played) -> str:
    """The page of a game as HTML text, without any script; see :func:`render_page`."""
    pipelines = sorted(played.measured.pipelines.items(), key=lambda one: -(one[1].worst.value or 0.0))
    moves = {name: played.study.game.moves[name].poisoning for name in played.growth.red} if played.study.game else {}
    return (
        templates()
        .get_template("game.html")
        .render(
            data=played,
            css=source("chart.css") + source("page.css"),
            pipelines=pipelines,
            phases={name: [phase_name(phase) for phase in played.study.phases(name)] for name in played.growth.blue},
            moves={name: _policy(poisoning) for name, poisoning in moves.items()},
            game_map=game_map,
            shown=shown,
            settings=list(flat(played.settings)),
        )
    )


def render_payoffs(played: Played) -> str:
    """The payoffs alone as an SVG file."""
    return templates().get_template("game.svg").render(data=played, map=game_map(played, "payoff"), css=source("chart.css"))


def _policy(poisoning: Poisoning) -> str:
    """A move of red in words."""
    parts = [
        f"{100 * poisoning.rate[0]:g} % of the answers" if poisoning.rate[0] < 1 else "",
        "only where nobody can check the answer" if poisoning.when == "unchecked" else "",
        f"where a prompt holds {poisoning.signal!r}" if poisoning.signal else "",
    ]
    said = catalog.entry("policy", poisoning.policy).text.replace("\n", " ")
    limits = ", ".join(part for part in parts if part)
    return f"{said} ({limits})" if limits else said


def game_map(played: Played, measure: str) -> HeatMap:
    """One measure of a game: a row for each pipeline, a column for each move of red; what both sides play is framed."""
    rows, columns = played.growth.blue, played.growth.red
    wide, high, top = 38.0, 19.0, 12 + 4.6 * max(map(len, columns))
    left = room(rows)
    solution, cells = played.measured.solution, []
    for (row, column), numbers in played.cells.items():
        estimate: Estimate = getattr(numbers, measure)
        number = 0.0 if estimate.value is None else estimate.value
        shade = min(1.0, max(0.0, (number + played.price) / (1 + played.price) if measure == "payoff" else number))
        text = f"{number:+.2f}" if measure == "payoff" else f"{100 * number:.0f}"
        at = left + columns.index(column) * wide, top + rows.index(row) * high
        framed = row in solution.blue.support and column in solution.red.support
        label = f"{row} against {column}: {words.name(measure)} {words.sentence(estimate)}"
        cells.append(Cell(*at, shade, text, label, "inside" if framed else ""))
    title = f"{words.name(measure).capitalize()} by pipeline and move of red"
    return field(title, rows, columns, cells, (left, top), (wide, high), 60)
