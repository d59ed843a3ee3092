"""An inline read model ends as the fold of its log, whoever appends, whatever goes on meanwhile."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Column, Integer, String, select

from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows, faults

BOUND = 30
HostOf = Callable[..., Host]


class Moved(Payload, context="moved"):
    """Something moved."""


def make(version: int = 1, failing: Callable[[], bool] = lambda: False) -> Domain:
    """Make an inline domain that counts moves, unless it fails just now."""
    domain = Domain("mirror", version=version, inline=True)
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @domain.project(Moved)
    def count(moved: Recorded[Moved], rows: Rows) -> None:
        if failing():
            raise LookupError
        rows.add(counts, moved.entity, moves=1)

    return domain


@pytest.fixture
def host_of(url: str) -> Iterator[HostOf]:
    """Make hosts over one database."""
    with ExitStack() as stack:
        yield lambda *domains: stack.enter_context(Host(url, domains))


def counted(host: Host) -> int:
    """Return how many moves the rows hold."""
    (table,) = host.domain("mirror").tables.values()
    with host.database.read() as connection:
        return sum(connection.execute(select(table.c.moves)).scalars())


def move(host: Host) -> None:
    """Append a move."""
    host.append(Attestation(context="moved", entity="e", actor="a", payload={}))


@pytest.mark.inline_leaves_nothing_out
def test_whoever_appends_in_any_state_of_a_rebuild_nothing_is_left_out(host_of: HostOf) -> None:
    """Hosts with old code, without the domain and with a raising handler append at each state."""
    is_failing = threading.Event()
    old, stranger, failing = host_of(make()), host_of(), host_of(make(2, is_failing.is_set))
    old.upgrade()
    move(old)
    host = host_of(make(2))
    threads: list[threading.Thread] = []

    def append() -> None:
        for one in (old, stranger, failing):
            # Where a swap holds the lock, or SQLite's one writer writes, he waits for its end.
            threads.append(threading.Thread(target=move, args=(one,)))
            threads[-1].start()
        for thread in threads[-3:]:
            thread.join(0.2)

    points = [point for point in faults.POINTS if point.startswith("rebuild.")]
    met: set[str] = set()

    def first(point: str) -> Callable[[], None]:
        def meet() -> None:
            if point not in met:
                met.add(point)
                append()

        return meet

    is_failing.set()
    with faults.planned({point: first(point) for point in points}):
        host.rebuild("mirror")
    for thread in threads:
        thread.join(BOUND)
    append()
    for thread in threads:
        thread.join(BOUND)
    is_failing.clear()
    host.catch_up()

    assert met == set(points)
    assert host.log.head() == 1 + len(threads) + 1  # and that it was rebuilt
    assert counted(host) == 1 + len(threads)
    assert host.rebuild("mirror").is_same
