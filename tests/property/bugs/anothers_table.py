"""Prices are looked up in the table of another domain, which may be ahead or behind."""

from sqlalchemy import Column, Integer, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "refused"

catalogue = Domain("catalogue")
prices = catalogue.table(
    "prices", Column("entity", String, primary_key=True), Column("cents", Integer)
)

domain = Domain("baskets")
baskets = domain.table(
    "baskets", Column("entity", String, primary_key=True), Column("cents", Integer)
)


class Chosen(Payload, context="chosen"):
    """An article was put into a basket."""

    article: str


@domain.project(Chosen)
def look_up(chosen: Recorded[Chosen], rows: Rows) -> None:
    """Look the price up."""
    price = rows.get(prices, chosen.payload.article)
    rows.put(baskets, entity=chosen.entity, cents=price.cents if price else 0)
