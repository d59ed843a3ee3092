"""Numbers are taken from a file that grows with each of them, and with each replay."""

import tempfile
from pathlib import Path

from sqlalchemy import BigInteger, Column, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "nothing"

domain = Domain("numbers")
numbers = domain.table(
    "numbers", Column("entity", String, primary_key=True), Column("number", BigInteger)
)
folder = tempfile.TemporaryDirectory()
file = Path(folder.name) / "numbers"


class Wanted(Payload, context="number_wanted"):
    """A number is wanted."""

    kind: str


@domain.project(Wanted)
def give(wanted: Recorded[Wanted], rows: Rows) -> None:
    """Take the next number of the file."""
    with file.open("a") as taken:
        taken.write("x")
        rows.put(numbers, entity=wanted.entity, number=taken.tell())
