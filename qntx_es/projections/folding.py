"""Folds by the database: it folds a range of the log itself, and no row of that comes here.

A fold means what it does when it is called, one attestation after the other. A statement may stand
for that only where nobody can tell: in a domain that has nothing but folds, none of which keeps a
column that another one keeps, over payloads that are plain. What a statement cannot vouch for, it
*refuses*: a payload that is not plainly of its class, another schema version, a sum that may have
left its column's bounds on the way. Then nothing of it remains, and that range of the log is folded
by Python, which reads the attestation as it must be read, or stops before it by name.
"""

from collections import Counter
from collections.abc import Callable

from sqlalchemy import Connection, Table, select
from sqlalchemy.exc import DBAPIError

from qntx_es.database import is_trouble
from qntx_es.domain import Domain
from qntx_es.errors import QntxError
from qntx_es.projections.grouping import Grouping, is_readable
from qntx_es.projections.reading import OnPostgresql, OnSqlite
from qntx_es.projections.shape import Shape
from qntx_es.projections.slices import ALL, Slices
from qntx_es.tables import attestations

# Time bounds a batch; this bounds how much is left to Python where a batch is refused.
POSITIONS_MAX = 200_000


class FoldRefused(QntxError):
    """A range of the log is not for the database to fold: undo it, and let Python do it."""


class Folding:
    """The folds of a domain over one generation of its tables, as the database runs them."""

    def __init__(
        self,
        domain: Domain,
        physical: Callable[[Table], Table],
        slices: Slices = ALL,
        *,
        is_sqlite: bool,
    ) -> None:
        on = OnSqlite(slices) if is_sqlite else OnPostgresql(slices)
        folds = domain.folds if is_apart(domain) else []
        self._statements = [Grouping(one, physical(one.table), on).upsert() for one in folds]
        self._contexts = sorted({one.payload.context for one in folds})
        self._refused_until = 0
        self._slices = slices

    @property
    def size_max(self) -> int | None:
        """How many positions a batch may cover; None where all is left to Python."""
        return POSITIONS_MAX if self._statements else None

    def reach(self, after: int, ceiling: int, size: int) -> int | None:
        """Return up to where the database is to fold; None where Python has to."""
        if not self._statements or after < self._refused_until:
            return None
        return min(ceiling, after + size)

    def finds(self, connection: Connection, after: int, until: int) -> bool:
        """Tell whether there is anything to fold in a range."""
        position = attestations.c.position
        asked = (
            select(position)
            .where(attestations.c.context.in_(self._contexts))
            .where(position > after, position <= until)
            .limit(1)
        )
        if not self._slices.is_all:
            asked = asked.where(attestations.c.slice.between(self._slices.first, self._slices.last))
        return connection.execute(asked).first() is not None

    def run(self, connection: Connection, after: int, until: int) -> None:
        """Fold a range. Raises `FoldRefused`, and then the transaction has to be undone."""
        try:
            for statement in self._statements:
                connection.execute(statement, {"after": after, "until": until})
        except DBAPIError as error:
            if is_trouble(error):
                raise
            self._refused_until = until
            raise FoldRefused from error


def is_apart(domain: Domain) -> bool:
    """Tell whether no fold can see what another one, or a handler, does between attestations."""
    folds = domain.folds
    kept = Counter((one.table, name) for one in folds for name in one.measures)
    return (
        len(folds) == len(domain.projects)
        and not domain.derives
        and all(times == 1 for times in kept.values())
        # A unique value may be handed on from row to row, one at a time only.
        and not any(Shape(one.table).is_ordered for one in folds)
        and all(map(is_readable, folds))
    )
