"""Aggregates in the log: a stored event is an attestation about its originator.

Entity and `entity_version` are the originator's id and version, the context is the topic, and a
notification's id is the position: dense, in the order of commits, never filled in behind a
reader. A version that an entity has already is refused by the log itself, whoever gave it, so
an id names one aggregate in the whole log, and of concurrent savers one wins.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias
from uuid import UUID

from eventsourcing.persistence import (
    ApplicationRecorder,
    DataError,
    Notification,
    StoredEvent,
    Subscription,
    Tracking,
)
from sqlalchemy import ColumnElement, Connection, select

from qntx_es.attestation import Attestation
from qntx_es.log import head_of
from qntx_es.recorders.desk import Desk
from qntx_es.recorders.errors import library_errors
from qntx_es.recorders.following import LOOK_ROWS, Following
from qntx_es.recorders.snapshots import within
from qntx_es.recorders.state import context_of, payload_of, state_of
from qntx_es.sequencer import Turn
from qntx_es.tables import attestations as log

VERSIONS = range(-(1 << 31), 1 << 31)
Also: TypeAlias = Callable[[Connection], None]
_READ = (log.c.position, log.c.entity, log.c.entity_version, log.c.context, log.c.payload)


class LogApplicationRecorder(ApplicationRecorder):
    """Records the aggregates of one application in the log."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def insert_events(
        self,
        stored_events: Sequence[StoredEvent],
        *,
        tracking: Tracking | None = None,
        **_: object,
    ) -> list[int]:
        """Append all or none, and return their positions.

        Raises `IntegrityError` where an entity has one of the versions already, with equal bytes
        too: who saves twice has not read.
        """
        del tracking  # the process recorder's
        return self._append(stored_events, lambda _: None) if stored_events else []

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> list[StoredEvent]:
        """Return what this application has recorded of an aggregate, by version."""
        version = log.c.entity_version
        asked = select(version, log.c.context, log.c.payload).where(
            log.c.entity == str(originator_id), *within(version, gt, lte), *self._own()
        )
        asked = asked.order_by(version.desc() if desc else version).limit(limit)
        with library_errors(), self.desk.database.read() as connection:
            rows: Sequence[Any] = connection.execute(asked).all()
        return [
            StoredEvent(originator_id, version, topic, state_of(text))
            for version, topic, text in rows
        ]

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> list[Notification]:
        """Return this application's own, by position; those of others leave holes."""
        after = (start or 0) - (1 if inclusive_of_start else 0)
        with library_errors(), self.desk.database.read() as connection:
            return self._select(connection, after, stop, topics, limit)

    def max_notification_id(self) -> int | None:
        """Return the position of this application's newest, or None."""
        newest = select(log.c.position).where(*self._own()).order_by(log.c.position.desc())
        with library_errors(), self.desk.database.read() as connection:
            return connection.execute(newest.limit(1)).scalar_one_or_none()

    def subscribe(
        self, gt: int | None = None, topics: Sequence[str] = ()
    ) -> Subscription[ApplicationRecorder]:
        """Follow this application's own, waking at once for this process and soon for others."""
        return LogSubscription(self, gt, topics)

    def look(self, after: int, topics: Sequence[str]) -> tuple[list[Notification], int]:
        """Return some of what lies behind `after`, and how far was looked."""
        with library_errors(), self.desk.database.read() as connection:
            head = head_of(connection)
            found = self._select(connection, after, head, topics, LOOK_ROWS)
        return found, found[-1].id if len(found) == LOOK_ROWS else max(after, head)

    def _append(self, stored_events: Sequence[StoredEvent], also: Also) -> list[int]:
        """Append, and do in the same transaction what belongs to it."""
        with library_errors():
            said = [self._attestation(one) for one in stored_events]
            numbers = _numbers(said, stored_events)

            def choose(turn: Turn) -> list[Attestation]:
                also(turn.connection)
                return said

            receipts = self.desk.sequencer.decide(choose, numbers=numbers)
        self.desk.bell.ring()
        return [receipt.position for receipt in receipts]

    def _attestation(self, one: StoredEvent) -> Attestation:
        return Attestation(
            context=context_of(one.topic),
            entity=str(one.originator_id),
            actor=self.desk.actor,
            payload=payload_of(one.state),
        )

    def _own(self) -> tuple[ColumnElement[bool], ...]:
        return log.c.actor == self.desk.actor, log.c.entity_version.is_not(None)

    def _select(
        self,
        connection: Connection,
        after: int,
        until: int | None,
        topics: Sequence[str],
        limit: int,
    ) -> list[Notification]:
        asked = select(*_READ).where(log.c.position > after, *self._own())
        if until is not None:
            asked = asked.where(log.c.position <= until)
        if topics:
            asked = asked.where(log.c.context.in_(topics))
        asked = asked.order_by(log.c.position).limit(limit)
        return [self._notification(row) for row in connection.execute(asked).all()]

    def _notification(self, row: Any) -> Notification:  # noqa: ANN401 - a row of the log
        return Notification(
            id=row.position,
            originator_id=_id_of(row.entity) if self.desk.has_uuids else row.entity,
            originator_version=row.entity_version,
            topic=row.context,
            state=state_of(row.payload),
        )


class LogSubscription(Subscription[LogApplicationRecorder]):
    """Follows the aggregates of one application."""

    def __init__(
        self, recorder: LogApplicationRecorder, gt: int | None, topics: Sequence[str]
    ) -> None:
        super().__init__(recorder, gt, topics)
        self._following = Following(
            recorder.desk.bell, gt or 0, lambda after: recorder.look(after, topics)
        )

    def __next__(self) -> Notification:
        """Return the next one, waiting for it until the subscription is stopped."""
        return self._following.take()

    def stop(self) -> None:
        """End the subscription, from any thread."""
        super().stop()
        self._following.stop()


def _numbers(
    said: Sequence[Attestation], stored_events: Sequence[StoredEvent]
) -> Mapping[str, int]:
    numbers = {}
    for attestation, one in zip(said, stored_events, strict=True):
        if one.originator_version not in VERSIONS:
            raise DataError(f"version {one.originator_version} of `{attestation.entity}`: 32 bits")
        numbers[attestation.id] = one.originator_version
    return numbers


def _id_of(entity: str) -> UUID | str:
    try:
        found = UUID(entity)
    except ValueError:
        return entity
    return found if str(found) == entity else entity
