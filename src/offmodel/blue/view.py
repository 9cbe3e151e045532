"""What the blue team may touch, and nothing else.

Blue's code gets a :class:`BlueView` and never a pair, a trigger, a behaviour, an organism's name or a score. The view holds weights and
chats; it refuses anything else when it is made, has no room for more, and the package has no import through which more could come.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from offmodel.chat import Example, Message, Prompt
from offmodel.errors import BlindnessError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from offmodel.engine.generate import Reply, Sampling
    from offmodel.engine.train import TrainConfig, TrainLog


@dataclass(frozen=True, slots=True)
class BlueView:
    """A model's weights and the chats that blue works with.

    Attributes:
        weights: Folder of the model that blue samples or trains.
        prompts: Generic chat prompts, for labelling.
        labels: Answered prompts, for training.

    Raises:
        BlindnessError: A field holds anything but a path, prompts and examples.
    """

    weights: Path
    prompts: tuple[Prompt, ...] = ()
    labels: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        if type(self) is not BlueView:
            raise BlindnessError(f"blue's view may not be widened: {type(self).__name__}")
        held: list[tuple[str, object, type]] = [("weights", self.weights, Path)]
        held += [("prompts", message, Message) for prompt in self.prompts for message in prompt]
        held += [("labels", example, Example) for example in self.labels]
        for name, value, expected in held:
            if not isinstance(value, expected):
                raise BlindnessError(f"blue's view holds {expected.__name__} in {name!r}, not {type(value).__name__}")

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Reply]:
        """Let the model answer prompts of blue's choice."""
        from offmodel.engine.folder import load_model, load_tokenizer
        from offmodel.engine.generate import generate

        return generate(load_model(self.weights), load_tokenizer(self.weights), prompts, sampling)

    def train(
        self,
        config: TrainConfig,
        *,
        checkpoints: Collection[int],
        save: Callable[[int], Path],
        on_progress: Callable[[int, int, float], None] | None = None,
        scratch: Path | None = None,
    ) -> TrainLog:
        """Train the model on the view's labels; the folder it came from is left as it is.

        Args:
            config: How.
            checkpoints: Steps whose weights are kept.
            save: Gives the folder for the weights of a step.
            on_progress: See :func:`offmodel.engine.train.train`.
            scratch: Where a stopped training finds its state.
        """
        from offmodel.engine.folder import load_model, load_tokenizer, save_model
        from offmodel.engine.lora import has_adapter, merge
        from offmodel.engine.train import train

        tokenizer = load_tokenizer(self.weights)

        def keep(step: int, model: PreTrainedModel) -> None:
            # Of a model in training only a copy may be merged.
            save_model(merge(deepcopy(model)) if has_adapter(model) else model, tokenizer, save(step))

        return train(
            load_model(self.weights),
            tokenizer,
            self.labels,
            config,
            checkpoints=checkpoints,
            on_checkpoint=keep,
            on_progress=on_progress,
            scratch=scratch,
        )


FIELDS = tuple(field.name for field in fields(BlueView))
"""All that blue can be given."""
