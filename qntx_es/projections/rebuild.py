"""Build a read model anew beside the live one, prove it, and swap.

    planned      the next generation is numbered, its fresh tables stand beside the live ones
    filling      batches of project handlers up to the *live cursor*, never the head: what live has
                 derived is derived, and nothing is derived twice or never
    compared     one snapshot shows live exactly at its cursor P; fresh is filled to P and digested
    catching up  what live has projected meanwhile
    fenced       the lease makes runners stand by; fresh stands exactly where live stands
    swapped      renames and cursor in one transaction, compared with where live stood
    old dropped  the tables that were live are gone

The live tables are never touched before the swap, so a crash or a cancellation anywhere leaves them
as they were, and the remedy is to run it again.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event
from time import monotonic
from uuid import uuid4

from sqlalchemy import (
    Connection,
    Table,
    Text,
    cast,
    column,
    delete,
    func,
    insert,
    literal,
    select,
    table,
    update,
)
from sqlalchemy.exc import DBAPIError

from qntx_es import faults
from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import LeaseLost, LogBusy, ProjectorOutdated, RebuildLost, SwapBusy
from qntx_es.projections import generations
from qntx_es.projections.cursor import Cursor, look, swap
from qntx_es.projections.digest import Digest, digest
from qntx_es.projections.folding import FoldRefused
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.lease import give_back, lease_name, take_lease
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.projections.rows import RowMap
from qntx_es.projections.shape import Shape
from qntx_es.projections.spans import Spans
from qntx_es.sequencer import Sequencer
from qntx_es.tables import TransactionId, rebuilds


class Xid(TransactionId):
    """PostgreSQL's xid, whose age is how many transactions ago it was."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Name the type as PostgreSQL does."""
        return "xid"


BATCH = 5_000
# A writer holds others up: what a batch takes on SQLite, everybody waits.
BATCH_SECONDS = 0.5
FENCE_MICROSECONDS = 10_000_000
SWAP_SECONDS = 60.0
RETRY_SECONDS = 0.05
LOOK_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class RebuildProgress:
    """Where a rebuild is: `done` of `total` positions of the log, after `seconds`."""

    state: str
    done: int
    total: int
    seconds: float

    @property
    def rate(self) -> float:
        """Positions a second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long it will take at this rate; None before there is one."""
        return (self.total - self.done) / self.rate if self.rate else None


@dataclass(frozen=True, slots=True)
class TableProof:
    """What one table held, live and rebuilt, at one position; None where there is no such table."""

    table: str
    live: Digest | None
    rebuilt: Digest | None

    @property
    def is_same(self) -> bool:
        """Tell whether nothing changed."""
        return self.live == self.rebuilt


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The outcome: compared at `compared_at`, swapped at `position`, now of this generation."""

    domain: str
    version: int
    generation: int
    compared_at: int
    position: int
    tables: tuple[TableProof, ...]
    seconds: float

    @property
    def is_same(self) -> bool:
        """Tell whether every table held the same rows before and after."""
        return all(table.is_same for table in self.tables)


class Rebuild:
    """One rebuild of one domain."""

    def __init__(
        self,
        database: Database,
        sequencer: Sequencer,
        domain: Domain,
        *,
        progress: Callable[[RebuildProgress], None] | None = None,
        stopping: Event | None = None,
    ) -> None:
        self._database = database
        self._sequencer = sequencer
        self._domain = domain
        self._handlers = Handlers(domain)
        self._report = progress or (lambda _: None)
        self._stopping = stopping or Event()
        self._holder = f"rebuild:{uuid4()}"
        self._started = monotonic()
        self._position = 0
        self._generation = 0
        self._size = BATCH
        self._fresh: dict[str, Table] = {}

    def run(self) -> Rebuilt:
        """Rebuild and swap.

        Raises `HandlerFailed` where a handler does, `RebuildLost` where another rebuild of the
        domain began, `SwapBusy` where readers let the swap not through. All leave live as it was.
        """
        self._plan()
        try:
            faults.point("rebuild.after_planned")
            self._fill("filling")
            faults.point("rebuild.after_fill")
            with self._database.write() as connection:
                self._mark(connection, "filling", self._position, self._position)
                generations.create_indexes(connection, self._domain, self._generation)
            compared_at, proofs = self._compare()
            replaced, swapped = self._swap()
        except DBAPIError as error:
            # Another rebuild of this domain drops what this one filled.
            with self._database.read() as connection:
                if not self._is_ours(connection):
                    raise RebuildLost from error
            raise
        faults.point("rebuild.before_drop")
        self._drop_old(replaced)
        self._tell("swapped", swapped.position)
        return Rebuilt(
            domain=self._domain.name,
            version=self._domain.version,
            generation=self._generation,
            compared_at=compared_at,
            position=swapped.position,
            tables=proofs,
            seconds=monotonic() - self._started,
        )

    def _plan(self) -> None:
        name = self._domain.name
        with self._database.write() as connection:
            generations.lock_schema(connection)
            now = self._database.now(connection)
            live = self._live(connection)
            before = connection.execute(
                select(rebuilds.c.generation).where(rebuilds.c.domain == name)
            ).scalar_one_or_none()
            self._generation = max(live.generation, before or 0) + 1
            generations.drop_stale(connection, name)
            connection.execute(delete(rebuilds).where(rebuilds.c.domain == name))
            connection.execute(
                insert(rebuilds).values(
                    domain=name,
                    holder=self._holder,
                    generation=self._generation,
                    version=self._domain.version,
                    state="planned",
                    position=0,
                    target=live.position,
                    started_at=now,
                    looked_at=now,
                )
            )
            self._fresh = generations.create_fresh(connection, self._domain, self._generation)
        shapes = [Shape(table) for table in self._domain.tables.values()]
        self._rows = RowMap(shapes, self._fresh_of)
        self._spans = Spans(self._database, self._handlers, self._rows, self._fresh_of)

    def _fresh_of(self, table: Table) -> Table:
        return self._fresh[table.name]

    def _fill(self, state: str, *, to: int | None = None) -> int:
        """Fill up to a position, or to the live cursor, wherever that is by then."""
        while True:
            with self._database.read() as connection:
                target = self._live(connection).position if to is None else to
            if self._position >= target:
                return target
            self._fill_cut(state, target)
            faults.point("rebuild.in_fill")
            self._rows.cool()
            self._tell(state, target)

    def _fill_cut(self, state: str, target: int) -> None:
        """Fill one batch; what fails in bulk may be right one at a time, as it is live."""
        began = monotonic()
        try:
            with self._database.write() as connection:
                reached = self._fill_batch(connection, state, target)
        except FoldRefused:
            return
        except HandlerFailed:
            self._rows.forget()
            if self._size == 1:
                raise
            self._size = 1
            return
        except BaseException:
            self._rows.forget()
            raise
        self._position = reached
        if monotonic() - began < BATCH_SECONDS:
            self._size = min(self._spans.size_max, self._size * 2)

    def _fill_batch(self, connection: Connection, state: str, target: int) -> int:
        self._rows.connect = lambda _: connection
        self._mark(connection, state, self._position, target)
        span = self._spans.after(self._position, target, self._size, connection)
        self._spans.run(span, derives_from=None)
        self._spans.write(span, connection)
        self._mark(connection, state, span.until, target)
        return span.until

    def _mark(self, connection: Connection, state: str, position: int, target: int) -> None:
        ours = connection.execute(
            update(rebuilds)
            .where(rebuilds.c.domain == self._domain.name, rebuilds.c.holder == self._holder)
            .values(
                state=state,
                position=position,
                target=target,
                looked_at=self._database.now(connection),
            )
        )
        if ours.rowcount != 1:
            raise RebuildLost

    def _compare(self) -> tuple[int, tuple[TableProof, ...]]:
        with self._database.snapshot() as connection:
            live = self._live(connection)
            before = {
                name: digest(connection, table)
                for name, table in self._domain.tables.items()
                if name in live.tables and live.version == self._domain.version
            }
        self._fill("compared", to=live.position)
        with self._database.snapshot() as connection:
            if not self._is_ours(connection):
                raise RebuildLost
            after = {name: digest(connection, table) for name, table in self._fresh.items()}
        names = sorted({*live.tables, *after})
        proofs = tuple(TableProof(name, before.get(name), after.get(name)) for name in names)
        return live.position, proofs

    def _swap(self) -> tuple[Cursor, Cursor]:
        """Return the cursor of the generation that was live, and of the one that is."""
        deadline = monotonic() + SWAP_SECONDS
        while True:
            self._fill("catching up")
            faults.point("rebuild.before_fence")
            try:
                return self._swap_fenced()
            except (LogBusy, LeaseLost) as error:
                if monotonic() > deadline:
                    raise SwapBusy from error
                self._stopping.wait(RETRY_SECONDS * (1 + random.random()))  # noqa: S311 - jitter

    def _swap_fenced(self) -> tuple[Cursor, Cursor]:
        with self._fenced() as until:
            while monotonic() < until:
                self._fill("fenced")
                self._wait_for_old_snapshots()
                faults.point("rebuild.before_swap")
                if (swapped := self._swap_now()) is not None:
                    return swapped
        raise LeaseLost

    @contextmanager
    def _fenced(self) -> Iterator[float]:
        """Hold the lease of the projector; yield until when, on the monotonic clock."""
        until = monotonic() + FENCE_MICROSECONDS / 1_000_000
        name = lease_name(self._domain.name)
        with self._database.write() as connection:
            now = self._database.now(connection)
            taken = take_lease(
                connection, name, self._holder, now=now, microseconds=FENCE_MICROSECONDS
            )
        if not taken:
            raise LeaseLost
        try:
            yield until
        finally:
            with self._database.write() as connection:
                give_back(connection, name, self._holder)

    def _swap_now(self) -> tuple[Cursor, Cursor] | None:
        """Swap, or None where a batch that began before the fence has moved live meanwhile."""
        with self._database.write() as connection:
            # A batch locks its cursor and then its rows; in another order we would deadlock.
            generations.bound_waiting(connection)
            live = self._live(connection)
            if self._position != live.position:
                return None
            to = replace(
                live,
                version=self._domain.version,
                generation=self._generation,
                tables=tuple(sorted(self._domain.tables)),
            )
            swapped = swap(live, to, connection)
            generations.lock_tables(connection, live.tables)
            self._mark(connection, "swapped", self._position, live.position)
            generations.rename(connection, live, self._fresh, self._generation)
            faults.point("rebuild.before_commit")
        faults.point("rebuild.after_commit")
        return live, swapped

    def _wait_for_old_snapshots(self) -> None:
        """Let every reader end whose snapshot is older than the last fill.

        It would find the fresh tables empty, or older than what it has read of the live ones.
        """
        if self._database.is_sqlite:
            return
        with self._database.read() as connection:
            filled = connection.execute(select(func.pg_current_xact_id())).scalar_one()
        deadline = monotonic() + FENCE_MICROSECONDS / 2_000_000
        while (reader := self._older_than(int(str(filled)))) is not None:
            if monotonic() > deadline:
                raise LogBusy(f"the transaction of process {reader} is older than the fresh tables")
            self._stopping.wait(LOOK_SECONDS)

    def _older_than(self, filled: int) -> int | None:
        names = ("pid", "backend_xmin", "datname")
        backend = table("pg_stat_activity", *(column(name) for name in names))
        then = func.age(cast(cast(literal(filled % (1 << 32)), Text), Xid))
        older = (
            select(backend.c.pid)
            .where(backend.c.backend_xmin.is_not(None))
            .where(func.age(backend.c.backend_xmin) > then)
            .where(backend.c.datname == func.current_database())
            .where(backend.c.pid != func.pg_backend_pid())
        )
        with self._database.read() as connection:
            return connection.execute(older.limit(1)).scalar_one_or_none()

    def _drop_old(self, replaced: Cursor) -> None:
        with self._database.write() as connection:
            generations.drop_replaced(connection, replaced)
            connection.execute(
                delete(rebuilds).where(
                    rebuilds.c.domain == self._domain.name, rebuilds.c.holder == self._holder
                )
            )

    def _is_ours(self, connection: Connection) -> bool:
        holder = select(rebuilds.c.holder).where(rebuilds.c.domain == self._domain.name)
        return bool(connection.execute(holder).scalar_one_or_none() == self._holder)

    def _live(self, connection: Connection) -> Cursor:
        seen = look(connection, self._domain.name, self._database.now(connection))
        if seen.cursor is None:
            raise ProjectorOutdated(
                f"domain `{self._domain.name}` has no tables yet: run `qntx-es db upgrade`"
            )
        return seen.cursor

    def _tell(self, state: str, target: int) -> None:
        self._report(RebuildProgress(state, self._position, target, monotonic() - self._started))
