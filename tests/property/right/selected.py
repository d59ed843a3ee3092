"""A rank is counted in the rows, which see whatever was put before."""

from sqlalchemy import Column, Integer, String, func, select

from qntx_es import Domain, Payload, Recorded, Rows

domain = Domain("ranks")
ranks = domain.table("ranks", Column("entity", String, primary_key=True), Column("rank", Integer))


class Finished(Payload, context="finished"):
    """Somebody finished."""

    seconds: int


@domain.project(Finished)
def rank(finished: Recorded[Finished], rows: Rows) -> None:
    """Count who is there already."""
    if rows.get(ranks, finished.entity) is None:
        ((there,),) = rows.select(select(func.count()).select_from(ranks))
        rows.put(ranks, entity=finished.entity, rank=there + 1)
