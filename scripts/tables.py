"""Markdown tables of estimates as ``summary.json`` and ``game.json`` have them, for the scripts here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def head(*cells: str) -> str:
    """The first two lines of a table."""
    return f"{row(*cells)}\n{'|---' * len(cells)}|"


def row(*cells: str) -> str:
    """A line of it."""
    return f"| {' | '.join(cells)} |"


def share(estimate: Mapping[str, Any]) -> str:
    """A share in percent, with its interval if it has one."""
    ends = "" if estimate["low"] is None else f" [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"
    return f"{100 * estimate['value']:.0f} %{ends}"
