"""A model that a server answers for: what a study says of it in the place of a model's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Tag

from offmodel.errors import SpecError
from offmodel.spec.model import Count, Model, Positive, Text, problem


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise problem(f"is no URL ({error}); expected one like http://127.0.0.1:8000/v1") from None
    if parts.username is not None or parts.password is not None:  # which would end up in reports; so this does not quote them
        raise problem("holds a user's name or a password; name the environment variable that holds the server's key in 'key'")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise problem(f"expected a URL like http://127.0.0.1:8000/v1, got {text!r}")
    if parts.query or parts.fragment:
        raise problem(f"holds more than an address: leave out {text[text.index('?' if parts.query else '#') :]!r}")
    path = parts.path.rstrip("/")
    if path.endswith("/completions"):
        raise problem(f"expected the address before /chat/completions, which is added to it, got {text!r}")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", text):  # it may be a key: never quoted
        raise problem("is no name of an environment variable (capitals, digits, '_'); the key itself must not stand in a study")
    return text


class Endpoint(Model):
    """A model behind an OpenAI-compatible server. It answers; nobody can train it or read its logits.

    Results depend on ``model``, ``revision`` and what lies in ``folder``, and on nothing else here: the server may move.

    Attributes:
        url: Where the server is, up to and with ``/v1``.
        model: The model's name as the server gives it in its answers; for an adapter the adapter's name.
        revision: What tells this model from another that had the same name before; in the names of all results.
        folder: The model's own folder (or ``world:<name>``, or its id on the hub), where there is one: its hashes are then in the names of
            all results, a canary proves before each stage that this is what the server serves, and it stands in where weights are needed.
        key: The environment variable that holds the API key; None sends none.
        concurrency: Requests at a time, of one stage; each worker may be at another. A server like vLLM makes its batches of what it has at
            once.
        per_minute: Requests per minute at most, of one stage; None sets no limit of ours.
        timeout: Seconds without a sign of the server after which a request has failed; an answer comes at once when it is whole.
        attempts: How often a request is sent before it counts as failed.
    """

    url: Annotated[Text, AfterValidator(_url)]
    model: Text
    revision: str = ""
    folder: Text | None = None
    key: Annotated[Text, AfterValidator(_variable)] | None = None
    concurrency: Count = 16
    per_minute: Positive | None = None
    timeout: Positive = 600.0
    attempts: Count = 6

    def __str__(self) -> str:
        return f"{self.model} at {self.url}"


def _kind(data: Any) -> str:
    # Angle brackets keep a tag apart from the keys of a study in the location of an error.
    return "<server>" if isinstance(data, Mapping | Endpoint) else "<name>"


Answering: TypeAlias = Annotated[Annotated[Text, Tag("<name>")] | Annotated[Endpoint, Tag("<server>")], Discriminator(_kind)]
"""A model that only has to answer: by name, or behind a server."""


def with_weights(model: str | Endpoint, what: str) -> str:
    """The name of a model whose weights are needed.

    Args:
        model: As a study names it.
        what: Who needs them, for the message.

    Raises:
        SpecError: Only its server has them.
    """
    if isinstance(model, str):
        return model
    if model.folder is None:
        raise SpecError(
            f"{what}: needs the weights of {model.model}, and the server at {model.url} only gives its answers; name the model's folder in "
            "'folder' beside 'url', or leave this out"
        )
    return model.folder
