"""The currency is what the environment of the process says it is."""

import os

from sqlalchemy import Column, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "environment"

domain = Domain("tills")
tills = domain.table("tills", Column("entity", String, primary_key=True), Column("price", String))


class Priced(Payload, context="priced"):
    """It has a price."""

    cents: int


@domain.project(Priced)
def keep_price(priced: Recorded[Priced], rows: Rows) -> None:
    """Write the price with its currency."""
    currency = os.environ.get("SHOP_CURRENCY", "EUR")
    rows.put(tills, entity=priced.entity, price=f"{priced.payload.cents} {currency}")
