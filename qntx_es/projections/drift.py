"""What the scrubber found: live rows of an entity that are not what the log makes of it.

It is kept beside the cursors until the entity is scrubbed clean, a verify finds all the same, or a
rebuild makes the rows anew; so everybody who looks can see it, also without the domain's code.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from qntx_es.attestation import instant, microseconds
from qntx_es.projections.comparison import RowDifference
from qntx_es.tables import drifts

FIRST = 20


@dataclass(frozen=True, slots=True)
class Drift:
    """Rows of an entity in one table that are not what the log makes; `detail` says how so."""

    entity: str
    table: str
    detail: str
    found_at: datetime

    def __str__(self) -> str:
        return f"`{self.entity}` in {self.table}: {self.detail}"


def detail_of(found: Sequence[RowDifference]) -> str:
    """Say how rows of one table differ: the first of them, and how many more there are."""
    first, more = found[0], len(found) - 1
    how = f"differs in {', '.join(first.columns)}" if first.columns else f"is {first.verdict}"
    return f"row {first.key!r} {how}" + (f", and {more} more rows do too" if more else "")


def read_drifts(connection: Connection, domain: str, entity: str) -> list[Drift]:
    """Return what is known of an entity."""
    asked = select(*_COLUMNS).where(drifts.c.domain == domain, drifts.c.entity == entity)
    return [Drift(*row[:3], instant(row.found_at)) for row in connection.execute(asked)]


def first_drifts(connection: Connection, domain: str) -> tuple[Drift, ...]:
    """Return those that were found first."""
    found = drifts.c
    asked = (
        select(*_COLUMNS)
        .where(found.domain == domain)
        .order_by(found.found_at, found.entity, found.table)
        .limit(FIRST)
    )
    return tuple([Drift(*row[:3], instant(row.found_at)) for row in connection.execute(asked)])


def keep_drifts(connection: Connection, domain: str, entity: str, found: Iterable[Drift]) -> None:
    """Keep what was found of an entity, in the place of what was known."""
    theirs = (drifts.c.domain == domain, drifts.c.entity == entity)
    connection.execute(delete(drifts).where(*theirs))
    rows = [
        {
            "domain": domain,
            "entity": entity,
            "table": one.table,
            "found_at": microseconds(one.found_at),
            "detail": one.detail,
        }
        for one in found
    ]
    if rows:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        # Another host may have scrubbed the same entity at this moment.
        connection.execute(dialect.insert(drifts).on_conflict_do_nothing(), rows)


def forget_drifts(connection: Connection, domain: str) -> None:
    """Forget all that was found: the rows of the domain are right."""
    connection.execute(delete(drifts).where(drifts.c.domain == domain))


_COLUMNS = (drifts.c.entity, drifts.c.table, drifts.c.detail, drifts.c.found_at)
