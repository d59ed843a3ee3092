"""DCB applications over the log: decisions with tags, appended on what their boundary holds.

A decision is an attestation about its first tag, tagged with all of them, and its type is the
context. An append condition is exact and holds nobody up: the long search, from what was read to
the head, takes no lock, since nothing changes there; what came meanwhile is searched under it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from eventsourcing.dcb.api import (
    DCBAppendCondition,
    DCBEvent,
    DCBQuery,
    DCBQueryItem,
    DCBReadResponse,
    DCBRecorder,
    DCBSequencedEvent,
    DCBSubscription,
)
from eventsourcing.persistence import ProgrammingError
from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    exists,
    select,
    union_all,
)

from qntx_es.attestation import Attestation
from qntx_es.errors import AppendConditionFailed, LogRegression
from qntx_es.log import READ_ROWS, head_of
from qntx_es.recorders.desk import Desk
from qntx_es.recorders.errors import library_errors
from qntx_es.recorders.following import LOOK_ROWS, Following
from qntx_es.recorders.state import context_of, payload_of, state_of
from qntx_es.sequencer import Turn
from qntx_es.tables import attestations as log
from qntx_es.tables import tags

_Choose: TypeAlias = Callable[[Turn], list[Attestation]]
ALL = DCBQuery()


class LogDCBRecorder(DCBRecorder):
    """Records the decisions of one application in the log. A tag given twice is kept once."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def read(
        self,
        query: DCBQuery | None = None,
        *,
        after: int | None = None,
        limit: int | None = None,
    ) -> DCBReadResponse:
        """Return what this application decided, as of now, read in pieces as it is asked for.

        Its head is the log's, since all up to there was looked at; with a limit it is the
        position of the last one found.
        """
        query = query or ALL
        with library_errors(), self.desk.database.read() as connection:
            head = head_of(connection)
            if limit is not None:
                found = self._select(connection, query, after or 0, head, limit)
                return LogReadResponse(iter(found), found[-1].position if found else None)
        return LogReadResponse(self._pieces(query, after or 0, head), head or None)

    def append(
        self, events: Sequence[DCBEvent], condition: DCBAppendCondition | None = None
    ) -> int:
        """Append all or none, and return the last position.

        Raises `IntegrityError` where anything that the condition asks for lies behind its
        position, or where the log ends before that.
        """
        if not events:
            raise ProgrammingError("nothing to append: give at least one event")
        with library_errors():
            said = [self._attestation(event) for event in events]
            if condition is None:
                receipts = self.desk.sequencer.append(said)
            else:
                receipts = self.desk.sequencer.decide(self._unless(condition, said))
        self.desk.bell.ring()
        return receipts[-1].position

    def subscribe(
        self, query: DCBQuery | None = None, *, after: int | None = None
    ) -> "LogDCBSubscription":
        """Follow what this application decides, at once in this process and soon from others."""
        return LogDCBSubscription(self, query, after)

    def look(self, query: DCBQuery, after: int) -> tuple[list[DCBSequencedEvent], int]:
        """Return some of what lies behind `after`, and how far was looked."""
        with library_errors(), self.desk.database.read() as connection:
            head = head_of(connection)
            found = self._select(connection, query, after, head, LOOK_ROWS)
        return found, found[-1].position if len(found) == LOOK_ROWS else max(after, head)

    def _unless(self, condition: DCBAppendCondition, said: list[Attestation]) -> _Choose:
        """Search up to the head now, and return what searches the rest when its turn comes."""
        query, after = condition.fail_if_events_match, condition.after or 0
        with self.desk.database.read() as connection:
            seen = head_of(connection)
            self._refuse(connection, query, after, seen)

        def choose(turn: Turn) -> list[Attestation]:
            if after > turn.position:
                raise LogRegression(after, turn.position)
            self._refuse(turn.connection, query, max(after, seen), turn.position)
            return said

        return choose

    def _refuse(self, connection: Connection, query: DCBQuery, after: int, head: int) -> None:
        found = self._select(connection, query, after, head, 1)
        if found:
            position = found[0].position
            raise AppendConditionFailed(f"position {position} is what must not be", position)

    def _attestation(self, event: DCBEvent) -> Attestation:
        return Attestation(
            context=context_of(event.type),
            entity=event.tags[0] if event.tags else self.desk.name,
            actor=self.desk.actor,
            payload=payload_of(event.data),
            tags=event.tags,
        )

    def _pieces(self, query: DCBQuery, after: int, head: int) -> Iterator[DCBSequencedEvent]:
        while after < head:
            with library_errors(), self.desk.database.read() as connection:
                found = self._select(connection, query, after, head, READ_ROWS)
            yield from found
            if len(found) < READ_ROWS:
                return
            after = found[-1].position

    def _select(
        self, connection: Connection, query: DCBQuery, after: int, head: int, limit: int
    ) -> list[DCBSequencedEvent]:
        asked = select(log.c.position, log.c.context, log.c.payload, log.c.tags)
        if query.items and all(item.types or item.tags for item in query.items):
            # A search for each and not one OR, for which PostgreSQL would read the whole log.
            # Each in the order of its index, and no further than needed.
            found = [
                select(search.order_by("position").limit(limit).subquery().c.position)
                for item in query.items
                for search in _searches(item, after, head, self.desk.actor)
            ]
            asked = asked.where(log.c.position.in_(union_all(*found)))
        else:
            asked = asked.where(*_own(log, log.c.position, after, head, self.desk.actor))
        rows: Sequence[Any] = connection.execute(asked.order_by(log.c.position).limit(limit)).all()
        return [_decision(row) for row in rows]


class LogReadResponse(DCBReadResponse):
    """What was found, one by one, and how far was looked."""

    def __init__(self, found: Iterator[DCBSequencedEvent], head: int | None) -> None:
        self._found = found
        self._head = head

    @property
    def head(self) -> int | None:
        """The position up to which everything is accounted for; None for an empty log."""
        return self._head

    def __next__(self) -> DCBSequencedEvent:
        """Return the next one."""
        return next(self._found)


class LogDCBSubscription(DCBSubscription[LogDCBRecorder]):
    """Follows the decisions of one application."""

    def __init__(self, recorder: LogDCBRecorder, query: DCBQuery | None, after: int | None) -> None:
        super().__init__(recorder, query, after)
        self._following = Following(
            recorder.desk.bell, after or 0, lambda seen: recorder.look(query or ALL, seen)
        )

    def __next__(self) -> DCBSequencedEvent:
        """Return the next one, waiting for it until the subscription is stopped."""
        return self._following.take()

    def stop(self) -> None:
        """End the subscription, from any thread."""
        super().stop()
        self._following.stop()


def _searches(item: DCBQueryItem, after: int, head: int, actor: str) -> Iterator[Select[Any]]:
    """Select the positions of what is of any of the item's types and has all of its tags."""
    said = log.alias()
    if not item.tags:
        for context in item.types:
            own = _own(said, said.c.position, after, head, actor)
            yield select(said.c.position).where(said.c.context == context, *own)
        return
    first, *others = (tags.alias() for _ in item.tags)
    found = (
        select(first.c.position)
        .join(said, said.c.position == first.c.position)
        .where(first.c.tag == item.tags[0], *_own(said, first.c.position, after, head, actor))
    )
    for tag, other in zip(item.tags[1:], others, strict=True):
        has_tag = select(other.c.tag).where(other.c.tag == tag)
        found = found.where(exists(has_tag.where(other.c.position == first.c.position)))
    yield found.where(said.c.context.in_(item.types)) if item.types else found


def _own(
    said: FromClause, position: ColumnElement[int], after: int, head: int, actor: str
) -> tuple[ColumnElement[bool], ...]:
    has_no_version = said.c.entity_version.is_(None)
    return position > after, position <= head, said.c.actor == actor, has_no_version


def _decision(row: Any) -> DCBSequencedEvent:  # noqa: ANN401 - a row of the log
    named = json.loads(row.tags) if row.tags else []
    decided = DCBEvent(type=row.context, data=state_of(row.payload), tags=named)
    return DCBSequencedEvent(event=decided, position=row.position)
