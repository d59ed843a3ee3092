"""An Ax as SQL: every value a bound parameter, every name from a fixed set.

A search follows one index in the order of positions and stops when it has enough, so it costs what
it finds and not what the log holds. Times are not here: `recorded_at` never goes back along
positions, so the log finds the positions of a time by bisection and needs no index for it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    bindparam,
    column,
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.sql.operators import custom_op

from qntx_es.ax.payload import holds
from qntx_es.ax.query import Ax, Glob, Name


@dataclass(frozen=True, slots=True)
class Span:
    """Where to look: behind `after`, up to `until`, and only `among` certain positions.

    At most `size` are wanted: the first ones, or the newest.
    """

    size: int
    after: int = 0
    until: int | None = None
    among: Sequence[int] | None = None
    is_newest: bool = False


def search(  # noqa: PLR0913 - what, of what, where, and in which words
    columns: Sequence[ColumnElement[Any]],
    ax: Ax,
    span: Span,
    log: FromClause,
    tags: FromClause,
    *,
    dialect: str,
) -> Select[Any]:
    """Select columns of the rows of `log` that are asked for, the times of `ax` left out."""
    asked = select(*columns)
    if not ax.entities:
        asked = asked.where(*_matching(ax, span, log, log.c.position, dialect))
        return _cut(asked, span, log.c.position)
    # Two searches and not one OR, for which PostgreSQL would read the whole log; and each no
    # longer than wanted, since very much may have been said about one entity.
    said = log.alias("said")
    about = select(said.c.position).where(
        _is_any(said.c.entity, ax.entities, dialect),
        *_matching(ax, span, said, said.c.position, dialect),
    )
    tagged = (
        select(tags.c.position)
        .join(said, said.c.position == tags.c.position)
        .where(
            _is_any(tags.c.tag, ax.entities, dialect),
            *_matching(ax, span, said, tags.c.position, dialect),
        )
    )
    is_one_tag = len(ax.entities) == 1 and all(isinstance(one, str) for one in ax.entities)
    if not is_one_tag:
        tagged = tagged.distinct()  # what has two of the tags counts once
    each = (_cut(about, span, said.c.position), _cut(tagged, span, tags.c.position))
    found = union_all(*(select(one.subquery().c.position) for one in each))
    if dialect == "sqlite":
        is_found: ColumnElement[bool] = log.c.position.in_(found)
    else:
        # As an array: joined with, it may be sought for from the end of the log backwards.
        is_found = log.c.position == func.any(func.array(found.scalar_subquery()))
    return _cut(asked.where(is_found), span, log.c.position)


def _cut(asked: Select[Any], span: Span, position: ColumnElement[int]) -> Select[Any]:
    return asked.order_by(position.desc() if span.is_newest else position).limit(span.size)


def _matching(
    ax: Ax, span: Span, said: FromClause, position: ColumnElement[int], dialect: str
) -> list[ColumnElement[bool]]:
    found = [position > span.after] if span.after else []
    if span.until is not None:
        found.append(position <= span.until)
    if span.among is not None:
        found.append(_is_among(position, span.among, dialect))
    # SQLite keeps no statistics, and would as soon go by a context, of which there are few, as by
    # an entity.
    is_led = dialect == "sqlite" and any(isinstance(one, str) for one in ax.entities)
    for name, asked in ((said.c.context, ax.contexts), (said.c.actor, ax.actors)):
        if asked:
            found.append(_is_any(unindexed(name) if is_led else name, asked, dialect))
    if ax.where is not None:
        found.append(holds(ax.where, said.c.payload, dialect))
    return found


def unindexed(name: ColumnElement[str]) -> ColumnElement[str]:
    """Return a column as SQLite will not go by it: behind a plus, no index is one for it."""
    return UnaryExpression(name, operator=custom_op("+"), type_=name.type)


def _is_among(
    position: ColumnElement[int], among: Sequence[int], dialect: str
) -> ColumnElement[bool]:
    # One parameter for all of them: a statement of ten thousand would be slow to compose.
    if dialect == "sqlite":
        listed = func.json_each(json.dumps(list(among))).table_valued(column("value", BigInteger))
        return position.in_(select(listed.c.value))
    listed_in = bindparam(None, list(among), type_=ARRAY(BigInteger))
    return position == func.any(listed_in)


def _is_any(name: ColumnElement[str], names: Sequence[Name], dialect: str) -> ColumnElement[bool]:
    exact = [one for one in names if isinstance(one, str)]
    found = [_has_shape(name, one, dialect) for one in names if isinstance(one, Glob)]
    if len(exact) == 1:
        found.append(name == exact[0])
    elif exact:
        found.append(name.in_(exact))
    return or_(*found)


def _has_shape(name: ColumnElement[str], glob: Glob, dialect: str) -> ColumnElement[bool]:
    if dialect == "sqlite":
        # Not LIKE, for which A is a. Brackets and ? mean themselves.
        pattern = glob.pattern.replace("[", "[[]").replace("?", "[?]")
        return name.op("GLOB", is_comparison=True)(pattern)
    pattern = glob.pattern.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return name.like(pattern.replace("*", "%"), escape="\\")
