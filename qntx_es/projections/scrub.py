"""The scrubber: entities at random, folded again and held against their live rows, all day long.

A verify reads the whole log, so it is run once in a while. Where entities are independent, one of
them can be proved by itself: what the log says about it up to the cursor, folded in memory, is to
be its live rows in the same snapshot. A few a minute cost nothing, and a patched row, or one that
was lost, is known within the day and not at the next rebuild.

It says only what is sure. A difference counts if a second look finds it too, and never in a table
that others add to: such a row is more than its own entity's attestations. Whether any do is found
by folding some entities of each context. What no fold of one entity can see is for a verify: rows
of such tables, and rows about entities that were never spoken of.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from threading import Event, Lock
from time import monotonic
from typing import cast

from sqlalchemy import Connection, Table, select, types
from sqlalchemy.exc import SQLAlchemyError

from qntx_es.attestation import RecordedRow, instant
from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import QntxError, ScrubRefused
from qntx_es.log import COLUMNS
from qntx_es.projections.batch import read_standing
from qntx_es.projections.comparison import RowDifference, differing
from qntx_es.projections.cursor import Cursor, cursors_of
from qntx_es.projections.digest import as_stored
from qntx_es.projections.drift import Drift, detail_of, keep_drifts, read_drifts
from qntx_es.projections.fingerprint import is_unproved
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.own_rows import ENTITY, OwnRows
from qntx_es.projections.projector import Projector
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.projections.shape import Key, Shape, Values
from qntx_es.projections.table_map import UNREAD, TableMap
from qntx_es.projections.verify import live_of
from qntx_es.sequencer import Sequencer
from qntx_es.tables import attestations

# Of one entity, so that memory is bounded.
ATTESTATIONS_MAX = 10_000
# So many places of each context are looked at for handlers that add to rows of others, and so much
# of whom is met there.
PROBES, PROBED_MAX = 20, 1_000
# After an entity that took long it rests nine times as long: at most a tenth of one core.
REST = 9
TRY_AGAIN_SECONDS = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """How many entities a host has scrubbed of a domain, and how many of them had drifted."""

    scrubbed: int = 0
    drifted: int = 0


@dataclass(frozen=True, slots=True)
class _Look:
    """What one snapshot showed of an entity: what differs, and what was known to."""

    cursor: Cursor
    differences: Sequence[RowDifference]
    known: Sequence[Drift]


class LoneRows(OwnRows):
    """Rows made of one entity's attestations alone: behind them is no table, and nothing to read.

    A value is let into a column as it would come back, so what stands here is what a table would
    hold. Which tables of others it adds to is told in `added_to`.
    """

    def __init__(self, domain: Domain, entity: str) -> None:
        super().__init__([Shape(one) for one in domain.tables.values()], lambda table: table)
        self.entity = entity
        self.added_to: set[str] = set()

    def add(self, table: Table, /, *key: object, **amounts: float) -> None:
        """Add to columns of a row of the entity; of others', remember only that it does."""
        if self._is_own(table, key):
            super().add(table, *key, **amounts)
        else:
            self.added_to.add(table.name)

    def settle(self) -> None:
        """Write nothing: what was said stays as it was said."""

    def made(self, table: Table) -> dict[Key, Values]:
        """Return the rows that the entity has in a table."""
        rows = self._map(table)
        is_single = len(rows.shape.key) == 1
        for mark in tuple(rows.blind.marks):
            self._read(rows, (mark,) if is_single else mark)
        return {
            key: values
            for key, values in rows.known.items()
            if values is not None and self._is_own(table, key)
        }

    def _read(self, rows: TableMap, key: Key) -> Values | None:
        if rows.known.get(key, UNREAD) is UNREAD:
            rows.take([key], ())
        return rows.known[key]


class Scrub:
    """Scrubs entities of one domain, in whichever thread calls. Raises `ScrubRefused`."""

    def __init__(self, database: Database, sequencer: Sequencer, domain: Domain) -> None:
        if not domain.by_entity:
            raise ScrubRefused(
                f"`{domain.name}` is not scrubbed: only in a domain with by_entity=True can an "
                f"entity be proved by itself. Run `qntx-es projections verify {domain.name}`"
            )
        self.domain = domain
        self.counted = Scrubbed()
        self._database = database
        self._sequencer = sequencer
        self._handlers = Handlers(domain)
        self._columns = {
            table: column
            for table in domain.tables.values()
            if (column := _column_of_entity(table)) is not None
        }
        self._shared: set[str] = set()
        self._is_probed = False
        self._alone = Lock()

    def scrub(self, entity: str) -> list[Drift]:
        """Fold an entity again, and return where its live rows are not the same.

        What is found is kept until it is found no more. Raises `ProjectorOutdated`, and
        `HandlerFailed` where a handler fails at what it once passed.
        """
        with self._alone:
            seen = self._look(entity)
            if seen is not None and seen.differences:
                # A skip holds at once, and may have waited for its place in the log.
                self._sequencer.run_pass()
                seen = self._look(entity)
            if seen is None:
                return []
            drifts = self._drifts(entity, seen)
            self._keep(entity, seen, drifts)
            before = self.counted
            self.counted = Scrubbed(before.scrubbed + 1, before.drifted + bool(drifts))
            return drifts

    def some(self) -> str | None:
        """Return an entity at random: whom the log speaks of at some position, behind the cursor.

        None where there is nobody.
        """
        with self._database.read() as connection:
            at = live_of(connection, self.domain).position
            contexts = sorted(self._handlers.contexts)
            if not at or not contexts:
                return None
            context = random.choice(contexts)  # noqa: S311 - a sample
            return next(iter(_entities(connection, context, at, 1)), None)

    def is_unproved(self) -> bool:
        """Tell whether other code may have made the rows, which a verify is to say first."""
        with self._database.read() as connection:
            return is_unproved(self.domain, live_of(connection, self.domain).fingerprint)

    def _look(self, entity: str) -> _Look | None:
        """Return what differs of an entity; None where too much is said about it."""
        with self._database.snapshot() as connection:
            live_of(connection, self.domain)
            cursors = cursors_of(connection, self.domain.name)
            cursor = next(one for one in cursors if one.slices.holds(entity))
            said = _said_about(connection, entity, cursor, ATTESTATIONS_MAX + 1)
            if len(said) > ATTESTATIONS_MAX:
                return None
            rows = self._folded(entity, self._that_count(connection, entity, cursor, said))
            differences = [
                one
                for table, column in self._columns.items()
                for one in _differences(connection, table, column, entity, rows.made(table))
            ]
            return _Look(cursor, differences, read_drifts(connection, self.domain.name, entity))

    def _that_count(
        self, connection: Connection, entity: str, cursor: Cursor, said: Sequence[RecordedRow]
    ) -> list[RecordedRow]:
        """Return what of all that is said about an entity has had an effect on its rows."""
        standing = read_standing(connection, self._handlers, cursor)
        waits = standing.waiting.get(entity)
        behind = [row for row in said if waits is None or row[0] < waits.position]
        return replace(standing, waiting={}).that_count(behind)

    def _folded(self, entity: str, said: Sequence[RecordedRow]) -> LoneRows:
        rows = LoneRows(self.domain, entity)
        try:
            self._handlers.run(said, rows, derives_from=None)
        finally:
            self._shared |= rows.added_to
        return rows

    def _drifts(self, entity: str, seen: _Look) -> list[Drift]:
        if not seen.differences:
            return []
        self._probe()
        with self._database.read() as connection:
            now = instant(self._database.now(connection))
        since = {one.table: one.found_at for one in seen.known}
        by_table: dict[str, list[RowDifference]] = {}
        for one in seen.differences:
            if one.table not in self._shared:
                by_table.setdefault(one.table, []).append(one)
        return [
            Drift(entity, table, detail_of(found), since.get(table, now))
            for table, found in by_table.items()
        ]

    def _probe(self) -> None:
        """Learn which tables others add to, once."""
        if self._is_probed:
            return
        with self._database.snapshot() as connection:
            cursor = live_of(connection, self.domain)
            met = {
                entity
                for context in sorted(self._handlers.contexts)
                for entity in _entities(connection, context, cursor.position, PROBES)
            }
        for entity in met:
            with self._database.snapshot() as connection:
                said = _said_about(connection, entity, cursor, PROBED_MAX)
                counted = self._that_count(connection, entity, cursor, said)
            with suppress(HandlerFailed):  # it added what it added
                self._folded(entity, counted)
        self._is_probed = True

    def _keep(self, entity: str, seen: _Look, drifts: Sequence[Drift]) -> None:
        if sorted(seen.known, key=_table_of) == sorted(drifts, key=_table_of):
            return
        known = {one.table for one in seen.known}
        name = self.domain.name
        with self._database.write() as connection:
            if live_of(connection, self.domain).generation != seen.cursor.generation:
                return  # the rows are others by now
            keep_drifts(connection, name, entity, drifts)
        for one in drifts:
            if one.table not in known:
                logger.warning("`%s` has drifted: %s", name, one)


class Scrubber:
    """Scrubs what a running host projects, so many entities a minute."""

    def __init__(
        self,
        projectors: Iterable[Projector],
        scrubs: dict[str, Scrub],
        per_minute: int,
        stopping: Event,
    ) -> None:
        self._projectors = [one for one in projectors if one.domain.name in scrubs]
        self._scrubs = scrubs
        self._per_minute = per_minute
        self._stopping = stopping
        self._due: dict[str, float] = {}

    def run(self) -> None:
        """Scrub until the host stops."""
        if not self._projectors or not self._per_minute:
            return
        pause = seconds = 60 / self._per_minute
        while not self._stopping.wait(pause):
            started = monotonic()
            self._scrub_one()
            pause = max(seconds, (monotonic() - started) * REST)

    def _scrub_one(self) -> None:
        # What is inline is moved by whoever appends, and nobody's to hold.
        ours = [one for one in self._projectors if one.domain.inline or one.is_holding]
        if not ours:
            return
        projector = random.choice(ours)  # noqa: S311 - a sample
        name = projector.domain.name
        if monotonic() < self._due.get(name, 0.0):
            return
        try:
            self._scrub_of(projector, self._scrubs[name])
        except (QntxError, SQLAlchemyError) as error:
            self._due[name] = monotonic() + TRY_AGAIN_SECONDS
            logger.warning("`%s` is not scrubbed: %s", name, error)

    @staticmethod
    def _scrub_of(projector: Projector, scrub: Scrub) -> None:
        if scrub.is_unproved():
            return
        entity = scrub.some()
        if entity is not None and (projector.domain.inline or projector.holds(entity)):
            scrub.scrub(entity)


_table_of = attrgetter("table")


def _column_of_entity(table: Table) -> str | None:
    """Return the column of the key that holds the entity, as `OwnRows` finds it."""
    key = list(table.primary_key.columns)
    if ENTITY in [one.name for one in key]:
        return ENTITY
    texts = [one.name for one in key if isinstance(one.type, types.String)]
    return texts[0] if len(texts) == 1 else None


def _said_about(
    connection: Connection, entity: str, cursor: Cursor, most: int
) -> list[RecordedRow]:
    """Return what is said about an entity up to a cursor, in order, at most so much."""
    asked = (
        select(*COLUMNS)
        .where(attestations.c.entity == entity, attestations.c.position <= cursor.position)
        .order_by(attestations.c.position)
        .limit(most)
    )
    return [cast("RecordedRow", tuple(row)) for row in connection.execute(asked)]


def _entities(connection: Connection, context: str, until: int, count: int) -> set[str]:
    """Return whom a context speaks of at, or after, so many positions at random."""
    said = attestations.c
    asked = select(said.entity).where(said.context == context).limit(1)
    found: set[str] = set()
    for _ in range(count):
        at = random.randint(1, until) if until else 0  # noqa: S311 - a sample
        behind = asked.where(said.position.between(at, until)).order_by(said.position)
        before = asked.where(said.position < at).order_by(said.position.desc())
        entity = connection.execute(behind).scalar() or connection.execute(before).scalar()
        if entity is not None:
            found.add(entity)
    return found


def _differences(
    connection: Connection, table: Table, column: str, entity: str, made: dict[Key, Values]
) -> Iterator[RowDifference]:
    """Yield the rows of an entity that are not those that were made of what the log says."""
    live = _live(connection, table, column, entity, made)
    names = table.columns.keys()
    for key in sorted({*live, *made}):
        before, after = live.get(key), made.get(key)
        if before is None or after is None:
            yield RowDifference(table.name, key, before, after, ())
        elif columns := tuple(differing(names, before, after)):
            yield RowDifference(table.name, key, before, after, columns)


def _live(
    connection: Connection, table: Table, column: str, entity: str, made: Iterable[Key]
) -> dict[Key, Values]:
    """Return the live rows of an entity.

    Where no index leads to them those that should be there are looked up: reading the whole table
    for one entity is for a verify.
    """
    key = table.primary_key.columns.keys()
    leading = [key[0], *(next(iter(one.columns)).name for one in table.indexes if one.columns)]
    if column in leading:
        asked = select(*map(as_stored, table.columns)).where(table.c[column] == entity)
        rows: Iterable[Values] = map(dict, connection.execute(asked).mappings())
    else:
        rows = TableMap(Shape(table), table).writer.read(connection, list(made))
    return {tuple([row[name] for name in key]): row for row in rows}
