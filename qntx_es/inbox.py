"""Where committed attestations wait for a position: PostgreSQL only.

What a caller's transaction leaves here commits or rolls back with everything else of it, so no
isolation level, savepoint or two-phase commit is special. A pass moves it into the log.
"""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from typing import NamedTuple

from sqlalchemy import (
    Connection,
    Executable,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql

from qntx_es.attestation import Attestation, Payload, milliseconds_of
from qntx_es.statements import BYTES, COLUMNS, UNNEST, bytes_of, values_of
from qntx_es.tables import TransactionId, inbox
from qntx_es.tables import attestations as log

PASS_ROWS_MAX = 10_000
SQL_ROWS = 2_000  # of twelve parameters each: drivers end at 32 767

_INSERT_INBOX = (
    f"INSERT INTO qntx_inbox (whole, {', '.join(COLUMNS)}) "  # noqa: S608
    f"SELECT %b::boolean, {', '.join(COLUMNS)} FROM {UNNEST} "
    "ORDER BY ordinal ON CONFLICT (id) DO NOTHING RETURNING id"
)


class AppendRefused(Payload, context="qntx.append_refused"):
    """What was committed under an id that another attestation had first; the entity is that id.

    The first stands at `position`. The one refused was said in the context `refused_context`, about
    `refused_entity`, and `digest` is the SHA-256 of its bytes.
    """

    reason: str
    position: int
    refused_context: str
    refused_entity: str
    digest: str


def insert_into_inbox(
    connection: Connection, fresh: Sequence[Attestation], *, whole: bool
) -> set[str]:
    """Return the ids of those that are in the inbox now and were not before."""
    if connection.dialect.driver != "psycopg":
        return _insert_portably(connection, fresh, whole=whole)
    arrays = [list(values) for values in zip(*map(values_of, fresh), strict=True)]
    return set(connection.exec_driver_sql(_INSERT_INBOX, (whole, *arrays)).scalars())


def _insert_portably(
    connection: Connection, fresh: Sequence[Attestation], *, whole: bool
) -> set[str]:
    """Insert with the driver of a caller's, which may not know binary arrays."""
    names = ("whole", *COLUMNS)
    rows = [dict(zip(names, (whole, *values_of(one)), strict=True)) for one in fresh]
    dropped: set[str] = set()
    for start in range(0, len(rows), SQL_ROWS):
        put = postgresql.insert(inbox).values(rows[start : start + SQL_ROWS])
        put = put.on_conflict_do_nothing(index_elements=[inbox.c.id])
        dropped |= set(connection.execute(put.returning(inbox.c.id)).scalars())
    return dropped


class Waiting(NamedTuple):
    """Whole transactions in the inbox: all that waits, or as many as one statement should move."""

    txs: str
    contexts: list[str]
    has_twins: bool
    settled: str | None


def waiting(connection: Connection) -> Waiting | None:
    """Return what waits, or None."""
    found = connection.exec_driver_sql(
        "SELECT txs::text, contexts, has_twins, settled FROM qntx_waiting()"
    ).one()
    return Waiting(*found) if found.txs is not None else None


def move(connection: Connection, waits: Waiting, head: int, now: int) -> int:
    """Give what waits the positions behind `head`; return how many."""
    moved = connection.exec_driver_sql(
        "SELECT qntx_move(%b::text::xid8[], %b, %b, %b)", (waits.txs, head, now, waits.settled)
    )
    return int(moved.scalar_one())


def set_aside(connection: Connection, waits: Waiting) -> list[Attestation]:
    """Take out of the inbox whose id the log has by now, and report those that say otherwise.

    Such a twin was in flight where its append could not see it: the first one stands, and the
    later one is neither in the way of a pass nor lost in silence. An append of ours goes as a
    whole, and whoever waits for it is told; of a caller's transaction, which has committed, the
    rest stays.
    """
    twins = connection.execute(_twins(), {"txs": waits.txs}).all()
    refused = [row.tx for row in twins if row.whole and not row.is_same]
    ids = [row.id for row in twins]
    connection.execute(delete(inbox).where(or_(inbox.c.id.in_(ids), inbox.c.tx.in_(refused))))
    return [
        Attestation(
            context=AppendRefused.context,
            entity=row.id,
            actor="qntx@system",
            payload=AppendRefused(
                reason="another attestation with this id was in the log first",
                position=row.position,
                refused_context=row.context,
                refused_entity=row.entity,
                digest=sha256(bytes_of(row)).hexdigest(),
            ),
            caused_by=row.id,
        )
        for row in twins
        if not row.is_same and not row.whole
    ]


def count_waiting(connection: Connection) -> int:
    """Count what is committed and has no position yet."""
    return connection.execute(select(func.count()).select_from(inbox)).scalar_one()


def waiting_since(connection: Connection) -> tuple[int, int | None]:
    """Count as `count_waiting`, and return when the oldest was said, in microseconds since 1970.

    That stands in ids that are made by default. None where no id tells: a derived one has the time
    of its source.
    """
    made = inbox.c.id.regexp_match("^[0-9a-f]{8}-[0-9a-f]{4}-7")
    asked = select(func.count(), func.min(inbox.c.id).filter(made)).select_from(inbox)
    count, oldest = connection.execute(asked).one()
    return count, None if oldest is None else milliseconds_of(oldest) * 1_000


@cache
def waiting_of() -> Executable:
    """Ask for what waits under any of `ids`."""
    ids = bindparam("ids", type_=postgresql.ARRAY(Text))
    said = (inbox.c[name] for name in ("id", *BYTES))
    return select(*said, literal(0).label("position")).where(inbox.c.id == func.any(ids))


@cache
def _twins() -> Executable:
    same = [inbox.c[name].is_not_distinct_from(log.c[name]) for name in BYTES]
    said = (inbox.c[name] for name in ("id", "tx", "whole", *BYTES))
    txs = cast(bindparam("txs", type_=Text), postgresql.ARRAY(TransactionId))
    return (
        select(*said, log.c.position, and_(*same).label("is_same"))
        .join(log, log.c.id == inbox.c.id)
        .where(inbox.c.tx == func.any(txs))
    )
