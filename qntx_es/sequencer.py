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

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

from sqlalchemy import Connection, Executable
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from qntx_es import faults
from qntx_es.attestation import Attestation
from qntx_es.conditions import Condition
from qntx_es.database import Database
from qntx_es.errors import (
    ConflictingAttestation,
    LogBusy,
    NotYetCommitted,
    PositionPending,
    QntxError,
    TooLarge,
    TooMany,
    UnsupportedDatabase,
)
from qntx_es.inbox import (
    count_waiting,
    insert_into_inbox,
    move,
    set_aside,
    waiting,
    waiting_of,
)
from qntx_es.sessions import Kinship, whole
from qntx_es.statements import (
    DROPPED,
    OTHERS_FIRST,
    Head,
    append_or_drop,
    be_patient,
    begin_writing,
    bytes_of,
    head_and_now,
    insert_into_log,
    known_by_id,
    last_on_sqlite,
    lock,
    pass_if_free,
    probe,
    settle,
    try_lock,
)

logger = logging.getLogger(__name__)

# The contexts by which the log has grown, or None if they are not known.
Grown: TypeAlias = frozenset[str] | None

APPEND_MAX = 10_000
APPEND_BYTES_MAX = 16 << 20


class Receipt:
    """What an append gives back: the id at once, the position once it is known.

    After an append in a transaction of the caller's, `find` looks for the position.
    """

    __slots__ = ("_find", "_position", "id")

    def __init__(
        self,
        attestation_id: str,
        position: int | None = None,
        find: Callable[[], int | None] | None = None,
    ) -> None:
        self.id = attestation_id
        self._position = position
        self._find = find

    @property
    def position(self) -> int:
        """The position in the log.

        Raises `NotYetCommitted` before the commit and after a rollback, `PositionPending` where
        the order is kept waiting, `ConflictingAttestation` where another one got this id first.
        """
        if self._position is None and self._find is not None:
            self._position = self._find()
        if self._position is None:
            raise NotYetCommitted
        return self._position

    def resolve(self, position: int) -> None:
        """Set the position, once the transaction that gave it has committed."""
        self._position = position

    def __repr__(self) -> str:
        return f"<Receipt {self.id} at {self._position or 'no position yet'}>"


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


@dataclass(slots=True)
class _Ticket:
    """One append of a group that one transaction writes."""

    attestations: Sequence[Attestation]
    receipts: list[Receipt] = field(default_factory=list)
    error: BaseException | None = None
    is_done: bool = False


class Sequencer:
    """Gives positions, in one database, on this host's behalf."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: deque[_Ticket] = deque()
        self._leading = threading.Lock()
        self._kinship = Kinship(database)
        self.inline: InlineFold | None = None
        # Called behind a commit by which the log has grown, or may have: by which contexts, or by
        # None if that is not known.
        self.grown: Callable[[Grown], None] = _nobody_waits
        self._growth = threading.Condition()

    def check(self) -> None:
        """Raise `UnsupportedDatabase` unless the lock locks: on some servers it does nothing."""
        if self._database.is_sqlite:
            return
        with self._database.read() as one, self._database.read() as other:
            key = probe(one)
            if key is None or probe(other, key) is not None:
                raise UnsupportedDatabase(
                    "advisory locks do not lock on this server, so no order can be kept on it"
                )

    def append(
        self, attestations: Sequence[Attestation], condition: Condition | None = None
    ) -> list[Receipt]:
        """Append all or none, in a transaction of our own, and return their receipts in order.

        An id the log holds with the same bytes gives the first receipt; with others it raises
        `ConflictingAttestation`. Raises `TooMany`, `TooLarge`, `LogBusy`, `PositionPending`, and
        what a condition raises.
        """
        _check_size(attestations)
        if not attestations:
            return []
        if condition is not None:
            return self._append_if(attestations, condition)
        if self._database.is_sqlite:
            return self._append_in_group(attestations)
        return self._append_directly(attestations) or self._append_by_turns(attestations)

    def append_within(
        self, connection: Connection, attestations: Sequence[Attestation]
    ) -> list[Receipt]:
        """Append in the caller's transaction, which is never committed, undone or retried here.

        All are left or, where something is refused, none. Raises `TooMany`, `TooLarge`, `LogBusy`,
        `ConflictingAttestation`.
        """
        _check_size(attestations)
        with self._database.named_errors():
            self._kinship.check(connection)
            if self._database.is_sqlite:
                # A savepoint alone would be the transaction, and its release the commit.
                connection.execute(begin_writing())
            with whole(connection):
                self.drop(connection, attestations)
        return [Receipt(one.id, find=partial(self._find, one)) for one in attestations]

    def decide(
        self,
        choose: Callable[[Turn], Iterable[Attestation]],
        *,
        numbers: Mapping[str, int] | None = None,
    ) -> list[Receipt]:
        """Append what `choose` returns, decided at the head while nobody else can append.

        `numbers` are the entity versions to give, by attestation id; one that is taken is refused
        by the database. An exception of `choose` undoes the turn and is the caller's. Raises as
        `append` does.
        """
        with self._locked() as (connection, head, now):
            chosen = list(choose(Turn(connection, head.position, now)))
            _check_size(chosen)
            receipts = self._sequence(connection, chosen, head, now, numbers)
            faults.point("append.before_commit")
        faults.point("append.after_commit")
        if receipts:
            self._tell(_contexts(chosen))
        return receipts

    def _append_if(
        self, attestations: Sequence[Attestation], condition: Condition
    ) -> list[Receipt]:
        ids = [attestation.id for attestation in attestations]
        with self._database.read() as connection:
            seen = self.look(connection)[0].position
            known = known_by_id(connection, ids)
            if not _unknown(attestations, known):
                # Said before: whoever lost the answer asks for it again.
                return [Receipt(one, known[one].position) for one in ids]
            if seen >= condition.after:
                condition.check(connection, condition.after, seen)
        with self._locked() as (connection, head, now):
            condition.check(connection, seen, head.position)
            condition.check_versions(connection)
            numbers = condition.numbers_of(_unknown(attestations, known))
            receipts = self._sequence(connection, attestations, head, now, numbers)
            faults.point("append.before_commit")
        faults.point("append.after_commit")
        self._tell(_contexts(attestations))
        return receipts

    @contextmanager
    def held(self) -> Iterator[Connection]:
        """Hold the lock for a block that moves no position, such as an inline projector's swap."""
        with self._locked() as (connection, _, _now):
            yield connection

    @contextmanager
    def held_still(self) -> Iterator[Connection]:
        """Hold the lock for a block that fills an empty log: what waits in the inbox stays there.

        The block may wait for a slow source, as no other holder may.
        """
        with self._database.write() as connection:
            if not self._database.is_sqlite:
                self._take_lock(connection)
                connection.execute(be_patient())
            yield connection
            faults.point("import.before_commit")
        faults.point("import.after_commit")
        self.follow_commit()

    def drop(self, connection: Connection, attestations: Sequence[Attestation]) -> None:
        """Leave attestations in a transaction that is not ours to commit.

        On SQLite they are in the log with its commit, on PostgreSQL with the pass that follows.
        """
        if not attestations:
            return
        if self._database.is_sqlite:
            head, now = self.look(connection)
            self._sequence(connection, attestations, head, now)
            return
        ids = [attestation.id for attestation in attestations]
        fresh = _unknown(attestations, known_by_id(connection, ids))
        faults.point("append.before_inbox")
        while fresh:
            # A twin in flight is waited for, and then compared with: it is in the inbox, by now in
            # the log, or was set aside with the rest of its append, and its place is free again.
            dropped = insert_into_inbox(connection, fresh, whole=False)
            left = [one for one in fresh if one.id not in dropped]
            met = {row.id: row for row in connection.execute(waiting_of(), {"ids": ids})}
            fresh = _unknown(left, met | known_by_id(connection, ids))
        faults.point("append.after_inbox")

    def run_pass(self) -> None:
        """Give positions to all that waits in the inbox; on SQLite nothing does."""
        if not self._database.is_sqlite:
            with self._locked():
                pass
        self._tell(None)

    def follow_commit(self) -> None:
        """Give positions to what a caller's transaction has just left, if nobody else does."""
        self.look_again()
        self._tell(None)

    def catch_up_inline(self) -> None:
        """Let the inline projectors follow the log, where a rebuild or a failure held them up."""
        with self._locked() as (connection, head, _):
            if self.inline is not None:
                self.inline(connection, head.position)

    def waiting(self, connection: Connection) -> int:
        """Count what is committed and has no position yet."""
        if self._database.is_sqlite:
            return 0
        return count_waiting(connection)

    def _append_in_group(self, attestations: Sequence[Attestation]) -> list[Receipt]:
        """Let whoever has the turn write all that is queued, in one commit."""
        ticket = _Ticket(attestations)
        self._queue.append(ticket)
        with self._leading:
            if not ticket.is_done:
                self._write_group()
        if ticket.error is not None:
            raise ticket.error
        return ticket.receipts

    def _write_group(self) -> None:
        group: list[_Ticket] = []
        size = 0
        while self._queue and size + len(self._queue[0].attestations) <= APPEND_MAX:
            group.append(self._queue.popleft())
            size += len(group[-1].attestations)
        try:
            with self._locked() as (connection, before, now):
                head = before
                for ticket in group:
                    head = self._sequence_ticket(connection, ticket, head, now)
                faults.point("append.before_commit")
        except BaseException as error:
            for ticket in group:
                ticket.error = ticket.error or error
            raise
        finally:
            for ticket in group:
                ticket.is_done = True
        faults.point("append.after_commit")
        self._tell(_contexts(one for ticket in group for one in ticket.attestations))

    def _sequence_ticket(
        self, connection: Connection, ticket: _Ticket, head: Head, now: int
    ) -> Head:
        try:
            ticket.receipts = self._sequence(connection, ticket.attestations, head, now)
        except ConflictingAttestation as error:
            # Found before anything is written: the others of the group do not notice.
            ticket.error = error
            return head
        return Head(max(head.position, *(one.position for one in ticket.receipts)), now)

    def _append_directly(self, attestations: Sequence[Attestation]) -> list[Receipt] | None:
        """Append, or join the next pass, in one way there and back; None where it takes a host."""
        fresh = _unknown(attestations, {})
        if not self._inline_contexts.isdisjoint(one.context for one in fresh):
            return None
        faults.point("append.before_commit")
        try:
            appended = append_or_drop(self._database, fresh, self._timeout, self._inline_contexts)
        except IntegrityError:
            return None  # an id is there: compare, as few appends have to
        except LogBusy as error:
            if self._is_committed(fresh):
                raise PositionPending from error
            raise
        faults.point("append.after_commit")
        if appended.head == OTHERS_FIRST:
            return None
        if appended.head == DROPPED:
            return self._receipts_of_dropped(attestations)
        if not appended.is_done:
            self.look_again()
        self._tell(_contexts(fresh))
        positions = {one.id: appended.head + n for n, one in enumerate(fresh, 1)}
        return [Receipt(one.id, positions[one.id]) for one in attestations]

    def _is_committed(self, said: Sequence[Attestation]) -> bool:
        """Tell what became of an append that waited for a lock too long."""
        ids = [one.id for one in said]
        with self._database.read() as connection:
            waits = connection.execute(waiting_of(), {"ids": ids}).first()
            return waits is not None or bool(known_by_id(connection, ids))

    def _append_by_turns(self, attestations: Sequence[Attestation]) -> list[Receipt]:
        while True:
            try:
                receipts = self._append_if_free(attestations)
            except _TwinWaits:
                self.run_pass()
                continue
            if receipts is None:
                return self._receipts_of_dropped(attestations)
            self.look_again()
            self._tell(_contexts(attestations))
            return receipts

    def _append_if_free(self, attestations: Sequence[Attestation]) -> list[Receipt] | None:
        with self._database.write() as connection:
            if not _is_locked(connection):
                self._drop_whole(connection, attestations)
                return None
            head, now = self._empty_inbox(connection)
            receipts = self._sequence(connection, attestations, head, now)
            faults.point("append.before_commit")
        faults.point("append.after_commit")
        return receipts

    @staticmethod
    def _drop_whole(connection: Connection, attestations: Sequence[Attestation]) -> None:
        """Leave them in the inbox, to enter the log as a whole or not at all.

        Where a twin of another append waits there nothing may lean on it: it may yet be refused.
        What the log has by now, the pass compares.
        """
        fresh = _unknown(attestations, {})
        faults.point("append.before_inbox")
        if len(insert_into_inbox(connection, fresh, whole=True)) < len(fresh):
            raise _TwinWaits
        faults.point("append.after_inbox")

    def _receipts_of_dropped(self, attestations: Sequence[Attestation]) -> list[Receipt]:
        """Join the pass after the one that runs: group commit, across threads and hosts."""
        ids = [attestation.id for attestation in attestations]
        try:
            known = self._wait_for(ids)
        except LogBusy as error:
            raise PositionPending from error
        self._tell(_contexts(attestations))
        # Where a twin was in the log first, the pass has set the whole of this append aside.
        _unknown(attestations, known)
        return [Receipt(one, known[one].position) for one in ids]

    def _wait_for(self, ids: list[str]) -> dict[str, Any]:
        """Return the rows of what was in the inbox, once a pass, maybe this one, took it out."""
        with self._database.write() as connection:
            self._take_lock(connection)
            self._empty_inbox(connection)
            found = known_by_id(connection, ids)
        self.look_again()
        return found

    def _known_now(self, ids: list[str]) -> dict[str, Any]:
        with self._database.read() as connection:
            return known_by_id(connection, ids)

    def look_again(self) -> None:
        """Give positions to what came to the inbox while the lock was held, or leave it to others.

        Who found the lock taken has committed to the inbox and left. Where another has the lock by
        now, that one looks again in its turn. What was committed before stands whatever becomes of
        this, so trouble is the next one's to meet.
        """
        if self._database.is_sqlite:
            return
        try:
            while not self._pass_if_free():
                pass
        except (QntxError, SQLAlchemyError) as error:
            logger.info("no pass was made after a commit: %s", error)

    def wait_for_growth(self, seconds: float) -> None:
        """Return when the log has grown by somebody in this process, or after so many seconds."""
        with self._growth:
            self._growth.wait(seconds)

    def _tell(self, contexts: Grown) -> None:
        with self._growth:
            self._growth.notify_all()
        self.grown(contexts)

    def _pass_if_free(self) -> bool:
        """Make a pass, or find that nothing is to be done or another has the lock."""
        if pass_if_free(self._database, self._inline_contexts):
            return True
        with self._database.write() as connection:
            if not _is_locked(connection):
                return True
            self._empty_inbox(connection)
        return False

    def _find(self, said: Attestation) -> int | None:
        """Return the position of what a caller's transaction left, or None before its commit."""
        found = self._known_now([said.id])
        if not found and not self._database.is_sqlite:
            try:
                if not settle(self._database, said.id, self._timeout, self._inline_contexts):
                    self.run_pass()
            except (LogBusy, ProgrammingError) as error:
                # Also where the role may append and not give positions: another one will.
                raise PositionPending from error
            found = self._known_now([said.id])
        if _unknown([said], found):
            return None
        return int(found[said.id].position)

    @property
    def _inline_contexts(self) -> frozenset[str]:
        return frozenset() if self.inline is None else self.inline.contexts

    @property
    def _timeout(self) -> str:
        return f"{round(self._database.timeout_seconds * 1000)}ms"

    @contextmanager
    def _locked(self) -> Iterator[tuple[Connection, Head, int]]:
        with self._database.write() as connection:
            if self._database.is_sqlite:
                head, now = self.look(connection)
            else:
                # Its own statement: together with the head, two passes would share a position.
                self._take_lock(connection)
                head, now = self._empty_inbox(connection)
            yield connection, head, now
            faults.point("pass.before_commit")
        faults.point("pass.after_commit")
        self.look_again()

    def _take_lock(self, connection: Connection) -> None:
        faults.point("pass.before_lock")
        connection.execute(lock(), {"timeout": self._timeout})
        faults.point("pass.after_lock")

    def look(self, connection: Connection) -> tuple[Head, int]:
        """Return the head, and now: the database's clock, or the head's time if that is later."""
        if not self._database.is_sqlite:
            head = head_and_now(connection)
            return head, head.recorded_at
        head = last_on_sqlite(connection)
        return head, max(self._database.now(connection), head.recorded_at)

    def _empty_inbox(self, connection: Connection) -> tuple[Head, int]:
        head, now = self.look(connection)
        refused: list[Attestation] = []
        while (waits := waiting(connection)) is not None:
            if waits.has_twins:
                refused += set_aside(connection, waits)
                continue
            faults.point("pass.before_move")
            head = Head(head.position + move(connection, waits, head.position, now), now)
            self._project_inline(connection, set(waits.contexts), head.position)
            if waits.settled is not None:
                break  # all that was there when the lock was had
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
        numbers: Mapping[str, int] | None = None,
    ) -> list[Receipt]:
        ids = [attestation.id for attestation in attestations]
        known = known_by_id(connection, ids)
        fresh = _unknown(attestations, known)
        if fresh:
            given = [(numbers or {}).get(one.id) for one in fresh]
            insert_into_log(connection, fresh, given, head.position, [now] * len(fresh))
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


def _is_locked(connection: Connection) -> bool:
    """Tell whether the lock was free, and is ours now."""
    faults.point("pass.before_lock")
    is_ours = bool(connection.execute(try_lock()).scalar_one())
    if is_ours:
        faults.point("pass.after_lock")
    return is_ours


def _nobody_waits(_: Grown) -> None:
    """Tell nobody that the log has grown."""


def _contexts(attestations: Iterable[Attestation]) -> frozenset[str]:
    return frozenset(one.context for one in attestations)


def _check_size(attestations: Sequence[Attestation]) -> None:
    if len(attestations) > APPEND_MAX:
        raise TooMany
    size = sum(len(one.text.encode()) for one in attestations)
    if size > APPEND_BYTES_MAX:
        raise TooLarge(
            f"these payloads have {size} bytes together. At most {APPEND_BYTES_MAX} in one append: "
            "append them in parts"
        )


def _unknown(attestations: Sequence[Attestation], known: dict[str, Any]) -> list[Attestation]:
    fresh: dict[str, Attestation] = {}
    for one in attestations:
        before = known.get(one.id)
        if before is not None:
            if one.bytes != bytes_of(before):
                raise ConflictingAttestation(one.id, before.position)
        elif (twin := fresh.setdefault(one.id, one)) is not one and twin.bytes != one.bytes:
            raise ConflictingAttestation(one.id)
    return list(fresh.values())
