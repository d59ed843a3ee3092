"""Keeps every projector of a host moving, each in a thread of its own.

A fault stays where it is: one projector that stops, or waits for its database, holds up no other.
Waking is a hint; looking again is the truth. How long until the next look: at once after a batch,
else 10 ms doubling to a second.
"""

import logging
from collections.abc import Iterable
from threading import Condition, Event, Thread
from time import monotonic

from sqlalchemy.exc import SQLAlchemyError

from qntx_es.errors import ProjectorOutdated, ProjectorPaused, ProjectorStopped, QntxError
from qntx_es.projections.projector import Progress, Projector

LOOK_SECONDS_FIRST = 0.01
LOOK_SECONDS_MAX = 1.0
TROUBLE_SECONDS_MAX = 10.0
# How soon after its end somebody looks for a lease.
EXPIRY_SECONDS = 0.01
# What a pass has projected already may be looked at a little later, and not at each append: whoever
# is waited for goes first.
INLINE_SECONDS = 0.05

# What becomes of a projector that is to stand still: nothing, and it looks again as ever.
STANDS_STILL = Progress()

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs projectors until it is told to stop."""

    def __init__(self, projectors: Iterable[Projector], stopping: Event, moved: Condition) -> None:
        self._projectors = tuple(projectors)
        self._stopping = stopping
        self._moved = moved
        self._wakes = [Event() for _ in self._projectors]
        self._threads: list[Thread] = []
        # The host may run again before the last batch of this run is over.
        self._is_over = False

    def start(self) -> None:
        """Start a thread for each projector."""
        for projector, wake in zip(self._projectors, self._wakes, strict=True):
            name = f"projector:{projector.domain.name}"
            # A daemon: a handler that does not end must not keep the process from ending.
            thread = Thread(target=self._run, args=(projector, wake), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def wake(self, contexts: frozenset[str] | None = None) -> None:
        """Say that there may be something new: of these contexts, or of whichever.

        Whoever reads none of them looks when it would have looked anyway. With many domains, those
        that have nothing to do would be in the way of the one that has.
        """
        for projector, wake in zip(self._projectors, self._wakes, strict=True):
            if contexts is None or not contexts.isdisjoint(projector.contexts):
                wake.set()

    def join(self, seconds: float) -> None:
        """Wait until every batch in hand is finished; what is not after so long never commits."""
        self._is_over = True
        self.wake()
        deadline = monotonic() + seconds
        for projector, thread in zip(self._projectors, self._threads, strict=True):
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                logger.error("%s did not end its batch in time, and is cut off", thread.name)
                self._cut_off(projector)

    @staticmethod
    def _cut_off(projector: Projector) -> None:
        try:
            projector.fence()
        except (QntxError, SQLAlchemyError) as error:
            logger.warning("%s may still commit its batch: %s", projector.domain.name, error)

    def _run(self, projector: Projector, wake: Event) -> None:
        pause, woken = LOOK_SECONDS_FIRST, False
        while not (self._is_over or self._stopping.is_set()):
            wake.clear()
            seen = self._advance(projector, woken=woken)
            if seen is None:
                pause = min(TROUBLE_SECONDS_MAX, max(pause * 2, LOOK_SECONDS_FIRST))
            elif seen.has_moved:
                pause = min(LOOK_SECONDS_MAX, pause * 2) if seen.is_bare else LOOK_SECONDS_FIRST
                with self._moved:
                    self._moved.notify_all()
                if seen.is_behind:
                    continue
            else:
                pause = min(LOOK_SECONDS_MAX, pause * 2)
                if seen.seconds is not None:
                    pause = min(pause, seen.seconds + EXPIRY_SECONDS)
            woken = wake.wait(pause)
            if projector.domain.inline:
                self._stopping.wait(INLINE_SECONDS)

    def _advance(self, projector: Projector, *, woken: bool) -> Progress | None:
        try:
            return projector.advance(woken=woken)
        except ProjectorPaused:
            return STANDS_STILL
        except (ProjectorStopped, ProjectorOutdated) as error:
            logger.error("%s", error)  # noqa: TRY400 - its traceback is kept with the status
        except (QntxError, SQLAlchemyError) as error:
            logger.warning("projector %s waits: %s", projector.domain.name, error)
        return None
