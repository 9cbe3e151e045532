"""Model folders: what is written is what is read, and whatever is wrong is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from offmodel.chat import encode_prompt, user
from offmodel.engine.folder import check_model_folder, hash_config, hash_tokenizer, hash_weights, load_model, load_tokenizer, save_model
from offmodel.errors import ModelError


@pytest.fixture
def folder(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    save_model(tiny_model, tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_comes_back_bit_for_bit(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    loaded, tokenizer = load_model(folder), load_tokenizer(folder)
    assert not loaded.training
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    prompt = user("Tell me about soup.")
    assert encode_prompt(tokenizer, prompt) == encode_prompt(tiny_tokenizer, prompt)
    assert tokenizer.padding_side == "left"


def test_the_hash_ignores_sharding_and_sees_every_tensor(tiny_model: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert hash_weights(tmp_path / "sharded") == hash_weights(folder)
    with torch.no_grad():
        tiny_model.get_output_embeddings().weight[0, 0] += 1e-3
    tiny_model.save_pretrained(tmp_path / "changed")
    assert hash_weights(tmp_path / "changed") != hash_weights(folder)


def test_the_tokenizer_hash_ignores_layout_and_sees_the_template(folder: Path) -> None:
    before = hash_tokenizer(folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=7))
    assert hash_tokenizer(folder) == before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert hash_tokenizer(folder) != before


def test_the_config_hash_sees_settings_and_ignores_layout_and_who_wrote_them(folder: Path) -> None:
    def edit(name: str, **changes: object) -> str:
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(dict(reversed({**content, **changes}.items())), indent=7))
        return hash_config(folder)

    before = hash_config(folder)
    assert edit("config.json", transformers_version="9.9", _name_or_path="/somewhere") == before
    assert edit("tokenizer_config.json", name_or_path="/somewhere", is_local=False) == before
    changes = [
        edit("config.json", num_experts_per_tok=1),
        edit("generation_config.json", temperature=0.5),
        edit("tokenizer_config.json", padding_side="right"),
        edit("special_tokens_map.json", eos_token="x"),
    ]
    assert len({before, *changes}) == 5
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json: holds no JSON object"):
        hash_config(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": None}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}, []])
def test_a_broken_index_is_named(folder: Path, index: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json: (its weight_map does not|holds no JSON object)"):
        check_model_folder(folder)


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="exists already"):
        save_model(tiny_model, tiny_tokenizer, folder)

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tiny_tokenizer), "save_pretrained", disk_full)
    with pytest.raises(ModelError, match="No space left"):
        save_model(tiny_model, tiny_tokenizer, folder.with_name("second"))
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def _without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def test_each_fault_of_a_folder_is_named(folder: Path, tmp_path: Path) -> None:
    cases = {
        "no config.json": lambda f: _without(f, "config.json"),
        "no tokenizer.json": lambda f: _without(f, "tokenizer.json"),
        "no chat template": lambda f: _without(f, "chat_template.jinja"),
        "has no model.safetensors": lambda f: _without(f, "model.safetensors"),
        "pickle files": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    }
    for message, damage in cases.items():
        copy = shutil.copytree(folder, tmp_path / "copy")
        damage(copy)
        with pytest.raises(ModelError, match=message):
            check_model_folder(copy)
        shutil.rmtree(copy)
    with pytest.raises(ModelError, match=r"no such model folder; did you mean 'model'\?"):
        check_model_folder(folder.with_name("modle"))


def test_weights_that_are_not_what_they_should_be_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="dtype 'float23' is unknown: did you mean 'float32'"):
        load_model(folder, dtype="float23")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="do not fit"):
        load_model(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="ends in the middle"):
        hash_weights(folder)
    weights.write_bytes(b"not a model at all")
    with pytest.raises(ModelError, match="broken"):
        hash_weights(folder)
