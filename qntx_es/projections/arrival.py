"""Reading your writes: whether a projector has come to a position, and else whether it will.

Who waits for rows that nobody is going to write should hear so at once. What is asked is in the
tables, so it is the same whichever process projects.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from qntx_es.domain import Domain
from qntx_es.errors import (
    EntityParked,
    ProjectorOutdated,
    ProjectorPaused,
    ProjectorStopped,
    ProjectorUnowned,
    QntxError,
)
from qntx_es.projections.cursor import Cursor, cursors_of, lease_name
from qntx_es.projections.ledger import read_waiting
from qntx_es.tables import failures, leases

# For so long a reason must hold that may pass by itself: a host that is just starting, say.
PATIENCE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where a projector is on its way: the position it has reached, and why it will not go on.

    What `stands` may pass by itself, soon; what is `refused` does not.
    """

    reached: int
    refused: QntxError | None = None
    stands: QntxError | None = None


def arrival(connection: Connection, domain: Domain, position: int, entity: str | None) -> Arrival:
    """Return how far the rows are: those of one entity, or of all."""
    found = [
        one
        for one in cursors_of(connection, domain.name)
        if entity is None or one.slices.holds(entity)
    ]
    if not found:
        return Arrival(0)
    behind = min(found, key=lambda one: one.position)
    if entity is not None:
        waits = read_waiting(connection, domain.name, behind.version).get(entity)
        if waits is not None and waits.position <= position:
            parked = EntityParked(
                domain.name, entity=entity, position=waits.position, error=waits.error
            )
            return Arrival(waits.position - 1, refused=parked)
    if behind.position >= position:
        return Arrival(behind.position)
    if behind.pause is not None:
        return Arrival(behind.position, refused=ProjectorPaused(domain.name, str(behind.pause)))
    if behind.version < domain.version and domain.rebuild == "ask":
        return Arrival(behind.position, refused=ProjectorOutdated())
    return Arrival(behind.position, stands=_reason_of(connection, domain, behind))


def _reason_of(connection: Connection, domain: Domain, cursor: Cursor) -> QntxError | None:
    name = lease_name(domain.name, cursor.slices)
    if connection.execute(select(leases.c.holder).where(leases.c.name == name)).first():
        return None  # or its lease lapses, and somebody takes over
    failed = connection.execute(
        select(failures).where(
            failures.c.domain == domain.name,
            failures.c.first_slice == cursor.slices.first,
            failures.c.cursor == cursor.position,
        )
    ).first()
    if failed is not None:
        return ProjectorStopped(
            domain.name, position=failed.position, handler=failed.handler, error=failed.error
        )
    return None if domain.inline else ProjectorUnowned(domain.name)
