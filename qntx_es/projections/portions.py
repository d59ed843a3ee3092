"""What a batch is made of: what the handlers are for, read in windows, or a range to be folded."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from sqlalchemy import Connection, Dialect, Select, bindparam, literal, or_, select

from qntx_es.attestation import RecordedRow
from qntx_es.ax.sql import unindexed
from qntx_es.database import Database
from qntx_es.domain import RETRIED
from qntx_es.log import COLUMNS
from qntx_es.projections.folding import Folding
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.ledger import Standing
from qntx_es.projections.slices import ALL, Slices
from qntx_es.tables import attestations

READ_MAX = 5_000
WINDOW_MAX = 100_000


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
    """The portions of one projector, over one generation of its tables.

    Of attestations that are read, one holds at most `read_max`.
    """

    handlers: Handlers
    folding: Folding
    slices: Slices = ALL
    read_max: int = READ_MAX

    @property
    def size_max(self) -> int:
        """How large a portion may be."""
        return self.folding.size_max or self.read_max

    def after(
        self, position: int, ceiling: int, size: int, connection: Connection, standing: Standing
    ) -> Portion:
        """Return what comes next, at most `size` of it: a range to fold where that does not show.

        Who waits, and what was decided, is met one attestation at a time.
        """
        reach = self.folding.reach(position, ceiling, size)
        if reach is not None and standing.is_plain(position, reach):
            return Portion((), reach, reach - position, is_folded=True)
        size = min(size, self.read_max)
        rows = read_batch(connection, self.handlers, self.slices, position, ceiling, size)
        return Portion(rows, rows[-1][0] if len(rows) == size else ceiling, len(rows))

    def is_bare(self, portion: Portion, after: int, connection: Connection) -> bool:
        """Tell whether nothing in a portion is for this projector."""
        if portion.is_folded:
            return not self.folding.finds(connection, after, portion.until)
        return not portion.rows


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
    # SQLite would go by contexts, and sort what it finds, be it all there is: a third slower.
    walks = connection.dialect.name == "sqlite"
    while handlers.contexts and after < until and len(found) < size:
        to = min(until, after + window)
        asked = _asked(handlers.contexts | {RETRIED}, slices, walks=walks and window == size)
        given = {"after": after, "until": to, "size": size - len(found)}
        result = connection.execute(asked, given)
        # The driver's own tuples: no column needs converting, and a Row costs more than it gives.
        found += cast("Any", result.cursor).fetchall()
        after, window = to, min(window * 2, WINDOW_MAX)
    return found


def read_on(
    database: Database, handlers: Handlers, slices: Slices, after: int, size: int
) -> list[RecordedRow]:
    """Return those of the next `size` attestations the handlers are for: PostgreSQL.

    As `read_batch` would, in one way there and back.
    """
    contexts = handlers.contexts | {RETRIED}
    sql, given = _asked_in_words(database.engine.dialect, contexts, slices)
    asked = given | {"after": after, "until": after + size, "size": size}
    return cast("list[RecordedRow]", database.ask(sql, asked))


@cache
def _asked(contexts: frozenset[str], slices: Slices, *, walks: bool = False) -> Select[Any]:
    position, context = attestations.c.position, attestations.c.context
    asked = (
        select(*COLUMNS)
        .where(position > bindparam("after"), position <= bindparam("until"))
        .where((unindexed(context) if walks else context).in_(map(literal, sorted(contexts))))
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
