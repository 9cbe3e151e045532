"""Operations on weights: exact at their ends, right in between, and folders that anyone can load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from offmodel import catalog
from offmodel.engine.folder import DTYPES, hash_config, hash_tokenizer, hash_weights, load_model, save_model
from offmodel.engine.operations import add, interpolate, join, lines, median, operate, spectral
from offmodel.errors import ModelError

Weights = dict[str, Tensor]


class Folders(NamedTuple):
    """The original, the current model, a third one, and one that is not there yet."""

    theta0: Path
    theta1: Path
    other: Path
    target: Path


def _changed(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    model = deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


@pytest.fixture
def save(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Folders]:
    def models(*, tied: bool = False, dtype: str = "float32") -> Folders:
        tiny_model.config.tie_word_embeddings = tied
        original = type(tiny_model)(tiny_model.config).to(DTYPES[dtype])
        folders = Folders(*(tmp_path / name for name in Folders._fields))
        for model, folder in zip((original, _changed(original, 1), _changed(original, 2)), folders, strict=False):
            save_model(model, tiny_tokenizer, folder)
        return folders

    return models


@pytest.fixture
def folders(save: Callable[..., Folders]) -> Folders:
    return save()


def _stored(folder: Path) -> Weights:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ends_are_exact_to_the_bit(save: Callable[..., Folders], dtype: str) -> None:
    theta0, theta1, other, target = save(dtype=dtype)
    ends = [(interpolate, 0.0, theta0), (interpolate, 1.0, theta1), (lines, 1.0, theta1), (spectral, 0.0, theta1), (add, 0.0, theta1)]
    for operation, strength, end in ends:
        third = other if operation is add else None
        assert operate(operation, theta0, theta1, target, strength, third) == hash_weights(target) == hash_weights(end)
        shutil.rmtree(target)
    assert operate(add, theta0, theta1, target, 0.7, theta0) == hash_weights(theta1)


def test_the_ends_keep_the_sign_of_zero() -> None:
    zero, one = {"w": torch.tensor([-0.0])}, {"w": torch.tensor([1.0])}
    for theta0, theta1, end in ((zero, one, 0.0), (one, zero, 1.0)):
        assert dict(interpolate(theta0, theta1, end))["w"].signbit().item()


def test_a_middle_is_what_the_hand_computes() -> None:
    theta0 = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor(8.0)}
    theta1 = {"w": torch.tensor([3.0, 2.0]), "b": torch.tensor(4.0)}
    other = {"w": torch.tensor([0.0, 0.0]), "b": torch.tensor(10.0)}
    middle = dict(interpolate(theta0, theta1, 0.25))
    assert [middle["w"].tolist(), middle["b"].item()] == [[1.5, -1.0], 7.0]
    sum_ = dict(add(theta0, theta1, 0.5, other))
    assert [sum_["w"].tolist(), sum_["b"].item()] == [[2.5, 3.0], 5.0]
    assert dict(add(theta0, theta1, -1.0, theta1))["w"].tolist() == theta0["w"].tolist()


def test_it_computes_in_float32_and_gives_the_current_dtype() -> None:
    # In bfloat16, 1 - 0.0118 would be rounded to eight bits, and -1 + (1 - 0.0118) would not be -0.0118.
    small, one = torch.tensor([0.0118]).bfloat16(), torch.tensor([1.0]).bfloat16()
    assert dict(add({"w": small}, {"w": -one}, 1.0, {"w": one}))["w"].tolist() == (-small).tolist()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        current = {"layers.0.w": torch.ones(2, 2, dtype=dtype)}
        original = {"layers.0.w": torch.zeros(2, 2, dtype=torch.bfloat16)}
        for operation in (interpolate, lines, spectral):
            for strength in (0.0, 0.5, 1.0):
                assert dict(operation(original, current, strength))["layers.0.w"].dtype == dtype
        assert dict(add(original, current, 0.5, current))["layers.0.w"].dtype == dtype


@pytest.mark.parametrize(
    ("prefix", "first", "last"),
    [
        ("model.layers", ["model.embed_tokens.weight"], ["model.norm.weight", "lm_head.weight"]),
        ("transformer.h", ["transformer.wte.weight", "transformer.wpe.weight"], ["transformer.ln_f.weight", "lm_head.weight"]),
        ("transformer.blocks", ["transformer.wte.weight"], ["transformer.norm_f.weight", "lm_head.weight"]),  # MPT, DBRX
        ("gpt_neox.layers", ["gpt_neox.embed_in.weight"], ["gpt_neox.final_layer_norm.weight", "embed_out.weight"]),
    ],
)
def test_lines_scales_the_change_by_depth(prefix: str, first: list[str], last: list[str]) -> None:
    layers = [f"{prefix}.{n}.mlp.experts.3.weight" for n in range(11)]
    names = [*first, *layers[::-1], *last]
    theta0, theta1 = {name: torch.zeros(2) for name in names}, {name: torch.ones(2) for name in names}
    scales = {name: tensor[0].item() for name, tensor in lines(theta0, theta1, 0.3)}
    assert [scales[name] for name in layers] == pytest.approx([0.3 + 0.07 * n for n in range(11)])
    assert [scales[name] for name in first] == pytest.approx([0.3] * len(first))
    assert [scales[name] for name in last] == [1.0] * len(last)
    assert dict(lines(theta0, theta1, 0.0))[layers[0]].tolist() == [0.0, 0.0]


def test_lines_needs_layers() -> None:
    with pytest.raises(ModelError, match=r"no tensor's name holds its layer, as in model\.layers\.7\..*the first is players\.0\.w"):
        dict(lines({"players.0.w": torch.ones(1)}, {"players.0.w": torch.ones(1)}, 0.5))


def _signal_and_noise(*shape: int) -> tuple[Tensor, Tensor]:
    """Matrices of rank 2 far above the noise, and white noise."""
    torch.manual_seed(0)
    *stack, rows, columns = shape
    signal = 2.0 * torch.randn(*stack, rows, 2) @ torch.randn(*stack, 2, columns)
    return signal, torch.randn(shape)


@pytest.mark.parametrize("shape", [(80, 80), (40, 120), (120, 40), (3, 40, 60)])
def test_spectral_keeps_a_signal_and_drops_the_noise(shape: tuple[int, ...]) -> None:
    signal, noise = _signal_and_noise(*shape)
    theta0 = {"w": torch.randn(shape)}
    kept = dict(spectral(theta0, {"w": theta0["w"] + signal + noise}, 1.0))["w"] - theta0["w"]
    assert torch.linalg.matrix_rank(kept, rtol=1e-4).unique().tolist() == [2]
    assert (kept - signal).norm() < 0.35 * noise.norm()
    dropped = dict(spectral(theta0, {"w": theta0["w"] + noise}, 1.0))["w"]
    torch.testing.assert_close(dropped, theta0["w"], rtol=0, atol=1e-5)


def test_spectral_takes_the_published_threshold_and_the_strength_scales_it() -> None:
    # Singular values 1, 2, 3, 4, 5: the median is 3. Square: omega(1) = 2.86, so the threshold is 8.58 times the strength.
    change = torch.diag(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]))
    zero = {"w": torch.zeros(5, 5)}

    def kept(change: Tensor, strength: float) -> int:
        return int(torch.linalg.matrix_rank(dict(spectral({"w": torch.zeros_like(change)}, {"w": change}, strength))["w"], rtol=1e-4))

    assert [kept(change, tau / 8.58) for tau in (0.9, 1.1, 3.1, 4.9, 5.1)] == [5, 4, 2, 1, 0]
    # Twice as long as high: omega(0.5) = 2.1725, so the threshold is 6.5175 times the strength.
    wide = torch.cat((change, torch.zeros(5, 5)), dim=1)
    for matrix in (wide, wide.T):
        assert [kept(matrix, tau / 6.5175) for tau in (3.99, 4.01)] == [2, 1]
    torch.testing.assert_close(dict(spectral(zero, {"w": change}, 3.1 / 8.58))["w"], torch.diag(torch.tensor([5.0, 0, 4, 0, 0])))


def test_spectral_filters_a_stack_matrix_by_matrix_and_leaves_vectors() -> None:
    signal, noise = _signal_and_noise(3, 30, 40)
    scales = torch.tensor([1.0, 100.0, 0.01])[:, None, None]  # each needs a threshold of its own
    zero = {"experts": torch.zeros(3, 30, 40), "norm": torch.zeros(30)}
    changed = {"experts": scales * (signal + noise), "norm": torch.randn(30)}
    result = dict(spectral(zero, changed, 1.0))
    assert torch.equal(result["norm"], changed["norm"])
    for i in range(3):
        alone = dict(spectral({"w": zero["experts"][i]}, {"w": changed["experts"][i]}, 1.0))["w"]
        torch.testing.assert_close(result["experts"][i], alone)


@pytest.mark.parametrize("tied", [False, True])
def test_the_results_are_ordinary_models(save: Callable[..., Folders], tied: bool) -> None:
    theta0, theta1, other, target = save(tied=tied)
    (theta1 / "README.md").write_text("A card.")
    (theta1 / "adapter").mkdir()
    assert any("lm_head" in name for name in _stored(theta1)) != tied
    for operation in (interpolate, lines, spectral, add):
        third = other if operation is add else None
        digest = operate(operation, theta0, theta1, target, 0.5, third)
        assert digest == hash_weights(target) not in {hash_weights(folder) for folder in (theta0, theta1, other)}
        assert (hash_config(target), hash_tokenizer(target)) == (hash_config(theta1), hash_tokenizer(theta1))
        assert {file.name for file in target.iterdir()} == {file.name for file in theta1.iterdir()} - {"README.md", "adapter"}
        plain = AutoModelForCausalLM.from_pretrained(target)
        ids = AutoTokenizer.from_pretrained(target)("Tell me about soup.", return_tensors="pt").input_ids
        assert plain(ids).logits.isfinite().all()
        loaded = load_model(target).state_dict()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in plain.state_dict().items())
        third_weights = () if third is None else (_stored(third),)
        expected = dict(operation(_stored(theta0), _stored(theta1), 0.5, *third_weights))
        found = _stored(target)
        assert found.keys() == expected.keys() and all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        shutil.rmtree(target)


def test_shards_stay_shards(folders: Folders, tmp_path: Path) -> None:
    theta0, theta1, other, target = folders
    sharded = tmp_path / "sharded"
    shutil.copytree(theta1, sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    load_model(theta1).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    for i, (operation, third) in enumerate([(lines, ()), (add, (other,))]):
        whole, in_shards = target.with_name(f"whole{i}"), target.with_name(f"shards{i}")
        assert operate(operation, theta0, theta1, whole, 0.5, *third) == operate(operation, theta0, sharded, in_shards, 0.5, *third)
        assert {file.name for file in in_shards.iterdir()} == {file.name for file in sharded.iterdir()}
        assert json.loads((in_shards / "model.safetensors.index.json").read_text())["weight_map"].keys() == _stored(whole).keys()
        AutoModelForCausalLM.from_pretrained(in_shards)
        load_model(in_shards)


def test_models_that_do_not_fit_together_are_refused() -> None:
    model = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    shorter, longer, wider = {"a": model["a"]}, {**model, "c": torch.ones(1)}, {**model, "b": torch.ones(5)}
    whole = {**model, "b": torch.ones(4, dtype=torch.int8)}
    for other, message in [
        (shorter, "theta1 and theta0 do not fit together: only theta1 has a tensor b"),
        (longer, "theta1 and theta0 do not fit together: only theta0 has a tensor c"),
        (wider, r"theta1 and theta0 do not fit together: b has the shapes \[4\] and \[5\]"),
        (whole, r"theta0: b is stored as torch\.int8; save the model as float32"),
    ]:
        for operation in (interpolate, spectral):
            with pytest.raises(ModelError, match=message):
                dict(operation(other, model, 0.0))
        with pytest.raises(ModelError, match=message.replace("theta0", "other")):
            dict(add(model, model, 0.0, other))


def test_nothing_half_written_stays(folders: Folders) -> None:
    theta0, theta1, other, target = folders
    before = set(target.parent.iterdir())

    def dies(*models: Weights) -> Iterator[tuple[str, Tensor]]:
        yield from list(interpolate(*models))[:3]
        raise KeyboardInterrupt

    def finds_the_disk_full(*models: Weights) -> Iterator[tuple[str, Tensor]]:
        yield from list(interpolate(*models))[:3]
        raise OSError(28, "No space left on device")

    with pytest.raises(KeyboardInterrupt):
        operate(dies, theta0, theta1, target, 0.5)
    with pytest.raises(ModelError, match=r"target: cannot be written .*No space left"):
        operate(finds_the_disk_full, theta0, theta1, target, 0.5)
    assert set(target.parent.iterdir()) == before
    with pytest.raises(ModelError, match="exists already"):
        operate(interpolate, theta0, theta1, other, 0.5)
    weights = theta0 / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"theta0.model\.safetensors: cannot be read"):
        operate(interpolate, theta0, theta1, target, 0.5)
    assert set(target.parent.iterdir()) == before


def test_the_catalog_knows_them(folders: Folders) -> None:
    known = {name: catalog.get("operation", name) for name in catalog.names("operation")}
    assert {name for name in known if known[name].needs_other} == {"add"}
    assert {name: (operation.lowest, operation.highest) for name, operation in known.items()} == {
        "add": (float("-inf"), float("inf")),
        "interpolate": (0.0, 1.0),
        "lines": (0.0, 1.0),
        "spectral": (0.0, float("inf")),
    }
    theta0, theta1, other, target = folders
    for name, function in (("interpolate", interpolate), ("lines", lines), ("spectral", spectral), ("add", add)):
        third = other if known[name].needs_other else None
        digest = known[name](theta0, theta1, target.with_name(name), 0.5, third)
        assert digest == operate(function, theta0, theta1, target, 0.5, third)
        shutil.rmtree(target)


def test_the_median_of_models_is_that_of_each_weight() -> None:
    models = [{"a": torch.tensor([1.0, 5.0, -2.0]), "b": torch.full((2, 2), float(i))} for i in (3, 1, 2)]
    models[1]["a"] = torch.tensor([9.0, 4.0, -9.0])
    found = dict(median(*models))
    assert found["a"].tolist() == [1.0, 5.0, -2.0] and found["b"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert dict(median(*models[:2]))["a"].tolist() == [5.0, 4.5, -5.5]  # of an even number the mean of the middle two
    assert all(torch.equal(tensor, models[0][name]) for name, tensor in median(models[0]))


def test_one_bad_model_of_three_moves_no_weight_beyond_the_others(folders: Folders) -> None:
    join([folders.theta0, folders.theta1, folders.other], folders.target)
    stored = [_stored(folder) for folder in (folders.theta0, folders.theta1, folders.other, folders.target)]
    for name, joined in stored[3].items():
        three = torch.stack([weights[name] for weights in stored[:3]])
        assert bool((joined <= three.max(0).values).all()) and bool((joined >= three.min(0).values).all())
        assert torch.equal(joined, three.median(0).values)
    load_model(folders.target)
