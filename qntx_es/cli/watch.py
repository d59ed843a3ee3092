"""Shows how far projectors and jobs are, while something else makes them run.

It only looks, from a thread of its own and by the same query as `projections list`, so what is
watched need not know about it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from qntx_es.cli.jobs import count_jobs
from qntx_es.cli.progress import Report, progress
from qntx_es.errors import QntxError
from qntx_es.host import Host

LOOK_SECONDS = 0.2
ENDED = ("succeeded", "failed")
AS_USUAL = ("live", "inline")


@contextmanager
def watched(host: Host) -> Iterator[None]:
    """Show how far everything is until the block ends."""
    over = Event()
    with progress() as report:
        watcher = Thread(target=_watch, args=(host, report, over), name="watch")
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _watch(host: Host, report: Report, over: Event) -> None:
    is_over = False
    while not is_over:
        is_over = over.wait(LOOK_SECONDS)
        # What is wrong with the database is said by whoever works with it.
        with suppress(QntxError):
            _look(host, report)


def _look(host: Host, report: Report) -> None:
    for status in host.statuses():
        note = "" if status.state in AS_USUAL else status.state
        report(status.name, status.position, status.head, note)
    jobs = count_jobs(host)
    if jobs:
        running = jobs.get("running", 0)
        ended = sum(jobs.get(status, 0) for status in ENDED)
        report("jobs", ended, sum(jobs.values()), f"{running} running" if running else "")
