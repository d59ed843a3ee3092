"""A seat is handed on from one to the next, and there is one of each."""

from sqlalchemy import Column, Integer, String, UniqueConstraint

from qntx_es import Domain, Payload, Recorded, Rows

domain = Domain("seats")
seats = domain.table(
    "seats",
    Column("entity", String, primary_key=True),
    Column("seat", Integer),
    UniqueConstraint("seat"),
)
taken = domain.table(
    "taken", Column("seat", Integer, primary_key=True), Column("by", String, nullable=False)
)


class SatDown(Payload, context="sat_down"):
    """Somebody sat down, and whoever sat there got up."""

    at_the_window: bool


@domain.project(SatDown)
def seat(sat: Recorded[SatDown], rows: Rows) -> None:
    """Free the seat, and take it."""
    number = int(sat.payload.at_the_window)
    before = rows.get(taken, number)
    if before is not None:
        rows.delete(seats, before.by)
    own = rows.get(seats, sat.entity)
    if own is not None:
        rows.delete(taken, own.seat)
    rows.put(seats, entity=sat.entity, seat=number)
    rows.put(taken, seat=number, by=sat.entity)
