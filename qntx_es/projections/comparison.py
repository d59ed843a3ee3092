"""Live rows held against the fold of the log, table by table: what differs, and where.

Digests decide, since a table is digested in whatever order it is read fastest. Only where they
differ are both sides read again, in the order of their keys, and merged: in pieces, with memory
flat. Texts are ordered by code point on both databases, as they are here. Values are compared as
they are spelt, so 0.0 is not -0.0, nor 1 the same as True.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, Table, select

from qntx_es.projections.cursor import Cursor
from qntx_es.projections.derived import DeriveProof
from qntx_es.projections.digest import IN_PIECES, Digest, as_stored, digest
from qntx_es.projections.shape import Key, Values
from qntx_es.projections.touches import Touch


@dataclass(frozen=True, slots=True)
class RowDifference:
    """One row that is not the same; `live` or `rebuilt` is None where there is no such row.

    `columns` are those whose values differ, and `touched` is the last attestation that wrote the
    row: None where none ever did, or where it was not asked for.
    """

    table: str
    key: Key
    live: Values | None
    rebuilt: Values | None
    columns: tuple[str, ...]
    touched: Touch | None = None

    @property
    def verdict(self) -> str:
        """`differs`, `missing` in the live table, or `surplus` there."""
        if self.live is None:
            return "missing"
        return "surplus" if self.rebuilt is None else "differs"


@dataclass(frozen=True, slots=True)
class TableProof:
    """What one table held, live and rebuilt, at one position; None where there is no such table.

    `columns` counts the rows in which a column differs, and `first` are the first differences by
    key.
    """

    table: str
    live: Digest | None
    rebuilt: Digest | None
    differing: int = 0
    missing: int = 0
    surplus: int = 0
    columns: Mapping[str, int] = field(default_factory=dict)
    first: tuple[RowDifference, ...] = ()

    @property
    def is_same(self) -> bool:
        """Tell whether nothing changed."""
        return self.live == self.rebuilt


@dataclass(frozen=True, slots=True)
class Comparison:
    """Live rows and derived attestations, and the fold of the log, all exactly at `position`.

    `version` is that of the live tables. Where they are cut, `position` is that of the range that
    is furthest behind, and each was compared where its own cursor in `lives` stands.
    """

    position: int
    version: int
    tables: tuple[TableProof, ...]
    derived: tuple[DeriveProof, ...] = ()
    lives: tuple[Cursor, ...] = ()

    @property
    def is_same(self) -> bool:
        """Tell whether nothing differs."""
        return all(one.is_same for one in self.tables) and all(one.is_same for one in self.derived)


@dataclass(frozen=True, slots=True)
class Side:
    """One of two tables, and the connection that sees it at the right moment."""

    connection: Connection
    table: Table


def compared(name: str, live: Side, rebuilt: Side, first: int) -> TableProof:
    """Compare two tables of one key, keeping the first so many differences."""
    before = digest(live.connection, live.table)
    after = digest(rebuilt.connection, rebuilt.table)
    if before == after:
        return TableProof(name, before, after)
    verdicts: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    found: list[RowDifference] = []
    for difference in _differences(name, live, rebuilt):
        verdicts[difference.verdict] += 1
        if difference.verdict == "differs":
            columns.update(difference.columns)
        if len(found) < first:
            found.append(difference)
    return TableProof(
        table=name,
        live=before,
        rebuilt=after,
        differing=verdicts["differs"],
        missing=verdicts["missing"],
        surplus=verdicts["surplus"],
        columns=dict(sorted(columns.items())),
        first=tuple(found),
    )


def _differences(name: str, live: Side, rebuilt: Side) -> Iterator[RowDifference]:
    names = sorted({*live.table.columns.keys(), *rebuilt.table.columns.keys()})
    ours, theirs = _in_order(live), _in_order(rebuilt)
    one, other = next(ours, None), next(theirs, None)
    while True:
        if one is not None and (other is None or one[0] < other[0]):
            yield RowDifference(name, *one, None, ())
            one = next(ours, None)
        elif other is not None and (one is None or other[0] < one[0]):
            yield RowDifference(name, other[0], None, other[1], ())
            other = next(theirs, None)
        elif one is not None and other is not None:
            if columns := tuple(differing(names, one[1], other[1])):
                yield RowDifference(name, *one, other[1], columns)
            one, other = next(ours, None), next(theirs, None)
        else:
            return


def _in_order(side: Side) -> Iterator[tuple[Key, Values]]:
    table = side.table
    keys = [column.name for column in table.primary_key.columns]
    asked = select(*map(as_stored, table.columns)).order_by(*table.primary_key.columns)
    rows = side.connection.execute(asked, execution_options=IN_PIECES)
    for row in rows.mappings():
        yield tuple(row[name] for name in keys), dict(row)


def differing(names: Iterable[str], live: Values, rebuilt: Values) -> Iterator[str]:
    """Yield the columns whose values are not spelt alike."""
    for name in names:
        if name not in live or name not in rebuilt or repr(live[name]) != repr(rebuilt[name]):
            yield name
