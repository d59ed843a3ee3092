"""Which projector waits for somebody else's lock: PostgreSQL tells, and SQLite cannot.

A batch locks its cursor and then the domain's tables. Where it waits at a table, that table says
whose batch it is; where it waits at its cursor, the row of the cursor does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Integer, Text, cast, column, func, literal_column, select, table
from sqlalchemy.dialects.postgresql import ARRAY

from qntx_es.tables import cursors

_LOCKS = table("pg_locks", *map(column, ("pid", "relation", "locktype", "page", "tuple")))
_BACKENDS = table(
    "pg_stat_activity", *map(column, ("pid", "datname", "wait_event_type", "query_start"))
)
_CLASSES = table("pg_class", column("oid"), column("relname"))


@dataclass(frozen=True, slots=True)
class Blocked:
    """By which process, and for how many seconds already."""

    by: int
    seconds: float

    def __str__(self) -> str:
        return f"waiting for a lock held by process {self.by}, for {self.seconds:.1f} s"


def blocked(connection: Connection) -> dict[str, Blocked]:
    """Return which domains' projectors wait for a lock."""
    if connection.dialect.name == "sqlite":
        return {}
    waits = [row for row in connection.execute(_waiting()) if row.by]
    if not waits:
        return {}
    domains = _domains_of(connection)
    return {
        domain: Blocked(row.by[0], float(row.seconds))
        for row in waits
        if (domain := domains.get(_place_of(row)) or domains.get(row.relname)) is not None
    }


def _waiting() -> Any:  # noqa: ANN401 - a Core select
    """Ask for every table that a waiting backend has a lock on, or wants one."""
    waited = func.clock_timestamp() - _BACKENDS.c.query_start
    return (
        select(
            _CLASSES.c.relname,
            _LOCKS.c.page,
            _LOCKS.c.tuple.label("place"),
            func.pg_blocking_pids(_BACKENDS.c.pid, type_=ARRAY(Integer)).label("by"),
            func.extract("epoch", waited).label("seconds"),
        )
        .join_from(_BACKENDS, _LOCKS, _LOCKS.c.pid == _BACKENDS.c.pid)
        .join(_CLASSES, _CLASSES.c.oid == _LOCKS.c.relation)
        .where(_BACKENDS.c.wait_event_type == "Lock")
        .where(_BACKENDS.c.datname == func.current_database())
    )


def _place_of(row: Any) -> str:  # noqa: ANN401 - a row of the query above
    return f"{row.relname} ({row.page},{row.place})"


def _domains_of(connection: Connection) -> Mapping[str, str]:
    """Return whose each table is, and each row of the cursors, by its place."""
    place = cast(literal_column("ctid"), Text).label("place")
    rows = connection.execute(select(cursors.c.domain, cursors.c.tables, place)).all()
    places = {f"{cursors.name} {row.place}": row.domain for row in rows}
    return {name: row.domain for row in rows for name in json.loads(row.tables)} | places
