"""What others notice of a rebuild of a million attestations, while they append and read.

A host runs; a process appends 200 a second, and another reads the live table again and again, all
of it and one row by key. Meanwhile the read model is rebuilt, beside it, and swapped. Printed are
how long a read took at most, with and without the rebuild, what any read saw that it should not
(an error, an empty or a partial table), and whether the certificate says what a verify finds.

    python benchmarks/rebuild.py [--attestations 1000000] [--on sqlite] [--on postgresql]
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.projection import ENTITIES, PADDING, counting, fill
from qntx_es import Attestation, Host, QntxError
from qntx_es.testing import PostgresServer

APPENDS_PER_SECOND = 200
READ_SECONDS_MAX = 0.25
CALM_SECONDS = 5.0


@dataclass
class Seen:
    """What a reader saw: how often, how long it took at most, and what was wrong."""

    reads: int = 0
    slowest: float = 0.0
    wrong: list[str] = field(default_factory=list)


def read_on(url: str, told: Connection) -> None:
    """Read the live table until told to stop; tell what was seen each time somebody asks."""
    host = Host(url, [domain := counting("totals")])
    (table,) = domain.tables.values()
    seen = Seen()
    one = select(table).where(table.c.entity == f"github.com/example/{0:05d}")
    whole = select(func.count(), func.sum(table.c.count))
    rows_before = sum_before = 0
    while True:
        if told.poll():
            asked = told.recv()
            told.send(seen)
            if asked == "stop":
                host.close()
                return
            seen = Seen()
        began = time.perf_counter()
        try:
            with host.database.read() as connection:
                rows, total = connection.execute(whole).one()
                is_there = connection.execute(one).first() is not None
        except (QntxError, SQLAlchemyError) as error:
            seen.wrong.append(repr(error))
            continue
        seen.reads += 1
        seen.slowest = max(seen.slowest, time.perf_counter() - began)
        if rows < rows_before or (total or 0) < sum_before or not is_there:
            seen.wrong.append(f"{rows} rows of {rows_before}, {total} of {sum_before}, {is_there=}")
        rows_before, sum_before = rows, total or 0


def append_on(url: str, told: Connection) -> None:
    """Append so many a second until told to stop; tell how many, and how long one took at most."""
    host = Host(url)
    count, slowest, next_at = 0, 0.0, time.perf_counter()
    while not told.poll():
        next_at += 1 / APPENDS_PER_SECOND
        time.sleep(max(0.0, next_at - time.perf_counter()))
        entity = f"github.com/example/{count % ENTITIES:05d}"
        payload = {"name": f"live{count}", "size": count % 1000, "padding": PADDING}
        began = time.perf_counter()
        host.append(
            Attestation(context="measured", entity=entity, actor="live@user", payload=payload)
        )
        slowest = max(slowest, time.perf_counter() - began)
        count += 1
    told.recv()
    told.send((count, slowest))
    host.close()


def measure(url: str, label: str, size: int) -> bool:
    """Rebuild once under load, print what was noticed, and tell whether all is met."""
    host = Host(url, [counting("totals")])
    host.upgrade()
    fill(host, size)
    host.catch_up()
    anew = get_context("spawn")
    ends = [anew.Pipe() for _ in range(2)]
    work = zip((read_on, append_on), ends, strict=True)
    others = [anew.Process(target=run, args=(url, theirs)) for run, (_, theirs) in work]
    (reader, _), (appender, _) = ends
    with host.running():
        for other in others:
            other.start()
        time.sleep(CALM_SECONDS)
        reader.send("calm")
        reader.recv()
        time.sleep(CALM_SECONDS)
        reader.send("before")
        calm: Seen = reader.recv()
        began = time.perf_counter()
        rebuilt = host.rebuild("totals")
        took = time.perf_counter() - began
        reader.send("stop")
        seen: Seen = reader.recv()
        appender.send("stop")
        appended, slowest_append = appender.recv()
        host.wait_for(host.log.head(), "totals", 60)
    for other in others:
        other.join()
    verified = host.verify("totals")
    host.close()
    is_exact = rebuilt.is_same and verified.is_same
    is_met = not seen.wrong and seen.slowest <= READ_SECONDS_MAX and is_exact
    print(
        f"{label}: {rebuilt.position:,} attestations rebuilt in {took:.1f} s "
        f"({rebuilt.position / took:,.0f}/s) beside {appended:,} appends, the slowest of "
        f"{1000 * slowest_append:.0f} ms\n"
        f"  {seen.reads:,} reads, the slowest of {1000 * seen.slowest:.0f} ms "
        f"(without a rebuild {1000 * calm.slowest:.0f} ms; at most {1000 * READ_SECONDS_MAX:.0f}), "
        f"{len(seen.wrong)} wrong; certificate exact: {is_exact}: {'met' if is_met else 'missed'}"
    )
    for one in seen.wrong[:5]:
        print(f"    {one}")
    return is_met


def main() -> None:
    """Measure on the databases asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attestations", type=int, default=1_000_000)
    parser.add_argument("--on", action="append", choices=["sqlite", "postgresql"])
    asked = parser.parse_args()
    databases = asked.on or ["sqlite", "postgresql"]
    met = []
    if "sqlite" in databases:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder) / 'qntx.db'}"
            met.append(measure(url, "SQLite", asked.attestations))
    if "postgresql" in databases:
        with PostgresServer.start(durable=True) as server:
            met.append(measure(server.create_database(), "PostgreSQL", asked.attestations))
    sys.exit(0 if all(met) else os.EX_SOFTWARE)


if __name__ == "__main__":
    main()
