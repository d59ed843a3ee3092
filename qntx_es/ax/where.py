"""Conditions on a payload: values with a text and a meaning in Python.

What they mean is said here, and the SQL of both databases is held against it. A path leads through
objects by their keys. A comparison holds only between values of one kind: numbers by size (exactly
where both are integers of 64 bits, else as floats), texts by code point; `!=` wants something else
to be there, and `not` is content with nothing.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt
from typing import Any, TypeAlias

from qntx_es.errors import AxError, AxTooComplex

Scalar: TypeAlias = str | int | float | bool | None
DEPTH_MAX = 20
NODES_MAX = 200
INTEGERS = range(-(1 << 63), 1 << 63)
ORDERS: dict[str, Callable[[Any, Any], bool]] = {"=": eq, "<": lt, "<=": le, ">": gt, ">=": ge}
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Compare:
    """What lies at `path` compares to `value`: `=`, `!=`, `<`, `<=`, `>` or `>=`."""

    path: tuple[str, ...]
    operator: str
    value: Scalar

    def __post_init__(self) -> None:
        _check_path(self.path)
        _check_value(self.value)
        if self.operator not in (*ORDERS, "!="):
            raise AxError(f"`{self.operator}` compares nothing: {', '.join((*ORDERS, '!='))}")
        if self.operator not in ("=", "!=") and (
            self.value is None or isinstance(self.value, bool)
        ):
            raise AxError(f"{json.dumps(self.value)} has no order: compare it by = or !=")

    def matches(self, payload: Mapping[str, object]) -> bool:
        """Tell whether it holds of a payload."""
        found = _follow(payload, self.path)
        if found is _NOTHING:
            return False
        if self.operator == "!=":
            return not _compares(found, "=", self.value)
        return _compares(found, self.operator, self.value)

    def __str__(self) -> str:
        return f"{text_of_path(self.path)} {self.operator} {text_of_value(self.value)}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """What lies at `path` equals one of `values`."""

    path: tuple[str, ...]
    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        _check_path(self.path)
        if not self.values:
            raise AxError("`in ()` can never hold: name at least one value")
        for value in self.values:
            _check_value(value)

    def matches(self, payload: Mapping[str, object]) -> bool:
        """Tell whether it holds of a payload."""
        found = _follow(payload, self.path)
        return found is not _NOTHING and any(_compares(found, "=", one) for one in self.values)

    def __str__(self) -> str:
        return f"{text_of_path(self.path)} in ({', '.join(map(text_of_value, self.values))})"


@dataclass(frozen=True, slots=True)
class Contains:
    """What lies at `path` is a list with `value` in it, or a text with that text in it."""

    path: tuple[str, ...]
    value: Scalar

    def __post_init__(self) -> None:
        _check_path(self.path)
        _check_value(self.value)

    def matches(self, payload: Mapping[str, object]) -> bool:
        """Tell whether it holds of a payload."""
        found = _follow(payload, self.path)
        if isinstance(found, str):
            return isinstance(self.value, str) and self.value in found
        return isinstance(found, list) and any(_compares(one, "=", self.value) for one in found)

    def __str__(self) -> str:
        return f"{text_of_path(self.path)} contains {text_of_value(self.value)}"


@dataclass(frozen=True, slots=True)
class Exists:
    """Something lies at `path`, be it null."""

    path: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_path(self.path)

    def matches(self, payload: Mapping[str, object]) -> bool:
        """Tell whether it holds of a payload."""
        return _follow(payload, self.path) is not _NOTHING

    def __str__(self) -> str:
        return f"{text_of_path(self.path)} exists"


@dataclass(frozen=True, slots=True)
class Not:
    """`condition` does not hold."""

    condition: "Where"

    def matches(self, payload: Mapping[str, object]) -> bool:
        """Tell whether it holds of a payload."""
        return not self.condition.matches(payload)

    def __str__(self) -> str:
        return f"not {_within(self.condition)}"


@dataclass(frozen=True, slots=True)
class All:
    """Each of two or more conditions holds."""

    conditions: "tuple[Where, ...]"

    def __post_init__(self) -> None:
        _check_size(self.conditions)

    def matches(self, payload: Mapping[str, object]) -> bool:
        """Tell whether it holds of a payload."""
        return all(one.matches(payload) for one in self.conditions)

    def __str__(self) -> str:
        return " and ".join(map(_within, self.conditions))


@dataclass(frozen=True, slots=True)
class Some:
    """At least one of two or more conditions holds."""

    conditions: "tuple[Where, ...]"

    def __post_init__(self) -> None:
        _check_size(self.conditions)

    def matches(self, payload: Mapping[str, object]) -> bool:
        """Tell whether it holds of a payload."""
        return any(one.matches(payload) for one in self.conditions)

    def __str__(self) -> str:
        return " or ".join(map(_within, self.conditions))


Where: TypeAlias = Compare | OneOf | Contains | Exists | Not | All | Some


def check_limits(where: Where) -> None:
    """Raise `AxTooComplex` beyond the limits of a condition: nested 20 deep, 200 parts."""
    nodes, level, depth = 0, [where], 0
    while level:
        depth += 1
        nodes += len(level)
        nodes += sum(len(one.values) for one in level if isinstance(one, OneOf))
        if depth > DEPTH_MAX or nodes > NODES_MAX:
            raise AxTooComplex
        level = [inner for one in level for inner in _inside(one)]


def text_of_path(path: Sequence[str]) -> str:
    """Return a path as a query has it, keys in quotes where they must be."""
    return ".".join(key if is_bare(key) and "." not in key else json.dumps(key) for key in path)


def text_of_value(value: Scalar) -> str:
    """Return a value as a query has it, which is as JSON has it."""
    return json.dumps(value, ensure_ascii=False)


def is_bare(word: str) -> bool:
    """Tell whether a word needs no quotes."""
    is_plain = all(one.isalnum() or one in "_-./@:+#~" for one in word)
    return bool(word) and is_plain and word.casefold() not in KEYWORDS


KEYWORDS = frozenset(
    {"is", "are", "by", "via", "since", "until", "on", "between", "where", "limit"}
    | {"and", "or", "not", "in", "contains", "exists"}
)


def _inside(where: Where) -> tuple[Where, ...]:
    if isinstance(where, Not):
        return (where.condition,)
    return where.conditions if isinstance(where, All | Some) else ()


def _within(where: Where) -> str:
    return f"({where})" if isinstance(where, All | Some) else str(where)


def _check_path(path: tuple[str, ...]) -> None:
    if not path or not all(path):
        raise AxError("a path names one key or more, none of them empty")
    if any("\x00" in key or any("\ud800" <= one <= "\udfff" for one in key) for key in path):
        raise AxError("a key of a payload has no NUL and no half of a surrogate pair")
    if len(path) > DEPTH_MAX:
        raise AxTooComplex


def _check_value(value: Scalar) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise AxError(f"{value} is in no payload")
    if type(value) is int and value not in INTEGERS:
        raise AxError(f"{value} has more than 64 bits: compare by a float")
    if isinstance(value, str) and (
        "\x00" in value or any("\ud800" <= one <= "\udfff" for one in value)
    ):
        raise AxError("a text of a payload has no NUL and no half of a surrogate pair")


def _check_size(conditions: tuple[Where, ...]) -> None:
    if len(conditions) < 2:  # noqa: PLR2004 - one condition is itself
        raise AxError("`and` and `or` join two conditions or more")


def _follow(payload: object, path: Sequence[str]) -> object:
    for key in path:
        if not isinstance(payload, Mapping) or key not in payload:
            return _NOTHING
        payload = payload[key]
    return payload


def _compares(found: object, operator: str, value: Scalar) -> bool:
    if isinstance(found, bool) or isinstance(value, bool) or found is None or value is None:
        return operator == "=" and type(found) is type(value) and found == value
    if isinstance(found, str) and isinstance(value, str):
        return ORDERS[operator](found, value)
    if isinstance(found, int | float) and isinstance(value, int | float):
        return ORDERS[operator](_number(found), value)
    return False


def _number(found: float) -> float:
    if isinstance(found, float) or found in INTEGERS:
        return found
    try:
        return float(found)
    except OverflowError:
        return math.inf if found > 0 else -math.inf
