"""How far a projection of the library has come, and what it writes in the same transaction.

Tracking goes forward only, and holes are allowed: a projection that skips what does not concern
it is not behind. A position equal to the last or below it was processed before, is refused, and
undoes what would have been written with it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eventsourcing.persistence import (
    IntegrityError,
    ProcessRecorder,
    StoredEvent,
    Tracking,
    TrackingRecorder,
)
from sqlalchemy import ColumnElement, Connection, insert, select, update

from qntx_es.recorders.application import LogApplicationRecorder
from qntx_es.recorders.desk import Desk
from qntx_es.recorders.errors import library_errors
from qntx_es.tables import tracking as tracked


class LogTrackingRecorder(TrackingRecorder):
    """Tracks what one projection has processed; the parent of a view of your own.

    A view writes its tables with `with self.processing(tracking) as connection:`.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    @contextmanager
    def processing(self, tracking: Tracking) -> Iterator[Connection]:
        """Give a transaction in which something is processed: once, and with its tracking."""
        with library_errors(), self.desk.database.write() as connection:
            self._track(connection, tracking)
            yield connection

    def insert_tracking(self, tracking: Tracking) -> None:
        """Go on to a notification. Raises `IntegrityError` if it was processed before."""
        with self.processing(tracking):
            pass

    def max_tracking_id(self, application_name: str) -> int | None:
        """Return the last notification of an application that was processed, or None."""
        asked = select(tracked.c.position).where(*self._row(application_name))
        with library_errors(), self.desk.database.read() as connection:
            return connection.execute(asked).scalar_one_or_none()

    def _track(self, connection: Connection, tracking: Tracking) -> None:
        name, position = tracking.application_name, tracking.notification_id
        forward = update(tracked).where(*self._row(name), tracked.c.position < position)
        if connection.execute(forward.values(position=position)).rowcount:
            return
        asked = select(tracked.c.position).where(*self._row(name))
        last = connection.execute(asked).scalar_one_or_none()
        if last is not None:
            raise IntegrityError(f"`{name}` is tracked up to {last}: {position} was processed")
        row = {"recorder": self.desk.name, "application": name, "position": position}
        connection.execute(insert(tracked).values(row))

    def _row(self, application: str) -> tuple[ColumnElement[bool], ...]:
        return tracked.c.recorder == self.desk.name, tracked.c.application == application


class LogProcessRecorder(LogTrackingRecorder, LogApplicationRecorder, ProcessRecorder):
    """Records the aggregates of an application that follows others, and how far it has come."""

    def insert_events(
        self,
        stored_events: Sequence[StoredEvent],
        *,
        tracking: Tracking | None = None,
        **_: object,
    ) -> list[int]:
        """Append, and track what they follow from, in one transaction."""
        if tracking is None:
            return super().insert_events(stored_events)
        if not stored_events:
            self.insert_tracking(tracking)
            return []
        return self._append(stored_events, lambda connection: self._track(connection, tracking))
