"""The ordered attestations: append, read, head, wait_for. There is no update and no delete.

Reading goes forward in pieces, each in a transaction of its own: a reader of a long log holds no
snapshot, and what it has seen stays seen, since positions never change behind it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import overload

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from qntx_es.attestation import (
    RECORDED_COLUMNS,
    Attestation,
    Json,
    Recorded,
    decode_mapping,
)
from qntx_es.ax import Ax, Span
from qntx_es.conditions import condition_of
from qntx_es.database import Database
from qntx_es.digests import EMPTY, DigestChain, LogDigest
from qntx_es.errors import ConditionNeedsOwnTransaction, LogRegression, WaitTimeout
from qntx_es.searches import Explained, bounds, explain, head_of, searched
from qntx_es.sequencer import Receipt, Sequencer, Turn
from qntx_es.sessions import AnySession, after_commit, connection_of
from qntx_es.tables import attestations, digests, epochs

READ_ROWS = 1_000
DIGEST_EVERY = 10_000
AX_SECONDS = 5.0
# How long at most until what another process has appended is seen by who waits for it.
LOOK_SECONDS = 0.05
COLUMNS = tuple(attestations.c[name] for name in RECORDED_COLUMNS)


class Log:
    """The log of one database; no statement of a query may take longer than `seconds`."""

    def __init__(
        self, database: Database, sequencer: Sequencer, *, seconds: float = AX_SECONDS
    ) -> None:
        self._database = database
        self._sequencer = sequencer
        self._seconds = seconds

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
            after_commit(session, self._sequencer.follow_commit)
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

        An `ax` with a limit of its own means the newest of these. Raises `AxTimeout` where one of
        the pieces takes longer than the settings allow.
        """
        asked = ax or Ax()
        if asked.limit is not None and asked.limit <= READ_ROWS and limit is None:
            yield from self._newest(asked, after, asked.limit)
            return
        after, until = self._span(asked, after)
        is_all, found = asked == Ax(), 0
        while limit is None or found < limit:
            size = READ_ROWS if limit is None else min(READ_ROWS, limit - found)
            # Positions are dense. Without that bound PostgreSQL, knowing nothing of a log that has
            # just been filled, sorts all that is left of it for every piece.
            ends = min(until, after + size) if is_all else until
            rows = self._search(asked, Span(size, after, ends))
            yield from rows
            found += len(rows)
            if len(rows) < size:
                return
            after = rows[-1].position

    def ax(self, ax: Ax) -> list[Recorded[Json]]:
        """Return all that `ax` asks for, in the order of positions. Raises `AxTimeout`."""
        return list(self.read(ax))

    def latest(self, context: str, entity: str) -> Recorded[Json] | None:
        """Return the newest statement about an entity in a context, or None."""
        newest = self.ax(Ax(contexts=context, entities=entity, limit=1))
        return newest[0] if newest else None

    def explain(self, ax: Ax) -> Explained:
        """Return how the database would find the newest, or all, of what is asked for."""
        with self._database.limited(self._seconds) as connection:
            until = bounds(connection, ax, 0, head_of(connection))[1]
            size = READ_ROWS if ax.limit is None else min(ax.limit, READ_ROWS)
            span = Span(size, until=until, is_newest=ax.limit is not None)
            return explain(connection, ax, span)

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

    def wait_for(self, position: int, timeout: timedelta | float = timedelta(seconds=10)) -> None:
        """Return once `position` can be read, whoever appends it. Raises `WaitTimeout`.

        What waits in the inbox is given its position here, if nobody else does so.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = time.monotonic() + seconds
        while (head := self.head()) < position:
            self._sequencer.look_again()
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout(
                    f"the log is at {head} and did not reach {position} in {seconds:g} s"
                )
            self._sequencer.wait_for_growth(min(left, LOOK_SECONDS))

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

    def digest_at(self, position: int) -> LogDigest:
        """Return the digest up to a position, going on from the nearest one that was kept.

        Every 10 000th is kept, and believed afterwards: `digest` reads all of it again. Raises
        `CorruptAttestation` where a position is missing.
        """
        with self._database.read() as connection:
            kept = connection.execute(
                select(digests.c.position, digests.c.digest)
                .where(digests.c.position <= position)
                .order_by(digests.c.position.desc())
                .limit(1)
            ).one_or_none()
        chain = DigestChain(EMPTY if kept is None else LogDigest(*kept))
        passed: list[LogDigest] = []
        for recorded in self.read(after=chain.position, limit=position - chain.position):
            chain.add(recorded.row)
            if chain.position % DIGEST_EVERY == 0:
                passed.append(chain.digest)
        if passed:
            with self._database.write() as connection:
                _keep(connection, passed)
        return chain.digest

    def epoch(self) -> str:
        """Return what names this log, wherever its database is copied to."""
        with self._database.read() as connection:
            return str(connection.execute(select(epochs.c.epoch)).scalar_one())

    def waiting(self) -> int:
        """Count what is committed but has no position yet."""
        with self._database.read() as connection:
            return self._sequencer.waiting(connection)

    def _span(self, ax: Ax, after: int) -> tuple[int, int]:
        """Return behind which position, and up to which, a query finds what it asks for."""
        with self._database.limited(self._seconds) as connection:
            after, until = bounds(connection, ax, after, head_of(connection))
            if ax.limit is None:
                return after, until
            if ax.limit == 0:
                return until, until
            span = Span(ax.limit, after, until, is_newest=True)
            newest = searched(connection, (attestations.c.position,), ax, span).subquery()
            oldest = connection.scalar(select(func.min(newest.c.position)))
        return (after if oldest is None else oldest - 1), until

    def _newest(self, ax: Ax, after: int, limit: int) -> list[Recorded[Json]]:
        with self._database.limited(self._seconds) as connection:
            until = None
            if ax.since is not None or ax.until is not None:
                after, until = bounds(connection, ax, after, head_of(connection))
            span = Span(limit, after, until, is_newest=True)
            rows = connection.execute(searched(connection, COLUMNS, ax, span)).all()
        return [Recorded(tuple(row), decode_mapping) for row in reversed(rows)]

    def _search(self, ax: Ax, span: Span) -> list[Recorded[Json]]:
        with self._database.limited(self._seconds) as connection:
            rows = connection.execute(searched(connection, COLUMNS, ax, span)).all()
        return [Recorded(tuple(row), decode_mapping) for row in rows]


def _keep(connection: Connection, passed: Sequence[LogDigest]) -> None:
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    connection.execute(
        dialect.insert(digests).on_conflict_do_nothing(),
        [{"position": one.position, "digest": one.value} for one in passed],
    )


__all__ = ["COLUMNS", "Log", "Receipt", "Turn", "head_of"]
