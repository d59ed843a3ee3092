"""Processes that run the same domains beside this one, as `run --workers` has them.

Each is a host like any other: leases share the projectors and the ranges of entities among them. A
worker ends when its pipe does, so none outlives whoever started it, however that one ended; and one
that dies is started anew, later and later.
"""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Event, Thread

from qntx_es.cli.session import TIMED, log_to_stderr
from qntx_es.config import Settings
from qntx_es.host import Host

PAUSE_SECONDS_FIRST = 1.0
PAUSE_SECONDS_MAX = 60.0
# Beyond what a host takes to drain.
KILL_SECONDS = 5.0

logger = logging.getLogger("qntx_es.workers")


@contextmanager
def beside(settings: Settings, number: int) -> Iterator[None]:
    """Keep so many workers running for the block's length, and drain them at its end."""
    ending = Event()
    keepers = [Thread(target=_keep, args=(settings, ending), name="worker") for _ in range(number)]
    for keeper in keepers:
        keeper.start()
    try:
        yield
    finally:
        ending.set()
        for keeper in keepers:
            keeper.join()


def share_out(host: Host, workers: int) -> None:
    """Cut what may be cut so that each worker gets a range of it; what is cut finer stays."""
    ranges = {one.name: len(one.ranges) for one in host.statuses()}
    for name, domain in host.domains.items():
        is_cut = domain.by_entity and not domain.inline
        if is_cut and ranges.get(name, 1) < workers:
            host.cut(name, workers)


def run_until_told(settings: Settings, told: Connection) -> None:
    """Run a host until the other end of the pipe closes: what a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first one tells
    log_to_stderr(TIMED, logging.INFO)
    host = Host(settings.database_url, domains=settings.domains, settings=settings)
    with host, host.running(), suppress(EOFError):
        told.recv()


def _keep(settings: Settings, ending: Event) -> None:
    pause = PAUSE_SECONDS_FIRST
    while not ending.is_set():
        process, ours = _started(settings)
        while process.is_alive() and not ending.wait(0.2):
            pass
        ours.close()
        process.join(settings.drain_seconds + KILL_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        if not ending.is_set():
            logger.error("a worker ended by itself (%s), and is started anew", process.exitcode)
            ending.wait(pause)
            pause = min(PAUSE_SECONDS_MAX, pause * 2)


def _started(settings: Settings) -> tuple[SpawnProcess, Connection]:
    anew = get_context("spawn")  # a fork would have our threads' locks
    ours, theirs = anew.Pipe()
    process = anew.Process(target=run_until_told, args=(settings, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours
