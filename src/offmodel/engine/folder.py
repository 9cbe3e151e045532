"""Model folders in Hugging Face layout: check, load, save and hash them. Safetensors only; code from a folder is never run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from offmodel.errors import ModelError, did_you_mean
from offmodel.files import sync
from offmodel.spec.models import current

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER, _TOKENIZER_CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
CONFIGS = ("config.json", "generation_config.json", _TOKENIZER_CONFIG, "special_tokens_map.json")
_NOT_CONTENT = ("transformers_version", "_name_or_path", "name_or_path", "is_local", "local_files_only")  # who wrote it, and from where
_CHUNK = 1 << 24  # bytes hashed at a time


def check_model_folder(path: Path | str) -> Path:
    """Check that a folder holds a model that offmodel can use, without loading it.

    Returns:
        The folder as a :class:`~pathlib.Path`.

    Raises:
        ModelError: The folder, its ``config.json``, its safetensors, its tokenizer or its chat template is missing or broken; the
            message says which, and what to do.
    """
    path = Path(path)
    if not path.is_dir():
        near = did_you_mean(path.name, (p.name for p in path.parent.iterdir() if p.is_dir())) if path.parent.is_dir() else ""
        raise ModelError(f"{path}: no such model folder" + (f"; {near}" if near else ""))
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: has no config.json, so it is no model in Hugging Face layout; save one with save_pretrained")
    weight_files(path)
    _chat_template(path)
    return path


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder, padding on the left; where it has no pad token, the end-of-turn token pads.

    Raises:
        ModelError: The folder has no tokenizer or no chat template, or the tokenizer cannot be read.
    """
    path = Path(path)
    _chat_template(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: its tokenizer cannot be read ({error})") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: its tokenizer names no eos_token, so no answer would ever end; name it in {_TOKENIZER_CONFIG}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(path: Path | str, *, dtype: str | None = None, device: str | None = None) -> PreTrainedModel:
    """Load a causal language model from a folder, in eval mode.

    Args:
        path: A folder in Hugging Face layout.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None for what :func:`offmodel.spec.models.current` says.
        device: Where the weights go, see :class:`offmodel.spec.models.Models`; None likewise.

    Raises:
        ModelError: The folder cannot be used, or its tensors do not fit its config: transformers would fill such gaps with random
            numbers. Or there is no such device, or no such attention kernel.
    """
    path, how = check_model_folder(path), current()
    dtype, device = dtype or how.dtype, device or how.device
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown: {did_you_mean(dtype, DTYPES)}")
    if device != "cpu" and not torch.cuda.is_available():
        raise ModelError(
            f"{path}: is to be loaded on a GPU (device {device!r}), and torch finds none here; use device 'cpu' or a machine with one"
        )
    try:
        with _quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                path, dtype=DTYPES[dtype], use_safetensors=True, local_files_only=True, trust_remote_code=False, output_loading_info=True,
                attn_implementation=how.attention, device_map=None if device == "cpu" else device,
            )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{path}: does not fit into the GPU's memory as {dtype}; take a smaller dtype, or more GPUs (device 'auto')"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be loaded ({error})") from error
    gaps = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if gaps:
        kind, names = next(iter(gaps.items()))
        raise ModelError(f"{path}: weights and config.json do not fit: {len(names)} {kind.replace('_', ' ')}, such as {names[0]}")
    return model.eval()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path | str) -> str:
    """Write model and tokenizer as a new folder, whole or not at all.

    Returns:
        The hash of the weights, see :func:`hash_weights`.

    Raises:
        ModelError: The folder exists already, the disk refuses it, or an adapter is attached to the model.
    """
    path = Path(path)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{path}: the model carries a LoRA adapter; merge(model) first, or save the adapter with model.save_pretrained")
    with new_folder(path) as temporary:
        with _quiet():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        return hash_weights(temporary)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder that becomes ``path``, synced to the disk, if the block ends well, and is removed if it does not.

    Raises:
        ModelError: The folder exists already, or the disk refuses it.
    """
    if path.exists():
        raise ModelError(f"{path}: exists already; remove it or choose another name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in (*temporary.iterdir(), temporary):
            sync(file)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hash_weights(path: Path | str) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors in order of name, as 16 hex digits.

    The same tensors give the same hash however they are spread over files, and whatever else the folder holds.

    Raises:
        ModelError: The folder has no safetensors, or one of its files is broken.
    """
    tensors = {}
    for file in weight_files(Path(path)):
        header, start = safetensors_header(file)
        tensors.update({name: (file, start, entry) for name, entry in header.items() if name != "__metadata__"})
    digest = hashlib.sha256()
    for name, (file, start, entry) in sorted(tensors.items()):
        begin, end = entry["data_offsets"]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        with open(file, "rb") as stream:
            stream.seek(start + begin)
            left = end - begin
            while left:
                chunk = stream.read(min(left, _CHUNK))
                if not chunk:
                    raise ModelError(f"{file}: ends in the middle of tensor {name}; copy or save the model again")
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()[:16]


def hash_tokenizer(path: Path | str) -> str:
    """SHA-256 over ``tokenizer.json`` (whatever its layout) and the chat template, as 16 hex digits.

    Raises:
        ModelError: The folder has no tokenizer or no chat template.
    """
    path = Path(path)
    template = _chat_template(path)
    tokenizer = _read_json(path / TOKENIZER)
    for state_of_last_call in ("padding", "truncation"):
        tokenizer.pop(state_of_last_call, None)
    return _hash_json([tokenizer, template])


def hash_config(path: Path | str) -> str:
    """SHA-256 over the settings of model, sampling and tokenizer that the folder holds (whatever their layout), as 16 hex digits.

    Raises:
        ModelError: One of the files is no JSON object.
    """
    configs = {name: _read_json(Path(path) / name) for name in CONFIGS if (Path(path) / name).is_file()}
    return _hash_json({name: {k: v for k, v in config.items() if k not in _NOT_CONTENT} for name, config in configs.items()})


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _chat_template(path: Path) -> str:
    if not (path / TOKENIZER).is_file():
        raise ModelError(f"{path}: has no {TOKENIZER}; save the tokenizer into the model's folder with tokenizer.save_pretrained")
    if (path / TEMPLATE).is_file():
        return (path / TEMPLATE).read_text(encoding="utf-8")
    config = _read_json(path / _TOKENIZER_CONFIG) if (path / _TOKENIZER_CONFIG).is_file() else {}
    template = config.get("chat_template")
    if not template:
        raise ModelError(f"{path}: its tokenizer has no chat template ({TEMPLATE}); use the chat or instruct version of the model")
    return template if isinstance(template, str) else json.dumps(template)


def weight_files(path: Path) -> list[Path]:
    """The files of a model's weights, those of an index among them.

    Raises:
        ModelError: One is not there.
    """
    if (path / INDEX).is_file():
        weight_map = _read_json(path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ModelError(f"{path / INDEX}: its weight_map does not map tensors to files; download or save the model again")
        files = sorted({path / name for name in weight_map.values()})
    else:
        files = [path / _WEIGHTS]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return files
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickles:
        raise ModelError(f"{path}: its weights are pickle files ({pickles[0]}), which can run code; convert them to safetensors")
    raise ModelError(f"{path}: has no {missing[0]}; download or save the model's weights as safetensors")


def safetensors_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data starts: 8 bytes of length, JSON, data."""
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            return json.loads(stream.read(min(size, file.stat().st_size))), 8 + size
        except ValueError:
            raise ModelError(f"{file}: is no safetensors file or is broken; copy or save the model again") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: holds no JSON object; download or save the model again")
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings from transformers; what matters is raised as an error."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
