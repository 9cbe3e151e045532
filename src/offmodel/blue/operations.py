"""Blue's operations on weights, as the catalog holds them; the tensors are computed in :mod:`offmodel.engine.operations`."""

from __future__ import annotations

import math
import pkgutil
from dataclasses import dataclass
from pathlib import Path

from offmodel import catalog


@dataclass(frozen=True)
class Operation:
    """An operation on weights.

    Attributes:
        function: Where its function is, as ``module:name``, so that the catalog loads no torch; see :mod:`offmodel.engine.operations`.
        lowest: The least strength that makes sense.
        highest: The greatest.
        needs_other: It works with a third model besides the original and the current one.
    """

    function: str
    lowest: float = -math.inf
    highest: float = math.inf
    needs_other: bool = False

    def __call__(self, theta0: Path, theta1: Path, target: Path, strength: float, other: Path | None = None) -> str:
        """Do it on model folders and return the new weights' hash; see :func:`offmodel.engine.operations.operate`."""
        from offmodel.engine.operations import operate

        return operate(pkgutil.resolve_name(self.function), theta0, theta1, target, strength, other)


_ENGINE = "offmodel.engine.operations"

catalog.add(
    "operation",
    "interpolate",
    Operation(f"{_ENGINE}:interpolate", lowest=0.0, highest=1.0),
    source="arXiv 2109.01903 (WiSE-FT)",
    text="Average the weights with the original's. Strength, from 0 to 1: the share of the current model.",
)
catalog.add(
    "operation",
    "lines",
    Operation(f"{_ENGINE}:lines", lowest=0.0, highest=1.0),
    source="arXiv 2410.17146 (LiNeS)",
    text=(
        "Take the change since the original back in the shallow layers, linearly with depth. Strength, from 0 to 1: the share of the "
        "change that the first layer keeps; the last keeps all."
    ),
)
catalog.add(
    "operation",
    "spectral",
    Operation(f"{_ENGINE}:spectral", lowest=0.0),
    source="doi:10.1109/TIT.2014.2323359 (Gavish and Donoho); arXiv 2605.20296 (DG-Hard)",
    text=(
        "Drop the small singular values of the change since the original, as if they were noise. Strength, from 0: the threshold, in "
        "units of the optimal one; 1 is the published method."
    ),
)
catalog.add(
    "operation",
    "add",
    Operation(f"{_ENGINE}:add", needs_other=True),
    source="arXiv 2212.04089 (task arithmetic)",
    text=(
        "Add the change that another method made to the original. Strength: the share of that change that is added; below 0 it is "
        "subtracted."
    ),
)
