"""An aggregate recorder beside the log, for snapshots.

A snapshot says nothing: it is computed from what was said, may be deleted, and is not projected.
So it has a table of its own, and the log is read and written as if there were none.
"""

from collections.abc import Sequence
from uuid import UUID

from eventsourcing.persistence import AggregateRecorder, StoredEvent
from sqlalchemy import ColumnElement, insert, select

from qntx_es.recorders.desk import Desk
from qntx_es.recorders.errors import library_errors
from qntx_es.tables import snapshots


class LogAggregateRecorder(AggregateRecorder):
    """Keeps what an application stores for one purpose, such as snapshots, out of the log."""

    def __init__(self, desk: Desk, purpose: str = "snapshots") -> None:
        self.desk = desk
        self._key = {"recorder": desk.name, "purpose": purpose}

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: object) -> None:
        """Insert all or none. Raises `IntegrityError` where an id has that version already."""
        if not stored_events:
            return
        rows = [
            self._key
            | {
                "entity": str(one.originator_id),
                "entity_version": one.originator_version,
                "context": one.topic,
                "state": one.state,
            }
            for one in stored_events
        ]
        with library_errors(), self.desk.database.write() as connection:
            connection.execute(insert(snapshots), rows)

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> list[StoredEvent]:
        """Return what is stored for an id, by version."""
        kept = snapshots.c
        version = kept.entity_version
        asked = select(version, kept.context, kept.state).where(
            *(kept[name] == value for name, value in self._key.items()),
            kept.entity == str(originator_id),
            *within(version, gt, lte),
        )
        asked = asked.order_by(version.desc() if desc else version).limit(limit)
        with library_errors(), self.desk.database.read() as connection:
            rows = connection.execute(asked).all()
        return [StoredEvent(originator_id, *row) for row in rows]


def within(
    version: ColumnElement[int], gt: int | None, lte: int | None
) -> list[ColumnElement[bool]]:
    """Return what bounds a column of versions."""
    above = [] if gt is None else [version > gt]
    return above if lte is None else [*above, version <= lte]
