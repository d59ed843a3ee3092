"""Fresh tables: a domain's read model in a generation of its own, beside the live one.

Whoever needs the fold of the log beside the live rows fills them: a rebuild swaps them in, a verify
compares and drops them, time travel hands them over under names of their own. One at a time for
each domain: a row of `qntx_rebuilds` names the holder. They are filled by ranges of slices, which
are those live is cut into, or finer. However it ends they are dropped; after a crash whoever comes
next drops them, or, where they are to be swapped in and the code is the same, goes on with them.

The ledger is read first: an entity is parked where this version parked it, and worked off where it
was retried; what was skipped is left out. So the rows are those of live, whatever that went
through. A new version parks nothing of the old one's: it derives what that one never did for those
who waited, and a rebuild says it with the swap.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Event, Thread
from time import monotonic
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Table, delete, insert, inspect, select, update
from sqlalchemy.exc import DBAPIError

from qntx_es import faults
from qntx_es.attestation import Attestation
from qntx_es.config import somebody
from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import (
    LedgerChanged,
    ProjectorOutdated,
    QntxError,
    RebuildLost,
    RebuildRunning,
)
from qntx_es.projections import generations
from qntx_es.projections.cursor import Cursor, cursors_of
from qntx_es.projections.derived import Derivations
from qntx_es.projections.filling import (
    Filling,
    Ground,
    is_owed,
    keep_fillings,
    read_fillings,
    read_owed,
)
from qntx_es.projections.fingerprint import fingerprint
from qntx_es.projections.ledger import ParkedEntity, read_ledger
from qntx_es.projections.parallel import fill_in_parallel
from qntx_es.projections.slices import ALL, Slices, refined
from qntx_es.projections.standing import REBUILD_MICROSECONDS
from qntx_es.projections.starts import Since
from qntx_es.projections.touches import Touches
from qntx_es.sequencer import Sequencer
from qntx_es.tables import fills, rebuilds

BEAT_SECONDS = 10.0


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


Report = Callable[[RebuildProgress], None]


@dataclass(frozen=True, slots=True)
class Workers:
    """Who fills ranges side by side: so many at once, on an executor."""

    number: int
    executor: Executor


class Fresh:
    """The fresh tables of one domain, by the names they have when they are live.

    They exist within `standing()`, and hold the fold of the log up to `position`; where live is
    cut, each range up to a position of its own. What derive handlers say meanwhile is compared with
    the log, in `derivations`; or they are left out. Or some are to speak: of what those in `says`
    say, the log gets what it lacks. Tables that go on (`resumes`) may be what a crash has left.
    """

    def __init__(  # noqa: PLR0913 - one keyword a way to fill them
        self,
        database: Database,
        sequencer: Sequencer,
        domain: Domain,
        progress: Report | None = None,
        *,
        derives: bool = True,
        says: Mapping[str, Since] | None = None,
        resumes: bool = False,
        workers: Workers | None = None,
    ) -> None:
        self.database = database
        self.domain = domain
        self.generation = 0
        self.tables: dict[str, Table] = {}
        self._sequencer = sequencer
        self._report = progress or (lambda _: None)
        self._holder = f"{somebody()}:{os.getpid()}:{uuid4()}"
        self._started = monotonic()
        self._derives = derives
        self._says = says
        self._resumes = resumes
        self._workers = workers
        self._state = ""
        self._fillings: list[Filling] = []

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return monotonic() - self._started

    @property
    def position(self) -> int:
        """Up to where all of them hold the fold of the log."""
        return min((one.position for one in self._fillings), default=0)

    @property
    def derivations(self) -> Derivations:
        """What derive handlers said so far."""
        found = Derivations(self.domain)
        for one in self._fillings:
            found.join(one.derivations)
        return found

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Make the tables, and drop them at the end unless they were handed over.

        Raises `RebuildRunning` where another holds them, `RebuildLost` where another took over.
        """
        self._plan()
        try:
            with self._heard_of():
                faults.point("rebuild.after_planned")
                yield
        except BaseException as error:
            if isinstance(error, DBAPIError) and not self._is_ours():
                # Whoever took over has dropped what this one filled.
                raise RebuildLost from error
            with suppress(QntxError, DBAPIError):  # or they go with the next
                self._drop()
            raise
        self._drop()

    def fill(self, state: str, *, to: Sequence[Cursor] | int | None = None) -> None:
        """Fill up to a position, or to cursors of live, or to live wherever it is by then."""
        while True:
            targets = self._targets(to)
            self._refine(targets)
            least = min(targets.values())
            self._enter(state, least)
            behind = [one for one in self._fillings if one.position < self._target(one, targets)]
            if not behind:
                self._settle()
                return
            if self._are_filled_by_others(behind, targets, state):
                continue
            for filling in behind:
                filling.read_ledger()
                filling.fill(self._target(filling, targets))
                faults.point("rebuild.in_fill")
                self.tell(state, least)

    def fill_watched(self, touches: Touches, to: Sequence[Cursor]) -> None:
        """Fill tables made anew, and let `touches` hear what writes the rows it is about."""
        with self.database.write() as connection:
            self._mark(connection)
            generations.drop_fresh(connection, self.tables)
            self.tables = generations.create_fresh(connection, self.domain, self.generation)
            ground = replace(self._ground(), touches=touches)
            self._fillings = [one.begin_anew(ground) for one in self._fillings]
            keep_fillings(connection, self._fillings)
        self._workers = None
        self.fill("watching", to=to)

    def make_indexes(self) -> None:
        """Make the secondary indexes, once the tables are filled."""
        with self.database.write() as connection:
            self._mark(connection)
            generations.create_indexes(connection, self.domain, self.generation)

    def stands_at(self, lives: Iterable[Cursor]) -> bool:
        """Tell whether every range stands exactly where live does."""
        targets = {one.slices: one.position for one in lives}
        return all(
            any(one.slices.within(slices) for slices in targets)
            and one.position == self._target(one, targets)
            for one in self._fillings
        )

    def hand_over(self, connection: Connection) -> None:
        """Let go of the tables, with the transaction that renames them. Raises `RebuildLost`."""
        if connection.execute(delete(rebuilds).where(*self._row())).rowcount != 1:
            raise RebuildLost
        connection.execute(delete(fills).where(fills.c.domain == self.domain.name))

    @property
    def waiting(self) -> Iterable[ParkedEntity]:
        """Who waits at the position that the tables have reached."""
        return {
            name: parked
            for one in self._fillings
            for name, parked in one.stands.waiting.items()
            if one.slices.holds(name)
        }.values()

    def owed(self, connection: Connection) -> list[Attestation]:
        """Return what live never derived for those who wait there, and now never will."""
        owed = read_owed(connection, self.domain)
        return [said for one in self._fillings for row, said in one.said if is_owed(row, owed)]

    def check_ledger(self, connection: Connection) -> None:
        """Raise `LedgerChanged` where a skip was said, or withdrawn, of what is filled already."""
        ledger = read_ledger(connection, self.domain.name, self.domain.version)
        for one in self._fillings:
            changed = ledger.left_out ^ one.stands.ledger.left_out
            if any(position <= one.position for position in changed):
                raise LedgerChanged

    def lives(self, connection: Connection) -> list[Cursor]:
        """Return the cursors of the live tables."""
        return live_cursors(connection, self.domain)

    def tell(self, state: str, target: int) -> None:
        """Tell whoever asked how far it is."""
        self._report(RebuildProgress(state, self.position, target, self.seconds))

    def _plan(self) -> None:
        name = self.domain.name
        with self.database.write() as connection:
            generations.lock_schema(connection)
            now = self.database.now(connection)
            (live, *_) = self.lives(connection)
            before = connection.execute(
                select(rebuilds).where(rebuilds.c.domain == name)
            ).one_or_none()
            if before is not None and _is_alive(before, now):
                raise RebuildRunning(name, before.holder)
            if self._goes_on(connection, before, live):
                return
            number = 0 if before is None else before.generation
            self.generation = max(live.generation, number) + 1
            generations.drop_stale(connection, name)
            connection.execute(delete(rebuilds).where(rebuilds.c.domain == name))
            connection.execute(
                insert(rebuilds).values(
                    domain=name,
                    holder=self._holder,
                    generation=self.generation,
                    version=self.domain.version,
                    fingerprint=fingerprint(self.domain) if self._resumes else None,
                    state="planned",
                    target=live.position,
                    started_at=now,
                    looked_at=now,
                )
            )
            self.tables = generations.create_fresh(connection, self.domain, self.generation)
            self._fillings = [Filling(self._ground())]
            keep_fillings(connection, self._fillings)

    def _goes_on(self, connection: Connection, before: Any, live: Cursor) -> bool:  # noqa: ANN401 - a row of `qntx_rebuilds`
        """Take over what a crash has left, where it is what this would come to as well."""
        if not self._resumes or before is None or before.fingerprint is None:
            return False
        is_same_code = before.fingerprint == fingerprint(self.domain)
        if not is_same_code or before.generation <= live.generation:
            return False
        tables = generations.fresh_tables(connection, self.domain, before.generation)
        there = set(inspect(connection).get_table_names())
        if any(table.name not in there for table in tables.values()):
            return False
        theirs = rebuilds.c.domain == before.domain, rebuilds.c.holder == before.holder
        ours = {"holder": self._holder, "looked_at": self.database.now(connection)}
        connection.execute(update(rebuilds).where(*theirs).values(ours))
        connection.execute(
            update(fills).where(fills.c.domain == before.domain).values(holder=self._holder)
        )
        self.generation, self.tables = before.generation, tables
        self._fillings = read_fillings(connection, self._ground())
        return bool(self._fillings)

    def _ground(self) -> Ground:
        return Ground(
            database=self.database,
            sequencer=self._sequencer,
            domain=self.domain,
            holder=self._holder,
            generation=self.generation,
            tables=self.tables,
            derives=self._derives,
            says=self._says,
        )

    def _targets(self, to: Sequence[Cursor] | int | None) -> dict[Slices, int]:
        if isinstance(to, int):
            return {ALL: to}
        if to is None:
            with self.database.read() as connection:
                to = self.lives(connection)
        return {one.slices: one.position for one in to}

    @staticmethod
    def _target(filling: Filling, targets: Mapping[Slices, int]) -> int:
        return next(to for slices, to in targets.items() if filling.slices.within(slices))

    def _refine(self, targets: Iterable[Slices]) -> None:
        """Cut what is filled so that each range has one target, and each worker some ranges."""
        wanted = list(targets)
        if self._workers is not None and self.domain.by_entity:
            wanted = list(refined(wanted, ALL.cut(self._workers.number)))
        pieces = refined(wanted, [one.slices for one in self._fillings])
        if len(pieces) == len(self._fillings):
            return
        with self.database.write() as connection:
            self._mark(connection)
            self._refuse_lost(connection)
            self._fillings = [
                part
                for one in self._fillings
                for part in one.split([piece for piece in pieces if piece.within(one.slices)])
            ]
            keep_fillings(connection, self._fillings)

    def _settle(self) -> None:
        """Make what was filled last, for which nobody waited for the disk."""
        with self.database.write() as connection:
            self._mark(connection)
            self._refuse_lost(connection)

    def _refuse_lost(self, connection: Connection) -> None:
        """Raise `RebuildLost` where a server that crashed has lost what was filled."""
        asked = select(fills.c.first_slice, fills.c.position).where(
            fills.c.domain == self.domain.name
        )
        kept = {row.first_slice: row.position for row in connection.execute(asked)}
        if kept != {one.slices.first: one.position for one in self._fillings}:
            raise RebuildLost

    def _are_filled_by_others(
        self, behind: Sequence[Filling], targets: Mapping[Slices, int], state: str
    ) -> bool:
        """Let workers fill what is far behind; False where it is quicker done here."""
        if self._workers is None or not self.domain.by_entity or len(behind) == 1:
            return False
        wanted = [(one, self._target(one, targets)) for one in behind]
        fill_in_parallel(wanted, self._workers.executor, lambda: self._look(state, targets))
        with self.database.read() as connection:
            found = read_fillings(connection, self._ground())
        if not found:
            raise RebuildLost
        self._fillings = found
        self._workers = None  # what is left is little
        return True

    def _look(self, state: str, targets: Mapping[Slices, int]) -> None:
        """Tell how far the workers are."""
        with self.database.read() as connection:
            asked = select(fills.c.position).where(fills.c.domain == self.domain.name)
            position = min(connection.execute(asked).scalars(), default=0)
        least = min(targets.values())
        self._report(RebuildProgress(state, position, least, self.seconds))

    def _enter(self, state: str, target: int) -> None:
        """Say what is done now."""
        if state == self._state:
            return
        with self.database.write() as connection:
            self._mark(connection, state=state, target=target)
        self._state = state

    def _mark(self, connection: Connection, **said: object) -> None:
        """Say that it is at work, or raise `RebuildLost`."""
        said["looked_at"] = self.database.now(connection)
        ours = connection.execute(update(rebuilds).where(*self._row()).values(said))
        if ours.rowcount != 1:
            raise RebuildLost

    @contextmanager
    def _heard_of(self) -> Iterator[None]:
        """Let others see that this process lives, also while it digests a large table."""
        ended = Event()
        beating = Thread(target=self._beat, args=(ended,), name="rebuild", daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()

    def _beat(self, ended: Event) -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(QntxError, DBAPIError), self.database.write() as connection:
                self._mark(connection)

    def _drop(self) -> None:
        with self.database.write() as connection:
            if connection.execute(delete(rebuilds).where(*self._row())).rowcount:
                connection.execute(delete(fills).where(fills.c.domain == self.domain.name))
                generations.drop_fresh(connection, self.tables)

    def _is_ours(self) -> bool:
        with self.database.read() as connection:
            return connection.execute(select(rebuilds).where(*self._row())).first() is not None

    def _row(self) -> tuple[Any, ...]:
        return rebuilds.c.domain == self.domain.name, rebuilds.c.holder == self._holder


def live_cursors(connection: Connection, domain: Domain) -> list[Cursor]:
    """Return the cursors of a domain's live tables. Raises `ProjectorOutdated` without any."""
    found = cursors_of(connection, domain.name)
    if not found:
        raise ProjectorOutdated(
            f"domain `{domain.name}` has no tables yet: run `qntx-es db upgrade`"
        )
    return found


def _is_alive(
    running: Any,  # noqa: ANN401 - a row of `qntx_rebuilds`
    now: int,
) -> bool:
    """Tell whether a holder still works: one of this machine by its process, others by the clock.

    A mistake costs a rebuild and no row: whoever was taken for dead finds the row another's.
    """
    if running.looked_at <= now - REBUILD_MICROSECONDS:
        return False
    who, process, _ = running.holder.rsplit(":", 2)
    if not who.endswith(f"@{socket.gethostname()}"):
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is somebody else's
        return True
    return True
