"""How long after its commit an append shows in a read model, and what a host costs that waits.

A process of its own projects count, sum and last position by entity. Another appends a hundred a
second, one a commit, and looks the row up by its key, every 0.2 ms, until it holds the position.
Ours and eventsourcing's ProjectionRunner take turns on one PostgreSQL, both at work all the time.
On SQLite, where the library has no runner, ours is alone, in one process, and is held to theirs.
Then a host that has caught up is left alone, and asked how much of a core that took.

    python benchmarks/latency.py [--seconds 20] [--on sqlite] [--on postgresql]
"""

import argparse
import random
import resource
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, sleep
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import make_url

from benchmarks import peers
from benchmarks.children import Child, await_the_end
from benchmarks.projection import counting
from benchmarks.ratios import Ratio, said, show
from qntx_es import Host
from qntx_es.testing import PostgresServer

PER_SECOND = 100
TURNS = 4
LOOK_SECONDS = 0.0002
WARMING = 50
SETTLING_SECONDS = 3.0
IDLE_SECONDS = 20.0
VISIBLE_SECONDS_MAX = 10.0
ENTITIES = 1_000

# Appends one, and returns the key of its row and the position that this is to hold.
Append = Callable[[], tuple[str, int]]
# Returns the position that a row holds.
Look = Callable[[str], int]


def measure(append: Append, look: Look, count: int) -> list[float]:
    """Append so many at their pace, and return after how many milliseconds each was to be seen."""
    found = []
    due = perf_counter()
    for _ in range(count):
        sleep(max(0.0, due - perf_counter()))
        due = max(due + 1 / PER_SECOND, perf_counter())
        key, position = append()
        committed = perf_counter()
        while look(key) < position:
            if perf_counter() - committed > VISIBLE_SECONDS_MAX:
                message = f"{key} does not come to {position}"
                raise RuntimeError(message)
            sleep(LOOK_SECONDS)
        found.append((perf_counter() - committed) * 1000)
    return found


def our_append(host: Host) -> Append:
    """Return what appends to our log."""
    draw = random.Random(7)

    def append() -> tuple[str, int]:
        (one,) = said(draw, 1)
        return one.entity, host.append(one).position

    return append


def their_append(application: peers.Theirs) -> Append:
    """Return what records in theirs."""
    draw, known = random.Random(7), [uuid4() for _ in range(ENTITIES)]
    versions: dict[UUID, int] = {}

    def append() -> tuple[str, int]:
        one = peers.happened(draw, known, versions)
        return str(one.originator_id), application.record([one])

    return append


def look_on_postgresql(connection: psycopg.Connection, table: str) -> Look:
    """Return what looks a row up, prepared, each time in a transaction of its own."""
    query = f"SELECT last FROM {table} WHERE entity = %s".encode()

    def look(key: str) -> int:
        row = connection.execute(query, (key,), prepare=True).fetchone()
        return row[0] if row else 0

    return look


def look_on_sqlite(connection: sqlite3.Connection, table: str) -> Look:
    """Return what looks a row up."""
    query = f"SELECT last FROM {table} WHERE entity = ?"

    def look(key: str) -> int:
        row = connection.execute(query, (key,)).fetchone()
        return row[0] if row else 0

    return look


def run_ours(url: str) -> None:
    """Run our projector until told to leave."""
    with Host(url, [counting("latency")]) as host, host.running():
        await_the_end()


def run_theirs(url: str) -> None:
    """Run theirs until told to leave."""
    with peers.running(peers.environment(url)):
        await_the_end()


def idle(url: str) -> None:
    """Run our projector at the head, and say what part of a core that took, in per cent."""
    with Host(url, [counting("latency")]) as host, host.running():
        sleep(SETTLING_SECONDS)
        before, began = _cpu_seconds(), perf_counter()
        sleep(IDLE_SECONDS)
        print(100 * (_cpu_seconds() - before) / (perf_counter() - began), flush=True)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


PARTS: dict[str, Callable[[str], None]] = {"ours": run_ours, "theirs": run_theirs, "idle": idle}


def on_postgresql(url: str, seconds: float) -> tuple[list[float], list[float]]:
    """Let ours and theirs take turns, and return what either took."""
    with ExitStack() as stack:
        host = stack.enter_context(Host(url, [counting("latency")]))
        host.upgrade()
        theirs = stack.enter_context(peers.Theirs(peers.environment(url)))
        for part in ("ours", "theirs"):
            child = Child(__file__, part, url)
            stack.callback(child.leave)
            child.say()
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        reader = stack.enter_context(psycopg.connect(plain, autocommit=True))
        sides = [
            (our_append(host), look_on_postgresql(reader, "latency_totals")),
            (their_append(theirs), look_on_postgresql(reader, "their_totals")),
        ]
        took: list[list[float]] = [[], []]
        for append, look in sides:
            measure(append, look, WARMING)
        for _ in range(TURNS):
            for side, (append, look) in zip(took, sides, strict=True):
                side.extend(measure(append, look, int(seconds * PER_SECOND / TURNS)))
        return took[0], took[1]


def on_sqlite(url: str, seconds: float) -> list[float]:
    """Return what ours took, alone."""
    with ExitStack() as stack:
        host = stack.enter_context(Host(url, [counting("latency")]))
        host.upgrade()
        stack.enter_context(host.running())
        reader = sqlite3.connect(make_url(url).database or "", isolation_level=None)
        stack.enter_context(closing(reader))
        append, look = our_append(host), look_on_sqlite(reader, "latency_totals")
        measure(append, look, WARMING)
        return measure(append, look, int(seconds * PER_SECOND))


def cost_of_idling(url: str) -> float:
    """Return what part of a core a host takes that has nothing to do, in per cent."""
    child = Child(__file__, "idle", url)
    taken = float(child.say())
    child.leave()
    return taken


def _last_of_hundred(found: list[float]) -> float:
    return quantiles(found, n=100)[-1]


def compare(label: str, ours: list[float], theirs: list[float]) -> list[Ratio]:
    """Return the ratios of what ours took and theirs."""
    asked: list[tuple[str, Callable[[list[float]], float], float]] = [
        ("median", median, 1.5),
        ("99 % within", _last_of_hundred, 2.0),
    ]
    return [
        Ratio(
            f"{label}, commit to visible, {what}",
            f"{of(ours):.2f} ms",
            f"{of(theirs):.2f} ms",
            of(ours) / of(theirs),
            target,
            "at most",
        )
        for what, of, target in asked
    ]


def idling(label: str, url: str) -> Ratio:
    """Return what an idle host takes, beside one hundredth of a core."""
    taken = cost_of_idling(url)
    what = f"{label}, idle host, part of a core"
    return Ratio(what, f"{taken:.2f} %", "1 %", taken, 1.0, "at most")


def main() -> None:
    """Measure on the databases asked for, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--on", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part is not None:
        PARTS[asked.part](asked.url)
        return
    databases = asked.on or ["sqlite", "postgresql"]
    found: list[Ratio] = []
    theirs: list[float] = []
    if "postgresql" in databases:
        with PostgresServer.start(durable=True) as server:
            url = server.create_database()
            ours, theirs = on_postgresql(url, asked.seconds)
            found += compare("PostgreSQL", ours, theirs)
            found.append(idling("PostgreSQL", url))
    if "sqlite" in databases:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder) / 'qntx.db'}"
            alone = on_sqlite(url, asked.seconds)
            print(
                f"SQLite, commit to visible, alone: median {median(alone):.2f} ms, "
                f"99 % within {_last_of_hundred(alone):.2f} ms"
            )
            if theirs:
                found += compare("SQLite (theirs: PostgreSQL)", alone, theirs)
            found.append(idling("SQLite", url))
    show(found)


if __name__ == "__main__":
    main()
