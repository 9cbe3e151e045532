"""Linear programmes, solved by HiGHS through scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offmodel.errors import GameError

# HiGHS's own tolerances are 1e-7, which would hide mixtures' small weights; 1e-10 is the least it takes.
_OPTIONS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def maximise(
    objective: ArrayLike, at_most: tuple[Any, ArrayLike], equal: tuple[Any, ArrayLike], *, free: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The point where a linear objective is largest, and the prices of the inequalities there.

    Args:
        objective: Of each variable.
        at_most: Rows (dense or sparse) and limits of ``rows @ point <= limits``.
        equal: Rows and right sides of ``rows @ point == sides``.
        free: How many variables, the last ones, may be below 0.

    Returns:
        The point, and for each inequality what the objective would gain per unit of its limit; these are the other side's optimum.

    Raises:
        GameError: The solver found no optimum.
    """
    from scipy.optimize import linprog  # half a second to import: not before it is needed

    cost = -np.asarray(objective, dtype=float)
    bounds = [(0, None)] * (len(cost) - free) + [(None, None)] * free
    found = linprog(cost, *at_most, *equal, bounds=bounds, method="highs", options=_OPTIONS)
    if found.status != 0:
        raise GameError(f"the linear programme was not solved: {found.message} Are the payoffs of a size that numbers can hold?")
    return np.asarray(found.x, dtype=float), -np.asarray(found.ineqlin.marginals, dtype=float)


def normalised(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of a solver as probabilities: what is below 0 is rounding, and so is a sum beside 1."""
    clipped = weights.clip(min=0.0)
    return clipped / clipped.sum()
