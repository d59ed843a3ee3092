"""How rows get in and out of a table in bulk: one statement a table and batch.

The dialects differ here. SQLite is fastest with one prepared upsert run many times, of some rows
each (of one, it takes half as long again); PostgreSQL with one statement over arrays, one parameter
a *column* (65 536 parameters are refused, and a statement a row costs a round trip each).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import Connection, Dialect, Table, Text, select, tuple_, type_coerce, types

from qntx_es.calls import run_within
from qntx_es.columns import Document
from qntx_es.projections.blind import Pattern
from qntx_es.projections.shape import Key, Names, Shape, Values
from qntx_es.wire import array

Bind: TypeAlias = Callable[[Any], Any]
# How rows were spoken of, and what was said of them by column.
Said: TypeAlias = tuple[Pattern, list[list[Any]]]
# A statement with a place for each of its parameters, and these in their binary form.
Words: TypeAlias = tuple[str, list[bytes]]
# Where a parameter is to go, before it is known which number it has.
PLACE = "%b"

# SQLite allows 32 766 variables; smaller statements are compiled once and found again.
SQLITE_KEYS = 500
SQLITE_ROWS = 50
SQLITE_VARIABLES = 32_766
POSTGRESQL_KEYS = 5_000
ARRAYS: tuple[tuple[type[types.TypeEngine[Any]], str], ...] = (
    (types.Integer, "bigint"),
    (types.Boolean, "boolean"),
    (types.Float, "double precision"),
    (types.DateTime, "timestamptz"),
    (types.Date, "date"),
    (types.LargeBinary, "bytea"),
    (types.String, "text"),
)


@dataclass(frozen=True, slots=True)
class Upsert:
    """One statement, and how the columns of its rows become its parameters.

    Between what inserts and the action where a row is there already, a condition has its place.
    """

    into: str
    rows: str
    action: str
    kinds: tuple[str, ...]
    constants: tuple[Any, ...]
    binds: tuple[Bind | None, ...]


class Writer:
    """Reads and writes the rows of one table, whatever its name is at the moment."""

    def __init__(self, table: Table, shape: Shape) -> None:
        self._table = table
        self._shape = shape
        self._columns = tuple(column.name for column in table.columns)
        self._whole = Pattern(tuple([name for name in self._columns if name not in shape.key]), ())
        self._upserts: dict[Pattern, Upsert] = {}
        # The map keeps documents as the text they are, so that no handler can change one in place.
        self._read = select(
            *(
                type_coerce(column, Text).label(column.name)
                if isinstance(column.type, Document)
                else column
                for column in table.columns
            )
        )

    def read(self, connection: Connection, keys: Sequence[Key]) -> Iterable[Values]:
        """Return the rows of these keys, as far as there are any."""
        size = SQLITE_KEYS if connection.dialect.name == "sqlite" else POSTGRESQL_KEYS
        columns = [self._table.c[name] for name in self._shape.key]
        found: list[Values] = []
        for some in _batched(keys, size // len(columns)):
            if len(columns) == 1:
                wanted = columns[0].in_([key[0] for key in some])
            else:
                wanted = tuple_(*columns).in_(some)
            result = connection.execute(self._read.where(wanted))
            found += [dict(zip(self._columns, row, strict=True)) for row in result]
        return found

    def delete(self, connection: Connection, keys: Sequence[Key]) -> None:
        """Remove the rows of these keys."""
        columns = [self._table.c[name] for name in self._shape.key]
        for some in _batched(keys, SQLITE_KEYS // len(columns)):
            connection.execute(self._table.delete().where(tuple_(*columns).in_(some)))

    def whole(self, rows: Sequence[Values]) -> Said:
        """Return full rows by column, to be written over whatever stands there."""
        names = (*self._shape.key, *self._whole.sets)
        return self._whole, [[row[name] for row in rows] for name in names]

    def change(self, connection: Connection, said: Iterable[Said]) -> None:
        """Set columns of rows, and add to others."""
        for pattern, columns in said:
            if connection.dialect.name == "sqlite":
                upsert, bound = self._bound(connection.dialect, pattern, columns)
                for sql, values in _some_at_a_time(upsert, list(zip(*bound, strict=True))):
                    connection.exec_driver_sql(sql, values)
            else:
                sql, arrays = self.in_words(connection.dialect, (pattern, columns), "")
                run_within(connection, numbered(sql, 1).encode(), arrays)

    def in_words(self, dialect: Dialect, said: Said, condition: str) -> Words:
        """Return the same as a part of a larger statement, under a condition: PostgreSQL."""
        upsert, bound = self._bound(dialect, *said)
        arrays = [array(kind, values) for kind, values in zip(upsert.kinds, bound, strict=True)]
        return f"{upsert.into} {upsert.rows} {condition} {upsert.action}", arrays

    def _bound(
        self, dialect: Dialect, pattern: Pattern, columns: list[list[Any]]
    ) -> tuple[Upsert, tuple[Any, ...]]:
        upsert = self._upserts.get(pattern)
        if upsert is None:
            upsert = self._upserts[pattern] = self._upsert(dialect, pattern)
        count = len(columns[0])
        full = [*columns, *([constant] * count for constant in upsert.constants)]
        bound = [
            column if bind is None else list(map(bind, column))
            for bind, column in zip(upsert.binds, full, strict=True)
        ]
        return upsert, tuple(bound)

    def _upsert(self, dialect: Dialect, pattern: Pattern) -> Upsert:
        said = (*self._shape.key, *pattern.sets, *pattern.adds)
        defaulted = tuple(
            name
            for name, default in self._shape.defaults.items()
            if default is not None and name not in said
        )
        columns = said + defaulted
        into, rows, action = self._sql(dialect, columns, pattern)
        return Upsert(
            into=into,
            rows=rows,
            action=action,
            kinds=tuple(map(self._array, columns)),
            constants=tuple([self._shape.defaults[name] for name in defaulted]),
            binds=tuple([self._bind(dialect, name) for name in columns]),
        )

    def _bind(self, dialect: Dialect, name: str) -> Bind | None:
        kind = self._table.c[name].type
        if isinstance(kind, types.LargeBinary):
            return None  # both take bytes as they are
        implementation = Text() if isinstance(kind, Document) else kind.dialect_impl(dialect)
        return implementation.bind_processor(dialect)

    def _sql(self, dialect: Dialect, columns: Names, pattern: Pattern) -> tuple[str, str, str]:
        quote = dialect.identifier_preparer.quote
        table = quote(self._table.name)
        starts = {name: self._shape.defaults[name] or 0 for name in pattern.adds}
        sums = {name: f" + {start}" for name, start in starts.items() if start}
        if dialect.name == "sqlite":
            rows = f"({', '.join(f'?{sums.get(name, str())}' for name in columns)})"
        else:
            arrays = ", ".join(f"{PLACE}::{self._array(name)}[]" for name in columns)
            given = ", ".join(f"{quote(name)}{sums.get(name, '')}" for name in columns)
            names = ", ".join(map(quote, columns))
            rows = f"SELECT {given} FROM unnest({arrays}) AS said({names})"  # noqa: S608 - names from a checked set
        changes = [f"{quote(name)} = excluded.{quote(name)}" for name in pattern.sets]
        for name, start in starts.items():
            now = f"coalesce({table}.{quote(name)}, {start})"
            less = f" - {start}" if start else ""
            changes.append(f"{quote(name)} = {now} + excluded.{quote(name)}{less}")
        action = f"DO UPDATE SET {', '.join(changes)}" if changes else "DO NOTHING"
        into = f"INSERT INTO {table} ({', '.join(map(quote, columns))})"
        met = f"ON CONFLICT ({', '.join(map(quote, self._shape.key))})"
        return into, rows, f"{met} {action}"

    def _array(self, name: str) -> str:
        kind = self._table.c[name].type
        kind = kind.impl_instance if isinstance(kind, types.TypeDecorator) else kind
        return next(array for family, array in ARRAYS if isinstance(kind, family))


def _some_at_a_time(
    upsert: Upsert, rows: list[tuple[Any, ...]]
) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Yield statements of several rows and of one, and what each is run with: SQLite."""
    size = min(SQLITE_ROWS, SQLITE_VARIABLES // len(upsert.kinds))
    full = len(rows) // size * size
    for some, start, end in ((size, 0, full), (1, full, len(rows))):
        values = [tuple(chain.from_iterable(rows[n : n + some])) for n in range(start, end, some)]
        if values:
            places = ", ".join([upsert.rows] * some)
            yield f"{upsert.into} VALUES {places} {upsert.action}", values


def numbered(sql: str, start: int) -> str:
    """Return a statement with numbers in its places, $7 and so on."""
    first, *rest = sql.split(PLACE)
    return first + "".join(f"${number}{text}" for number, text in enumerate(rest, start))


def _batched(keys: Sequence[Key], size: int) -> Iterator[Sequence[Key]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
