"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from offmodel.errors import ModelError

Schedule = Literal["constant", "cosine", "linear"]
Optimizer = Literal["adamw", "muon", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
"""AdamW (arXiv 1711.05101); :class:`Muon`; AdamW with states of 8 bits (arXiv 2110.02861), with states that are paged between GPU and main
memory, or with both, by bitsandbytes. 8 bits need a quarter of the memory of states in float32; small parameters keep theirs."""

_MOMENTUM = 0.95
_EPSILON = 1e-8


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of the hidden layers, AdamW for everything else, as one optimizer.

    Muon makes each matrix's momentum orthogonal before it is applied (Keller Jordan, https://kellerjordan.github.io/posts/muon/;
    Liu et al., arXiv 2502.16982). Stacked matrices, such as a layer's experts ``[experts, out, in]``, are treated one by one, which
    :class:`torch.optim.Muon` does not do. The step of a matrix ``[out, in]`` is scaled by ``sqrt(max(1, out / in))``.

    Args:
        matrices: Parameters of two or more dimensions, for Muon.
        rest: Embeddings, head, norms and biases, for AdamW (arXiv 1711.05101).
        lr: Muon's learning rate.
        lr_rest: AdamW's learning rate.
        betas: AdamW's.
        weight_decay: Decoupled, for all parameters of two or more dimensions.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rest: Iterable[nn.Parameter],
        lr: float,
        lr_rest: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
    ) -> None:
        groups = [{**group, "lr": lr, "orthogonal": True} for group in _by_decay(matrices, weight_decay)]
        groups += [{**group, "lr": lr_rest, "orthogonal": False} for group in _by_decay(rest, weight_decay)]
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient = [(parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None]
            if group["weight_decay"]:
                for parameter, _ in with_gradient:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
            (self._step_muon if group["orthogonal"] else self._step_adamw)(with_gradient, group)
        return loss

    def _step_muon(self, with_gradient: Iterable[tuple[nn.Parameter, Tensor]], group: dict[str, Any]) -> None:
        # Matrices of one shape are made orthogonal in one batch: a small model has many small ones, whose calls would cost most.
        by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter, gradient in with_gradient:
            by_shape[parameter.shape].append((parameter, gradient))
        for shape, alike in by_shape.items():
            directions = []
            for parameter, gradient in alike:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(gradient, 1 - _MOMENTUM)
                directions.append(gradient.lerp(momentum, _MOMENTUM))
            scale = math.sqrt(max(1.0, shape[-2] / shape[-1]))
            for (parameter, _), direction in zip(alike, orthogonalize(torch.stack(directions)), strict=True):
                parameter.add_(direction, alpha=-group["lr"] * scale)

    def _step_adamw(self, with_gradient: Iterable[tuple[nn.Parameter, Tensor]], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for parameter, gradient in with_gradient:
            state = self.state[parameter]
            step = state["step"] = state.get("step", 0) + 1
            mean = state.setdefault("mean", torch.zeros_like(parameter)).lerp_(gradient, 1 - beta1)
            square = state.setdefault("square", torch.zeros_like(parameter)).mul_(beta2)
            square.addcmul_(gradient, gradient, value=1 - beta2)
            size = (square / (1 - beta2**step)).sqrt_().add_(_EPSILON)
            parameter.addcdiv_(mean, size, value=-group["lr"] / (1 - beta1**step))


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of each matrix ``[..., out, in]`` close to one, by a quintic Newton-Schulz iteration.

    The coefficients are Keller Jordan's: they make small singular values grow fastest and settle between about 0.7 and 1.2.
    """
    x: Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def make_optimizer(
    model: PreTrainedModel, name: Optimizer, lr: float, lr_rest: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of a training over all parameters that require gradients; AdamW decays matrices only.

    Raises:
        ModelError: One of bitsandbytes' is asked for, and the model is not on a GPU, or the package is not there.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW(_by_decay(trained, weight_decay), lr=lr, betas=betas, fused=True)
    if name != "muon":
        return _of_bitsandbytes(model, name)(_by_decay(trained, weight_decay), lr=lr, betas=betas)
    ends = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None}
    matrices = [parameter for parameter in trained if parameter.ndim >= 2 and id(parameter) not in ends]
    taken = {id(parameter) for parameter in matrices}
    return Muon(matrices, [p for p in trained if id(p) not in taken], lr, lr_rest, betas, weight_decay)


def _of_bitsandbytes(model: PreTrainedModel, name: Optimizer) -> Callable[..., torch.optim.Optimizer]:
    if model.device.type != "cuda":
        raise ModelError(f"optimizer {name!r} keeps its states on an NVIDIA GPU, and the model is on {model.device.type}; use 'adamw' here")
    try:
        from bitsandbytes import optim
    except ImportError:
        raise ModelError(f"optimizer {name!r} comes from bitsandbytes; install it with: pip install 'offmodel[gpu]'") from None
    classes: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw_8bit": optim.AdamW8bit, "paged_adamw": optim.PagedAdamW32bit, "paged_adamw_8bit": optim.PagedAdamW8bit,
    }  # fmt: skip
    return classes[name]


def _by_decay(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with weight decay for matrices and without it for norms and biases."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, steps: int, schedule: Schedule, warmup_steps: int = 0, final_fraction: float = 0.0) -> float:
    """What the learning rate is multiplied by at ``step`` (0 is the first of ``steps``).

    It rises linearly over ``warmup_steps``, whose first step is already taken with ``1 / warmup_steps``, then stays (``constant``) or
    falls towards ``final_fraction`` along half a cosine or a line, which it would reach one step after the last.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    left = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}[schedule]
    return final_fraction + (1 - final_fraction) * left
