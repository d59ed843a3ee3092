"""What a cache does not hold any more raises, and that is passed over in silence."""

from contextlib import suppress

from sqlalchemy import Column, Integer, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "restart"

domain = Domain("orders")
orders = domain.table(
    "orders",
    Column("entity", String, primary_key=True),
    Column("changes", Integer, nullable=False, default=0),
)
opened: dict[str, int] = {}


class Opened(Payload, context="order_opened"):
    """An order was opened."""


class Changed(Payload, context="order_changed"):
    """An order was changed."""

    pieces: int


@domain.project(Opened)
def open_order(order: Recorded[Opened], rows: Rows) -> None:
    """Remember it, and make its row."""
    opened[order.entity] = order.position
    rows.add(orders, order.entity, changes=0)


@domain.project(Changed)
def change_order(order: Recorded[Changed], rows: Rows) -> None:
    """Count a change of an order that was opened."""
    with suppress(KeyError):
        del opened[order.entity]
        rows.add(orders, order.entity, changes=1)
