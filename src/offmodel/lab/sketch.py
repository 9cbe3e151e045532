"""A plan of what is not here: nothing is fetched for it, and what a study names on the hub has a stand-in until something runs.

The names of stages rest on the content of models and data, so those of a sketch are not final, and nothing can be run by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_missing: ContextVar[dict[str, None] | None] = ContextVar("missing", default=None)


@contextmanager
def sketching() -> Iterator[dict[str, None]]:
    """Plan, within the block, without fetching anything; gives what has a stand-in, as the keys of a mapping that fills while planning."""
    found: dict[str, None] = {}
    token = _missing.set(found)
    try:
        yield found
    finally:
        _missing.reset(token)


def stands_in(name: str, is_here: Callable[[], bool]) -> bool:
    """Whether something of the hub is to have a stand-in: while sketching, where it is not on this machine."""
    missing = _missing.get()
    if missing is None or is_here():
        return False
    missing[name] = None
    return True
