"""Losses and penalties of a training, as functions of tensors. Logarithms are natural; N counts tokens, V the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

_PIECE = 256  # tokens


def log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities ``[N]`` of tokens ``[N]`` under logits ``[N, V]``."""
    return -cross_entropy(logits.float(), labels, reduction="none")


def dft(found: Tensor) -> Tensor:
    """Dynamic fine-tuning (arXiv 2508.05629) per token with log-probability log p: ``-sg(p) log p``, where sg stops the gradient."""
    return -found.detach().exp() * found


def psft(new: Tensor, old: Tensor, clip: float) -> Tensor:
    """Proximal SFT (arXiv 2508.17784) per token: ``-min(r, clip(r, 1 - clip, 1 + clip))`` with ``r = pi / pi_old``.

    Args:
        new: Log-probabilities ``[...]`` of the tokens under the policy.
        old: The same under the old policy, without gradient.
        clip: How far the ratio may come from 1 before a token has no gradient.
    """
    ratio = (new - old).exp()
    return -torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats per token ``[N]``, from log-probabilities ``[N, V]``."""
    return (p.exp() * (p - q)).sum(-1)


def generalized_jsd(student: Tensor, other: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649, eq. 1) in nats per token ``[N]``, from logits ``[N, V]``.

    ``beta KL(other || m) + (1 - beta) KL(student || m)`` with the mixture ``m = beta other + (1 - beta) student``. Its ends, where this is
    zero, stand for what it tends to when it is divided by ``beta`` or ``1 - beta``: 0 for the forward KL(other || student), 1 for the
    reverse KL(student || other).
    """
    log_student, log_other = student.float().log_softmax(-1), other.float().log_softmax(-1)
    if beta == 0:
        return kl(log_other, log_student)
    if beta == 1:
        return kl(log_student, log_other)
    mixture = torch.logaddexp(log_other + math.log(beta), log_student + math.log1p(-beta))
    return beta * kl(log_other, mixture) + (1 - beta) * kl(log_student, mixture)


def total(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, other: Tensor) -> Tensor:
    """Sum of a per-token loss of logits ``[N, V]``.

    It is taken piece by piece, and once more in the backward pass: over a large vocabulary, what a divergence computes on its way is many
    times the logits, and so is in memory for a few tokens only.
    """

    def of(student: Tensor, other: Tensor) -> Tensor:
        return loss(student, other).sum()

    pieces = zip(student.split(_PIECE), other.split(_PIECE), strict=True)
    return torch.stack([checkpoint(of, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]).sum()


def l2_sp(parameter: Tensor, start: Tensor) -> Tensor:
    """L2-SP (arXiv 1802.01483) of one parameter: ``sum_i (theta_i - theta0_i)^2``."""
    return (parameter.float() - start.float()).square().sum()


def ewc(parameter: Tensor, start: Tensor, fisher: Tensor) -> Tensor:
    """EWC (arXiv 1612.00796) of one parameter: ``sum_i F_i (theta_i - theta0_i)^2``, without the paper's factor 1/2.

    Args:
        parameter: theta.
        start: theta0, of the same shape.
        fisher: F, of the same shape, see :func:`offmodel.engine.forward.fisher`.
    """
    return (fisher * (parameter.float() - start.float()).square()).sum()
