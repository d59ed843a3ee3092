"""What was said of rows that nobody read: by column, what it was set to, or what is added to it.

By column and not by row, because that is how it is written, and because an object for each row is
one more that a garbage collector looks at, over and over.

A key stands here as its *mark*: a key of one column is the value itself.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

from qntx_es.projections.shape import Key, Names, Shape, Values

Mark: TypeAlias = Any


class Pattern(NamedTuple):
    """How rows were spoken of: the columns that are set, and those that are added to."""

    sets: Names
    adds: Names


class Blind:
    """The rows of one table that were changed without having been read.

    A column is set or added to, never both: what was set and then added to is set to the sum.
    """

    def __init__(self, shape: Shape) -> None:
        self.marks: set[Mark] = set()
        beside = [name for name in shape.admits if name not in shape.key]
        self.values: dict[str, dict[Mark, Any]] = {name: {} for name in beside}
        self.amounts: dict[str, dict[Mark, Any]] = {name: {} for name in beside}
        self._shape = shape

    def put(self, key: Key, row: Values) -> None:
        """Set the columns of a row that stand beside its key, whatever was said of them before."""
        mark = mark_of(key)
        self.marks.add(mark)
        for name in row.keys() & self.values:
            self.values[name][mark] = row[name]
            self.amounts[name].pop(mark, None)

    def add(self, key: Key, amounts: dict[str, float]) -> None:
        """Add to columns. Raises `LossyValue` where a sum leaves its column's bounds."""
        mark, summed = mark_of(key), self._shape.summed
        sums = []
        for name, amount in amounts.items():
            is_set = mark in self.values[name]
            said = self.values[name] if is_set else self.amounts[name]
            sums.append((said, summed(name, said[mark] if is_set else said.get(mark, 0), amount)))
        self.marks.add(mark)
        for said, value in sums:
            said[mark] = value

    def take(self, key: Key) -> tuple[Values, Values] | None:
        """Return what was said of a row, values and amounts, and forget it; None for nothing."""
        mark = mark_of(key)
        if mark not in self.marks:
            return None
        self.marks.remove(mark)
        return _taken(self.values, mark), _taken(self.amounts, mark)

    def clear(self) -> None:
        """Forget all that was said."""
        self.marks.clear()
        for said in (*self.values.values(), *self.amounts.values()):
            said.clear()

    def columns(self) -> Iterator[tuple[Pattern, list[list[Any]]]]:
        """Yield what was said by column, the key's first, of rows that were spoken of alike.

        The rows are in the order of their keys.
        """
        if not self.marks:
            return
        for pattern, marks in self._alike():
            marks.sort()
            is_single = len(self._shape.key) == 1
            keys = [marks] if is_single else list(map(list, zip(*marks, strict=True)))
            said = [self.values[name] for name in pattern.sets]
            said += [self.amounts[name] for name in pattern.adds]
            yield pattern, [*keys, *(list(map(one.__getitem__, marks)) for one in said)]

    def _alike(self) -> Iterator[tuple[Pattern, list[Mark]]]:
        """Yield the rows that were spoken of alike, by how; nearly always that is all of them."""
        said = [*self.values.values(), *self.amounts.values()]
        partial = [one for one in said if 0 < len(one) < len(self.marks)]
        if not partial:
            yield self._pattern(next(iter(self.marks))), list(self.marks)
            return
        spoken = dict.fromkeys(self.marks, 0)
        for number, one in enumerate(partial):
            for mark in one:
                spoken[mark] |= 1 << number
        alike: dict[int, list[Mark]] = {}
        for mark, of in spoken.items():
            alike.setdefault(of, []).append(mark)
        for marks in alike.values():
            yield self._pattern(marks[0]), marks

    def _pattern(self, mark: Mark) -> Pattern:
        return Pattern(
            tuple([name for name, said in self.values.items() if mark in said]),
            tuple([name for name, said in self.amounts.items() if mark in said]),
        )


def mark_of(key: Key) -> Mark:
    """Return what stands for a key."""
    return key[0] if len(key) == 1 else key


def _taken(said: dict[str, dict[Mark, Any]], mark: Mark) -> Values:
    return {name: by_mark.pop(mark) for name, by_mark in said.items() if mark in by_mark}
