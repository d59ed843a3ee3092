"""Looking back: one derive handler speaks of a past that it was silent about.

It sees the rows as of each attestation, and only a replay has those: fresh tables are filled up to
the live cursor, and what the handler says on the way goes into the log, chunk by chunk, with the
rows it was said of. Ids are computed, so what the log has already stays as it is; said otherwise
by now, it is drift, which is told and never appended. So whoever was killed looks back again.

At the end its start is the position asked for, and every projector is told: what was parked there
and is worked off later is answered by whoever works it off.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select

from qntx_es.attestation import Attestation
from qntx_es.database import Database
from qntx_es.domain import RETRIED, DeriveHandler, Domain
from qntx_es.errors import BeyondHead, UnknownDerive
from qntx_es.projections.cursor import cursors_held, fence
from qntx_es.projections.derived import DerivationDifference
from qntx_es.projections.fresh import Fresh, Report
from qntx_es.projections.starts import DeriveStarted, Since
from qntx_es.projections.verify import live_of
from qntx_es.sequencer import Sequencer, Turn
from qntx_es.tables import attestations

STATE = "looking back"


@dataclass(frozen=True, slots=True)
class LookedBack:
    """What a handler said of the sources from `since` to `position`: `said` are new to the log.

    As many were there before as are `equal`; `changed` and `surplus` stay in the log as they are,
    and `drift` are the first of them. `attested_at` is where the log speaks of it.
    """

    domain: str
    handler: str
    since: int
    position: int
    said: int
    equal: int
    changed: int
    surplus: int
    drift: tuple[DerivationDifference, ...]
    attested_at: int

    @property
    def is_same(self) -> bool:
        """Tell whether the log holds nothing but what the handler says."""
        return not (self.changed or self.surplus)


def look_back(  # noqa: PLR0913 - one keyword a part
    database: Database,
    sequencer: Sequencer,
    domain: Domain,
    handler: str,
    *,
    since: int,
    actor: str,
    progress: Report | None = None,
) -> LookedBack:
    """Append what a derive handler says of the sources from `since` to the live cursor.

    Live is never touched. Raises `UnknownDerive`, `BeyondHead`, `ProjectorOutdated` where the
    tables are of another version, `RebuildRunning`, and `HandlerFailed` where a handler raises:
    what was said before stays, and looking back again goes on behind it.
    """
    derive = _derive_of(domain, handler)
    fresh = Fresh(database, sequencer, domain, progress, says={derive.name: Since.of(since - 1)})
    with fresh.standing():
        with database.read() as connection:
            live = live_of(connection, domain)
        if not 1 <= since <= live.position:
            raise BeyondHead(
                f"`{domain.name}` has projected the positions 1 to {live.position}, and {since} is "
                "none of them: there is nothing to look back at"
            )
        attested_at = None
        while attested_at is None:
            fresh.fill(STATE)
            attested_at = _attest(sequencer, fresh, derive.name, since, actor)
    (proof,) = (one for one in fresh.derivations.proofs() if one.handler == derive.name)
    return LookedBack(
        domain=domain.name,
        handler=derive.name,
        since=since,
        position=fresh.position,
        said=proof.missing,
        equal=proof.equal,
        changed=proof.changed,
        surplus=proof.surplus,
        drift=fresh.derivations.drift_of(derive.name),
        attested_at=attested_at,
    )


def _attest(sequencer: Sequencer, fresh: Fresh, handler: str, since: int, actor: str) -> int | None:
    """Say the start, or return None where live has worked somebody off since the last fill."""
    name = fresh.domain.name

    def choose(turn: Turn) -> Iterator[Attestation]:
        held = cursors_held(turn.connection, name)
        furthest = max(one.position for one in held)
        position = attestations.c.position
        retried = (
            select(position)
            .where(attestations.c.entity == name, attestations.c.context == RETRIED)
            .where(position > fresh.position, position <= furthest)
            .limit(1)
        )
        if turn.read(retried):
            return
        payload = DeriveStarted(handler=handler, position=since)
        yield Attestation(context=payload.context, entity=name, actor=actor, payload=payload)
        for cursor in held:
            fence(cursor, turn.connection, pause=cursor.pause)

    receipts = sequencer.decide(choose)
    return receipts[0].position if receipts else None


def _derive_of(domain: Domain, handler: str) -> DeriveHandler:
    known = {one.name: one for one in domain.derives}
    if handler not in known:
        raise UnknownDerive(domain.name, handler, known)
    return known[handler]
