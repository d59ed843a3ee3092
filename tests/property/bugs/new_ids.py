"""Every shipment gets an id, another one in every replay."""

from uuid import uuid4

from sqlalchemy import Column, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "uuid"

domain = Domain("shipments")
shipped = domain.table(
    "shipped", Column("entity", String, primary_key=True), Column("number", String)
)


class Shipped(Payload, context="shipped"):
    """It was shipped."""

    pieces: int = 1


@domain.project(Shipped)
def give_number(shipped_: Recorded[Shipped], rows: Rows) -> None:
    """Give a number that nobody said."""
    rows.put(shipped, entity=shipped_.entity, number=str(uuid4()))
