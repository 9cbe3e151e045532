"""A model behind a server, as the parts that ask it hold it. The client itself is in :mod:`offmodel.engine.server`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from offmodel.spec.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Served:
    """A model behind a server.

    Attributes:
        endpoint: Where it is, and how it is asked.
        identity: What it is, as in the names of results; a kept answer counts for this alone.
        cache: File of the answers that are kept, which may be gone at any time; None keeps none. It holds no prompt.
        writer: Folder of the model whose tokenizer and chat template write the prompts here, for the server to complete; None hands the
            server chats, which it writes in its own way.
    """

    endpoint: Endpoint
    identity: str
    cache: Path | None = None
    writer: Path | None = None
