"""Orders are counted and summed, whatever they come in."""

from sqlalchemy import BigInteger, Column, Integer, String

from qntx_es import Domain, Payload, Recorded, Rows

domain = Domain("sums")
sums = domain.table(
    "sums",
    Column("entity", String, primary_key=True),
    Column("orders", Integer, nullable=False, default=0),
    Column("pieces", BigInteger, nullable=False, default=0),
    Column("last", BigInteger),
)


class Ordered(Payload, context="ordered"):
    """Something was ordered."""

    is_urgent: bool = False


@domain.project(Ordered)
def add_up(ordered: Recorded[Ordered], rows: Rows) -> None:
    """Add it up."""
    rows.add(sums, ordered.entity, orders=1, pieces=1 + ordered.payload.is_urgent)
    rows.put(sums, entity=ordered.entity, last=ordered.position)
