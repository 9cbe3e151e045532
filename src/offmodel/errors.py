"""One exception tree. A message says what is wrong, where it stands, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class OffmodelError(Exception):
    """Root of every error that offmodel raises on purpose; the command line prints its message and exits with 2."""


class SpecError(OffmodelError, ValueError):
    """A study, a recipe or a command-line override that cannot be read."""


class DataError(OffmodelError, ValueError):
    """Prompts, labels or items that cannot be used."""


class ModelError(OffmodelError, ValueError):
    """A model folder or a model that cannot be used."""


class DivergedError(ModelError):
    """A training whose loss is no longer finite."""


class StoreError(OffmodelError, RuntimeError):
    """A store that cannot be read or written, or whose content is not what its manifest says."""


class StageError(OffmodelError, RuntimeError):
    """A stage of a run that failed."""


class ClusterError(OffmodelError, RuntimeError):
    """A cluster that cannot be reached, or that refuses work."""


class HubError(OffmodelError, RuntimeError):
    """A hub that cannot be reached, or that refuses an upload."""


class GameError(OffmodelError, ValueError):
    """A game that cannot be solved as it stands: a hole, a tree that is not one, or one that is too large."""


class BlindnessError(OffmodelError, RuntimeError):
    """A trigger was about to reach the blue team."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that names the nearest valid value, or lists all where none is near.

    Example:
        >>> did_you_mean("remnder", ["pirate", "reminder"])
        "did you mean 'reminder'?"
    """
    options = sorted(known)
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"valid are: {', '.join(options)}" if options else "there is none to choose from"


def nearest_file(path: Path) -> str:
    """A clause that names the file that may have been meant, for an error about one that does not exist."""
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r} either"
    near = did_you_mean(path.name, (file.name for file in path.parent.iterdir() if file.suffix == path.suffix))
    return f"in {str(path.parent)!r}, {near}"
