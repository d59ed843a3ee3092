"""A running host keeps every projector moving, and one that catches up keeps its memory flat."""

import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

import pytest
from psycopg.errors import DeadlockDetected
from sqlalchemy import Column, Integer, String, select, update
from sqlalchemy.exc import OperationalError

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Payload,
    ReadRows,
    Recorded,
    Rows,
    WaitTimeout,
    faults,
)
from qntx_es.faults import Crash, crash
from qntx_es.tables import cursors, inbox

BOUND = 20.0
HostOf = Callable[..., Host]


class Moved(Payload, context="moved"):
    """Something moved."""

    n: int = 0


class Odd(Payload, context="odd"):
    """An odd move."""


class Kind(StrEnum):
    """What a row may be about."""

    NEAR = "near"
    FAR = "far"


def make(name: str = "ledger") -> Domain:
    """Make a domain that counts moves, and answers odd ones."""
    domain = Domain(name)
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(counts, moved.entity, moves=1)

    @domain.derive(Moved)
    def answer(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        if moved.payload.n % 2:
            yield domain.attest(Odd(), entity=moved.entity)

    return domain


def moves(count: int, entities: int = 5) -> list[Attestation]:
    """Return moves over a few entities."""
    return [
        Attestation(context="moved", entity=f"e{n % entities}", actor="a", payload={"n": n})
        for n in range(count)
    ]


def counted(host: Host, domain: Domain) -> int:
    """Return how many moves a domain has counted."""
    (table,) = domain.tables.values()
    with host.database.read() as connection:
        return sum(connection.execute(select(table.c.moves)).scalars())


def wait_until(condition: Callable[[], bool]) -> bool:
    """Look until a condition holds or the time is up, and tell which."""
    deadline = time.monotonic() + BOUND
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.02)
    return True


@pytest.mark.hints
def test_what_is_appended_shows_soon(host_of: HostOf) -> None:
    """A running host shows an append of its own and of another host within a bound."""
    domain = make()
    host, other = host_of(domain), host_of(make())

    with host.running():
        own = host.append(moves(10))[-1].position
        host.wait_for(own, "ledger", BOUND)
        assert counted(host, domain) == 10
        foreign = other.append(moves(10))[-1].position
        other.wait_for(foreign, "ledger", BOUND)
        assert counted(host, domain) == 20


def test_a_position_that_nobody_moves_to_times_out_by_name(host_of: HostOf) -> None:
    """Waiting ends with the position that was reached, and where to ask why."""
    host = host_of(make())
    last = host.append(moves(3))[-1].position

    with pytest.raises(WaitTimeout, match="is at 0 and did not reach 3"):
        host.wait_for(last, "ledger", 0.05)


@pytest.mark.sparse
def test_the_cursor_moves_over_what_does_not_match(host_of: HostOf) -> None:
    """A projector of something else is not behind for long, and whoever waits for it is told."""
    host = host_of(Domain("idle"), make())

    with host.running():
        for one in moves(5):
            last = host.append(one).position
        host.wait_for(last, "idle", BOUND)


def test_two_running_hosts_move_one_projector(host_of: HostOf) -> None:
    """Two running hosts over one database project and derive everything once."""
    domain = make()
    host, other = host_of(domain), host_of(make())

    with host.running(), other.running():
        for _ in range(10):
            last = host.append(moves(20))[-1].position
            other.append(moves(20))
        host.wait_for(last, "ledger", BOUND)
    host.catch_up()

    assert counted(host, domain) == 400
    assert len(host.ax(contexts="odd")) == 200


def test_a_deadlock_is_tried_again(postgres_url: str) -> None:
    """A transaction that the database takes back is read and run again, and stops nobody."""
    domain = make()
    host = Host(postgres_url, [domain])
    host.upgrade()
    left = [2]

    def trouble() -> None:
        if left[0]:
            left[0] -= 1
            raise OperationalError("SELECT 1", None, DeadlockDetected("deadlock detected"))

    with faults.planned({"batch.before_move": trouble}), host.running():
        last = host.append(moves(10))[-1].position
        is_there = wait_until(lambda: counted(host, domain) == 10)

    host.close()
    assert last == 10
    assert is_there
    assert left == [0]


@pytest.mark.look_again
def test_what_a_dead_host_left_in_the_inbox_enters_without_another_append(
    postgres_url: str,
) -> None:
    """A host that dies between commit and pass leaves nothing waiting once another one runs."""
    host = Host(postgres_url, [make()])
    host.upgrade()
    host.append(moves(2))

    with faults.planned({"batch.after_commit": crash()}), pytest.raises(Crash):
        host.catch_up()
    with host.database.read() as connection:
        assert connection.execute(select(inbox.c.id)).all()
    # Nothing else is to be derived, so that nothing but looking at the inbox can help.
    with host.database.write() as connection:
        connection.execute(update(cursors).values(position=2))

    with host.running():
        has_entered = wait_until(lambda: host.log.head() == 4)

    host.close()
    assert has_entered


def test_a_kind_of_text_is_a_key_like_any_text(host_of: HostOf) -> None:
    """A key given as a StrEnum is the key of that text, whichever of the two came first."""
    domain = Domain("kinds")
    kinds = domain.table(
        "kinds",
        Column("entity", String, primary_key=True),
        Column("kind", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
        Column("last", String),
    )
    bulk: list[int] = []

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        bulk.append(moved.position)
        kind: str = "near" if moved.payload.n % 2 else Kind.NEAR
        rows.add(kinds, moved.entity, kind, moves=1)
        rows.put(kinds, entity=moved.entity, kind=kind, last=kind)
        rows.put(kinds, entity=moved.entity, kind="far", last="far")

    host = host_of(domain)
    host.append(moves(20))

    host.catch_up()

    assert len(bulk) == 20  # no batch was refused and cut
    with host.database.read() as connection:
        found = sorted(map(tuple, connection.execute(select(kinds))))
    assert found == sorted(
        row for n in range(5) for row in [(f"e{n}", "far", 0, "far"), (f"e{n}", "near", 4, "near")]
    )


def test_memory_stays_flat(sqlite_url: str) -> None:
    """A log three times as long needs no more memory to catch up with."""
    peaks = []
    for count in (20_000, 60_000):
        url = sqlite_url.replace("qntx.db", f"{count}.db")
        command = [sys.executable, __file__, url, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        peaks.append(int(done.stdout))

    assert peaks[1] <= 1.2 * peaks[0]


def main() -> None:
    """Say what catching up with so many moves takes at most, in a process of its own."""
    url, count = sys.argv[1], int(sys.argv[2])
    domain = Domain("ledger")
    counts: Any = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(counts, moved.entity, moves=moved.payload.n % 3)

    host = Host(url, [domain])
    host.upgrade()
    for _ in range(count // 10_000):
        host.append(moves(10_000, 100))
    host._projectors["ledger"].runners[0].size = 2_000  # noqa: SLF001 - where time alone would be too quick
    tracemalloc.start()
    host.catch_up()
    print(tracemalloc.get_traced_memory()[1])  # noqa: T201 - a program's output
    host.close()


if __name__ == "__main__":
    main()
