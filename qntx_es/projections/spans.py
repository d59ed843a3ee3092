"""What one batch covers of the log, and the two ways to make rows of it.

A *span* is read here and run through the handlers, one attestation after the other; or, where a
domain has nothing but folds, it is left to the database as a range of positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from sqlalchemy import Connection, Select, Table, bindparam, select
from sqlalchemy.exc import DataError, IntegrityError

from qntx_es.attestation import Attestation, RecordedRow
from qntx_es.database import Database
from qntx_es.log import COLUMNS
from qntx_es.projections.folding import Folding
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.recovery import HandlerFailed, InHand
from qntx_es.projections.rows import RowMap
from qntx_es.tables import attestations

# How many attestations are read at once, at most.
SIZE_MAX = 5_000
WINDOW_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Span:
    """What lies behind `start`, up to `until`: a batch to run, or None for the database to fold."""

    start: int
    until: int
    batch: Sequence[RecordedRow] | None

    @property
    def size(self) -> int:
        """How many attestations it is made of; positions, where nobody counts them."""
        return self.until - self.start if self.batch is None else len(self.batch)


class Spans:
    """The spans of one projector, and how they become rows of one generation of its tables."""

    def __init__(
        self,
        database: Database,
        handlers: Handlers,
        rows: RowMap,
        physical: Callable[[Table], Table] = lambda table: table,
    ) -> None:
        self._handlers = handlers
        self._rows = rows
        self._folding = Folding(handlers.domain, physical, is_sqlite=database.is_sqlite)

    @property
    def size_max(self) -> int:
        """How large a span may be."""
        return self._folding.size_max or SIZE_MAX

    def after(self, position: int, ceiling: int, size: int, connection: Connection) -> Span:
        """Return the next span, of at most `size` attestations, and none behind the ceiling."""
        reach = self._folding.reach(position, ceiling, size)
        if reach is not None:
            return Span(position, reach, None)
        size = min(size, SIZE_MAX)
        batch = read_batch(connection, self._handlers, position, ceiling, size)
        return Span(position, batch[-1][0] if len(batch) == size else ceiling, batch)

    def is_bare(self, span: Span, connection: Connection) -> bool:
        """Tell whether nothing in a span is for this projector."""
        if span.batch is None:
            return not self._folding.finds(connection, span.start, span.until)
        return not span.batch

    def run(self, span: Span, *, derives_from: int | None) -> list[Attestation]:
        """Run the handlers, and return what was derived. Raises `HandlerFailed`."""
        if span.batch is None:
            return []
        self._handlers.read_ahead(self._rows, span.batch)
        return self._handlers.run(span.batch, self._rows, derives_from=derives_from)

    def write(self, span: Span, connection: Connection) -> None:
        """Write the rows.

        What the database refuses of them is the failure of whoever put them: `HandlerFailed`. A
        span that it does not fold is undone with its transaction, and read the next time:
        `FoldRefused`.
        """
        if span.batch is None:
            # What is known of rows is of the past then.
            self._rows.forget()
            self._folding.run(connection, span.start, span.until)
            return
        try:
            self._rows.flush(connection)
        except (IntegrityError, DataError) as error:
            failed = InHand(span.batch[0][0], "a row that was put")
            raise HandlerFailed(failed, error) from error


def read_batch(
    connection: Connection, handlers: Handlers, after: int, until: int, size: int
) -> list[RecordedRow]:
    """Return the next attestations the handlers are for, at most `size`, in order.

    They are read in windows of positions, wider while little matches: asked for "the next 5 000"
    of a long log, a database may well sort all that is left of it.
    """
    found: list[RecordedRow] = []
    window = size
    while handlers.contexts and after < until and len(found) < size:
        to = min(until, after + window)
        asked = _asked(handlers.contexts).limit(size - len(found))
        result = connection.execute(asked, {"after": after, "until": to})
        # The driver's own tuples: no column needs converting, and a Row costs more than it gives.
        found += cast("Any", result.cursor).fetchall()
        after, window = to, min(window * 2, WINDOW_MAX)
    return found


@cache
def _asked(contexts: frozenset[str]) -> Select[Any]:
    position = attestations.c.position
    return (
        select(*COLUMNS)
        .with_hint(attestations, "NOT INDEXED", "sqlite")
        .where(position > bindparam("after"), position <= bindparam("until"))
        .where(attestations.c.context.in_(sorted(contexts)))
        .order_by(position)
    )
