"""Keeps every projector of a host moving, each in a thread of its own.

A fault stays where it is: one projector that stops, or waits for its database, holds up no other.
Waking is a hint; looking again is the truth. How long until the next look: at once after a batch,
else 10 ms doubling to a second.
"""

import logging
from collections.abc import Iterable
from threading import Condition, Event, Thread

from sqlalchemy.exc import SQLAlchemyError

from qntx_es.errors import (
    LeaseLost,
    ProjectorOutdated,
    ProjectorPaused,
    ProjectorStopped,
    QntxError,
)
from qntx_es.projections.batch import Step
from qntx_es.projections.runner import Runner

LOOK_SECONDS_FIRST = 0.01
LOOK_SECONDS_MAX = 1.0
TROUBLE_SECONDS_MAX = 10.0

# What becomes of a projector that is to stand still: nothing, and it looks again as ever.
NO_STEP = Step(0, 0, 0, 0, 0)

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs runners until it is told to stop."""

    def __init__(self, runners: Iterable[Runner], stopping: Event, moved: Condition) -> None:
        self._runners = tuple(runners)
        self._stopping = stopping
        self._moved = moved
        self._wakes = [Event() for _ in self._runners]
        self._threads: list[Thread] = []

    def start(self) -> None:
        """Start a thread for each projector."""
        for runner, wake in zip(self._runners, self._wakes, strict=True):
            thread = Thread(
                target=self._run, args=(runner, wake), name=f"projector:{runner.domain.name}"
            )
            thread.start()
            self._threads.append(thread)

    def wake(self) -> None:
        """Say that there may be something new."""
        for wake in self._wakes:
            wake.set()

    def join(self) -> None:
        """Wait until every projector has finished the batch in hand."""
        self.wake()
        for thread in self._threads:
            thread.join()

    def _run(self, runner: Runner, wake: Event) -> None:
        pause = LOOK_SECONDS_FIRST
        while not self._stopping.is_set():
            wake.clear()
            step = self._advance(runner)
            if step is None:
                pause = min(TROUBLE_SECONDS_MAX, max(pause * 2, LOOK_SECONDS_FIRST))
            elif step.position > step.start:
                pause = LOOK_SECONDS_FIRST
                with self._moved:
                    self._moved.notify_all()
                if step.position < step.head:
                    continue
            else:
                pause = min(LOOK_SECONDS_MAX, pause * 2)
            wake.wait(pause)

    def _advance(self, runner: Runner) -> Step | None:
        try:
            return runner.advance()
        except ProjectorPaused:
            return NO_STEP
        except LeaseLost:
            return None
        except (ProjectorStopped, ProjectorOutdated) as error:
            logger.error("%s", error)  # noqa: TRY400 - its traceback is kept with the status
        except (QntxError, SQLAlchemyError) as error:
            logger.warning("projector %s waits: %s", runner.domain.name, error)
        return None
