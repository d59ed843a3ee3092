"""One batch: rows, derived attestations and cursor move in one transaction, or not at all.

    look    one statement: head h, cursor c, who holds the lease
    read    what the handlers are for in (c, h], at most n; the ceiling is the last one if n were
            found, else h, so that the cursor moves over what does not match
    cut     before an attestation at which an entity is parked or worked off: that is a batch alone;
            what is skipped, and whoever waits, is left out
    run     project handlers, then derive handlers, one attestation at a time
    open    the write transaction (SQLite: IMMEDIATE); a handler's own SQL opens it earlier
            (where the database folds the range itself, nothing is read or run)
    move    the cursor, compared with what was looked at; if another was faster, all of it is undone
    flush   the rows, in bulk
    append  what was derived, like any caller's: into the inbox (SQLite: the log)
    commit  and a pass if anything was derived

Reading in one transaction and writing in the next is safe: if `move` finds the cursor unchanged,
nobody else wrote these rows. It comes before the rows because it locks: of two runners the second
waits at the cursor, and they never hold rows that the other one wants.

One attestation at a time is the meaning of a batch, so a batch that fails is cut until the one that
fails stands alone.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from time import monotonic
from typing import Any, cast

from sqlalchemy import Connection, Dialect, Select, bindparam, literal, or_, select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from qntx_es import faults
from qntx_es.attestation import Attestation, RecordedRow
from qntx_es.database import Database
from qntx_es.domain import RETRIED, Domain
from qntx_es.errors import LeaseLost, ProjectorOutdated, ProjectorPaused, RangeGone, StandingBy
from qntx_es.log import COLUMNS
from qntx_es.projections.cursor import Cursor, Look, advance, look, refuse_beyond
from qntx_es.projections.folding import Folding, FoldRefused
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.lease import Leases
from qntx_es.projections.ledger import (
    Change,
    Decision,
    Parked,
    Skipped,
    Standing,
    Stretch,
    Unparked,
    keep_change,
    read_ledger,
    read_waiting,
    said_at,
)
from qntx_es.projections.recovery import HandlerFailed, InHand
from qntx_es.projections.rows import RowMap
from qntx_es.projections.slices import ALL, Slices
from qntx_es.projections.starts import Starts, in_order, read_starts
from qntx_es.sequencer import Sequencer
from qntx_es.tables import attestations

STORE_SECONDS = 0.25
READ_MAX = 5_000
WINDOW_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Step:
    """What one batch did: the cursor went from `start` to `position`, with the log at `head`."""

    start: int
    position: int
    head: int
    matched: int
    derived: int


@dataclass(frozen=True, slots=True)
class Portion:
    """What a batch is made of: attestations that were read, or a range for the database to fold.

    `size` counts them; of a range it counts positions.
    """

    rows: Sequence[RecordedRow]
    until: int
    size: int
    is_folded: bool = False


@dataclass(frozen=True, slots=True)
class Portions:
    """The portions of one projector, over one generation of its tables."""

    handlers: Handlers
    folding: Folding
    slices: Slices = ALL

    @property
    def size_max(self) -> int:
        """How large a portion may be."""
        return self.folding.size_max or READ_MAX

    def after(
        self, position: int, ceiling: int, size: int, connection: Connection, standing: Standing
    ) -> Portion:
        """Return what comes next, at most `size` of it: a range to fold where that does not show.

        Who waits, and what was decided, is met one attestation at a time.
        """
        reach = self.folding.reach(position, ceiling, size)
        if reach is not None and standing.is_plain(position, reach):
            return Portion((), reach, reach - position, is_folded=True)
        size = min(size, READ_MAX)
        rows = read_batch(connection, self.handlers, self.slices, position, ceiling, size)
        return Portion(rows, rows[-1][0] if len(rows) == size else ceiling, len(rows))

    def is_bare(self, portion: Portion, after: int, connection: Connection) -> bool:
        """Tell whether nothing in a portion is for this projector."""
        if portion.is_folded:
            return not self.folding.finds(connection, after, portion.until)
        return not portion.rows


class Transaction:
    """The batch's connection: it reads until somebody has to write, and then moves and writes."""

    def __init__(self, database: Database, stack: ExitStack) -> None:
        self._database = database
        self._stack = stack
        self._reading = ExitStack()
        self._connection: Connection | None = None
        self._is_writing = False
        self.move: Callable[[Connection], object] = _nothing_to_move
        stack.push(self._reading)

    def __call__(self, write: bool) -> Connection:  # noqa: FBT001 - the shape of RowMap.connect
        """Return the connection, in a write transaction from the first time that is asked for."""
        if self._connection is not None and (self._is_writing or not write):
            return self._connection
        if write:
            self._reading.close()
            self._connection = self._stack.enter_context(self._database.write())
            self._is_writing = True
            faults.point("batch.before_move")
            self.move(self._connection)
            faults.point("batch.before_flush")
        else:
            # On PostgreSQL each statement is of its own moment anyway; to begin a transaction, and
            # to roll it back, would be two more ways there and back before rows are visible.
            database = self._database
            reading = database.read() if database.is_sqlite else database.alone()
            self._connection = self._reading.enter_context(reading)
        return self._connection


class Batches:
    """The batches of one projector: a domain's handlers over one generation of its tables.

    `leases` are those of the host that it runs in; without, nobody may hold one.
    """

    def __init__(
        self,
        database: Database,
        sequencer: Sequencer,
        handlers: Handlers,
        rows: RowMap,
        slices: Slices = ALL,
    ) -> None:
        self.leases: Leases | None = None
        self._slices = slices
        self._database = database
        self._sequencer = sequencer
        self._handlers = handlers
        self._rows = rows
        on_sqlite = database.is_sqlite
        folding = Folding(handlers.domain, lambda table: table, slices, is_sqlite=on_sqlite)
        self._portions = Portions(handlers, folding, slices)
        self._standing = Standing(handlers.domain.name, handlers.contexts)
        self._starts = Starts(handlers.domain, slices=slices)
        self._last: Cursor | None = None
        self._stored_at = 0.0
        self._looked_at = 0.0
        # Until a batch is whole, the map may know what the database does not.
        self._is_whole = True
        self._began_at: Cursor | None = None

    @property
    def size_max(self) -> int:
        """How large a batch may be."""
        return self._portions.size_max

    def check(self, seen: Look) -> Cursor:
        """Return the cursor that may be moved, or raise why it may not."""
        if seen.cursor is None and self._handlers.domain.by_entity:
            raise RangeGone
        ours = None if self.leases is None else self.leases.holder
        return usable(self._handlers, seen, ours)

    def step(
        self,
        size: int,
        *,
        until: int | None = None,
        eager: bool = True,
        woken: bool = False,
        decision: Decision | None = None,
    ) -> Step:
        """Project the next `size` matching attestations, at most up to `until`.

        Who was `woken` goes on from where it has put the cursor, if it can, without a look. A
        `decision` about the very next one takes hold, and is said, in its batch.

        Over ground where nothing matches the cursor is stored now and then, or always if `eager`.
        Raises `HandlerFailed`; `LeaseLost` when another runner was faster or holds the lease;
        `ProjectorOutdated` when the tables belong to another version; `ProjectorPaused`.
        """
        try:
            step = self._step(size, until, decision, eager=eager, woken=woken)
        except FoldRefused:
            return self.step(size, until=until, eager=eager, decision=decision)
        except DBAPIError as error:
            # A swap may have put other tables under a batch that began before it.
            if self._is_overtaken():
                raise LeaseLost from error
            raise
        finally:
            if not self._is_whole:
                self._forget()
        if step.derived:
            self._sequencer.run_pass()
        return step

    def settle(self, failed: HandlerFailed, *, is_skipped: bool) -> Step:
        """Go past what failed alone: skip it, or park its entity. Raises as `step` does."""
        with self._database.read() as connection:
            asked = select(*COLUMNS).where(attestations.c.position == bindparam("position"))
            source = connection.execute(asked, {"position": failed.position}).one()
            met = connection.execute(asked, {"position": failed.at}).one()
        domain = self._handlers.domain
        reason = f"`{failed.handler}` raised {failed.error}"
        payload: Skipped | Parked = (
            Skipped(position=failed.position, version=domain.version, reason=reason)
            if is_skipped
            else Parked(
                version=domain.version,
                parked_entity=source.entity,
                position=failed.position,
                at=failed.at,
                handler=failed.handler,
                error=failed.error,
            )
        )
        decision = Decision(failed.at, payload, said_at(tuple(met), domain.name, payload))
        return self.step(1, until=failed.at, decision=decision)

    def _step(
        self,
        size: int,
        until: int | None,
        decision: Decision | None,
        *,
        eager: bool,
        woken: bool,
    ) -> Step:
        self._is_whole = False
        with ExitStack() as stack:
            transaction = Transaction(self._database, stack)
            self._rows.connect = transaction
            goes_on = self._go_on(size) if woken else None
            cursor, head, portion = goes_on or self._look_and_read(transaction, size, until)
            is_idle = goes_on is None and not eager and self._stored_lately()
            is_idle = is_idle and self._is_bare(portion, cursor.position, transaction)
            if portion.until <= cursor.position or is_idle:
                self._is_whole = True
                return Step(cursor.position, cursor.position, head, 0, 0)
            faults.point("batch.after_read")
            standing = self._standing
            if decision is not None and decision.at == cursor.position + 1:
                standing = standing.knowing(decision)
            stretch = standing.stretch(portion.rows, portion.until)
            moved = replace(cursor, position=stretch.ceiling)
            transaction.move = partial(advance, cursor, stretch.ceiling)
            starts = self._starts
            met = starts.met(portion.rows, stretch.ceiling)
            speaking = starts.to_say(cursor, stretch)
            said = project(self._handlers, self._rows, standing, stretch, derives_from=speaking)
            said = in_order(met, said, portion.rows)
            connection = transaction(True)  # noqa: FBT003 - to write
            if portion.is_folded:
                self._rows.forget()  # what is known of rows is of the past then
                self._portions.folding.run(connection, cursor.position, portion.until)
            if stretch.change is not None:
                standing = standing.after(stretch.change)
                said += self._keep(connection, stretch.change)
            if decision is not None and decision.at == stretch.ceiling:
                said.append(decision.said)
            faults.point("batch.before_append")
            self._sequencer.drop(connection, said)
            faults.point("batch.before_commit")
        faults.point("batch.after_commit")
        self._last, self._standing, self._is_whole = moved, standing, True
        self._starts = starts.knowing(met)
        self._stored_at = monotonic()
        self._rows.cool()
        return Step(cursor.position, stretch.ceiling, head, portion.size, len(said))

    def _go_on(self, size: int) -> tuple[Cursor, int, Portion] | None:
        """Read on from where this runner has put the cursor, or return None where it has to look.

        Whether it still stands there is compared where it moves, as ever: who was overtaken, fenced
        or told to pause finds out then, and looks.
        """
        last = self._last
        is_blind = monotonic() - self._looked_at > STORE_SECONDS
        if last is None or is_blind or self._portions.folding.size_max or self._database.is_sqlite:
            return None
        dialect = self._database.engine.dialect
        sql, given = _asked_in_words(dialect, self._handlers.contexts | {RETRIED}, self._slices)
        asked = {"after": last.position, "until": last.position + size, "size": size}
        rows = self._database.ask(sql, given | asked)
        if not 0 < len(rows) < size:
            return None
        self._began_at = last
        return last, rows[-1][0], Portion(rows, rows[-1][0], len(rows))

    def _look_and_read(
        self, transaction: Transaction, size: int, until: int | None
    ) -> tuple[Cursor, int, Portion]:
        connection = transaction(False)  # noqa: FBT003 - to read
        cursor, head = self._look(connection)
        faults.point("batch.after_look")
        ceiling = head if until is None else min(until, head)
        standing = self._standing
        portion = self._portions.after(cursor.position, ceiling, size, connection, standing)
        return cursor, head, portion

    def _look(self, connection: Connection) -> tuple[Cursor, int]:
        seen = look(self._database, connection, self._handlers.domain.name, self._slices)
        self._began_at, self._looked_at = seen.cursor, monotonic()
        cursor = self.check(seen)
        if cursor != self._last:
            self._forget()
            self._standing = read_standing(connection, self._handlers, cursor)
            domain = self._handlers.domain
            self._starts = read_starts(connection, domain, cursor.derives_from, self._slices)
        return cursor, seen.head

    def _keep(self, connection: Connection, change: Change) -> list[Attestation]:
        """Keep who waits, and return what is to be said where an entity was worked off."""
        domain = self._handlers.domain
        keep_change(connection, domain.name, domain.version, change)
        if change.parked is not None:
            return []
        done = Unparked(version=domain.version, parked_entity=change.entity, at=change.row[0])
        return [said_at(change.row, domain.name, done)]

    def _forget(self) -> None:
        self._rows.forget()
        self._last = None

    def _is_overtaken(self) -> bool:
        with self._database.read() as connection:
            seen = look(self._database, connection, self._handlers.domain.name, self._slices)
        return seen.cursor != self._began_at

    def _is_bare(self, portion: Portion, after: int, transaction: Transaction) -> bool:
        return self._portions.is_bare(portion, after, transaction(False))  # noqa: FBT003 - to read

    def _stored_lately(self) -> bool:
        return monotonic() - self._stored_at < STORE_SECONDS


def _nothing_to_move(_: Connection) -> None:
    message = "nothing is written before it is known how far the cursor moves"
    raise RuntimeError(message)


def usable(handlers: Handlers, seen: Look, ours: str | None = None) -> Cursor:
    """Return the cursor these handlers may move, or raise why they may not.

    Another's lease forbids it; `ours` does not.
    """
    domain, cursor = handlers.domain, seen.cursor
    if cursor is None:
        raise ProjectorOutdated(
            f"domain `{domain.name}` has no tables yet. Run `qntx-es db upgrade`, or host.upgrade()"
        )
    refuse_beyond(cursor.position, seen.head)
    if cursor.version < domain.version:
        raise ProjectorOutdated(
            f"the tables of `{domain.name}` are of version {cursor.version}, the code is of "
            f"version {domain.version}. {_remedy(domain)}"
        )
    if cursor.version > domain.version:
        raise ProjectorOutdated(
            f"the tables of `{domain.name}` are of version {cursor.version}, newer than this "
            f"code ({domain.version}): another host goes on with them. Upgrade this one"
        )
    if cursor.pause is not None:
        raise ProjectorPaused(domain.name, str(cursor.pause))
    if seen.holder is not None and seen.holder.name != ours:
        raise StandingBy(domain.name, seen.holder.name, seen.holder.seconds_left)
    return cursor


def _remedy(domain: Domain) -> str:
    if domain.rebuild == "auto":
        return (
            "They are rebuilt when a host finds them: "
            f"`qntx-es projections status {domain.name}` says how far that is, or why it failed"
        )
    return f"Run `qntx-es projections rebuild {domain.name}`"


def read_standing(connection: Connection, handlers: Handlers, cursor: Cursor) -> Standing:
    """Return who waits at a cursor, and what was decided about what lies behind it."""
    return Standing(
        cursor.domain,
        handlers.contexts,
        read_ledger(connection, cursor.domain, cursor.version),
        read_waiting(connection, cursor.domain, cursor.version),
    )


def project(
    handlers: Handlers,
    rows: RowMap,
    standing: Standing,
    stretch: Stretch,
    *,
    derives_from: Mapping[str, int] | None,
) -> list[Attestation]:
    """Run the handlers over a stretch, write its rows, and return what was derived.

    Who is worked off goes one at a time, for of that alone is it known where it fails. Raises
    `HandlerFailed`.
    """
    if stretch.change is None:
        return _project(handlers, rows, stretch.rows, derives_from)
    derived: list[Attestation] = []
    try:
        for row in worked_off(rows.connect(False), standing, stretch.change):  # noqa: FBT003
            derived += _project(handlers, rows, [row], derives_from)
    except HandlerFailed as failed:
        failed.at = stretch.ceiling
        raise
    return derived


def _project(
    handlers: Handlers,
    rows: RowMap,
    batch: Sequence[RecordedRow],
    derives_from: Mapping[str, int] | None,
) -> list[Attestation]:
    handlers.read_ahead(rows, batch)
    derived = handlers.run(batch, rows, derives_from=derives_from)
    flush(rows, rows.connect(True), batch)  # noqa: FBT003 - to write
    return derived


def worked_off(connection: Connection, standing: Standing, change: Change) -> Sequence[RecordedRow]:
    """Return what has waited about an entity and counts from here on, in order."""
    if change.since is None:
        return ()
    said = attestations.c
    asked = (
        select(*COLUMNS)
        .where(said.entity == change.entity)
        .where(said.position >= change.since, said.position < change.until)
        .order_by(said.position)
    )
    waited = [cast("RecordedRow", tuple(row)) for row in connection.execute(asked)]
    return replace(standing, waiting={}).that_count(waited)


def read_batch(  # noqa: PLR0913, PLR0917 - what is read, and how much of it
    connection: Connection,
    handlers: Handlers,
    slices: Slices,
    after: int,
    until: int,
    size: int,
) -> list[RecordedRow]:
    """Return the next attestations the handlers are for, and retries, at most `size`, in order.

    They are read in windows of positions, wider while little matches: asked for "the next 5 000"
    of a long log, a database may well sort all that is left of it.
    """
    found: list[RecordedRow] = []
    window = size
    while handlers.contexts and after < until and len(found) < size:
        to = min(until, after + window)
        asked = _asked(handlers.contexts | {RETRIED}, slices)
        given = {"after": after, "until": to, "size": size - len(found)}
        result = connection.execute(asked, given)
        # The driver's own tuples: no column needs converting, and a Row costs more than it gives.
        found += cast("Any", result.cursor).fetchall()
        after, window = to, min(window * 2, WINDOW_MAX)
    return found


@cache
def _asked(contexts: frozenset[str], slices: Slices) -> Select[Any]:
    position = attestations.c.position
    asked = (
        select(*COLUMNS)
        .with_hint(attestations, "NOT INDEXED", "sqlite")
        .where(position > bindparam("after"), position <= bindparam("until"))
        .where(attestations.c.context.in_([literal(one) for one in sorted(contexts)]))
        .order_by(position)
        .limit(bindparam("size"))
    )
    if slices.is_all:
        return asked
    # A retry is about the projector, and every range looks whether it is its entity's.
    ours = attestations.c.slice.between(slices.first, slices.last)
    return asked.where(or_(ours, attestations.c.context == RETRIED))


@cache
def _asked_in_words(
    dialect: Dialect, contexts: frozenset[str], slices: Slices
) -> tuple[str, dict[str, Any]]:
    """Return the same in the driver's words, with what else it is given."""
    compiled = _asked(contexts, slices).compile(dialect=dialect)
    return str(compiled), dict(compiled.construct_params(_check=False))


def flush(rows: RowMap, connection: Connection, batch: Sequence[RecordedRow]) -> None:
    """Write the rows; what the database refuses of them is the failure of whoever put them."""
    try:
        rows.flush(connection)
    except (IntegrityError, DataError) as error:
        raise HandlerFailed(InHand(batch[0][0], "a row that was put"), error) from error
