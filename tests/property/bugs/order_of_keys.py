"""The first ingredient is whichever key comes first."""

from pydantic import Field
from sqlalchemy import Column, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "keys"

domain = Domain("recipes")
recipes = domain.table(
    "recipes", Column("entity", String, primary_key=True), Column("main", String)
)


class Cooked(Payload, context="cooked"):
    """It was cooked, of so many grams of each."""

    grams: dict[str, int] = Field(default_factory=dict)


@domain.project(Cooked)
def keep_main(cooked: Recorded[Cooked], rows: Rows) -> None:
    """Keep the first that is listed."""
    rows.put(recipes, entity=cooked.entity, main=next(iter(cooked.payload.grams), None))
