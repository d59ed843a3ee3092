"""What a table's columns demand of whoever writes them, looked up once and asked for each row."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

from sqlalchemy import Column, Table, UniqueConstraint, types

from qntx_es.columns import Admit, Document, admit, default_of, integer_bounds
from qntx_es.errors import InvalidRow, LossyValue, did_you_mean

Key: TypeAlias = tuple[Any, ...]
Values: TypeAlias = dict[str, Any]
Names: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PutPlan:
    """How values of these column names enter a row; `is_whole` if they make one by themselves."""

    checks: tuple[tuple[str, Admit], ...]
    beside_key: tuple[tuple[str, Admit], ...]
    key_of: Callable[[Values], Key]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class AddPlan:
    """How amounts for these columns enter a row that nobody read; `is_blind` if they may at all.

    `bounds` are those of the columns' integers, and `pattern` is that of a row of which nothing
    else was said.
    """

    is_blind: bool
    bounds: tuple[tuple[str, int, int], ...]
    pattern: "Pattern"


class Pattern:
    """What was said of a row that nobody read: columns set, and columns added to.

    There is one pattern for each combination, so rows that were spoken of alike are written alike.
    """

    def __init__(self, known: dict[object, "Pattern"], sets: Names = (), adds: Names = ()) -> None:
        self.sets = frozenset(sets)
        self.adds = frozenset(adds) - self.sets
        self._known = known
        self._after_put: dict[Names, Pattern] = {}
        self._after_add: dict[Names, Pattern] = {}

    def after_put(self, names: Names) -> "Pattern":
        """Return the pattern once these columns are set, too."""
        following = self._after_put.get(names)
        if following is None:
            adds = self.adds.difference(names)
            following = self._after_put[names] = self._other(self.sets.union(names), adds)
        return following

    def after_add(self, names: Names) -> "Pattern":
        """Return the pattern once these columns are added to, too."""
        following = self._after_add.get(names)
        if following is None:
            adds = self.adds.union(names) - self.sets
            following = self._after_add[names] = self._other(self.sets, adds)
        return following

    def _other(self, sets: frozenset[str], adds: frozenset[str]) -> "Pattern":
        other = Pattern(self._known, tuple(sets), tuple(adds))
        return self._known.setdefault((sets, adds), other)


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
        self.blank = Pattern({})
        self.puts: dict[Names, PutPlan] = {}
        self.adds: dict[Names, AddPlan] = {}
        self._key_admits = tuple(self.admits[name] for name in self.key)

    def key_of(self, key: Key) -> Key:
        """Return a key as it will come back. Raises `InvalidRow` and `LossyValue`."""
        if len(key) == len(self.key) == 1:
            value = self._key_admits[0](key[0])
            return key if value is key[0] else (value,)
        if len(key) != len(self.key):
            raise InvalidRow(f"{self.table.name} has the key ({', '.join(self.key)}), not {key!r}")
        return tuple([check(value) for check, value in zip(self._key_admits, key, strict=True)])

    def put_plan(self, names: Names) -> PutPlan:
        """Return how values of these names enter a row. Raises `InvalidRow`."""
        for name in names:
            self._refuse_unknown(name)
        missing = [name for name in self.key if name not in names]
        if missing:
            raise InvalidRow(f"{self.table.name}: put names its key, {', '.join(missing)} too")
        checks = tuple((name, self.admits[name]) for name in names)
        beside_key = tuple((name, check) for name, check in checks if name not in self.key)
        is_whole = self.required.issubset(names) and not self.is_ordered
        plan = PutPlan(checks, beside_key, tuple_getter(self.key), is_whole)
        self.puts[names] = plan
        return plan

    def add_plan(self, names: Names) -> AddPlan:
        """Return how amounts for these names enter a row. Raises `InvalidRow`, `LossyValue`."""
        for name in names:
            self._refuse_unknown(name)
            if name not in self.numbers:
                raise LossyValue(f"{self.table.name}.{name}: only a number can be added to")
        # (a + b) + c is not a + (b + c): a float summed blind would show the batch.
        are_whole = self.floats.isdisjoint(names) and not self.is_ordered
        plan = AddPlan(
            is_blind=are_whole and self.required.issubset(names),
            bounds=tuple((name, *self.bounds[name]) for name in names if name in self.bounds),
            pattern=self.blank.after_add(names),
        )
        self.adds[names] = plan
        return plan

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
