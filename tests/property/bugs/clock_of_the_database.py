"""The database is asked for the time, and answers with another one in every replay."""

from sqlalchemy import Column, String, func, select

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "clock"

domain = Domain("stamps")
stamps = domain.table("stamps", Column("entity", String, primary_key=True), Column("at", String))


class Stamped(Payload, context="stamped"):
    """It was stamped."""

    by: str


@domain.project(Stamped)
def keep(stamped: Recorded[Stamped], rows: Rows) -> None:
    """Stamp it again."""
    rows.put(stamps, entity=stamped.entity)
    asked = select(func.strftime("%Y-%m-%d", "now"), stamps.c.entity)
    (row,) = rows.select(asked.where(stamps.c.entity == stamped.entity))
    rows.put(stamps, entity=stamped.entity, at=str(row[0]))
