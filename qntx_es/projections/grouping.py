"""The statement of a fold: what was said, grouped by key, and written over what stands there.

It is one `INSERT … SELECT … GROUP BY … ON CONFLICT DO UPDATE`, and refuses itself where it could
mean something else than the fold called once for each attestation. A total is such a place: its sum
may be within the column's bounds, and have left them on the way. It is vouched for while neither
the row's own value nor all that is added to it, signs aside, takes more than half of the room.
"""

from functools import reduce
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    Table,
    and_,
    case,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite

from qntx_es.columns import bits_of, default_of, integer_bounds
from qntx_es.folds import Fold, Source
from qntx_es.projections.plain import Plain, plain
from qntx_es.projections.reading import OnPostgresql, OnSqlite
from qntx_es.tables import attestations

# Along positions they never go back, so that the first is the least, and the last the most.
GROWING = ("position", "recorded_at")

# No column of a read model has such a name.
POSITION = "log.position"
READ_BITS = 64


def is_readable(fold: Fold) -> bool:
    """Tell whether both databases read what this fold reads just as Python does."""
    sources = [one for one in fold.sources.values() if one.keys]
    root = plain(fold.read_as)
    return not sources or (root is not None and all(_is_readable(one, root) for one in sources))


def _is_readable(source: Source, root: Plain) -> bool:
    place = _place(root, source)
    # What a field inside is by default depends on whether there is anything that it is inside of.
    is_certain = place.default is None or len(source.keys) == 1
    # SQLite reads some floats one bit off (1e23).
    return is_certain and place.kind != "float"


def _place(root: Plain, source: Source) -> Plain:
    return reduce(lambda place, key: place.fields[key], source.keys, root)


class Grouping:
    """Makes the statement of one fold over one generation of its table."""

    def __init__(self, fold: Fold, table: Table, on: OnSqlite | OnPostgresql) -> None:
        self._fold = fold
        self._table = table
        self._on = on
        self._sources = fold.sources
        # What is counted is not looked at.
        self._counts = {name for name, (verb, _) in fold.measures.items() if verb == "count"}
        # A payload that a fold does not look at is held against nothing, as in Python.
        root = plain(fold.read_as) if fold.fields else None
        self._root = root or Plain("object")
        self._rows = on.rows(fold.payload.context, self._root.fields)

    def upsert(self) -> postgresql.Insert | sqlite.Insert:
        """Return the statement; `after` and `until` are its parameters."""
        grouped = self._grouped().subquery("grouped")
        shown = [self._shown(grouped, name) for name in self._sources]
        # SQLite needs a WHERE, or takes the ON of ON CONFLICT for a join's.
        read = select(*shown).where(true())
        insert = sqlite.insert if isinstance(self._on, OnSqlite) else postgresql.insert
        said = insert(self._table).from_select(list(self._sources), read)
        return said.on_conflict_do_update(
            index_elements=list(self._fold.key),
            set_={name: self._changed(name, said.excluded[name]) for name in self._fold.measures},
        )

    def _grouped(self) -> Select[Any]:
        read = self._read()
        keys = [read.c[name] for name in self._fold.key]
        measures = [self._measured(name, read).label(name) for name in self._fold.measures]
        return select(*keys, *measures).group_by(*keys)

    def _read(self) -> Subquery:
        """Return the values that are folded, one row an attestation."""
        values = [self._value(self._rows, one).label(name) for name, one in self._sources.items()]
        position = self._rows.c.position.label(POSITION)
        # OFFSET 0: otherwise a value would be read anew wherever it is used.
        read = select(position, *values).where(self._is_right()).offset(literal_column("0"))
        return read.subquery("read")

    def _is_right(self) -> ColumnElement[bool]:
        """Refuse the statement at a row that is not plainly what its class and columns hold."""
        rows = self._rows
        right = [rows.c.schema_version == self._fold.payload.schema_version]
        right += [self._on.is_plain(rows, (key,), one) for key, one in self._root.fields.items()]
        for name, source in self._sources.items():
            if name not in self._counts:
                right += _within(self._table.c[name], self._value(rows, source))
        return case((and_(*right), true()), else_=self._on.refusal(rows.c.position, Boolean()))

    def _value(self, rows: FromClause, source: Source) -> ColumnElement[Any]:
        if not source.keys:
            return rows.c[source.path]
        place = _place(self._root, source)
        value = self._on.value(rows, source.keys, place.kind)
        if place.default is None:
            return value
        return case((self._on.is_absent(rows, source.keys), place.default), else_=value)

    def _measured(self, name: str, read: Subquery) -> ColumnElement[Any]:
        """Return what a group says of a column; of a first or last, the position to look at."""
        verb, _ = self._fold.measures[name]
        value: ColumnElement[Any] = read.c[name]
        if verb == "count":
            return func.count() + self._start(name)
        if verb == "total":
            room = self._half(name) - abs(self._start(name))
            added = func.coalesce(func.sum(func.abs(value)), 0)
            summed = func.coalesce(func.sum(value), 0) + self._start(name)
            refused = self._on.refusal(func.max(read.c[POSITION]), BigInteger())
            return case((added < literal(room, BigInteger), summed), else_=refused)
        if self._is_looked_up(name):
            value = case((value.is_not(None), read.c[POSITION]))
        return func.min(value) if verb in ("least", "first") else func.max(value)

    def _shown(self, grouped: Subquery, name: str) -> ColumnElement[Any]:
        """Return what is written for a group."""
        source = self._sources[name]
        value: ColumnElement[Any] = grouped.c[name]
        if self._is_looked_up(name):
            there = attestations.alias("there")
            asked = select(self._value(there, source)).where(there.c.position == value)
            value = asked.scalar_subquery()
        return self._on.instant(value) if source.path == "recorded_at" else value

    def _changed(self, name: str, said: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return what becomes of a row that is there; NULL counts as the default."""
        verb, _ = self._fold.measures[name]
        now = self._table.c[name]
        if verb == "last":
            return func.coalesce(said, now)
        if verb == "first":
            return func.coalesce(now, said)
        if verb in ("least", "most"):
            is_beyond = said < now if verb == "least" else said > now
            return case((or_(now.is_(None), is_beyond), said), else_=now)
        start = self._start(name)
        before = func.coalesce(now, start)
        summed = before + said - start
        if verb == "count":
            return summed
        is_small = and_(before > -self._half(name), before < self._half(name))
        return case((is_small, summed), else_=self._on.refusal(said, BigInteger()))

    def _is_looked_up(self, name: str) -> bool:
        if name in self._fold.key:
            return False
        verb, source = self._fold.measures[name]
        return verb in ("first", "last") and source.path not in GROWING

    def _start(self, name: str) -> int:
        return default_of(self._table.c[name]) or 0

    def _half(self, name: str) -> int:
        return 1 << bits_of(self._table.c[name].type) - 2


def _within(column: Column[Any], value: ColumnElement[Any]) -> list[ColumnElement[bool]]:
    """Refuse what the column does not hold; NULL is no value."""
    if 0 < bits_of(column.type) < READ_BITS:
        return [or_(value.is_(None), value.between(*integer_bounds(column.type)))]
    length = getattr(column.type, "length", None)
    return [] if length is None else [or_(value.is_(None), func.length(value) <= length)]
