"""Operations on the weights of models of one architecture: no data, no gradients, no GPU.

An operation takes state dicts: ``theta0`` is the original model, ``theta1`` the current one, ``strength`` says how strongly the operation
works. It yields name and new tensor, one after the other in the order of ``theta1``: ``dict(interpolate(theta0, theta1, 0.5))`` is a state
dict again, and :func:`operate` goes from folder to folder with one tensor at a time in memory. It computes in float32; the result has the
dtype of ``theta1``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from offmodel.engine.folder import (
    CONFIGS,
    DTYPES,
    INDEX,
    TEMPLATE,
    TOKENIZER,
    check_model_folder,
    hash_weights,
    new_folder,
    safetensors_header,
    weight_files,
)
from offmodel.errors import ModelError

Weights = Mapping[str, Tensor]
Changed = Iterator[tuple[str, Tensor]]

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|transformer\.blocks)\.(\d+)\.")  # blocks alone may be those of a vision tower
_EMBEDDING = re.compile(r"embed(?!_out)|\bw[tp]e\b")  # GPT-NeoX calls its head embed_out


def interpolate(theta0: Weights, theta1: Weights, strength: float) -> Changed:
    """WiSE-FT (arXiv 2109.01903): ``(1 - strength) theta0 + strength theta1``; 0 and 1 give the one and the other to the bit.

    Raises:
        ModelError: The models do not fit together.
    """
    for name, (before, after) in _together(theta0=theta0, theta1=theta1):
        yield name, _between(before, after, strength)


def lines(theta0: Weights, theta1: Weights, strength: float) -> Changed:
    """LiNeS (arXiv 2410.17146): shallow layers keep less of the change; 1 gives ``theta1`` to the bit.

    The change of decoder layer l = 0 … L - 1 is scaled by ``strength + (1 - strength) l / (L - 1)``, as the authors do for a single
    fine-tuned model. Embeddings count as the first layer. The authors (vision transformers) scale everything outside of the layers like
    the first; here, the final norm and an untied head count as the last, next to which they stand.

    Raises:
        ModelError: The models do not fit together, or the names of their tensors hold no layer.
    """
    depths = _depths(theta1)
    for name, (before, after) in _together(theta0=theta0, theta1=theta1):
        yield name, _between(before, after, 1 - (1 - strength) * (1 - depths[name]))


def spectral(theta0: Weights, theta1: Weights, strength: float) -> Changed:
    """Hard threshold on the singular values of each matrix of the change; 0 gives ``theta1`` to the bit.

    Singular values below ``strength * tau`` are dropped. ``tau`` is the optimum for a low-rank matrix in white noise of unknown level
    (Gavish and Donoho, doi:10.1109/TIT.2014.2323359): omega(beta) times the median singular value, where beta is the shorter side over
    the longer, and omega(beta) ≈ 0.56 beta^3 - 0.95 beta^2 + 1.82 beta + 1.43.

    DG-Hard (arXiv 2605.20296) repairs fine-tuned models with it, at strength 1. Like its code, this filters embeddings and head too and
    keeps norms and biases as they are in ``theta1``. Unlike it, this takes omega from the approximation, filters matrices of less than
    1024 entries too, and filters a stack of matrices (fused experts) matrix by matrix where that code keeps it as it is.

    A change that has low rank from the start, such as a merged adapter, has a median near zero: next to nothing is dropped.

    Raises:
        ModelError: The models do not fit together.
    """
    for name, (before, after) in _together(theta0=theta0, theta1=theta1):
        if strength == 0 or after.ndim < 2:
            yield name, after
        else:
            kept = _without_noise(after.float() - before.float(), strength)
            yield name, (before.float() + kept).to(after.dtype)


def add(theta0: Weights, theta1: Weights, strength: float, other: Weights) -> Changed:
    """Task arithmetic (arXiv 2212.04089): ``theta1 + strength (other - theta0)``; 0 gives ``theta1`` to the bit.

    Args:
        theta0: The original model.
        theta1: The current one.
        strength: Below zero, the change of ``other`` is negated.
        other: A third model that came from ``theta0``.

    Raises:
        ModelError: The models do not fit together.
    """
    for name, (before, after, third) in _together(theta0=theta0, theta1=theta1, other=other):
        if strength == 0:
            yield name, after
        else:
            yield name, torch.add(after.float(), third.float() - before.float(), alpha=strength).to(after.dtype)


def operate(operation: Callable[..., Changed], theta0: Path, theta1: Path, target: Path, strength: float, other: Path | None = None) -> str:
    """Do an operation on model folders and write the result as a new folder, whole or not at all.

    Config, tokenizer, sampling settings, dtype and layout of the files are those of ``theta1``; nothing else of it is copied. The folders
    must have been written the same way: experts that are stacked in one and single in the other are different tensors.

    Args:
        operation: Such as :func:`interpolate`; what it yields has the order, the shapes and the dtypes of ``theta1``.
        theta0: Folder of the original model.
        theta1: Folder of the current one.
        target: Must not exist.
        strength: Of the operation.
        other: Folder of the third model, where the operation needs one.

    Returns:
        The hash of the new weights, see :func:`~offmodel.engine.folder.hash_weights`.

    Raises:
        ModelError: A folder cannot be used, the models do not fit together, or the target exists or cannot be written.
    """
    current = _Stored(theta1)
    others = () if other is None else (_Stored(other),)
    return _written(operation(_Stored(theta0), current, strength, *others), current, theta1, target)


def median(theta1: Weights, *others: Weights) -> Changed:
    """The median of each weight over several models, the mean of the middle two where they are even (arXiv 1803.01498, of updates).

    Raises:
        ModelError: The models do not fit together.
    """
    for name, tensors in _together(theta1=theta1, **{f"model {i}": model for i, model in enumerate(others, 2)}):
        ordered = torch.stack([tensor.float() for tensor in tensors]).sort(0).values
        middle = ordered[(len(tensors) - 1) // 2 : len(tensors) // 2 + 1]
        yield name, middle.mean(0).to(tensors[0].dtype)


def join(folders: Sequence[Path], target: Path) -> str:
    """Write the :func:`median` of several models of one origin as a new folder, whole or not at all; settings are the first one's.

    Returns:
        The hash of the new weights.

    Raises:
        ModelError: A folder cannot be used, the models do not fit together, or the target exists or cannot be written.
    """
    first, *others = map(_Stored, folders)
    return _written(median(first, *others), first, folders[0], target)


def _written(results: Changed, current: _Stored, theta1: Path, target: Path) -> str:
    """Write new tensors as a model folder like ``theta1``."""
    with new_folder(target) as folder:
        for settings in (*CONFIGS, TOKENIZER, TEMPLATE, INDEX):
            if (theta1 / settings).is_file():
                shutil.copyfile(theta1 / settings, folder / settings)
        for file, names in current.files.items():
            with open(folder / file.name, "wb") as stream:
                # Names, dtypes, shapes and places stay as they are, and so does the header that lists them.
                stream.write(_header(file))
                for name in names:
                    result, tensor = next(results)
                    assert result == name
                    stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return hash_weights(folder)


class _Stored(Weights):
    """The tensors of a model folder in the order in which they are stored, each read whenever it is asked for."""

    def __init__(self, path: Path) -> None:
        self.files: dict[Path, list[str]] = {}
        self._open = {}
        for file in weight_files(check_model_folder(path)):
            try:
                stored = safe_open(file, framework="pt")
            except SafetensorError as error:
                raise ModelError(f"{file}: cannot be read ({error}); copy or save the model again") from error
            self.files[file] = stored.offset_keys()
            self._open.update(dict.fromkeys(self.files[file], stored))

    def __getitem__(self, name: str) -> Tensor:
        return self._open[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)


def _header(file: Path) -> bytes:
    _, start = safetensors_header(file)
    with open(file, "rb") as stream:
        return stream.read(start)


def _together(**models: Weights) -> Iterator[tuple[str, list[Tensor]]]:
    """Each name, in the order of ``theta1``, with its tensor in all models."""
    current = models["theta1"]
    for role, model in models.items():
        alone = next((name for name in (*current, *model) if name not in current or name not in model), None)
        if alone is not None:
            holder = "theta1" if alone in current else role
            raise ModelError(f"theta1 and {role} do not fit together: only {holder} has a tensor {alone}")
    for name in current:
        tensors = {role: model[name] for role, model in models.items()}
        for role, tensor in tensors.items():
            if tensor.shape != tensors["theta1"].shape:
                shapes = f"{list(tensors['theta1'].shape)} and {list(tensor.shape)}"
                raise ModelError(f"theta1 and {role} do not fit together: {name} has the shapes {shapes}")
            if tensor.dtype not in DTYPES.values():
                raise ModelError(f"{role}: {name} is stored as {tensor.dtype}; save the model as {', '.join(DTYPES)} first")
        yield name, list(tensors.values())


def _between(before: Tensor, after: Tensor, scale: float) -> Tensor:
    """``before + scale (after - before)`` in the dtype of ``after``, both ends to the bit."""
    if scale in (0, 1):
        return (after if scale else before).to(after.dtype)
    return torch.lerp(before.float(), after.float(), scale).to(after.dtype)


def _depths(names: Iterable[str]) -> dict[str, float]:
    """Where in the network each tensor stands, from 0 for the first decoder layer to 1 for the last."""
    names = list(names)
    layers = {name: int(found[1]) for name in names if (found := _LAYER.search(name))}
    if not layers:
        raise ModelError(f"no tensor's name holds its layer, as in model.layers.7. or transformer.h.7.; the first is {names[0]}")
    last = max(layers.values())
    outside = {name: 0.0 if _EMBEDDING.search(name) else 1.0 for name in names}
    return outside | {name: layer / max(last, 1) for name, layer in layers.items()}


def _without_noise(change: Tensor, strength: float) -> Tensor:
    """A matrix (…, m, n) with its singular values hard-thresholded."""
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    short, long = sorted(change.shape[-2:])
    beta = short / long
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    threshold = strength * omega * values.quantile(0.5, dim=-1, keepdim=True)
    kept = values.where(values >= threshold, 0.0)
    return left * kept.unsqueeze(-2) @ right
