"""What is sent to the database to append, and what is asked of it before.

Statements are composed once: composing one of this size costs more than running it.
"""

import secrets
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Executable,
    Text,
    bindparam,
    case,
    cast,
    exists,
    false,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from qntx_es.attestation import Attestation, slice_of
from qntx_es.database import CLOCK
from qntx_es.tables import attestations as log
from qntx_es.tables import epochs, inbox

# A process stopped while it holds the lock is cut off by the server, and the next one goes on.
IDLE_SECONDS_MAX = 5
SQL_VARIABLES = 500
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
ARRAYS = ", ".join(f"%b::{'text' if name in TEXTS else 'int'}[]" for name in COLUMNS)
UNNEST = f"unnest({ARRAYS}) WITH ORDINALITY AS said({', '.join(COLUMNS)}, ordinal)"
# Binary arrays, one parameter a column: four times as fast as text ones.
_INSERT_POSTGRESQL = (
    "INSERT INTO qntx_attestations "  # noqa: S608
    f"(position, recorded_at, entity_version, {', '.join(COLUMNS)}) "
    "SELECT %b::bigint + ordinal, %b::bigint, (%b::int[])[ordinal], "
    f"{', '.join(COLUMNS)} FROM {UNNEST}"
)


def insert_into_log(
    connection: Connection,
    fresh: Sequence[Attestation],
    numbers: Sequence[int | None],
    head: int,
    now: int,
) -> None:
    """Insert behind `head`; the database itself refuses what does not continue the log."""
    rows = [values_of(one) for one in fresh]
    if connection.dialect.name == "sqlite":
        placed = [
            (head + n, now, number, *row)
            for n, (number, row) in enumerate(zip(numbers, rows, strict=True), 1)
        ]
        connection.exec_driver_sql(_INSERT_SQLITE, placed)
    else:
        arrays = [list(values) for values in zip(*rows, strict=True)]
        connection.exec_driver_sql(_INSERT_POSTGRESQL, (head, now, numbers, *arrays))


@cache
def last() -> Executable:
    """Ask for the last position and when it was recorded."""
    return select(log.c.position, log.c.recorded_at).order_by(log.c.position.desc()).limit(1)


@cache
def known_of_array() -> Any:  # noqa: ANN401 - a SELECT
    """Ask for what the log holds under any of `ids`: PostgreSQL."""
    ids = bindparam("ids", type_=postgresql.ARRAY(Text))
    return _known().where(log.c.id == func.any(ids))


@cache
def known_of_list() -> Any:  # noqa: ANN401 - a SELECT
    """Ask for what the log holds under any of `ids`: SQLite."""
    return _known().where(log.c.id.in_(bindparam("ids", expanding=True)))


def _known() -> Any:  # noqa: ANN401 - a SELECT
    return select(log.c.id, log.c.position, *(log.c[name] for name in BYTES))


def _until_commit(setting: str, value: Any) -> Any:  # noqa: ANN401 - an SQL expression
    return func.set_config(setting, value, literal(True))  # noqa: FBT003 - SQL's argument


@cache
def lock() -> Executable:
    """Take the lock of the log until the transaction ends, waiting at most `timeout`.

    Whoever gives positions also holds the door, at which those wait who only want to know when he
    is done: they are never in the way of the next one.
    """
    return select(
        _until_commit("lock_timeout", bindparam("timeout")),
        _until_commit("idle_in_transaction_session_timeout", f"{IDLE_SECONDS_MAX}s"),
        func.pg_advisory_xact_lock(func.qntx_lock()),
        func.pg_advisory_xact_lock(func.qntx_door()),
    )


@cache
def try_lock() -> Executable:
    """Take the lock of the log if nobody has it, and tell."""
    return select(
        case(
            (
                func.pg_try_advisory_xact_lock(func.qntx_lock()),
                cast(func.pg_advisory_xact_lock(func.qntx_door()), Text).is_not(None),
            ),
            else_=false(),
        ),
        _until_commit("idle_in_transaction_session_timeout", f"{IDLE_SECONDS_MAX}s"),
    )


_APPEND = f"SELECT qntx_append(%b::text[], {ARRAYS})"
# What it answers instead of the head it found.
DROPPED, OTHERS_FIRST = -1, -2


def append_or_drop(
    connection: Connection, fresh: Sequence[Attestation], inline: Sequence[str]
) -> int:
    """Append behind the head that is returned, or drop into the inbox: `DROPPED`.

    `OTHERS_FIRST`, and nothing is done, where a host must make a pass first: something is to be set
    aside, or is in one of the `inline` contexts.
    """
    arrays = [list(values) for values in zip(*map(values_of, fresh), strict=True)]
    return int(connection.exec_driver_sql(_APPEND, (list(inline), *arrays)).scalar_one())


def pass_if_free(connection: Connection, inline: Sequence[str]) -> bool:
    """Move what waits, or leave it to whoever has the lock; False where a host must do it."""
    asked = connection.exec_driver_sql("SELECT qntx_pass(%b::text[])", (list(inline),))
    return bool(asked.scalar_one())


def known_after_pass(
    connection: Connection, ids: list[str], timeout: str, inline: Sequence[str]
) -> dict[str, Any]:
    """Wait at the door until whoever holds the lock is done; return what the log holds of `ids`.

    Where he took none of them along, and nobody has the lock by then, it is done here.
    """
    asked = "SELECT * FROM qntx_await(%b::text[], %b, %b::text[])"
    return {row.id: row for row in connection.exec_driver_sql(asked, (ids, timeout, list(inline)))}


@cache
def standing() -> Executable:
    """Ask for the last position and its time, the clock, and whether the inbox holds anything."""
    newest = select(log.c.position, log.c.recorded_at).order_by(log.c.position.desc()).limit(1)
    head = newest.subquery("head")
    clock = cast(CLOCK, BigInteger)
    one = select(literal(1).label("one")).subquery("one")
    return select(
        func.coalesce(head.c.position, 0),
        func.coalesce(head.c.recorded_at, 0),
        clock,
        exists(select(inbox.c.number)),
    ).select_from(one.outerjoin(head, literal(True)))  # noqa: FBT003 - SQL's


def probe(connection: Connection, key: int | None = None) -> int | None:
    """Take a lock nobody else has, or the one of `key`; None where another holds it."""
    key = secrets.randbits(62) if key is None else key
    taken = connection.execute(select(func.pg_try_advisory_xact_lock(literal(key, BigInteger))))
    return key if taken.scalar_one() else None


@cache
def begin_writing() -> Executable:
    """Change nothing, which takes SQLite's write lock all the same."""
    return update(epochs).where(false()).values(epoch=epochs.c.epoch)
