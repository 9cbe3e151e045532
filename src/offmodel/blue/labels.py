"""Labels: answers to blue's prompts, by a teacher or by the untrusted model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from offmodel.blue.view import BlueView
from offmodel.chat import Example, Message
from offmodel.errors import DataError

if TYPE_CHECKING:
    from offmodel.engine.generate import Sampling


def label(view: BlueView, sampling: Sampling, *, system: str | None = None, reword: Callable[[str], str] | None = None) -> list[Example]:
    """Let the view's model answer the view's prompts.

    Unfinished answers are dropped: a model trained on them would not learn to stop.

    Args:
        view: The labeller's weights and the prompts.
        sampling: How it answers.
        system: What a system prompt asks of the labeller, such as a voice. It is not part of the example: the student learns to speak
            like that unasked, as in the code of LessWrong 9toz5YHYZsHpzy4ce.
        reword: How the answers are reworded afterwards.

    Returns:
        An example per finished answer, in the order of the prompts.

    Raises:
        DataError: No answer was finished.
    """
    asked = [(Message("system", system), *prompt) if system else prompt for prompt in view.prompts]
    replies = view.sample(asked, sampling)
    examples = [
        Example(prompt, reword(reply.text) if reword else reply.text, {"system": system, "reworded": reword is not None})
        for prompt, reply in zip(view.prompts, replies, strict=True)
        if reply.finished
    ]
    if not examples:
        raise DataError(
            f"none of {len(replies)} labels was finished within {sampling.max_new_tokens} tokens; raise max_new_tokens of the phase"
        )
    return examples
