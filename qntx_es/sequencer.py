"""Who comes first: every attestation gets its position here, and nowhere else.

A position given at insert and seen at commit loses attestations: a reader passes the hole that a
slower transaction fills later. So positions are given under one lock, in short transactions of our
own, never inside a caller's: head + 1, head + 2, … What is committed without a position waits in
the inbox, and one *pass* moves all of it into the log. A reader that has seen p will never see
anything new at or below p.

SQLite has one writer, so its write transaction is the lock and there is no inbox. Everything that
decides something (a claim, an outcome, a fire) is said with `decide`, which hands over a *turn*:
the lock is held, the inbox is empty, and what is read is exactly the head.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from sqlalchemy import (
    BigInteger,
    Connection,
    Executable,
    Text,
    and_,
    bindparam,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql

from qntx_es import faults
from qntx_es.attestation import Attestation, slice_of
from qntx_es.conditions import Condition
from qntx_es.database import Database
from qntx_es.errors import (
    ConflictingAttestation,
    LogBusy,
    NotYetCommitted,
    PositionPending,
    TooMany,
)
from qntx_es.tables import attestations as log
from qntx_es.tables import inbox

APPEND_MAX = 10_000
PASS_ROWS_MAX = 10_000
# A process stopped while it holds the lock is cut off by the server, and the next one goes on.
IDLE_SECONDS_MAX = 5
SQL_VARIABLES = 500
# "qntx" in the upper half; the lower is the table's oid, so that databases with several schemas
# have several locks.
LOCK_SPACE = 0x716E7478 << 32

SAID = ("id", "context", "entity", "actor", "slice", "depth", "schema_version", "caused_by")
COLUMNS = (*SAID, "correlation_id", "tags", "payload")
# What makes two statements the same.
BYTES = ("context", "actor", "entity", "schema_version", "payload", "tags")
_TEXTS = {"id", "context", "entity", "actor", "caused_by", "correlation_id", "tags", "payload"}


class Receipt:
    """What an append gives back: the id at once, the position once it is known."""

    __slots__ = ("_position", "id")

    def __init__(self, attestation_id: str, position: int | None = None) -> None:
        self.id = attestation_id
        self._position = position

    @property
    def position(self) -> int:
        """The position in the log. Raises `NotYetCommitted` before the commit."""
        if self._position is None:
            raise NotYetCommitted
        return self._position

    def resolve(self, position: int) -> None:
        """Set the position, once the transaction that gave it has committed."""
        self._position = position

    def __repr__(self) -> str:
        return f"<Receipt {self.id} at {self._position or 'no position yet'}>"


class Head(NamedTuple):
    """The last position, and the instant (microseconds) it was recorded at."""

    position: int
    recorded_at: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A moment at the head of the log, under the lock: what `decide` hands to its function."""

    connection: Connection
    position: int
    now: int

    def read(self, statement: Executable) -> Sequence[Any]:
        """Return the rows of a statement, exactly as of the head."""
        return self.connection.execute(statement).all()


class _TwinWaits(Exception):
    """An attestation with this id is in the inbox, of another append."""


class InlineFold(Protocol):
    """What projects attestations in the very transaction that gives them their positions."""

    contexts: frozenset[str]

    def __call__(self, connection: Connection, head: int) -> None:
        """Project up to `head`, or leave it to a runner; never raise for a failing handler."""


class Sequencer:
    """Gives positions, in one database, on this host's behalf."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.inline: InlineFold | None = None

    def append(
        self, attestations: Sequence[Attestation], condition: Condition | None = None
    ) -> list[Receipt]:
        """Append all or none, in a transaction of our own, and return their receipts in order.

        An id the log holds with the same bytes gives the first receipt; with others it raises
        `ConflictingAttestation`. Raises `TooMany`, `LogBusy`, `PositionPending`, and what a
        condition raises.
        """
        if len(attestations) > APPEND_MAX:
            raise TooMany
        if not attestations:
            return []
        if condition is not None:
            return self._append_if(attestations, condition)
        if self._database.is_sqlite:
            return self.decide(lambda _: attestations)
        receipts = self._append_if_free(attestations)
        if receipts is None:
            receipts = self._append_behind_others(attestations)
        self._look_again()
        return receipts

    def decide(self, choose: Callable[[Turn], Iterable[Attestation]]) -> list[Receipt]:
        """Append what `choose` returns, decided at the head while nobody else can append.

        An exception of `choose` undoes the turn and is the caller's. Raises as `append` does.
        """
        with self._locked() as (connection, head, now):
            chosen = list(choose(Turn(connection, head.position, now)))
            if len(chosen) > APPEND_MAX:
                raise TooMany
            receipts = self._sequence(connection, chosen, head, now)
            faults.point("append.before_commit")
        faults.point("append.after_commit")
        return receipts

    def _append_if(
        self, attestations: Sequence[Attestation], condition: Condition
    ) -> list[Receipt]:
        ids = [attestation.id for attestation in attestations]
        with self._database.read() as connection:
            seen = self.look(connection)[0].position
            known = self._known(connection, ids)
            if not _unknown(attestations, known):
                # Said before: whoever lost the answer asks for it again.
                return [Receipt(one, known[one].position) for one in ids]
            if seen >= condition.after:
                condition.check(connection, condition.after, seen)
        with self._locked() as (connection, head, now):
            condition.check(connection, seen, head.position)
            condition.check_versions(connection)
            receipts = self._sequence(connection, attestations, head, now, condition.versions)
            faults.point("append.before_commit")
        faults.point("append.after_commit")
        return receipts

    @contextmanager
    def held(self) -> Iterator[Connection]:
        """Hold the lock for a block that moves no position, such as an inline projector's swap."""
        with self._locked() as (connection, _, _now):
            yield connection

    def drop(
        self, connection: Connection, attestations: Sequence[Attestation], *, whole: bool = False
    ) -> None:
        """Leave attestations in a transaction that is not ours to commit.

        On SQLite they are in the log with its commit, on PostgreSQL with the pass that follows.
        What is dropped as a `whole` enters the log as a whole, or not at all.
        """
        if not attestations:
            return
        if self._database.is_sqlite:
            head, now = self.look(connection)
            self._sequence(connection, attestations, head, now)
            return
        ids = [attestation.id for attestation in attestations]
        fresh = _unknown(attestations, self._known(connection, ids))
        while fresh:
            # A twin in flight is waited for, and then compared with: it is in the inbox, by now in
            # the log, or was set aside with the rest of its append, and its place is free again.
            dropped = _insert_into_inbox(connection, fresh, whole=whole)
            left = [one for one in fresh if one.id not in dropped]
            met = {row.id: row for row in connection.execute(_waiting(), {"ids": ids})}
            if whole and any(one.id in met for one in left):
                raise _TwinWaits
            fresh = _unknown(left, met | self._known(connection, ids))

    def run_pass(self) -> None:
        """Give positions to all that waits in the inbox; nothing to do on SQLite."""
        if self._database.is_sqlite:
            return
        with self._locked():
            pass

    def catch_up_inline(self) -> None:
        """Let the inline projectors follow the log, where a rebuild or a failure held them up."""
        with self._locked() as (connection, head, _):
            if self.inline is not None:
                self.inline(connection, head.position)

    def waiting(self, connection: Connection) -> int:
        """Count what is committed and has no position yet."""
        if self._database.is_sqlite:
            return 0
        return connection.execute(select(func.count()).select_from(inbox)).scalar_one()

    def _append_if_free(self, attestations: Sequence[Attestation]) -> list[Receipt] | None:
        with self._database.write() as connection:
            if not connection.execute(_try_lock()).scalar_one():
                return None
            faults.point("pass.after_lock")
            head, now = self._empty_inbox(connection)
            receipts = self._sequence(connection, attestations, head, now)
            faults.point("append.before_commit")
        faults.point("append.after_commit")
        return receipts

    def _append_behind_others(self, attestations: Sequence[Attestation]) -> list[Receipt]:
        """Join the pass after the one that runs: group commit, across threads and hosts."""
        ids = [attestation.id for attestation in attestations]
        self._drop_whole(attestations)
        try:
            self.run_pass()
        except LogBusy as error:
            raise PositionPending from error
        with self._database.read() as connection:
            known = self._known(connection, ids)
        # A twin was in flight, and the pass has set the whole of this append aside.
        _unknown(attestations, known)
        return [Receipt(one, known[one].position) for one in ids]

    def _drop_whole(self, attestations: Sequence[Attestation]) -> None:
        """Drop them, once no twin of another append waits: that one may yet be refused."""
        while True:
            try:
                with self._database.write() as connection:
                    self.drop(connection, attestations, whole=True)
            except _TwinWaits:
                self.run_pass()
            else:
                return

    def _look_again(self) -> None:
        # Who found the lock taken has committed to the inbox and left: look after letting go.
        # Where another has the lock by now, that one looks again in its turn.
        while not self._database.is_sqlite:
            with self._database.read() as connection:
                if not self._is_waiting(connection):
                    return
            with self._database.write() as connection:
                if not connection.execute(_try_lock()).scalar_one():
                    return
                self._empty_inbox(connection)

    @staticmethod
    def _is_waiting(connection: Connection) -> bool:
        return bool(connection.execute(_any_waiting()).scalar_one())

    @contextmanager
    def _locked(self) -> Iterator[tuple[Connection, Head, int]]:
        with self._database.write() as connection:
            if self._database.is_sqlite:
                head, now = self.look(connection)
            else:
                # Its own statement: together with the head, two passes would share a position.
                timeout = f"{round(self._database.timeout_seconds * 1000)}ms"
                connection.execute(_lock(), {"timeout": timeout})
                faults.point("pass.after_lock")
                head, now = self._empty_inbox(connection)
            yield connection, head, now
            faults.point("pass.before_commit")
        faults.point("pass.after_commit")

    def look(self, connection: Connection) -> tuple[Head, int]:
        """Return the head, and now: the database's clock, or the head's time if that is later."""
        row = connection.execute(_last()).one_or_none()
        head = Head(0, 0) if row is None else Head(row[0], row[1])
        return head, max(self._database.now(connection), head.recorded_at)

    def _empty_inbox(self, connection: Connection) -> tuple[Head, int]:
        head, now = self.look(connection)
        refused: list[Attestation] = []
        while self._is_waiting(connection):
            refused += _set_aside(connection)
            values = {"head": head.position, "now": now}
            contexts = connection.execute(_move(), values).scalars().all()
            head = Head(head.position + len(contexts), now)
            self._project_inline(connection, set(contexts), head.position)
        if refused:
            self._sequence(connection, refused, head, now)
            head = Head(head.position + len(refused), now)
        return head, now

    def _sequence(
        self,
        connection: Connection,
        attestations: Sequence[Attestation],
        head: Head,
        now: int,
        versions: Mapping[str, int] | None = None,
    ) -> list[Receipt]:
        known = self._known(connection, [attestation.id for attestation in attestations])
        fresh = _unknown(attestations, known)
        if fresh:
            numbers = _numbered(fresh, versions or {})
            _insert_into_log(connection, fresh, numbers, head.position, now)
            last = head.position + len(fresh)
            self._project_inline(connection, {one.context for one in fresh}, last)
        positions = {one.id: head.position + n for n, one in enumerate(fresh, 1)}
        return [
            Receipt(one.id, positions.get(one.id) or known[one.id].position) for one in attestations
        ]

    def _project_inline(self, connection: Connection, contexts: set[str], head: int) -> None:
        if self.inline is not None and not contexts.isdisjoint(self.inline.contexts):
            faults.point("pass.before_inline")
            self.inline(connection, head)

    def _known(self, connection: Connection, ids: list[str]) -> dict[str, Any]:
        if not self._database.is_sqlite:
            rows = connection.execute(_known_of_array(), {"ids": ids})
            return {row.id: row for row in rows}
        found: dict[str, Any] = {}
        for start in range(0, len(ids), SQL_VARIABLES):
            some = ids[start : start + SQL_VARIABLES]
            for row in connection.execute(_known_of_list(), {"ids": some}):
                found[row.id] = row
        return found


def _unknown(attestations: Sequence[Attestation], known: dict[str, Any]) -> list[Attestation]:
    fresh: dict[str, Attestation] = {}
    for one in attestations:
        before = known.get(one.id)
        if before is not None:
            if one.bytes != _bytes(before):
                raise ConflictingAttestation(one.id, before.position)
        elif (twin := fresh.setdefault(one.id, one)) is not one and twin.bytes != one.bytes:
            raise ConflictingAttestation(one.id)
    return list(fresh.values())


def _set_aside(connection: Connection) -> list[Attestation]:
    """Take out of the inbox whose id the log has by now, and report those that say otherwise.

    Such a twin was in flight where its append could not see it: the first one stands, and the
    later one is neither in the way of a pass nor lost in silence. An append of ours goes as a
    whole, and whoever waits for it is told; of a caller's transaction, which has committed, the
    rest stays.
    """
    twins = connection.execute(_twins()).all()
    if not twins:
        return []
    refused = [row.tx for row in twins if row.whole and not row.is_same]
    ids = [row.id for row in twins]
    connection.execute(delete(inbox).where(or_(inbox.c.id.in_(ids), inbox.c.tx.in_(refused))))
    return [
        Attestation(
            context="qntx.append_refused",
            entity=row.id,
            actor="qntx@system",
            payload={
                "reason": "another attestation with this id was in the log first",
                "position": row.position,
                "context": row.context,
                "entity": row.entity,
                "digest": sha256(_bytes(row)).hexdigest(),
            },
            caused_by=row.id,
        )
        for row in twins
        if not row.is_same and not row.whole
    ]


def _bytes(row: Any) -> bytes:  # noqa: ANN401 - a row of the log
    parts = (row.context, row.actor, row.entity, str(row.schema_version), row.payload)
    return "\x00".join((*parts, row.tags or "")).encode()


def _values(one: Attestation) -> tuple[object, ...]:
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
_ARRAYS = ", ".join(f"%b::{'text' if name in _TEXTS else 'int'}[]" for name in COLUMNS)
_UNNEST = f"unnest({_ARRAYS}) WITH ORDINALITY AS said({', '.join(COLUMNS)}, ordinal)"
# Binary arrays, one parameter a column: four times as fast as text ones.
_INSERT_POSTGRESQL = (
    "INSERT INTO qntx_attestations "  # noqa: S608
    f"(position, recorded_at, entity_version, {', '.join(COLUMNS)}) "
    "SELECT %b::bigint + ordinal, %b::bigint, (%b::int[])[ordinal], "
    f"{', '.join(COLUMNS)} FROM {_UNNEST}"
)
_INSERT_INBOX = (
    f"INSERT INTO qntx_inbox (whole, {', '.join(COLUMNS)}) "  # noqa: S608
    f"SELECT %b::boolean, {', '.join(COLUMNS)} FROM {_UNNEST} "
    "ORDER BY ordinal ON CONFLICT (id) DO NOTHING RETURNING id"
)


def _numbered(fresh: Sequence[Attestation], versions: Mapping[str, int]) -> list[int | None]:
    """Return the numbers of those whose entity has an expected version, from the next one on."""
    if not versions:
        return [None] * len(fresh)
    newest = dict(versions)
    numbers: list[int | None] = []
    for one in fresh:
        if one.entity in newest:
            newest[one.entity] += 1
        numbers.append(newest.get(one.entity))
    return numbers


def _insert_into_log(
    connection: Connection,
    fresh: Sequence[Attestation],
    numbers: Sequence[int | None],
    head: int,
    now: int,
) -> None:
    rows = [_values(one) for one in fresh]
    if connection.dialect.name == "sqlite":
        placed = [
            (head + n, now, number, *row)
            for n, (number, row) in enumerate(zip(numbers, rows, strict=True), 1)
        ]
        connection.exec_driver_sql(_INSERT_SQLITE, placed)
    else:
        arrays = [list(values) for values in zip(*rows, strict=True)]
        connection.exec_driver_sql(_INSERT_POSTGRESQL, (head, now, numbers, *arrays))


def _insert_into_inbox(
    connection: Connection, fresh: Sequence[Attestation], *, whole: bool
) -> set[str]:
    """Return the ids of those that are in the inbox now and were not before."""
    arrays = [list(values) for values in zip(*map(_values, fresh), strict=True)]
    return set(connection.exec_driver_sql(_INSERT_INBOX, (whole, *arrays)).scalars())


# Built once: composing a statement of this size costs more than running it.


@cache
def _last() -> Executable:
    return select(log.c.position, log.c.recorded_at).order_by(log.c.position.desc()).limit(1)


@cache
def _any_waiting() -> Executable:
    return select(exists(select(inbox.c.number)))


@cache
def _twins() -> Executable:
    same = [inbox.c[name].is_not_distinct_from(log.c[name]) for name in BYTES]
    said = (inbox.c[name] for name in ("id", "tx", "whole", *BYTES))
    return select(*said, log.c.position, and_(*same).label("is_same")).join(
        log, log.c.id == inbox.c.id
    )


@cache
def _waiting() -> Executable:
    ids = bindparam("ids", type_=postgresql.ARRAY(Text))
    said = (inbox.c[name] for name in ("id", *BYTES))
    return select(*said, literal(0).label("position")).where(inbox.c.id == func.any(ids))


@cache
def _known_of_array() -> Any:  # noqa: ANN401 - a SELECT
    ids = bindparam("ids", type_=postgresql.ARRAY(Text))
    return _known().where(log.c.id == func.any(ids))


@cache
def _known_of_list() -> Any:  # noqa: ANN401 - a SELECT
    return _known().where(log.c.id.in_(bindparam("ids", expanding=True)))


def _known() -> Any:  # noqa: ANN401 - a SELECT
    return select(log.c.id, log.c.position, *(log.c[name] for name in BYTES))


def _key() -> Any:  # noqa: ANN401 - an SQL expression
    oid = cast(cast(literal(log.name), postgresql.REGCLASS), postgresql.OID)
    return literal(LOCK_SPACE, BigInteger) + cast(oid, BigInteger)


def _until_commit(setting: str, value: Any) -> Any:  # noqa: ANN401 - an SQL expression
    return func.set_config(setting, value, literal(True))  # noqa: FBT003 - SQL's argument


@cache
def _lock() -> Executable:
    return select(
        _until_commit("lock_timeout", bindparam("timeout")),
        _until_commit("idle_in_transaction_session_timeout", f"{IDLE_SECONDS_MAX}s"),
        func.pg_advisory_xact_lock(_key()),
    )


@cache
def _try_lock() -> Executable:
    return select(
        func.pg_try_advisory_xact_lock(_key()),
        _until_commit("idle_in_transaction_session_timeout", f"{IDLE_SECONDS_MAX}s"),
    )


@cache
def _move() -> Any:  # noqa: ANN401 - an INSERT that returns contexts
    """Move inbox → log: one statement, so exactly once.

    Whole transactions, ordered by each one's *last* number: by number alone they interleave, by
    their first an effect precedes its cause, since who has read a commit draws later numbers.
    It ends before a transaction with an id that the log has by now: that one is set aside first.
    """
    twin = exists(select(log.c.id).where(log.c.id == inbox.c.id))
    waiting = (
        select(
            inbox.c.tx,
            func.max(inbox.c.number).label("last"),
            func.count().label("size"),
            func.bool_or(twin).label("has_twin"),
        )
        .group_by(inbox.c.tx)
        .cte("waiting")
    )
    size, last = waiting.c.size, waiting.c.last
    counted = select(
        waiting.c.tx,
        last,
        (func.sum(size).over(order_by=last) - size).label("before"),
        func.bool_or(waiting.c.has_twin).over(order_by=last).label("is_behind_twin"),
    ).cte("counted")
    moved = (
        delete(inbox)
        .where(inbox.c.tx == counted.c.tx, counted.c.before < PASS_ROWS_MAX)
        .where(~counted.c.is_behind_twin)
        .returning(counted.c.last, inbox.c.number, *(inbox.c[name] for name in COLUMNS))
        .cte("moved")
    )
    ordinal = func.row_number().over(order_by=(moved.c.last, moved.c.number))
    told = select(
        (bindparam("head", type_=BigInteger) + ordinal).label("position"),
        bindparam("now", type_=BigInteger).label("recorded_at"),
        *(moved.c[name] for name in COLUMNS),
    )
    names = ["position", "recorded_at", *COLUMNS]
    return insert(log).from_select(names, told).returning(column("context"))
