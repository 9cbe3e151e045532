"""Every field of a phase, and of how a study's models are run, comes to what the engine trains by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import pytest

from offmodel.engine.lora import LoraSettings
from offmodel.engine.objective import Distil, Objective
from offmodel.engine.rl import GrpoConfig
from offmodel.engine.train import TrainConfig
from offmodel.lab.blue_stages import _PHASES
from offmodel.lab.configs import distil_config, grpo_config, sft_config
from offmodel.spec.models import running
from offmodel.spec.phases import Anchor, DistilPhase, GrpoPhase, SftPhase

MUON: dict[str, Any] = {"steps": 7, "lr": 0.1, "lr_rest": 0.2, "batch_size": 6, "schedule": "cosine", "warmup_steps": 3}
MUON |= {"optimizer": "muon", "weight_decay": 0.3}
PLAIN: dict[str, Any] = {"steps": 7, "lr": 0.1, "batch_size": 8}
"""Several processes train by AdamW alone."""
ANSWERS: dict[str, Any] = {"temperature": 0.6, "max_new_tokens": 11}
SAID_LORA, LORA = {"lora": {"rank": 5, "alpha": 9.0}}, LoraSettings(rank=5, alpha=9.0)
LAYERS = (0.25, 0.75)

LOSS: dict[str, Any] = {"loss": "psft", "clip": 0.4, "refresh": 4, "mask_above": 50.0, "layers": LAYERS}
GRPO: dict[str, Any] = {"group": 4, "scale": False, "updates": 3, "beta": 0.05, "clip": 0.4}
MODELS: dict[str, Any] = {"padding_free": True, "router_loss": 0.05}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], TrainConfig | GrpoConfig]] = {
    "sft": (
        {**MUON, **LOSS, "max_length": 99, "order": "in_turn", "labels": "teacher"}
        | {"anchor": {"kl": 0.7, "direction": "reverse", "l2_sp": 0.8, "ewc": 0.9}},
        {**MODELS, "micro_batch": 2},
        TrainConfig(
            **MUON, **MODELS, max_length=99, seed=5, shuffle=False, micro_batch_size=2,
            objective=Objective(**LOSS, kl=0.7, kl_direction="reverse", l2_sp=0.8, ewc=0.9),
        ),
    ),
    "sft by several": (
        {**PLAIN, **SAID_LORA, "labels": "teacher"},
        {"micro_batch": 1, "processes": 4, "nodes": 2},
        TrainConfig(**PLAIN, seed=5, lora=LORA, micro_batch_size=1, processes=4, nodes=2),
    ),
    "distil": (
        {**MUON, **SAID_LORA, **ANSWERS, "max_length": 99, "layers": LAYERS, "teacher": "base", "beta": 0.2, "on_policy": 0.4},
        {},
        TrainConfig(
            **MUON, max_length=99, seed=5, lora=LORA,
            objective=Objective(layers=LAYERS, distil=Distil(**ANSWERS, beta=0.2, on_policy=0.4)),
        ),
    ),
    "grpo": (
        {**MUON, **SAID_LORA, **ANSWERS, **GRPO},
        {"micro_batch": 12},
        GrpoConfig(**MUON, **ANSWERS, **GRPO, seed=5, lora=LORA, micro_batch_size=12),
    ),
}  # fmt: skip
"""A phase, how models are run, and what the engine gets."""


@pytest.mark.parametrize("case", CASES)
def test_what_a_phase_says_is_what_the_engine_gets(case: str) -> None:
    said, placement, expected = CASES[case]
    phase = _PHASES[case.split()[0]].model_validate({"phase": case.split()[0]} | said)
    with running({}, placement):
        if isinstance(phase, SftPhase):
            got: Any = sft_config(phase, 5, phase.lora)
        elif isinstance(phase, DistilPhase):
            got = distil_config(phase, 5, phase.lora)
        else:
            assert isinstance(phase, GrpoPhase)
            got = grpo_config(phase, 5, phase.lora)
    assert got == expected


def given(settings: Any) -> Iterator[tuple[str, str]]:
    """The fields of the engine's settings that have another value than where nothing is said, by class."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        if value != (each.default if each.default_factory is MISSING else each.default_factory()):
            yield type(settings).__name__, each.name
        if is_dataclass(value):
            yield from given(value)


def test_every_field_is_in_a_case() -> None:
    """What is not is named here: on the engine's side what no study has a word for, of a phase what it trains on, and not how."""
    engine = {(of.__name__, each.name) for of in (TrainConfig, GrpoConfig, Objective, Distil, LoraSettings) for each in fields(of)}
    assert engine - {each for *_, settings in CASES.values() for each in given(settings)} == {
        ("TrainConfig", "final_fraction"), ("TrainConfig", "betas"), ("TrainConfig", "max_grad_norm"), ("GrpoConfig", "max_grad_norm"),
    }  # fmt: skip
    left = {}
    for kind, of in _PHASES.items():
        said = {name: value for case, (phase, *_) in CASES.items() if case.split()[0] == kind for name, value in phase.items()}
        left[kind] = {name for name, field in of.model_fields.items() if said.get(name, field.default) == field.default}
    rows = {"sft": {"mix", "shards"}, "distil": {"voice", "source", "prompts", "rows"}, "grpo": {"tasks", "max_length"}}
    assert left == {kind: names | {"phase"} for kind, names in rows.items()}
    assert {*Anchor.model_fields} - {*CASES["sft"][0]["anchor"]} == {"on"}
