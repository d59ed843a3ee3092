"""An Ax as SQL: every value a bound parameter, every name from a fixed set.

Times are not here: `recorded_at` never goes back along positions, so the log finds the positions
of a time by bisection and needs no index for it.
"""

from sqlalchemy import ColumnElement, FromClause

from qntx_es.ax.query import Ax


def conditions(ax: Ax, log: FromClause) -> list[ColumnElement[bool]]:
    """Return what a row of `log` must satisfy, its times left out."""
    asked = {"context": ax.contexts, "actor": ax.actors, "entity": ax.entities}
    return [log.c[column].in_(names) for column, names in asked.items() if names]
