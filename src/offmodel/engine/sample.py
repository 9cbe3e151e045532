"""One way to let a model answer: here, by a server that is started for it, or by one that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from offmodel.chat import Prompt
from offmodel.engine.served import Served
from offmodel.spec.models import current

if TYPE_CHECKING:
    from offmodel.engine.generate import Reply, Sampling

_kept: ContextVar[Path | None] = ContextVar("kept", default=None)


@contextmanager
def keeping(file: Path) -> Iterator[None]:
    """Within the block, keep the answers of servers that :func:`sample` starts, so that none is asked for twice after a stop."""
    token = _kept.set(file)
    try:
        yield
    finally:
        _kept.reset(token)


def sample(
    model: Path | Served,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    prefill: str | Sequence[str] = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Reply]:
    """Let a model answer every prompt; see :func:`offmodel.engine.generate.generate`.

    Args:
        model: A folder, whose model is run as :func:`offmodel.spec.models.current` says: loaded here, or by a server of its own, which
            gets the same tokens. Greedy answers are then the same up to rounding; drawn ones are other draws. Or a model behind a server.
        prompts: Chats that wait for the assistant.
        sampling: How to draw.
        prefill: First words put into the assistant's mouth, the same for all prompts or one for each.
        on_progress: Called as ``on_progress(prompts answered, of how many)``.

    Raises:
        ModelError: The model, or its server, cannot be used.
        DataError: A prompt and its answer do not fit into the model's context.
    """
    if isinstance(model, Served):
        from offmodel.engine.server import ask

        return ask(model, prompts, sampling, prefill=prefill, on_progress=on_progress)
    if (server := current().server) is not None:
        from offmodel.engine.host import hosted
        from offmodel.engine.server import ask

        with hosted(model, server, _kept.get()) as served:
            return ask(served, prompts, sampling, prefill=prefill, on_progress=on_progress)
    from offmodel.engine.folder import load_model, load_tokenizer
    from offmodel.engine.generate import generate

    return generate(load_model(model), load_tokenizer(model), prompts, sampling, prefill=prefill, on_progress=on_progress)
