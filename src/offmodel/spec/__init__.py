"""What a study says: frozen typed models, YAML in with the line of every error, a stable hash out."""

from __future__ import annotations

from offmodel.spec.endpoint import Endpoint
from offmodel.spec.hashing import canonical_json, stable_hash
from offmodel.spec.phases import (
    Anchor,
    DeployPhase,
    DistilPhase,
    GrpoPhase,
    Inoculation,
    LabelSet,
    Lora,
    Phase,
    SftPhase,
    Training,
    Use,
    WeightsPhase,
)
from offmodel.spec.study import Gate, Measure, Organisms, Recipe, Study, check_names

__all__ = [
    "Anchor",
    "DeployPhase",
    "DistilPhase",
    "Endpoint",
    "Gate",
    "GrpoPhase",
    "Inoculation",
    "LabelSet",
    "Lora",
    "Measure",
    "Organisms",
    "Phase",
    "Recipe",
    "SftPhase",
    "Study",
    "Training",
    "Use",
    "WeightsPhase",
    "canonical_json",
    "check_names",
    "stable_hash",
]
