"""What a table holds, as one number: equal numbers, equal rows.

The hashes of the rows are added, modulo 2¹²⁸, so that the order in which a database hands them out
does not matter (an incremental multiset hash: Clarke et al., ASIACRYPT 2003, MSet-Add-Hash).
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Table, Text, select, type_coerce

from qntx_es.columns import Document

MODULUS = 1 << 128
# Where a whole table is read, the driver is to hold no more of it.
IN_PIECES = {"yield_per": 2_000}


@dataclass(frozen=True, slots=True)
class Digest:
    """How many rows, and the sum of their hashes as 32 hexadecimal digits."""

    rows: int
    value: str


def digest(connection: Connection, table: Table) -> Digest:
    """Return the digest of a table, read in pieces, with memory flat."""
    columns = map(as_stored, sorted(table.columns, key=lambda column: column.name))
    total = count = 0
    rows = connection.execute(select(*columns), execution_options=IN_PIECES)
    for row in rows:
        hashed = blake2b(repr(tuple(row)).encode(), digest_size=16).digest()
        total = (total + int.from_bytes(hashed)) % MODULUS
        count += 1
    return Digest(count, f"{total:032x}")


def as_stored(column: Column[Any]) -> ColumnElement[Any]:
    """Return a column to be read as the table holds it: documents as the text they are."""
    if isinstance(column.type, Document):
        return type_coerce(column, Text).label(column.name)
    return column
