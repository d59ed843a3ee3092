"""An Ax as SQL: every value a bound parameter, every name from a fixed set.

Times are not here: `recorded_at` never goes back along positions, so the log finds the positions
of a time by bisection and needs no index for it.
"""

from sqlalchemy import ColumnElement, FromClause, select, union_all

from qntx_es.ax.query import Ax


def conditions(ax: Ax, log: FromClause, tags: FromClause) -> list[ColumnElement[bool]]:
    """Return what a row of `log` must satisfy, its times left out."""
    asked = {"context": ax.contexts, "actor": ax.actors}
    found: list[ColumnElement[bool]] = [
        log.c[column].in_(names) for column, names in asked.items() if names
    ]
    if ax.entities:
        # Two searches and not one OR, for which PostgreSQL would read the whole log.
        said = log.alias("said")
        by_entity = select(said.c.position).where(said.c.entity.in_(ax.entities))
        by_tag = select(tags.c.position).where(tags.c.tag.in_(ax.entities))
        found.append(log.c.position.in_(union_all(by_entity, by_tag)))
    return found
