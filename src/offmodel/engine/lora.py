"""LoRA adapters (Hu et al., arXiv 2106.09685) through PEFT, attached to the model object itself."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from offmodel.errors import ModelError

NAME = "default"
"""Of the adapter, in PEFT's layers."""
_CONFIG, _NAMED, _BASE = "adapter_config.json", "base_model_name_or_path", "weights-"


@dataclass(frozen=True)
class LoraSettings:
    """A low-rank adapter of every linear layer but the head; it is kept in float32, whatever the model's weights are in.

    In the mixtures of experts that PEFT knows (Qwen3-MoE among them) also of the router and the stacked experts, which are no layers.

    Attributes:
        rank: Rank of every update.
        alpha: An update counts ``alpha / rank`` times.
    """

    rank: int = 16
    alpha: float = 32.0


def attach(model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
    """Put a fresh adapter on the model and freeze the rest; one that is there already with the same settings is kept and goes on.

    The model can then be trained and sampled as before; ``model.save_pretrained`` writes the adapter alone, in PEFT's layout, and
    :func:`merge` gives plain weights back.

    Raises:
        ModelError: The model carries an adapter with other settings.
    """
    if has_adapter(model):
        present = model.peft_config[NAME]
        if (present.r, present.lora_alpha) != (settings.rank, settings.alpha):
            raise ModelError(f"the model carries a LoRA adapter of rank {present.r}, alpha {present.lora_alpha}; merge(model) first")
        return
    torch.manual_seed(seed)  # the adapter starts from random numbers
    with _quiet_about_experts():
        model.add_adapter(
            LoraConfig(task_type="CAUSAL_LM", r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear"),
            NAME,
        )
    model.peft_config[NAME].base_model_name_or_path = None  # a folder of this run, which nobody else has
    _in_float32(model)


def _in_float32(model: PreTrainedModel) -> None:
    """Keep the adapter in float32, whatever the weights are in: small steps would be rounded away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def make_ready(model: PreTrainedModel, settings: LoraSettings | None, seed: int) -> None:
    """Make a model ready for training: with an adapter (see :func:`attach`), or of all its weights if there are no settings.

    Raises:
        ModelError: An adapter is in the way.
    """
    if settings is not None:
        attach(model, settings, seed)
    elif has_adapter(model):
        raise ModelError("the model carries a LoRA adapter, but config.lora is None; merge(model) first, or say how to train it")


@contextmanager
def _quiet_about_experts() -> Iterator[None]:
    # PEFT gives fused experts twice the rank and then says, wrongly, that it ignored this.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match", category=RuntimeWarning)
        yield


def has_adapter(model: PreTrainedModel) -> bool:
    """Whether an adapter is attached."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def save_adapter(model: PreTrainedModel, path: Path, base: str | None) -> None:
    """Write the adapter alone, in PEFT's layout, to a new folder.

    Args:
        model: Carries it.
        path: The folder.
        base: The hash of the weights that it belongs to (:func:`offmodel.engine.folder.hash_weights`), by which it names its base; None
            where that is not known.

    Raises:
        ModelError: The model carries no adapter.
    """
    if not has_adapter(model):
        raise ModelError(f"{path}: the model carries no LoRA adapter that could be saved")
    model.save_pretrained(path)
    if base is not None:  # written afterwards: PEFT looks for what it takes for a model's name on the hub
        config = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        (path / _CONFIG).write_text(json.dumps(config | {_NAMED: _BASE + base}, indent=2, sort_keys=True), encoding="utf-8")


def base_of(path: Path) -> str | None:
    """The hash of the weights that a saved adapter belongs to; None where it does not say."""
    named = json.loads((path / _CONFIG).read_text(encoding="utf-8")).get(_NAMED)
    return named.removeprefix(_BASE) if named is not None and named.startswith(_BASE) else None


def load_adapter(model: PreTrainedModel, path: Path, base: str | None = None) -> None:
    """Put an adapter that :func:`save_adapter` wrote on a plain model, to be trained on; the rest is frozen.

    Args:
        model: Carries none.
        path: The adapter's folder.
        base: The hash of the model's weights, which the adapter must name if it names any; None does not ask.

    Raises:
        ModelError: There is none, or it belongs to another base.
    """
    if has_adapter(model):
        raise ModelError(f"{path}: the model carries an adapter already; merge(model) first")
    if not (path / "adapter_model.safetensors").is_file():
        raise ModelError(f"{path}: holds no adapter (adapter_model.safetensors)")
    named = base_of(path)
    if None not in (base, named) and base != named:
        raise ModelError(
            f"{path}: belongs to a base with the weights {named}, and this model's are {base}; load it on the model that it was trained on"
        )
    conversions = getattr(model, "_weight_conversions", None)
    with _quiet_about_experts():
        model.load_adapter(str(path), NAME, is_trainable=True)
    model.peft_config[NAME].base_model_name_or_path = None
    _in_float32(model)
    # transformers leaves the adapter's names of tensors in their place, under which the merged model would be saved.
    model._weight_conversions = conversions


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Add the adapter to the weights in place and take it off; the model is plain again, as if it had been trained in full.

    Raises:
        ModelError: The model carries no adapter.
    """
    if not has_adapter(model):
        raise ModelError("the model carries no LoRA adapter that could be merged")
    for name, layer in outermost(model):
        if hasattr(layer, "unload_and_optionally_merge_module"):
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            layer.merge()
            plain = layer.get_base_layer()
        model.set_submodule(name, plain)
    return _plain(model)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A plain copy of a model with its adapter added to the weights, in main memory: there need be no room for it on the GPU.

    Raises:
        ModelError: The model carries no adapter.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return merge(copy.deepcopy(model, {id(tensor): _in_main_memory(tensor) for tensor in tensors}))


def _in_main_memory(tensor: torch.Tensor) -> torch.Tensor:
    copied = tensor.detach().to("cpu", copy=True)
    return nn.Parameter(copied, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def take_off(model: PreTrainedModel) -> PreTrainedModel:
    """Take the adapter off and leave the weights as they are."""
    for name, layer in outermost(model):
        model.set_submodule(name, layer.get_base_layer())
    return _plain(model)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model.requires_grad_(True)


def outermost(model: PreTrainedModel) -> list[tuple[str, BaseTunerLayer]]:
    """PEFT's layers by name, of those inside each other, as around a stack of experts, the outer one, which unwraps the others."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    return [
        (name, layer)
        for name, layer in layers.items()
        if name.removesuffix(".base_layer") == name or name.removesuffix(".base_layer") not in layers
    ]
