"""Indexes of the log by what lies at a path of payloads, for those that a domain declares.

A condition on a payload looks at every attestation that is left, unless an index names those it can
hold of. An index is only ever a help: the condition is asked all the same, so one that is missing,
or still being made, changes no answer. Its name is computed of its path, and so the database itself
knows which there are, whichever domains are enabled.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import blake2b

from sqlalchemy import Connection, TextClause, bindparam, column, func, select, table, text

from qntx_es.ax import KEY_CHARACTERS, Keys
from qntx_es.database import Database

# Whoever makes an index concurrently waits for transactions: he must not wait inside of one.
MAKING = 0x716E7478_00000002
POSITION_MAX = (1 << 63) - 1
_schema = table("sqlite_master", *(column(name) for name in ("type", "name")))


def name_of(path: Sequence[str]) -> str:
    """Return the name of the index on a path."""
    return f"qntx_payload_{blake2b('.'.join(path).encode(), digest_size=8).hexdigest()}"


def make(database: Database, path: Sequence[str]) -> None:
    """Make the index on a path, if there is none, while everybody goes on appending.

    On SQLite appenders wait meanwhile, as for any write. Where another host is making indexes at
    this moment, it is left to it.
    """
    if database.is_sqlite:
        with database.write() as connection:
            connection.execute(_create(path, "sqlite"))
        return
    with database.read() as connection:
        if present(connection, [path]):
            return
    with database.alone() as connection:
        if not connection.scalar(select(func.pg_try_advisory_lock(MAKING))):
            return
        try:
            # One that was being made when its maker was killed is there, and not valid.
            connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name_of(path)}"))
            connection.execute(_create(path, "postgresql"))
        finally:
            connection.execute(select(func.pg_advisory_unlock(MAKING)))


def present(connection: Connection, paths: Iterable[Sequence[str]]) -> set[tuple[str, ...]]:
    """Return those of some paths that have an index which can be used."""
    named = {name_of(path): tuple(path) for path in paths}
    asked = _PRESENT_SQLITE if connection.dialect.name == "sqlite" else _PRESENT_POSTGRESQL
    found = connection.execute(asked, {"names": list(named)}).scalars()
    return {named[name] for name in found}


def positions(
    connection: Connection, keys: Keys, *, after: int, until: int | None, limit: int
) -> list[int]:
    """Return at most `limit` positions whose payload has one of these keys, as the index has them.

    Raises the database's own error where there is no such index.
    """
    dialect = connection.dialect.name
    found: list[int] = []
    for low, high in keys.ranges:
        asked = _in_range(keys.path, dialect, (low is not None, high is not None))
        values = {"low": low, "high": high, "after": after, "until": until or POSITION_MAX}
        given = {name: value for name, value in values.items() if value is not None}
        found += connection.execute(asked, given | {"limit": limit - len(found)}).scalars()
    return found


@cache
def _in_range(path: tuple[str, ...], dialect: str, ends: tuple[bool, bool]) -> TextClause:
    key = _key(path, dialect)
    hint = f"INDEXED BY {name_of(path)}" if dialect == "sqlite" else ""
    low = f"AND {key} >= :low" if ends[0] else ""
    high = f"AND {key} <= :high" if ends[1] else ""
    return text(
        f"SELECT position FROM qntx_attestations {hint} WHERE {key} IS NOT NULL {low} {high} "  # noqa: S608 - of checked paths
        "AND position > :after AND position <= :until LIMIT :limit"
    )


def _create(path: Sequence[str], dialect: str) -> TextClause:
    key = _key(path, dialect)
    how = "" if dialect == "sqlite" else "CONCURRENTLY"
    return text(
        f"CREATE INDEX {how} IF NOT EXISTS {name_of(path)} "
        f"ON qntx_attestations ({key}, position) WHERE {key} IS NOT NULL"
    )


def _key(path: Sequence[str], dialect: str) -> str:
    """Return the expression that is indexed: what `ax.keys` says a key is."""
    if dialect != "sqlite":
        return f"""(qntx_key(payload, '{{{",".join(path)}}}') COLLATE "C")"""
    quoted = "".join(f'."{key}"' for key in path)
    found = f"json_extract(payload, '${quoted}')"
    return (
        f"(CASE typeof({found}) WHEN 'text' THEN substr({found}, 1, {KEY_CHARACTERS}) "
        f"ELSE {found} END)"
    )


_PRESENT_SQLITE = select(_schema.c.name).where(
    _schema.c.type == "index", _schema.c.name.in_(bindparam("names", expanding=True))
)
_PRESENT_POSTGRESQL = text(
    "SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid "
    "WHERE i.indrelid = 'qntx_attestations'::regclass AND i.indisvalid AND c.relname = ANY(:names)"
)
