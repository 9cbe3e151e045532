"""Names of models in a study, the folders they stand for, and the hashes that tie a result to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from offmodel.engine.served import Served
from offmodel.errors import ModelError, did_you_mean
from offmodel.lab.sketch import stands_in
from offmodel.spec.endpoint import Endpoint
from offmodel.spec.hashing import canonical_json
from offmodel.world.checkpoints import CHECKPOINTS

_WORLD = "world:"


@dataclass(frozen=True)
class ModelRef:
    """A model as a study names it, with the hashes of what it was when the study was planned; "" where it was not here to be hashed."""

    name: str
    weights: str
    tokenizer: str
    config: str

    def as_params(self) -> dict[str, str]:
        """For the name of a stage."""
        return {"name": self.name, "weights": self.weights, "tokenizer": self.tokenizer, "config": self.config}


def resolve(name: str) -> Path:
    """The folder that a name stands for: ``world:<checkpoint>``, a path, or the id of a model on the Hugging Face hub.

    Raises:
        ModelError: There is no such model, or it has no safetensors, no tokenizer or no chat template; or the hub does not give it.
    """
    from offmodel.engine.folder import check_model_folder
    from offmodel.engine.hub import is_model_id, model_folder

    if name.startswith(_WORLD):
        path = CHECKPOINTS / name.removeprefix(_WORLD)
        if not path.is_dir():
            known = (_WORLD + p.name for p in CHECKPOINTS.iterdir() if p.is_dir())
            raise ModelError(f"unknown model {name!r}: {did_you_mean(name, known)}")
        return check_model_folder(path)
    if not is_model_id(name):
        return check_model_folder(name)
    folder = model_folder(name)
    try:
        return check_model_folder(folder)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None


def reference(name: str) -> ModelRef:
    """Hash a model that a study names; files that were not touched since the last time are not read again.

    In a sketch (:mod:`offmodel.lab.sketch`) a model of the hub that is not here has no hashes.

    Raises:
        ModelError: See :func:`resolve`.
    """
    from offmodel.engine.hub import has_model, is_model_id

    if is_model_id(name) and stands_in(name, lambda: has_model(name)):
        return ModelRef(name, "", "", "")
    path = resolve(name)
    files = sorted(path.iterdir())
    return _reference(name, path, tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


def vocabulary(name: str) -> int:
    """How many tokens a model has logits for; tokenizers that are the same may be padded to different numbers."""
    found: int = _config(name).vocab_size
    return found


def depth(name: str) -> int:
    """How many decoder layers a model has."""
    found: int = _config(name).num_hidden_layers
    return found


def _config(name: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(resolve(name), local_files_only=True, trust_remote_code=False).get_text_config()


@lru_cache
def _reference(name: str, path: Path, stamp: tuple[tuple[str, int, int], ...]) -> ModelRef:
    from offmodel.engine.folder import hash_config, hash_tokenizer, hash_weights

    return ModelRef(name, hash_weights(path), hash_tokenizer(path), hash_config(path))


def open_reference(params: dict[str, str]) -> Path:
    """The folder of a model, checked to be what it was when the study was planned.

    Raises:
        ModelError: Its weights, its tokenizer or its configuration changed since.
    """
    _check_unchanged(params["name"], params)
    return resolve(params["name"])


def identity(model: str | Endpoint) -> dict[str, str]:
    """What the name of a stage holds of a model that only answers in it. Of one behind a server its address is no part.

    Raises:
        ModelError: See :func:`resolve`.
    """
    if isinstance(model, str):
        return reference(model).as_params()
    hashes = {} if model.folder is None else {k: v for k, v in reference(model.folder).as_params().items() if k != "name"}
    return {"name": model.model, "revision": model.revision, "server": "openai", **hashes}


def open_served(params: dict[str, str], endpoint: Endpoint, cache: Path | None) -> Served:
    """A model behind a server; where the study names its folder, checked to be what it was then and to be what the server serves.

    Raises:
        ModelError: It is not, or the server cannot be asked.
    """
    _check_unchanged(endpoint, params)
    served = Served(endpoint, canonical_json(params), cache)
    if endpoint.folder is not None:
        from offmodel.engine.canary import check_served

        check_served(served, resolve(endpoint.folder))
    return served


def _check_unchanged(model: str | Endpoint, params: dict[str, str]) -> None:
    if identity(model) != params:
        what = "its weights, tokenizer or configuration"
        raise ModelError(f"{params['name']}: {what} are not those that the study was planned with; plan it again")
