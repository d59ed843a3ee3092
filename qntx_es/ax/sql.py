"""An Ax as SQL: every value a bound parameter, every name from a fixed set.

Times are not here: `recorded_at` never goes back along positions, so the log finds the positions
of a time by bisection and needs no index for it.
"""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, FromClause, or_, select, union_all

from qntx_es.ax.payload import holds
from qntx_es.ax.query import Ax, Glob, Name


def conditions(
    ax: Ax, log: FromClause, tags: FromClause, *, dialect: str
) -> list[ColumnElement[bool]]:
    """Return what a row of `log` must satisfy, its times left out."""
    asked = {"context": ax.contexts, "actor": ax.actors}
    found = [_is_any(log.c[column], names, dialect) for column, names in asked.items() if names]
    if ax.entities:
        # Two searches and not one OR, for which PostgreSQL would read the whole log.
        said = log.alias("said")
        is_about = _is_any(said.c.entity, ax.entities, dialect)
        is_tagged = _is_any(tags.c.tag, ax.entities, dialect)
        by_entity = select(said.c.position).where(is_about)
        by_tag = select(tags.c.position).where(is_tagged)
        found.append(log.c.position.in_(union_all(by_entity, by_tag)))
    if ax.where is not None:
        found.append(holds(ax.where, log.c.payload, dialect))
    return found


def _is_any(column: ColumnElement[str], names: Sequence[Name], dialect: str) -> ColumnElement[bool]:
    exact = [name for name in names if isinstance(name, str)]
    shaped = [_has_shape(column, name, dialect) for name in names if isinstance(name, Glob)]
    return or_(*([column.in_(exact)] if exact else []), *shaped)


def _has_shape(column: ColumnElement[str], glob: Glob, dialect: str) -> ColumnElement[bool]:
    if dialect == "sqlite":
        # Not LIKE, for which A is a. Brackets and ? mean themselves.
        pattern = glob.pattern.replace("[", "[[]").replace("?", "[?]")
        return column.op("GLOB", is_comparison=True)(pattern)
    pattern = glob.pattern.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return column.like(pattern.replace("*", "%"), escape="\\")
