"""A visit is counted on the day that the machine's time zone gives it."""

from datetime import datetime

from pydantic import Field
from sqlalchemy import Column, Integer, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "zone"

domain = Domain("visits")
days = domain.table(
    "days",
    Column("day", String, primary_key=True),
    Column("visits", Integer, nullable=False, default=0),
)


class Seen(Payload, context="visit_seen"):
    """Somebody was seen, at a time in seconds since 1970."""

    seconds: int = Field(ge=0, le=2_000_000_000)


@domain.project(Seen)
def count(seen: Recorded[Seen], rows: Rows) -> None:
    """Count it on its day."""
    at = datetime.fromtimestamp(seen.payload.seconds)  # noqa: DTZ006 - the bug
    rows.add(days, at.isoformat(), visits=1)
