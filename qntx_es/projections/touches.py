"""Which attestation wrote a row last: found by folding the log once more, with an eye on it.

Nothing keeps this beside the rows, since every batch would pay for what is asked once a year. It is
asked where a row differs, about a handful of them, and then a second fold is what it costs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import Delete, Insert, Table, Update
from sqlalchemy.sql.util import find_tables

from qntx_es.attestation import RecordedRow
from qntx_es.projections.rows import RowMap
from qntx_es.projections.shape import Key, Shape
from qntx_es.rows import Row


@dataclass(frozen=True, slots=True)
class Touch:
    """The attestation whose handlers wrote a row, or removed it."""

    position: int
    context: str


class Touches:
    """The last touch of each watched row."""

    def __init__(self, watched: Iterable[tuple[str, Key]]) -> None:
        self.in_hand: RecordedRow | None = None
        self._last: dict[tuple[str, Key], Touch | None] = dict.fromkeys(watched)

    def of(self, table: str, key: Key) -> Touch | None:
        """Return the last touch of a row; None where no attestation ever wrote it."""
        return self._last[table, key]

    def keys_of(self, table: str) -> list[Key]:
        """Return the keys watched in a table."""
        return [key for one, key in self._last if one == table]

    def hear(self, table: str, key: Key) -> None:
        """Hear that the attestation in hand wrote a row."""
        if self.in_hand is not None and (table, key) in self._last:
            self._last[table, key] = Touch(self.in_hand[0], self.in_hand[2])


class WatchedRows(RowMap):
    """Rows that tell which of them are written."""

    def __init__(
        self, shapes: Iterable[Shape], physical: Callable[[Table], Table], touches: Touches
    ) -> None:
        super().__init__(shapes, physical)
        self._touches = touches

    def put(self, table: Table, /, **columns: object) -> None:
        """Set columns of a row."""
        super().put(table, **columns)
        self._hear(table, tuple(columns[name] for name in self._map(table).shape.key))

    def add(self, table: Table, /, *key: object, **amounts: float) -> None:
        """Add to columns of a row."""
        super().add(table, *key, **amounts)
        self._hear(table, key)

    def delete(self, table: Table, *key: object) -> None:
        """Remove a row."""
        super().delete(table, *key)
        self._hear(table, key)

    def execute(self, statement: Insert | Update | Delete) -> int:
        """Run a statement; which rows it wrote is seen by looking at the watched ones."""
        written = find_tables(statement, include_crud=True)
        tables = [one for one in written if isinstance(one, Table) and one in self._maps]
        before = [self._seen(table) for table in tables]
        met = super().execute(statement)
        for table, rows in zip(tables, before, strict=True):
            for key, row in self._seen(table).items():
                if row != rows[key]:
                    self._touches.hear(table.name, key)
        return met

    def _hear(self, table: Table, key: Key) -> None:
        self._touches.hear(table.name, self._map(table).shape.key_of(key))

    def _seen(self, table: Table) -> dict[Key, Row | None]:
        return {key: self.get(table, *key) for key in self._touches.keys_of(table.name)}
