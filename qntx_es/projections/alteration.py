"""What somebody did by hand to a domain's live tables.

A batch that goes well is not asked, so it costs nothing: only where a statement fails are the
tables looked at, before a handler is blamed. What counts is what keeps the projector from writing,
or a verify from comparing: a column more, with a default, is nobody's business.
"""

from collections.abc import Iterator

from sqlalchemy import Column, Connection, Dialect, Table, inspect
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.types import REAL, Float, TypeEngine

from qntx_es.domain import Domain
from qntx_es.errors import TableAltered
from qntx_es.projections.cursor import Cursor


def altered_by_hand(
    connection: Connection, domain: Domain, cursor: Cursor | None
) -> TableAltered | None:
    """Return why statements of this domain fail, if its tables are no longer what it made.

    `cursor` is of the same moment as what the connection sees: a swap is no alteration.
    """
    if cursor is None or cursor.version != domain.version:
        return None
    found = list(alterations(connection, domain))
    return TableAltered(domain.name, position=cursor.position + 1, found=found) if found else None


def alterations(connection: Connection, domain: Domain) -> Iterator[str]:
    """Say what differs in the live tables, one thing after the other."""
    there = inspect(connection).get_table_names()
    for name, table in sorted(domain.tables.items()):
        if name not in there:
            yield f"table `{name}` is missing"
        else:
            yield from _of_columns(connection, table)
            yield from _of_key(connection, table)


def _of_columns(connection: Connection, table: Table) -> Iterator[str]:
    found = {one["name"]: one for one in inspect(connection).get_columns(table.name)}
    for column in table.columns:
        called = f"column `{table.name}.{column.name}`"
        there = found.pop(column.name, None)
        if there is None:
            yield f"{called} is missing"
        elif is_retyped(column, there["type"], connection.dialect):
            yield f"{called} is now {there['type']}"
        elif column.nullable and not there["nullable"]:
            yield f"{called} now refuses NULL"
    for there in found.values():
        if _must_be_given(there):
            yield f"column `{table.name}.{there['name']}` was added, and has no default"


def _of_key(connection: Connection, table: Table) -> Iterator[str]:
    key = inspect(connection).get_pk_constraint(table.name)["constrained_columns"]
    if sorted(key) != sorted(column.name for column in table.primary_key.columns):
        yield f"table `{table.name}` has another primary key"


def is_retyped(column: Column[object], now: TypeEngine[object], dialect: Dialect) -> bool:
    """Tell whether a column is of another type than the domain has given it."""
    return _spelt(column.type, dialect) != _spelt(now, dialect)


def _spelt(kind: TypeEngine[object], dialect: Dialect) -> str:
    if isinstance(kind, Float) and not isinstance(kind, REAL):
        return "a double"  # the databases have several names for it
    return kind.compile(dialect).partition(" COLLATE ")[0]


def _must_be_given(column: ReflectedColumn) -> bool:
    is_made = column.get("default") is not None or {"identity", "computed"} & {*column}
    return not column["nullable"] and not is_made
