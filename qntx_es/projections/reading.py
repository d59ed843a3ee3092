"""How a statement reads a range of the log and looks into its payloads, on each database.

What it finds there is what Python would, of payloads that are plain: an integer is written without
a point or an exponent, since a database would take 1e3 and 1.0 for integers where it matters that
they are floats. The two classes have the same functions, and differ in all that these do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    FromClause,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, INTERVAL, JSON, JSONB, TIMESTAMP
from sqlalchemy.types import TypeEngine

from qntx_es.projections.plain import Kind, Plain
from qntx_es.projections.slices import ALL, Slices
from qntx_es.tables import attestations

BESIDE_PAYLOAD = ("position", "entity", "actor", "recorded_at", "schema_version")
SQLITE_TYPES: dict[Kind, tuple[str, ...]] = {
    "int": ("integer",),
    "float": ("integer", "real"),
    "str": ("text",),
    "bool": ("true", "false"),
    "object": ("object",),
}
SECOND = 1_000_000
# From the third look on it pays to have parsed the text.
TEXT_LOOKS_MAX = 2
# From here on a float is written with an exponent.
EXPONENT_MIN = 10**16


@dataclass(frozen=True, slots=True)
class OnSqlite:
    """Looks into the text itself; SQLite parses each text once for all looks."""

    slices: Slices = ALL

    def rows(self, context: str, fields: Mapping[str, Plain]) -> FromClause:  # noqa: ARG002 - all are in the text
        """Return what was said in a context between the parameters `after` and `until`."""
        return _range(context, self.slices).add_columns(attestations.c.payload).subquery("said")

    def value(self, rows: FromClause, keys: Sequence[str], kind: Kind) -> ColumnElement[Any]:  # noqa: ARG002 - SQLite's types are the values'
        """Return what lies at a place of a plain payload; NULL for null, and for nothing."""
        found: ColumnElement[Any] = func.json_extract(rows.c.payload, _sqlite_path(keys))
        return found

    def is_absent(self, rows: FromClause, keys: Sequence[str]) -> ColumnElement[bool]:
        """Tell whether nothing lies there, not even null."""
        return self._type(rows, keys).is_(None)

    def is_plain(self, rows: FromClause, keys: Sequence[str], place: Plain) -> ColumnElement[bool]:
        """Tell whether what lies there is plainly what it should be; NULL is no."""
        found = self._type(rows, keys)
        value = self.value(rows, keys, place.kind)
        right: list[ColumnElement[bool]] = [found.in_(SQLITE_TYPES[place.kind])]
        if place.kind == "int":
            # Beyond 64 bits it is read as a float, though its type is an integer's.
            right.append(func.typeof(value) == "integer")
        right += _bounds(value, place)
        right += [self.is_plain(rows, (*keys, key), one) for key, one in place.fields.items()]
        return _or_nothing(and_(*right), place, found == "null", found.is_(None))

    def instant(self, microseconds: ColumnElement[int]) -> ColumnElement[Any]:
        """Return an instant as a column of instants holds it."""
        second = func.strftime(
            "%Y-%m-%d %H:%M:%S", microseconds.op("/")(SECOND), "unixepoch", type_=Text()
        )
        return second.op("||")(func.printf(".%06d", microseconds.op("%")(SECOND)))

    def refusal(self, at: ColumnElement[int], kind: TypeEngine[Any]) -> ColumnElement[Any]:  # noqa: ARG002 - SQLite's types are the values'
        """Return what fails the statement if it is evaluated, and only then."""
        failing: ColumnElement[Any] = func.json(literal("not for SQL: ").op("||")(at))
        return failing

    def _type(self, rows: FromClause, keys: Sequence[str]) -> ColumnElement[Any]:
        found: ColumnElement[Any] = func.json_type(rows.c.payload, _sqlite_path(keys))
        return found


@dataclass(frozen=True, slots=True)
class OnPostgresql:
    """Looks into the text itself for a field or two, and into `jsonb`, parsed once, for more.

    `jsonb` knows no exponents: 1e16, a float, is an integer to it. So an integer from there on is
    not vouched for; below, a canonical payload writes floats with a point, and the cast fails.
    """

    slices: Slices = ALL

    def rows(self, context: str, fields: Mapping[str, Plain]) -> FromClause:
        """Return what was said in a context between the parameters `after` and `until`."""
        read = _range(context, self.slices)
        if not fields:
            return read.add_columns(attestations.c.payload).subquery("said")
        form = JSON() if len(fields) <= TEXT_LOOKS_MAX else JSONB()
        payload = cast(attestations.c.payload, form).label("payload")
        # OFFSET 0: otherwise each look at a field would parse the payload, and look, again.
        parsed = read.add_columns(payload).offset(literal_column("0")).subquery("parsed")
        looked = {key: _inside(parsed.c.payload, key) for key in fields}
        numbers = [key for key, place in fields.items() if place.kind == "int"]
        seen = [at.label(_field(key)) for key, at in looked.items()]
        seen += [_written(looked[key], BigInteger()).label(_number(key)) for key in numbers]
        beside = [parsed.c[name] for name in BESIDE_PAYLOAD]
        return select(*beside, *seen).offset(literal_column("0")).subquery("said")

    def value(self, rows: FromClause, keys: Sequence[str], kind: Kind) -> ColumnElement[Any]:
        """Return what lies at a place of a plain payload; NULL for null, and for nothing."""
        if len(keys) == 1 and (read := rows.c.get(_number(keys[0]))) is not None:
            return read
        at = self._at(rows, keys)
        if kind == "str":
            text = at.op("#>>", return_type=Text())(cast(literal("{}", Text), ARRAY(Text)))
            return text.collate("C")
        return _written(at, BigInteger() if kind == "int" else Boolean())

    def is_absent(self, rows: FromClause, keys: Sequence[str]) -> ColumnElement[bool]:
        """Tell whether nothing lies there, not even null."""
        return self._at(rows, keys).is_(None)

    def is_plain(self, rows: FromClause, keys: Sequence[str], place: Plain) -> ColumnElement[bool]:
        """Tell whether what lies there is plainly what it should be; NULL is no."""
        found = self._at(rows, keys)
        text = cast(found, Text)
        is_parsed = isinstance(found.type, JSONB)
        kind = func.jsonb_typeof(found) if is_parsed else func.json_typeof(found)
        value = self.value(rows, keys, place.kind)
        kinds: dict[Kind, ColumnElement[bool]] = {
            "int": value.between(1 - EXPONENT_MIN, EXPONENT_MIN - 1),
            "float": kind == "number",
            "str": kind == "string",
            "bool": kind == "boolean",
            "object": kind == "object",
        }
        right = [kinds[place.kind], *_bounds(value, place)]
        right += [self.is_plain(rows, (*keys, key), one) for key, one in place.fields.items()]
        return _or_nothing(and_(*right), place, text == "null", found.is_(None))

    def instant(self, microseconds: ColumnElement[int]) -> ColumnElement[Any]:
        """Return an instant as a column of instants holds it."""
        epoch = literal_column("timestamptz '1970-01-01 00:00:00+00'", TIMESTAMP(timezone=True))
        return epoch + microseconds * literal_column("interval '1 microsecond'", INTERVAL())

    def refusal(self, at: ColumnElement[int], kind: TypeEngine[Any]) -> ColumnElement[Any]:
        """Return what fails the statement if it is evaluated, and only then."""
        return cast(literal("not for SQL: ", Text).op("||")(cast(at, Text)), kind)

    def _at(self, rows: FromClause, keys: Sequence[str]) -> ColumnElement[Any]:
        key, *inner = keys
        looked = rows.c.get(_field(key))
        at = _inside(cast(rows.c.payload, JSONB), key) if looked is None else looked
        return reduce(_inside, inner, at)


def _range(context: str, slices: Slices) -> Select[Any]:
    position = attestations.c.position
    said = (
        select(*(attestations.c[name] for name in BESIDE_PAYLOAD))
        .where(position > bindparam("after"), position <= bindparam("until"))
        .where(attestations.c.context == context)
    )
    if slices.is_all:
        return said
    return said.where(attestations.c.slice.between(slices.first, slices.last))


def _bounds(value: ColumnElement[Any], place: Plain) -> list[ColumnElement[bool]]:
    bounds = []
    if place.least is not None:
        bounds.append(value >= place.least)
    if place.most is not None:
        bounds.append(value <= place.most)
    return bounds


def _or_nothing(
    right: ColumnElement[bool],
    place: Plain,
    is_null: ColumnElement[bool],
    is_absent: ColumnElement[bool],
) -> ColumnElement[bool]:
    return or_(
        right,
        is_null if place.is_nullable else false(),
        false() if place.is_required else is_absent,
    )


def _inside(at: ColumnElement[Any], key: str) -> ColumnElement[Any]:
    return at.op("->", return_type=at.type)(literal(key, Text))


def _written(at: ColumnElement[Any], kind: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return a value by how it is written; the statement fails where that is anything else."""
    return cast(func.nullif(cast(at, Text), "null"), kind)


def _field(key: str) -> str:
    return f"payload.{key}"


def _number(key: str) -> str:
    return f"number.{key}"


def _sqlite_path(keys: Sequence[str]) -> str:
    return "$" + "".join(f'."{key}"' for key in keys)
