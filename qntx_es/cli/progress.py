"""How far something slow has come: bars at a terminal, a line now and then elsewhere.

It goes to stderr, so that what a command prints can be kept while its progress is watched.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from qntx_es.cli.output import grouped, is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS = 5.0


class Report(Protocol):
    """Takes how far a step has come; the note says what it is doing."""

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` are done."""


@dataclass(slots=True)
class Pace:
    """How fast a step goes, counted from where it was first seen to where it was last moved."""

    first: int
    started: float = field(default_factory=monotonic)
    done: int = -1
    seconds: float = 0.0

    def words(self, done: int, total: int) -> str:
        """Return rate and time left, or how long it took."""
        if done != self.done:
            self.done, self.seconds = done, monotonic() - self.started
        moved = done - self.first
        if not moved:
            return ""
        if done >= total:
            return f"in {self.seconds:.1f} s"
        rate = moved / max(self.seconds, 1e-3)
        return f"{grouped(round(rate))}/s, {(total - done) / rate:.0f} s left"


class Bars:
    """A bar for each step."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._lock = Lock()
        self._known: dict[str, tuple[TaskID, Pace]] = {}

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None:
        """Move the bar."""
        with self._lock:
            if step not in self._known:
                task = self._progress.add_task(step, count="", words="", visible=False)
                self._known[step] = (task, Pace(done))
            task, pace = self._known[step]
            words = ", ".join(filter(None, (pace.words(done, total), note)))
        count = f"{grouped(done)} of {grouped(total)}"
        # Of nothing, everything is done.
        completed, of = (done, total) if total else (1, 1)
        self._progress.update(
            task, completed=completed, total=of, visible=True, count=count, words=words
        )


class Lines:
    """A line for each step every few seconds, and one at its end."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._paces: dict[str, Pace] = {}
        self._told_at: dict[str, float] = {}
        self._untold: dict[str, str] = {}

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None:
        """Print a line if the last one is old."""
        with self._lock:
            pace = self._paces.setdefault(step, Pace(done))
            words = ", ".join(filter(None, (pace.words(done, total), note)))
            line = f"{step}: {done} of {total}" + (f", {words}" if words else "")
            self._untold[step] = line
            if monotonic() - self._told_at.setdefault(step, pace.started) >= LINE_SECONDS:
                self._tell(step)

    def finish(self) -> None:
        """Print where each step ended."""
        with self._lock:
            for step in list(self._untold):
                self._tell(step)

    def _tell(self, step: str) -> None:
        print(self._untold.pop(step), file=sys.stderr, flush=True)
        self._told_at[step] = monotonic()


@contextmanager
def progress() -> Iterator[Report]:
    """Show how far steps have come until the block ends."""
    sys.stdout.flush()
    if not is_terminal(sys.stderr):
        lines = Lines()
        try:
            yield lines
        finally:
            lines.finish()
        return
    from qntx_es.cli import terminal  # noqa: PLC0415 - slow, and a pipe has no need of it

    with terminal.bars() as bars:
        yield Bars(bars)
