"""What people see of a run: a live display in a terminal, one line per event elsewhere, and an honest time to go."""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from offmodel.lab.execute import Event, critical_path
from offmodel.lab.stage import Stage

_EVIDENCE = 0.1  # from this fraction on, a running stage says something about how long its kind takes


@dataclass
class _Running:
    worker: int
    begun: float
    fraction: float = 0.0
    message: str = ""


class Forecast:
    """Counts a run's events and estimates the time to go.

    The seconds per unit of cost are measured per kind of stage, in this run. A kind that has not run yet gets the rate of the
    others, and the estimate is then called rough. The time to go is the remaining work over the workers, or the longest
    remaining chain of stages, whichever is longer.
    """

    def __init__(self, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.workers = max(workers, 1)
        self.running: dict[Stage, _Running] = {}
        self.counts: dict[str, int] = defaultdict(int)
        self._clock = clock
        self._planned: list[Stage] = []  # inputs first
        self._left: set[Stage] = set()
        self._seconds: dict[str, float] = defaultdict(float)  # per kind, of finished stages
        self._cost: dict[str, float] = defaultdict(float)

    def note(self, event: Event) -> None:
        """Take an event down."""
        stage = event.stage
        if event.what == "planned":
            self._planned.append(stage)
            self._left.add(stage)
        elif event.what == "started":
            self.running[stage] = _Running(event.worker, self._clock())
            self.workers = max(self.workers, len(self.running))  # a cluster's are not known beforehand
        elif event.what == "progress":
            self.running[stage].fraction, self.running[stage].message = event.fraction, event.message
        elif event.what == "waiting":
            self.running.pop(stage, None)
        else:
            self.counts[event.what] += 1
            self._left.discard(stage)
            run = self.running.pop(stage, None)
            if event.what == "done":  # one that was run at once with others took no time of its own
                self._seconds[stage.kind] += self._clock() - run.begun if run else 0
                self._cost[stage.kind] += stage.cost

    @property
    def total(self) -> int:
        """Number of stages of the run that were not there before it."""
        return len(self._planned)

    @property
    def ended(self) -> int:
        """Number of those that need no more work, for whatever reason."""
        return self.total - len(self._left)

    @property
    def fraction(self) -> float:
        """Part of the planned work that is behind us, weighted by cost."""
        total = sum(stage.cost for stage in self._planned)
        left = sum(stage.cost for stage in self._left) - sum(stage.cost * run.fraction for stage, run in self.running.items())
        return 1 - left / total if total else 1.0

    def seconds_left(self) -> tuple[float, bool] | None:
        """Estimated seconds to go, and whether every kind still to run has been measured; None before there is data."""
        now = self._clock()
        seconds, cost = self._seconds.copy(), self._cost.copy()
        for stage, run in self.running.items():
            if run.fraction >= _EVIDENCE:
                seconds[stage.kind] += (now - run.begun) / run.fraction
                cost[stage.kind] += stage.cost
        if not sum(cost.values()):
            return None
        overall = sum(seconds.values()) / sum(cost.values())

        def left(stage: Stage) -> float:
            kind, run = stage.kind, self.running.get(stage)
            if run and run.fraction >= _EVIDENCE:
                return (now - run.begun) * (1 - run.fraction) / run.fraction
            expected = stage.cost * (seconds[kind] / cost[kind] if cost[kind] else overall)
            return max(expected - (now - run.begun), 0.0) if run else expected

        stages = [stage for stage in self._planned if stage in self._left]
        work = {stage: left(stage) for stage in stages}
        longest = max(critical_path(stages, work).values(), default=0.0)
        return max(sum(work.values()) / self.workers, longest), all(cost[stage.kind] for stage in stages)

    def to_go(self) -> str:
        """The time to go in words that promise no more than is known."""
        if not self._left:
            return ""
        estimate = self.seconds_left()
        if estimate is None:
            return "estimating the time to go"
        seconds, measured = estimate
        return f"{'about' if measured else 'roughly'} {duration(seconds)} to go"


def duration(seconds: float) -> str:
    """A length of time as people say it.

    Example:
        >>> duration(7), duration(44), duration(400), duration(9000)
        ('10 s', '40 s', '7 min', '2.5 h')
    """
    if seconds < 55:
        return f"{max(round(seconds / 10), 1) * 10} s"
    if seconds < 90 * 60:
        return f"{max(round(seconds / 60), 1)} min"
    return f"{seconds / 3600:.1f} h"


def one_line(text: str, width: int = 160) -> str:
    """Text that may come from a model, made safe for a terminal: no control characters, one line, not too long."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= width else words[: width - 1] + "…"


class Progress:
    """Shows a run; hand it to :func:`offmodel.lab.execute.run` as ``on_event`` inside a ``with`` block.

    In a terminal: one bar weighted by cost, the time to go, and a line per worker; failures and what stages are skipped for stay
    above it, each once. Elsewhere: one line per event.
    """

    def __init__(self, workers: int, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._forecast = Forecast(workers)
        self._lock = threading.Lock()  # the display is drawn from a thread of its own
        self._begun = time.monotonic()
        self._reasons: set[str] = set()
        self._live = Live(console=self._console, get_renderable=self._draw, transient=True) if self._console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()
        forecast = self._forecast
        counts = ", ".join(f"{number} {what}" for what, number in sorted(forecast.counts.items()) if number)
        spent = time.monotonic() - self._begun
        if kind is None:
            self._say(f"{counts or 'nothing to do'} in {f'{spent:.1f} s' if spent < 55 else duration(spent)}")
        elif issubclass(kind, KeyboardInterrupt | SystemExit):
            self._say(f"stopped with {forecast.ended} of {forecast.total} stages behind it; the same command continues from here")

    def __call__(self, event: Event) -> None:
        """Take an event of the run."""
        with self._lock:
            self._forecast.note(event)
        if self._live and event.what == "skipped":
            if event.message not in self._reasons:
                self._reasons.add(event.message)
                self._say(one_line(event.message))
        elif event.what in ("failed", "waiting") or (self._live is None and event.what not in ("planned", "progress")):
            with self._lock:  # looking ahead over all that is left takes long, so it is done where it is shown
                ended, total = self._forecast.ended, self._forecast.total
                to_go = self._forecast.to_go() if event.what in ("done", "failed") else ""
            parts = [f"[{ended}/{total}] {event.what:<8} {one_line(event.stage.label)}", one_line(event.message)]
            line = ": ".join(part for part in parts if part)
            self._say(f"{line} ({to_go})" if to_go else line)

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=self._live is None)

    def _draw(self) -> Group:
        with self._lock:
            forecast = self._forecast
            head = Table.grid(padding=(0, 2))
            reused = f", {forecast.counts['reused']} reused" if forecast.counts["reused"] else ""
            head.add_row(
                ProgressBar(total=1.0, completed=forecast.fraction, width=40),
                Text(f"{forecast.fraction:4.0%}  {forecast.ended} of {forecast.total} stages{reused}"),
                Text(forecast.to_go(), style="bold"),
            )
            lines = Table.grid(padding=(0, 2))
            for stage, run in sorted(forecast.running.items(), key=lambda pair: pair[1].worker):
                bar = ProgressBar(total=1.0, completed=run.fraction, width=16)
                label = Text(one_line(stage.label, 60), no_wrap=True, overflow="ellipsis")
                message = Text(one_line(run.message, 60), style="dim", no_wrap=True, overflow="ellipsis")
                lines.add_row(bar, Text(f"{run.fraction:4.0%}"), label, message)
            return Group(head, lines)
