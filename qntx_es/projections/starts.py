"""Since when each derive handler speaks: of what it meets first, and of all that comes after.

A handler that is added to a domain must not answer a past that nobody asked it about. So the first
source that a projector meets with a handler the log does not know yet is where that one starts, and
`qntx.derive_started` says so, in the batch that meets it, be the source projected or left waiting.
It is about the domain, and names the handler: whoever keeps `name=` keeps the start.

A rebuild reads the starts as it reads the ledger, and holds a handler to what it should have said;
an imported log brings its own. Looking back says an earlier start, and the earliest holds.

Of a domain that is cut, each range meets its own first source: a start is one of those slices.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from sqlalchemy import Connection, select

from qntx_es.attestation import Attestation, Payload, RecordedRow, derived_id
from qntx_es.domain import DeriveHandler, Domain
from qntx_es.projections.cursor import Cursor
from qntx_es.projections.ledger import SYSTEM, Stretch
from qntx_es.projections.slices import ALL, Slices
from qntx_es.tables import attestations


class DeriveStarted(Payload, context="qntx.derive_started"):
    """A derive handler of a domain, the entity, speaks of what stands at `position` and after.

    Of entities in these slices, both included: they are a range of those the domain was cut into.
    """

    handler: str
    position: int
    first_slice: int = ALL.first
    last_slice: int = ALL.last


@dataclass(frozen=True, slots=True)
class Since:
    """Behind which position a handler speaks, by slices; where they overlap the earliest holds."""

    parts: tuple[tuple[Slices, int], ...]

    @classmethod
    def of(cls, position: int) -> "Since":
        """Return that it speaks of everything behind a position."""
        return cls(((ALL, position),))

    @property
    def least(self) -> int:
        """Behind which position it speaks of anything at all."""
        return min(position for _, position in self.parts)

    def is_before(self, row: RecordedRow) -> bool:
        """Tell whether it speaks of an attestation."""
        return any(row[0] > position and slices.holds(row[4]) for slices, position in self.parts)

    def covers(self, slices: Slices) -> bool:
        """Tell whether it speaks, at some time, of all of these."""
        edge = slices.first
        for part, _ in sorted(self.parts):
            if part.first <= edge <= part.last:
                edge = part.last + 1
        return edge > slices.last

    def within(self, slices: Slices) -> int:
        """Return behind which position it speaks of anything in these slices."""
        return min(at for one, at in self.parts if one.meets(slices))


@dataclass(frozen=True, slots=True)
class Starts:
    """Behind which position each derive handler speaks of these slices; who is unknown never has.

    `known` is what the log says, `here` what this database's projector makes of it: up to
    `derives_from` the log was there before it, and whoever lived then has spoken of that.
    """

    domain: Domain
    derives_from: int = 0
    known: Mapping[str, int] = field(default_factory=dict)
    here: Mapping[str, int] = field(default_factory=dict)
    slices: Slices = ALL

    def to_say(self, cursor: Cursor, stretch: Stretch) -> dict[str, int]:
        """Behind which position each handler speaks in the batch from `cursor` on.

        Who is worked off has waited, and nobody has spoken of what did: its place is the retry's.
        """
        now = max(self.derives_from, cursor.position)
        unknown = {one.name: now for one in self._unknown}
        if stretch.change is None:
            return {**self.here, **unknown, **self._from_beginning}
        before = self.known if stretch.ceiling > self.derives_from else {}
        return {**before, **unknown, **self._from_beginning}

    def met(self, rows: Iterable[RecordedRow], until: int) -> list[Attestation]:
        """Return what is to be said of handlers that meet their first source up to `until`."""
        unknown = self._unknown
        met: list[Attestation] = []
        for row in rows if unknown else ():
            if not self.derives_from < row[0] <= until:
                continue
            meeting = [one for one in unknown if one.is_for(row[2], row[4])]
            met += [self._said_at(row, one) for one in meeting]
            unknown = [one for one in unknown if one not in meeting]
        return met

    def knowing(self, met: Iterable[Attestation]) -> Self:
        """Return the same with what was said of handlers that have met a source."""
        said = [DeriveStarted.model_validate_json(one.text) for one in met]
        new = {one.handler: one.position - 1 for one in said}
        return replace(self, known={**self.known, **new}, here={**self.here, **new})

    @property
    def _from_beginning(self) -> dict[str, int]:
        return {one.name: 0 for one in self.domain.derives if one.is_from_beginning}

    @property
    def _unknown(self) -> list[DeriveHandler]:
        return [
            one
            for one in self.domain.derives
            if not one.is_from_beginning and one.name not in self.known
        ]

    def _said_at(self, row: RecordedRow, handler: DeriveHandler) -> Attestation:
        payload = DeriveStarted(
            handler=handler.name,
            position=row[0],
            first_slice=self.slices.first,
            last_slice=self.slices.last,
        )
        return Attestation(
            context=payload.context, entity=self.domain.name, actor=SYSTEM, payload=payload
        ).caused(
            id=derived_id(row[1], payload.context, self.domain.name, handler.name),
            by=row[1],
            correlation_id=row[9] or row[1],
            depth=row[10] + 1,
        )


def read_starts(
    connection: Connection, domain: Domain, derives_from: int, slices: Slices = ALL
) -> Starts:
    """Return since when the handlers of a domain speak of a range, as far as the log knows."""
    known: dict[str, list[tuple[Slices, int]]] = {}
    here: dict[str, list[tuple[Slices, int]]] = {}
    for at, start in _said(connection, domain):
        part, behind = Slices(start.first_slice, start.last_slice), start.position - 1
        known.setdefault(start.handler, []).append((part, behind))
        if at <= derives_from:
            behind = max(behind, derives_from)
        here.setdefault(start.handler, []).append((part, behind))
    return Starts(domain, derives_from, _within(known, slices), _within(here, slices), slices)


def to_compare(connection: Connection, domain: Domain) -> dict[str, Since]:
    """Return behind which position the log should have what each handler says."""
    known: dict[str, list[tuple[Slices, int]]] = {}
    for _, start in _said(connection, domain):
        part = Slices(start.first_slice, start.last_slice)
        known.setdefault(start.handler, []).append((part, start.position - 1))
    from_beginning = {one.name: Since.of(0) for one in domain.derives if one.is_from_beginning}
    return {name: Since(tuple(parts)) for name, parts in known.items()} | from_beginning


def _said(connection: Connection, domain: Domain) -> Iterator[tuple[int, DeriveStarted]]:
    said = attestations.c
    asked = (
        select(said.position, said.payload)
        .where(said.entity == domain.name, said.context == DeriveStarted.context)
        .order_by(said.position)
    )
    for at, text in connection.execute(asked):
        yield at, DeriveStarted.model_validate_json(text)


def _within(parts: Mapping[str, Sequence[tuple[Slices, int]]], slices: Slices) -> dict[str, int]:
    """Return the starts of a range; one of only a part of it is none of the whole."""
    since = {name: Since(tuple(some)) for name, some in parts.items()}
    return {name: one.within(slices) for name, one in since.items() if one.covers(slices)}


def in_order(
    met: Sequence[Attestation], derived: Sequence[Attestation], rows: Iterable[RecordedRow]
) -> list[Attestation]:
    """Return both as one would say them who goes from attestation to attestation."""
    if not met:
        return [*derived]
    places = {row[1]: row[0] for row in rows}
    return sorted([*met, *derived], key=lambda one: places.get(one.caused_by or "", 0))
