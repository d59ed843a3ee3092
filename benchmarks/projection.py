"""How fast a projector catches up, beside what the same database does without us.

The work: count, sum and last position by entity, over 150-byte payloads. Beside ours, in one run
and on one log: (a) one UPSERT an attestation, each in a transaction of its own; (b) pure SQL, one
`INSERT … SELECT … GROUP BY` a batch of the same size; (c) a bare loop over the driver that folds a
batch in a dictionary; (d) eventsourcing's own projection of a sample (`benchmarks/peers.py`). The
same work declared, as a fold, is held against all of them, and against pure SQL in batches as large
as a fold's. Then a rebuild against the catching up it repeats; the memory of a process that catches
up with the log, against one with a tenth of it; and, on PostgreSQL, two processes that share a
domain by slices against one. Ratios are medians of interleaved rounds; commits are durable (SQLite
`synchronous=FULL`, PostgreSQL as it comes).

    python benchmarks/projection.py [--attestations 1000000] [--on sqlite] [--on postgresql]
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any, cast

from sqlalchemy import BigInteger, Column, Integer, String, Table

from benchmarks import peers
from benchmarks.children import Child, await_the_end
from benchmarks.ratios import Ratio, show
from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows, count, last, total
from qntx_es.projections.folding import POSITIONS_MAX
from qntx_es.testing import PostgresServer

ENTITIES = 10_000
BATCH = 5_000
ROUNDS = 3
ALONE = 2_000
# Of eventsourcing's, which does about a thousand a second.
SAMPLE = 3_000
SECONDS_MAX = 300.0
# Before two hosts know of each other, and share.
MEETING_SECONDS = 3.0
LOOK_SECONDS = 0.02
PADDING = "x" * 96


class Measured(Payload, context="measured"):
    """About 150 bytes of JSON."""

    name: str
    size: int
    padding: str


def totals_of(domain: Domain) -> Table:
    """Declare the table of count, sum and last position by entity."""
    return domain.table(
        "totals",
        Column("entity", String, primary_key=True),
        Column("count", Integer, nullable=False, default=0),
        Column("sum", BigInteger, nullable=False, default=0),
        Column("last", BigInteger),
    )


def folding(name: str) -> Domain:
    """Return a domain in which the work is declared."""
    domain = Domain(name)
    domain.fold(
        Measured,
        into=totals_of(domain),
        key="entity",
        count=count(),
        sum=total("payload.size"),
        last=last("position"),
    )
    return domain


def counting(name: str, *, by_entity: bool = False) -> Domain:
    """Return a domain in which the work is coded."""
    domain = Domain(name, by_entity=by_entity)
    totals = totals_of(domain)

    @domain.project(Measured)
    def add(measured: Recorded[Measured], rows: Rows) -> None:
        rows.add(totals, measured.entity, count=1, sum=measured.payload.size)
        rows.put(totals, entity=measured.entity, last=measured.position)

    return domain


def fill(host: Host, size: int) -> float:
    """Append `size` attestations, and return how many a second that was."""
    draw = random.Random(7)
    took = 0.0
    for start in range(0, size, BATCH):
        some = [
            Attestation(
                context="measured",
                entity=f"github.com/example/{draw.randrange(ENTITIES):05d}",
                actor="benchmark@user",
                payload={"name": f"n{start + n}", "size": draw.randrange(1000), "padding": PADDING},
            )
            for n in range(min(BATCH, size - start))
        ]
        began = perf_counter()
        host.append(some)
        took += perf_counter() - began
    return size / took


class Bare:
    """The driver's own connection, and the statements that differ between the databases."""

    def __init__(self, host: Host) -> None:
        self.is_sqlite = host.database.is_sqlite
        self._pooled = host.database.engine.raw_connection()
        self.connection = cast("Any", self._pooled.driver_connection)
        if not self.is_sqlite:
            self.connection.rollback()
            # Otherwise a read opens a transaction, and `transaction()` is a mere savepoint in it.
            self.connection.autocommit = True

    def close(self) -> None:
        """Give the connection back."""
        self._pooled.close()

    def run(self, sql: str, values: tuple[Any, ...] = ()) -> Any:  # noqa: ANN401 - a cursor
        """Execute one statement, `?` standing for a value."""
        return self.connection.execute(sql if self.is_sqlite else sql.replace("?", "%s"), values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block does, durably."""
        if self.is_sqlite:
            self.connection.execute("BEGIN IMMEDIATE")
            yield
            self.connection.execute("COMMIT")
        else:
            with self.connection.transaction():
                yield

    def create(self, table: str) -> None:
        """Make an empty table of totals."""
        key = "text" if self.is_sqlite else 'text COLLATE "C"'
        with self.transaction():
            self.run(f"DROP TABLE IF EXISTS {table}")
            self.run(
                f"CREATE TABLE {table} (entity {key} PRIMARY KEY, count bigint NOT NULL, "
                "sum bigint NOT NULL, last bigint)"
            )

    def read(self, after: int, until: int) -> list[Any]:
        """Return what a fold needs of a batch of the log."""
        return list(
            self.run(
                "SELECT position, entity, payload FROM qntx_attestations "
                "WHERE position > ? AND position <= ? ORDER BY position",
                (after, until),
            ).fetchall()
        )


UPSERT = (
    "INSERT INTO {table} (entity, count, sum, last) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (entity) DO UPDATE SET count = {table}.count + excluded.count, "
    "sum = {table}.sum + excluded.sum, last = excluded.last"
)


def one_each(bare: Bare, size: int) -> float:
    """Write one UPSERT an attestation, each in a transaction of its own (on a sample)."""
    bare.create("bare_each")
    upsert = UPSERT.format(table="bare_each")
    sample = min(size, ALONE)
    began = perf_counter()
    for position in range(1, sample + 1):
        for at, entity, payload in bare.read(position - 1, position):
            with bare.transaction():
                bare.run(upsert, (entity, 1, json.loads(payload)["size"], at))
    return sample / (perf_counter() - began)


def pure_sql(bare: Bare, size: int, batch: int = BATCH) -> float:
    """Write one statement a batch; the log never leaves the database."""
    bare.create("bare_sql")
    value = (
        "json_extract(payload, '$.size')" if bare.is_sqlite else "(payload::json->>'size')::bigint"
    )
    grouped = (
        "INSERT INTO bare_sql (entity, count, sum, last) "
        f"SELECT entity, count(*), sum({value}), max(position) FROM qntx_attestations "
        "WHERE position > ? AND position <= ? AND context = 'measured' GROUP BY entity "
        "ON CONFLICT (entity) DO UPDATE SET count = bare_sql.count + excluded.count, "
        "sum = bare_sql.sum + excluded.sum, last = excluded.last"
    )
    began = perf_counter()
    for start in range(0, size, batch):
        with bare.transaction():
            bare.run(grouped, (start, start + batch))
    return size / (perf_counter() - began)


def bare_loop(bare: Bare, size: int) -> float:
    """Fold a batch in a dictionary and write it at once: what a good hand would do."""
    bare.create("bare_loop")
    upsert = UPSERT.format(table="bare_loop")
    arrays = (
        "INSERT INTO bare_loop SELECT * FROM unnest(%b::text[], %b::bigint[], %b::bigint[], "
        "%b::bigint[]) ON CONFLICT (entity) DO UPDATE SET count = bare_loop.count + "
        "excluded.count, sum = bare_loop.sum + excluded.sum, last = excluded.last"
    )
    began = perf_counter()
    for start in range(0, size, BATCH):
        folded: dict[str, list[int]] = {}
        for position, entity, payload in bare.read(start, start + BATCH):
            row = folded.setdefault(entity, [0, 0, 0])
            row[0] += 1
            row[1] += json.loads(payload)["size"]
            row[2] = position
        rows = [(entity, *row) for entity, row in folded.items()]
        with bare.transaction():
            if bare.is_sqlite:
                bare.connection.executemany(upsert, rows)
            else:
                columns = tuple([list(column) for column in zip(*rows, strict=True)])
                bare.connection.execute(arrays, columns)
    return size / (perf_counter() - began)


def ours(url: str, domain: Domain, size: int) -> float:
    """Let a projector catch up with the whole log."""
    name = domain.name
    host = Host(url, [domain])
    host.upgrade()
    began = perf_counter()
    host.catch_up()
    took = perf_counter() - began
    (status,) = [one for one in host.statuses() if one.name == name]
    if status.lag:
        message = f"not at the head: {status}"
        raise RuntimeError(message)
    host.close()
    return size / took


def rebuilt(url: str, domain: Domain) -> tuple[float, float]:
    """Rebuild what has caught up; return how many a second, in filling and in all."""
    seconds = {}
    with Host(url, [domain]) as host:
        done = host.rebuild(
            domain.name, progress=lambda at: seconds.update({at.state: (at.done, at.seconds)})
        )
    filled, took = seconds["filling"]
    return filled / took, filled / done.seconds


def memory(url: str) -> float:
    """Return how many MiB a process has taken at most, that does nothing but catch up."""
    child = Child(__file__, "remember", url)
    taken = float(child.say())
    child.leave()
    return taken


def remember(url: str) -> None:
    """Catch up, and say how many MiB that took at most."""
    with Host(url, [counting("remembered")]) as host:
        host.upgrade()
        host.catch_up()
    print(peak(), flush=True)


def peak() -> float:
    """Return how many MiB this process has taken at most.

    Not by `getrusage`: across an exec, its figure goes on from that of whoever started the process.
    """
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in one)
    return int(line.split()[1]) / 1024


def share(url: str, size: int, into: int) -> float:
    """Let so many processes share a domain cut into as many ranges, from the beginning to lag 0."""
    domain = counting(f"shared{into}", by_entity=True)
    with ExitStack() as stack:
        host = stack.enter_context(Host(url, [domain]))
        host.upgrade()
        host.pause(domain.name)
        if into > 1:
            host.cut(domain.name, into)
        for _ in range(into):
            child = Child(__file__, domain.name, url)
            stack.callback(child.leave)
            child.say()
        sleep(MEETING_SECONDS)
        began = perf_counter()
        host.resume(domain.name)
        while _lag(host, domain.name):
            if perf_counter() - began > SECONDS_MAX:
                message = f"not at the head: {host.statuses()}"
                raise RuntimeError(message)
            sleep(LOOK_SECONDS)
        return size / (perf_counter() - began)


def _lag(host: Host, name: str) -> int:
    return next(one.lag for one in host.statuses() if one.name == name)


def run(name: str, url: str) -> None:
    """Run a domain that others may share, until told to leave."""
    with Host(url, [counting(name, by_entity=True)]) as host, host.running():
        await_the_end()


def compare(url: str, label: str, size: int) -> list[Ratio]:
    """Run all ways on one log in turn, print their medians, and return what has a target."""
    host = Host(url)
    host.upgrade()
    print(
        f"{label}: {size:,} attestations, {ENTITIES:,} entities; append {fill(host, size):,.0f}/s"
    )
    peers.record(url, min(size, SAMPLE), ENTITIES)
    bare = Bare(host)
    rates: dict[str, list[float]] = {}
    ways: dict[str, Callable[[], float]] = {
        "one transaction each": lambda: one_each(bare, size),
        "eventsourcing": lambda: peers.project(url),
        "pure SQL, by batch": lambda: pure_sql(bare, size),
        "bare loop": lambda: bare_loop(bare, size),
        "pure SQL, large batches": lambda: pure_sql(bare, size, POSITIONS_MAX),
    }
    for number in range(ROUNDS):
        coded = counting(f"coded{number}")
        for way, way_of in ways.items():
            rates.setdefault(way, []).append(way_of())
        rates.setdefault("ours, folded", []).append(ours(url, folding(f"folded{number}"), size))
        rates.setdefault("ours", []).append(ours(url, coded, size))
        for way, rate in zip((FILLING, REBUILDING), rebuilt(url, coded), strict=True):
            rates.setdefault(way, []).append(rate)
    bare.close()
    host.close()
    for way, seen in rates.items():
        coded_by, folded_by = (
            median(_quotients(rates[one], seen)) for one in ("ours", "ours, folded")
        )
        beside = f"ours {coded_by:6.2f} x   folded {folded_by:6.2f} x"
        print(f"  {way:26} {median(seen):>10,.0f}/s   {beside}")
    return _targets(label, rates)


FILLING, REBUILDING = "rebuild, filling", "rebuild, proof and swap"


def _quotients(some: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(some, others, strict=True)]


def _targets(label: str, rates: dict[str, list[float]]) -> list[Ratio]:
    library, by_batch = (25, 0.25) if label == "SQLite" else (50, 0.35)
    asked = [
        ("ours / pure SQL, by batch", "ours", "pure SQL, by batch", by_batch),
        ("ours / eventsourcing's projection", "ours", "eventsourcing", library),
        ("folded / pure SQL, large batches", "ours, folded", "pure SQL, large batches", 0.8),
        ("rebuild, filling / catching up", FILLING, "ours", 1),
    ]
    return [
        Ratio(
            f"{label}, {what}",
            f"{median(rates[one]):,.0f}/s",
            f"{median(rates[other]):,.0f}/s",
            median(_quotients(rates[one], rates[other])),
            target,
        )
        for what, one, other, target in asked
    ]


def compare_memory(url: str, short_url: str, label: str, size: int) -> Ratio:
    """Catch up with a log and with a tenth of it, and return the ratio of what that takes."""
    with Host(short_url) as short:
        short.upgrade()
        fill(short, size // 10)
    most, least = memory(url), memory(short_url)
    what = f"{label}, memory, {size:,} / {size // 10:,}"
    return Ratio(what, f"{most:.0f} MiB", f"{least:.0f} MiB", most / least, 1.2, "at most")


def compare_shared(url: str, size: int) -> Ratio:
    """Return the ratio of two processes to one."""
    one, two = share(url, size, 1), share(url, size, 2)
    what = "PostgreSQL, two by slices / one"
    return Ratio(what, f"{two:,.0f}/s", f"{one:,.0f}/s", two / one, 1.3)


def main() -> None:
    """Compare on the databases asked for, and print what is to be beside what is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attestations", type=int, default=1_000_000)
    parser.add_argument("--on", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part is not None:
        remember(asked.url) if asked.part == "remember" else run(asked.part, asked.url)
        return
    size, databases = asked.attestations, asked.on or ["sqlite", "postgresql"]
    ratios: list[Ratio] = []
    if "sqlite" in databases:
        with tempfile.TemporaryDirectory() as folder:
            url, short_url = (f"sqlite:///{Path(folder) / name}.db" for name in ("log", "short"))
            ratios += compare(url, "SQLite", size)
            ratios.append(compare_memory(url, short_url, "SQLite", size))
    if "postgresql" in databases:
        with PostgresServer.start(durable=True) as server:
            url = server.create_database()
            ratios += compare(url, "PostgreSQL", size)
            ratios.append(compare_memory(url, server.create_database(), "PostgreSQL", size))
            ratios.append(compare_shared(url, size))
    show(ratios)


if __name__ == "__main__":
    main()
