"""How fast the log takes attestations, beside what the same database does without us.

An append costs what a plain insert does not: a lock, a question whether the inbox holds anything,
guards in the database. Every ratio here says what is left of the speed, each against somebody who
does the same work in the same run, in turn, on commits that are durable:

- the bare driver at its best (SQLite `executemany`, PostgreSQL binary arrays), with finished rows
  into a table of the log's columns and indexes, and none of its guards;
- eventsourcing's own recorder as it ships, with the same payload bytes;
- ourselves on a shorter log: an append must not cost more the longer the log is;
- many writers that share the way in, as contention.py tells.

    python benchmarks/append.py [--rounds 7] [--seconds 2] [--on sqlite] [--on postgresql]
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from uuid import UUID, uuid5

from eventsourcing.persistence import ApplicationRecorder, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore
from sqlalchemy import make_url, text

from benchmarks import contention
from benchmarks.ratios import ENTITIES, Bare, Ratio, said, show
from qntx_es import Attestation, Host
from qntx_es.testing import PostgresServer

# How many batches of a size one round appends.
SIZES = {1: 150, 10: 60, 100: 25, 1_000: 6}
DRIVER_TARGET = 0.5
PEER_TARGETS = {"SQLite": 0.4, "PostgreSQL": 1.3}
LENGTH_TARGET = 1.5
SHORT, LONG = 20_000, 2_000_000
LENGTH_SIZES = {1: 150, 100: 25}
FILL = 50_000
# Numbers from :first to :last, an entity at random, the number in twelve digits.
ON_SQLITE = (
    (
        "WITH RECURSIVE up(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM up WHERE n < :last) "
        "SELECT n FROM up"
    ),
    f"printf('%05d', abs(random()) % {ENTITIES})",
    "printf('%012d', n)",
)
ON_POSTGRESQL = (
    "SELECT generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n",
    f"lpad(floor(random() * {ENTITIES})::int::text, 5, '0')",
    "lpad(n::text, 12, '0')",
)

Work = Callable[[list[list[Attestation]]], None]


class Peer:
    """The recorder of the eventsourcing library, each entity an aggregate of it."""

    def __init__(self, url: str) -> None:
        named = make_url(url)
        self.datastore: SQLiteDatastore | PostgresDatastore
        self._recorder: ApplicationRecorder
        if named.get_backend_name() == "sqlite":
            self.datastore = SQLiteDatastore(str(named.database))
            sqlite = SQLiteApplicationRecorder(self.datastore)
            sqlite.create_table()
            self._recorder = sqlite
        else:
            self.datastore = PostgresDatastore(
                str(named.database),
                str(named.host or named.query["host"]),
                str(named.port or named.query["port"]),
                str(named.username),
                named.password or "",
            )
            postgres = PostgresApplicationRecorder(self.datastore)
            postgres.create_table()
            self._recorder = postgres
        self._versions: dict[UUID, int] = {}

    def prepared(self, batches: list[list[Attestation]]) -> Callable[[], None]:
        """Return what records the finished events of each batch."""
        finished = [[self._event(one) for one in batch] for batch in batches]

        def record() -> None:
            for events in finished:
                self._recorder.insert_events(events)

        return record

    def _event(self, one: Attestation) -> StoredEvent:
        aggregate = uuid5(UUID(int=0), one.entity)
        version = self._versions[aggregate] = self._versions.get(aggregate, 0) + 1
        return StoredEvent(aggregate, version, one.context, one.text.encode())


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    began = perf_counter()
    work()
    return perf_counter() - began


def appending(host: Host, batches: list[list[Attestation]]) -> Callable[[], None]:
    """Return what appends each batch, in a transaction of its own."""

    def append() -> None:
        for batch in batches:
            host.append(batch)

    return append


def rates_of(what: str, size: int, target: float, seconds: list[tuple[float, float]]) -> Ratio:
    """Return the ratio of two sides that have done the same, by the seconds of each round."""
    count = size * SIZES[size]
    ours, other = (median(count / one[side] for one in seconds) for side in (0, 1))
    ratio = median(other / own for own, other in seconds)
    return Ratio(what, f"{ours:,.0f}/s", f"{other:,.0f}/s", ratio, target)


def against_others(host: Host, peer: Peer, label: str, rounds: int) -> list[Ratio]:
    """Append, record and insert in turn, in batches of all sizes."""
    bare = Bare(host)
    bare.create()
    draw = random.Random(7)
    by_peer: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
    by_driver: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        for size, count in SIZES.items():
            batches = [said(draw, size) for _ in range(count)]
            ours = timed(appending(host, batches))
            theirs = timed(peer.prepared(batches))
            driver = timed(bare.prepared(batches)) if size == max(SIZES) else 0
            if number == 0:
                continue  # to warm up
            by_peer[size].append((ours, theirs))
            if driver:
                by_driver.append((ours, driver))
    bare.close()
    size = max(SIZES)
    what = f"{label}, batches of {size}, against the bare driver"
    found = [rates_of(what, size, DRIVER_TARGET, by_driver)]
    for size, seconds in by_peer.items():
        what = f"{label}, batches of {size}, against eventsourcing"
        found.append(rates_of(what, size, PEER_TARGETS[label], seconds))
    return found


def fill(host: Host, length: int) -> None:
    """Fill an empty log in SQL, dense and past its guards, and let the database settle."""
    series, entity, number = ON_SQLITE if host.database.is_sqlite else ON_POSTGRESQL
    columns = "position, recorded_at, id, context, entity, actor, slice, depth, schema_version"
    insert = text(
        f"INSERT INTO qntx_attestations ({columns}, payload) "
        f"SELECT n, 0, '00000000-0000-7000-8000-' || {number}, 'measured', "
        f"'github.com/example/' || {entity}, 'benchmark@user', 0, 0, 1, :payload "
        f"FROM ({series}) AS series"
    )
    payload = said(random.Random(7), 1)[0].text
    for first in range(1, length + 1, FILL):
        last = min(length, first + FILL - 1)
        with host.database.write() as connection:
            connection.execute(insert, {"first": first, "last": last, "payload": payload})
    if not host.database.is_sqlite:
        alone = host.database.engine.execution_options(isolation_level="AUTOCOMMIT")
        with alone.connect() as connection:
            connection.execute(text("VACUUM ANALYZE"))


def against_length(urls: tuple[str, str], label: str, rounds: int) -> list[Ratio]:
    """Append to a short log and to a long one in turn."""
    hosts = []
    for url, length in zip(urls, (SHORT, LONG), strict=True):
        host = Host(url)
        host.upgrade()
        fill(host, length)
        hosts.append(host)
    draw = random.Random(7)
    seconds: dict[int, list[tuple[float, float]]] = {size: [] for size in LENGTH_SIZES}
    for number in range(rounds + 1):
        for size, count in LENGTH_SIZES.items():
            some = [[said(draw, size) for _ in range(count)] for _ in hosts]
            short, longer = (timed(appending(*one)) for one in zip(hosts, some, strict=True))
            if number:
                seconds[size].append((short, longer))
    for host in hosts:
        host.close()
    return [length_of(label, size, seconds[size]) for size in LENGTH_SIZES]


def length_of(label: str, size: int, seconds: list[tuple[float, float]]) -> Ratio:
    """Return the ratio of the long log to the short one, by the seconds of each round."""
    count = LENGTH_SIZES[size]
    short, longer = (median(one[side] / count * 1000 for one in seconds) for side in (0, 1))
    # All rounds together: now and then one of them writes back what the others have left.
    ratio = sum(longer for _, longer in seconds) / sum(short for short, _ in seconds)
    what = f"{label}, batches of {size} to a log of {LONG:,}, against {SHORT:,}"
    return Ratio(what, f"{longer:.2f} ms", f"{short:.2f} ms", ratio, LENGTH_TARGET, "at most")


def measure(label: str, new_url: Callable[[], str], rounds: int) -> list[Ratio]:
    """Measure one writer on one kind of database."""
    host = Host(new_url())
    host.upgrade()
    peer = Peer(new_url())
    found = against_others(host, peer, label, rounds)
    host.close()
    peer.datastore.close()
    return [*found, *against_length((new_url(), new_url()), label, rounds)]


def main() -> None:
    """Measure on the databases asked for, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2, help="of a round of many writers")
    parser.add_argument("--on", action="append", choices=["sqlite", "postgresql"])
    asked = parser.parse_args()
    databases = asked.on or ["sqlite", "postgresql"]
    found: list[Ratio] = []
    with ExitStack() as stack:
        if "sqlite" in databases:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            names = iter(range(100))
            sqlite = lambda: f"sqlite:///{folder / f'{next(names)}.db'}"  # noqa: E731
            found += measure("SQLite", sqlite, asked.rounds)
        if "postgresql" in databases:
            server = stack.enter_context(PostgresServer.start(durable=True))
            found += measure("PostgreSQL", server.create_database, asked.rounds)
            found += contention.measure(server, asked.rounds, asked.seconds)
    show(found)


if __name__ == "__main__":
    main()
