"""Clocks that request nothing by themselves: a schedule that comes due is stated, once.

The id of a fire is computed from the schedule and the due time, and it is decided at the head of
the log: so any number of hosts fire it once. What follows from it is said by the schedule's
function, which runs as a derive handler of its own domain.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from qntx_es import faults
from qntx_es.attestation import Attestation, Payload, computed_id, instant
from qntx_es.database import Database
from qntx_es.domain import Schedule
from qntx_es.jobs import ScheduleFired
from qntx_es.log import Log, Turn
from qntx_es.pulse.fold import ScheduleDeclared, pulse, schedules

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Ticker:
    """Declares and fires the schedules of a host's domains."""

    def __init__(self, database: Database, log: Log, declared: Iterable[Schedule]) -> None:
        self._database = database
        self._log = log
        self._schedules = {schedule.name: schedule for schedule in declared}

    def tick(self) -> int:
        """State what is due now, and what was not declared yet; return how many statements."""
        if not self._schedules:
            return 0
        with self._database.read() as connection:
            turn = Turn(connection, 0, self._database.now(connection))
            if not list(self._due(turn)):
                return 0
        faults.point("schedule.before_fire")
        return len(self._log.decide(self._due))

    def seconds_to_next(self, now: datetime) -> float:
        """Return how long until the next schedule comes due."""
        steps = [schedule.step for schedule in self._schedules.values()]
        return min((last_due(now, step) + step - now).total_seconds() for step in steps)

    def _due(self, turn: Turn) -> Iterator[Attestation]:
        rows = {row.schedule: row for row in turn.read(select(schedules))}
        now = instant(turn.now)
        for name, schedule in sorted(self._schedules.items()):
            row = rows.get(name)
            if row is None or row.step_seconds != schedule.step.total_seconds():
                seconds = int(schedule.step.total_seconds())
                yield _say(ScheduleDeclared(step_seconds=seconds), name, None)
                continue
            due = last_due(now, schedule.step)
            if due > max(row.declared_at, row.last_due or EPOCH):
                yield _say(ScheduleFired(due_at=due), name, computed_id(name, str(due), at=due))


def last_due(now: datetime, step: timedelta) -> datetime:
    """Return the last multiple of `step` since 1970 that has come."""
    return EPOCH + (now - EPOCH) // step * step


def _say(payload: Payload, schedule: str, attestation_id: str | None) -> Attestation:
    return pulse.attest(payload, entity=schedule, id=attestation_id)


__all__ = ["Ticker", "last_due"]
