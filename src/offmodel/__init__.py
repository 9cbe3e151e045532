"""Training-based control of untrusted language models: install a behaviour, train it away, measure the trade-off.

The public names load on first use, so that importing the package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offmodel.api import run, score_again, write
    from offmodel.report import ReportData
    from offmodel.spec import Study

__version__ = "0.1.0"
__all__ = ["ReportData", "Study", "__version__", "run", "score_again", "write"]

_HOMES = {
    "ReportData": "offmodel.report",
    "Study": "offmodel.spec",
    "run": "offmodel.api",
    "score_again": "offmodel.api",
    "write": "offmodel.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'offmodel' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
