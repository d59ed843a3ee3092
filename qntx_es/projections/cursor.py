"""How far a projector has come, and the one statement that moves it.

A cursor lives beside the rows it speaks for and moves in the transaction that writes them, so rows
and cursor cannot tell different stories. `advance` compares before it sets: a runner that another
one overtook finds another position or token here, and everything it wrote in this transaction goes
with it. The fence is on the cursor and not in the runner, because a runner that has stopped cannot
check anything.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, and_, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from qntx_es.attestation import instant, microseconds
from qntx_es.errors import CursorWouldRegress, LeaseLost
from qntx_es.projections.lease import lease_name
from qntx_es.tables import attestations, cursors, leases


@dataclass(frozen=True, slots=True)
class Pause:
    """Who told a projector to stand still, when, and why."""

    by: str
    at: datetime
    reason: str | None

    def __str__(self) -> str:
        return f"paused by {self.by}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Cursor:
    """The rows of `domain` hold every attestation up to `position`, written under `token`.

    The rows are those of a `generation` (one life of the tables) built by a `version` of the
    domain. Derive handlers speak of what lies behind `derives_from`.
    """

    domain: str
    position: int
    token: int
    version: int
    generation: int
    derives_from: int
    tables: tuple[str, ...]
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """Head and cursor in one statement, so that lag is never made of two moments."""

    head: int
    cursor: Cursor | None
    holder: str | None


def look(connection: Connection, domain: str, now: int) -> Look:
    """Read the head, the domain's cursor, and who holds its lease, all of one moment."""
    head = select(func.coalesce(func.max(attestations.c.position), 0)).scalar_subquery()
    held = and_(leases.c.name == lease_name(domain), leases.c.expires_at > now)
    one = select(literal(1, BigInteger).label("one")).subquery()
    row = connection.execute(
        select(head.label("head"), leases.c.holder, *cursors.c)
        .select_from(one)
        .outerjoin(cursors, cursors.c.domain == domain)
        .outerjoin(leases, held)
    ).one()
    if row.domain is None:
        return Look(row.head, None, row.holder)
    cursor = Cursor(
        domain=row.domain,
        position=row.position,
        token=row.token,
        version=row.version,
        generation=row.generation,
        derives_from=row.derives_from,
        tables=tuple(json.loads(row.tables)),
        pause=pause_of(row),
    )
    return Look(row.head, cursor, row.holder)


def pause_of(row: Any) -> Pause | None:  # noqa: ANN401 - a row of the cursors
    """Return the pause that a cursor's row tells of."""
    if row.paused_by is None:
        return None
    return Pause(row.paused_by, instant(row.paused_at), row.pause_reason)


def look_and_hold(connection: Connection, domain: str, now: int) -> Look:
    """Look, and keep the cursor where it is until this transaction ends."""
    # On SQLite whoever writes is alone anyway.
    connection.execute(select(cursors.c.domain).where(cursors.c.domain == domain).with_for_update())
    return look(connection, domain, now)


def declare(connection: Connection, cursor: Cursor) -> None:
    """Make the cursor of a domain seen for the first time; leave one that is there as it is."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    connection.execute(
        dialect.insert(cursors)
        .values(
            domain=cursor.domain,
            position=cursor.position,
            token=cursor.token,
            version=cursor.version,
            generation=cursor.generation,
            derives_from=cursor.derives_from,
            tables=_written(cursor.tables),
        )
        .on_conflict_do_nothing()
    )


def advance(cursor: Cursor, to: int, connection: Connection) -> Cursor:
    """Move the cursor in the transaction of its batch, or raise so that the batch is undone."""
    if to < cursor.position:
        raise CursorWouldRegress(f"cursor of `{cursor.domain}`: {cursor.position} to {to}")
    return _change(cursor, replace(cursor, position=to), connection)


def swap(cursor: Cursor, to: Cursor, connection: Connection) -> Cursor:
    """Hand the cursor to another generation at the same position, under a new token."""
    return _change(cursor, replace(to, token=cursor.token + 1), connection)


def fence(cursor: Cursor, connection: Connection, *, pause: Pause | None) -> Cursor:
    """Pause the cursor, or let it go on, and undo the batch that is in hand anywhere.

    Whoever looks next finds another token, and reads anew what was decided meanwhile.
    """
    return _change(cursor, replace(cursor, token=cursor.token + 1, pause=pause), connection)


def _change(cursor: Cursor, to: Cursor, connection: Connection) -> Cursor:
    moved = connection.execute(
        update(cursors)
        .where(cursors.c.domain == cursor.domain)
        .where(cursors.c.position == cursor.position, cursors.c.token == cursor.token)
        .values(
            position=to.position,
            token=to.token,
            version=to.version,
            generation=to.generation,
            tables=_written(to.tables),
            paused_by=to.pause and to.pause.by,
            paused_at=to.pause and microseconds(to.pause.at),
            pause_reason=to.pause and to.pause.reason,
        )
    )
    if moved.rowcount != 1:
        raise LeaseLost
    return to


def _written(tables: Iterable[str]) -> str:
    return json.dumps(list(tables))
