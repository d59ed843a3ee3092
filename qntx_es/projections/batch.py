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
    flush   the rows, in bulk (PostgreSQL: in one statement with `move`, where that is all)
    append  what was derived, like any caller's: into the inbox (SQLite: the log)
    commit  and a pass if anything was derived

Reading in one transaction and writing in the next is safe: if `move` finds the cursor unchanged,
nobody else wrote these rows. It comes before the rows because it locks: of two runners the second
waits at the cursor, and they never hold rows that the other one wants.

One attestation at a time is the meaning of a batch, so a batch that fails is cut until the one that
fails stands alone.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.exc import DBAPIError

from qntx_es import faults
from qntx_es.attestation import Attestation
from qntx_es.calls import Value
from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import LeaseLost, ProjectorOutdated, ProjectorPaused, RangeGone, StandingBy
from qntx_es.log import COLUMNS
from qntx_es.projections.cursor import Cursor, Look, advance, in_words, look, refuse_beyond
from qntx_es.projections.flush import Words, numbered
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
from qntx_es.projections.portions import Portion, Portions, read_batch, read_on
from qntx_es.projections.projecting import flush, refused_rows, run
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.projections.rows import RowMap
from qntx_es.projections.slices import ALL, Slices
from qntx_es.projections.starts import Starts, in_order, read_starts
from qntx_es.projections.transaction import Transaction
from qntx_es.sequencer import Sequencer
from qntx_es.tables import attestations

STORE_SECONDS = 0.25
IF_MOVED = "WHERE EXISTS (SELECT FROM moved)"


@dataclass(frozen=True, slots=True)
class Step:
    """What one batch did: the cursor went from `start` to `position`, with the log at `head`."""

    start: int
    position: int
    head: int
    matched: int
    derived: int


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
            goes_on = self._go_on(transaction, size) if woken else None
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
            transaction.first = partial(_move, cursor, stretch.ceiling)
            starts = self._starts
            met = starts.met(portion.rows, stretch.ceiling)
            speaking = starts.to_say(cursor, stretch)
            said = run(self._handlers, self._rows, standing, stretch, derives_from=speaking)
            said = in_order(met, said, portion.rows)
            if decision is not None and decision.at == stretch.ceiling:
                said.append(decision.said)
            is_plain = not (said or portion.is_folded or stretch.change or transaction.is_writing)
            words = self._in_words() if is_plain else None
            if words is not None:
                self._write_at_once(cursor, stretch, words)
            else:
                self._write(transaction(True), cursor, portion, stretch, said)  # noqa: FBT003 - to write
            if stretch.change is not None:
                standing = standing.after(stretch.change)
        faults.point("batch.after_commit")
        self._last, self._standing, self._is_whole = moved, standing, True
        self._starts = starts.knowing(met)
        self._stored_at = monotonic()
        self._rows.cool()
        return Step(cursor.position, stretch.ceiling, head, portion.size, len(said))

    def _write(
        self,
        connection: Connection,
        cursor: Cursor,
        portion: Portion,
        stretch: Stretch,
        said: list[Attestation],
    ) -> None:
        if portion.is_folded:
            self._rows.forget()  # what is known of rows is of the past then
            self._portions.folding.run(connection, cursor.position, portion.until)
        flush(self._rows, connection, stretch.rows)
        if stretch.change is not None:
            said += self._keep(connection, stretch.change)
        faults.point("batch.before_append")
        self._sequencer.drop(connection, said)
        faults.point("batch.before_commit")

    def _in_words(self) -> list[Words] | None:
        if self._database.is_sqlite:
            return None
        return self._rows.in_words(self._database.engine.dialect, IF_MOVED)

    def _write_at_once(self, cursor: Cursor, stretch: Stretch, words: list[Words]) -> None:
        """Move the cursor and write the rows, if it has moved, in one statement that commits.

        A live batch is a few rows, and takes as long as its ways there and back: one for five.
        """
        for name in ("before_move", "before_flush", "before_append", "before_commit"):
            faults.point(f"batch.{name}")
        with refused_rows(stretch.rows):
            (moved,) = self._database.call(*at_once(cursor, stretch.ceiling, words))
        if moved != "1":
            raise LeaseLost
        self._rows.flushed()

    def _go_on(self, transaction: Transaction, size: int) -> tuple[Cursor, int, Portion] | None:
        """Read on from where this runner has put the cursor, or return None where it has to look.

        Whether it still stands there is compared where it moves, as ever: who was overtaken, fenced
        or told to pause finds out then, and looks.
        """
        last = self._last
        is_blind = monotonic() - self._looked_at > STORE_SECONDS
        if last is None or is_blind or self._portions.folding.size_max:
            return None
        start, handlers = last.position, self._handlers
        if self._database.is_sqlite:
            reading = transaction(False)  # noqa: FBT003 - to read
            rows = read_batch(reading, handlers, self._slices, start, start + size, size)
        else:
            rows = read_on(self._database, handlers, self._slices, start, size)
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


def at_once(cursor: Cursor, to: int, words: list[Words]) -> tuple[bytes, list[Value]]:
    """Return one statement of all that a batch writes, and its parameters by their numbers."""
    sql, values = in_words(cursor, to)
    given: list[Value] = list(values)
    parts = [f"moved AS ({sql} RETURNING 1)"]
    for number, (one, arrays) in enumerate(words):
        parts.append(f"rows_{number} AS ({numbered(one, len(given) + 1)})")
        given += arrays
    return f"WITH {', '.join(parts)} SELECT count(*) FROM moved".encode(), given  # noqa: S608 - of parts made here


def _move(cursor: Cursor, to: int, connection: Connection) -> None:
    faults.point("batch.before_move")
    advance(cursor, to, connection)
    faults.point("batch.before_flush")


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
