"""Trainings whose steps need more than the batch and the student: an old policy, an original, a teacher, the student's own responses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from offmodel.chat import Encoded
from offmodel.engine import fsdp, losses
from offmodel.engine.forward import Batch, fisher, responses
from offmodel.engine.generate import Sampling, sample_ids
from offmodel.engine.trainer import Original, SupervisedTrainer, scored, trained_parameters
from offmodel.errors import ModelError

if TYPE_CHECKING:
    from offmodel.engine.train import Frozen, TrainConfig

_OLD_POLICY = "old_policy-{}.safetensors"  # of each process


class _ObjectiveTrainer(SupervisedTrainer):
    """Adds to each batch what its loss is computed from, and to each step the penalties.

    A step's batches are made anew from the examples where it needs others than the data set has; which, follows from the step's number,
    so that a training that goes on makes the same.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        order: Sequence[int],
        frozen: Frozen,
        collate: Callable[[Iterable[Encoded]], Batch],
        original: Original,
        config: TrainConfig,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        self._encoded, self._order, self._frozen, self._collate, self._before = encoded, order, frozen, collate, original
        self._objective = config.objective
        self._old: list[Tensor] = []  # of psft: log-probabilities under the old policy, for each micro-batch until it is renewed
        self._start: dict[str, Tensor] = {}
        self._fisher: dict[str, Tensor] = {}
        if self._objective.l2_sp or self._objective.ewc:
            self._start = _same_parameters(frozen.original, self.model)
        if self._objective.ewc:
            self._fisher = fisher(frozen.original, frozen.anchors, self._start, collate)

    # --- batches ----------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        step = self.state.global_step
        if self._objective.distil is not None:
            batches = self._for_teacher(step)
            tokens = self._get_num_items_in_batch(batches, device)
            self._tokens = int(tokens)
        if self._objective.loss == "psft":
            first = step % self._objective.refresh * num_batches
            if first == 0:
                self._old = self._under_policy(step)
            for batch, old in zip(batches, self._old[first : first + num_batches], strict=True):
                batch["old"] = old
        if self._objective.kl:
            anchors = self._micro([self._frozen.anchors[i] for i in self._of_step(self._frozen.anchor_order, step)])
            total = int(self._get_num_items_in_batch(anchors, device))
            for batch, of_batch in zip(batches, anchors, strict=True):
                batch["anchors"], batch["anchor_tokens"] = of_batch, total
        return batches, tokens

    def _of_step(self, order: Sequence[int], step: int, steps: int = 1) -> Sequence[int]:
        size = self._config.batch_size
        return order[step * size : (step + steps) * size]

    def _micro(self, rows: Sequence[Encoded]) -> list[dict[str, Any]]:
        """This process' micro-batches; they go round, as the data set's do."""
        process, processes = fsdp.place()
        size = self._config.micro_batch_size or self._config.batch_size // processes
        return [dict(self._collate(rows[i : i + size])) for i in range(process * size, len(rows), processes * size)]

    def _under_policy(self, step: int) -> list[Tensor]:
        """Log-probabilities of the tokens of all steps for which the policy of this one is the old policy, for each micro-batch.

        They are all that is asked of it, so that no copy of its weights is kept.
        """
        self.model.eval()
        rows = [self._encoded[i] for i in self._of_step(self._order, step, self._objective.refresh)]
        with torch.no_grad():
            return [scored(self.model, batch)[1] for batch in self._micro(rows)]

    def _for_teacher(self, step: int) -> list[dict[str, Any]]:
        """The batches of a step, on the student's own responses or on those given, and with them the same under the teacher's prompts."""
        indices = self._of_step(self._order, step)
        prompts = [_split(self._encoded[i])[0] for i in indices]
        answers = self._answers(step, prompts) or [_split(self._encoded[i])[1] for i in indices]
        batches = self._micro([_join(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
        seen = [self._frozen.teacher_prompts[i] for i in indices]
        for batch, other in zip(batches, self._micro([_join(p, answer) for p, answer in zip(seen, answers, strict=True)]), strict=True):
            batch["teacher"] = other
        return batches

    def _answers(self, step: int, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The student's answers to the prompts of a step; none if it takes the given ones."""
        distil = self._objective.distil
        assert distil is not None
        rng = random.Random(f"distil {self._config.seed} {step}")
        if rng.random() >= distil.on_policy:
            return []
        sampling = Sampling(distil.temperature, distil.max_new_tokens, seed=rng.getrandbits(32))
        with self._before.lent() as model:
            return sample_ids(model, self.processing_class, prompts, sampling)

    # --- losses -----------------------------------------------------------------------------------------------------

    def _summed(self, model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        if "old" in inputs:
            old = inputs.pop("old")
            outputs, found = scored(model, inputs)
            return outputs, losses.psft(found, old, self._objective.clip).sum()
        if "teacher" in inputs:
            assert self._objective.distil is not None
            return _divergence(model, inputs, self._frozen.teacher, inputs["teacher"], self._objective.distil.beta)
        return super()._summed(model, inputs)

    def training_step(self, model: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        anchors, tokens = inputs.pop("anchors", None), inputs.pop("anchor_tokens", 1)
        loss = super().training_step(model, inputs, num_items_in_batch)
        # One after the other, so that no two of their graphs are in memory at once.
        for penalty in self._penalties(model, anchors, tokens):
            penalty.backward()
            loss = loss + penalty.detach()
        return loss

    def _penalties(self, model: PreTrainedModel, anchors: Batch | None, tokens: int) -> Iterator[Tensor]:
        o = self._objective
        if anchors is not None:
            beta = 0 if o.kl_direction == "forward" else 1
            # Averaged over processes, as the loss itself; what follows is the same in each.
            divergence = _divergence(model, anchors, self._frozen.original, anchors, beta)[1]
            yield o.kl * divergence * self.accelerator.num_processes / tokens
        if self._start and self.accelerator.sync_gradients:  # once per step, with its last micro-batch
            for name, parameter in trained_parameters(self.model):
                if o.l2_sp:
                    yield fsdp.whole(o.l2_sp * losses.l2_sp(parameter, self._start[name]))
                if o.ewc:
                    yield o.ewc * losses.ewc(parameter, self._start[name], self._fisher[name])

    # --- states -----------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        assert output_dir is not None
        if self._old:
            save_file({str(i): old for i, old in enumerate(self._old)}, str(Path(output_dir) / _OLD_POLICY.format(fsdp.place()[0])))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._objective.loss == "psft":
            file = Path(resume_from_checkpoint) / _OLD_POLICY.format(fsdp.place()[0])
            tensors = load_file(str(file), device=str(self.model.device))
            self._old = [tensors[str(i)] for i in range(len(tensors))]


def _divergence(student: PreTrainedModel, batch: Batch, other: PreTrainedModel, other_batch: Batch, beta: float) -> tuple[Any, Tensor]:
    """The student's output and the sum of its divergence from a frozen model over the tokens of the responses."""
    with torch.no_grad():
        logits = responses(other, other_batch).logits
    outputs = responses(student, batch)
    return outputs, losses.total(partial(losses.generalized_jsd, beta=beta), outputs.logits, logits)


def _split(encoded: Encoded) -> tuple[list[int], list[int]]:
    """Prompt and response."""
    length = encoded.completion_mask.index(1)
    return encoded.input_ids[:length], encoded.input_ids[length:]


def _join(prompt: Sequence[int], response: Sequence[int]) -> Encoded:
    return Encoded([*prompt, *response], [0] * len(prompt) + [1] * len(response))


def _same_parameters(original: PreTrainedModel, model: PreTrainedModel) -> dict[str, Tensor]:
    """The original's values of what is trained."""
    of_original = dict(original.named_parameters())
    found = {}
    for name, parameter in trained_parameters(model):
        if name not in of_original or of_original[name].shape != parameter.shape:
            raise ModelError(
                f"the original has no weights {name!r} of shape {list(parameter.shape)}; it must have the student's architecture"
            )
        found[name] = of_original[name]
    return found
