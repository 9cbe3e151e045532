"""The tables of docs/poisoning.md: a game's payoffs, its mixtures and trees, and what the filters caught, in Markdown.

python scripts/poisoning.py runs/poison/game.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tables import head, row, share


def payoffs(game: Mapping[str, Any]) -> Iterator[str]:
    """Capability kept and bad answers in percent, a row for each pipeline, the one with the best worst case first."""
    red = list(game["red"])
    cells = {(cell["blue"], cell["red"]): f"{_percent(cell['retention'])} / {_percent(cell['bad_rate'])}" for cell in game["cells"]}
    yield head("pipeline", *(f"`{move}`" for move in red), "worst payoff", "against")
    for name, found in sorted(game["pipelines"].items(), key=lambda one: -one[1]["worst"]["value"]):
        worst = _signed(found["worst"])
        yield row(f"`{name}`", *(cells.get((name, move), "") for move in red), worst, f"`{found['against']}`")


def mixtures(game: Mapping[str, Any]) -> Iterator[str]:
    """What each side plays, and what the game is worth, at once and as a tree."""
    for side in ("blue", "red"):
        played = {name: weight for name, weight in game[side].items() if weight["value"] >= 0.005}
        yield f"- {side}: {', '.join(f'`{name}` {share(weight)}' for name, weight in played.items())}"
    yield f"- value: {_signed(game['value'])}"
    for tree in game["trees"]:
        yield f"- value, {tree['name']}: {_signed(tree['value'])} ({tree['method']})"
    for name, rings in game["alarms"].items():
        yield f"- the audit rings on `{name}`: {100 * rings:.0f} % of the organisms"


def filters(game: Mapping[str, Any]) -> Iterator[str]:
    """What each pipeline's filters caught of each policy that changed an answer, and what they lost of honest ones."""
    found = {(one["blue"], one["red"]): one for one in game["filters"]}
    red = [move for move in game["red"] if any(one["poisoned"]["value"] for (_, against), one in found.items() if against == move)]
    yield head("filters of", "honest answers lost", *(f"caught of `{move}`" for move in red), "seconds")
    for name in dict.fromkeys(blue for blue, _ in found):
        lost = _percent(found[name, "honest"]["lost"]) if (name, "honest") in found else ""
        caught = [_percent(found[name, move]["caught"]) if (name, move) in found else "" for move in red]
        seconds = [one["seconds"] for (blue, _), one in found.items() if blue == name]
        yield row(f"`{name}`", lost, *caught, f"{sum(seconds) / len(seconds):.1f}")


def page(game: Mapping[str, Any]) -> Iterator[str]:
    """All of it, line by line."""
    seeds = ", ".join(map(str, game["seeds"]))
    of = f"{len(game['organisms'])} organisms, seeds {seeds}, {len(game['cells'])} cells"
    yield f"{game['created'][:10]}, commit {game['commit']}, {of}, price {game['price']:g}"
    for part in (payoffs, mixtures, filters):
        yield ""
        yield from part(game)


def _percent(estimate: Mapping[str, Any]) -> str:
    return "" if estimate["value"] is None else f"{100 * estimate['value']:.0f}"


def _signed(estimate: Mapping[str, Any]) -> str:
    ends = "" if estimate["low"] is None else f" [{estimate['low']:+.2f}, {estimate['high']:+.2f}]"
    return f"{estimate['value']:+.2f}{ends}".replace("-", "\N{MINUS SIGN}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("\n".join(page(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
