"""Facts about the code behind a result that do not depend on the machine."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import offmodel

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


@cache
def provenance() -> dict[str, Any]:
    """Versions of offmodel, Python and the engine's packages, and the commit of the code with whether it was changed since.

    All as at the first call in a process, which whatever runs stages makes at its beginning: later the sources may be of another commit
    than the code that was imported.
    """
    return {"offmodel": offmodel.__version__, "python": platform.python_version(), **_versions(), "code": _commit()}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _commit() -> dict[str, Any] | None:
    folder = Path(offmodel.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed copy may lie inside somebody else's repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None
