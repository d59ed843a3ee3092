"""How long a query takes on a log of two million, beside the same on one of twenty thousand.

Both logs are of the same make: for every twenty attestations there is an entity, and there are so
many contexts and actors, the same in both. Each query asks for as much of either, so a query that
costs what it finds takes as long on both, but for the depth of an index. They are asked in turn,
each of another entity, context, actor, moment or payload every time, through `host.ax`.

    python benchmarks/ax.py [--rounds 60] [--length 2000000] [--on sqlite] [--on postgresql]
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from statistics import median
from time import perf_counter

from sqlalchemy import text

from benchmarks.ratios import PADDING, Ratio, show
from qntx_es import Ax, Domain, Host, Payload
from qntx_es.attestation import instant
from qntx_es.testing import PostgresServer

SHORT, LONG = 20_000, 2_000_000
TARGET = 1.5
PER_ENTITY, CONTEXTS, ACTORS = 20, 40, 25
TENTH = 100_000  # microseconds between two attestations
FILL = 50_000
WARMING = 5
UP = "WITH RECURSIVE up(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM up WHERE n < :last)"
ON_SQLITE = (
    f"{UP} SELECT n FROM up",
    f"json_object('name', printf('n%012d', n), 'padding', '{PADDING}', 'serial', n)",
    "printf('%012d', n)",
)
TWELVE = "lpad(n::text, 12, '0')"
ON_POSTGRESQL = (
    "SELECT generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n",
    f"""'{{"name":"n' || {TWELVE} || '","padding":"{PADDING}","serial":' || n || '}}'""",
    TWELVE,
)

Draw = Callable[[random.Random, int], Ax | str]


class Measured(Payload, context="measured_0"):
    """What the log is full of."""

    name: str
    serial: int
    padding: str = ""


measuring = Domain("measuring")
measuring.index(Measured, "name")
measuring.index(Measured, "serial")


def _moment(draw: random.Random, length: int) -> Ax:
    since = instant(draw.randrange(length - 20) * TENTH)
    return Ax(since=since, until=since + timedelta(seconds=1))


def _newest(draw: random.Random, length: int) -> Ax:
    number = draw.randrange(length)
    entity = f"e{number * 7919 % (length // PER_ENTITY)}"
    return Ax(entities=entity, contexts=f"measured_{number % CONTEXTS}", limit=1)


def _serials(draw: random.Random, length: int) -> str:
    first = draw.randrange(length - 20)
    return f"where serial >= {first} and serial < {first + 10}"


# What is asked, of a log of a certain length.
QUERIES: dict[str, Draw] = {
    "by entity": lambda draw, length: Ax(entities=f"e{draw.randrange(length // PER_ENTITY)}"),
    "by entity, the newest": lambda draw, length: Ax(
        entities=f"e{draw.randrange(length // PER_ENTITY)}", limit=1
    ),
    "by entity and context, the newest": _newest,
    "by context, the newest ten": lambda draw, _: Ax(
        contexts=f"measured_{draw.randrange(CONTEXTS)}", limit=10
    ),
    "by a rare context": lambda *_: Ax(contexts="rare"),
    "by actor, the newest ten": lambda draw, _: Ax(actors=f"a{draw.randrange(ACTORS)}", limit=10),
    "by a rare actor": lambda *_: Ax(actors="seldom"),
    "by time, a second of it": _moment,
    "by an indexed payload path": lambda draw, length: (
        f'where name = "n{draw.randrange(1, length):012d}"'
    ),
    "by context and an indexed path": lambda draw, length: (
        f'is measured_0 where name = "n{draw.randrange(1, length // CONTEXTS) * CONTEXTS:012d}"'
    ),
    "by a range of an indexed path": _serials,
}


def fill(host: Host, length: int) -> None:
    """Fill an empty log in SQL, through its guards, and let the database settle."""
    series, payload, number = ON_SQLITE if host.database.is_sqlite else ON_POSTGRESQL
    columns = "position, recorded_at, id, context, entity, actor, slice, depth, schema_version"
    insert = text(
        f"INSERT INTO qntx_attestations ({columns}, payload) "
        f"SELECT n, n * {TENTH}, '00000000-0000-7000-8000-' || {number}, "
        f"CASE WHEN n % {length // 10} = 7 THEN 'rare' ELSE 'measured_' || (n % {CONTEXTS}) END, "
        f"'e' || ((n * 7919) % {length // PER_ENTITY}), "
        f"CASE WHEN n % {length // 10} = 3 THEN 'seldom' ELSE 'a' || (n % {ACTORS}) END, "
        f"0, 0, 1, {payload} FROM ({series}) AS series"
    )
    for first in range(1, length + 1, FILL):
        last = min(length, first + FILL - 1)
        with host.database.write() as connection:
            connection.execute(insert, {"first": first, "last": last})
    if not host.database.is_sqlite:
        with host.database.alone() as connection:
            connection.execute(text("VACUUM ANALYZE"))


def measure(label: str, new_url: Callable[[], str], length: int, rounds: int) -> list[Ratio]:
    """Ask a short log and a long one in turn, and return the ratio for each kind of query."""
    hosts = {}
    for size in (SHORT, length):
        hosts[size] = Host(new_url(), [measuring])
        hosts[size].upgrade()
        fill(hosts[size], size)
    found = []
    for what, asked in QUERIES.items():
        seconds: dict[int, list[float]] = {size: [] for size in hosts}
        draw = random.Random(7)
        for number in range(rounds + WARMING):
            for size, host in hosts.items():
                ax = asked(draw, size)
                began = perf_counter()
                answer = host.ax(ax)
                took = perf_counter() - began
                if not answer:
                    raise AssertionError(f"{ax} finds nothing, so it measures nothing")
                if number >= WARMING:
                    seconds[size].append(took)
        short, longer = (median(one) * 1000 for one in seconds.values())
        found.append(
            Ratio(
                f"{label}, {what}",
                f"{longer:.2f} ms",
                f"{short:.2f} ms",
                longer / short,
                TARGET,
                "at most",
            )
        )
    for host in hosts.values():
        host.close()
    return found


def main() -> None:
    """Measure on the databases asked for, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--length", type=int, default=LONG)
    parser.add_argument("--on", action="append", choices=["sqlite", "postgresql"])
    asked = parser.parse_args()
    databases = asked.on or ["sqlite", "postgresql"]
    found: list[Ratio] = []
    with ExitStack() as stack:
        if "sqlite" in databases:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            names = iter(range(100))
            sqlite = lambda: f"sqlite:///{folder / f'{next(names)}.db'}"  # noqa: E731
            found += measure("SQLite", sqlite, asked.length, asked.rounds)
        if "postgresql" in databases:
            server = stack.enter_context(PostgresServer.start())
            found += measure("PostgreSQL", server.create_database, asked.length, asked.rounds)
    print(f"a log of {asked.length:,} (ours) against one of {SHORT:,} (other)")
    show(found)


if __name__ == "__main__":
    main()
