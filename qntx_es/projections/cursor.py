"""How far a projector has come, and the one statement that moves it.

A cursor lives beside the rows it speaks for and moves in the transaction that writes them, so rows
and cursor cannot tell different stories. `advance` compares before it sets: a runner that another
one overtook finds another position or token here, and everything it wrote in this transaction goes
with it. The fence is on the cursor and not in the runner, because a runner that has stopped cannot
check anything.

A domain has one cursor, or, where its entities are independent and it was cut, one for each range
of slices. What holds of the domain (its version, generation, tables, a pause) is the same in all.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal,
    select,
    update,
)
from sqlalchemy import cast as as_type
from sqlalchemy.dialects import postgresql, sqlite

from qntx_es.attestation import instant, microseconds
from qntx_es.database import CLOCK, Database
from qntx_es.errors import CursorWouldRegress, LeaseLost, LogRegression
from qntx_es.projections.slices import ALL, Slices
from qntx_es.tables import attestations, cursors, leases

# What a cursor must still be for whoever moves it.
COMPARED = ("domain", "first_slice", "last_slice", "position", "token")


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
    domain. Derive handlers speak of what lies behind `derives_from`. Where `slices` are not all,
    others of the domain's cursors speak of the other entities. `fingerprint` is of the code that
    made the rows, or found by a verify that it makes the same.
    """

    domain: str
    position: int
    token: int
    version: int
    generation: int
    derives_from: int
    tables: tuple[str, ...]
    pause: Pause | None = None
    slices: Slices = ALL
    # A proof moves nothing: whoever projects goes on, and writes back no older one.
    fingerprint: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, and for how many seconds unless it is renewed."""

    name: str
    seconds_left: float

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Look:
    """Head and cursor in one statement, so that lag is never made of two moments."""

    head: int
    cursor: Cursor | None
    holder: Holder | None


def lease_name(domain: str, slices: Slices = ALL) -> str:
    """Return the name under which a domain's projector is leased."""
    return f"projector:{domain}" if slices.is_all else f"projector:{domain}:{slices}"


def look(database: Database, connection: Connection, domain: str, slices: Slices = ALL) -> Look:
    """Read the head, a cursor of the domain, and who holds its lease, all of one moment."""
    asked = {
        "of": domain,
        "first": slices.first,
        "last": slices.last,
        "lease": lease_name(domain, slices),
    }
    if database.is_sqlite:
        asked["now"] = database.now(connection)
    row = connection.execute(_LOOK_ON_SQLITE if database.is_sqlite else _LOOK, asked).one()
    holder = None
    if row.holder is not None:
        holder = Holder(row.holder, (row.expires_at - int(row.now)) / 1_000_000)
    return Look(row.head, None if row.domain is None else _cursor_of(row), holder)


def cursors_of(connection: Connection, domain: str) -> list[Cursor]:
    """Return the cursors of a domain, all of one moment, in the order of their slices."""
    asked = select(cursors).where(cursors.c.domain == domain).order_by(cursors.c.first_slice)
    return [_cursor_of(row) for row in connection.execute(asked)]


def cursors_held(connection: Connection, domain: str) -> list[Cursor]:
    """Return the cursors of a domain, and keep them where they are until this transaction ends."""
    # On SQLite whoever writes is alone anyway.
    asked = select(cursors).where(cursors.c.domain == domain).order_by(cursors.c.first_slice)
    return [_cursor_of(row) for row in connection.execute(asked.with_for_update())]


def refuse_regression(connection: Connection) -> None:
    """Raise `LogRegression` where a cursor is beyond the end of the log, all of one moment.

    Before anything is appended: a log that has grown past the cursor again looks like its own.
    """
    head = select(func.coalesce(func.max(attestations.c.position), 0)).scalar_subquery()
    furthest = func.coalesce(func.max(cursors.c.position), 0)
    refuse_beyond(*connection.execute(select(furthest, head)).one())


def refuse_beyond(position: int, head: int) -> None:
    """Raise `LogRegression` where rows hold what the log does not."""
    if position > head:
        raise LogRegression(
            position,
            head,
            "Restore the log, the read models and `qntx_cursors` from one and the same backup",
        )


def lease_of_row() -> ColumnElement[str]:
    """Return the name of the lease of a row of the cursors, as `lease_name` does."""
    named = literal("projector:").op("||")(cursors.c.domain)
    first, last = (as_type(cursors.c[name], Text) for name in ("first_slice", "last_slice"))
    ranged = named.op("||")(":").op("||")(first).op("||")("-").op("||")(last)
    is_all = and_(cursors.c.first_slice == ALL.first, cursors.c.last_slice == ALL.last)
    return case((is_all, named), else_=ranged)


def _cursor_of(row: Any) -> Cursor:  # noqa: ANN401 - a row of the cursors
    return Cursor(
        domain=row.domain,
        position=row.position,
        token=row.token,
        version=row.version,
        generation=row.generation,
        derives_from=row.derives_from,
        tables=tuple(json.loads(row.tables)),
        pause=pause_of(row),
        slices=Slices(row.first_slice, row.last_slice),
        fingerprint=row.fingerprint,
    )


def pause_of(row: Any) -> Pause | None:  # noqa: ANN401 - a row of the cursors
    """Return the pause that a cursor's row tells of."""
    if row.paused_by is None:
        return None
    return Pause(row.paused_by, instant(row.paused_at), row.pause_reason)


def declare(connection: Connection, cursor: Cursor) -> None:
    """Make the cursor of a domain seen for the first time; leave one that is there as it is."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    made = dialect.insert(cursors).values(_all_values(cursor))
    connection.execute(made.on_conflict_do_nothing())


def recut(connection: Connection, before: Iterable[Cursor], after: Iterable[Cursor]) -> None:
    """Put other cursors in the place of these, or raise so that all of it is undone."""
    for cursor in before:
        gone = connection.execute(delete(cursors).where(*_is(cursor)))
        if gone.rowcount != 1:
            raise LeaseLost
    for cursor in after:
        connection.execute(cursors.insert().values(_all_values(cursor)))


def advance(cursor: Cursor, to: int, connection: Connection) -> Cursor:
    """Move the cursor in the transaction of its batch, or raise so that the batch is undone."""
    if to < cursor.position:
        raise CursorWouldRegress(f"cursor of `{cursor.domain}`: {cursor.position} to {to}")
    was = {
        "was_domain": cursor.domain,
        "was_first_slice": cursor.slices.first,
        "was_last_slice": cursor.slices.last,
        "was_position": cursor.position,
        "was_token": cursor.token,
    }
    moved = connection.execute(_MOVE, was | {"to": to})
    if moved.rowcount != 1:
        raise LeaseLost
    return replace(cursor, position=to)


def in_words(cursor: Cursor, to: int) -> tuple[str, list[str]]:
    """Return what `advance` runs as a part of a larger statement, $1 to $6 its parameters."""
    sql = (
        f"UPDATE {cursors.name} SET position = $1::bigint WHERE domain = $2::text"  # noqa: S608 - our own table
        " AND first_slice = $3::integer AND last_slice = $4::integer"
        " AND position = $5::bigint AND token = $6::bigint"
    )
    slices = cursor.slices
    was = (to, cursor.domain, slices.first, slices.last, cursor.position, cursor.token)
    return sql, list(map(str, was))


def swap(cursor: Cursor, to: Cursor, connection: Connection) -> Cursor:
    """Hand the cursor to another generation at the same position, under a new token."""
    proved = {"fingerprint": to.fingerprint}
    return _change(cursor, replace(to, token=cursor.token + 1), connection, **proved)


def prove(connection: Connection, cursor: Cursor, fingerprint: str | None) -> None:
    """Say which code makes the rows of this generation, of all the domain's ranges."""
    same = (cursors.c.domain == cursor.domain, cursors.c.generation == cursor.generation)
    connection.execute(update(cursors).where(*same).values(fingerprint=fingerprint))


def fence(cursor: Cursor, connection: Connection, *, pause: Pause | None) -> Cursor:
    """Pause the cursor, or let it go on, and undo the batch that is in hand anywhere.

    Whoever looks next finds another token, and reads anew what was decided meanwhile.
    """
    return _change(cursor, replace(cursor, token=cursor.token + 1, pause=pause), connection)


def raise_token(connection: Connection, domain: str, slices: Slices) -> None:
    """Undo the batch that is in hand anywhere: what a new holder does before its first."""
    ours = (cursors.c.domain == domain, cursors.c.first_slice == slices.first)
    connection.execute(update(cursors).where(*ours).values(token=cursors.c.token + 1))


def _change(cursor: Cursor, to: Cursor, connection: Connection, **beside: str | None) -> Cursor:
    before, after = _values(cursor), _values(to)
    compared = {f"was_{name}": before[name] for name in COMPARED}
    put = {f"to_{name}": value for name, value in after.items()}
    change = _CHANGE.values(beside) if beside else _CHANGE
    moved = connection.execute(change, compared | put)
    if moved.rowcount != 1:
        raise LeaseLost
    return to


def _is(cursor: Cursor) -> tuple[ColumnElement[bool], ...]:
    values = _values(cursor)
    return tuple(cursors.c[name] == values[name] for name in COMPARED)


def _all_values(cursor: Cursor) -> dict[str, Any]:
    return _values(cursor) | {"fingerprint": cursor.fingerprint}


def _values(cursor: Cursor) -> dict[str, Any]:
    return {
        "domain": cursor.domain,
        "first_slice": cursor.slices.first,
        "last_slice": cursor.slices.last,
        "position": cursor.position,
        "token": cursor.token,
        "version": cursor.version,
        "generation": cursor.generation,
        "derives_from": cursor.derives_from,
        "tables": json.dumps(list(cursor.tables)),
        "paused_by": cursor.pause and cursor.pause.by,
        "paused_at": cursor.pause and microseconds(cursor.pause.at),
        "pause_reason": cursor.pause and cursor.pause.reason,
    }


def _look(now: ColumnElement[Any]) -> Select[Any]:
    """Ask as of `now`: on PostgreSQL its own clock, which is not worth a question of its own."""
    head = select(func.coalesce(func.max(attestations.c.position), 0)).scalar_subquery()
    one = select(now.label("now")).subquery()
    held = and_(leases.c.name == bindparam("lease"), leases.c.expires_at > one.c.now)
    ours = and_(
        cursors.c.domain == bindparam("of"),
        cursors.c.first_slice == bindparam("first"),
        cursors.c.last_slice == bindparam("last"),
    )
    return (
        select(head.label("head"), one.c.now, leases.c.holder, leases.c.expires_at, *cursors.c)
        .select_from(one)
        .outerjoin(cursors, ours)
        .outerjoin(leases, held)
    )


def _change_from() -> Update:
    put = [one for one in cursors.c if one is not cursors.c.fingerprint]
    to = {one.name: bindparam(f"to_{one.name}", type_=one.type) for one in put}
    return update(cursors).where(*_WAS).values(to)


# Made once: for a single attestation, making them took longer than all else that is not waiting.
_LOOK, _LOOK_ON_SQLITE = _look(CLOCK), _look(bindparam("now", type_=BigInteger))
_WAS = [cursors.c[name] == bindparam(f"was_{name}") for name in COMPARED]
_MOVE = update(cursors).where(*_WAS).values(position=bindparam("to"))
_CHANGE = _change_from()
