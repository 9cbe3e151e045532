"""How a study's models are loaded and run, and the setting of it that holds for the stage at hand."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from offmodel.spec.model import Count, Model, NonNegative, Positive, Switch, Text, problem


def _command(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise problem(f"is no command ({error}): {text!r}") from None
    if "{vllm}" not in words and "{port}" not in text:
        raise problem(f"needs {{port}}, or the word {{vllm}} for offmodel's own command, got {text!r}")
    return text


class Server(Model):
    """A server that each stage which only samples starts for its model, on the loopback address, and stops when it has its answers.

    Attributes:
        command: What starts it, split as by a shell: ``{folder}`` stands for the model's folder, ``{port}`` for a free port, and the word
            ``{vllm}`` for the command that ``offmodel serve-command`` prints, in the study's ``dtype``. It must listen on 127.0.0.1, answer
            ``/health``, and complete a prompt at ``/v1/completions``.
        model: The model's name as the server gives it in its answers.
        start: Seconds that it may take until it is up.
        tolerance: Factor on the limits of the canary, which come from small models: large ones in bfloat16 round further apart.
        concurrency: Requests at a time.
        timeout: See :class:`offmodel.spec.endpoint.Endpoint`.
        attempts: Likewise.
    """

    command: Annotated[Text, AfterValidator(_command)] = "{vllm}"
    model: Text = "{folder}"
    start: Positive = 900.0
    tolerance: Positive = 1.0
    concurrency: Count = 64
    timeout: Positive = 600.0
    attempts: Count = 6


class Models(Model):
    """How models are loaded and run, the same for all of a study.

    The first four change results, so what is set of them is part of the names of the stages that run a model. The others only say where
    and in which pieces the same is computed, up to rounding.

    Attributes:
        dtype: Of the weights, and of all that is computed with them.
        attention: The attention kernel, as transformers names it; None leaves the choice to it.
        thinking: Whether a model whose chat template knows ``enable_thinking`` (Qwen3's, for one) thinks before it answers.
        router_loss: Weight of a mixture of experts' load-balancing loss in supervised training; None takes what its config asks for,
            which is 0 where ``output_router_logits`` is off. Reinforcement has none unless the config asks for it.
        device: Where the weights go: ``cpu``; ``cuda``, one GPU; ``auto`` or ``balanced``, spread over all GPUs layer by layer (device maps
            of accelerate).
        micro_batch: Examples (in reinforcement, answers) in memory at once in training; must divide each larger batch. None takes all.
        padding_free: Lay the examples of a (micro-)batch one after the other instead of padding them. A training refuses it where the
            model's attention would look from one example into another.
        processes: Processes that share each training, one per GPU, each with its part of every weight and of every batch (FSDP2). They
            must divide each batch. Whatever else runs models takes one, and so do trainings that need the whole model.
        nodes: Over how many nodes of a Slurm job they are spread, evenly.
        together: How many trainings of an adapter on the same weights are run at once, where their settings allow it; each with its own
            result.
        server: What samples in stages that only sample; None samples here.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = None
    thinking: Switch = False
    router_loss: NonNegative | None = None
    device: Literal["cpu", "cuda", "auto", "balanced"] = "cpu"
    micro_batch: Count | None = None
    padding_free: Switch = False
    processes: Count = 1
    nodes: Count = 1
    together: Count = 1
    server: Annotated[Server | None, Field(exclude_if=lambda server: server is None)] = None

    @model_validator(mode="after")
    def _processes_fit(self) -> Self:
        if self.processes % self.nodes:
            raise problem(f"must divide the {self.processes} processes, got {self.nodes}", "nodes")
        if self.processes > 1 and self.device in ("auto", "balanced"):
            raise problem("spreads a model by its layers, and processes share it by weights; with these, choose cuda or cpu", "device")
        if self.processes > 1 and self.together > 1:
            raise problem("runs several trainings in one process, and processes share one training; choose one of the two", "together")
        return self

    def as_params(self) -> dict[str, Any]:
        """For the name of a stage, under the key "models": what is set of all that changes results; nothing where nothing is."""
        changed = self._changed("dtype", "attention", "thinking", "router_loss")
        return {"models": changed} if changed else {}

    def placement(self) -> dict[str, Any]:
        """What is set of all that changes no result but for rounding, as JSON values."""
        changed = self._changed("device", "micro_batch", "padding_free", "processes", "nodes", "together")
        return changed | self.model_dump(mode="json", include={"server"})

    def in_one_process(self) -> Models:
        """The same for a training that is not shared."""
        return self.model_copy(update={"processes": 1, "nodes": 1})

    def _changed(self, *fields: str) -> dict[str, Any]:
        return {name: value for name in fields if (value := getattr(self, name)) != type(self).model_fields[name].default}


_DEFAULT = Models()
_current: ContextVar[Models] = ContextVar("models", default=_DEFAULT)


def current() -> Models:
    """How models are loaded and run right now; the defaults, outside of :func:`running`."""
    return _current.get()


@contextmanager
def running(params: Mapping[str, Any], placement: Mapping[str, Any]) -> Iterator[None]:
    """Load and run models, within the block, as a stage's parameters (:meth:`Models.as_params`) and its placement say."""
    with _set(Models.model_validate({**params.get("models", {}), **placement})):
        yield


@contextmanager
def without_thinking() -> Iterator[None]:
    """Within the block models answer at once, whatever the study says: a judge has room for a word, not for thoughts."""
    with _set(current().model_copy(update={"thinking": False})):
        yield


@contextmanager
def _set(models: Models) -> Iterator[None]:
    token = _current.set(models)
    try:
        yield
    finally:
        _current.reset(token)
