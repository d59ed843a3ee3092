"""The ordered attestations: append, read, head. There is no update and no delete.

Reading goes forward in pieces, each in a transaction of its own: a reader of a long log holds no
snapshot, and what it has seen stays seen, since positions never change behind it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, overload

from sqlalchemy import Connection, Select, func, select

from qntx_es.attestation import (
    RECORDED_COLUMNS,
    Attestation,
    Json,
    Recorded,
    decode_mapping,
    microseconds,
)
from qntx_es.ax import Ax, conditions
from qntx_es.conditions import condition_of
from qntx_es.database import Database
from qntx_es.digests import EMPTY, DigestChain, LogDigest
from qntx_es.errors import ConditionNeedsOwnTransaction, LogRegression
from qntx_es.sequencer import Receipt, Sequencer, Turn
from qntx_es.sessions import AnySession, after_commit, connection_of
from qntx_es.tables import attestations, epochs, tags

READ_ROWS = 1_000
COLUMNS = tuple(attestations.c[name] for name in RECORDED_COLUMNS)


class Log:
    """The log of one database."""

    def __init__(self, database: Database, sequencer: Sequencer) -> None:
        self._database = database
        self._sequencer = sequencer

    @overload
    def append(
        self,
        attestations: Attestation,
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
        session: AnySession | None = None,
    ) -> Receipt: ...
    @overload
    def append(
        self,
        attestations: Iterable[Attestation],
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
        session: AnySession | None = None,
    ) -> list[Receipt]: ...
    def append(
        self,
        attestations: Attestation | Iterable[Attestation],
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
        session: AnySession | None = None,
    ) -> Receipt | list[Receipt]:
        """Append one or many, all or none, and return a receipt for each.

        Nothing is appended where anything that `unless` asks for lies behind `after` (by default
        anywhere), or where an entity's largest `entity_version` is not the expected one (0: it
        has none). Those said with an `expected_version` are numbered on from it.

        With a `session` (a Session or Connection on this database) they are appended in its
        transaction: in the log once that has committed, and never if it is rolled back. It is not
        committed, rolled back, flushed or retried here. No condition can be kept there
        (`ConditionNeedsOwnTransaction`). Raises `OtherDatabase`.

        Raises `ConflictingAttestation`, `AppendConditionFailed`, `LogRegression` (the log ends
        before `after`), `InvalidCondition`, `TooMany` (over 10 000), `TooLarge` (over 16 MiB),
        `LogBusy`, and `PositionPending` when all is committed but another process keeps the order
        waiting.
        """
        is_one = isinstance(attestations, Attestation)
        said = [attestations] if isinstance(attestations, Attestation) else list(attestations)
        condition = condition_of(said, unless, after, expected_version)
        if session is None:
            receipts = self._sequencer.append(said, condition)
        elif condition is not None:
            raise ConditionNeedsOwnTransaction
        else:
            receipts = self._sequencer.append_within(connection_of(session), said)
            after_commit(session, self._sequencer.look_again)
        return receipts[0] if is_one else receipts

    def decide(self, choose: Callable[[Turn], Iterable[Attestation]]) -> list[Receipt]:
        """Append what `choose` returns after reading at the head, while nobody else appends."""
        return self._sequencer.decide(choose)

    def catch_up_inline(self) -> None:
        """Let the inline projectors follow the log, where a rebuild or a failure held them up."""
        self._sequencer.catch_up_inline()

    @contextmanager
    def reading(self) -> Iterator[Turn]:
        """Give a turn that decides nothing: what is read may be older than the head."""
        with self._database.read() as connection:
            head, now = self._sequencer.look(connection)
            yield Turn(connection, head.position, now)

    def read(
        self, ax: Ax | None = None, after: int = 0, limit: int | None = None
    ) -> Iterator[Recorded[Json]]:
        """Yield what lies behind `after`, in the order of positions, at most `limit` of them.

        An `ax` with a limit of its own means the newest of these.
        """
        asked = ax or Ax()
        with self._database.read() as connection:
            after, until = self._span(connection, asked, after)
            if asked.limit is not None:
                after = _before_newest(connection, asked, asked.limit, after, until)
            dialect = connection.dialect.name
        forward = partial(_forward, asked, until=until, dialect=dialect)
        found = 0
        while limit is None or found < limit:
            size = READ_ROWS if limit is None else min(READ_ROWS, limit - found)
            with self._database.read() as connection:
                rows = connection.execute(forward(after).limit(size)).all()
            for row in rows:
                yield Recorded(tuple(row), decode_mapping)
            found += len(rows)
            if len(rows) < size:
                return
            after = rows[-1].position

    def ax(self, ax: Ax) -> list[Recorded[Json]]:
        """Return all that `ax` asks for, in the order of positions."""
        return list(self.read(ax))

    def get(self, attestation_id: str) -> Recorded[Json] | None:
        """Return the attestation of this id, or None."""
        with self._database.read() as connection:
            asked = select(*COLUMNS).where(attestations.c.id == attestation_id)
            row = connection.execute(asked).one_or_none()
        return None if row is None else Recorded(tuple(row), decode_mapping)

    def head(self) -> int:
        """Return the largest position: 1…head are all committed and readable. 0 is empty."""
        with self._database.read() as connection:
            return head_of(connection)

    def digest(self, after: LogDigest = EMPTY) -> LogDigest:
        """Return the digest of all up to the head as it is now, going on from one that is known.

        Raises `CorruptAttestation` where a position is missing, and `LogRegression`.
        """
        head = self.head()
        if head < after.position:
            raise LogRegression(after.position, head)
        chain = DigestChain(after)
        for recorded in self.read(after=after.position, limit=head - after.position):
            chain.add(recorded.row)
        return chain.digest

    def epoch(self) -> str:
        """Return what names this log, wherever its database is copied to."""
        with self._database.read() as connection:
            return str(connection.execute(select(epochs.c.epoch)).scalar_one())

    def waiting(self) -> int:
        """Count what is committed but has no position yet."""
        with self._database.read() as connection:
            return self._sequencer.waiting(connection)

    def _span(self, connection: Connection, ax: Ax, after: int) -> tuple[int, int]:
        head = head_of(connection)
        if ax.since is not None:
            after = max(after, _last_before(connection, microseconds(ax.since), head))
        if ax.until is not None:
            head = _last_before(connection, microseconds(ax.until) + 1, head)
        return after, head


def head_of(connection: Connection) -> int:
    """Return the largest position, in the caller's transaction."""
    largest = select(func.coalesce(func.max(attestations.c.position), 0))
    return int(connection.execute(largest).scalar_one())


def _before_newest(connection: Connection, ax: Ax, limit: int, after: int, until: int) -> int:
    if limit == 0:
        return until
    position = attestations.c.position
    newest = (
        _forward(ax, after, until, connection.dialect.name)
        .with_only_columns(position)
        .order_by(None)
    )
    oldest_wanted = newest.order_by(position.desc()).offset(limit - 1).limit(1)
    found = connection.execute(oldest_wanted).scalar_one_or_none()
    return after if found is None else int(found) - 1


def _forward(ax: Ax, after: int, until: int, dialect: str) -> Select[Any]:
    position = attestations.c.position
    matching = [
        position > after,
        position <= until,
        *conditions(ax, attestations, tags, dialect=dialect),
    ]
    return select(*COLUMNS).where(*matching).order_by(position)


def _last_before(connection: Connection, instant: int, head: int) -> int:
    """Return the largest position recorded before an instant, by bisection."""
    low, high = 0, head
    while low < high:
        middle = (low + high + 1) // 2
        asked = select(attestations.c.recorded_at).where(attestations.c.position == middle)
        if connection.execute(asked).scalar_one() < instant:
            low = middle
        else:
            high = middle - 1
    return low


__all__ = ["COLUMNS", "Log", "Receipt", "Turn", "head_of"]
