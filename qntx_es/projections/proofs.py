"""What the log tells of the newest proof of each read model: where, and whether all was the same.

A verify and a rebuild are attested, so whoever watches need not have made them. Whoever watches for
long reads only what has come since: so it costs the same in a log of years.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from qntx_es.attestation import decode_mapping
from qntx_es.projections.certificate import ModelRebuilt, ModelVerified
from qntx_es.tables import attestations as log

CONTEXTS = (ModelRebuilt.context, ModelVerified.context)


@dataclass(frozen=True, slots=True)
class ModelProof:
    """The rows at `position` were compared with the fold of the log, or made anew by it."""

    attested_at: int
    position: int
    is_same: bool


class Proofs:
    """The newest proof of each read model, by domain; one for each domain is kept."""

    def __init__(self) -> None:
        self._known: dict[str, ModelProof] = {}
        self._seen = 0

    def look(self, connection: Connection, head: int) -> dict[str, ModelProof]:
        """Read on behind where the last look ended, up to `head` at least, and return them all."""
        if head < self._seen:  # an older log was restored
            self._known, self._seen = {}, 0
        newest = (
            select(func.max(log.c.position))
            .where(log.c.context.in_(CONTEXTS), log.c.position > self._seen)
            .group_by(log.c.entity)
        )
        asked = select(log.c.position, log.c.context, log.c.entity, log.c.payload)
        for row in connection.execute(asked.where(log.c.position.in_(newest))):
            said = decode_mapping(row.payload)
            is_rebuilt = row.context == ModelRebuilt.context
            self._known[row.entity] = ModelProof(
                attested_at=row.position,
                position=said["position" if is_rebuilt else "compared_at"],
                is_same=is_rebuilt or said["is_same"],  # what a rebuild swaps in is what is right
            )
        self._seen = head
        return dict(self._known)
