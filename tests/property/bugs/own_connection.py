"""A rank is how many rows there are, asked past the rows: what is not flushed is not seen."""

from typing import Any

from sqlalchemy import Column, Integer, String, func, select

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "batch"

domain = Domain("race")
arrivals = domain.table(
    "arrivals", Column("entity", String, primary_key=True), Column("rank", Integer)
)


class Arrived(Payload, context="arrived"):
    """Somebody arrived."""

    seconds: int


@domain.project(Arrived)
def rank(arrived: Recorded[Arrived], rows: Rows) -> None:
    """Count who is there already."""
    connection: Any = rows.connect(False)  # type: ignore[attr-defined]  # noqa: FBT003 - the bug
    there = connection.execute(select(func.count()).select_from(arrivals)).scalar_one()
    if rows.get(arrivals, arrived.entity) is None:
        rows.put(arrivals, entity=arrived.entity, rank=there + 1)
