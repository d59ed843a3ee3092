"""What the benchmarks of appending have in common: what is said, the bare table, and the ratios."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from qntx_es import Attestation, Host
from qntx_es.statements import COLUMNS, TEXTS, values_of

ENTITIES = 10_000
PADDING = "x" * 96
PLACED = ("position", "recorded_at", "entity_version", *COLUMNS)


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
        for name in ("entity", "context", "actor"):
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
