"""`qntx-es run`: projectors, jobs and schedules, until told to stop.

Told once, it finishes the batches and jobs in hand; told twice, or kept waiting too long, it ends
at once, which is a crash at worst: what was in hand is done again by whoever runs next.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Timer
from typing import Annotated

import typer

from qntx_es.cli.domains import NONE_ENABLED
from qntx_es.cli.exits import INTERRUPTED
from qntx_es.cli.flags import command
from qntx_es.cli.output import complain
from qntx_es.cli.session import TIMED, Session, log_to_stderr
from qntx_es.cli.workers import beside, share_out
from qntx_es.errors import QntxError
from qntx_es.host import Host

DRAIN_SECONDS = 10.0
DRAIN_SECONDS_MAX = 86_400.0
CODES = {signal.SIGTERM: 0, signal.SIGINT: INTERRUPTED}


class Told:
    """Whether somebody asked for the end, and how."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._event = Event()

    @property
    def code(self) -> int:
        """The exit code that answers the signal."""
        return CODES[self.signal] if self.signal else 0

    def wait(self) -> None:
        """Return when told."""
        self._event.wait()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for the block's length."""
        before = {number: signal.signal(number, self._hear) for number in CODES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: object) -> None:
        if self.signal is not None:
            end_now(CODES[signal.Signals(number)])
        self.signal = signal.Signals(number)
        self._event.set()


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "run")(run)


def run(
    session: Session,
    *,
    drain_timeout: Annotated[
        float,
        typer.Option(
            min=0, max=DRAIN_SECONDS_MAX, metavar="SECONDS", help="How long the end may take."
        ),
    ] = DRAIN_SECONDS,
    workers: Annotated[
        int,
        typer.Option(
            min=1, max=64, metavar="N", help="How many processes share the work, this one included."
        ),
    ] = 1,
) -> None:
    """Run projectors, jobs and schedules.

    SIGTERM or Ctrl-C ends it, once what is in hand is done; a second one ends it at once.
    """
    log_to_stderr(TIMED, logging.INFO)
    told = Told()
    with session.host() as host:
        if not session.settings.domains:
            complain(NONE_ENABLED)
        if workers > 1:
            share_out(host, workers)
        with told.listening(), beside(session.settings, workers - 1):
            _run(session, host, told, drain_timeout)
        _tell_end(session, host, told)
    raise typer.Exit(told.code)


def _run(session: Session, host: Host, told: Told, drain_timeout: float) -> None:
    drain = Timer(drain_timeout, lambda: end_now(told.code))
    drain.daemon = True
    with host.running():
        _tell_start(session, host)
        told.wait()
        drain.start()
    drain.cancel()


def end_now(code: int) -> None:
    """End without waiting for anything, as a crash would."""
    complain("ended at once: what was in hand is done again by the next run")
    sys.stdout.flush()
    os._exit(code)


def _tell_start(session: Session, host: Host) -> None:
    versions = {name: domain.version for name, domain in sorted(host.domains.items())}
    session.out.record({"state": "running", "database": host.database.name, "domains": versions})
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    session.out.say(f"running on {host.database.name}: {named}. Ctrl-C ends it")
    sys.stdout.flush()


def _tell_end(session: Session, host: Host, told: Told) -> None:
    positions: dict[str, int] = {}
    with suppress(QntxError):  # a database that is gone does not keep us from ending well
        positions = {one.name: one.position for one in host.statuses()}
    heard = told.signal.name if told.signal else ""
    session.out.record({"state": "stopped", "signal": heard, "positions": positions})
    named = ", ".join(f"{name} at {position}" for name, position in positions.items())
    session.out.say(f"stopped by {heard}: {named or 'the database cannot be reached'}")
