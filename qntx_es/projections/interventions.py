"""What a person decides about a projector; no code of its domain is asked.

Each decision is said at the head of the log, in a turn, and takes hold in the transaction that says
it: the cursor is held meanwhile and gets a new token, so that a batch that is in hand anywhere is
undone, and read again with the decision known.
"""

from collections.abc import Iterator, Sequence

from sqlalchemy import delete, select

from qntx_es.attestation import Attestation, Payload, instant
from qntx_es.config import somebody
from qntx_es.errors import NothingToRetry, ProjectorPaused, SkipRefused, UnknownDomain
from qntx_es.projections.cursor import Cursor, Pause, cursors_held, fence
from qntx_es.projections.ledger import (
    Paused,
    Resumed,
    Retried,
    Skipped,
    SkipWithdrawn,
    read_ledger,
    read_waiting,
)
from qntx_es.sequencer import Sequencer, Turn
from qntx_es.tables import attestations, cursors, failures


class Interventions:
    """What one person, the actor `by`, may decide about the projector of a domain."""

    def __init__(self, sequencer: Sequencer, domain: str, by: str | None) -> None:
        self._sequencer = sequencer
        self._domain = domain
        self._by = somebody() if by is None else by

    def pause(self, reason: str | None) -> None:
        """Let it stand still everywhere; once this returns, nothing moves it."""

        def choose(turn: Turn) -> Iterator[Attestation]:
            held = self._cursors(turn)
            yield self._said(Paused(reason=reason))
            pause = Pause(self._by, instant(turn.now), reason)
            for cursor in held:
                fence(cursor, turn.connection, pause=pause)

        self._sequencer.decide(choose)

    def resume(self) -> None:
        """Let it go on; one that is not paused does so anyway, and nothing is said."""

        def choose(turn: Turn) -> Iterator[Attestation]:
            held = self._cursors(turn)
            if held[0].pause is not None:
                yield self._said(Resumed())
                for cursor in held:
                    fence(cursor, turn.connection, pause=None)

        self._sequencer.decide(choose)

    def skip(self, position: int, reason: str) -> bool:
        """Leave out an attestation that has had no effect yet; False where it is skipped already.

        Raises `SkipRefused`.
        """

        def choose(turn: Turn) -> Iterator[Attestation]:
            held = self._cursors(turn)
            ledger = read_ledger(turn.connection, self._domain, held[0].version)
            if position in ledger.skipped:
                return
            if position not in ledger.left_out and self._is_passed(turn, held, position):
                raise SkipRefused(
                    f"`{self._domain}` has projected position {position} already: mend its "
                    "handlers and rebuild, or attest a correction"
                )
            yield self._said(Skipped(position=position, version=None, reason=reason))
            self._try_again(turn, held)

        return bool(self._sequencer.decide(choose))

    def withdraw_skip(self, position: int) -> bool:
        """Let a skipped attestation count again; False where the rows have gone on without it.

        Those of the next version will have it. Raises `SkipRefused`.
        """
        is_passed = False

        def choose(turn: Turn) -> Iterator[Attestation]:
            nonlocal is_passed
            held = self._cursors(turn)
            version = held[0].version
            if position not in read_ledger(turn.connection, self._domain, version).skipped:
                raise SkipRefused(f"position {position} is not skipped by `{self._domain}`")
            is_passed = self._is_passed(turn, held, position)
            passed_by = version if is_passed else None
            yield self._said(SkipWithdrawn(position=position, version=passed_by))
            self._try_again(turn, held)

        self._sequencer.decide(choose)
        return not is_passed

    def retry(self, position: int | None, entity: str | None) -> list[Retried]:
        """Say what is to be tried again: what failed there, an entity, or else everything.

        Raises `NothingToRetry`, and `ProjectorPaused`.
        """
        chosen: list[Retried] = []

        def choose(turn: Turn) -> Iterator[Attestation]:
            held = self._cursors(turn)
            if held[0].pause is not None:
                raise ProjectorPaused(self._domain, str(held[0].pause))
            chosen[:] = [
                one
                for one in self._retriable(turn, held)
                if position in (None, one.position) and entity in (None, one.parked_entity)
            ]
            if not chosen:
                raise NothingToRetry
            yield from map(self._said, chosen)
            self._try_again(turn, held)

        self._sequencer.decide(choose)
        return chosen

    def _retriable(self, turn: Turn, held: Sequence[Cursor]) -> Iterator[Retried]:
        for cursor in held:
            asked = select(failures.c.position).where(
                failures.c.domain == self._domain,
                failures.c.first_slice == cursor.slices.first,
                failures.c.cursor == cursor.position,
            )
            for row in turn.read(asked):
                yield Retried(position=row.position, parked_entity=None)
        for one in read_waiting(turn.connection, self._domain, held[0].version).values():
            yield Retried(position=one.position, parked_entity=one.entity)

    def _is_passed(self, turn: Turn, held: Sequence[Cursor], position: int) -> bool:
        """Tell whether an attestation has had its place in the rows. Raises `SkipRefused`."""
        entity = self._entity_at(turn, position)
        if entity is None:
            raise SkipRefused(f"the log has no position {position}: it ends at {turn.position}")
        waits = read_waiting(turn.connection, self._domain, held[0].version).get(entity)
        cursor = next(one for one in held if one.slices.holds(entity))
        return position <= cursor.position and (waits is None or position < waits.position)

    def _try_again(self, turn: Turn, held: Sequence[Cursor]) -> None:
        turn.connection.execute(delete(failures).where(failures.c.domain == self._domain))
        for cursor in held:
            fence(cursor, turn.connection, pause=cursor.pause)

    @staticmethod
    def _entity_at(turn: Turn, position: int) -> str | None:
        asked = select(attestations.c.entity).where(attestations.c.position == position)
        return next((str(row.entity) for row in turn.read(asked)), None)

    def _cursors(self, turn: Turn) -> list[Cursor]:
        held = cursors_held(turn.connection, self._domain)
        if not held:
            known = [row.domain for row in turn.read(select(cursors.c.domain).distinct())]
            raise UnknownDomain(self._domain, known)
        return held

    def _said(self, payload: Payload) -> Attestation:
        return Attestation(
            context=payload.context, entity=self._domain, actor=self._by, payload=payload
        )
