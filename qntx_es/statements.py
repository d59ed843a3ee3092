"""What is sent to the database to append, and what is asked of it before.

Statements are composed once: composing one of this size costs more than running it.
"""

import json
import secrets
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Executable,
    Text,
    bindparam,
    false,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from qntx_es.attestation import Attestation, slice_of
from qntx_es.database import Database
from qntx_es.tables import attestations as log
from qntx_es.tables import epochs

# A process stopped while it holds the lock is cut off by the server, and the next one goes on.
IDLE_SECONDS_MAX = 5
# An import may come through a slow line, and in an empty log there is little to hold up.
SOURCE_SECONDS_MAX = 600
SAID = ("id", "context", "entity", "actor", "slice", "depth", "schema_version", "caused_by")
COLUMNS = (*SAID, "correlation_id", "tags", "payload")
# What makes two statements the same.
BYTES = ("context", "actor", "entity", "schema_version", "payload", "tags")
TEXTS = {"id", "context", "entity", "actor", "caused_by", "correlation_id", "tags", "payload"}


def bytes_of(row: Any) -> bytes:  # noqa: ANN401 - a row of the log
    """Return what makes a row of the log or of the inbox the same statement as another."""
    parts = (row.context, row.actor, row.entity, str(row.schema_version), row.payload)
    return "\x00".join((*parts, row.tags or "")).encode()


def values_of(one: Attestation) -> tuple[object, ...]:
    """Return the values of `COLUMNS`."""
    return (
        one.id,
        one.context,
        one.entity,
        one.actor,
        slice_of(one.entity),
        one.depth,
        one.schema_version,
        one.caused_by,
        one.correlation_id,
        one.tags_text,
        one.text,
    )


# OR FAIL: what fails is rolled back as a whole, so no row needs a journal of its own.
_INSERT_SQLITE = (
    "INSERT OR FAIL INTO qntx_attestations "  # noqa: S608
    f"(position, recorded_at, entity_version, {', '.join(COLUMNS)}) "
    f"VALUES ({', '.join('?' * (3 + len(COLUMNS)))})"
)
TYPES = ["text" if name in TEXTS else "int" for name in COLUMNS]


def _unnest(types: Iterable[str], columns: Iterable[str]) -> str:
    # Binary arrays, one parameter a column: four times as fast as text ones.
    arrays = ", ".join(f"%b::{kind}[]" for kind in types)
    return f"unnest({arrays}) WITH ORDINALITY AS said({', '.join(columns)}, ordinal)"


UNNEST = _unnest(TYPES, COLUMNS)
_PLACED = ("recorded_at", "entity_version", *COLUMNS)
_INSERT_POSTGRESQL = (
    f"INSERT INTO qntx_attestations (position, {', '.join(_PLACED)}) "  # noqa: S608
    f"SELECT %b::bigint + ordinal, {', '.join(_PLACED)} "
    f"FROM {_unnest(('bigint', 'int', *TYPES), _PLACED)}"
)


def insert_into_log(
    connection: Connection,
    fresh: Sequence[Attestation],
    numbers: Sequence[int | None],
    head: int,
    instants: Sequence[int],
) -> None:
    """Insert behind `head`, each with its number (its entity's version) and its instant.

    The database itself refuses what does not continue the log.
    """
    rows = [values_of(one) for one in fresh]
    if connection.dialect.name == "sqlite":
        placed = [
            (head + n, at, number, *row)
            for n, (at, number, row) in enumerate(zip(instants, numbers, rows, strict=True), 1)
        ]
        connection.exec_driver_sql(_INSERT_SQLITE, placed)
    else:
        arrays = [list(values) for values in zip(*rows, strict=True)]
        connection.exec_driver_sql(_INSERT_POSTGRESQL, (head, instants, numbers, *arrays))


def refresh_statistics(connection: Connection) -> None:
    """Let PostgreSQL know that the log is long: else each piece read is all the rest, sorted."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql("ANALYZE qntx_attestations")


_KNOWN_ON_SQLITE = (
    f"SELECT id, position, {', '.join(BYTES)} FROM qntx_attestations "  # noqa: S608
    "WHERE id IN (SELECT value FROM json_each(?))"
)
_LAST_ON_SQLITE = (
    "SELECT position, recorded_at FROM qntx_attestations ORDER BY position DESC LIMIT 1"
)


def known_by_id(connection: Connection, ids: Sequence[str]) -> dict[str, Any]:
    """Return the rows that the log holds under any of `ids`, by id."""
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(_KNOWN_ON_SQLITE, (json.dumps(ids),))
    else:
        rows = connection.execute(_known_on_postgresql(), {"ids": ids})
    return {row.id: row for row in rows}


@cache
def _known_on_postgresql() -> Executable:
    # By Core, since a caller's driver may be any.
    ids = bindparam("ids", type_=postgresql.ARRAY(Text))
    said = (log.c[name] for name in ("id", "position", *BYTES))
    return select(*said).where(log.c.id == func.any(ids))


class Head(NamedTuple):
    """The last position, and the instant (microseconds) it was recorded at."""

    position: int
    recorded_at: int


def last_on_sqlite(connection: Connection) -> Head:
    """Return the head; 0 is empty."""
    row = connection.exec_driver_sql(_LAST_ON_SQLITE).one_or_none()
    return Head(0, 0) if row is None else Head(*row)


def head_and_now(connection: Connection) -> Head:
    """Return the last position, and the instant at which the next may be recorded: PostgreSQL."""
    return Head(*connection.exec_driver_sql("SELECT head, recorded FROM qntx_head()").one())


def _until_commit(setting: str, value: Any) -> Any:  # noqa: ANN401 - an SQL expression
    return func.set_config(setting, value, literal(True))  # noqa: FBT003 - SQL's argument


@cache
def lock() -> Executable:
    """Take the lock of the log until the transaction ends, waiting at most `timeout`."""
    return select(
        _until_commit("lock_timeout", bindparam("timeout")),
        _until_commit("idle_in_transaction_session_timeout", f"{IDLE_SECONDS_MAX}s"),
        func.pg_advisory_xact_lock(func.qntx_lock()),
    )


@cache
def be_patient() -> Executable:
    """Let this transaction wait for a slow source, though it holds the lock."""
    return select(
        _until_commit("idle_in_transaction_session_timeout", f"{SOURCE_SECONDS_MAX}s"),
    )


@cache
def try_lock() -> Executable:
    """Take the lock of the log if nobody has it, and tell."""
    return select(
        func.pg_try_advisory_xact_lock(func.qntx_lock()),
        _until_commit("idle_in_transaction_session_timeout", f"{IDLE_SECONDS_MAX}s"),
    )


_APPEND = (
    "CALL qntx_append(NULL, NULL, $1::text, $2::text[], "
    f"{', '.join(f'${n}::{kind}[]' for n, kind in enumerate(TYPES, 3))})"
).encode()
_PASS = b"CALL qntx_pass(NULL, $1::text[])"
_SETTLE = b"CALL qntx_settle(NULL, $1::text, $2::text[], $3::text)"
# What it answers instead of the head it found.
DROPPED, OTHERS_FIRST = -1, -2


class Appended(NamedTuple):
    """The head before the first of them; `is_done` unless a host must look again."""

    head: int
    is_done: bool


def append_or_drop(
    database: Database, fresh: Sequence[Attestation], timeout: str, inline: Collection[str]
) -> Appended:
    """Append, or drop into the inbox and wait for the pass that takes them along.

    The head is `DROPPED` where a host must see to what is in the inbox, and `OTHERS_FIRST`, with
    nothing done, where a host must make a pass first: something is to be set aside, is in one of
    the `inline` contexts, or is known already.
    """
    columns: Any = zip(*map(values_of, fresh), strict=True)
    head, is_done = database.call(_APPEND, (timeout, list(inline), *columns))
    return Appended(int(head or 0), is_done == "t")


def pass_if_free(database: Database, inline: Collection[str]) -> bool:
    """Move what waits, or leave it to whoever has the lock; False where a host must do it."""
    return database.call(_PASS, (list(inline),)) == ["t"]


def settle(database: Database, wanted: str, timeout: str, inline: Collection[str]) -> bool:
    """Wait for the pass that takes along what waits under an id; False where a host must do it."""
    return database.call(_SETTLE, (timeout, list(inline), wanted)) == ["t"]


def probe(connection: Connection, key: int | None = None) -> int | None:
    """Take a lock nobody else has, or the one of `key`; None where another holds it."""
    key = secrets.randbits(62) if key is None else key
    taken = connection.execute(select(func.pg_try_advisory_xact_lock(literal(key, BigInteger))))
    return key if taken.scalar_one() else None


@cache
def begin_writing() -> Executable:
    """Change nothing, which takes SQLite's write lock all the same."""
    return update(epochs).where(false()).values(epoch=epochs.c.epoch)
