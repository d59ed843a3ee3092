"""Ranges of slices: which of a domain's entities one worker projects.

An entity has one of 1024 slices, for ever. Where entities are independent of each other, each range
of slices may be projected by itself, at its own pace: it has a cursor and a lease of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qntx_es.attestation import SLICES, slice_of


@dataclass(frozen=True, slots=True, order=True)
class Slices:
    """The slices from `first` to `last`, both included."""

    first: int = 0
    last: int = SLICES - 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    @property
    def is_all(self) -> bool:
        """Tell whether no entity lies outside."""
        return self == ALL

    def holds(self, entity: str) -> bool:
        """Tell whether an entity is one of these."""
        return self.is_all or self.first <= slice_of(entity) <= self.last

    def within(self, other: "Slices") -> bool:
        """Tell whether all of these are among others."""
        return other.first <= self.first and self.last <= other.last

    def meets(self, other: "Slices") -> bool:
        """Tell whether any of these is among others."""
        return self.first <= other.last and other.first <= self.last

    def cut(self, into: int) -> list["Slices"]:
        """Return so many ranges, of nearly the same size, that are these together."""
        size = self.last - self.first + 1
        edges = [self.first + size * number // into for number in range(into + 1)]
        return [Slices(start, end - 1) for start, end in pairwise(edges)]


ALL = Slices()


def refined(one: Iterable[Slices], other: Iterable[Slices]) -> Sequence[Slices]:
    """Return the widest ranges that lie, each, within one of either cutting of all slices."""
    starts = sorted({slices.first for slices in (*one, *other)})
    return [Slices(start, end - 1) for start, end in pairwise([*starts, SLICES])]
