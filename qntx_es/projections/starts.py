"""Since when each derive handler speaks: of what it meets first, and of all that comes after.

A handler that is added to a domain must not answer a past that nobody asked it about. So the first
source that a projector meets with a handler the log does not know yet is where that one starts, and
`qntx.derive_started` says so, in the batch that meets it, be the source projected or left waiting.
It is about the domain, and names the handler: whoever keeps `name=` keeps the start.

A rebuild reads the starts as it reads the ledger, and holds a handler to what it should have said;
an imported log brings its own. Looking back says an earlier start, and the earliest holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from sqlalchemy import Connection, select

from qntx_es.attestation import Attestation, Payload, RecordedRow, derived_id
from qntx_es.domain import DeriveHandler, Domain
from qntx_es.projections.cursor import Cursor
from qntx_es.projections.ledger import SYSTEM, Stretch
from qntx_es.tables import attestations


class DeriveStarted(Payload, context="qntx.derive_started"):
    """A derive handler of a domain, the entity, speaks of what stands at `position` and after."""

    handler: str
    position: int


@dataclass(frozen=True, slots=True)
class Starts:
    """Behind which position each derive handler speaks; one that is unknown never has.

    `known` is what the log says, `here` what this database's projector makes of it: up to
    `derives_from` the log was there before it, and whoever lived then has spoken of that.
    """

    domain: Domain
    derives_from: int = 0
    known: Mapping[str, int] = field(default_factory=dict)
    here: Mapping[str, int] = field(default_factory=dict)

    @property
    def to_compare(self) -> dict[str, int]:
        """Behind which position the log should have what each handler says."""
        return {**self.known, **self._from_beginning}

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
        payload = DeriveStarted(handler=handler.name, position=row[0])
        return Attestation(
            context=payload.context, entity=self.domain.name, actor=SYSTEM, payload=payload
        ).caused(
            id=derived_id(row[1], payload.context, self.domain.name, handler.name),
            by=row[1],
            correlation_id=row[9] or row[1],
            depth=row[10] + 1,
        )


def read_starts(connection: Connection, domain: Domain, derives_from: int) -> Starts:
    """Return since when the handlers of a domain speak, as far as the log knows."""
    said = attestations.c
    asked = (
        select(said.position, said.payload)
        .where(said.entity == domain.name, said.context == DeriveStarted.context)
        .order_by(said.position)
    )
    known: dict[str, int] = {}
    here: dict[str, int] = {}
    for at, text in connection.execute(asked):
        start = DeriveStarted.model_validate_json(text)
        name, behind = start.handler, start.position - 1
        known[name] = min(behind, known.get(name, behind))
        if at <= derives_from:
            behind = max(behind, derives_from)
        here[name] = min(behind, here.get(name, behind))
    return Starts(domain, derives_from, known, here)


def in_order(
    met: Sequence[Attestation], derived: Sequence[Attestation], rows: Iterable[RecordedRow]
) -> list[Attestation]:
    """Return both as one would say them who goes from attestation to attestation."""
    if not met:
        return [*derived]
    places = {row[1]: row[0] for row in rows}
    return sorted([*met, *derived], key=lambda one: places.get(one.caused_by or "", 0))
