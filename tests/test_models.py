"""References to models: a result is tied to the weights, the tokenizer and the settings that it was made with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from offmodel.engine.folder import save_model
from offmodel.errors import ModelError
from offmodel.lab.models import open_reference, reference


@pytest.mark.parametrize("tiny_model", ["qwen3_moe"], indirect=True)
def test_a_model_with_other_settings_is_another_model(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_model(tiny_model, tiny_tokenizer, folder)
    planned = reference(str(folder))
    assert open_reference(planned.as_params()) == folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 1}))
    changed = reference(str(folder))
    assert changed.config != planned.config and (changed.weights, changed.tokenizer) == (planned.weights, planned.tokenizer)
    with pytest.raises(ModelError, match="configuration are not those that the study was planned with"):
        open_reference(planned.as_params())
