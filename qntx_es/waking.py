"""Hints between processes that the log has grown, so that nobody has to look all the time.

A hint may be lost, come twice or too early: whoever runs looks by himself as well, and that is the
truth. On PostgreSQL it is an empty NOTIFY, sent after the commit and by a thread of its own: within
every append it would make commits queue, one behind the other. The first goes at once, and those
wanted meanwhile are one. On SQLite a number in the file says whether others have committed.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from threading import Event, Lock, Thread
from typing import Any
from weakref import ref

from sqlalchemy.exc import SQLAlchemyError

from qntx_es.database import Database
from qntx_es.errors import QntxError

CHANNEL = "qntx_log"
LISTEN_SECONDS = 1.0
LOOK_SECONDS = 0.02
TROUBLE_SECONDS = 1.0
_NOTIFY = b"SELECT pg_notify($1::text, '')"

logger = logging.getLogger(__name__)


class Hints:
    """Tells other processes that the log has grown."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread: Thread | None = None
        self.forget()
        os.register_at_fork(after_in_child=partial(_forget, ref(self)))

    def send(self) -> None:
        """Send one soon; this neither waits nor fails."""
        if self._database.is_sqlite:
            return  # a commit is the hint
        if self._thread is None:
            self._start()
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
        """Have no thread: after a fork it is the other process's."""
        self._starting = Lock()
        self._wanted = Event()
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
                self._database.call(_NOTIFY, (CHANNEL,))
            except (QntxError, SQLAlchemyError) as error:
                logger.debug("no hint was sent: %s", error)


def _forget(of: "ref[Hints]") -> None:
    hints = of()
    if hints is not None:
        hints.forget()


class Listener:
    """Calls `wake` when another process says that the log has grown, until told to stop."""

    def __init__(self, database: Database, wake: Callable[[], None], stopping: Event) -> None:
        self._database = database
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
        self._wake()  # first listen, then look: nothing lies in between
        while not self._stopping.is_set():
            for _ in driver.notifies(timeout=LISTEN_SECONDS, stop_after=1):
                self._wake()

    def _watch_file(self, driver: Any) -> None:  # noqa: ANN401 - the driver's connection
        seen = None
        while not self._stopping.wait(LOOK_SECONDS):
            (now,) = driver.execute("PRAGMA data_version").fetchone()
            if now != seen:
                seen = now
                self._wake()
