"""Old payloads are lifted purely and totally, and read like new ones."""

from typing import Any

from pydantic import BaseModel
from sqlalchemy import BigInteger, Column, String

from qntx_es import Domain, Payload, Recorded, Rows

domain = Domain("wages")
wages = domain.table(
    "wages", Column("entity", String, primary_key=True), Column("cents", BigInteger)
)


class PaidAtFirst(BaseModel):
    """What was said at first."""

    whole: bool


class PaidOut(Payload, context="paid_out", schema_version=2):
    """Wages were paid out."""

    cents: int


@domain.upcast(PaidOut, from_=1)
def in_cents(old: PaidAtFirst) -> dict[str, Any]:
    """Give the usual wage, or half of it."""
    return {"cents": 100_000 if old.whole else 50_000}


@domain.project(PaidOut)
def keep(paid: Recorded[PaidOut], rows: Rows) -> None:
    """Keep the last."""
    rows.put(wages, entity=paid.entity, cents=paid.payload.cents % 1_000_000)
