"""Hints between processes that the log has grown, so that nobody has to look all the time.

A hint may be lost, come twice or too early: whoever runs looks by himself as well, and that is the
truth. On PostgreSQL it is a NOTIFY, sent after the commit and by a thread of its own: within
every append it would make commits queue, one behind the other. The first goes at once, and those
wanted meanwhile are one. It names the contexts, so that only those look who read one of them. On
SQLite it shows in the file whether somebody has written.
"""

import json
import logging
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import Event, Lock, Thread
from typing import Any, TypeAlias
from uuid import uuid4
from weakref import ref

from sqlalchemy.exc import SQLAlchemyError

from qntx_es.database import Database
from qntx_es.errors import QntxError
from qntx_es.tables import attestations

CHANNEL = "qntx_log"
LISTEN_SECONDS = 1.0
LOOK_SECONDS = 0.02
LOOK_SECONDS_MAX = 0.05
TROUBLE_SECONDS = 1.0
# A transaction that notifies has a commit record; nobody has to wait for it to be on disk.
_NOTIFY = b"SELECT set_config('synchronous_commit', 'off', true), pg_notify($1::text, $2::text)"
_HEAD = f"SELECT max(position) FROM {attestations.name}"  # noqa: S608 - our own table
_CONTEXTS = f"SELECT DISTINCT context FROM {attestations.name} WHERE position > ?"  # noqa: S608 - the same
# PostgreSQL takes 8 000; a longer list says no more than that there is something.
PAYLOAD_BYTES_MAX = 7_000

# The contexts of what is new, or None if they are not known.
Contexts: TypeAlias = frozenset[str] | None

logger = logging.getLogger(__name__)


class Hints:
    """Tells other processes that the log has grown."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread: Thread | None = None
        self.forget()
        os.register_at_fork(after_in_child=partial(_forget, ref(self)))

    def send(self, contexts: Contexts) -> None:
        """Send one soon; this neither waits nor fails."""
        if self._database.is_sqlite:
            return  # a commit is the hint
        if self._thread is None:
            self._start()
        self._told.append(contexts)
        self._wanted.set()

    def close(self) -> None:
        """Send no more, until something is sent again."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._is_over = True
            self._wanted.set()
            thread.join()

    def forget(self) -> None:
        """Have no thread and no name yet: after a fork they are the other process's."""
        self.sender = uuid4().hex
        self._starting = Lock()
        self._wanted = Event()
        self._told: deque[Contexts] = deque()
        self._is_over = False
        self._thread = None

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._is_over = False
                self._thread = Thread(target=self._run, name="hints", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            if self._is_over:
                return
            self._wanted.clear()
            try:
                self._database.call(_NOTIFY, (CHANNEL, self._payload()))
            except (QntxError, SQLAlchemyError) as error:
                logger.debug("no hint was sent: %s", error)

    def _payload(self) -> str:
        told = [self._told.popleft() for _ in range(len(self._told))]
        known = [one for one in told if one is not None]
        contexts = sorted(frozenset().union(*known)) if len(known) == len(told) else None
        payload = json.dumps([self.sender, contexts])
        is_short = len(payload) <= PAYLOAD_BYTES_MAX
        return payload if is_short else json.dumps([self.sender, None])


def _forget(of: "ref[Hints]") -> None:
    hints = of()
    if hints is not None:
        hints.forget()


class Listener:
    """Calls `wake` when somebody says that the log has grown, until told to stop.

    What `sender` says is passed over: the host's own threads have been woken already.
    """

    def __init__(
        self,
        database: Database,
        wake: Callable[[Contexts], None],
        stopping: Event,
        sender: str = "",
    ) -> None:
        self._database = database
        self._sender = sender
        self._wake = wake
        self._stopping = stopping
        self._thread = Thread(target=self._run, name="listener")

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end, once `stopping` is set."""
        self._thread.join()

    def _run(self) -> None:
        listen = self._watch_file if self._database.is_sqlite else self._listen
        while not self._stopping.is_set():
            try:
                with self._database.own() as driver:
                    listen(driver)
            except (QntxError, SQLAlchemyError, self._database.driver_error) as error:
                logger.info("nobody listens for hints: %s", error)
                self._stopping.wait(TROUBLE_SECONDS)

    def _listen(self, driver: Any) -> None:  # noqa: ANN401 - the driver's connection
        driver.execute(f"LISTEN {CHANNEL}")
        self._wake(None)  # first listen, then look: nothing lies in between
        while not self._stopping.is_set():
            for hint in driver.notifies(timeout=LISTEN_SECONDS, stop_after=1):
                self._hear(hint.payload)

    def _hear(self, payload: str) -> None:
        try:
            sender, contexts = json.loads(payload)
            told = None if contexts is None else frozenset(contexts)
        except (ValueError, TypeError):
            sender, told = None, None  # of a hand, or of another version
        if sender != self._sender:
            self._wake(told)

    def _watch_file(self, driver: Any) -> None:  # noqa: ANN401 - the driver's connection
        self._wake(None)
        written, head, pause = None, self._head(driver), LOOK_SECONDS
        while not self._stopping.wait(pause):
            # So often that it should not cost what a statement does.
            before, written = written, self._database.written()
            if written == before:
                pause = min(LOOK_SECONDS_MAX, pause * 1.1)
                continue
            pause = LOOK_SECONDS
            behind, head = head, self._head(driver)
            if head != behind:
                self._wake(self._contexts(driver, behind))

    @staticmethod
    def _head(driver: Any) -> int:  # noqa: ANN401 - the driver's connection
        (head,) = driver.execute(_HEAD).fetchone()
        return head or 0

    @staticmethod
    def _contexts(driver: Any, behind: int) -> Contexts:  # noqa: ANN401 - the driver's connection
        return frozenset(context for (context,) in driver.execute(_CONTEXTS, (behind,)))
