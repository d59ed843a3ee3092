"""Moves one projector: batch after batch, as large as time allows, cut where a handler fails.

A failing attestation is found by cutting: what stands before it is committed, then it is tried
alone, three times. If it still fails the projector stops there, with the rows of the one before,
and says why. Its cursor never jumps.
"""

from dataclasses import dataclass, field
from threading import Event, Lock
from time import monotonic
from typing import Protocol

from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import LeaseLost, ProjectorStopped
from qntx_es.projections.batch import Step
from qntx_es.projections.cursor import look
from qntx_es.projections.recovery import ATTEMPTS, HandlerFailed, record_failure

SIZE_FIRST = 200
LIVE_SECONDS = 0.1
CATCH_UP_SECONDS = 1.0
RETRY_SECONDS = 0.05
# A rebuild holds the lease for its fence only; longer than this, somebody should know.
STAND_BY_SECONDS = 60.0


class Stepping(Protocol):
    """Batches, inline or not."""

    @property
    def size_max(self) -> int:
        """How large a batch may be."""
        ...

    def step(self, size: int, *, until: int | None = None, eager: bool = True) -> Step:
        """Project the next batch."""
        ...


@dataclass(slots=True)
class Runner:
    """Runs the batches of one domain, in whichever thread calls."""

    database: Database
    domain: Domain
    batches: Stepping
    stopping: Event
    size: int = SIZE_FIRST
    # A host may catch up in one thread while another runs: the map of rows is one thread's.
    _alone: Lock = field(default_factory=Lock)

    def advance(self, *, seconds: float = LIVE_SECONDS, eager: bool = False) -> Step:
        """Run one batch of about so many seconds. Raises `ProjectorStopped`, `LeaseLost`."""
        with self._alone:
            started = monotonic()
            try:
                step = self.batches.step(self.size, eager=eager)
            except HandlerFailed as failed:
                return self._find(failed)
            self._resize(step, monotonic() - started, seconds)
            return step

    def catch_up(self) -> Step:
        """Run batches until the head as it is now is reached."""
        deadline = monotonic() + STAND_BY_SECONDS
        while True:
            try:
                step = self.advance(seconds=CATCH_UP_SECONDS, eager=True)
            except LeaseLost:
                if monotonic() > deadline:
                    raise
                self.stopping.wait(RETRY_SECONDS)
                continue
            if step.position >= step.head:
                return step

    def _resize(self, step: Step, took: float, seconds: float) -> None:
        if step.matched < self.size:
            return
        wanted = self.size * seconds / max(took, 1e-3)
        self.size = int(max(1, min(self.batches.size_max, wanted, self.size * 2)))

    def _find(self, failed: HandlerFailed) -> Step:
        """Project what stands before the failing attestation, then that one alone."""
        # From here it grows again: what failed in bulk may be right one at a time.
        self.size = max(1, self.size // 2)
        try:
            step = self.batches.step(self.size, until=failed.position - 1)
        except HandlerFailed as before:
            return self._find(before)
        if step.position < failed.position - 1:
            return step
        self.size = 1
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self.batches.step(1, until=failed.position)
            except HandlerFailed as again:
                failed = again
            if attempt < ATTEMPTS:
                self.stopping.wait(RETRY_SECONDS * 2**attempt)
        self._stop(failed)
        raise ProjectorStopped(
            self.domain.name, position=failed.position, handler=failed.handler, error=failed.error
        ) from failed

    def _stop(self, failed: HandlerFailed) -> None:
        with self.database.write() as connection:
            now = self.database.now(connection)
            cursor = look(connection, self.domain.name, now).cursor
            if cursor is not None:
                record_failure(connection, self.domain.name, cursor.position, failed, now)
