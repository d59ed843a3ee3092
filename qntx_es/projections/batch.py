"""One batch: rows, derived attestations and cursor move in one transaction, or not at all.

    look    one statement: head h, cursor c, who holds the lease
    read    what the handlers are for in (c, h], at most n; the ceiling is the last one if n were
            found, else h, so that the cursor moves over what does not match
    run     project handlers, then derive handlers, one attestation at a time
    open    the write transaction (SQLite: IMMEDIATE); a handler's own SQL opens it earlier
    move    the cursor, compared with what was looked at; if another was faster, all of it is undone
    flush   the rows, in bulk
            (folds write them by a statement of their own, and then nothing is read or run)
    append  what was derived, like any caller's: into the inbox (SQLite: the log)
    commit  and a pass if anything was derived

Reading in one transaction and writing in the next is safe: if `move` finds the cursor unchanged,
nobody else wrote these rows. It comes before the rows because it locks: of two runners the second
waits at the cursor, and they never hold rows that the other one wants.

One attestation at a time is the meaning of a batch, so a batch that fails is cut until the one that
fails stands alone.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from qntx_es import faults
from qntx_es.database import Database
from qntx_es.errors import LeaseLost, ProjectorOutdated
from qntx_es.projections.cursor import Cursor, Look, advance, look
from qntx_es.projections.folding import FoldRefused
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.rows import RowMap
from qntx_es.projections.spans import Spans
from qntx_es.sequencer import Sequencer

STORE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Step:
    """What one batch did: the cursor went from `start` to `position`, with the log at `head`."""

    start: int
    position: int
    head: int
    matched: int
    derived: int


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
        else:
            self._connection = self._reading.enter_context(self._database.read())
        return self._connection


class Batches:
    """The batches of one projector: a domain's handlers over one generation of its tables."""

    def __init__(
        self, database: Database, sequencer: Sequencer, handlers: Handlers, rows: RowMap
    ) -> None:
        self._database = database
        self._sequencer = sequencer
        self._handlers = handlers
        self._rows = rows
        self._spans = Spans(database, handlers, rows)
        self._last: Cursor | None = None
        self._stored_at = 0.0
        # Until a batch is whole, the map may know what the database does not.
        self._is_whole = True
        self._began_at: Cursor | None = None

    @property
    def size_max(self) -> int:
        """How large a batch may be."""
        return self._spans.size_max

    def step(self, size: int, *, until: int | None = None, eager: bool = True) -> Step:
        """Project the next `size` matching attestations, at most up to `until`.

        Over ground where nothing matches the cursor is stored now and then, or always if `eager`.
        Raises `HandlerFailed`; `LeaseLost` when another runner was faster or holds the lease;
        `ProjectorOutdated` when the tables belong to another version.
        """
        try:
            step = self._step(size, until, eager=eager)
        except FoldRefused:
            return self.step(size, until=until, eager=eager)
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

    def _step(self, size: int, until: int | None, *, eager: bool) -> Step:
        self._is_whole = False
        with ExitStack() as stack:
            transaction = Transaction(self._database, stack)
            self._rows.connect = transaction
            cursor, head = self._look(transaction(False))  # noqa: FBT003 - to read
            faults.point("batch.after_look")
            ceiling = head if until is None else min(until, head)
            to_read = transaction(False)  # noqa: FBT003 - to read
            span = self._spans.after(cursor.position, ceiling, size, to_read)
            is_idle = not eager and self._stored_lately() and self._spans.is_bare(span, to_read)
            if span.until <= cursor.position or is_idle:
                self._is_whole = True
                return Step(cursor.position, cursor.position, head, 0, 0)
            faults.point("batch.after_read")
            moved = replace(cursor, position=span.until)
            transaction.move = partial(advance, cursor, span.until)
            derived = self._spans.run(span, derives_from=cursor.derives_from)
            connection = transaction(True)  # noqa: FBT003 - to write
            faults.point("batch.before_flush")
            self._spans.write(span, connection)
            faults.point("batch.before_append")
            self._sequencer.drop(connection, derived)
            faults.point("batch.before_commit")
        faults.point("batch.after_commit")
        self._last, self._is_whole = moved, True
        self._stored_at = monotonic()
        self._rows.cool()
        return Step(cursor.position, span.until, head, span.size, len(derived))

    def _look(self, connection: Connection) -> tuple[Cursor, int]:
        now = self._database.now(connection)
        seen = look(connection, self._handlers.domain.name, now)
        self._began_at = seen.cursor
        cursor = usable(self._handlers, seen)
        if cursor != self._last:
            self._forget()
        return cursor, seen.head

    def _forget(self) -> None:
        self._rows.forget()
        self._last = None

    def _is_overtaken(self) -> bool:
        with self._database.read() as connection:
            seen = look(connection, self._handlers.domain.name, self._database.now(connection))
        return seen.cursor != self._began_at

    def _stored_lately(self) -> bool:
        return monotonic() - self._stored_at < STORE_SECONDS


def _nothing_to_move(_: Connection) -> None:
    message = "nothing is written before it is known how far the cursor moves"
    raise RuntimeError(message)


def usable(handlers: Handlers, seen: Look) -> Cursor:
    """Return the cursor these handlers may move, or raise why they may not."""
    domain, cursor = handlers.domain, seen.cursor
    if cursor is None:
        raise ProjectorOutdated(
            f"domain `{domain.name}` has no tables yet. Run `qntx-es db upgrade`, or host.upgrade()"
        )
    if cursor.version < domain.version:
        raise ProjectorOutdated(
            f"the tables of `{domain.name}` are of version {cursor.version}, the code is of "
            f"version {domain.version}. Run `qntx-es projections rebuild {domain.name}`"
        )
    if cursor.version > domain.version:
        raise ProjectorOutdated(
            f"the tables of `{domain.name}` are of version {cursor.version}, newer than this "
            f"code ({domain.version}): another host goes on with them. Upgrade this one"
        )
    if seen.holder is not None:
        raise LeaseLost(f"`{domain.name}` is held by {seen.holder}")
    return cursor
