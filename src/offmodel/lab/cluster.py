"""Which cluster a run goes to and what each of its stages gets there, from the words of a command line; and whether that will do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from math import ceil
from typing import Any

from offmodel.errors import ClusterError, ModelError, SpecError, did_you_mean
from offmodel.lab.estimate import GIB
from offmodel.lab.on_ray import Ray
from offmodel.lab.on_slurm import SBATCH, Slurm
from offmodel.lab.pool import Local, Place
from offmodel.lab.resources import Resources, nodes_of, on_gpu, processes_of
from offmodel.lab.stage import Stage
from offmodel.lab.workload import gpus_here, too_large, work_of
from offmodel.spec.phases import OF_BITSANDBYTES

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


def check_gpus(stages: Iterable[Stage], place: Place, gpu_memory: float | None = None) -> None:
    """Check, before anything starts, that the stages that ask for a GPU get one, and one that is large enough.

    Args:
        stages: What is to run.
        place: Where.
        gpu_memory: GiB of one GPU. None asks the driver of this machine, and trusts in a cluster's; 0 checks no memory.

    Raises:
        ClusterError: There is no GPU, or there are fewer than processes that share a training.
        ModelError: A stage needs more memory than a GPU has.
        SpecError: An optimizer's package is not installed.
    """
    asking = [each for each in stages if on_gpu(each)]
    if not asking:
        return
    memory, gpus = gpus_here() if isinstance(place, Local) else (0.0, _given(place))
    memory = memory if gpu_memory is None else gpu_memory * GIB
    if memory and (reason := too_large(asking, memory, max(gpus, 1))):
        raise ModelError(f"{reason}. With --gpu-memory 0 this is not checked")
    asked = f"models.device: {asking[0].placement['device']} asks for a GPU"
    if isinstance(place, Local):
        import torch

        there, needed = torch.cuda.device_count(), max(processes_of(each) // nodes_of(each) for each in asking)
        if there == 0:
            build = "" if torch.backends.cuda.is_built() else f"; torch {torch.__version__} is none for GPUs: make setup TORCH=cuda"
            raise ClusterError(f"{asked}, and torch finds none here; run it where one is, or with device 'cpu'{build}")
        if there < needed:
            raise ClusterError(f"models.processes takes {needed} GPUs of a machine, one for each process, and here are {there}")
    elif not gpus:
        raise ClusterError(f"{asked}, and the cluster is asked for none; add --cluster gpus=1")
    for stage in asking:
        training = work.training if (work := work_of(stage)) else None
        if training is not None and training.optimizer in OF_BITSANDBYTES and find_spec("bitsandbytes") is None:
            package = "comes from bitsandbytes, which is not installed; install it with: pip install 'offmodel[gpu]'"
            raise SpecError(f"{stage.label}: the optimizer {training.optimizer!r} {package}")


def _given(place: Place) -> int:
    """How many GPUs a stage gets on a cluster, 1 where it is a share of one or where sbatch is told by ``gres``."""
    if isinstance(place, Slurm) and "gpu" in place.sbatch.get("gres", ""):
        return max(1, int(place.resources.gpus))
    return ceil(place.resources.gpus) if isinstance(place, Ray | Slurm) else 0


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
