"""Tables of an older version than the code, found by a host: rebuilt by itself, if so declared.

A domain that says `rebuild="auto"` need not be asked about. Whoever runs it and finds its tables
outdated rebuilds them beside the live ones, which serve until the swap. One host does it; the
others find it at work, and look again. Where it fails it is told in the log of the host and in the
status of the projector, and tried again later and later, for only mended code can help.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Event
from time import monotonic

from sqlalchemy.exc import SQLAlchemyError

from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import (
    LedgerChanged,
    QntxError,
    RebuildLost,
    RebuildRunning,
    RebuiltAlready,
    SwapBusy,
)
from qntx_es.projections.cursor import cursors_of
from qntx_es.projections.fresh import RebuildProgress, Report
from qntx_es.projections.recovery import (
    OF_THE_DATABASE,
    HandlerFailed,
    InHand,
    record_failure,
)

LOOK_SECONDS = 1.0
TRY_AGAIN_SECONDS_FIRST = 1.0
TRY_AGAIN_SECONDS_MAX = 600.0
# Of the moment, and no fault of the code's.
OF_THE_MOMENT = (*OF_THE_DATABASE, LedgerChanged, RebuildLost, SwapBusy)

logger = logging.getLogger(__name__)


class HostStops(QntxError):
    """The host stops, and the rebuild it had begun with it. The next host begins it anew."""


class Outdated:
    """The domains of a host that are rebuilt when their tables are found outdated.

    `rebuild` is called with the name of one, and with whom to tell how far it is.
    """

    def __init__(
        self,
        database: Database,
        domains: Iterable[Domain],
        rebuild: Callable[[str, Report], object],
        stopping: Event,
    ) -> None:
        self._database = database
        self._domains = tuple(one for one in domains if one.rebuild == "auto")
        self._rebuild = rebuild
        self._stopping = stopping
        self._waits: dict[str, float] = {}
        self._due: dict[str, float] = {}

    def run(self, wake: Callable[[], None]) -> None:
        """Look until the host stops, and `wake` the projectors behind each rebuild."""
        while self._domains and not self._stopping.is_set():
            if self.rebuild_found():
                wake()
            self._stopping.wait(LOOK_SECONDS)

    def rebuild_found(self) -> bool:
        """Rebuild what is outdated and was not tried just now; tell whether any of it was."""
        rebuilt = [one.name for one in self._domains if self._rebuild_if_outdated(one)]
        return bool(rebuilt)

    def _rebuild_if_outdated(self, domain: Domain) -> bool:
        name = domain.name
        if monotonic() < self._due.get(name, 0.0):
            return False
        try:
            if not self._is_outdated(domain):
                return False
            logger.info("`%s` is outdated, and rebuilt to version %s", name, domain.version)
            self._rebuild(name, self._go_on)
        except RebuildRunning as running:
            logger.info("%s", running)
            return False
        except (HostStops, RebuiltAlready):
            return False
        except (QntxError, SQLAlchemyError) as error:
            logger.exception("`%s` was not rebuilt: it is tried again", name)
            self._try_later(name)
            with suppress(QntxError, SQLAlchemyError):  # its database may be what is in trouble
                self._record(name, error)
            return False
        self._waits.pop(name, None)
        return True

    def _is_outdated(self, domain: Domain) -> bool:
        """Tell whether its tables are older than its code; what is paused is left alone."""
        with self._database.read() as connection:
            found = cursors_of(connection, domain.name)
        return bool(found) and found[0].version < domain.version and found[0].pause is None

    def _go_on(self, progress: RebuildProgress) -> None:
        if self._stopping.is_set() and progress.state != "swapped":
            raise HostStops

    def _try_later(self, name: str) -> None:
        wait = self._waits.get(name, TRY_AGAIN_SECONDS_FIRST)
        self._due[name] = monotonic() + wait
        self._waits[name] = min(wait * 2, TRY_AGAIN_SECONDS_MAX)

    def _record(self, name: str, error: QntxError | SQLAlchemyError) -> None:
        """Keep why it failed, beside the cursor that stands there until it is mended."""
        if isinstance(error, (*OF_THE_MOMENT, SQLAlchemyError)):
            return
        failed = error if isinstance(error, HandlerFailed) else None
        with self._database.write() as connection:
            now = self._database.now(connection)
            for cursor in cursors_of(connection, name)[:1]:
                failed = failed or HandlerFailed(InHand(cursor.position, "the rebuild"), error)
                record_failure(connection, cursor, failed, now)
