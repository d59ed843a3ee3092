"""Who runs in one process learns at once of what is appended in another, and by himself anyway."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import BigInteger, Column, String, text
from sqlalchemy.orm import Session

from qntx_es import (
    Attestation,
    DatabaseUnavailable,
    Domain,
    Host,
    Payload,
    ReadRows,
    Recorded,
    Rows,
)
from qntx_es.projections import supervisor
from qntx_es.sequencer import Sequencer
from qntx_es.testing import PostgresServer
from qntx_es.waking import CHANNEL, Hints, Listener

BOUND = 30


class Seen(Payload, context="seen"):
    """Something was seen."""


class Counted(Payload, context="counted"):
    """It was counted."""


class Unheard(Payload, context="unheard"):
    """Nobody said this."""


def chain() -> list[Domain]:
    """Return a domain that derives from what is seen, and one that counts what it derives."""
    first, second = Domain("first"), Domain("second")
    counts = second.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("n", BigInteger, nullable=False, default=0),
    )

    @first.derive(Seen)
    def tell(seen: Recorded[Seen], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        yield first.attest(Counted(), entity=seen.entity)

    @second.project(Counted)
    def count(counted: Recorded[Counted], rows: Rows) -> None:
        rows.add(counts, counted.entity, n=1)

    return [first, second]


def said() -> Attestation:
    """Say that something was seen."""
    return Attestation(context="seen", entity="a", actor="x", payload={})


@pytest.fixture
def rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runners look by themselves so rarely that only a hint can be why they look."""
    monkeypatch.setattr(supervisor, "LOOK_SECONDS_FIRST", 10.0 * BOUND)
    monkeypatch.setattr(supervisor, "LOOK_SECONDS_MAX", 10.0 * BOUND)


@pytest.mark.hints
@pytest.mark.usefixtures("rarely")
def test_what_another_process_appends_wakes_who_runs_here(url: str) -> None:
    """A runner that would not look for minutes projects at once, and what follows from it too."""
    with closing(Host(url, chain())) as host:
        host.upgrade()
        with host.running():
            appended = subprocess.run(
                [sys.executable, __file__, url],
                check=True,
                capture_output=True,
                text=True,
                timeout=BOUND,
            )
            position = int(appended.stdout)
            host.wait_for(position, "first", timeout=BOUND)
            while not (derived := host.ax("is counted")):
                pass
            host.wait_for(derived[-1].position, "second", timeout=BOUND)


@pytest.mark.hints
@pytest.mark.usefixtures("rarely")
def test_a_hint_wakes_only_those_it_concerns(url: str) -> None:
    """Who reads none of what is new stays where it is, until somebody waits for it."""
    busy, idle = Domain("busy"), Domain("idle")

    @busy.project(Seen)
    def see(seen: Recorded[Seen], rows: Rows) -> None:
        """See it, and that is all."""

    @idle.project(Unheard)
    def hear(unheard: Recorded[Unheard], rows: Rows) -> None:
        """Hear nothing."""

    with closing(Host(url, [busy, idle])) as host:
        host.upgrade()
        host.catch_up()
        with host.running():
            stands = []
            for _ in range(6):  # at first it looks because it begins to run
                appended = host.append(said()).position
                host.wait_for(appended, "busy", timeout=BOUND)
                stands += [one.position for one in host.statuses() if one.name == "idle"]
            assert len(set(stands[-4:])) == 1
            host.wait_for(appended, "idle", timeout=BOUND)


@pytest.mark.usefixtures("rarely")
def test_what_a_callers_transaction_leaves_wakes_who_runs_here(url: str) -> None:
    """An append in a session is projected right after the commit, by its own process."""
    with closing(Host(url, chain())) as host:
        host.upgrade()
        with host.running(), Session(host.database.engine) as session:
            receipt = host.append(said(), session=session)
            session.commit()
            host.wait_for(receipt.position, "first", timeout=BOUND)


@pytest.mark.hints
def test_a_listener_that_is_cut_off_listens_again(postgres_url: str) -> None:
    """A connection that the server ends is made anew, and hints are heard again."""
    heard = threading.Event()
    stopping = threading.Event()
    with closing(Host(postgres_url)) as host:
        host.upgrade()
        listener = Listener(host.database, lambda _: heard.set(), stopping)
        listener.start()
        try:
            for _ in range(2):
                assert heard.wait(BOUND)  # it looks once whenever it begins to listen
                heard.clear()
                with host.database.alone() as connection:
                    ended = connection.execute(
                        text(
                            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                            "WHERE query LIKE :listen"
                        ),
                        {"listen": f"LISTEN {CHANNEL}%"},
                    )
                    assert ended.scalar_one() == 1
            assert heard.wait(BOUND)
        finally:
            stopping.set()
            listener.join()


@pytest.mark.hints
def test_hints_that_are_early_doubled_or_lost_delay_nothing(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """What comes without a hint, or after a crash of the server, is met by looking."""
    with closing(Host(postgres_url, chain())) as host:
        host.upgrade()
        with host.running():
            with host.database.alone() as connection:
                for _ in range(2):
                    connection.execute(text(f"NOTIFY {CHANNEL}"))
            for is_crashed in (False, True):
                if is_crashed:
                    postgres_server.restart_immediately()
                    while not is_reached(host):
                        pass
                # As a caller of his own engine commits: with nobody there to send a hint.
                with host.database.write() as connection:
                    Sequencer(host.database).drop(connection, [said()])
                before = time.monotonic()
                while len(derived := host.ax("is counted")) < 1 + is_crashed:
                    assert time.monotonic() - before < BOUND
                host.wait_for(derived[-1].position, "second", timeout=BOUND)


def is_reached(host: Host) -> bool:
    """Tell whether the database answers by now."""
    try:
        host.log.head()
    except DatabaseUnavailable:
        return False
    return True


def test_a_fork_sends_hints_of_its_own(postgres_url: str) -> None:
    """In a process forked after the first hint, the next is sent by a thread of its own."""
    heard = threading.Semaphore(0)
    stopping = threading.Event()
    with closing(Host(postgres_url)) as host:
        host.upgrade()
        hints = Hints(host.database)
        # The parent passes its own hints over, and not those of its child.
        listener = Listener(host.database, lambda _: heard.release(), stopping, hints.sender)
        anybody = threading.Semaphore(0)
        other = Listener(host.database, lambda _: anybody.release(), stopping)
        for one, heard_by in ((listener, heard), (other, anybody)):
            one.start()
            assert heard_by.acquire(timeout=BOUND)  # it looks once when it begins
        try:
            hints.send(None)
            assert anybody.acquire(timeout=BOUND)
            child = os.fork()
            if child == 0:
                hints.send(None)
                signal.pause()
            assert heard.acquire(timeout=BOUND)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        finally:
            stopping.set()
            listener.join()
            other.join()
            hints.close()


def main() -> None:
    """Append one attestation, and print its position."""
    with Host(sys.argv[1]) as host:
        print(host.append(said()).position)  # noqa: T201 - a program's output


if __name__ == "__main__":
    main()
