"""Runs a command for as long as whoever asked for it lives: ``python leash.py COMMAND …``, with a pipe as its standard input.

The pipe closes when its other end does, or is gone: killed, too. Then the command gets SIGTERM, and soon SIGKILL, with all its children.
Knows nothing of offmodel, so that it starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

_GRACE = 10.0  # seconds between the two signals


def hold(words: list[str]) -> int:
    """Run a command until it ends or standard input does; its exit code."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_stop_when_alone, args=(process.pid,), daemon=True).start()
    code = process.wait()
    _kill(process.pid, signal.SIGKILL)  # children that outlived it
    return code


def _stop_when_alone(group: int) -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock the end of the program would trip over
        pass
    _kill(group, signal.SIGTERM)
    threading.Event().wait(_GRACE)
    _kill(group, signal.SIGKILL)


def _kill(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, where only zombies are left
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(hold(sys.argv[1:]))
