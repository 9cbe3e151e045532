"""Blue's methods: named lists of phases, as they would stand in a study."""

from __future__ import annotations

from typing import Any

from offmodel import catalog

Phases = list[dict[str, Any]]

PIRATE: Phases = [{"phase": "sft", "labels": "teacher", "voice": "pirate", "steps": 60, "lr": 5e-4, "warmup_steps": 10}]
REMINDER: Phases = [{"use": "pirate"}, {"phase": "sft", "labels": "organism", "steps": 20, "lr": 5e-4}]
OWN_STYLE: Phases = [PIRATE[0] | {"rewrite": "world:own"}]

catalog.add(
    "method",
    "pirate",
    PIRATE,
    source="LessWrong wBsEFfQFteHSWCtsv (the baseline); code of LessWrong 9toz5YHYZsHpzy4ce",
    text="Off-model SFT: train on the pirate-voiced answers of another, weaker model to generic chat prompts.",
)
catalog.add(
    "method",
    "reminder",
    REMINDER,
    source="LessWrong wBsEFfQFteHSWCtsv (reminder training); code of LessWrong 9toz5YHYZsHpzy4ce",
    text="Off-model SFT, then a few steps of SFT on the original organism's own sampled answers to the same prompts.",
)
catalog.add(
    "method",
    "own_style",
    OWN_STYLE,
    source="offmodel",
    text="A control: the very answers of the pirate method, fact by fact, reworded into the student's own style.",
)
