"""How fast the log takes attestations, beside what the same database does without us.

An append costs what a plain insert does not: a lock, a question whether the inbox holds anything,
guards in the database. Every ratio here says what is left of the speed, each against somebody who
does the same work in the same run, in turn, on commits that are durable:

- the bare driver at its best (SQLite `executemany`, PostgreSQL binary arrays), with finished rows
  into a table of the log's columns and indexes, and none of its guards;
- eventsourcing's own recorder as it ships, with the same payload bytes;
- ourselves on a shorter log: an append must not cost more the longer the log is.

How writers share the lock is measured in contention.py.

    python benchmarks/append.py [--rounds 7] [--on sqlite] [--on postgresql] [--long]
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal, cast
from uuid import UUID, uuid5

from eventsourcing.persistence import ApplicationRecorder, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore
from sqlalchemy import make_url, text

from qntx_es import Attestation, Host
from qntx_es.statements import COLUMNS, TEXTS, values_of
from qntx_es.testing import PostgresServer

ENTITIES = 10_000
PADDING = "x" * 96
PLACED = ("position", "recorded_at", "entity_version", *COLUMNS)
# How many batches of a size one round appends.
SIZES = {1: 150, 10: 60, 100: 25, 1_000: 6}
DRIVER_TARGET = 0.5
PEER_TARGETS = {"SQLite": 0.4, "PostgreSQL": 1.3}
LENGTH_TARGET = 1.5
SHORT, LONG, LONGEST = 20_000, 200_000, 2_000_000
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


@dataclass(frozen=True)
class Ratio:
    """One line of the table: two sides in figures, their ratio, and what it is to be."""

    what: str
    ours: str
    other: str
    ratio: float
    target: float
    bound: Literal["at least", "at most"] = "at least"

    @property
    def is_met(self) -> bool:
        """Whether the ratio is on the right side of its target."""
        return self.ratio >= self.target if self.bound == "at least" else self.ratio <= self.target


def show(ratios: Sequence[Ratio]) -> None:
    """Print the table."""
    print(f"\n{'':60} {'ours':>11} {'other':>11} {'ratio':>6}   target")
    for one in ratios:
        verdict = "met" if one.is_met else "MISSED"
        print(
            f"{one.what:60} {one.ours:>11} {one.other:>11} {one.ratio:6.2f}"
            f"   {one.bound} {one.target:g}: {verdict}"
        )


def said(draw: random.Random, count: int) -> list[Attestation]:
    """Return so many attestations of about 150 bytes of payload."""
    return [
        Attestation(
            context="measured",
            entity=f"github.com/example/{draw.randrange(ENTITIES):05d}",
            actor="benchmark@user",
            payload={"name": f"n{number}", "size": draw.randrange(1000), "padding": PADDING},
        )
        for number in range(count)
    ]


class Bare:
    """The same rows into a table of the same shape, with nothing in between."""

    def __init__(self, host: Host) -> None:
        self.is_sqlite = host.database.is_sqlite
        self._pooled = host.database.engine.raw_connection()
        self.connection = cast("Any", self._pooled.driver_connection)
        if not self.is_sqlite:
            self.connection.rollback()
            self.connection.autocommit = True
        self._last = 0

    def create(self) -> None:
        """Make the table, with the indexes of the log."""
        words = "text" if self.is_sqlite else 'text COLLATE "C"'
        shape = {name: words if name in TEXTS else "bigint" for name in PLACED}
        shape["position"] = "integer PRIMARY KEY" if self.is_sqlite else "bigint PRIMARY KEY"
        shape["id"] += " UNIQUE"
        columns = ", ".join(f"{name} {kind}" for name, kind in shape.items())
        self.connection.execute(f"CREATE TABLE bare ({columns})")
        for name in ("entity", "context"):
            self.connection.execute(f"CREATE INDEX bare_{name} ON bare ({name}, position)")

    def prepared(self, batches: list[list[Attestation]]) -> Callable[[], None]:
        """Return what inserts the finished rows of each batch, in one transaction each."""
        finished = []
        for batch in batches:
            rows = [(self._last + n, 0, None, *values_of(one)) for n, one in enumerate(batch, 1)]
            self._last += len(batch)
            columns = tuple([list(column) for column in zip(*rows, strict=True)])
            finished.append(rows if self.is_sqlite else columns)
        insert = self._insert_sqlite if self.is_sqlite else self._insert_postgresql
        return lambda: insert(finished)

    def _insert_sqlite(self, finished: list[Any]) -> None:
        marks = ", ".join("?" * len(PLACED))
        insert = f"INSERT INTO bare ({', '.join(PLACED)}) VALUES ({marks})"
        for rows in finished:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.executemany(insert, rows)
            self.connection.execute("COMMIT")

    def _insert_postgresql(self, finished: list[Any]) -> None:
        kinds = ("text" if name in TEXTS else "bigint" for name in PLACED)
        arrays = ", ".join(f"%b::{kind}[]" for kind in kinds)
        insert = f"INSERT INTO bare ({', '.join(PLACED)}) SELECT * FROM unnest({arrays})"
        for columns in finished:
            self.connection.execute(insert, columns)  # alone, it is its own transaction

    def close(self) -> None:
        """Give the connection back."""
        self._pooled.close()


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
        with host.database.autocommit() as connection:
            connection.execute(text("VACUUM ANALYZE"))


def against_length(urls: tuple[str, str], label: str, long: int, rounds: int) -> Ratio:
    """Append to a short log and to a long one in turn."""
    hosts = []
    for url, length in zip(urls, (SHORT, long), strict=True):
        host = Host(url)
        host.upgrade()
        fill(host, length)
        hosts.append(host)
    draw = random.Random(7)
    size, count = 100, SIZES[100]
    seconds = []
    for number in range(rounds + 1):
        some = [[said(draw, size) for _ in range(count)] for _ in hosts]
        short, longer = (timed(appending(*one)) for one in zip(hosts, some, strict=True))
        if number:
            seconds.append((short, longer))
    for host in hosts:
        host.close()
    short, longer = (median(one[side] / count * 1000 for one in seconds) for side in (0, 1))
    ratio = median(longer / short for short, longer in seconds)
    what = f"{label}, batches of {size} to a log of {long:,}, against {SHORT:,}"
    return Ratio(what, f"{longer:.2f} ms", f"{short:.2f} ms", ratio, LENGTH_TARGET, "at most")


def measure(label: str, new_url: Callable[[], str], long: int, rounds: int) -> list[Ratio]:
    """Measure all on one kind of database."""
    host = Host(new_url())
    host.upgrade()
    peer = Peer(new_url())
    found = against_others(host, peer, label, rounds)
    host.close()
    peer.datastore.close()
    return [*found, against_length((new_url(), new_url()), label, long, rounds)]


def main() -> None:
    """Measure on the databases asked for, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--on", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--long", action="store_true", help=f"a log of {LONGEST:,}: some minutes")
    asked = parser.parse_args()
    long = LONGEST if asked.long else LONG
    if not asked.long:
        print(f"The long log has {long:,}; one of {LONGEST:,} takes minutes to fill: --long")
    databases = asked.on or ["sqlite", "postgresql"]
    found: list[Ratio] = []
    with ExitStack() as stack:
        if "sqlite" in databases:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            names = iter(range(100))
            sqlite = lambda: f"sqlite:///{folder / f'{next(names)}.db'}"  # noqa: E731
            found += measure("SQLite", sqlite, long, asked.rounds)
        if "postgresql" in databases:
            server = stack.enter_context(PostgresServer.start(durable=True))
            found += measure("PostgreSQL", server.create_database, long, asked.rounds)
    show(found)


if __name__ == "__main__":
    main()
