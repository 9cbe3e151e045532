"""What a study says: frozen typed models, YAML in with the line of every error, a stable hash out."""

from __future__ import annotations

from offmodel.spec.hashing import canonical_json, stable_hash
from offmodel.spec.study import Gate, Lora, Measure, Organisms, Phase, Recipe, SftPhase, Study, Training, Use, check_names

__all__ = [
    "Gate",
    "Lora",
    "Measure",
    "Organisms",
    "Phase",
    "Recipe",
    "SftPhase",
    "Study",
    "Training",
    "Use",
    "canonical_json",
    "check_names",
    "stable_hash",
]
