"""Moves one projector: batch after batch, as large as time allows, cut where a handler fails.

A failing attestation is found by cutting: what stands before it is committed, then it is tried
alone, three times. If it still fails, what the domain has chosen comes to pass in a batch of its
own: its entity is parked, it is skipped, or the projector stops there, with the rows of the one
before, and says why. Who has stopped tries again in another process, or when it is told to.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock
from time import monotonic
from types import FrameType
from typing import Protocol

from sqlalchemy.exc import DBAPIError

from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import (
    LeaseLost,
    ProjectorOutdated,
    ProjectorPaused,
    ProjectorStopped,
    RangeGone,
)
from qntx_es.projections.alteration import altered_by_hand
from qntx_es.projections.batch import Batches, Step
from qntx_es.projections.cursor import Cursor, Look, fence, lease_name, look, raise_token
from qntx_es.projections.generations import bound_waiting
from qntx_es.projections.lease import Leases
from qntx_es.projections.ledger import PARKED_MAX, read_waiting
from qntx_es.projections.portions import READ_MAX
from qntx_es.projections.recovery import (
    ATTEMPTS,
    STUCK,
    TABLES,
    HandlerFailed,
    InHand,
    choice_of,
    record_failure,
    stuck_at,
)
from qntx_es.projections.slices import ALL, Slices

SIZE_FIRST = 200
LIVE_SECONDS = 0.1
CATCH_UP_SECONDS = 1.0
RETRY_SECONDS = 0.05
# Whoever holds a lease moves the cursor; where it stands for longer, somebody should know.
STAND_BY_SECONDS = 60.0

logger = logging.getLogger(__name__)


class Stepping(Protocol):
    """Batches, inline or not."""

    @property
    def size_max(self) -> int:
        """How large a batch may be."""
        ...

    def check(self, seen: Look) -> Cursor:
        """Return the cursor that may be moved, or raise why it may not."""
        ...

    def step(self, size: int, *, until: int | None = None, eager: bool = True) -> Step:
        """Project the next batch."""
        ...


@dataclass(slots=True)
class Runner:
    """Runs the batches of one domain over some slices, in whichever thread calls.

    With `leases` it moves only while it holds its own; without, whenever nobody else does.
    """

    database: Database
    domain: Domain
    batches: Stepping
    stopping: Event
    slices: Slices = ALL
    leases: Leases | None = None
    size: int = SIZE_FIRST
    # A host may catch up in one thread while another runs: the map of rows is one thread's.
    _alone: Lock = field(default_factory=Lock)
    _stopped_at: Cursor | None = None

    def __post_init__(self) -> None:
        """Begin large where the database folds: what it gains by that, it gains from the first."""
        # The batches of an inline domain hold appends up.
        if self.batches.size_max > READ_MAX and not self.domain.inline:
            self.size = self.batches.size_max

    @property
    def lease(self) -> str:
        """The name of its lease."""
        return lease_name(self.domain.name, self.slices)

    @property
    def is_holding(self) -> bool:
        """Tell whether this host is the one that moves it."""
        return self.leases is not None and self.leases.is_held(self.lease)

    def advance(
        self,
        *,
        seconds: float = LIVE_SECONDS,
        eager: bool = False,
        woken: bool = False,
        until: int | None = None,
    ) -> Step:
        """Run one batch of about so many seconds. Raises `ProjectorStopped`, `LeaseLost`.

        Where it has stopped nothing is done until somebody moves the cursor, or gives it a token.
        """
        with self._alone:
            if self._stopped_at is not None and (stands := self._look_again()) is not None:
                return stands
            with self._held():
                started = monotonic()
                try:
                    if woken and isinstance(self.batches, Batches):
                        step = self.batches.step(self.size, eager=eager, woken=True)
                    else:
                        step = self.batches.step(self.size, until=until, eager=eager)
                except HandlerFailed as failed:
                    return self._find(failed)
                except DBAPIError as error:
                    self._refuse_altered(error)
                    raise
                self._resize(step, monotonic() - started, seconds)
                return step

    def catch_up(self, until: int | None = None) -> Step:
        """Run batches until the head as it is now is reached, trying anew where it has stopped.

        While another holds the lease, it is that one's affair, and only waited for.
        """
        self._stopped_at = None
        stood_at, deadline = -1, 0.0
        while True:
            try:
                step = self.advance(seconds=CATCH_UP_SECONDS, eager=True, until=until)
            except RangeGone:
                raise
            except LeaseLost:
                step = self._stands()
                if step.position != stood_at:
                    stood_at, deadline = step.position, monotonic() + STAND_BY_SECONDS
                elif monotonic() > deadline:
                    raise
                self.stopping.wait(RETRY_SECONDS)
            if step.position >= (step.head if until is None else until):
                return step

    def give_back(self) -> None:
        """Let others move it from here on."""
        if self.leases is not None:
            self.leases.give_back(self.lease)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the lease for a batch; give it back where nothing is to be done under it."""
        if self.leases is None:
            yield
            return
        try:
            self._take_lease(self.leases)
            with self.leases.working(self.lease, self._fence_stuck):
                yield
        except (ProjectorOutdated, ProjectorPaused, ProjectorStopped):
            self.give_back()
            raise

    def _take_lease(self, leases: Leases) -> None:
        if leases.is_held(self.lease):
            return
        self.batches.check(self._look())
        since = monotonic()
        with self.database.write() as connection:
            if not leases.take(connection, self.lease):
                raise LeaseLost
            raise_token(connection, self.domain.name, self.slices)
        leases.keep(self.lease, since)

    def _fence_stuck(self, frame: FrameType) -> None:
        """Keep a batch that does not end from ever committing, and say where it is."""
        stuck = stuck_at(self.domain, frame)
        logger.error("%s\n%s", stuck, stuck.traceback)
        with self.database.write() as connection:
            bound_waiting(connection)
            cursor = look(self.database, connection, self.domain.name, self.slices).cursor
            if cursor is not None:
                now = self.database.now(connection)
                fence(cursor, connection, pause=cursor.pause)
                record_failure(connection, cursor, stuck, now, STUCK)

    def _resize(self, step: Step, took: float, seconds: float) -> None:
        # A few that took long have waited, and say nothing of how many fit in so many seconds.
        is_telling = took > seconds and step.matched > SIZE_FIRST
        if step.matched < self.size and not is_telling:
            return
        wanted = step.matched * seconds / max(took, 1e-3)
        self.size = int(max(1, min(self.batches.size_max, wanted, self.size * 2)))

    def _find(self, failed: HandlerFailed) -> Step:
        """Project what stands before the failing attestation, then that one alone."""
        if isinstance(failed.raised, DBAPIError):
            self._refuse_altered(failed.raised)
        # From here it grows again: what failed in bulk may be right one at a time.
        self.size = max(1, self.size // 2)
        try:
            step = self.batches.step(self.size, until=failed.at - 1)
        except HandlerFailed as before:
            return self._find(before)
        if step.position < failed.at - 1:
            return step
        self.size = 1
        # Before it is tried: whoever decides something meanwhile gives it another token.
        self._stopped_at = self._look().cursor
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self.batches.step(1, until=failed.at)
            except HandlerFailed as again:
                failed = again
            if attempt < ATTEMPTS:
                self.stopping.wait(RETRY_SECONDS * 2**attempt)
        return self._settle(failed)

    def _settle(self, failed: HandlerFailed) -> Step:
        choice = choice_of(self.domain.on_failure, failed)
        if choice == "stop" or not isinstance(self.batches, Batches):
            raise self._stop(failed, failed.error) from failed
        if choice == "park" and failed.at == failed.position and self._is_full():
            crowd = f"{failed.error}; {PARKED_MAX} entities are parked, and it parks no more"
            raise self._stop(failed, crowd) from failed
        try:
            return self.batches.settle(failed, is_skipped=choice == "skip")
        except HandlerFailed as earlier:
            # What waited before it fails by now as well; each time less is worked off.
            return self._settle(earlier)

    def _is_full(self) -> bool:
        with self.database.read() as connection:
            waiting = read_waiting(connection, self.domain.name, self.domain.version)
        return len(waiting) >= PARKED_MAX

    def _refuse_altered(self, error: DBAPIError) -> None:
        """Stop where it was no handler that failed. Raises `TableAltered`."""
        with self.database.snapshot() as connection:
            cursor = look(self.database, connection, self.domain.name, self.slices).cursor
            altered = altered_by_hand(connection, self.domain, cursor)
        if altered is not None:
            self._stopped_at = cursor
            self._record(HandlerFailed(InHand(altered.position, TABLES), altered))
            raise altered from error

    def _record(self, failed: HandlerFailed) -> None:
        if self._stopped_at is not None:
            with self.database.write() as connection:
                now = self.database.now(connection)
                record_failure(connection, self._stopped_at, failed, now)

    def _stop(self, failed: HandlerFailed, error: str) -> ProjectorStopped:
        self._record(failed)
        return ProjectorStopped(
            self.domain.name, position=failed.position, handler=failed.handler, error=error
        )

    def _look_again(self) -> Step | None:
        """Return that nothing is to be done, or None where something was done about the failure."""
        seen = self._look()
        cursor = seen.cursor
        if cursor is None or cursor != self._stopped_at:
            self._stopped_at = None
            return None
        return Step(cursor.position, cursor.position, seen.head, 0, 0)

    def _stands(self) -> Step:
        seen = self._look()
        position = 0 if seen.cursor is None else seen.cursor.position
        return Step(position, position, seen.head, 0, 0)

    def _look(self) -> Look:
        with self.database.read() as connection:
            return look(self.database, connection, self.domain.name, self.slices)
