"""A condition on the payload as SQL, meaning on both databases what it means in Python.

On PostgreSQL nothing is compared before its kind is known, since a text cannot be turned into a
number. A number that is no integer of 64 bits is a float, as it is in Python. SQLite reads some
floats one bit off (1e23), so there the condition is a function of ours, which the database calls.
"""

import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Float,
    Numeric,
    String,
    Text,
    and_,
    case,
    cast,
    exists,
    false,
    func,
    literal,
    not_,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from qntx_es.ax.where import (
    INTEGERS,
    All,
    Compare,
    Contains,
    Exists,
    Not,
    OneOf,
    Scalar,
    Some,
    Where,
)

_TEXTS = ARRAY(Text)
# From here on a number is rounded to infinity, not to the largest float.
_TOO_LARGE = Decimal((1 << 1024) - (1 << 970))


def holds(where: Where, payload: ColumnElement[str], dialect: str) -> ColumnElement[bool]:
    """Return whether a condition holds of a payload; never null."""
    if dialect == "sqlite":
        called: ColumnElement[bool] = func.qntx_holds(payload, str(where), type_=Boolean())
        return called
    return _holds(where, _OnPostgresql(payload))


def holds_of_text(payload: str, where: str) -> bool:
    """Tell whether a condition, as text, holds of a payload: `qntx_holds` on SQLite."""
    return _read(where).matches(json.loads(payload))


@lru_cache(maxsize=64)
def _read(where: str) -> Where:
    from qntx_es.ax.text import read  # noqa: PLC0415 - slow, and few ever read a query

    found = read(f"where {where}", as_of=datetime.now(UTC)).where
    assert found is not None  # noqa: S101 - a condition is what the text has
    return found


def _holds(where: Where, on: "_OnPostgresql") -> ColumnElement[bool]:
    match where:
        case Compare(path, "!=", value):
            found = and_(on.is_there(path), not_(on.compares(path, "=", value)))
        case Compare(path, operator, value):
            found = on.compares(path, operator, value)
        case OneOf(path, values):
            found = or_(*(on.compares(path, "=", value) for value in values))
        case Contains(path, value):
            found = on.contains(path, value)
        case Exists(path):
            found = on.is_there(path)
        case Not(condition):
            found = not_(_holds(condition, on))
        case All(inner):
            found = and_(*(_holds(one, on) for one in inner))
        case Some(inner):
            found = or_(*(_holds(one, on) for one in inner))
    return found


def _order(operator: str) -> Callable[[ColumnElement[Any], Any], ColumnElement[bool]]:
    if operator == "=":
        return lambda found, value: found == value
    return lambda found, value: found.op(operator, is_comparison=True)(value)


class _OnPostgresql:
    """Looks into a payload by `->`, which finds keys in objects alone."""

    def __init__(self, payload: ColumnElement[str]) -> None:
        self._payload = cast(payload, JSONB)

    def is_there(self, path: Sequence[str]) -> ColumnElement[bool]:
        """Return whether anything lies at a path."""
        found: ColumnElement[bool] = self._at(path).is_not(None)
        return found

    def compares(self, path: Sequence[str], operator: str, value: Scalar) -> ColumnElement[bool]:
        """Return whether what lies there compares to a value."""
        return _postgresql_compares(self._at(path), operator, value)

    def contains(self, path: Sequence[str], value: Scalar) -> ColumnElement[bool]:
        """Return whether the text or list that lies there contains a value."""
        at = self._at(path)
        kind = func.jsonb_typeof(at)
        empty = cast(literal("[]", Text), JSONB)
        items = func.jsonb_array_elements(case((kind == "array", at), else_=empty))
        inside = items.table_valued("value", name="inside").render_derived()
        item = cast(inside.c.value, JSONB)
        found = exists(
            select(literal(1)).select_from(inside).where(_postgresql_compares(item, "=", value))
        )
        if not isinstance(value, str):
            return found
        text = case((kind == "string", func.strpos(_text(at), value) > 0), else_=false())
        return or_(text, found)

    def _at(self, path: Sequence[str]) -> Any:  # noqa: ANN401 - an SQL expression
        at: Any = self._payload
        for key in path:
            at = at.op("->", return_type=JSONB())(literal(key, Text))
        return at


def _text(at: Any) -> ColumnElement[str]:  # noqa: ANN401 - an SQL expression
    whole = cast(literal("{}", Text), _TEXTS)
    found: ColumnElement[str] = at.op("#>>", return_type=String())(whole)
    return found


def _postgresql_compares(at: Any, operator: str, value: Scalar) -> ColumnElement[bool]:  # noqa: ANN401
    kind = func.jsonb_typeof(at)
    compares = _order(operator)
    if value is None:
        return func.coalesce(kind == "null", false(), type_=Boolean())
    if isinstance(value, bool):
        right = and_(kind == "boolean", _text(at) == ("true" if value else "false"))
        return func.coalesce(right, false(), type_=Boolean())
    if isinstance(value, str):
        found = _text(at).collate("C")
        return case((kind == "string", compares(found, literal(value, Text))), else_=false())
    compared = _compares_number(cast(_text(at), Numeric), compares, value)
    return case((kind == "number", compared), else_=false())


def _compares_number(
    found: ColumnElement[Decimal], compares: Callable[[Any, Any], Any], value: float
) -> ColumnElement[bool]:
    # Exact for integers, else as floats: there is no exact way from float to numeric.
    is_integer = and_(
        found == func.trunc(found), found >= INTEGERS.start, found <= INTEGERS.stop - 1
    )
    infinite = case((found > 0, "Infinity"), else_="-Infinity")
    text = case((func.abs(found) >= _TOO_LARGE, infinite), else_=cast(found, Text))
    return case(
        (is_integer, compares(found, literal(Decimal(value), Numeric()))),
        else_=compares(cast(text, Float(53)), literal(_beside_no_integer(value), Float(53))),
    )


def _beside_no_integer(value: float) -> float:
    """Return a float that is where an integer of 64 bits is, among all floats that are none."""
    # The last few are rounded up to 2^63, which is none.
    return min(float(value), math.nextafter(2.0**63, 0.0)) if isinstance(value, int) else value
