"""The migrated schema is the one that the code believes in, asked of the databases themselves."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import Connection, inspect, text

from qntx_es.database import Database
from qntx_es.tables import VERSION_TABLE, metadata


@pytest.fixture
def migrated(url: str) -> Iterator[Database]:
    """Upgrade an empty database."""
    database = Database(url)
    database.upgrade()
    yield database
    database.close()


TYPES = text(
    "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) "
    "FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
    "WHERE c.relkind = 'r' AND c.relname LIKE 'qntx\\_%' AND a.attnum > 0 AND NOT a.attisdropped"
)


def schema(connection: Connection) -> dict[str, Any]:
    """Return all that the database itself says of its tables."""
    seen = inspect(connection)
    is_sqlite = connection.dialect.name == "sqlite"
    # SQLAlchemy does not know xid8, the database does.
    named = {} if is_sqlite else {(row[0], row[1]): row[2] for row in connection.execute(TYPES)}
    return {
        table: {
            "columns": [
                {
                    "name": column["name"],
                    "type": named.get((table, column["name"])) or str(column["type"]),
                    "collation": getattr(column["type"], "collation", None),
                    "nullable": column["nullable"],
                    "identity": bool(column.get("identity")),
                }
                for column in seen.get_columns(table)
            ],
            "key": seen.get_pk_constraint(table)["constrained_columns"],
            "indexes": sorted(
                (str(index["name"]), index["column_names"], bool(index["unique"]))
                for index in seen.get_indexes(table)
            ),
            "unique": sorted(one["column_names"] for one in seen.get_unique_constraints(table)),
        }
        for table in sorted(seen.get_table_names())
        if table != VERSION_TABLE
    }


@pytest.mark.filterwarnings("ignore:Did not recognize type 'xid8'")
def test_the_migrated_schema_is_the_one_in_the_code(migrated: Database) -> None:
    """Made anew from `tables.metadata`, every table, column, type, key and index is the same."""
    name = migrated.engine.dialect.name
    wanted = [table for table in metadata.sorted_tables if table.info.get("only_on", name) == name]
    with migrated.write() as connection:
        before = schema(connection)
        for table in wanted:
            connection.execute(text(f"DROP TABLE {table.name}"))
        metadata.create_all(connection, tables=wanted)
        after = schema(connection)

    assert before == after


def test_every_table_of_ours_says_so(migrated: Database) -> None:
    """All names begin with `qntx_`, so that they meet no table of an application's."""
    with migrated.read() as connection:
        names = inspect(connection).get_table_names()

    assert names
    assert all(name.startswith("qntx_") for name in names)
    assert ("qntx_inbox" in names) is (not migrated.is_sqlite)


def test_texts_of_ours_are_compared_by_code_point(postgres_url: str) -> None:
    """Every text column orders as SQLite does, whatever the locale of the cluster."""
    migrated = Database(postgres_url)
    migrated.upgrade()
    with closing(migrated), migrated.read() as connection:
        others = connection.execute(
            text(
                "SELECT table_name, column_name FROM information_schema.columns "
                "WHERE table_name LIKE 'qntx\\_%' AND table_name <> :version "
                "AND data_type IN ('text', 'character varying') "
                "AND collation_name IS DISTINCT FROM 'C'"
            ),
            {"version": VERSION_TABLE},
        ).all()

    assert others == []
