"""What one table's rows are, as far as the batch knows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import Table

from qntx_es.columns import Admit
from qntx_es.projections.blind import Blind, Mark, mark_of
from qntx_es.projections.flush import Said, Writer
from qntx_es.projections.shape import Key, Names, Shape, Values, tuple_getter

UNREAD: Any = object()


@dataclass(frozen=True, slots=True)
class PutPlan:
    """How values of these column names enter a row; `is_whole` if they make one by themselves.

    `beside_key` says of each column how it is admitted, and where its values and amounts are kept
    of rows that nobody read. `mark_of` is for keys of which equal ones are the same: texts.
    """

    checks: tuple[tuple[str, Admit], ...]
    beside_key: tuple[tuple[str, Admit, dict[Mark, Any], dict[Mark, Any]], ...]
    key_of: Callable[[Values], Key]
    mark_of: Callable[[Values], Mark] | None
    is_whole: bool


@dataclass(frozen=True, slots=True)
class AddPlan:
    """How amounts for these columns enter a row; `is_blind` if one that nobody read.

    `is_plain` if these are integers added to a row found by texts; `columns` says of each the most
    that it holds, and where its values and amounts are kept of rows that nobody read.
    """

    is_blind: bool
    is_plain: bool
    columns: tuple[tuple[str, int, dict[Mark, Any], dict[Mark, Any]], ...]


class TableMap:
    """One table: rows that were read are `known`, and what was said of others is `blind`."""

    def __init__(self, shape: Shape, physical: Table) -> None:
        self.shape = shape
        self.writer = Writer(physical, shape)
        self.known: dict[Key, Values | None] = {}
        self.blind = Blind(shape)
        self.dirty: dict[Key, None] = {}
        self.gone: dict[Key, None] = {}
        self.puts: dict[Names, PutPlan] = {}
        self.adds: dict[Names, AddPlan] = {}
        self.is_read_ahead = False
        # Keys that were met before are right, whatever has become of their rows.
        self._admitted: set[Mark] = set()

    def cool(self, size: int) -> None:
        """Keep memory flat: of keys that were met before only so many are remembered."""
        if len(self._admitted) > size:
            self._admitted.clear()

    def forget(self) -> None:
        """Know nothing: read everything anew."""
        for said in (self.known, self.blind, self.dirty, self.gone):
            said.clear()

    def touch(self, key: Key) -> None:
        """Remember that a row changed, and after which others."""
        if self.shape.is_ordered:
            self.dirty.pop(key, None)
        self.dirty[key] = None

    def is_flushed(self) -> bool:
        """Tell whether the database knows all that this map knows."""
        return not (self.blind.marks or self.dirty or self.gone)

    def said(self) -> list[Said]:
        """Return what was said of rows, and is not written, beside those that are gone."""
        keys = self.dirty if self.shape.is_ordered else sorted(self.dirty)
        full = [row for key in keys if (row := self.known[key]) is not None]
        whole = [self.writer.whole(full)] if full else []
        return whole + list(self.blind.columns())

    def flushed(self) -> None:
        """Take it that the database knows all that was said."""
        self.blind.clear()
        self.dirty.clear()
        self.gone.clear()

    def key_of(self, key: Key) -> Key:
        """Return a key as it will come back; one that was met before is known to be right."""
        return key if self.shape.is_text_key and key in self.known else self.shape.key_of(key)

    def put_plan(self, names: Names) -> PutPlan:
        """Return how values of these names enter a row. Raises `InvalidRow`."""
        shape, blind = self.shape, self.blind
        shape.refuse_put(names)
        plan = self.puts[names] = PutPlan(
            checks=tuple([(name, shape.admits[name]) for name in names]),
            beside_key=tuple(
                [
                    (name, shape.admits[name], blind.values[name], blind.amounts[name])
                    for name in names
                    if name not in shape.key
                ]
            ),
            key_of=tuple_getter(shape.key),
            mark_of=itemgetter(*shape.key) if shape.is_text_key else None,
            is_whole=shape.is_whole(names),
        )
        return plan

    def add_plan(self, names: Names) -> AddPlan:
        """Return how amounts for these names enter a row. Raises `InvalidRow`, `LossyValue`."""
        shape, blind = self.shape, self.blind
        shape.refuse_add(names)
        # (a + b) + c is not a + (b + c): a float summed blind would show the batch.
        is_blind = shape.is_whole(names) and shape.floats.isdisjoint(names)
        plan = self.adds[names] = AddPlan(
            is_blind=is_blind,
            is_plain=is_blind and shape.is_text_key,
            columns=tuple(
                [
                    (name, shape.bounds[name][1], blind.values[name], blind.amounts[name])
                    for name in names
                    if name in shape.bounds
                ]
            ),
        )
        return plan

    def is_added(self, key: Key, amounts: dict[str, Any], plan: AddPlan) -> bool:
        """Add where it is plainly right: integers, within the bounds of their columns.

        The road most taken, made short; whatever is in doubt is left undone, for the long one.
        """
        marks = self.blind.marks
        mark = key[0] if len(key) == 1 else key
        is_met = mark in marks
        if not is_met:
            if self.known and key in self.known:
                return False
            if type(mark) is not str or mark not in self._admitted:
                mark = mark_of(self.shape.key_of(key))
                self._admitted.add(mark)
        sums = []
        for name, most, values, said in plan.columns:
            amount = amounts[name]
            if type(amount) is not int or amount < 0 or (values and mark in values):
                return False
            # What grows leaves its bounds at one end only.
            after = said.get(mark, 0) + amount
            if after > most:
                return False
            sums.append((said, after))
        if not is_met:
            marks.add(mark)
        for said, after in sums:
            said[mark] = after
        return True

    def take(self, keys: Iterable[Key], found: Iterable[Values]) -> None:
        """Learn what the database holds for keys, and add to it what was said of them blind."""
        rows = {tuple([row[name] for name in self.shape.key]): row for row in found}
        for key in keys:
            row = rows.get(key)
            said = self.blind.take(key)
            self.known[key] = row if said is None else self._merged(key, row, *said)

    def _merged(self, key: Key, row: Values | None, values: Values, amounts: Values) -> Values:
        shape = self.shape
        merged = shape.new_row(key, values, tuple(amounts)) if row is None else row | values
        for name, amount in amounts.items():
            merged[name] = shape.summed(name, merged[name], amount)
        self.dirty[key] = None
        return merged
