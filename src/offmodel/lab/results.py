"""What a stage's result holds: the names of its files and folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODEL = "model"
"""Folder of an organism's weights."""
ADAPTER = "adapter"
"""Folder of an adapter that blue goes on training, within a model's."""
PROMPTS = "prompts.jsonl"
LABELS = "labels.jsonl"
DECISIONS = "decisions.json"
"""What a filter decided of each label, in their order."""
POISONED = "poisoned.json"
"""Which labels red changed, by place; blue's stages never read it."""
WATCHED = "watched.json"
PROBED = "probed.json"
VERDICTS = "verdicts.jsonl"
OPINIONS = "judged.jsonl"


def step_folder(step: int) -> str:
    """Folder of a checkpoint's weights."""
    return f"step-{step}"


def write_json(path: Path, value: Any) -> None:
    """Write what a stage says besides its main result."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
