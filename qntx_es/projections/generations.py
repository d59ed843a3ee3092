"""One life of a domain's tables: made, renamed, dropped. DDL stands here and nowhere else.

A rebuild fills tables beside the live ones, named `code_files__g7`, and a swap renames them. The
number is never used twice, so what a crashed rebuild left behind is known by its name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import (
    Connection,
    Table,
    UniqueConstraint,
    func,
    inspect,
    select,
    text,
    update,
)

from qntx_es.columns import physical
from qntx_es.database import UPGRADE_LOCK
from qntx_es.domain import Domain
from qntx_es.log import head_of
from qntx_es.projections.cursor import Cursor, cursors_of, declare
from qntx_es.projections.fingerprint import fingerprint
from qntx_es.tables import cursors

LOCK_TIMEOUT = "200ms"


def suffixed(table: str, generation: int) -> str:
    """Return the name a table has while it is not live."""
    return f"{table}__g{generation}"


def create_live(connection: Connection, domain: Domain) -> None:
    """Make the tables and the cursor of a domain seen for the first time."""
    if cursors_of(connection, domain.name):
        return
    lock_schema(connection)
    on_sqlite = connection.dialect.name == "sqlite"
    for table in domain.tables.values():
        live = physical(table, table.name, on_sqlite=on_sqlite)
        live.create(connection, checkfirst=True)
    declare(
        connection,
        Cursor(
            domain=domain.name,
            position=0,
            token=1,
            version=domain.version,
            generation=1,
            derives_from=head_of(connection),
            tables=tuple(sorted(domain.tables)),
            fingerprint=fingerprint(domain),
        ),
    )


def derive_from(connection: Connection, head: int) -> list[str]:
    """Let the derive handlers of all domains that are here speak from `head` on; name them."""
    lock_schema(connection)  # or one that is just being made would speak of all before it
    moved = update(cursors).values(derives_from=head).returning(cursors.c.domain)
    return sorted(connection.execute(moved).scalars())


def lock_schema(connection: Connection) -> None:
    """Let one transaction at a time make tables: two hosts may start, or rebuild, at once."""
    if connection.dialect.name != "sqlite":
        connection.execute(select(func.pg_advisory_xact_lock(UPGRADE_LOCK)))


def create_fresh(connection: Connection, domain: Domain, generation: int) -> dict[str, Table]:
    """Make the tables of a generation, without their secondary indexes."""
    fresh = fresh_tables(connection, domain, generation)
    for table in fresh.values():
        for index in list(table.indexes):
            table.indexes.discard(index)
        table.create(connection)
    return fresh


def create_indexes(connection: Connection, domain: Domain, generation: int) -> None:
    """Make the secondary indexes of a generation, once its tables are filled."""
    for table in fresh_tables(connection, domain, generation).values():
        for index in table.indexes:
            index.create(connection)
        connection.execute(text(f"ANALYZE {table.name}"))


def fresh_tables(connection: Connection, domain: Domain, generation: int) -> dict[str, Table]:
    """Return the tables of a generation by their live names."""
    on_sqlite = connection.dialect.name == "sqlite"
    return {
        name: physical(table, suffixed(name, generation), on_sqlite=on_sqlite)
        for name, table in domain.tables.items()
    }


def bound_waiting(connection: Connection) -> None:
    """Let this transaction give up soon where it has to wait: behind it, readers would queue."""
    if connection.dialect.name != "sqlite":
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))


def found_tables(connection: Connection, tables: Iterable[str]) -> list[str]:
    """Return those of the tables that nobody has dropped by hand."""
    return sorted({*tables}.intersection(inspect(connection).get_table_names()))


def lock_tables(connection: Connection, tables: Iterable[str]) -> None:
    """Keep readers off the live tables."""
    names = ", ".join(sorted(tables))
    if names and connection.dialect.name != "sqlite":
        connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))


def rename(connection: Connection, live: Cursor, fresh: Iterable[str], generation: int) -> None:
    """Put the fresh tables in the place of the live ones, which keep their own generation's name.

    On SQLite views would otherwise follow the old table, and any broken view block the rename.
    """
    with _views_left_alone(connection):
        for name in found_tables(connection, live.tables):
            _rename(connection, name, suffixed(name, live.generation))
        for name in sorted(fresh):
            _rename(connection, suffixed(name, generation), name)


@contextmanager
def _views_left_alone(connection: Connection) -> Iterator[None]:
    if connection.dialect.name != "sqlite":
        yield
        return
    connection.execute(text("PRAGMA legacy_alter_table = ON"))
    try:
        yield
    finally:
        connection.execute(text("PRAGMA legacy_alter_table = OFF"))


def drop_replaced(connection: Connection, replaced: Cursor) -> None:
    """Drop the tables that a swap has put out of use."""
    for name in replaced.tables:
        connection.execute(text(f"DROP TABLE IF EXISTS {suffixed(name, replaced.generation)}"))


def drop_fresh(connection: Connection, fresh: Mapping[str, Table]) -> None:
    """Drop the tables of a generation that never became live."""
    for table in fresh.values():
        table.drop(connection, checkfirst=True)


def hand_out(connection: Connection, fresh: Mapping[str, Table], names: Mapping[str, str]) -> None:
    """Give the tables of a generation names that are no generation's, nor any domain's.

    Names of constraints hold the generation, and the next of that number would meet them.
    """
    for name, table in sorted(fresh.items()):
        if connection.dialect.name != "sqlite":
            for constraint in table.constraints:
                if isinstance(constraint, UniqueConstraint) and constraint.name:
                    dropped = f"ALTER TABLE {table.name} DROP CONSTRAINT {constraint.name}"
                    connection.execute(text(dropped))
        _rename(connection, table.name, names[name])


def drop_stale(connection: Connection, domain: str) -> None:
    """Drop every table of the domain that is not live."""
    is_stale = re.compile(rf"{domain}_.*__g\d+")
    for name in inspect(connection).get_table_names():
        if is_stale.fullmatch(name):
            connection.execute(text(f"DROP TABLE IF EXISTS {name}"))


def _rename(connection: Connection, name: str, to: str) -> None:
    connection.execute(text(f"ALTER TABLE {name} RENAME TO {to}"))
