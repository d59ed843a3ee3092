"""Of the tickets of a lottery one is drawn, and another the next time."""

import random

from sqlalchemy import Column, Integer, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "random"

domain = Domain("lottery")
winners = domain.table(
    "winners", Column("entity", String, primary_key=True), Column("ticket", Integer)
)


class Closed(Payload, context="lottery_closed"):
    """No more tickets are sold."""

    tickets: int = 1_000_000


@domain.project(Closed)
def draw(closed: Recorded[Closed], rows: Rows) -> None:
    """Draw a ticket."""
    rows.put(winners, entity=closed.entity, ticket=random.randrange(1_000_000))  # noqa: S311 - the bug
