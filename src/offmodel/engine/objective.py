"""What a training minimises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from offmodel.errors import SpecError, did_you_mean

_Loss = Literal["ce", "dft", "psft"]
_Direction = Literal["forward", "reverse"]


@dataclass(frozen=True)
class Distil:
    """Distillation: the student learns another model's distribution at every token of a response (GKD, arXiv 2306.13649).

    Attributes:
        beta: 1 is the reverse KL(student || teacher), 0 the forward one, between them the generalised Jensen-Shannon divergence (see
            :func:`offmodel.engine.losses.generalized_jsd`).
        on_policy: Share of the steps on responses that the student itself samples; the others take the examples' responses.
        temperature: Of the student's sampling. The distributions are compared at temperature 1.
        max_new_tokens: Limit per sampled response, which is learnt from, too, if it does not come to its end.
    """

    beta: float = 1.0
    on_policy: float = 1.0
    temperature: float = 1.0
    max_new_tokens: int = 96

    def __post_init__(self) -> None:
        for name in ("beta", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.temperature < math.inf:
            raise SpecError(f"temperature must not be negative, got {self.temperature}")
        if self.max_new_tokens < 1:
            raise SpecError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True)
class Objective:
    """What a training minimises; as it stands, the cross-entropy of the responses, over all weights.

    The loss of a step is the mean over all trained tokens of its batch, plus the penalties. "Original" means the weights that a training is
    held near; it need not start from them.

    Attributes:
        loss: Per token with probability p: ``ce``, cross-entropy -log p; ``dft``, dynamic fine-tuning -sg(p) log p, where sg stops the
            gradient (arXiv 2508.05629); ``psft``, proximal SFT (arXiv 2508.17784, see :func:`offmodel.engine.losses.psft`).
        clip: Of ``psft``: how far the ratio of a token's probability to the old policy's counts.
        refresh: Of ``psft``: optimizer steps until the policy becomes the old policy.
        mask_above: Tokens whose perplexity 1/p exceeds this under the weights that the training starts from carry no loss (selective token
            masking, arXiv 2501.14315).
        kl: Weight of the KL divergence from the original on the anchors' responses, mean over their tokens (nats).
        kl_direction: ``forward`` KL(original || student), or ``reverse`` KL(student || original).
        l2_sp: Weight of sum_i (theta_i - theta0_i)^2 over the trained weights, theta0 being the original's (L2-SP, arXiv 1802.01483).
        ewc: Weight of sum_i F_i (theta_i - theta0_i)^2, F being the diagonal empirical Fisher information of the original on the anchors
            (EWC, arXiv 1612.00796; its lambda is twice this).
        layers: Which part of the depth trains, as shares of the decoder layers: those whose middle lies within. The embeddings, the head
            and the final norm train only with the whole.
        distil: Learn a teacher's distribution instead of the responses themselves.
    """

    loss: _Loss = "ce"
    clip: float = 0.2
    refresh: int = 10
    mask_above: float | None = None
    kl: float = 0.0
    kl_direction: _Direction = "forward"
    l2_sp: float = 0.0
    ewc: float = 0.0
    layers: tuple[float, float] = (0.0, 1.0)
    distil: Distil | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("loss", self.loss, get_args(_Loss)), ("kl_direction", self.kl_direction, get_args(_Direction))):
            if value not in known:
                raise SpecError(f"{name} {value!r} is unknown: {did_you_mean(value, known)}")
        for name in ("kl", "l2_sp", "ewc"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"{name} is a weight and must not be negative, got {getattr(self, name)}")
        if not 0 < self.clip < math.inf:
            raise SpecError(f"clip must be positive, got {self.clip}")
        if self.refresh < 1:
            raise SpecError(f"refresh must be at least 1, got {self.refresh}")
        if self.mask_above is not None and not self.mask_above > 1:
            raise SpecError(f"mask_above must exceed 1, the perplexity of a certain token, got {self.mask_above}")
        low, high = self.layers
        if not 0 <= low < high <= 1:
            raise SpecError(f"layers must be two shares of the depth, the lower first, such as (0.5, 1.0); got {self.layers}")
        if self.distil is not None and (self.loss != "ce" or self.mask_above is not None):
            raise SpecError("distil takes the place of the loss on the responses; leave out loss and mask_above")

    @property
    def plain(self) -> bool:
        """Whether a step needs nothing besides its batch and the student as it is."""
        return self.loss != "psft" and self.distil is None and not (self.kl or self.l2_sp or self.ewc)


def layers_within(band: tuple[float, float], depth: int) -> list[int]:
    """The layers, of ``depth`` counted from 0, whose middle lies within a band of :attr:`Objective.layers`."""
    return [i for i in range(depth) if band[0] <= (i + 0.5) / depth < band[1]]
