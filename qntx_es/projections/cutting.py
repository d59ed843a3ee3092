"""Cut a domain's slices into ranges anew, while everything runs; no position is lost or met twice.

    split    one transaction: each range becomes pieces that fit both the old cutting and the new,
             with its cursor copied; the pieces that are to be one again are leased here
    bring    of the pieces that are to be one, those behind are projected exactly as far as the
             furthest of them
    merge    one transaction for each range: its pieces, all at one position, become one cursor

A crash anywhere leaves a cutting that is whole, finer than was wanted: cut again. Hosts that ran
the old ranges find them gone, and look which there are.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from time import monotonic

from sqlalchemy import Connection, delete

from qntx_es.attestation import SLICES, Attestation, Payload
from qntx_es.database import Database
from qntx_es.errors import CutRefused, LeaseLost, ProjectorPaused
from qntx_es.projections.cursor import Cursor, cursors_held, lease_name, recut
from qntx_es.projections.lease import Leases
from qntx_es.projections.projector import Projector
from qntx_es.projections.slices import ALL, Slices, refined
from qntx_es.sequencer import Sequencer, Turn
from qntx_es.tables import failures, leases

LEASE_SECONDS = 10.0


class SlicesCut(Payload, context="qntx.cut"):
    """A projector's slices, the entity's, were cut into so many ranges."""

    ranges: int


class Cutting:
    """One cutting of a projector's slices into ranges of nearly the same size, by an actor."""

    def __init__(
        self, database: Database, sequencer: Sequencer, projector: Projector, by: str
    ) -> None:
        self._database = database
        self._sequencer = sequencer
        self._projector = projector
        self._domain = projector.domain
        self._by = by

    def run(self, into: int) -> list[Slices]:
        """Cut, and return the ranges.

        Raises `CutRefused`; `ProjectorPaused` where ranges would have to be brought together; and
        what a runner raises where a handler fails on the way.
        """
        self._refuse(into)
        wanted = ALL.cut(into)
        held = Leases(self._database, seconds=LEASE_SECONDS, batch_seconds=float("inf"))
        try:
            pieces = self._split(wanted, held)
            for target in wanted:
                parts = [one for one in pieces if one.slices.within(target)]
                if len(parts) > 1:
                    self._bring(parts, held)
                    self._merge(target)
        finally:
            held.close()
        return wanted

    def _refuse(self, into: int) -> None:
        domain = self._domain
        if not domain.by_entity or domain.inline:
            raise CutRefused(
                f"`{domain.name}` is not cut: only a domain with by_entity=True that is not inline"
            )
        if not 1 <= into <= SLICES:
            raise CutRefused(f"{into} ranges of {SLICES} slices: it is 1 to {SLICES}")

    def _split(self, wanted: Sequence[Slices], held: Leases) -> list[Cursor]:
        pieces: list[Cursor] = []

        def choose(turn: Turn) -> Iterator[Attestation]:
            before = cursors_held(turn.connection, self._domain.name)
            pieces[:] = _pieces_of(before, wanted)
            _refuse_paused(pieces, wanted)
            if [one.slices for one in before] == list(wanted):
                return
            recut(turn.connection, before, pieces)
            _forget(turn.connection, before)
            for name in _names_apart(pieces, wanted):
                held.take(turn.connection, name)
            yield Attestation(
                context=SlicesCut.context,
                entity=self._domain.name,
                actor=self._by,
                payload=SlicesCut(ranges=len(wanted)),
            )

        since = monotonic()
        self._sequencer.decide(choose)
        for name in _names_apart(pieces, wanted):
            held.keep(name, since)
        return pieces

    def _bring(self, parts: Sequence[Cursor], held: Leases) -> None:
        furthest = max(one.position for one in parts)
        for part in parts:
            if part.position < furthest:
                self._projector.runner_of(part.slices, held).catch_up(until=furthest)

    def _merge(self, target: Slices) -> None:
        with self._database.write() as connection:
            there = cursors_held(connection, self._domain.name)
            parts = [one for one in there if one.slices.within(target)]
            if len({one.position for one in parts}) != 1:
                raise LeaseLost
            token = max(one.token for one in parts) + 1
            recut(connection, parts, [replace(parts[0], slices=target, token=token)])
            _forget(connection, parts)


def _pieces_of(before: Sequence[Cursor], wanted: Iterable[Slices]) -> list[Cursor]:
    return [
        replace(cursor, slices=slices, token=cursor.token + 1)
        for slices in refined([one.slices for one in before], wanted)
        for cursor in before
        if slices.within(cursor.slices)
    ]


def _names_apart(pieces: Iterable[Cursor], wanted: Sequence[Slices]) -> list[str]:
    """Return the leases of those that are to be one with others."""
    return [lease_name(one.domain, one.slices) for one in pieces if one.slices not in wanted]


def _refuse_paused(pieces: Sequence[Cursor], wanted: Iterable[Slices]) -> None:
    """Raise `ProjectorPaused` where somebody would have to go on, and is not to."""
    for target in wanted:
        parts = [one for one in pieces if one.slices.within(target)]
        pause = parts[0].pause
        if pause is not None and len({one.position for one in parts}) > 1:
            raise ProjectorPaused(parts[0].domain, str(pause))


def _forget(connection: Connection, gone: Sequence[Cursor]) -> None:
    """Let go of the leases and failures of ranges that are no more."""
    names = [lease_name(one.domain, one.slices) for one in gone]
    connection.execute(delete(leases).where(leases.c.name.in_(names)))
    firsts = [one.slices.first for one in gone]
    theirs = failures.c.domain == gone[0].domain, failures.c.first_slice.in_(firsts)
    connection.execute(delete(failures).where(*theirs))
