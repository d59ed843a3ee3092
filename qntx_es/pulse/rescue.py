"""Who is still alive, and what becomes of the jobs of who is not.

A worker has one lease, whatever it runs: renewed on a thread and a connection of its own, by the
database's clock. Rescue rides along in the claims of any worker and needs no leader. A lease is
soft: where its row is missing, it is first made at full length, so that a living worker can renew
it and a dead one lets it expire; dropping all leases costs one of them and loses nothing.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any
from uuid import uuid4

from sqlalchemy import delete, literal, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from qntx_es import faults
from qntx_es.attestation import Attestation, instant
from qntx_es.config import somebody
from qntx_es.database import Database
from qntx_es.errors import QntxError
from qntx_es.log import Turn
from qntx_es.pulse.limits import BREAKER
from qntx_es.pulse.statements import HandlerPaused, JobLapsed
from qntx_es.pulse.tables import handlers, jobs, pulse
from qntx_es.tables import leases

LATE = timedelta(seconds=10)
RESCUED_MAX = 1_000
RENEWALS = 3  # in the time of one lease
# So many lapses in succession, and a handler is taken to be the cause of them.
LAPSES_MAX = 5
PREFIX = "worker:"
MISSING, EXPIRED, PAST = "missing", "worker_lost", "deadline"

# Spelt out, as the index over running jobs has it.
_IS_RUNNING = jobs.c.status == text("'running'")

logger = logging.getLogger(__name__)


def new_worker() -> str:
    """Return a name that no worker had: names of machines and processes come back."""
    return uuid4().hex


@dataclass(slots=True)
class WorkerLease:
    """One worker's sign of life, for as long as it runs.

    `holder` names the process, so that others on the same machine see at once that it is gone.
    `changed` is called on the lease's thread after each renewal, with whether the lease was lost.
    """

    database: Database
    seconds: float
    changed: Callable[[bool], None]
    worker: str = field(default_factory=new_worker)
    _renewed: float = 0.0
    _ended: Event = field(default_factory=Event)
    _wanted: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)
    _thread: Thread | None = None

    @property
    def may_start(self) -> bool:
        """Whether more than half of the lease is left, by this process' own clock."""
        return monotonic() - self._renewed < self.seconds / 2

    @property
    def is_over(self) -> bool:
        """Whether a whole lease has passed without a renewal."""
        return monotonic() - self._renewed > self.seconds

    def take(self) -> None:
        """Show that this worker lives, from now on."""
        with self._lock, self.database.write() as connection:
            begun = monotonic()
            now = self.database.now(connection)
            insert = (sqlite if self.database.is_sqlite else postgresql).insert(leases)
            until = now + round(self.seconds * 1_000_000)
            made = insert.values(name=PREFIX + self.worker, holder=this_process(), expires_at=until)
            connection.execute(
                made.on_conflict_do_update(
                    index_elements=[leases.c.name], set_={"expires_at": until}
                )
            )
        self._renewed = begun

    def renew(self) -> bool:
        """Renew the lease; False where it was struck off, and this worker goes on under a new name.

        A row that is only missing is made again: who was struck off is named by no running job.
        """
        faults.point("lease.before_renew")
        name = PREFIX + self.worker
        with self._lock, self.database.write() as connection:
            begun = monotonic()
            now = self.database.now(connection)
            until = now + round(self.seconds * 1_000_000)
            mine = update(leases).where(leases.c.name == name).values(expires_at=until)
            is_renewed = connection.execute(mine).rowcount == 1
        if not is_renewed and not self._is_named():
            self.worker = new_worker()
            self.take()
            return False
        if not is_renewed:
            self.take()
        self._renewed = begun
        return True

    def keep(self) -> None:
        """Take the lease, and renew it on a thread of its own until it is let go."""
        self.take()
        self._ended.clear()
        self._thread = Thread(target=self._run, name="worker-lease", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Renew now: somebody may have said something to this worker's jobs."""
        self._wanted.set()

    def let_go(self, *, is_given_back: bool = True) -> None:
        """Renew no more; given back, the row goes too, unless a running job names it."""
        self._ended.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if is_given_back and not self._is_named():
            with self.database.write() as connection:
                connection.execute(delete(leases).where(leases.c.name == PREFIX + self.worker))

    def _is_named(self) -> bool:
        with self.database.read() as connection:
            mine = select(jobs.c.job).where(_IS_RUNNING, jobs.c.worker == self.worker).limit(1)
            return connection.execute(mine).first() is not None

    def _run(self) -> None:
        while True:
            self._wanted.wait(self.seconds / RENEWALS)
            self._wanted.clear()
            if self._ended.is_set():
                return
            is_lost = False
            try:
                is_lost = not self.renew()
            except (QntxError, SQLAlchemyError) as error:
                logger.warning("the lease of worker %s was not renewed: %s", self.worker, error)
            self.changed(is_lost)


def is_needed(turn: Turn) -> bool:
    """Tell, without the lock, whether any job's worker or time has run out."""
    return len(turn.read(_lost(turn).limit(1))) > 0


def rescues(turn: Turn, lease_seconds: float) -> Iterator[Attestation]:
    """Yield a lapse for each attempt that will not come back, and strike off who had it."""
    found = [(row, reason) for row in turn.read(_lost(turn)) if (reason := _reason(row, turn))]
    missing = {row.worker for row, reason in found if reason == MISSING}
    expired = {row.worker for row, reason in found if reason == EXPIRED}
    _insert_missing(turn, missing, lease_seconds)
    _strike_off(turn, expired)
    now = instant(turn.now)
    lapsed: Counter[tuple[str, int]] = Counter()
    for row, reason in found:
        if reason == MISSING:
            continue
        is_again = row.attempt < row.attempts_allowed and row.on_lapse == "again"
        said = JobLapsed(
            token=row.token, reason=reason, retry_at=now if is_again else None, cost=row.cost or 0
        )
        lapsed[row.handler, row.handler_version] += 1
        yield pulse.attest(said, entity=row.job, caused_by=row.job)
    yield from _breaks(turn, lapsed)


def _lost(turn: Turn) -> Any:  # noqa: ANN401 - a select
    """Ask for running jobs that may need somebody: by a lease, or by their own deadline."""
    late = jobs.c.deadline_at < instant(turn.now) - LATE
    expired = or_(leases.c.expires_at.is_(None), leases.c.expires_at <= turn.now)
    gone = leases.c.holder.in_(sorted(_gone_holders(turn)))
    return (
        select(
            jobs.c.job, jobs.c.handler, jobs.c.handler_version, jobs.c.token, jobs.c.worker,
            jobs.c.attempt, jobs.c.attempts_allowed, jobs.c.on_lapse, jobs.c.cost,
            jobs.c.deadline_at, leases.c.holder, leases.c.expires_at,
        )
        .select_from(jobs)
        .outerjoin(leases, leases.c.name == literal(PREFIX).op("||")(jobs.c.worker))
        .where(_IS_RUNNING, or_(late, expired, gone))
        .order_by(jobs.c.token)
        .limit(RESCUED_MAX)
    )  # fmt: skip


def _gone_holders(turn: Turn) -> set[str]:
    """Return the processes of this machine that hold a lease and are no more."""
    asked = select(leases.c.holder).where(leases.c.name.startswith(PREFIX)).distinct()
    return {row.holder for row in turn.read(asked) if is_gone(row.holder)}


def _reason(row: Any, turn: Turn) -> str:  # noqa: ANN401 - a row of `_lost`
    if row.deadline_at is not None and row.deadline_at < instant(turn.now) - LATE:
        return PAST
    if row.expires_at is None:
        return MISSING
    return EXPIRED


def _insert_missing(turn: Turn, workers: Iterable[str], seconds: float) -> None:
    until = turn.now + round(seconds * 1_000_000)
    rows = [
        {"name": PREFIX + worker, "holder": "unknown", "expires_at": until}
        for worker in sorted(workers)
    ]
    if rows:
        dialect = sqlite if turn.connection.dialect.name == "sqlite" else postgresql
        turn.connection.execute(dialect.insert(leases).on_conflict_do_nothing(), rows)


def _strike_off(turn: Turn, workers: Iterable[str]) -> None:
    names = [PREFIX + worker for worker in sorted(workers)]
    if names:
        turn.connection.execute(delete(leases).where(leases.c.name.in_(names)))


def _breaks(turn: Turn, lapsed: Counter[tuple[str, int]]) -> Iterator[Attestation]:
    """Yield a pause for each handler that has lapsed too often, one after another."""
    if not lapsed:
        return
    names = sorted({name for name, _ in lapsed})
    for row in turn.read(select(handlers).where(handlers.c.handler.in_(names))):
        count = row.lapses + lapsed[row.handler, row.version]
        if count >= LAPSES_MAX and row.paused_by is None:
            said = HandlerPaused(
                by=BREAKER, reason=f"{count} attempts at version {row.version} did not come back"
            )
            yield pulse.attest(said, entity=row.handler)


def this_process() -> str:
    """Name this process so that others on this machine can tell whether it lives."""
    pid = os.getpid()
    return f"{somebody()} {pid} {_started(pid)} {_boot()}"


def is_gone(holder: str) -> bool:
    """Tell whether a holder was a process of this machine, since this boot, that is no more."""
    parts = holder.rsplit(" ", 3)
    if len(parts) != len(("who", "pid", "start", "boot")):
        return False
    _, pid, started, boot = parts
    if boot != _boot() or not boot or not pid.isdecimal():
        return False
    return _started(int(pid)) != started


@cache
def _boot() -> str:
    """Return what names this boot, and this numbering of processes: containers have their own.

    Nothing where the kernel does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process was started, in the kernel's ticks; a number comes back, this not."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return "-"
    return after_name.split()[19]


__all__ = ["WorkerLease", "is_needed", "rescues", "this_process"]
