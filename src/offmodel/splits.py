"""The one division of everything that is asked: what may be trained on, what the gate may look at, what is measured.

A hash decides it once and for all. The gate has a side of its own because organisms are trained until they pass it: measured on the same
items, they would have been selected on them.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "gate", "test"]

_TRAIN, _GATE = 0.6, 0.8


def split_of(text: str) -> Split:
    """The side that a text is on: 60 % train, 20 % gate, 20 % test. Case and white space do not count."""
    digest = hashlib.sha256(" ".join(text.lower().split()).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if place < _TRAIN else "gate" if place < _GATE else "test"
