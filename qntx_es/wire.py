"""PostgreSQL's binary arrays, a column of values at a time.

A driver finds out for each value how it is to be written. Here a column's kind says it for all of
them, which for a column of integers is one call in all. The forms are those of `array_recv` and the
types' own `…recv` functions in PostgreSQL's sources, kept from version to version.
"""

import struct
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import chain, repeat
from typing import Any

# Dimensions, has nulls, type, then size and first index.
_HEAD = struct.Struct("!iiIii")
_SIZE = struct.Struct("!i")
_NULL = _SIZE.pack(-1)
_BIGINT = struct.Struct("!q")
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _instant(value: datetime) -> bytes:
    return _BIGINT.pack((value - _EPOCH) // _MICROSECOND)


def _date(value: date) -> bytes:
    return _SIZE.pack(value.toordinal() - _EPOCH.toordinal())


# By how a cast names it: the number of the type, and how a value of it is written.
KINDS: dict[str, tuple[int, Callable[[Any], bytes]]] = {
    "bigint": (20, _BIGINT.pack),
    "boolean": (16, struct.Struct("!?").pack),
    "bytea": (17, bytes),
    "date": (1082, _date),
    "double precision": (701, struct.Struct("!d").pack),
    "integer": (23, _SIZE.pack),
    "text": (25, str.encode),
    "timestamptz": (1184, _instant),
}


def array(kind: str, values: Sequence[Any]) -> bytes:
    """Return values of one kind, or None, as a binary array. Raises `KeyError`, `struct.error`."""
    number, write = KINDS[kind]
    if not values:
        return struct.pack("!iiI", 0, 0, number)
    has_null = None in values
    head = _HEAD.pack(1, has_null, number, len(values), 1)
    if kind == "bigint" and not has_null:
        sized = chain.from_iterable(zip(repeat(_BIGINT.size), values, strict=False))
        return head + struct.pack("!" + "iq" * len(values), *sized)
    size = _SIZE.pack
    written = [None if one is None else write(one) for one in values]
    parts = [_NULL if one is None else size(len(one)) + one for one in written]
    return head + b"".join(parts)
