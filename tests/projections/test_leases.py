"""Of several running hosts one moves a projector; the others stand by, and take over."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Column, Integer, String, func, select, text

from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows, Settings, faults
from qntx_es.errors import LeaseLost
from qntx_es.projections.lease import Leases, take_lease
from qntx_es.projections.status import ProjectorStatus
from qntx_es.tables import cursors, leases

BOUND = 30.0
LEASE_SECONDS = 1.0
SHORT_SECONDS = 0.5


class Moved(Payload, context="moved"):
    """Something moved."""


def make(handler: Callable[[], object] = lambda: None) -> Domain:
    """Make a domain that counts moves, and does something more for each."""
    domain = Domain("ledger")
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @domain.project(Moved)
    def count(moved: Recorded[Moved], rows: Rows) -> None:
        handler()
        rows.add(counts, moved.entity, moves=1)

    return domain


@pytest.fixture
def host_of(url: str) -> Iterator[Callable[..., Host]]:
    """Make hosts over one database whose leases are short."""
    with ExitStack() as stack:

        def make_host(domain: Domain, **settings: float) -> Host:
            chosen = Settings(**{"lease_seconds": LEASE_SECONDS, **settings})
            host = stack.enter_context(Host(url, [domain], settings=chosen))
            host.upgrade()
            return host

        yield make_host


def move(host: Host, count: int = 1) -> int:
    """Append moves, and return the position of the last."""
    said = [Attestation(context="moved", entity="e", actor="a", payload={}) for _ in range(count)]
    return host.append(said)[-1].position


def status_of(host: Host) -> ProjectorStatus:
    """Return how the projector stands."""
    return next(one for one in host.statuses() if one.name == "ledger")


def wait_until(is_so: Callable[[], object]) -> None:
    """Look until it is so; fail where it never is."""
    deadline = time.monotonic() + BOUND
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def moves_of(host: Host) -> int:
    """Return how many moves the rows hold."""
    with host.database.read() as connection:
        table = host.domain("ledger").tables["ledger_counts"]
        found: list[int] = [row.moves for row in connection.execute(select(table.c.moves))]
    return sum(found)


def token_of(host: Host) -> int:
    """Return the number that fences."""
    with host.database.read() as connection:
        asked = select(cursors.c.token).where(cursors.c.domain == "ledger")
        return int(connection.execute(asked).scalar_one())


def test_the_second_host_stands_by_and_takes_over_when_the_first_drains(
    host_of: Callable[..., Host],
) -> None:
    """A lease is given back at the end, so another host goes on without waiting for it to lapse."""
    first, second = host_of(make(), lease_seconds=60), host_of(make(), lease_seconds=60)
    with ExitStack() as stack:
        with first.running():
            wait_until(lambda: status_of(first).holder)
            stack.enter_context(second.running())
            first.wait_for(move(second), "ledger")

            assert status_of(first).state == "live"
            wait_until(lambda: status_of(second).state == "standby")

        second.wait_for(move(second), "ledger", timeout=BOUND)
        assert status_of(second).state == "live"

    assert status_of(second).holder is None


@pytest.mark.leases
def test_a_lease_is_kept_as_long_as_its_holder_lives(host_of: Callable[..., Host]) -> None:
    """Idle for ten lifetimes of its lease, a host still has it, and nobody was fenced."""
    hosts = [host_of(make(), lease_seconds=SHORT_SECONDS) for _ in range(2)]
    first, second = hosts
    with first.running():
        first.wait_for(move(first), "ledger")
        wait_until(lambda: status_of(first).holder)
        held = token_of(first)
        with second.running():
            until = time.monotonic() + 10 * SHORT_SECONDS
            wait_until(lambda: time.monotonic() > until)

            assert token_of(first) == held
            assert status_of(second).state == "standby"


def test_a_lease_that_nobody_renews_goes_to_whoever_stands_by(host_of: Callable[..., Host]) -> None:
    """What a dead holder has left lapses, and the projector moves on."""
    host = host_of(make())
    with host.database.write() as connection:
        now = host.database.now(connection)
        assert take_lease(connection, "projector:ledger", "gone", now=now, microseconds=400_000)

    with host.running():
        began = time.monotonic()
        host.wait_for(move(host), "ledger", timeout=BOUND)

        assert time.monotonic() - began < BOUND / 2
        assert status_of(host).state == "live"


@pytest.mark.zombie
def test_whoever_lost_the_lease_commits_nothing(host_of: Callable[..., Host]) -> None:
    """A batch that was in hand when another took the lease is undone as a whole."""
    host = host_of(make())
    move(host, 3)
    (runner,) = host._projectors["ledger"].runners  # noqa: SLF001 - one batch, cut in the middle
    mine = Leases(host.database, seconds=60, batch_seconds=60)
    theirs = Leases(host.database, seconds=60, batch_seconds=60)
    other = host_of(make())
    (rival,) = other._projectors["ledger"].runners  # noqa: SLF001 - the one that takes it
    host._projectors["ledger"].lease_from(mine)  # noqa: SLF001 - as a running host does
    other._projectors["ledger"].lease_from(theirs)  # noqa: SLF001 - as above

    def steal() -> None:
        if not rival.is_holding:
            mine.give_back("projector:ledger")
            rival.advance(eager=True)

    with faults.planned({"batch.after_read": steal}), pytest.raises(LeaseLost):
        runner.advance(eager=True)

    assert moves_of(host) == 3
    mine.close()
    theirs.close()


def test_catching_up_waits_for_whoever_holds_the_lease(host_of: Callable[..., Host]) -> None:
    """Where a host runs, another that catches up returns once that one is there."""
    seen: list[str] = []
    runs = host_of(make(lambda: seen.append("runs")))
    other = host_of(make(lambda: seen.append("other")))
    with runs.running():
        wait_until(lambda: status_of(runs).holder)
        move(other, 5)
        other.catch_up()

        assert moves_of(other) == 5
        assert seen == ["runs"] * 5


def test_a_batch_that_does_not_end_is_fenced_and_shown(host_of: Callable[..., Host]) -> None:
    """A handler that hangs makes its projector stuck, by name; what it was at never commits."""
    let_go = threading.Event()
    calls: list[Any] = []

    def hang() -> None:
        calls.append(None)
        if len(calls) == 1:
            assert let_go.wait(BOUND)

    host = host_of(make(hang), batch_seconds=0.2, lock_seconds=BOUND)
    position = move(host)
    with host.running():
        wait_until(lambda: status_of(host).state == "stuck")
        found = status_of(host)
        assert found.failure is not None
        assert (found.failure.handler, found.failure.position) == ("count", position)
        assert "let_go.wait" in found.failure.traceback
        assert moves_of(host) == 0

        let_go.set()
        host.wait_for(position, "ledger", timeout=BOUND)

    assert (moves_of(host), len(calls)) == (1, 2)


@pytest.mark.parametrize("held", ["qntx_cursors WHERE domain = 'ledger'", "ledger_counts"])
def test_whoever_holds_a_lock_is_named(postgres_url: str, held: str) -> None:
    """Where a projector waits for somebody's transaction, its status says whose, and how long."""
    with Host(postgres_url, [make()]) as host:
        host.upgrade()
        with host.running():
            host.wait_for(move(host), "ledger")
            with host.database.engine.connect() as somebody:
                pid = somebody.execute(select(func.pg_backend_pid())).scalar_one()
                somebody.execute(text(f"SELECT * FROM {held} FOR UPDATE"))  # noqa: S608 - of these two
                move(host)

                wait_until(lambda: "a lock held by" in (status_of(host).why or ""))

                assert f"process {pid}, for " in (status_of(host).why or "")


@pytest.mark.crash_at_every_call
def test_a_host_ends_though_a_handler_does_not(host_of: Callable[..., Host]) -> None:
    """Past the time to drain, what is in hand is cut off like a kill, and its lease lapses."""
    let_go, is_in = threading.Event(), threading.Event()

    def hang() -> None:
        is_in.set()
        assert let_go.wait(BOUND)

    host = host_of(make(hang), drain_seconds=0.1)
    with host.running():
        move(host)
        assert is_in.wait(BOUND)
    with host.database.read() as connection:
        held = connection.execute(select(leases.c.holder)).all()
    let_go.set()

    assert held == []
    wait_until(lambda: not any("ledger" in one.name for one in threading.enumerate()))
    assert moves_of(host) == 0


@pytest.mark.leases
def test_clocks_that_are_apart_or_jump_change_nothing(url: str) -> None:
    """Hosts an hour apart, one of whose clocks leaps to and fro, count each move once."""
    hour = 3_600 * 10**9
    leaps = [0]

    def leaping() -> int:
        return time.time_ns() + leaps[0]

    def behind() -> int:
        return time.time_ns() - hour

    with ExitStack() as stack:
        settings = Settings(lease_seconds=LEASE_SECONDS)
        hosts = [
            stack.enter_context(Host(url, [make()], settings=settings, clock=clock))
            for clock in (leaping, behind)
        ]
        hosts[0].upgrade()
        for host in hosts:
            stack.enter_context(host.running())
        for leap in (0, hour, -hour, 2 * hour, 0):
            leaps[0] = leap
            for host in hosts:
                host.wait_for(move(host, 3), "ledger", timeout=BOUND)

        assert moves_of(hosts[0]) == 30
