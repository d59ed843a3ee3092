"""What is not the same in two outcomes of one log, as data; empty where nothing is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table

from qntx_es.domain import Domain
from qntx_es.testing.moving import TableRows, Values
from qntx_es.testing.replay import Outcome

NO_ROW = "(no row)"


@dataclass(frozen=True, slots=True)
class Difference:
    """One value: where it stands, what it is folded from nothing, and what the plan made of it."""

    table: str
    key: str
    column: str
    folded: str
    planned: str


def differences(domain: Domain, folded: Outcome, planned: Outcome) -> list[Difference]:
    """Return every value that differs, table by table in the order of keys, then what is derived.

    Values are compared as they are spelt: 0.0 is not -0.0, nor 1 the same as True.
    """
    return [
        *_of_errors(folded, planned),
        *_of_tables(domain, folded.rows, planned.rows),
        *_of_derived(folded, planned),
        *(
            Difference("a rebuild derives otherwise", "", one, "", "")
            for one in (*folded.drifted, *planned.drifted)
        ),
        *_of_travels(domain, folded, planned),
    ]


def _of_errors(folded: Outcome, planned: Outcome) -> Iterator[Difference]:
    if folded.error != planned.error:
        yield Difference(
            "the projector", "", "stopped", folded.error or "no", planned.error or "no"
        )


def _of_travels(domain: Domain, folded: Outcome, planned: Outcome) -> Iterator[Difference]:
    for position, rows in planned.travelled.items():
        if position in folded.travelled:
            at = f" at position {position}"
            yield from _of_tables(domain, folded.travelled[position], rows, at)


def _of_tables(
    domain: Domain, folded: TableRows, planned: TableRows, at: str = ""
) -> Iterator[Difference]:
    for name, table in domain.tables.items():
        ours, theirs = _by_key(table, folded[name]), _by_key(table, planned[name])
        for key in dict.fromkeys((*ours, *theirs)):
            yield from _of_row(table, name + at, key, ours.get(key), theirs.get(key))


def _of_row(
    table: Table, name: str, key: str, folded: Values | None, planned: Values | None
) -> Iterator[Difference]:
    columns = [column.name for column in table.columns]
    if folded is None or planned is None:
        told = (_row(columns, folded), _row(columns, planned))
        yield Difference(name, key, "", *told)
        return
    for column, ours, theirs in zip(columns, folded, planned, strict=True):
        if repr(ours) != repr(theirs):
            yield Difference(name, key, column, repr(ours), repr(theirs))


def _row(columns: list[str], values: Values | None) -> str:
    if values is None:
        return NO_ROW
    told = (f"{name}={value!r}" for name, value in zip(columns, values, strict=True))
    return ", ".join(told)


def _by_key(table: Table, rows: tuple[Values, ...]) -> dict[str, Values]:
    names = [column.name for column in table.columns]
    keys = [column.name for column in table.primary_key.columns]
    return {_row(keys, tuple(row[names.index(key)] for key in keys)): row for row in rows}


def _of_derived(folded: Outcome, planned: Outcome) -> Iterator[Difference]:
    for one in sorted({*folded.derived, *planned.derived}):
        ours, theirs = folded.derived.get(one), planned.derived.get(one)
        if ours != theirs:
            yield Difference("derived", f"id {one}", "", _spelt(ours), _spelt(theirs))


def _spelt(said: Any) -> str:  # noqa: ANN401 - bytes, or none
    if said is None:
        return "(nothing)"
    context, actor, entity, _, text, _ = said.decode().split("\x00")
    return f"{entity} is {context} by {actor}: {text}"
