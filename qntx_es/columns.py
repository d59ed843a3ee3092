"""Which columns a read model may have, and what becomes of a value in them.

A read model means the same on both databases and for every batch size only if a value enters it as
it would come back. SQLite takes anything, PostgreSQL rounds and cuts, so the check is ours: a value
is *admitted* as it will be read, or refused with `LossyValue`.
"""

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy import Column, Dialect, Table, types

from qntx_es.attestation import canonical_json
from qntx_es.errors import InvalidAttestation, LossyValue

Admit: TypeAlias = Callable[[Any], Any]

NAME = re.compile(r"[a-z][a-z0-9_]*")
GENERATION = re.compile(r"__g\d+$")
# PostgreSQL cuts names at 63 bytes, and a rebuild appends its generation: __g12345.
NAME_BYTES_MAX = 63 - len("__g12345")
INTEGER_BITS: dict[type[types.TypeEngine[Any]], int] = {
    types.SmallInteger: 16,
    types.BigInteger: 64,
    types.Integer: 32,
}
DOUBLE_BITS = 25
NO_LENGTH = 1 << 30


class Instant(types.TypeDecorator[datetime]):
    """An instant in UTC, aware on both databases; SQLite itself would forget the zone."""

    impl = types.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Hand the database what it can keep."""
        if value is None:
            return None
        in_utc = value.astimezone(UTC)
        return in_utc.replace(tzinfo=None) if dialect.name == "sqlite" else in_utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return what was meant."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class Written(str):
    """A JSON value that is canonical text already, and so cannot be changed in place."""

    __slots__ = ()


class Document(types.TypeDecorator[Any]):
    """A JSON value as canonical text: JSONB would rewrite its numbers."""

    impl = types.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ANN401, ARG002 - SQLAlchemy's
        """Write the value, unless it is written already."""
        if value is None or isinstance(value, Written):
            return value
        return canonical_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ANN401, ARG002 - SQLAlchemy's
        """Read the value; each reading is a copy."""
        return None if value is None else json.loads(value)


def prepared(column: Column[Any]) -> Column[Any]:
    """Return the column with the type that keeps its values on both databases."""
    if isinstance(column.type, types.JSON):
        column.type = Document()
    elif isinstance(column.type, types.DateTime) and column.type.timezone:
        column.type = Instant()
    if column.primary_key:
        column.autoincrement = False
    return column


def problems(table: Table) -> list[str]:
    """Say everything that keeps a table from being a read model."""
    found = [f"table `{table.name}`: {problem}" for problem in _table_problems(table)]
    for column in table.columns:
        found += [f"column `{table.name}.{column.name}`: {one}" for one in _column_problems(column)]
    return found


def _table_problems(table: Table) -> list[str]:
    found = []
    if not is_name(table.name) or GENERATION.search(table.name):
        found.append(
            f"a name is [a-z][a-z0-9_]*, at most {NAME_BYTES_MAX} bytes, and no generation's (__g7)"
        )
    named = [one.name for one in table.indexes] + [one.name for one in table.constraints]
    found += [
        f"its index or constraint `{name}`: a name is [a-z][a-z0-9_]*, "
        f"at most {NAME_BYTES_MAX} bytes"
        for name in named
        if name is not None and not is_name(str(name))
    ]
    if not list(table.primary_key.columns):
        found.append("it has no primary key, so its rows cannot be told apart")
    if table.foreign_keys:
        found.append("a foreign key cannot follow a rebuild; join by the key instead")
    return found


def _column_problems(column: Column[Any]) -> list[str]:
    found = []
    if column.key != column.name or not is_name(column.name):
        found.append(f"a name is [a-z][a-z0-9_]*, at most {NAME_BYTES_MAX} bytes")
    try:
        admitted = admit(column)
        if (default := default_of(column)) is not None:
            admitted(default)
    except LossyValue as error:
        found.append(str(error))
    if column.server_default is not None or column.onupdate is not None or column.computed:
        found.append("a value made by the database would differ in a rebuild; use default=")
    if column.identity is not None:
        found.append("a key made by the database would differ in a rebuild; use the entity")
    if column.default is not None and not column.default.is_scalar:
        found.append("a default that is computed may differ in a rebuild; use a constant")
    return found


def is_name(name: str) -> bool:
    """Tell whether both databases can keep this name, with a generation behind it."""
    return NAME.fullmatch(name) is not None and len(name) <= NAME_BYTES_MAX


def default_of(column: Column[Any]) -> Any:  # noqa: ANN401 - the column decides
    """Return the constant a column starts from, or None."""
    default = column.default
    return default.arg if isinstance(default, sa.ColumnDefault) and default.is_scalar else None


def admit(column: Column[Any]) -> Admit:
    """Return the function that lets a value into this column as it will come back.

    Raises `LossyValue` where no value of the column's type would.
    """
    kind = column.type
    if type(kind) not in PLAIN_TYPES or kind._variant_mapping or getattr(kind, "collation", None):  # noqa: SLF001 - no other way to see a variant
        raise LossyValue(f"{kind!r} is not the same on both databases; use a plain type")
    for family, admit_of in _CHECKS:
        if isinstance(column.type, family):
            return admit_of(column)
    raise LossyValue(f"the type {column.type!r} does not keep its values on both databases")


def _checked(column: Column[Any], check: Admit) -> Admit:
    """Return what is done with a value that is not plainly right."""
    where = f"{column.table.name}.{column.name}"
    is_nullable = bool(column.nullable) and not column.primary_key

    def checked(value: Any) -> Any:  # noqa: ANN401 - the column decides
        if value is None and is_nullable:
            return None
        if value is None:
            raise LossyValue(f"{where} is never NULL")
        try:
            return check(value)
        except (LossyValue, InvalidAttestation) as error:
            raise LossyValue(f"{where} = {value!r:.80}: {error}") from error

    return checked


def _integers(column: Column[Any]) -> Admit:
    least, most = integer_bounds(column.type)

    def explain(value: Any) -> int:  # noqa: ANN401 - what a handler gave
        if type(value) is not int:
            raise LossyValue("it takes an int, and nothing that only looks like one")
        raise LossyValue(f"it holds {least} to {most}; use a BigInteger, or a String")

    checked = _checked(column, explain)

    def admit_integer(value: Any) -> Any:  # noqa: ANN401 - what a handler gave
        # Once a column and attestation: one call, and no other for what is plainly right.
        return value if type(value) is int and least <= value <= most else checked(value)

    return admit_integer


def _texts(column: Column[Any]) -> Admit:
    kind: Any = column.type
    length: int = NO_LENGTH if kind.length is None else kind.length

    def check(value: Any) -> str:  # noqa: ANN401 - what a handler gave
        if not isinstance(value, str):
            raise LossyValue("it takes a str")
        plain = str.__str__(value)  # what is only a kind of text comes back as text
        if len(plain) > length:
            raise LossyValue(f"it holds {length} characters")
        if "\x00" in plain:
            raise LossyValue("NUL would cut it")
        try:
            plain.encode()
        except UnicodeEncodeError as error:
            raise LossyValue("a lone surrogate cannot be stored") from error
        return plain

    checked = _checked(column, check)

    def admit_text(value: Any) -> Any:  # noqa: ANN401 - what a handler gave
        is_plain = type(value) is str and value.isascii() and len(value) <= length
        return value if is_plain and "\x00" not in value else checked(value)

    return admit_text


def _floats(column: Column[Any]) -> Admit:
    kind: Any = column.type
    if isinstance(kind, types.REAL) or (kind.precision or DOUBLE_BITS) < DOUBLE_BITS:
        raise LossyValue("single precision rounds; use Float or Double")
    if kind.asdecimal:
        raise LossyValue("a float read as a decimal is another number; leave asdecimal out")

    def check(value: Any) -> float:  # noqa: ANN401 - what a handler gave
        if type(value) is int and abs(value) <= 1 << 53:
            return float(value)
        if type(value) is not float:
            raise LossyValue("it takes a float")
        if not math.isfinite(value):
            raise LossyValue("it takes finite numbers")
        return value + 0.0  # SQLite keeps no negative zero

    return _checked(column, check)


def _booleans(value: Any) -> bool:  # noqa: ANN401 - what a handler gave
    if type(value) is not bool:
        raise LossyValue("it takes True or False")
    return value


def _instants(value: Any) -> datetime:  # noqa: ANN401 - what a handler gave
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise LossyValue("it takes a datetime with a zone")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise LossyValue("in UTC it lies outside the years 1 to 9999") from error


def _dates(value: Any) -> date:  # noqa: ANN401 - what a handler gave
    if type(value) is not date:
        raise LossyValue("it takes a date")
    return value


def _bytes(value: Any) -> bytes:  # noqa: ANN401 - what a handler gave
    if type(value) is not bytes:
        raise LossyValue("it takes bytes")
    return value


def _documents(value: Any) -> Written:  # noqa: ANN401 - what a handler gave
    return Written(canonical_json(value))


def _refused(reason: str) -> Callable[[Column[Any]], Admit]:
    def refuse(_: object) -> Admit:
        raise LossyValue(reason)

    return refuse


def _always(check: Admit) -> Callable[[Column[Any]], Admit]:
    return lambda column: _checked(column, check)


# In this order: an Enum is a String, a Float is a Numeric, and a Document is neither.
_CHECKS: tuple[tuple[type[types.TypeEngine[Any]], Callable[[Column[Any]], Admit]], ...] = (
    (Document, _always(_documents)),
    (Instant, _always(_instants)),
    (types.Integer, _integers),
    (types.Enum, _refused("an enumeration is a type of the database's own; use a String")),
    (types.String, _texts),
    (types.Boolean, _always(_booleans)),
    (types.Float, _floats),
    (types.Numeric, _refused("SQLite keeps no decimals; use an integer of the smallest unit")),
    (types.DateTime, _refused("it has no zone, so it names no instant; use timezone=True")),
    (types.Date, _always(_dates)),
    (types.LargeBinary, _always(_bytes)),
)


PLAIN_TYPES = frozenset(
    (
        Document,
        Instant,
        types.BIGINT,
        types.BOOLEAN,
        types.BigInteger,
        types.Boolean,
        types.DATE,
        types.Date,
        types.DateTime,
        types.Double,
        types.Enum,
        types.FLOAT,
        types.Float,
        types.INTEGER,
        types.Integer,
        types.LargeBinary,
        types.Numeric,
        types.REAL,
        types.SMALLINT,
        types.SmallInteger,
        types.String,
        types.TEXT,
        types.Text,
        types.Unicode,
        types.UnicodeText,
        types.VARCHAR,
    )
)


def bits_of(kind: types.TypeEngine[Any]) -> int:
    """Return how many bits an integer type holds, or 0 for another type."""
    return next((bits for family, bits in INTEGER_BITS.items() if isinstance(kind, family)), 0)


def integer_bounds(kind: types.TypeEngine[Any]) -> tuple[int, int]:
    """Return the least and the largest value of an integer type."""
    half = 1 << bits_of(kind) - 1
    return -half, half - 1


def physical(table: Table, name: str, *, on_sqlite: bool) -> Table:
    """Return the table under another name, its indexes renamed with it, as the host creates it."""
    suffix = name.removeprefix(table.name)
    copy = table.to_metadata(sa.MetaData(), name=name)
    for index in copy.indexes:
        index.name = sa.sql.quoted_name(f"{index.name}{suffix}", quote=None)
    for constraint in copy.constraints:
        if isinstance(constraint, sa.UniqueConstraint) and constraint.name and suffix:
            constraint.name = f"{constraint.name}{suffix}"
    if on_sqlite:
        _bound_integers(copy)
    else:
        _order_by_code_point(copy)
    return copy


def _order_by_code_point(table: Table) -> None:
    # As SQLite does, whatever the locale of the cluster; and an index so ordered is a faster one.
    for column in table.columns:
        if isinstance(column.type, types.String):
            column.type = type(column.type)(length=column.type.length, collation="C")
        elif isinstance(column.type, Document):
            column.type = Document(collation="C")


def _bound_integers(table: Table) -> None:
    # SQLite turns a sum past 64 bits into a float, and knows no smaller integers.
    for column in table.columns:
        bits = bits_of(column.type)
        if bits:
            least, most = integer_bounds(column.type)
            is_whole = sa.func.typeof(column).in_(("integer", "null"))
            check = sa.and_(is_whole, column.between(least, most)) if bits < 64 else is_whole  # noqa: PLR2004 - bits
            table.append_constraint(sa.CheckConstraint(check))
