"""Shares are floats, and summed in whatever order their keys come."""

from pydantic import Field
from sqlalchemy import Column, Float, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "keys"

domain = Domain("holdings")
holdings = domain.table(
    "holdings", Column("entity", String, primary_key=True), Column("worth", Float)
)


class Valued(Payload, context="valued"):
    """Shares were valued."""

    shares: dict[str, float] = Field(default_factory=dict)


@domain.project(Valued)
def value(valued: Recorded[Valued], rows: Rows) -> None:
    """Sum what they are worth."""
    worth = 0.1
    for number, share in enumerate(valued.payload.shares.values(), 3):
        worth = worth / number + share % 1e6
    rows.put(holdings, entity=valued.entity, worth=worth)
