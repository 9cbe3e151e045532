"""The scripts that measure, each once on something tiny: that they run and print the table that the documents show."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3MoeConfig

SCRIPTS = Path(__file__).parent.parent / "scripts"


def rows(script: str, *options: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[str, list[list[str]]]:
    """What a script says before its table, and the table's cells without its head."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
    capsys.readouterr()
    runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    said, _, table = capsys.readouterr().out.partition("|")
    head, _, *body = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]
    assert all(len(row) == len(head) for row in body)
    return said, body


def test_treatments_per_hour(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("subprocess.run", lambda command, **how: None)  # a process costs seconds, and trains as the others do
    tiny = ["--steps", "1", "--treatments", "2", "--at-once", "2", "--batch", "2", "--rank", "2", "--repeats", "1"]
    said, table = rows("bench_together", "random:64x1", *tiny, monkeypatch=monkeypatch, capsys=capsys)
    assert "rank 2, 1 steps of 2; 2 treatments, 2 at once, 1 of them in a process each" in said and "torch 2" in said
    assert [row[0] for row in table] == ["together", "one by one, warm", "a process each"]
    assert table[1][2] == table[2][3] == "1.00" and float(table[0][2]) > 0


def test_how_far_the_canary_sees(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, table = rows("canary", "world:student-0", monkeypatch=monkeypatch, capsys=capsys)
    assert [row[0] for row in table] == [f"weights/student-0, {dtype}" for dtype in ("float32", "bfloat16", "float16")]
    assert table[0][1:] == ["0.000", "0.0000"] and 0 < float(table[1][2]) < 0.02


def test_the_rate_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}
    shape = {"vocab_size": 8192, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    Qwen3MoeConfig(**shape, **experts).save_pretrained(tmp_path)
    tiny: list[Any] = ["--like", tmp_path, "--layers", 1, "--length", 32, "--steps", 1, "--device", "cpu", "--size", 64]
    said, table = rows("gpu_rate", *tiny, monkeypatch=monkeypatch, capsys=capsys)
    assert "with 1 layers" in said and "bfloat16, adapter of rank 32; 1 steps of 16 examples of 32 tokens, 4 at once" in said
    assert float(table[0][0]) > 0 and table[0][1] == "not measured on a CPU"
