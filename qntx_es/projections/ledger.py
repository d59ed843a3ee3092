"""What was decided about a projector: whom it parked, what it leaves out, who tries again.

Each decision is an attestation about the projector, so its entity is the domain's name, and it is
appended in the very transaction in which it takes hold. Whoever projects reads them first, be it a
rebuild or the first build of an imported log, and does at each position what was done there:

    parked     its entity waits from `position` on, in order; decided at `at`, where the handler
               failed, or where a retry was met and failed again
    retried    met in the log like any other: there the entity is worked off, as if all that waited
               had been said in this place
    unparked   all of it was worked off
    skipped    one position has no effect, in any version, until it is withdrawn

A park is of one version, since a new one is usually the cure. So is what a withdrawal leaves: rows
that had passed the position go on without it, and the next version meets it in its place.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from sqlalchemy import Connection, delete, insert, select

from qntx_es.attestation import Attestation, Payload, RecordedRow, derived_id
from qntx_es.domain import RETRIED
from qntx_es.tables import attestations, parked

SYSTEM = "qntx@system"
# Beyond so many it is the handler that is broken, and not what it was handed.
PARKED_MAX = 1_000


class Paused(Payload, context="qntx.paused"):
    """A projector, the entity, is to stand still on every host until it is resumed."""

    reason: str | None


class Resumed(Payload, context="qntx.resumed"):
    """A projector that was paused goes on from where it stands."""


class Parked(Payload, context="qntx.parked"):
    """What is said about `parked_entity` waits from `position` on; others of the projector go on.

    It was decided at position `at`: the same one, or that of a retry which failed again.
    """

    version: int
    parked_entity: str
    position: int
    at: int
    handler: str
    error: str


class Unparked(Payload, context="qntx.unparked"):
    """All that waited about `parked_entity` was worked off, at the retry that stands at `at`."""

    version: int
    parked_entity: str
    at: int


class Retried(Payload, context=RETRIED):
    """A projector is to try again what failed at `position`: it stopped there, or parked an entity.

    At this place in the log the projector works `parked_entity` off.
    """

    position: int
    parked_entity: str | None


class Skipped(Payload, context="qntx.skipped"):
    """The attestation at `position` has no effect on the projector, in any version.

    `version` is the one whose handler failed, where the projector decided by itself.
    """

    position: int
    version: int | None
    reason: str


class SkipWithdrawn(Payload, context="qntx.skip_withdrawn"):
    """The attestation at `position` counts again, but in `version`, whose rows had passed it."""

    position: int
    version: int | None


@dataclass(frozen=True, slots=True)
class ParkedEntity:
    """An entity that waits: from which position on, and what failed there."""

    entity: str
    position: int
    handler: str
    error: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """The decisions that hold for one version: parks by where they were decided, and skips.

    What is left out is what is skipped, and what was while this version passed it.
    """

    parked: Mapping[int, Parked] = field(default_factory=dict)
    skipped: frozenset[int] = frozenset()
    left_out: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision:
    """What a projector does about a failure at position `at`, and how it says so."""

    at: int
    payload: Parked | Skipped
    said: Attestation


@dataclass(frozen=True, slots=True)
class Change:
    """The attestation at which one entity begins to wait, or is worked off.

    It has waited since `since`, if at all; where `parked` is None, nothing of it waits behind this.
    """

    row: RecordedRow
    entity: str
    since: int | None
    parked: Parked | None

    @property
    def until(self) -> int:
        """Return before which position its attestations are worked off."""
        return self.row[0] if self.parked is None else self.parked.position


@dataclass(frozen=True, slots=True)
class Stretch:
    """What of a batch is projected at once: everything up to a change, or the change by itself."""

    ceiling: int
    rows: Sequence[RecordedRow]
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Who waits at the cursor of a projector, and what the ledger says of what lies behind it."""

    domain: str
    contexts: frozenset[str]
    ledger: Ledger = field(default_factory=Ledger)
    waiting: Mapping[str, ParkedEntity] = field(default_factory=dict)

    def knowing(self, decision: Decision) -> Self:
        """Return the same with one more decision in its ledger."""
        known, said = self.ledger, decision.payload
        if isinstance(said, Parked):
            return replace(self, ledger=replace(known, parked={**known.parked, said.at: said}))
        return replace(self, ledger=replace(known, left_out=known.left_out | {said.position}))

    def is_plain(self, after: int, until: int) -> bool:
        """Tell whether nobody waits, and nothing was decided about what lies in between."""
        decided = (*self.ledger.left_out, *self.ledger.parked)
        return not self.waiting and not any(after < one <= until for one in decided)

    def stretch(self, batch: Sequence[RecordedRow], ceiling: int) -> Stretch:
        """Return what comes first of a batch that reaches up to `ceiling`."""
        if not (self.waiting or self.ledger.parked):
            return Stretch(ceiling, self.that_count(batch))
        for number, row in enumerate(batch):
            if (change := self._change_at(row)) is None:
                continue
            if number == 0:
                return Stretch(row[0], (), change)
            return Stretch(row[0] - 1, self.that_count(batch[:number]))
        return Stretch(ceiling, self.that_count(batch))

    def that_count(self, batch: Iterable[RecordedRow]) -> list[RecordedRow]:
        """Return those that have an effect in their place."""
        left_out, waiting, contexts = self.ledger.left_out, self.waiting, self.contexts
        ours = [row for row in batch if row[2] in contexts]
        if not (left_out or waiting):
            return ours
        return [row for row in ours if row[0] not in left_out and row[4] not in waiting]

    def after(self, change: Change) -> Self:
        """Return how things stand behind a change."""
        waiting = {name: one for name, one in self.waiting.items() if name != change.entity}
        if change.parked is not None:
            waiting[change.entity] = _entity_of(change.parked)
        return replace(self, waiting=waiting)

    def _change_at(self, row: RecordedRow) -> Change | None:
        known = self.ledger.parked.get(row[0])
        if known is not None:
            entity: str | None = known.parked_entity
        elif row[2] == RETRIED and row[4] == self.domain:
            entity = Retried.model_validate_json(row[5]).parked_entity
        else:
            return None
        waits = self.waiting.get(entity or "")
        if entity is None or (known is None and waits is None):
            return None
        return Change(row, entity, None if waits is None else waits.position, known)


def read_ledger(connection: Connection, domain: str, version: int) -> Ledger:
    """Return what the log holds of decisions about a domain, as they are for one version."""
    said = attestations.c
    asked = (
        select(said.context, said.payload)
        .where(said.entity == domain)
        .where(said.context.in_([one.context for one in (Parked, Skipped, SkipWithdrawn)]))
        .order_by(said.position)
    )
    parks: dict[int, Parked] = {}
    skipped: set[int] = set()
    left_out: set[int] = set()
    for context, text in connection.execute(asked):
        if context == Parked.context:
            park = Parked.model_validate_json(text)
            if park.version == version:
                parks[park.at] = park
        elif context == Skipped.context:
            position = Skipped.model_validate_json(text).position
            skipped.add(position)
            left_out.add(position)
        else:
            withdrawn = SkipWithdrawn.model_validate_json(text)
            skipped.discard(withdrawn.position)
            if withdrawn.version != version:
                left_out.discard(withdrawn.position)
    return Ledger(parks, frozenset(skipped), frozenset(left_out))


def read_waiting(connection: Connection, domain: str, version: int) -> dict[str, ParkedEntity]:
    """Return the entities that wait at a projector's cursor, in the order they were parked in."""
    found = parked.c
    asked = (
        select(found.entity, found.position, found.handler, found.error)
        .where(found.domain == domain, found.version == version)
        .order_by(found.position)
    )
    return {row.entity: ParkedEntity(*row) for row in connection.execute(asked)}


def keep_change(connection: Connection, domain: str, version: int, change: Change) -> None:
    """Keep that an entity waits, or no longer does."""
    same = (parked.c.domain == domain, parked.c.version == version)
    connection.execute(delete(parked).where(*same, parked.c.entity == change.entity))
    if change.parked is not None:
        _insert(connection, domain, version, [_entity_of(change.parked)])


def keep_waiting(
    connection: Connection, domain: str, version: int, waiting: Iterable[ParkedEntity]
) -> None:
    """Keep that these wait, and nobody else of the domain, in any version."""
    connection.execute(delete(parked).where(parked.c.domain == domain))
    _insert(connection, domain, version, waiting)


def _insert(
    connection: Connection, domain: str, version: int, waiting: Iterable[ParkedEntity]
) -> None:
    rows = [
        {
            "domain": domain,
            "version": version,
            "entity": one.entity,
            "position": one.position,
            "handler": one.handler,
            "error": one.error,
        }
        for one in waiting
    ]
    if rows:
        connection.execute(insert(parked), rows)


def said_at(row: RecordedRow, domain: str, payload: Parked | Unparked | Skipped) -> Attestation:
    """Return a decision as the attestation that follows from the one it was taken at.

    Its id is computed, so that no crash, and no second runner, says it twice.
    """
    about = () if isinstance(payload, Skipped) else (payload.parked_entity,)
    return Attestation(
        context=payload.context, entity=domain, actor=SYSTEM, payload=payload, tags=about
    ).caused(
        id=derived_id(row[1], payload.context, domain, str(payload.version)),
        by=row[1],
        correlation_id=row[9] or row[1],
        depth=row[10] + 1,
    )


def _entity_of(park: Parked) -> ParkedEntity:
    return ParkedEntity(park.parked_entity, park.position, park.handler, park.error)
