"""Old prices are lifted by the rate of the hour in which they are read."""

import time
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import BigInteger, Column, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "clock"

domain = Domain("offers")
offers = domain.table(
    "offers", Column("entity", String, primary_key=True), Column("cents", BigInteger)
)


class Listed(BaseModel):
    """What an offer said at first."""

    dollars: int = Field(ge=0, le=1_000)


class Offered(Payload, context="offered", schema_version=2):
    """It is offered at a price in cents."""

    cents: int


@domain.upcast(Offered, from_=1)
def in_cents(old: Listed) -> dict[str, Any]:
    """Change dollars at the rate of this second."""
    return {"cents": old.dollars * 100 + int(time.time()) % 1_000_000}


@domain.project(Offered)
def keep(offered: Recorded[Offered], rows: Rows) -> None:
    """Keep the price."""
    rows.put(offers, entity=offered.entity, cents=offered.payload.cents)
