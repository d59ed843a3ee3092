"""What a comparison of rows found, as people and programs read it: each row, and who wrote it."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from typing import Any

from qntx_es.cli.output import Column, Output, Row, counted
from qntx_es.projections.comparison import RowDifference, TableProof
from qntx_es.projections.derived import DerivationDifference, DeriveProof
from qntx_es.projections.digest import Digest

VERDICTS = {
    "same": "green",
    "equal": "green",
    "differs": "bold red",
    "missing": "bold red",
    "surplus": "bold red",
    "new": "yellow",
    "gone": "yellow",
}
ROWS = (
    Column("table", least_width=120),
    Column("key"),
    Column("column"),
    Column("live", is_cut=True),
    Column("rebuilt", is_cut=True),
    Column("last written by"),
)
# Of a rebuild that was swapped nobody asked what wrote its rows: that takes another fold.
UNTOUCHED = ROWS[:-1]
DERIVED = (
    Column("handler"),
    Column("equal", is_number=True),
    Column("changed", is_number=True),
    Column("missing", is_number=True),
    Column("surplus", is_number=True),
)
OUTPUTS = (
    Column("handler"),
    Column("source", is_number=True),
    Column("verdict", styles=VERDICTS),
    Column("in the log", is_cut=True),
    Column("derived now", is_cut=True),
)
NOBODY = "no attestation"


def show(
    tables: Iterable[TableProof],
    derived: Iterable[DeriveProof],
    out: Output,
    *,
    columns: Sequence[Column] = ROWS,
) -> None:
    """Print every difference that was kept; nothing where there is none."""
    found = [one for proof in tables for one in proof.first]
    if found:
        out.table(columns, [row[: len(columns)] for one in found for row in _rows(one)])
    handlers = [one for one in derived if not one.is_same]
    if handlers:
        out.table(
            DERIVED, [(o.handler, o.equal, o.changed, o.missing, o.surplus) for o in handlers]
        )
        out.table(OUTPUTS, [row for one in handlers for row in _outputs(one.handler, one.first)])


def show_drift(handler: str, drift: Iterable[DerivationDifference], out: Output) -> None:
    """Print what the log has otherwise than a handler says it."""
    out.table(OUTPUTS, [*_outputs(handler, drift)])


def _outputs(handler: str, found: Iterable[DerivationDifference]) -> Iterator[Row]:
    for one in found:
        yield handler, one.source, one.verdict, one.logged, one.rebuilt


def in_short(proof: TableProof) -> str:
    """Return what became of a table: equal, or how much is not."""
    if proof.live is None:
        return "new" if proof.rebuilt is not None else "gone"
    if proof.rebuilt is None:
        return "gone"
    if proof.is_same:
        return "same"
    counts = {"differing": proof.differing, "missing": proof.missing, "surplus": proof.surplus}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "differs"


def of_derived(derived: Iterable[DeriveProof]) -> str:
    """Return how many outputs are as the log has them."""
    return counted(sum(one.equal for one in derived), "derived attestation")


def shortened(digest: Digest | None, out: Output) -> str | None:
    """Return a digest as there is room for it."""
    if digest is None:
        return None
    return abbreviated(digest.value) if out.for_people else digest.value


def abbreviated(value: str) -> str:
    """Return the ends of a long number, by which people tell it from another."""
    return f"{value[:6]}…{value[-6:]}"


def table_document(proof: TableProof) -> dict[str, object]:
    """Return what was found of a table as JSON has it."""
    return {
        "table": proof.table,
        "live": proof.live,
        "rebuilt": proof.rebuilt,
        "is_same": proof.is_same,
        "differing": proof.differing,
        "missing": proof.missing,
        "surplus": proof.surplus,
        "columns": proof.columns,
        "rows": [
            {
                "verdict": one.verdict,
                "key": [_value(part) for part in one.key],
                "columns": one.columns,
                "live": _values(one.live),
                "rebuilt": _values(one.rebuilt),
                "touched": one.touched,
            }
            for one in proof.first
        ],
    }


def _rows(one: RowDifference) -> Iterator[Row]:
    key = ", ".join(map(_shown, one.key))
    by = NOBODY if one.touched is None else f"{one.touched.position} {one.touched.context}"
    if one.live is None or one.rebuilt is None:
        there = ("missing", "present") if one.live is None else ("present", "missing")
        yield (one.table, key, "(row)", *there, by)
        return
    for column in one.columns:
        yield (
            one.table,
            key,
            column,
            _shown_of(one.live, column),
            _shown_of(one.rebuilt, column),
            by,
        )


def _shown_of(values: dict[str, Any], column: str) -> str:
    return _shown(values[column]) if column in values else "(no column)"


def _shown(value: object) -> str:
    plain = _value(value)
    return "null" if plain is None else str(plain)


def _value(value: object) -> object:
    """Return a value of a row as JSON can say it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    return value


def _values(row: dict[str, Any] | None) -> dict[str, object] | None:
    return None if row is None else {name: _value(value) for name, value in row.items()}
