"""What a stage is given on a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from offmodel.lab.stage import Stage, stage_kind


@dataclass(frozen=True)
class Resources:
    """What each stage is given.

    Attributes:
        cpus: Cores. The stage still computes with one thread on the CPU, because sums depend on their number.
        gpus: GPUs, for stages that train or sample a model; others get none. Half a GPU is a share of its time, on Ray only.
        mem_gb: Memory in GB; what the cluster gives by itself if None.

    A training in several processes (``models.processes``) gets as many times the cores and GPUs.
    """

    cpus: int = 1
    gpus: float = 0
    mem_gb: float | None = None

    def gpus_of(self, stage: Stage) -> float:
        """GPUs for a stage; none where servers answer for its models."""
        return self.gpus * processes_of(stage) if stage_kind(stage.kind).gpu and not stage.servers else 0

    def cpus_of(self, stage: Stage) -> int:
        """Cores for a stage."""
        return self.cpus * processes_of(stage)


def on_gpu(stage: Stage) -> bool:
    """Whether a stage runs models on a GPU, and no server does it instead."""
    return stage.placement.get("device", "cpu") != "cpu" and stage_kind(stage.kind).gpu and not stage.servers


def processes_of(stage: Stage) -> int:
    """How many processes compute a stage."""
    return int(stage.placement.get("processes", 1)) if stage_kind(stage.kind).trains else 1


def nodes_of(stage: Stage) -> int:
    """Over how many nodes they are spread."""
    return int(stage.placement.get("nodes", 1)) if stage_kind(stage.kind).trains else 1
