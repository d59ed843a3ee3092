"""Customers are spread over eight shelves by `hash`, which no two processes agree on."""

from sqlalchemy import Column, Integer, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "hashseed"

domain = Domain("shelves")
shelves = domain.table(
    "shelves", Column("entity", String, primary_key=True), Column("shelf", Integer)
)


class Joined(Payload, context="joined"):
    """A customer joined."""

    name: str


@domain.project(Joined)
def choose_shelf(joined: Recorded[Joined], rows: Rows) -> None:
    """Choose a shelf."""
    rows.put(shelves, entity=joined.entity, shelf=hash(joined.entity) % 1_000_003)
