"""How fast the log takes attestations, beside the bare driver inserting the same rows.

The bare table has the log's columns and indexes, and none of its guards: no trigger, no lock, no
question whether an id is known. Both insert the same rows in batches of the same size, each batch
one durable transaction; the bare driver in its best way (SQLite `executemany`, PostgreSQL binary
arrays). Ratios are medians of interleaved rounds.

    python benchmarks/append.py [--batch 1000] [--batches 30] [--on sqlite] [--on postgresql]
"""

import argparse
import random
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

from qntx_es import Attestation, Host
from qntx_es.testing import PostgresServer

ENTITIES = 10_000
ROUNDS = 3
PADDING = "x" * 96
COLUMNS = (
    "position",
    "id",
    "recorded_at",
    "context",
    "entity",
    "actor",
    "slice",
    "depth",
    "schema_version",
    "payload",
)
INTEGERS = ("position", "recorded_at", "slice", "depth", "schema_version")


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
        text = "text" if self.is_sqlite else 'text COLLATE "C"'
        shape = {name: "bigint" if name in INTEGERS else text for name in COLUMNS}
        shape["position"] = "integer PRIMARY KEY" if self.is_sqlite else "bigint PRIMARY KEY"
        shape["id"] += " UNIQUE"
        columns = ", ".join(f"{name} {kind} NOT NULL" for name, kind in shape.items())
        self.connection.execute(f"CREATE TABLE bare ({columns})")
        for name in ("entity", "context"):
            self.connection.execute(f"CREATE INDEX bare_{name} ON bare ({name}, position)")

    def insert(self, attestations: list[Attestation]) -> None:
        """Insert one batch in one transaction."""
        rows = [
            (self._last + n, one.id, 0, one.context, one.entity, one.actor, 0, 0, 1, one.text)
            for n, one in enumerate(attestations, 1)
        ]
        self._last += len(rows)
        names = ", ".join(COLUMNS)
        if self.is_sqlite:
            self.connection.execute("BEGIN IMMEDIATE")
            marks = ", ".join("?" * len(COLUMNS))
            self.connection.executemany(f"INSERT INTO bare ({names}) VALUES ({marks})", rows)
            self.connection.execute("COMMIT")
            return
        arrays = ", ".join(f"%b::{'bigint' if name in INTEGERS else 'text'}[]" for name in COLUMNS)
        columns = tuple([list(column) for column in zip(*rows, strict=True)])
        with self.connection.transaction():
            self.connection.execute(
                f"INSERT INTO bare ({names}) SELECT * FROM unnest({arrays})", columns
            )

    def close(self) -> None:
        """Give the connection back."""
        self._pooled.close()


def compare(url: str, label: str, batch: int, batches: int) -> None:
    """Append and insert in turn, and print the medians and their ratio."""
    host = Host(url)
    host.upgrade()
    bare = Bare(host)
    draw = random.Random(7)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        rows = [said(draw, batch) for _ in range(batches)]
        began = perf_counter()
        for some in rows:
            host.append(some)
        ours.append(batch * batches / (perf_counter() - began))
        began = perf_counter()
        for some in rows:
            bare.insert(some)
        theirs.append(batch * batches / (perf_counter() - began))
    bare.close()
    host.close()
    ratio = median(own / other for own, other in zip(ours, theirs, strict=True))
    print(
        f"{label}, batches of {batch}: append {median(ours):,.0f}/s, "
        f"bare driver {median(theirs):,.0f}/s, ratio {ratio:.2f}"
    )


def main() -> None:
    """Compare on the databases asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--on", action="append", choices=["sqlite", "postgresql"])
    asked = parser.parse_args()
    databases = asked.on or ["sqlite", "postgresql"]
    if "sqlite" in databases:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder) / 'qntx.db'}"
            compare(url, "SQLite", asked.batch, asked.batches)
    if "postgresql" in databases:
        with PostgresServer.start(durable=True) as server:
            compare(server.create_database(), "PostgreSQL", asked.batch, asked.batches)


if __name__ == "__main__":
    main()
