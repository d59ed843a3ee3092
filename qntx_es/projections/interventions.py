"""What a person decides about a projector; no code of its domain is asked.

Each decision is said at the head of the log, in a turn, and takes hold in the transaction that says
it: the cursor is held meanwhile and gets a new token, so that a batch that is in hand anywhere is
undone, and read again with the decision known.
"""

import getpass
import os
import socket
from collections.abc import Iterator

from sqlalchemy import select

from qntx_es.attestation import Attestation, Payload, instant
from qntx_es.errors import UnknownDomain
from qntx_es.projections.cursor import Cursor, Pause, fence, look_and_hold
from qntx_es.projections.ledger import Paused, Resumed
from qntx_es.sequencer import Sequencer, Turn
from qntx_es.tables import cursors


def somebody() -> str:
    """Return who acts where nobody says so: the system's user, at this host."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user of a container, without a name
        name = f"uid{os.getuid()}"
    return f"{name}@{socket.gethostname()}"


class Interventions:
    """What one person, the actor `by`, may decide about the projector of a domain."""

    def __init__(self, sequencer: Sequencer, domain: str, by: str | None) -> None:
        self._sequencer = sequencer
        self._domain = domain
        self._by = somebody() if by is None else by

    def pause(self, reason: str | None) -> None:
        """Let it stand still everywhere; once this returns, nothing moves it."""

        def choose(turn: Turn) -> Iterator[Attestation]:
            cursor = self._cursor(turn)
            yield self._said(Paused(reason=reason))
            fence(cursor, turn.connection, pause=Pause(self._by, instant(turn.now), reason))

        self._sequencer.decide(choose)

    def resume(self) -> None:
        """Let it go on; one that is not paused does so anyway, and nothing is said."""

        def choose(turn: Turn) -> Iterator[Attestation]:
            cursor = self._cursor(turn)
            if cursor.pause is not None:
                yield self._said(Resumed())
                fence(cursor, turn.connection, pause=None)

        self._sequencer.decide(choose)

    def _cursor(self, turn: Turn) -> Cursor:
        cursor = look_and_hold(turn.connection, self._domain, turn.now).cursor
        if cursor is None:
            known = [row.domain for row in turn.read(select(cursors.c.domain))]
            raise UnknownDomain(self._domain, known)
        return cursor

    def _said(self, payload: Payload) -> Attestation:
        return Attestation(
            context=payload.context, entity=self._domain, actor=self._by, payload=payload
        )
