"""What the blue team may touch, and nothing else.

Blue's code gets a :class:`BlueView` and never a pair, a trigger, a behaviour, an organism's name or a score. The view holds weights and
chats; it refuses anything else when it is made, has no room for more, and the package has no import through which more could come.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offmodel.chat import Example, Message, Prompt
from offmodel.engine.sample import sample
from offmodel.engine.served import Served
from offmodel.errors import BlindnessError, DivergedError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offmodel.engine.compare import Distance
    from offmodel.engine.generate import Reply, Sampling
    from offmodel.engine.rl import GrpoConfig, RlLog
    from offmodel.engine.train import TrainConfig, TrainLog


@dataclass(frozen=True, slots=True)
class BlueView:
    """A model's weights and the chats that blue works with.

    Attributes:
        weights: Folder of the model that blue samples or trains; or a model behind a server, which it can only sample.
        prompts: Prompts, for labelling.
        labels: Answered prompts, for training.
        adapter: Folder of an adapter that comes with the weights and is to be trained on, if there is one.
        original: Folder of the untouched organism, for a training that is held near it.
        anchors: Answered prompts on which it is held there.
        teacher: Folder of the model whose distribution is learnt, for distillation.

    Raises:
        BlindnessError: A field holds anything but a path (for the weights, a server), prompts and examples.
    """

    weights: Path | Served
    prompts: tuple[Prompt, ...] = ()
    labels: tuple[Example, ...] = ()
    adapter: Path | None = None
    original: Path | None = None
    anchors: tuple[Example, ...] = ()
    teacher: Path | None = None

    def __init_subclass__(cls) -> None:
        raise BlindnessError(f"blue's view may not be widened: {cls.__name__}")

    def __post_init__(self) -> None:
        if type(self.weights) is not Served:
            _only("weights", self.weights, type(Path()))
        for name in ("adapter", "original", "teacher"):
            if (folder := getattr(self, name)) is not None:
                _only(name, folder, type(Path()))
        _only("prompts", self.prompts, tuple)
        for prompt in self.prompts:
            _only_chat("prompts", prompt)
        for name in ("labels", "anchors"):
            for example in _only(name, getattr(self, name), tuple):
                _only(name, example, Example)
                _only_chat(name, example.prompt)
                _only(name, example.response, str)
                try:
                    json.dumps(example.meta)
                except TypeError as error:
                    raise BlindnessError(f"blue's view holds plain JSON as the meta of {name!r} ({error})") from None

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Reply]:
        """Let the model answer prompts of blue's choice."""
        return sample(self.weights, prompts, sampling)

    def distance(self) -> Distance:
        """How far the model is from the original on the view's anchors; see :func:`offmodel.engine.compare.mean_distance`."""
        from offmodel.engine.compare import mean_distance
        from offmodel.engine.folder import load_model, load_tokenizer

        assert self.original is not None
        return mean_distance(load_model(self.folder), load_model(self.original), load_tokenizer(self.folder), self.anchors)

    def train(
        self,
        config: TrainConfig,
        *,
        checkpoints: Collection[int],
        save: Callable[[int], Path],
        teacher_system: str | None = None,
        on_progress: Callable[[int, int, float], None] | None = None,
        scratch: Path | None = None,
    ) -> TrainLog:
        """Train the model on the view's labels; the folder it came from is left as it is.

        Args:
            config: How.
            checkpoints: Steps whose weights are kept.
            save: Gives the folder for the weights of a step; an adapter that goes on is kept in it besides, under its own name.
            teacher_system: A system prompt that only the view's teacher sees.
            on_progress: See :func:`offmodel.engine.train.train`.
            scratch: Where a stopped training finds its state.
        """
        from offmodel.engine.folder import load_model
        from offmodel.engine.train import train

        # Several processes take their parts from here, and the whole need not fit on a GPU.
        device = "cpu" if config.processes > 1 else None
        model, tokenizer = self._student(device)
        return train(
            model,
            tokenizer,
            self.labels,
            config,
            original=load_model(self.original, device=device) if self.original else None,
            anchors=self.anchors,
            teacher=load_model(self.teacher, device=device) if self.teacher else None,
            teacher_system=teacher_system,
            checkpoints=checkpoints,
            on_checkpoint=partial(self._keep, tokenizer, save),
            on_progress=on_progress,
            scratch=scratch,
        )

    def reinforce(
        self,
        config: GrpoConfig,
        reward: Callable[[int, str], float],
        *,
        checkpoints: Collection[int],
        save: Callable[[int], Path],
        on_progress: Callable[[int, int, float], None] | None = None,
        scratch: Path | None = None,
    ) -> RlLog:
        """Train the model by reinforcement on the view's prompts; see :meth:`train`.

        Args:
            config: How.
            reward: What an answer to the i-th prompt is worth.
            checkpoints: Steps whose weights are kept.
            save: Gives the folder for the weights of a step.
            on_progress: See :func:`offmodel.engine.rl.grpo`.
            scratch: Where a stopped training finds its state.
        """
        from offmodel.engine.rl import grpo

        model, tokenizer = self._student()
        return grpo(
            model,
            tokenizer,
            self.prompts,
            reward,
            config,
            checkpoints=checkpoints,
            on_checkpoint=partial(self._keep, tokenizer, save),
            on_progress=on_progress,
            scratch=scratch,
        )

    @property
    def folder(self) -> Path:
        """The folder of the weights.

        Raises:
            ModelError: Only a server has them.
        """
        if isinstance(self.weights, Served):
            raise ModelError(f"{self.weights.endpoint}: only answers; its weights are not here")
        return self.weights

    def _student(self, device: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from offmodel.engine.folder import hash_weights, load_model, load_tokenizer
        from offmodel.engine.lora import load_adapter

        model = load_model(self.folder, device=device)
        if self.adapter is not None:
            load_adapter(model, self.adapter, hash_weights(self.folder))
        return model, load_tokenizer(self.folder)

    def _keep(self, tokenizer: PreTrainedTokenizerBase, save: Callable[[int], Path], step: int, model: PreTrainedModel) -> None:
        from offmodel.engine.folder import save_model
        from offmodel.engine.lora import base_of, has_adapter, merged, save_adapter

        folder = save(step)
        shutil.rmtree(folder, ignore_errors=True)  # left by a training that was stopped
        # Of a model in training only a copy may be merged.
        save_model(merged(model) if has_adapter(model) else model, tokenizer, folder)
        if self.adapter is not None:
            save_adapter(model, folder / self.adapter.name, base_of(self.adapter))


@dataclass(frozen=True)
class ViewTraining:
    """A training of a view's model on its labels.

    Attributes:
        view: The view.
        config: How.
        checkpoints: As in :meth:`BlueView.train`, like the others.
        save: See there.
        on_progress: See there.
        scratch: See there.
    """

    view: BlueView
    config: TrainConfig
    checkpoints: Collection[int]
    save: Callable[[int], Path]
    on_progress: Callable[[int, int, float], None]
    scratch: Path


def train_together(trainings: Sequence[ViewTraining]) -> list[TrainLog | DivergedError]:
    """Train several views at once, all of the same weights; see :func:`offmodel.engine.together.train_together`."""
    from offmodel.engine import together

    model, tokenizer = trainings[0].view._student()
    treatments = [
        together.Treatment(
            each.view.labels, each.config, each.checkpoints, partial(each.view._keep, tokenizer, each.save), each.on_progress, each.scratch
        )
        for each in trainings
    ]
    return together.train_together(model, tokenizer, treatments)


def _only_chat(name: str, prompt: object) -> None:
    for message in _only(name, prompt, tuple):
        _only(name, message, Message)
        _only(name, message.role, str)
        _only(name, message.content, str)


def _only(name: str, value: Any, expected: type) -> Any:
    """The value, if it is of this very type: a subclass could carry more."""
    if type(value) is not expected:
        raise BlindnessError(f"blue's view holds {expected.__name__} in {name!r}, not {type(value).__name__}")
    return value
