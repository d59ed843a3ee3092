"""Whoever reads from a replica sees a beginning of the log, as whoever reads at its source."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from qntx_es import Attestation, Recorded
from qntx_es.attestation import Json
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer
from qntx_es.testing import PostgresServer

BOUND = 60
WRITERS = 3
APPENDS = 60


def log_on(url: str) -> tuple[Database, Log]:
    """Open a log."""
    database = Database(url)
    return database, Log(database, Sequencer(database))


@contextmanager
def under_load(log: Log) -> Iterator[threading.Event]:
    """Append from several threads, two at a time; the event is set when all is appended."""
    done = threading.Event()

    def append(name: str) -> None:
        for n in range(APPENDS):
            log.append(
                Attestation(context="seen", entity=f"{name} {n} {which}", actor="a", payload={})
                for which in range(2)
            )

    threads = [threading.Thread(target=append, args=(f"w{n}",)) for n in range(WRITERS)]

    def wait() -> None:
        for thread in threads:
            thread.join(BOUND)
        done.set()

    waiter = threading.Thread(target=wait)
    for thread in (*threads, waiter):
        thread.start()
    yield done
    waiter.join(BOUND)


@contextmanager
def replica_of(server: PostgresServer, url: str) -> Iterator[str]:
    """Let a second server follow the first, and give the URL of the same database there."""
    cluster = server._cluster  # noqa: SLF001 - its programs, its user and its folder
    if cluster is None:
        pytest.skip("the server is not ours to copy")
    folder, programs = cluster.folder, cluster._programs  # noqa: SLF001 - the same

    def run(program: str, *arguments: str) -> None:
        command = (str(programs / program), *arguments)
        process = cluster._open(*command, answer=True)  # noqa: SLF001 - as its own user
        said, _ = process.communicate(timeout=BOUND)
        assert process.returncode == 0, said

    where = ("-h", str(folder), "-p", "5432", "-U", "postgres", "-D", str(folder / "replica"))
    run("pg_basebackup", *where, "-R", "-X", "stream", "-c", "fast", "--no-sync")
    pg_ctl = ("pg_ctl", "-w", "-D", str(folder / "replica"))
    # A reader that is in the way of what arrives is waited for, not cut off.
    options = "-p 5433 -c max_standby_streaming_delay=-1"
    run(*pg_ctl, "-l", str(folder / "replica.log"), "-o", options, "start")
    try:
        yield url.replace("port=5432", "port=5433")
    finally:
        run(*pg_ctl, "-m", "immediate", "stop")


@pytest.mark.replica
@pytest.mark.nightly
def test_a_replica_shows_a_beginning_of_the_log(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """Under load its head is all readable, nothing new comes at or below it, and it catches up."""
    source, log = log_on(postgres_url)
    with closing(source):
        source.upgrade()
        with replica_of(postgres_server, postgres_url) as replicated:
            copy, replica = log_on(replicated)
            looks = 0
            seen: list[Recorded[Json]] = []
            with closing(copy), under_load(log) as done:
                while not (done.is_set() and len(seen) == 2 * WRITERS * APPENDS):
                    head = replica.head()
                    again = list(replica.read())
                    assert [one.position for one in again] == list(range(1, len(again) + 1))
                    assert len(again) >= head >= len(seen)
                    assert again[: len(seen)] == seen
                    looks, seen = looks + (len(again) > len(seen)), again
        assert looks > 3
        entities = [one.entity for one in seen]
        # What was appended together stands together.
        assert [one.rsplit(" ", 1)[0] for one in entities[::2]] == [
            one.rsplit(" ", 1)[0] for one in entities[1::2]
        ]
        assert seen == list(log.read())
