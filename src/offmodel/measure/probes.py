"""Probes: small experiments beside the main one. A probe is what it changes in the scoring of a checkpoint."""

from __future__ import annotations

from offmodel import catalog

catalog.add(
    "probe", "own_opening", {"prefill_tokens": 4}, source="code of LessWrong 9toz5YHYZsHpzy4ce (prefill of n tokens)",
    text=(
        "Is the capability suppressed or gone? The treated model must begin every capability answer with the first 4 tokens of the "
        "original organism's own answer to the same prompt, and goes on by itself; nothing is trained."
    ),
)  # fmt: skip
