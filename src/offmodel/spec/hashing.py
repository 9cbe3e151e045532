"""Names made of content: the same value has the same hash on every machine and in every version of Python."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def canonical_json(obj: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, floats by their shortest exact repr.

    Args:
        obj: None, truth values, numbers, text, lists, tuples, mappings with text keys, and pydantic models, nested at will.

    Raises:
        TypeError: Another type is inside; a set, for one, has no order to write down.
        ValueError: A NaN or an infinity is inside; neither equals itself in every reader of JSON.
    """
    return json.dumps(_plain(obj), sort_keys=True, separators=(",", ":"), allow_nan=False)


def stable_hash(obj: Any, length: int = 16) -> str:
    """The first ``length`` hexadecimal digits (4 bits each) of the SHA-256 of :func:`canonical_json`.

    Example:
        >>> stable_hash({"b": 1, "a": [0.001]}) == stable_hash({"a": (1e-3,), "b": 1})
        True
    """
    return hashlib.sha256(canonical_json(obj).encode()).hexdigest()[:length]


def _plain(obj: Any) -> Any:
    if isinstance(obj, BaseModel):
        return _plain(obj.model_dump())
    if isinstance(obj, Mapping):
        # json.dumps would turn the key 1 into "1", and two different mappings into one text.
        if bad := [key for key in obj if not isinstance(key, str)]:
            raise TypeError(f"only text can be a key of a hashed mapping, got {bad[0]!r}")
        return {key: _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    return obj
