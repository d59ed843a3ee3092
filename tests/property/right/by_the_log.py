"""Time, chance and ids come from the attestation, and are the same for ever."""

from random import Random

from sqlalchemy import Column, Date, Integer, String

from qntx_es import Domain, Payload, Recorded, Rows, computed_id

domain = Domain("draws")
draws = domain.table(
    "draws",
    Column("entity", String, primary_key=True),
    Column("on", Date),
    Column("ticket", Integer),
    Column("number", String),
)


class Drawn(Payload, context="drawn"):
    """A ticket is to be drawn."""

    tickets: int = 100


@domain.project(Drawn)
def draw(drawn: Recorded[Drawn], rows: Rows) -> None:
    """Draw a ticket that the log determines."""
    rows.put(
        draws,
        entity=drawn.entity,
        on=drawn.recorded_at.date(),
        ticket=Random(drawn.id).randrange(100),  # noqa: S311 - the same for ever
        number=computed_id(drawn.id, "ticket"),
    )
