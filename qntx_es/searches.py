"""How a query is asked of the database: which index answers first, and what it costs.

An index on a payload path names the positions that can satisfy a condition. If they are few, only
they are looked at; if they are many, the condition is common, and reading on in the order of
positions finds enough of them soon. So no statistics are needed, and none can mislead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    bindparam,
    case,
    cast,
    func,
    literal,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ClauseElement, Executable

from qntx_es import indexes
from qntx_es.attestation import microseconds
from qntx_es.ax import Ax, Span, keys_of, search
from qntx_es.tables import attestations, tags

AMONG_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Explained:
    """A query's statement with its parameters, and the database's plan for it, line by line.

    `index` is the payload path whose index answers first, with how many positions; None for none.
    """

    statement: str
    parameters: dict[str, Any]
    plan: tuple[str, ...]
    index: tuple[str, int] | None


def searched(
    connection: Connection, columns: Sequence[ColumnElement[Any]], ax: Ax, span: Span
) -> Select[Any]:
    """Return the statement that finds what `ax` asks for within a span."""
    dialect = connection.dialect.name
    return search(
        columns, ax, narrowed(connection, ax, span)[0], attestations, tags, dialect=dialect
    )


def narrowed(connection: Connection, ax: Ax, span: Span) -> tuple[Span, str | None]:
    """Return the span, kept to what an index on a payload path leaves possible, and that path."""
    found = keys_of(ax.where, connection.dialect.name)
    if not found:
        return span, None
    there = indexes.present(connection, [keys.path for keys in found])
    for keys in found:
        if keys.path not in there:
            continue
        among = indexes.positions(
            connection, keys, after=span.after, until=span.until, limit=AMONG_MAX + 1
        )
        if len(among) <= AMONG_MAX:
            return replace(span, among=among), ".".join(keys.path)
    return span, None


def bounds(connection: Connection, ax: Ax, after: int, head: int) -> tuple[int, int]:
    """Return behind which position and up to which an attestation has the times of `ax`."""
    if ax.since is not None:
        after = max(after, last_before(connection, microseconds(ax.since), head))
    if ax.until is not None:
        head = last_before(connection, microseconds(ax.until) + 1, head)
    return after, head


def head_of(connection: Connection) -> int:
    """Return the largest position, in the caller's transaction."""
    largest = select(func.coalesce(func.max(attestations.c.position), 0))
    return int(connection.execute(largest).scalar_one())


def last_before(connection: Connection, at: int, head: int) -> int:
    """Return the largest position recorded before an instant, by bisection in the database."""
    return int(connection.execute(_LAST_BEFORE, {"at": at, "head": head}).scalar_one())


def _bisection() -> Select[Any]:
    head = cast(bindparam("head"), BigInteger)
    halves = select(literal(0, BigInteger).label("low"), head.label("high")).cte(
        "halves", recursive=True
    )
    middle = (halves.c.low + halves.c.high + 1) // 2
    is_before = attestations.c.recorded_at < bindparam("at")
    halves = halves.union_all(
        select(
            case((is_before, middle), else_=halves.c.low),
            case((is_before, halves.c.high), else_=middle - 1),
        )
        .select_from(halves.join(attestations, attestations.c.position == middle))
        .where(halves.c.low < halves.c.high)
    )
    return select(halves.c.low).where(halves.c.low == halves.c.high)


_LAST_BEFORE = _bisection()


def explain(connection: Connection, ax: Ax, span: Span) -> Explained:
    """Return how the database would find what `ax` asks for."""
    span, path = narrowed(connection, ax, span)
    dialect = connection.dialect.name
    columns = list(attestations.c)
    asked = search(columns, ax, span, attestations, tags, dialect=dialect)
    compiled = asked.compile(connection, compile_kwargs={"render_postcompile": True})
    rows = connection.execute(_Explain(asked)).all()
    return Explained(
        statement=str(compiled),
        parameters=dict(compiled.params),
        plan=tuple(str(row[-1]) for row in rows),
        index=None if path is None else (path, len(span.among or ())),
    )


class _Explain(Executable, ClauseElement):
    """Asks for the plan of a statement, and does not run it."""

    inherit_cache = False

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement


@compiles(_Explain)
def _compile(element: _Explain, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401 - SQLAlchemy's
    word = "EXPLAIN QUERY PLAN" if compiler.dialect.name == "sqlite" else "EXPLAIN"
    return f"{word} {compiler.process(element.statement, **options)}"
