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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from threading import Event
from time import monotonic

from sqlalchemy import Text, cast, column, func, literal, select, table

from qntx_es import faults
from qntx_es.attestation import Attestation
from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import LeaseLost, LogBusy, RebuildDiffers, RebuiltAlready, SwapBusy
from qntx_es.log import Log
from qntx_es.projections import generations
from qntx_es.projections.certificate import (
    Certificate,
    Circumstances,
    certificate_of,
    circumstances,
    rebuilt,
)
from qntx_es.projections.comparison import Comparison, TableProof
from qntx_es.projections.cursor import Cursor, cursors_held, fence, lease_name, swap
from qntx_es.projections.dependants import refuse_dependants, refuse_planned
from qntx_es.projections.derived import DeriveProof
from qntx_es.projections.drift import forget_drifts
from qntx_es.projections.expectation import expectation, unexpected
from qntx_es.projections.fresh import Fresh, Report, Workers
from qntx_es.projections.kept import hand_down
from qntx_es.projections.lease import give_back, holder_name, take_lease
from qntx_es.projections.ledger import keep_waiting
from qntx_es.projections.recovery import forget_failure
from qntx_es.projections.verify import FIRST, compare, with_touches
from qntx_es.sequencer import Sequencer
from qntx_es.tables import TransactionId


class Xid(TransactionId):
    """PostgreSQL's xid, whose age is how many transactions ago it was."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Name the type as PostgreSQL does."""
        return "xid"


FENCE_MICROSECONDS = 10_000_000
SWAP_SECONDS = 60.0
RETRY_SECONDS = 0.05
LOOK_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The outcome: compared at `compared_at`, swapped at `position`, now of this generation.

    `attested_at` is where the log speaks of the certificate; None while that waits for a position.
    """

    domain: str
    version: int
    generation: int
    compared_at: int
    position: int
    tables: tuple[TableProof, ...]
    derived: tuple[DeriveProof, ...]
    certificate: Certificate
    attested_at: int | None
    seconds: float

    @property
    def is_same(self) -> bool:
        """Tell whether rows and derived attestations were the same before and after."""
        return all(one.is_same for one in self.tables) and all(one.is_same for one in self.derived)


@dataclass(frozen=True, slots=True)
class _Swapped:
    replaced: Cursor
    position: int
    certificate: Certificate
    attestation: Attestation


class Rebuild:
    """One rebuild of one domain, asked for by `actor`; what it may change is in `expect`."""

    def __init__(  # noqa: PLR0913 - one keyword a part
        self,
        database: Database,
        sequencer: Sequencer,
        log: Log,
        domain: Domain,
        *,
        actor: str,
        expect: Iterable[str] = (),
        progress: Report | None = None,
        stopping: Event | None = None,
        workers: Workers | None = None,
        only_outdated: bool = False,
    ) -> None:
        self._only_outdated = only_outdated
        self._database = database
        self._sequencer = sequencer
        self._log = log
        self._domain = domain
        self._actor = actor
        self._expected = expectation(domain, expect)
        self._stopping = stopping or Event()
        self._holder = f"rebuild:{holder_name()}"
        self._fresh = Fresh(database, sequencer, domain, progress, resumes=True, workers=workers)

    def run(self) -> Rebuilt:
        """Rebuild and swap.

        Raises `HandlerFailed` where a handler does, `RebuildRunning` where another rebuild or
        verify of the domain is under way, `RebuildLost` where one took over, `RebuildDiffers` where
        what was not expected changed, `LedgerChanged` where a skip came too late for it, `SwapBusy`
        where readers let the swap not through, and `ForeignDependants` where others would lose what
        they made on live tables. All leave live as it was.
        """
        fresh = self._fresh
        refuse_planned(self._database, self._domain)
        with fresh.standing():
            self._refuse_current()
            found = self._prove(across_versions=bool(self._expected))
            said = circumstances(
                self._database,
                self._log,
                self._domain,
                position=found.position,
                actor=self._actor,
            )
            swapped = self._swap(said, found)
        self._database.recycle()
        faults.point("rebuild.before_drop")
        with self._database.write() as connection:
            generations.drop_replaced(connection, swapped.replaced)
        fresh.tell("swapped", swapped.position)
        return Rebuilt(
            domain=self._domain.name,
            version=self._domain.version,
            generation=fresh.generation,
            compared_at=found.position,
            position=swapped.position,
            tables=found.tables,
            derived=found.derived,
            certificate=swapped.certificate,
            attested_at=self._attested_at(swapped.attestation),
            seconds=fresh.seconds,
        )

    def rehearse(self) -> Comparison:
        """Do all but the swap, and return what it would change. Raises as `run` does."""
        refuse_planned(self._database, self._domain)
        with self._fresh.standing():
            return with_touches(self._fresh, self._prove(across_versions=True))

    def _refuse_current(self) -> None:
        """Raise `RebuiltAlready` where what was outdated has been rebuilt by another meanwhile."""
        with self._database.read() as connection:
            (live, *_) = self._fresh.lives(connection)
        if self._only_outdated and live.version >= self._domain.version:
            raise RebuiltAlready

    def _prove(self, *, across_versions: bool) -> Comparison:
        """Fill and compare. Raises `RebuildDiffers`."""
        fresh = self._fresh
        fresh.fill("filling")
        faults.point("rebuild.after_fill")
        fresh.make_indexes()
        found = compare(fresh, "compared", first=FIRST, across_versions=across_versions)
        if refused := unexpected(found, self._expected):
            told = with_touches(fresh, found)
            raise RebuildDiffers(self._domain.name, refused, told)
        return found

    def _attested_at(self, said: Attestation) -> int | None:
        with suppress(LogBusy):  # what is committed gets its position with somebody's next pass
            self._sequencer.run_pass()
        recorded = self._log.get(said.id)
        return None if recorded is None else recorded.position

    def _swap(self, said: Circumstances, found: Comparison) -> _Swapped:
        deadline = monotonic() + SWAP_SECONDS
        while True:
            self._fresh.fill("catching up")
            faults.point("rebuild.before_fence")
            try:
                return self._swap_fenced(said, found)
            except (LogBusy, LeaseLost) as error:
                if monotonic() > deadline:
                    raise SwapBusy from error
                self._stopping.wait(RETRY_SECONDS * (1 + random.random()))  # noqa: S311 - jitter

    def _swap_fenced(self, said: Circumstances, found: Comparison) -> _Swapped:
        with self._fenced() as until:
            while monotonic() < until:
                self._fresh.fill("fenced")
                self._wait_for_old_snapshots()
                faults.point("rebuild.before_swap")
                if (swapped := self._swap_now(said, found)) is not None:
                    return swapped
        raise LeaseLost

    @contextmanager
    def _fenced(self) -> Iterator[float]:
        """Hold the leases of the projector, whoever had them; yield until when.

        The tokens are raised with it, so no batch in hand can commit any more: live stands still.
        """
        until = monotonic() + FENCE_MICROSECONDS / 1_000_000
        with self._database.write() as connection:
            generations.bound_waiting(connection)
            now = self._database.now(connection)
            names = []
            for cursor in cursors_held(connection, self._domain.name):
                fence(cursor, connection, pause=cursor.pause)
                names.append(lease_name(self._domain.name, cursor.slices))
                take_lease(
                    connection,
                    names[-1],
                    self._holder,
                    now=now,
                    microseconds=FENCE_MICROSECONDS,
                    by_force=True,
                )
        try:
            yield until
        finally:
            with self._database.write() as connection:
                give_back(connection, names, self._holder)

    def _swap_now(self, said: Circumstances, found: Comparison) -> _Swapped | None:
        """Swap, or None where a batch that began before the fence has moved live meanwhile."""
        fresh = self._fresh
        with self._database.write() as connection:
            # A batch locks its cursor and then its rows; in another order we would deadlock.
            generations.bound_waiting(connection)
            lives = fresh.lives(connection)
            if not fresh.stands_at(lives):
                return None
            live = min(lives, key=attrgetter("position"))
            owed = fresh.owed(connection)
            for cursor in lives:
                swap(cursor, self._swapped(cursor, said), connection)
            forget_failure(connection, live.domain)
            forget_drifts(connection, live.domain)
            fresh.check_ledger(connection)
            keep_waiting(connection, live.domain, self._domain.version, fresh.waiting)
            there = generations.found_tables(connection, live.tables)
            generations.lock_tables(connection, there)
            refuse_dependants(connection, live.domain, there)
            fresh.hand_over(connection)
            generations.rename(connection, live, fresh.tables, fresh.generation)
            hand_down(connection, live, {*fresh.tables}.intersection(there))
            certificate = certificate_of(
                said,
                found,
                expected=self._expected,
                swapped_at=live.position,
                generation=fresh.generation,
            )
            attested = rebuilt(
                said, certificate, found, position=live.position, of=fresh.generation
            )
            self._sequencer.drop(connection, [*owed, attested])
            faults.point("rebuild.before_commit")
        faults.point("rebuild.after_commit")
        return _Swapped(live, live.position, certificate, attested)

    def _swapped(self, live: Cursor, said: Circumstances) -> Cursor:
        return replace(
            live,
            version=self._domain.version,
            generation=self._fresh.generation,
            tables=tuple(sorted(self._domain.tables)),
            fingerprint=said.fingerprint,
        )

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
