"""Inline domains: projected in the very transaction that gives the positions.

The pass is their runner. It projects in a savepoint: a handler that raises leaves its projector
*degraded*, with the cursor where it was, and the runner catches up under the same lock. So an
append never fails for a projector, and no attestation is left out, whether the passing host lacks
the domain, has old code or comes in the middle of a rebuild.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from time import monotonic

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from qntx_es.database import Database, is_trouble
from qntx_es.errors import LeaseLost, ProjectorOutdated, ProjectorPaused
from qntx_es.projections.alteration import altered_by_hand
from qntx_es.projections.batch import STORE_SECONDS, Step, usable
from qntx_es.projections.cursor import Cursor, Look, advance, look
from qntx_es.projections.folding import Folding, FoldRefused
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.ledger import Ledger, Standing, read_ledger
from qntx_es.projections.portions import Portion, Portions
from qntx_es.projections.projecting import project
from qntx_es.projections.recovery import TABLES, HandlerFailed, InHand, record_failure
from qntx_es.projections.rows import RowMap
from qntx_es.sequencer import Sequencer

# Further behind than this, a projector is its runner's affair and not the appender's.
INLINE_MAX = 1_000


class InlineBatches:
    """The batches of one inline projector, under the sequencer's lock."""

    def __init__(
        self, database: Database, sequencer: Sequencer, handlers: Handlers, rows: RowMap
    ) -> None:
        self._database = database
        self._sequencer = sequencer
        self._handlers = handlers
        self._rows = rows
        folding = Folding(handlers.domain, lambda table: table, is_sqlite=database.is_sqlite)
        self._portions = Portions(handlers, folding)
        self._degraded_at: int | None = None
        self._standing = (0, Standing(handlers.domain.name, handlers.contexts))
        self._stored_at = 0.0

    @property
    def size_max(self) -> int:
        """How large a batch may be."""
        return self._portions.size_max

    @property
    def contexts(self) -> frozenset[str]:
        """The contexts its handlers read."""
        return self._handlers.contexts

    def check(self, seen: Look) -> Cursor:
        """Return the cursor that may be moved, or raise why it may not."""
        return usable(self._handlers, seen)

    def step(self, size: int, *, until: int | None = None, eager: bool = True) -> Step:
        """Catch up by one batch.

        Raises `HandlerFailed`, `ProjectorOutdated`, `ProjectorPaused`, `LeaseLost`.
        """
        if not eager and monotonic() - self._stored_at < STORE_SECONDS:
            # The lock would make appenders wait, and the pass has projected what there was.
            with self._database.read() as connection:
                cursor, head = self._look(connection)
            return Step(cursor.position, cursor.position, head, 0, 0)
        with self._sequencer.held() as connection:
            step = self._project(connection, size, until)
        self._stored_at = monotonic()
        return step

    def pass_through(self, connection: Connection) -> None:
        """Project what a pass has just given positions to, or leave it to the runner."""
        savepoint = connection.begin_nested()
        try:
            if self._look(connection)[0].position != self._degraded_at:
                self._project(connection, INLINE_MAX, None)
        except (LeaseLost, ProjectorOutdated, ProjectorPaused):
            savepoint.rollback()
        except HandlerFailed as failed:
            savepoint.rollback()
            self._degrade(connection, failed)
        except DBAPIError as error:
            if is_trouble(error):
                raise
            savepoint.rollback()
            self._degrade(connection, HandlerFailed(InHand(handler="a statement"), error))
        else:
            savepoint.commit()

    def _project(self, connection: Connection, size: int, until: int | None) -> Step:
        # Nothing stays warm: whether this transaction commits is not for us to know.
        self._rows.forget()
        self._rows.connect = lambda _: connection
        cursor, head = self._look(connection)
        ceiling = head if until is None else min(until, head)
        standing = self._standing_under(connection, cursor)
        portion = self._portions.after(cursor.position, ceiling, size, connection, standing)
        if portion.until > cursor.position:
            try:
                with connection.begin_nested() if portion.is_folded else nullcontext():
                    self._write(connection, cursor, standing, portion)
            except FoldRefused:
                return self._project(connection, size, until)
        return Step(cursor.position, portion.until, head, portion.size, 0)

    def _write(
        self, connection: Connection, cursor: Cursor, standing: Standing, portion: Portion
    ) -> None:
        advance(cursor, portion.until, connection)
        if portion.is_folded:
            self._portions.folding.run(connection, cursor.position, portion.until)
            return
        stretch = standing.stretch(portion.rows, portion.until)
        project(self._handlers, self._rows, standing, stretch, derives_from=None)

    def _standing_under(self, connection: Connection, cursor: Cursor) -> Standing:
        """Return what is left out: nobody is parked inline, and who skips changes the token."""
        token, standing = self._standing
        if token != cursor.token:
            left_out = read_ledger(connection, cursor.domain, cursor.version).left_out
            standing = replace(standing, ledger=Ledger(left_out=left_out))
            self._standing = (cursor.token, standing)
        return standing

    def _look(self, connection: Connection) -> tuple[Cursor, int]:
        seen = look(self._database, connection, self._handlers.domain.name)
        return self.check(seen), seen.head

    def _degrade(self, connection: Connection, failed: HandlerFailed) -> None:
        name = self._handlers.domain.name
        now = self._database.now(connection)
        seen = look(self._database, connection, name)
        if isinstance(failed.raised, DBAPIError):
            altered = altered_by_hand(connection, self._handlers.domain, seen.cursor)
            if altered is not None:
                failed = HandlerFailed(InHand(altered.position, TABLES), altered)
        if seen.cursor is not None:
            self._degraded_at = seen.cursor.position
            record_failure(connection, seen.cursor, failed, now)


class InlineProjectors:
    """All inline projectors of a host, as the sequencer calls them."""

    def __init__(self, projectors: Iterable[InlineBatches]) -> None:
        self._projectors = tuple(projectors)
        self.contexts = frozenset(
            context for projector in self._projectors for context in projector.contexts
        )

    def __call__(self, connection: Connection, head: int) -> None:  # noqa: ARG002 - the sequencer's
        """Project what has just been given its positions."""
        for projector in self._projectors:
            projector.pass_through(connection)
