"""Invoices are due thirty days from now, whenever that is."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Column, Date, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "clock"

domain = Domain("invoices")
due = domain.table("due", Column("entity", String, primary_key=True), Column("on", Date))


class Invoiced(Payload, context="invoiced"):
    """Something was invoiced."""

    cents: int


@domain.project(Invoiced)
def set_due(invoiced: Recorded[Invoiced], rows: Rows) -> None:
    """Count from today, and not from the day that it was said."""
    rows.put(due, entity=invoiced.entity, on=(datetime.now(UTC) + timedelta(days=30)).date())
