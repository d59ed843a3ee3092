"""A domain that says `rebuild="auto"` is rebuilt by whoever finds its tables outdated."""

import logging
import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import Column, Integer, String, select

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Payload,
    ProjectorOutdated,
    Recorded,
    Rows,
    faults,
)
from qntx_es.faults import Gate, stall
from qntx_es.projections import outdated
from qntx_es.projections.status import ProjectorStatus

BOUND = 20.0
HostOf = Callable[..., Host]


class Moved(Payload, context="moved"):
    """Something moved."""


def make(
    version: int,
    *,
    rebuild: str = "auto",
    fails: Callable[[], bool] = lambda: False,
    inline: bool = False,
) -> Domain:
    """Make a domain that counts moves, by as many as its version."""
    domain = Domain("ledger", version=version, rebuild=rebuild, inline=inline)  # type: ignore[arg-type]
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        if fails():
            message = "not yet"
            raise ValueError(message)
        rows.add(counts, moved.entity, moves=version)

    return domain


def append(host: Host, count: int = 5) -> None:
    """Append some moves of one thing."""
    host.append(
        Attestation(context="moved", entity="a", actor="x", payload={}) for _ in range(count)
    )


def moves(host: Host) -> int:
    """Return what the live table has."""
    (table,) = make(1).tables.values()
    with host.database.read() as connection:
        return int(connection.execute(select(table.c.moves)).scalar_one())


def status(host: Host) -> ProjectorStatus:
    """Return how the projector stands."""
    return {one.name: one for one in host.statuses()}["ledger"]


def wait_until(holds: Callable[[], bool]) -> bool:
    """Look until something holds, and return whether it ever did."""
    deadline = time.monotonic() + BOUND
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look, and try again, often."""
    monkeypatch.setattr(outdated, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(outdated, "TRY_AGAIN_SECONDS_FIRST", 0.05)
    monkeypatch.setattr(outdated, "TRY_AGAIN_SECONDS_MAX", 0.1)


def old_host(host_of: HostOf, *, inline: bool = False) -> Host:
    """Run version 1 over five moves."""
    host = host_of(make(1, inline=inline))
    append(host)
    host.catch_up()
    return host


@pytest.mark.parametrize("inline", [False, True])
def test_a_running_host_rebuilds_what_it_finds_outdated(host_of: HostOf, *, inline: bool) -> None:
    """The old rows are there until the new ones are, and the projector goes on with these."""
    old_host(host_of, inline=inline)
    new = host_of(make(2, inline=inline))
    seen = []

    with faults.planned({"rebuild.before_swap": lambda: seen.append(moves(new))}), new.running():
        assert wait_until(lambda: status(new).version == 2)
        append(new, 1)
        new.wait_for(new.log.head(), "ledger", BOUND)

    assert seen == [5]
    assert moves(new) == 12
    assert (status(new).state, status(new).failure) == ("inline" if inline else "live", None)
    assert len(new.ax(contexts="qntx.rebuilt")) == 1


def test_of_several_hosts_one_rebuilds(host_of: HostOf, caplog: pytest.LogCaptureFixture) -> None:
    """The others find it at work, stand by, and go on with what it made."""
    old_host(host_of)
    hosts = [host_of(make(2)) for _ in range(2)]
    gate = Gate(seconds_max=BOUND)
    caplog.set_level(logging.INFO, logger=outdated.__name__)
    with faults.planned({"rebuild.after_fill": stall(gate)}), hosts[0].running():
        gate.wait()
        with hosts[1].running():
            assert wait_until(lambda: "are held by" in caplog.text)
            gate.open()
            assert wait_until(lambda: status(hosts[1]).version == 2)
            append(hosts[1], 1)
            hosts[1].wait_for(hosts[1].log.head(), "ledger", BOUND)

    assert moves(hosts[0]) == 12
    assert len(hosts[0].ax(contexts="qntx.rebuilt")) == 1


def test_a_rebuild_that_fails_is_told_and_tried_again(
    host_of: HostOf, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log and its status say why; live goes on serving; once mended it is done."""
    old_host(host_of)
    is_broken = [True]
    new = host_of(make(2, fails=lambda: is_broken[0]))

    def failures() -> int:
        return sum(one.name == outdated.__name__ for one in caplog.records)

    with caplog.at_level(logging.ERROR, logger=outdated.__name__), new.running():
        assert wait_until(lambda: failures() >= 2)
        found = status(new)
        assert found.state in ("outdated", "rebuilding")
        assert found.version == 1
        assert found.failure is not None
        assert (found.failure.handler, found.failure.position) == ("move", 1)
        assert "not yet" in caplog.text
        assert moves(new) == 5
        is_broken[0] = False
        assert wait_until(lambda: status(new).version == 2)

    assert (status(new).failure, moves(new)) == (None, 10)


def test_catching_up_rebuilds_in_the_calling_thread(host_of: HostOf) -> None:
    """Who asks a host to catch up has the new rows when it returns; where it fails, he is told."""
    old_host(host_of)
    is_broken = [True]
    new = host_of(make(2, fails=lambda: is_broken[0]))
    append(new, 1)

    with pytest.raises(ProjectorOutdated, match="projections status ledger"):
        new.catch_up()
    assert (moves(new), status(new).failure is None) == (5, False)
    is_broken[0] = False
    new.catch_up()

    assert (moves(new), status(new).version, status(new).lag) == (12, 2, 0)


def test_who_is_not_asked_rebuilds_nothing(host_of: HostOf) -> None:
    """By default, and where somebody has paused the projector, it is left to people."""
    old = old_host(host_of)
    asking, paused = host_of(make(2, rebuild="ask")), host_of(make(2))

    with pytest.raises(ProjectorOutdated, match="projections rebuild ledger"):
        asking.catch_up()
    old.pause("ledger")
    with pytest.raises(ProjectorOutdated):
        paused.catch_up()
    old.resume("ledger")

    assert status(old).version == 1
    assert "rebuild='never'" in make(1, rebuild="never").problems()[0]


def test_a_host_that_stops_does_not_wait_for_the_rebuild(host_of: HostOf) -> None:
    """What it had begun is dropped, and live is as it was."""
    old_host(host_of)
    new = host_of(make(2))
    is_held = threading.Event()

    def hold() -> None:
        is_held.set()
        wait_until(new._stopping.is_set)  # noqa: SLF001 - until the host is told to stop

    with faults.planned({"rebuild.in_fill": hold}), new.running():
        assert is_held.wait(BOUND)

    assert (status(new).version, status(new).rebuild, moves(new)) == (1, None, 5)
