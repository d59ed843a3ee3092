"""The unit of work behind `Rows`: one map a table, read in bulk and written in bulk.

One attestation at a time is the meaning; a batch is an optimisation that must not show. So a key
that nobody read is changed *blind* only where the database will do exactly what reading would have
done: every column that must be given is given, and what is added is an integer. All else is read
first, and the first read of a table reads ahead all keys the batch is about.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from sqlalchemy import (
    Column,
    Connection,
    Delete,
    Dialect,
    FromClause,
    Insert,
    SelectBase,
    Table,
    TableClause,
    Update,
)
from sqlalchemy.sql import visitors
from sqlalchemy.sql.util import find_tables

from qntx_es.errors import ForeignTable, InvalidRow
from qntx_es.projections.flush import Words
from qntx_es.projections.shape import Key, Shape, Values
from qntx_es.projections.table_map import UNREAD, AddPlan, TableMap
from qntx_es.rows import Row

WARM_ROWS = 100_000


class RowMap:
    """`Rows` over one generation of a domain's tables.

    `connect(write)` gives the connection to read from, or to write with; the batch decides when a
    transaction begins.
    """

    is_by_entity = False
    # Whom the attestation in hand is about; told only where it matters.
    entity = ""

    def __init__(self, shapes: Iterable[Shape], physical: Callable[[Table], Table]) -> None:
        self._maps = {shape.table: TableMap(shape, physical(shape.table)) for shape in shapes}
        self._physical = {table: physical(table) for table in self._maps}
        self._ahead: Iterable[str] = ()
        self._named: dict[Table, list[Key]] = {}
        self._ordered = [rows for rows in self._maps.values() if rows.shape.is_ordered]
        self.connect: Callable[[bool], Connection] = _unconnected

    def read_ahead(self, entities: Iterable[str], named: Iterable[Key]) -> None:
        """Say what the coming attestations are about; it is read when the first of it is needed."""
        self._ahead = entities
        for rows in self._maps.values():
            rows.is_read_ahead = False
        self._named = {}
        for table, *key in named:
            self._named.setdefault(table, []).append(self._map(table).key_of(tuple(key)))

    def get(self, table: Table, *key: object) -> Row | None:
        """Return the row of this key, frozen, or None."""
        rows = self._map(table)
        values = self._read(rows, rows.key_of(key))
        return None if values is None else Row(values, rows.shape.show)

    def put(self, table: Table, /, **columns: object) -> None:
        """Set columns of the row of this key, making it if there is none."""
        rows = self._maps.get(table) or self._map(table)
        names = tuple(columns)
        plan = rows.puts.get(names) or rows.put_plan(names)
        if plan.mark_of is not None and (mark := plan.mark_of(columns)) in rows.blind.marks:
            # The road most taken: a key that was met before is known to be right.
            for name, check, _, _ in plan.beside_key:
                columns[name] = check(columns[name])
            for name, _, values, amounts in plan.beside_key:
                values[mark] = columns[name]
                if amounts:
                    amounts.pop(mark, None)
            return
        for name, check in plan.checks:
            columns[name] = check(columns[name])
        key = plan.key_of(columns)
        before = rows.known.get(key, UNREAD)
        if before is UNREAD:
            if plan.is_whole:
                rows.blind.put(key, columns)
                return
            before = self._read(rows, key)
        if before is None:
            rows.known[key] = rows.shape.new_row(key, columns)
            rows.gone.pop(key, None)
        else:
            before.update(columns)
        rows.touch(key)

    def add(self, table: Table, /, *key: object, **amounts: float) -> None:
        """Add to columns of the row of this key, making it if there is none."""
        rows = self._maps.get(table) or self._map(table)
        names = tuple(amounts)
        plan = rows.adds.get(names) or rows.add_plan(names)
        if not (plan.is_plain and rows.is_added(key, amounts, plan)):
            self._add(rows, rows.key_of(key), amounts, plan)

    def _add(self, rows: TableMap, key: Key, amounts: dict[str, float], plan: AddPlan) -> None:
        """Add where it is not plain: to what was read, or to what has to be."""
        shape = rows.shape
        # Only what grows: a sum that left its bounds and came back would show the batch.
        may_be_blind = plan.is_blind and all(by >= 0 for by in amounts.values())
        before = rows.known.get(key, UNREAD)
        if before is UNREAD:
            if may_be_blind:
                rows.blind.add(key, amounts)
                return
            before = self._read(rows, key)
        if before is None:
            before = shape.new_row(key, {}, tuple(amounts))
            rows.gone.pop(key, None)
        changed = {name: shape.summed(name, before[name], by) for name, by in amounts.items()}
        rows.known[key] = before | changed
        rows.touch(key)

    def delete(self, table: Table, *key: object) -> None:
        """Remove the row of this key, if there is one."""
        rows = self._map(table)
        key = rows.key_of(key)
        rows.blind.take(key)
        rows.dirty.pop(key, None)
        rows.known[key] = None
        rows.gone[key] = None

    def select(self, statement: SelectBase) -> Sequence[Any]:
        """Return the rows of a Core statement over the domain's own tables."""
        if not isinstance(statement, SelectBase):
            raise InvalidRow("rows.select takes a Core select; rows.execute takes what writes")
        pointed = self._pointed(statement)
        return self.connect(False).execute(pointed).all()  # noqa: FBT003 - to read

    def execute(self, statement: Insert | Update | Delete) -> int:
        """Run a Core statement that writes the domain's own tables."""
        if not isinstance(statement, Insert | Update | Delete):
            raise InvalidRow("rows.execute takes a Core insert, update or delete")
        pointed = self._pointed(statement)
        counted = pointed.execution_options(preserve_rowcount=True)
        met = int(self.connect(True).execute(counted).rowcount)  # noqa: FBT003 - to write
        for table in find_tables(statement, include_crud=True):
            if isinstance(table, Table):
                self._map(table).forget()
        return met

    def flush(self, connection: Connection) -> None:
        """Write all that was said, deletes before upserts, tables and keys in one fixed order."""
        self._write(connection, self._maps.values())

    def in_words(self, dialect: Dialect, condition: str) -> list[Words] | None:
        """Return all that was said as statements that could be one, or None where they could not.

        Those of one statement do not see each other: each is of another table. They take effect
        under the condition, and it remains to say that they have been `flushed`. PostgreSQL.
        """
        words: list[Words] = []
        for rows in self._in_order(self._maps.values()):
            said = rows.said()
            if rows.gone or len(said) != 1:
                return None
            words.append(rows.writer.in_words(dialect, said[0], condition))
        return words

    def flushed(self) -> None:
        """Take it that the database knows all that was said."""
        for rows in self._maps.values():
            rows.flushed()

    def _write(self, connection: Connection, maps: Iterable[TableMap]) -> None:
        for rows in self._in_order(maps):
            rows.writer.delete(connection, sorted(rows.gone))
            rows.writer.change(connection, rows.said())
            rows.flushed()

    @staticmethod
    def _in_order(maps: Iterable[TableMap]) -> list[TableMap]:
        told = [one for one in maps if not one.is_flushed()]
        return sorted(told, key=lambda one: one.shape.table.name)

    @property
    def is_ordered(self) -> bool:
        """Tell whether there is a table in which the order of rows matters."""
        return bool(self._ordered)

    def settle(self) -> None:
        """End one attestation: where the order of rows matters, they are written now."""
        if any(not one.is_flushed() for one in self._ordered):
            self._write(self.connect(True), self._ordered)  # noqa: FBT003 - to write

    def forget(self) -> None:
        """Know nothing: a transaction was undone, or somebody else wrote these tables."""
        for rows in self._maps.values():
            rows.forget()

    def cool(self) -> None:
        """Keep memory flat: forget what was read once it is more than a warm map's worth."""
        if sum(len(rows.known) for rows in self._maps.values()) > WARM_ROWS:
            self.forget()
        for rows in self._maps.values():
            rows.cool(WARM_ROWS)

    def is_flushed(self) -> bool:
        """Tell whether the database knows all that was said."""
        return all(rows.is_flushed() for rows in self._maps.values())

    def _map(self, table: FromClause) -> TableMap:
        try:
            return self._maps[cast("Table", table)]
        except KeyError:
            own = ", ".join(sorted(one.name for one in self._maps))
            raise ForeignTable(
                f"{table} is not a table of this domain, which has {own or 'none'}"
            ) from None

    def _read(self, rows: TableMap, key: Key) -> Values | None:
        values = rows.known.get(key, UNREAD)
        if values is UNREAD:
            wanted = [key]
            if not rows.is_read_ahead:
                rows.is_read_ahead = True
                wanted += self._named.get(rows.shape.table, ())
                if rows.shape.is_by_entity:
                    wanted += [(entity,) for entity in self._ahead]
            unread = [one for one in dict.fromkeys(wanted) if one not in rows.known]
            rows.take(unread, rows.writer.read(self.connect(False), unread))  # noqa: FBT003 - to read
            values = rows.known[key]
        return cast("Values | None", values)

    def _pointed(self, statement: Any) -> Any:  # noqa: ANN401 - a Core statement
        """Flush, and return the statement on the tables of this generation."""
        for part in (*visitors.iterate(statement), *find_tables(statement, include_crud=True)):
            if isinstance(part, TableClause):
                self._map(part)
        if not self.is_flushed():
            self.flush(self.connect(True))  # noqa: FBT003 - to write
        return point(statement, self._physical)


def point(statement: Any, physical: dict[Table, Table]) -> Any:  # noqa: ANN401 - a Core statement
    """Return a statement with tables, and their columns, replaced by others of the same shape."""

    def replace(element: Any, **_: object) -> Any:  # noqa: ANN401 - any part of a statement
        if isinstance(element, Table):
            return physical.get(element)
        if isinstance(element, Column) and element.table in physical:
            return physical[element.table].c[element.name]
        return None

    if all(table is other for table, other in physical.items()):
        return statement
    return visitors.replacement_traverse(statement, {}, replace)


def _unconnected(write: bool) -> Connection:  # noqa: FBT001 - the shape of `connect`
    message = f"no transaction is open to {'write' if write else 'read'}"
    raise RuntimeError(message)
