"""What an index on a payload path says of a condition: which of its keys can satisfy it at all.

A key stands for what lies at a path of a payload: a number, or the beginning of a text. The ranges
given here may hold too much and never too little: numbers are widened by a few units in the last
place, since the databases do not all read them to the last bit, and the condition itself decides.
"""

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from qntx_es.ax.where import All, Compare, OneOf, Scalar, Where
from qntx_es.errors import AxError

# What may stand in an indexed path without a thought of quotes, on both databases.
PATH_KEY = re.compile(r"[A-Za-z0-9_-]{1,63}")
PATH_KEYS_MAX = 8
KEY_CHARACTERS = 256
WIDENED_ULPS = 4
Key: TypeAlias = str | float
# Ends of what PostgreSQL's keys begin with: n for numbers, s for texts, b for booleans.
_AFTER_NUMBERS, _AFTER_TEXTS = "o", "t"
_SIGN_BIT, _ALL_BITS = 1 << 63, (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys at `path` that a condition leaves possible: each `ranges` from low to high.

    Both ends are included; None is no end.
    """

    path: tuple[str, ...]
    ranges: tuple[tuple[Key | None, Key | None], ...]


def checked_path(path: str) -> tuple[str, ...]:
    """Return the keys of a path that can be indexed, such as `file.name`. Raises `AxError`."""
    keys = tuple(path.split("."))
    if not is_indexable(keys):
        raise AxError(
            f"`{path}` cannot be indexed: up to {PATH_KEYS_MAX} keys of letters, digits, _ and -, "
            "joined by dots"
        )
    return keys


def is_indexable(path: Sequence[str]) -> bool:
    """Tell whether there can be an index on a path."""
    return len(path) <= PATH_KEYS_MAX and all(PATH_KEY.fullmatch(key) for key in path)


def keys_of(where: Where | None, dialect: str) -> list[Keys]:
    """Return what a condition says of each path it must hold at, single keys before ranges."""
    found: dict[tuple[str, ...], Keys] = {}
    for keys in _parts(where, dialect):
        if not is_indexable(keys.path):
            continue
        known = found.get(keys.path)
        found[keys.path] = keys if known is None else _both(known, keys)
    return sorted(found.values(), key=lambda keys: any(None in ends for ends in keys.ranges))


def _parts(where: Where | None, dialect: str) -> Iterator[Keys]:
    match where:
        case All(conditions):
            for one in conditions:
                yield from _parts(one, dialect)
        case Compare(path, operator, value) if operator != "!=" and value is not None:
            yield Keys(path, (_range(operator, value, dialect),))
        case OneOf(path, values) if None not in values:
            yield Keys(path, tuple(_range("=", value, dialect) for value in values))


def _both(one: Keys, other: Keys) -> Keys:
    """Return what is left where both must hold, of two single ranges; else the one with more."""
    if len(one.ranges) > 1 or len(other.ranges) > 1:
        return max(one, other, key=lambda keys: len(keys.ranges))
    ranges = one.ranges + other.ranges
    lows = [low for low, _ in ranges if low is not None]
    highs = [high for _, high in ranges if high is not None]
    ends = max(lows, key=_in_order, default=None), min(highs, key=_in_order, default=None)
    return Keys(one.path, (ends,))


def _in_order(key: Key) -> tuple[bool, Key]:
    return isinstance(key, str), key


def _range(operator: str, value: Scalar, dialect: str) -> tuple[Key | None, Key | None]:
    of = _on_sqlite if dialect == "sqlite" else _on_postgresql
    least, low, high, most = of(value)
    return (low if operator in ("=", ">", ">=") else least), (
        high if operator in ("=", "<", "<=") else most
    )


def _on_sqlite(value: Scalar) -> tuple[Key | None, Key, Key, Key | None]:
    # Numbers sort before texts; true is 1.
    if isinstance(value, str):
        return "", value[:KEY_CHARACTERS], value[:KEY_CHARACTERS], None
    low, high = _widened(value)
    return None, low, high, ""


def _on_postgresql(value: Scalar) -> tuple[Key | None, Key, Key, Key | None]:
    if isinstance(value, str):
        key = f"s{value[:KEY_CHARACTERS]}"
        return "s", key, key, _AFTER_TEXTS
    if isinstance(value, bool):
        key = f"b{str(value).lower()}"
        return key, key, key, key
    low, high = _widened(value)
    return "n", _ordered(low), _ordered(high), _AFTER_NUMBERS


def _widened(value: Scalar) -> tuple[float, float]:
    low = high = float(value or 0)
    for _ in range(WIDENED_ULPS):
        low, high = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    return low, high


def _ordered(number: float) -> str:
    """Return a float as text that sorts as the number does, as `qntx_key` writes it."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", number + 0.0))
    return f"n{bits ^ (_ALL_BITS if bits & _SIGN_BIT else _SIGN_BIT):016x}"
