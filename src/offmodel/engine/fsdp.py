"""A model of which every process of a training holds a part: torch's FSDP2, and what a training needs to know of it.

Each weight is a ``DTensor`` then, cut along its first dimension. All functions here are called by all processes at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from offmodel.engine.forward import decoder_layers

_T = TypeVar("_T")


def joined() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_initialized() and dist.get_world_size() > 1


def place() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are: (0, 1) where it is alone."""
    return (dist.get_rank(), dist.get_world_size()) if joined() else (0, 1)


def shard(model: PreTrainedModel, device: str) -> None:
    """Leave each process its part of every weight, on its device, in place; decoder layers are put together one at a time.

    Args:
        model: Whole, with the same weights in each process.
        device: ``cpu`` or ``cuda``.
    """
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    # The root, too, is taken apart after each forward pass: else its weights would be whole until the next backward one.
    for module in (*decoder_layers(model), model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # The Trainer then leaves placement and gradients to FSDP. Its own way there, accelerate's plugin, makes a plain DDP of it on CPUs.
    model._is_distributed_loading_by_transformers = True


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its parts, in each process; one that is not cut as it is. Gradients flow through it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors by name, on the CPU of the first process; none in the others. One at a time is whole on a device."""
    first, found = place()[0] == 0, {}
    for name, tensor in named:
        put_together = whole(tensor.detach())
        if first:
            found[name] = put_together.cpu().contiguous()
    return found


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite, in all parts."""
    parts = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    good = all(bool(part.isfinite().all()) for part in parts)
    return all(told(good)) if joined() else good


def told(value: _T) -> list[_T]:
    """What each process has to say, in order, known to all."""
    values: list[_T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def decided(decide: Callable[[], _T]) -> _T:
    """What the first process decides; the others do not."""
    if not joined():
        return decide()
    decision = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(decision, src=0)
    return decision[0]  # type: ignore[return-value]


def save_parts(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors to a folder; each process writes its parts."""
    save({name: tensor.detach() for name, tensor in tensors.items()}, checkpoint_id=folder)


def load_parts(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Read what :func:`save_parts` wrote, in place.

    The number of processes could be another. A training's cannot: each has its own random generators and old policy in a state.
    """
    load({name: tensor.detach() for name, tensor in tensors.items()}, checkpoint_id=folder)
