"""A time-limited right, kept in the database and measured by its clock.

Who holds the lease of a projector moves it; others stand by. A host renews what it holds from a
thread of its own, so that an idle projector keeps its lease, and a busy one does too. A holder that
dies lets it expire. A lease is a courtesy that saves work: what keeps a late holder from committing
is the comparison in `cursor.advance`, since whoever takes a lease raises the token first.

What is never renewed is a batch that does not end: past `batch_seconds` its token is raised as
well, so that it can never commit, and the projector is *stuck*, which its status shows.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock, Thread, get_ident
from time import monotonic
from types import FrameType
from uuid import uuid4

from sqlalchemy import Connection, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from qntx_es import faults
from qntx_es.config import somebody
from qntx_es.database import Database
from qntx_es.errors import QntxError
from qntx_es.tables import leases

# How much of a lease must be left for a batch to begin.
MARGIN = 0.1

logger = logging.getLogger(__name__)


def holder_name() -> str:
    """Return a name for whoever holds leases from here on: who, in which process."""
    return f"{somebody()}:{os.getpid()}:{uuid4().hex[:12]}"


def take_lease(  # noqa: PLR0913 - what a lease is made of
    connection: Connection,
    name: str,
    holder: str,
    *,
    now: int,
    microseconds: int,
    by_force: bool = False,
) -> bool:
    """Take or renew a lease until `now + microseconds`; False where another holds it.

    By force it is taken from whoever holds it, who has to be fenced in the same transaction.
    """
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    taken = dialect.insert(leases).values(name=name, holder=holder, expires_at=now + microseconds)
    free = or_(leases.c.holder == holder, leases.c.expires_at <= now)
    result = connection.execute(
        taken.on_conflict_do_update(
            index_elements=[leases.c.name],
            set_={"holder": taken.excluded.holder, "expires_at": taken.excluded.expires_at},
            where=None if by_force else free,
        ).returning(leases.c.name)
    )
    return result.first() is not None


def give_back(connection: Connection, names: Iterable[str], holder: str) -> None:
    """Let leases go, as far as they are still ours."""
    ours = leases.c.name.in_(list(names)), leases.c.holder == holder
    connection.execute(delete(leases).where(*ours))


@dataclass(slots=True)
class _Work:
    """A batch in hand: since when, and in which thread."""

    since: float
    thread: int
    stuck: Callable[[FrameType], None]
    is_told: bool = False


class Leases:
    """The leases that one host holds, renewed until it closes."""

    def __init__(self, database: Database, *, seconds: float, batch_seconds: float) -> None:
        self.holder = holder_name()
        self.seconds = seconds
        self._database = database
        self._batch_seconds = batch_seconds
        self._until: dict[str, float] = {}
        self._work: dict[str, _Work] = {}
        self._lock = Lock()
        self._ended = Event()
        self._thread = Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    def is_held(self, name: str) -> bool:
        """Tell by our own clock whether a lease is ours for long enough to begin a batch."""
        return monotonic() < self._until.get(name, 0.0) - self.seconds * MARGIN

    def take(self, connection: Connection, name: str) -> bool:
        """Take a lease, in a transaction whose end is to be told by `keep`."""
        faults.point("lease.before_take")
        now = self._database.now(connection)
        microseconds = round(self.seconds * 1_000_000)
        return take_lease(connection, name, self.holder, now=now, microseconds=microseconds)

    def keep(self, name: str, since: float) -> None:
        """Renew a lease from now on, that was taken after `since` on the monotonic clock."""
        with self._lock:
            self._until[name] = since + self.seconds

    def give_back(self, *names: str) -> None:
        """Let leases go, for others to take at once."""
        with self._lock:
            held = [name for name in names if self._until.pop(name, None) is not None]
        if held:
            with self._database.write() as connection:
                give_back(connection, held, self.holder)

    @contextmanager
    def working(self, name: str, stuck: Callable[[FrameType], None]) -> Iterator[None]:
        """Let it be known that a batch is in hand under a lease.

        Past `batch_seconds` the lease is renewed no more, and `stuck` is called with the frame that
        this thread is at.
        """
        self._work[name] = _Work(monotonic(), get_ident(), stuck)
        try:
            yield
        finally:
            del self._work[name]

    def close(self) -> None:
        """Give everything back, and renew nothing more."""
        self.lapse()
        try:
            self.give_back(*self._until)
        except (QntxError, SQLAlchemyError) as error:
            logger.warning("leases are not given back and will expire: %s", error)

    def lapse(self) -> None:
        """Renew nothing more and give nothing back: what is held runs out, as that of the dead."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.seconds / 3):
            try:
                self._tell_stuck()
                self._renew()
            except (QntxError, SQLAlchemyError) as error:
                logger.warning("leases are not renewed: %s", error)

    def _renew(self) -> None:
        with self._lock:
            held = sorted(self._until)
        if not held:
            return
        since = monotonic()
        faults.point("lease.before_renew")
        with self._database.write() as connection:
            until = self._database.now(connection) + round(self.seconds * 1_000_000)
            ours = leases.c.name.in_(held), leases.c.holder == self.holder
            renewed = update(leases).where(*ours).values(expires_at=until).returning(leases.c.name)
            still = set(connection.execute(renewed).scalars())
        with self._lock:
            for name in held:
                if name not in still:
                    self._until.pop(name, None)
                elif name in self._until:
                    self._until[name] = since + self.seconds

    def _tell_stuck(self) -> None:
        for name, work in list(self._work.items()):
            if work.is_told or monotonic() - work.since < self._batch_seconds:
                continue
            with self._lock:
                self._until.pop(name, None)
            frame = sys._current_frames().get(work.thread)  # noqa: SLF001 - the one way to see it
            if frame is not None and self._work.get(name) is work:
                work.stuck(frame)
                work.is_told = True


def count_held(connection: Connection, prefix: str, now: int) -> int:
    """Return how many leases whose names begin like this are held."""
    alike = leases.c.name.startswith(prefix, autoescape=True)
    asked = select(func.count()).where(alike, leases.c.expires_at > now)
    return int(connection.execute(asked).scalar_one())
