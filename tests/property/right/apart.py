"""Entities are independent, and declared to be: each has its own row, and adds to a common one."""

from sqlalchemy import Column, Integer, String

from qntx_es import Domain, Payload, Recorded, Rows

domain = Domain("meters", by_entity=True)
meters = domain.table(
    "meters",
    Column("entity", String, primary_key=True),
    Column("reading", Integer),
    Column("readings", Integer, nullable=False, default=0),
)
kinds = domain.table(
    "kinds",
    Column("kind", String, primary_key=True),
    Column("readings", Integer, nullable=False, default=0),
)


class Read(Payload, context="meter_read"):
    """A meter was read."""

    kind: str
    reading: int


@domain.project(Read)
def keep(read: Recorded[Read], rows: Rows) -> None:
    """Keep the reading, and count it twice."""
    rows.add(meters, read.entity, readings=1)
    rows.put(meters, entity=read.entity, reading=read.payload.reading % 10_000)
    rows.add(kinds, read.payload.kind, readings=1)
