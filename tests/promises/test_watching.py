"""Whoever looks at how projectors stand sees why nothing moves, and is in nobody's way."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from sqlalchemy import Column, Integer, String, event, text, update

from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows, Settings
from qntx_es.projections.lease import take_lease
from qntx_es.projections.status import ProjectorStatus
from qntx_es.sequencer import Sequencer
from qntx_es.tables import cursors, leases

LOOKS = 100


class Moved(Payload, context="moved"):
    """Something moved."""


def make() -> Domain:
    """Make a domain that counts moves."""
    domain = Domain("ledger")
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @domain.project(Moved)
    def count(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(counts, moved.entity, moves=1)

    return domain


def moved() -> Attestation:
    """Return a move."""
    return Attestation(context="moved", entity="e", actor="a", payload={})


@pytest.fixture
def host_of(url: str) -> Iterator[Callable[[], Host]]:
    """Make hosts over one database."""
    hosts: list[Host] = []

    def make_host() -> Host:
        host = Host(url, [make()], settings=Settings(lock_seconds=1.0))
        hosts.append(host)
        host.upgrade()
        return host

    yield make_host
    for host in hosts:
        host.close()


def status_of(host: Host) -> ProjectorStatus:
    """Return how the projector stands."""
    return next(one for one in host.statuses() if one.name == "ledger")


@pytest.mark.watching
def test_looking_takes_no_lock_and_no_new_connection(host_of: Callable[[], Host]) -> None:
    """A hundred looks go on beside whoever holds every cursor, and keep him from nothing."""
    host, other = host_of(), host_of()
    host.append(moved())
    status_of(host)
    opened: list[object] = []
    event.listen(host.database.engine, "connect", lambda *each: opened.append(each))

    with other.database.write() as connection:
        connection.execute(update(cursors).values(token=cursors.c.token + 1))
        lags = {status_of(host).lag for _ in range(LOOKS)}
    with host.database.snapshot() as looking:
        # As long as somebody who looks has not finished, too.
        looking.execute(text("SELECT count(*) FROM qntx_cursors"))
        host.statuses()
        other.catch_up()

    assert lags == {1}
    assert len(opened) <= 1  # a second one, while the first was looking
    assert status_of(host).lag == 0


@pytest.mark.dead_reader
def test_whoever_looks_sees_that_nobody_runs(host_of: Callable[[], Host]) -> None:
    """With every runner dead the lag grows with the log, and the status says whose it is."""
    host = host_of()
    with host.database.write() as connection:
        now = host.database.now(connection)
        assert take_lease(
            connection, "projector:ledger", "killed", now=now, microseconds=60_000_000
        )
    host.append(moved())
    held = status_of(host)
    with host.database.write() as connection:
        connection.execute(update(leases).values(expires_at=now - 1))  # as time has it
    seen = [status_of(host)]
    for _ in range(2):
        host.append(moved())
        seen.append(status_of(host))

    assert (held.holder, held.lag) == ("killed", 1)
    assert [(one.holder, one.lag) for one in seen] == [(None, 1), (None, 2), (None, 3)]
    assert {one.why for one in seen} == {"unowned: no running host holds its lease"}
    assert seen[0].lag_seconds <= seen[1].lag_seconds <= seen[2].lag_seconds


@pytest.mark.dead_reader
def test_what_nobody_sequences_is_counted(postgres_url: str) -> None:
    """With everybody dead between commit and pass the lag stays 0, and the inbox's count grows."""
    with closing(Host(postgres_url, [make()])) as host:
        host.upgrade()
        waiting = []
        for _ in range(3):
            with host.database.write() as connection:
                Sequencer(host.database).drop(connection, [moved()])
            waiting.append(host.log.waiting())

        assert waiting == [1, 2, 3]
        assert status_of(host).lag == 0
