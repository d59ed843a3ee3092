"""Fresh tables: a domain's read model in a generation of its own, beside the live one.

Whoever needs the fold of the log beside the live rows fills them: a rebuild swaps them in, a verify
compares and drops them, time travel hands them over under names of their own. One at a time for
each domain: a row of `qntx_rebuilds` names the holder, and every batch looks whether it still does.
However it ends they are dropped, and after a crash by whoever comes next.

The ledger is read first: an entity is parked where this version parked it, and worked off where it
was retried; what was skipped is left out. So the rows are those of live, whatever that went
through. A new version parks nothing of the old one's: it derives what that one never did for those
who waited, and a rebuild says it with the swap.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Event, Thread
from time import monotonic
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Table, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from qntx_es import faults
from qntx_es.attestation import Attestation, RecordedRow
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
from qntx_es.projections.batch import READ_MAX, Portions, project, worked_off
from qntx_es.projections.cursor import Cursor, cursors_of
from qntx_es.projections.derived import Derivations
from qntx_es.projections.folding import Folding, FoldRefused
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.ledger import (
    ParkedEntity,
    Standing,
    Stretch,
    read_ledger,
    read_waiting,
)
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.projections.rows import RowMap
from qntx_es.projections.shape import Shape
from qntx_es.projections.starts import Since, to_compare
from qntx_es.projections.status import REBUILD_MICROSECONDS
from qntx_es.projections.touches import Touches, WatchedRows
from qntx_es.sequencer import Sequencer
from qntx_es.tables import rebuilds

# A writer holds others up: what a batch takes on SQLite, everybody waits.
BATCH_SECONDS = 0.5
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
class _Filled:
    """What one batch did: how far it came, how things stand there, and what it owed of a source."""

    position: int
    standing: Standing
    owed: tuple[tuple[RecordedRow, Attestation], ...] = ()


class Fresh:
    """The fresh tables of one domain, by the names they have when they are live.

    They exist within `standing()`, and hold the fold of the log up to `position`. What derive
    handlers say meanwhile is compared with the log, in `derivations`; or they are left out. Or some
    are to speak: of what those in `says` say behind their positions, the log gets what it lacks.
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
    ) -> None:
        self.database = database
        self.domain = domain
        self._sequencer = sequencer
        self.position = 0
        self.generation = 0
        self.tables: dict[str, Table] = {}
        self.derivations = Derivations(domain)
        self._handlers = Handlers(domain)
        self._stands = Standing(domain.name, self._handlers.contexts)
        self._owed: Mapping[str, ParkedEntity] = {}
        self._said: list[tuple[RecordedRow, Attestation]] = []
        self._report = progress or (lambda _: None)
        self._holder = f"{somebody()}:{os.getpid()}:{uuid4()}"
        self._started = monotonic()
        self._size = READ_MAX
        self._derives = derives
        self._says = says
        self._touches: Touches | None = None
        self._rows, self._portions = self._row_map(), self._portions_of_these()

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return monotonic() - self._started

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

    def fill(self, state: str, *, to: int | None = None) -> int:
        """Fill up to a position, or to the live cursor, wherever that is by then."""
        while True:
            with self.database.read() as connection:
                target = self.live(connection).position if to is None else to
            if self.position >= target:
                return target
            self._read_ledger()
            self._fill_cut(state, target)
            faults.point("rebuild.in_fill")
            self._rows.cool()
            self.tell(state, target)

    def fill_watched(self, touches: Touches, to: int) -> None:
        """Fill tables made anew, and let `touches` hear what writes the rows it is about."""
        with self.database.write() as connection:
            self.mark(connection, "watching", 0, to)
            generations.drop_fresh(connection, self.tables)
            self.tables = generations.create_fresh(connection, self.domain, self.generation)
        self._touches = touches
        self._rows, self._portions = self._row_map(), self._portions_of_these()
        self.position, self._stands = 0, replace(self._stands, waiting={})
        self.fill("watching", to=to)

    def mark(self, connection: Connection, state: str, position: int, target: int) -> None:
        """Say how far it is, or raise `RebuildLost`."""
        now = self.database.now(connection)
        said = {"state": state, "position": position, "target": target, "looked_at": now}
        ours = connection.execute(update(rebuilds).where(*self._row()).values(said))
        if ours.rowcount != 1:
            raise RebuildLost

    def hand_over(self, connection: Connection) -> None:
        """Let go of the tables, with the transaction that renames them. Raises `RebuildLost`."""
        if connection.execute(delete(rebuilds).where(*self._row())).rowcount != 1:
            raise RebuildLost

    @property
    def waiting(self) -> Iterable[ParkedEntity]:
        """Who waits at the position that the tables have reached."""
        return self._stands.waiting.values()

    def owed_by(self, live: Cursor, connection: Connection) -> list[Attestation]:
        """Return what live never derived for those who wait there, and now never will."""
        owed = self._read_owed(live, connection)
        return [said for row, said in self._said if _is_owed(row, owed)]

    def check_ledger(self, connection: Connection) -> None:
        """Raise `LedgerChanged` where a skip was said, or withdrawn, of what is filled already."""
        ledger = read_ledger(connection, self.domain.name, self.domain.version)
        changed = ledger.left_out ^ self._stands.ledger.left_out
        if any(position <= self.position for position in changed):
            raise LedgerChanged

    def live(self, connection: Connection) -> Cursor:
        """Return the cursor of the live tables."""
        return live_cursor(connection, self.domain)

    def tell(self, state: str, target: int) -> None:
        """Tell whoever asked how far it is."""
        self._report(RebuildProgress(state, self.position, target, self.seconds))

    def _plan(self) -> None:
        name = self.domain.name
        with self.database.write() as connection:
            generations.lock_schema(connection)
            now = self.database.now(connection)
            live = self.live(connection)
            before = connection.execute(
                select(rebuilds).where(rebuilds.c.domain == name)
            ).one_or_none()
            if before is not None and _is_alive(before, now):
                raise RebuildRunning(name, before.holder)
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
                    state="planned",
                    position=0,
                    target=live.position,
                    started_at=now,
                    looked_at=now,
                )
            )
            self.tables = generations.create_fresh(connection, self.domain, self.generation)
        self._rows, self._portions = self._row_map(), self._portions_of_these()

    def _row_map(self) -> RowMap:
        """Return a map that knows nothing yet of the fresh tables."""
        shapes = [Shape(self.domain.tables[name]) for name in self.tables]
        if self._touches is None:
            return RowMap(shapes, self._fresh_of)
        return WatchedRows(shapes, self._fresh_of, self._touches)

    def _portions_of_these(self) -> Portions:
        """Return the portions for the fresh tables; who listens for touches folds in Python."""
        is_unfolded = self._touches is not None or not self.tables
        domain = Domain(self.domain.name) if is_unfolded else self.domain
        folding = Folding(domain, self._fresh_of, is_sqlite=self.database.is_sqlite)
        return Portions(self._handlers, folding)

    def _fresh_of(self, table: Table) -> Table:
        return self.tables[table.name]

    def _fill_cut(self, state: str, target: int) -> None:
        """Fill one batch; what fails in bulk may be right one at a time, as it is live."""
        began = monotonic()
        try:
            with self.database.write() as connection:
                filled = self._fill_batch(connection, state, target)
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
        self.derivations.keep()
        self.position, self._stands = filled.position, filled.standing
        self._said += filled.owed
        if monotonic() - began < BATCH_SECONDS:
            self._size = min(self._portions.size_max, self._size * 2)

    def _fill_batch(self, connection: Connection, state: str, target: int) -> _Filled:
        self._rows.connect = lambda _: connection
        self.mark(connection, state, self.position, target)
        portion = self._portions.after(self.position, target, self._size, connection, self._stands)
        if portion.is_folded:
            self._rows.forget()  # what is known of rows is of the past then
            self._portions.folding.run(connection, self.position, portion.until)
            self.mark(connection, state, portion.until, target)
            return _Filled(portion.until, self._stands)
        stretch, is_owed = self._stretch(portion.rows, portion.until)
        said = self._project(connection, stretch, is_owed=is_owed)
        self.mark(connection, state, stretch.ceiling, target)
        standing = self._stands
        if stretch.change is not None:
            standing = standing.after(stretch.change)
        owed = tuple((stretch.rows[0], one) for one in said) if is_owed else ()
        return _Filled(stretch.ceiling, standing, owed)

    def _stretch(self, batch: Sequence[RecordedRow], ceiling: int) -> tuple[Stretch, bool]:
        """Return what comes first, and whether it is one source whose outputs are owed."""
        stretch = self._stands.stretch(batch, ceiling)
        first = next((n for n, row in enumerate(stretch.rows) if _is_owed(row, self._owed)), None)
        if first is None or self._touches is not None:
            return stretch, False
        if first:
            return Stretch(stretch.rows[first][0] - 1, stretch.rows[:first]), False
        return Stretch(stretch.rows[0][0], stretch.rows[:1]), True

    def _project(
        self, connection: Connection, stretch: Stretch, *, is_owed: bool
    ) -> list[Attestation]:
        """Write the rows of a stretch, and return what is derived of it."""
        if self._touches is not None:
            self._project_watched(stretch, self._touches)
            return []
        since = self.derivations.derives_from if self._derives or is_owed else None
        sources = stretch.rows
        if stretch.change is not None:
            sources = worked_off(connection, self._stands, stretch.change)
        said = project(self._handlers, self._rows, self._stands, stretch, derives_from=since)
        if self._derives and not is_owed:
            self.derivations.compare(connection, sources, said)
        if self._says is not None:
            self._sequencer.drop(connection, self.derivations.missing)
        return said

    def _project_watched(self, stretch: Stretch, touches: Touches) -> None:
        if stretch.change is not None:
            touches.in_hand = stretch.change.row
            project(self._handlers, self._rows, self._stands, stretch, derives_from=None)
        for row in stretch.rows:
            touches.in_hand = row
            alone = Stretch(row[0], [row])
            project(self._handlers, self._rows, self._stands, alone, derives_from=None)

    def _read_ledger(self) -> None:
        """Know all that was decided by the batches that brought live to where it is."""
        self._sequencer.run_pass()
        with self.database.read() as connection:
            ledger = read_ledger(connection, self.domain.name, self.domain.version)
            live = self.live(connection)
            self._owed = self._read_owed(live, connection)
            since = to_compare(connection, self.domain)
        self.derivations.since = since if self._says is None else self._says
        self._stands = replace(self._stands, ledger=ledger)

    def _read_owed(self, live: Cursor, connection: Connection) -> Mapping[str, ParkedEntity]:
        if live.version == self.domain.version:
            return {}
        return read_waiting(connection, live.domain, live.version)

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
                now = self.database.now(connection)
                connection.execute(update(rebuilds).where(*self._row()).values(looked_at=now))

    def _drop(self) -> None:
        with self.database.write() as connection:
            if connection.execute(delete(rebuilds).where(*self._row())).rowcount:
                generations.drop_fresh(connection, self.tables)

    def _is_ours(self) -> bool:
        with self.database.read() as connection:
            return connection.execute(select(rebuilds).where(*self._row())).first() is not None

    def _row(self) -> tuple[Any, ...]:
        return rebuilds.c.domain == self.domain.name, rebuilds.c.holder == self._holder


def _is_owed(row: RecordedRow, owed: Mapping[str, ParkedEntity]) -> bool:
    """Tell whether an attestation waits, so that nothing was derived from it."""
    waits = owed.get(row[4])
    return waits is not None and row[0] >= waits.position


def live_cursor(connection: Connection, domain: Domain) -> Cursor:
    """Return the cursor of a domain's live tables. Raises `ProjectorOutdated` where it has none."""
    live = next(iter(cursors_of(connection, domain.name)), None)
    if live is None:
        raise ProjectorOutdated(
            f"domain `{domain.name}` has no tables yet: run `qntx-es db upgrade`"
        )
    return live


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
