"""Which cluster a run goes to and what each of its stages gets there, from the words of a command line."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from offmodel.errors import SpecError, did_you_mean
from offmodel.lab.on_ray import Ray
from offmodel.lab.on_slurm import SBATCH, Slurm
from offmodel.lab.pool import Local, Place
from offmodel.lab.resources import Resources

ON = ("local", "ray", "slurm")
"""Where a run may go."""

_RESOURCES = {"cpus": int, "gpus": float, "mem_gb": float}
_KNOWN: Mapping[str, Mapping[str, type]] = {
    "local": {},
    "ray": {**_RESOURCES, "address": str},
    "slurm": {**_RESOURCES, "gpus": int, "minutes": int, "executor": str, **dict.fromkeys(SBATCH, str)},
}
_MAY_BE_ZERO = ("gpus",)


def place(on: str = "local", options: Mapping[str, Any] | None = None) -> Place:
    """The place that ``--on`` and ``--cluster`` name.

    Args:
        on: ``local``, ``ray`` or ``slurm``.
        options: Values, or their text, by name. For each stage: ``cpus``; ``gpus``, for those that train or sample a model; ``mem_gb``.
            Ray: ``address`` of a running cluster. Slurm: ``minutes``, ``executor``, and options of ``sbatch``.

    Raises:
        SpecError: A name or value cannot be used, or the package that the place needs is not installed.
    """
    if on not in ON:
        raise SpecError(f"--on {on}: unknown; {did_you_mean(on, ON)}")
    options, known = dict(options or {}), _KNOWN[on]
    for key in options:
        if key not in known:
            hint = did_you_mean(key, known) if known else "this machine needs no options; --workers says how many stages run at once"
            raise SpecError(f"--cluster {key}: unknown with --on {on}; {hint}")
    if on == "local":
        return Local()
    package = {"ray": "ray", "slurm": "submitit"}[on]
    if find_spec(package) is None:
        raise SpecError(f"--on {on}: the package {package!r} is not installed; install it with: pip install 'offmodel[{on}]'")
    values = {key: _read(key, str(value), known[key]) for key, value in options.items()}
    resources = Resources(**{key: values.pop(key) for key in _RESOURCES if key in values})
    if on == "ray":
        return Ray(resources, **values)
    own = {key: values.pop(key) for key in ("minutes", "executor") if key in values}
    if own.get("executor", "slurm") not in ("slurm", "local"):
        raise SpecError(f"--cluster executor={own['executor']}: unknown; {did_you_mean(own['executor'], ('slurm', 'local'))}")
    return Slurm(resources, sbatch=values, **own)


def _read(key: str, text: str, kind: type) -> Any:
    """The value of an option."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value in (None, "") or (kind is not str and not (0 if key in _MAY_BE_ZERO else 1e-9) <= value < float("inf")):
        what = {int: "a whole number", float: "a number", str: "not be empty"}[kind]
        least = "" if kind is str else ", 0 or more" if key in _MAY_BE_ZERO else ", more than 0"
        raise SpecError(f"--cluster {key}={text}: must {'be ' if kind is not str else ''}{what}{least}")
    return value
