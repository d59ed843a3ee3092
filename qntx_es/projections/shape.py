"""What a table's columns demand of whoever writes them, looked up once and asked for each row."""

import json
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, TypeAlias

from sqlalchemy import Column, Table, UniqueConstraint, types

from qntx_es.columns import Admit, Document, admit, default_of, integer_bounds
from qntx_es.errors import InvalidRow, LossyValue, did_you_mean

Key: TypeAlias = tuple[Any, ...]
Values: TypeAlias = dict[str, Any]
Names: TypeAlias = tuple[str, ...]


class Shape:
    """One table of a read model, as the domain declared it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.key = tuple(column.name for column in table.primary_key.columns)
        self.admits: dict[str, Admit] = {column.name: admit(column) for column in table.columns}
        self.defaults = {column.name: self._default(column) for column in table.columns}
        self.show: Mapping[str, Callable[[Any], Any]] = {
            column.name: json.loads for column in table.columns if isinstance(column.type, Document)
        }
        self.required = frozenset(
            column.name
            for column in table.columns
            if not column.nullable and self.defaults[column.name] is None
        ) - set(self.key)
        self.floats = _of_type(table, types.Float)
        self.numbers = (_of_type(table, types.Integer) | self.floats).difference(self.key)
        is_text = [isinstance(table.c[name].type, types.String) for name in self.key]
        # Equal keys of other kinds (1, 1.0 and True) must be refused each time, not once.
        self.is_text_key = all(is_text)
        self.is_by_entity = is_text == [True]
        # A value handed on between rows is right in one order only, the handlers' own.
        self.is_ordered = any(
            isinstance(one, UniqueConstraint) for one in table.constraints
        ) or any(index.unique for index in table.indexes)
        self.bounds = {
            column.name: integer_bounds(column.type)
            for column in table.columns
            if isinstance(column.type, types.Integer)
        }
        self._key_admits = tuple(self.admits[name] for name in self.key)

    def key_of(self, key: Key) -> Key:
        """Return a key as it will come back. Raises `InvalidRow` and `LossyValue`."""
        if len(key) == len(self.key) == 1:
            value = self._key_admits[0](key[0])
            return key if value is key[0] else (value,)
        if len(key) != len(self.key):
            raise InvalidRow(f"{self.table.name} has the key ({', '.join(self.key)}), not {key!r}")
        return tuple([check(value) for check, value in zip(self._key_admits, key, strict=True)])

    def refuse_put(self, names: Names) -> None:
        """Raise `InvalidRow` where values of these names cannot enter a row."""
        for name in names:
            self._refuse_unknown(name)
        missing = [name for name in self.key if name not in names]
        if missing:
            raise InvalidRow(f"{self.table.name}: put names its key, {', '.join(missing)} too")

    def refuse_add(self, names: Names) -> None:
        """Raise `InvalidRow` or `LossyValue` where amounts of these names cannot be added."""
        for name in names:
            self._refuse_unknown(name)
            if name not in self.numbers:
                raise LossyValue(f"{self.table.name}.{name}: only a number can be added to")

    def is_whole(self, names: Names) -> bool:
        """Tell whether values of these names make a row, whatever stood there before."""
        return self.required.issubset(names) and not self.is_ordered

    def new_row(self, key: Key, values: Values, adding: Names = ()) -> Values:
        """Return a full row: the key, the values, defaults for the rest. Raises `InvalidRow`."""
        missing = self.required.difference(values, adding)
        if missing:
            raise InvalidRow(
                f"{self.table.name} has no row {key!r}, and a new one needs "
                f"{', '.join(sorted(missing))}"
            )
        return self.defaults | dict(zip(self.key, key, strict=True)) | values

    def summed(self, name: str, before: float | None, amount: float) -> Any:  # noqa: ANN401 - a number
        """Return a sum as it will come back; NULL counts as the default."""
        start = (self.defaults[name] or 0) if before is None else before
        return self.admits[name](start + self.admits[name](amount))

    def _default(self, column: Column[Any]) -> Any:  # noqa: ANN401 - the column decides
        default = default_of(column)
        return None if default is None else self.admits[column.name](default)

    def _refuse_unknown(self, name: str) -> None:
        if name not in self.admits:
            raise InvalidRow(
                f"{self.table.name} has no column `{name}`{did_you_mean(name, self.admits)}"
            )


def _of_type(table: Table, kind: type[types.TypeEngine[Any]]) -> frozenset[str]:
    return frozenset(column.name for column in table.columns if isinstance(column.type, kind))


def tuple_getter(names: Names) -> Callable[[Values], tuple[Any, ...]]:
    """Return the function that takes these columns out of a row, as a tuple of any length."""
    if len(names) == 1:
        name = names[0]
        return lambda values: (values[name],)
    return itemgetter(*names)
