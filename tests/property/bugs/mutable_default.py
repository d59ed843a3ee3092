"""Who was seen before is in a default argument, made once and kept for good."""

from sqlalchemy import Boolean, Column, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "restart"

domain = Domain("visitors")
visitors = domain.table(
    "visitors", Column("entity", String, primary_key=True), Column("is_regular", Boolean)
)


class Visited(Payload, context="visited"):
    """Somebody came."""

    page: str


@domain.project(Visited)
def greet(visited: Recorded[Visited], rows: Rows) -> None:
    """Tell who has come before."""
    rows.put(visitors, entity=visited.entity, is_regular=_is_known(visited.entity))


def _is_known(entity: str, known: list[str] = []) -> bool:  # noqa: B006 - the bug
    if entity in known:
        return True
    known.append(entity)
    return False
