"""How fast many writers append together on PostgreSQL, beside a lock held to the commit.

The plain way to an order without holes is a lock taken before the position and let go by the
commit: one commit at a time, and whoever keeps a transaction open stops all. Ours lets writers
commit to the inbox meanwhile, and one pass takes all of it. Two questions, each of processes that
start at a barrier, run for some seconds, and are counted in the tables afterwards:

- one attestation a commit, by many writers, against the same writers under an advisory lock;
- one in the caller's own transaction, kept open for 10 ms, by many callers against one alone.

append.py measures it with the rest.
"""

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from statistics import median

from sqlalchemy import text

from benchmarks.ratios import PLACED, Bare, Ratio, said
from qntx_es import Host
from qntx_es.statements import values_of
from qntx_es.testing import PostgresServer

WRITERS = (8, 16)
LOCK_TARGET = 1.2
CALLERS = 8
CALLERS_TARGET = 5.0
OPEN_SECONDS = 0.01
STALL_SECONDS = 120
LOCK = 7

Step = Callable[[], object]


class Writer:
    """One process's ways to write one attestation durably."""

    def __init__(self, url: str) -> None:
        self._host = Host(url)
        self._draw = random.Random()
        self._bare = Bare(self._host)
        marks = ", ".join(["%b"] * (len(PLACED) - 1))
        self._insert = (
            f"INSERT INTO bare ({', '.join(PLACED)}) "
            f"SELECT (SELECT coalesce(max(position), 0) + 1 FROM bare), {marks}"
        )

    def append(self) -> None:
        """Append in a transaction of our own."""
        self._host.append(said(self._draw, 1))

    def under_lock(self) -> None:
        """Insert at head + 1, alone from before the head is read until the commit."""
        (one,) = said(self._draw, 1)
        connection = self._bare.connection
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            connection.execute(self._insert, (0, None, *values_of(one)))

    def append_within(self) -> None:
        """Append in a caller's transaction that takes its time, and learn the position."""
        (one,) = said(self._draw, 1)
        with self._host.database.engine.begin() as connection:
            receipt = self._host.append(one, session=connection)
            time.sleep(OPEN_SECONDS)
        assert receipt.position  # noqa: S101 - a caller is done once his is in the log

    def close(self) -> None:
        """Close every connection."""
        self._bare.close()
        self._host.close()


def write(url: str, way: str, barrier: Barrier, rounds: int, seconds: float) -> None:
    """Write in one way for some seconds, as often as there are rounds: a process."""
    writer = Writer(url)
    step: Step = getattr(writer, way)
    step()  # connections are made, statements composed
    for _ in range(rounds):
        barrier.wait()
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            step()
        barrier.wait()
    writer.close()


class Crowd:
    """So many processes that write in one way, into one table, when told to."""

    def __init__(self, host: Host, way: str, size: int, *, rounds: int, seconds: float) -> None:
        spawned = multiprocessing.get_context("spawn")
        self._engine = host.database.engine
        self._table = "bare" if way == "under_lock" else "qntx_attestations"
        self._barrier = spawned.Barrier(size + 1, timeout=STALL_SECONDS)
        url = self._engine.url.render_as_string(hide_password=False)
        given = (url, way, self._barrier, rounds, seconds)
        self._processes = [spawned.Process(target=write, args=given) for _ in range(size)]
        for process in self._processes:
            process.start()

    def rate(self) -> float:
        """Let all write for one round, and return how many more a second have a position."""
        before = self._count()
        self._barrier.wait()
        began = time.perf_counter()
        self._barrier.wait()
        took = time.perf_counter() - began
        return (self._count() - before) / took

    def join(self) -> None:
        """Wait for the end of every process."""
        for process in self._processes:
            process.join()

    def _count(self) -> int:
        with self._engine.connect() as connection:
            asked = text(f"SELECT coalesce(max(position), 0) FROM {self._table}")
            return int(connection.execute(asked).scalar_one())


def compare(what: str, target: float, ours: Crowd, other: Crowd, rounds: int) -> Ratio:
    """Let two crowds write in turn, round by round."""
    seen = [(ours.rate(), other.rate()) for _ in range(rounds)]
    ours.join()
    other.join()
    own, theirs = (median(one[side] for one in seen) for side in (0, 1))
    ratio = median(own / other for own, other in seen)
    return Ratio(what, f"{own:,.0f}/s", f"{theirs:,.0f}/s", ratio, target)


def measure(server: PostgresServer, rounds: int, seconds: float) -> list[Ratio]:
    """Measure both, each in a database of its own."""
    found = []
    for size in WRITERS:
        host = Host(server.create_database())
        host.upgrade()
        bare = Bare(host)
        bare.create()
        bare.close()
        ours = Crowd(host, "append", size, rounds=rounds, seconds=seconds)
        other = Crowd(host, "under_lock", size, rounds=rounds, seconds=seconds)
        what = f"PostgreSQL, {size} writers, against a lock held to commit"
        found.append(compare(what, LOCK_TARGET, ours, other, rounds))
        host.close()
    host = Host(server.create_database())
    host.upgrade()
    together = Crowd(host, "append_within", CALLERS, rounds=rounds, seconds=seconds)
    alone = Crowd(host, "append_within", 1, rounds=rounds, seconds=seconds)
    what = f"PostgreSQL, {CALLERS} callers' own transactions, against one"
    found.append(compare(what, CALLERS_TARGET, together, alone, rounds))
    host.close()
    return found
