"""Several domains on one log, and two processes over one database that take turns, fail and die.

Bugs of a house show in nobody's domain alone: a holder that was overtaken and commits all the
same, what was derived and lost between two transactions, rows that depend on how far a neighbour
is. Host, log, runners and leases are real; who goes next, and where he dies, is chosen by who
drives. What has to hold after each step is asked by `check`, what has to hold once the faults stop
by `settle`.

The processes share one interpreter. So whoever's turn comes finds the domains' modules as a new
process finds them, and what handlers keep beside their rows is gone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain

from sqlalchemy import Connection, NullPool, create_engine, select, update

from qntx_es import faults
from qntx_es.attestation import Attestation
from qntx_es.domain import RESERVED
from qntx_es.errors import (
    InconsistentReplay,
    LeaseLost,
    NothingToRetry,
    ProjectorPaused,
    ProjectorStopped,
    RebuildDiffers,
    SkipRefused,
)
from qntx_es.host import Host
from qntx_es.projections.cursor import Cursor, cursors_of, lease_name
from qntx_es.projections.fresh import RebuildProgress
from qntx_es.projections.lease import Leases
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.tables import attestations, leases
from qntx_es.testing.bench import Bench, Clock, Kind, Place
from qntx_es.testing.differences import differences
from qntx_es.testing.moving import REST, TableRows, rows_of, runners_of
from qntx_es.testing.replay import ACTOR, Outcome, Stage, bytes_of, fold_again
from qntx_es.testing.report import spelt, table_of
from qntx_es.testing.subject import HandlerRefuses

HOSTS = 2
ROUNDS_MAX = 30
# Nothing is renewed while a test runs; what time does to a lease, a step does.
LEASE_SECONDS = 3_600.0


class Cancelled(BaseException):
    """Somebody ended a rebuild at the terminal."""


@dataclass
class Process:
    """A host, and the leases that it holds if it has any."""

    host: Host
    leases: Leases | None

    def die(self) -> None:
        """End without giving anything back."""
        if self.leases is not None:
            self.leases.lapse()
        self.host.close()


@dataclass
class House:
    """Domains on one database; begun and ended by `opened`."""

    stages: Sequence[Stage]
    place: Place
    kind: Kind
    has_leases: bool
    clock: Clock = field(default_factory=Clock)
    armed: str | None = None
    crashes: int = 0
    lag_most: int = 0
    said: list[Attestation] = field(default_factory=list)
    paused: set[str] = field(default_factory=set)
    _processes: list[Process] = field(default_factory=list)
    _dead: list[str] = field(default_factory=list)
    _turn: int = 0
    _log: list[tuple[int, str]] = field(default_factory=list)
    _stood: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The domains that a runner moves; one that is inline moves with the log itself."""
        return [one.subject.domain.name for one in self.stages if not one.subject.domain.inline]

    # What happens in it.

    def append(self, said: Sequence[Attestation]) -> None:
        """Append one after the other; who dies over it says the same again."""
        for one in said:

            def append(process: Process, one: Attestation = one) -> None:
                is_reserved = one.context.startswith(RESERVED)
                log = process.host.log if is_reserved else process.host
                log.append(one)

            if not self._act(0, append):
                append(self._processes[0])
            self.said.append(one)

    def append_own(self, said: Sequence[Attestation], *, commits: bool) -> None:
        """Append in a transaction of the caller's, and commit or roll it back."""
        url = self.place.url.replace("postgresql://", "postgresql+psycopg://")
        engine = create_engine(url, poolclass=NullPool)
        open_to_all = [one for one in said if not one.context.startswith(RESERVED)]
        with engine.connect() as connection:
            self._processes[0].host.append(open_to_all, session=connection)
            if commits:
                connection.commit()
                self.said += open_to_all
            else:
                connection.rollback()
        engine.dispose()

    def poll(self, number: int, name: str, count: int) -> None:
        """Let one process run a batch of a domain, as far as it may."""

        def poll(process: Process) -> None:
            self._poll(process, name, count)

        self._act(number, poll)

    def crash_at(self, point: str) -> None:
        """Let the process that passes a fault point next die there."""
        self.armed = point

    def move_clock(self, seconds: float) -> None:
        """Let the clock of the log jump."""
        self.clock.move(seconds)

    def restart(self, number: int) -> None:
        """End a process that has no time to tidy up, and begin another one."""
        process = self._processes[number]
        if process.leases is not None:
            self._dead.append(process.leases.holder)
        process.die()
        self._forget()
        self._processes[number] = self._begun()

    def let_expire(self, name: str) -> None:
        """Let the lease of a domain run out, whoever holds it."""
        with self._host.database.write() as connection:
            ours = leases.c.name == lease_name(name)
            connection.execute(update(leases).where(ours).values(expires_at=0))

    def overtake(self, number: int, name: str, count: int, at: str) -> None:
        """Let one process stand still in its batch past its lease, and another one go on meanwhile.

        Raises `InconsistentReplay` where the one that comes back moves what the other one moved.
        """
        other = self._processes[(number + 1) % HOSTS]
        overtaken: list[bool] = []

        def go_on() -> None:
            self.let_expire(name)
            overtaken.append(self._poll(other, name, count))

        self.let_expire(name)
        self._begin_turn(number)
        with faults.planned({at: faults.Action(go_on)}):
            is_moved = self._poll(self._processes[number], name, count)
        if is_moved and any(overtaken):
            raise InconsistentReplay(
                f"a process that was overtaken in a batch of {name} commits it all the same (P13)",
                cause="overtaken",
            )

    def rebuild(self, number: int, name: str, meanwhile: str | None = None) -> None:
        """Rebuild and swap, and let another process run a batch at a point of it.

        Raises `InconsistentReplay` where the rows become others.
        """

        def rebuild(process: Process) -> None:
            try:
                process.host.rebuild(name, expect=["same"], actor=ACTOR)
            except RebuildDiffers as error:
                raise InconsistentReplay(
                    f"{name} gives other rows after a rebuild (P6)\n\n{error}", cause="rebuild"
                ) from error
            except HandlerFailed as error:
                if not isinstance(error.raised, HandlerRefuses):
                    raise

        if meanwhile is None:
            self._act(number, rebuild)
            return

        def go_on() -> None:
            self._poll(self._processes[(number + 1) % HOSTS], name, 1)

        self._begin_turn(number)
        with faults.planned({meanwhile: faults.Action(go_on)}):
            rebuild(self._processes[number])

    def cancel_rebuild(self, number: int, name: str, at: int) -> None:
        """Begin a rebuild and end it when it tells its progress for the `at`-th time.

        Raises `InconsistentReplay` where live rows are others before its swap.
        """
        told: list[str] = []

        def tell(progress: RebuildProgress) -> None:
            told.append(progress.state)
            if len(told) == at:
                raise Cancelled

        before = self._rows(name)
        self._begin_turn(number)
        with suppress(Cancelled, HandlerFailed):
            self._processes[number].host.rebuild(name, actor=ACTOR, progress=tell)
        if "swapped" not in told and repr(self._rows(name)) != repr(before):
            raise InconsistentReplay(
                f"live rows of {name} are others after a rebuild that was cancelled (P10)",
                cause="cancel",
            )

    def break_next(self, name: str) -> None:
        """Let the handlers of a domain fail at the next attestation that they will read."""
        subject = self._stage(name).subject
        position = self._cursor(name).position
        for one in self._host.log.read(after=position):
            if subject.handlers_of(one.context):
                subject.failing |= {one.id}
                return

    def mend(self, name: str) -> None:
        """Let the handlers fail no more, and retry what stands or is parked."""
        self._stage(name).subject.failing = frozenset()
        self.let_expire(name)
        with suppress(NothingToRetry, ProjectorPaused):
            self._host.retry(name, by=ACTOR)

    def skip(self, name: str) -> None:
        """Skip what a domain fails at, if it has had no effect yet."""
        failing = self._stage(name).subject.failing
        for one in self._host.log.read():
            if one.id in failing:
                with suppress(SkipRefused):
                    self._host.skip(name, one.position, "it fails", by=ACTOR)

    def pause(self, name: str) -> None:
        """Let a domain stand still on every host."""
        self._host.pause(name, by=ACTOR)
        self.paused.add(name)

    def resume(self, name: str) -> None:
        """Let it go on."""
        self._host.resume(name, by=ACTOR)
        self.paused.discard(name)

    # What holds.

    def check(self) -> None:
        """Raise `InconsistentReplay` where the past has changed, or a cursor has gone back."""
        with self._host.database.snapshot() as connection:
            asked = select(attestations.c.position, attestations.c.id)
            rows = connection.execute(asked.order_by(attestations.c.position))
            log = [(row.position, row.id) for row in rows]
            stands = [
                cursor
                for one in self.stages
                for cursor in cursors_of(connection, one.subject.domain.name)
            ]
        if log[: len(self._log)] != self._log or [at for at, _ in log] != [*range(1, len(log) + 1)]:
            raise InconsistentReplay(
                "the past of the log is not closed (P15): positions are 1 to head, and what was "
                f"seen stays. Seen: {self._log}. Now: {log}",
                cause="log",
            )
        self._log = log
        for cursor in stands:
            self._check_cursor(cursor, len(log))

    def settle(self) -> None:
        """Let the faults stop, and raise `InconsistentReplay` where things are not as they must be.

        Everybody catches up and no dead process holds anything (P28), all that was committed is in
        the log (P14), and rows and derived are those of a fold from nothing (P1, P5).
        """
        self.armed = None
        self._bury()
        for name in self.names:
            self._stage(name).subject.failing = frozenset()
            self.resume(name)
            with suppress(NothingToRetry, LeaseLost):
                self.mend(name)
        self._catch_up()
        self.check()
        said = {one.id for one in self.said}
        if missing := said.difference(id_ for _, id_ in self._log):
            raise InconsistentReplay(
                f"what was committed is not in the log (P14): {sorted(missing)}", cause="log"
            )
        self._compare()

    # How.

    @property
    def _host(self) -> Host:
        return self._processes[0].host

    def _begun(self) -> Process:
        domains = [one.subject.live for one in self.stages]
        host = self.place.open(domains, self.clock)
        if not self.has_leases:
            return Process(host, None)
        held = Leases(host.database, seconds=LEASE_SECONDS, batch_seconds=LEASE_SECONDS)
        for name in self.names:
            host._projectors[name].lease_from(held)  # noqa: SLF001 - driven by hand, not by threads
        return Process(host, held)

    def _stage(self, name: str) -> Stage:
        return next(one for one in self.stages if one.subject.domain.name == name)

    def _begin_turn(self, number: int) -> None:
        if number != self._turn:
            self._forget()
        self._turn = number

    def _forget(self) -> None:
        for one in self.stages:
            one.subject.restart()

    def _act(self, number: int, act: Callable[[Process], None]) -> bool:
        """Let a process act; False where it died over it, and another one has begun."""
        self._begin_turn(number)
        if self.armed is None:
            act(self._processes[number])
            return True
        try:
            with faults.planned({self.armed: faults.crash()}):
                act(self._processes[number])
        except faults.Crash:
            self.armed = None
            self.crashes += 1
            self.restart(number)
            return False
        return True

    def _poll(self, process: Process, name: str, count: int) -> bool:
        """Run a batch as far as the process may, and tell whether anything has moved."""
        has_moved = False
        for runner in runners_of(process.host, name):
            runner.size = count
            try:
                step = runner.advance(eager=True)
                has_moved |= step.position > step.start
            except LeaseLost:
                continue  # another one moves it: `settle` asks that somebody does
            except ProjectorPaused:
                if name not in self.paused:
                    raise
            except ProjectorStopped as stopped:
                if HandlerRefuses.__name__ not in str(stopped):
                    raise
        return has_moved

    def _cursor(self, name: str) -> Cursor:
        with self._host.database.read() as connection:
            return cursors_of(connection, name)[0]

    def _rows(self, name: str) -> TableRows:
        with self._host.database.snapshot() as connection:
            return self._rows_by(connection, name)

    def _rows_by(self, connection: Connection, name: str) -> TableRows:
        tables = self._stage(name).subject.domain.tables
        return {table: rows_of(connection, one) for table, one in tables.items()}

    def _check_cursor(self, cursor: Cursor, head: int) -> None:
        key = (cursor.domain, cursor.slices.first)
        if not self._stood.get(key, 0) <= cursor.position <= head:
            raise InconsistentReplay(
                f"the cursor of {cursor.domain} went from {self._stood.get(key, 0)} to "
                f"{cursor.position}, with the log at {head} (P13): it only goes forward, never "
                "past the head",
                cause="cursor",
            )
        self._stood[key] = cursor.position
        self.lag_most = max(self.lag_most, head - cursor.position)

    def _bury(self) -> None:
        """Let time pass for the dead: what they held runs out."""
        with self._host.database.write() as connection:
            theirs = leases.c.holder.in_(self._dead)
            connection.execute(update(leases).where(theirs).values(expires_at=0))

    def _catch_up(self) -> None:
        behind: list[str] = []
        for _ in range(ROUNDS_MAX):
            for number, name in ((at, name) for at in range(HOSTS) for name in self.names):
                self.poll(number, name, REST)
            self.check()
            behind = [one for one in self.names if self._cursor(one).position < len(self._log)]
            if not behind:
                return
        raise InconsistentReplay(
            f"{', '.join(behind)} did not come to the head in {ROUNDS_MAX} rounds without faults: "
            f"the log is at {len(self._log)} (P28)",
            cause="lag",
        )

    def _compare(self) -> None:
        stream = BytesIO()
        self._host.export_log(stream)
        drawn = {one.id for one in self.said}
        derived = {
            one.id: bytes_of(one)
            for one in self._host.log.read()
            if one.id not in drawn and not one.context.startswith("qntx.")
        }
        rows = {one.subject.domain.name: self._rows(one.subject.domain.name) for one in self.stages}
        made = Outcome({}, derived, exported=stream.getvalue())
        folded = [fold_again(one, made, self.kind) for one in self.stages]
        known = set(chain.from_iterable(one.derived for one in folded))
        for stage, fold in zip(self.stages, folded, strict=True):
            domain = stage.subject.domain
            surplus = {
                one.id
                for one in self._host.log.read()
                if one.id in derived and one.id not in known and domain.may_emit(one.context)
            }
            ours = {id_: derived[id_] for id_ in derived if id_ in fold.derived or id_ in surplus}
            self._hold_against(stage, fold, Outcome(rows[domain.name], ours))

    def _hold_against(self, stage: Stage, folded: Outcome, lived: Outcome) -> None:
        domain = stage.subject.domain
        if folded.error is not None:
            raise InconsistentReplay(
                f"{domain.name} cannot be folded from nothing: {folded.error}", cause="refused"
            )
        found = differences(domain, folded, lived)
        if not found:
            return
        is_derived = all(one.table == "derived" for one in found)
        what = "derived otherwise (P5)" if is_derived else "gives other rows (P1)"
        log = "\n".join(f"    {spelt(domain, one)}" for one in self.said)
        raise InconsistentReplay(
            f"{domain.name} {what} after these steps than its log says from nothing\n\n"
            f"What was said:\n{log}\n\n{table_of(found)}",
            cause="derived" if is_derived else "rows",
        )


@contextmanager
def opened(stages: Sequence[Stage], bench: Bench, *, has_leases: bool = False) -> Iterator[House]:
    """Begin a house on a fresh database, and end it with all its processes."""
    for one in stages:
        one.subject.begin()
    with bench.database() as place, stages[0].subject.circumstances.around():
        house = House(stages, place, bench.kind, has_leases)
        try:
            house._processes += [house._begun() for _ in range(HOSTS)]  # noqa: SLF001 - it is ours
            yield house
        finally:
            for process in house._processes:  # noqa: SLF001 - it is ours
                process.die()
