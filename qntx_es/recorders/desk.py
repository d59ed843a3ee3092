"""Where the recorders of one application work: its database, its actor, and its bell.

All that an application records is said by one actor, `<application>@eventsourcing`. The log is
shared, so that is how a recorder tells its own from what others say; and what belongs to an
entity with a version is an aggregate's, what has none is a decision of a DCB application.
"""

import threading
import weakref

from qntx_es.attestation import checked_name
from qntx_es.database import Database
from qntx_es.recorders.errors import library_errors
from qntx_es.sequencer import Sequencer

NAMELESS = "application"


class Bell:
    """Rung when something was recorded here, so that no follower in this process waits for it."""

    def __init__(self) -> None:
        self._rung = threading.Condition()
        self.times = 0

    def ring(self) -> None:
        """Wake everyone who waits."""
        with self._rung:
            self.times += 1
            self._rung.notify_all()

    def wait(self, heard: int, seconds: float) -> None:
        """Return when it was rung more often than `heard`, or when the time is over."""
        with self._rung:
            self._rung.wait_for(lambda: self.times != heard, seconds)


class Desk:
    """What the recorders of the application `name` have in common.

    It closes the database's connections when nobody works at it any more: the library drops
    factories whose recorders live on.
    """

    def __init__(self, database: Database, name: str, *, has_uuids: bool = True) -> None:
        self.database = database
        self.sequencer = Sequencer(database)
        self.name = name or NAMELESS
        self.has_uuids = has_uuids
        self.bell = Bell()
        with library_errors():
            self.actor = checked_name(f"{self.name}@eventsourcing", "actor")
        weakref.finalize(self, database.close)
