"""Several processes run the same projectors: whichever is killed or stopped, the others go on.

The program at the end of this file is what is killed and stopped, at moments nobody chose. What
counts is in the database: rows, derived attestations and cursors, as of an undisturbed fold.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, String, select

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Payload,
    ReadRows,
    Recorded,
    Rows,
    Settings,
    faults,
)
from qntx_es.projections.status import ProjectorStatus
from qntx_es.tables import cursors

PROCESSES = 3
ENTITIES = 20
PIECE = 40
BOUND = 60
LEASE_SECONDS = 1.0
BY_DAY = ("batch.after_look", "batch.before_flush", "batch.before_commit")
STOPPED_AT = [
    pytest.param(point, marks=() if point in BY_DAY else pytest.mark.nightly)
    for point in faults.POINTS
    if point.startswith("batch.")
]


class Moved(Payload, context="moved"):
    """Something went to an account."""

    amount: int


class Flagged(Payload, context="flagged"):
    """The ledger found a sum to be odd."""

    total: int


def summing(name: str, *, flags: bool) -> Domain:
    """Return a domain that adds up moves, and flags every seventh sum it sees."""
    domain = Domain(name, emits=(Flagged,))
    sums = domain.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("moves", BigInteger, nullable=False, default=0),
        Column("total", BigInteger, nullable=False, default=0),
        Column("last", BigInteger),
    )

    @domain.project(Moved)
    def add(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(sums, moved.entity, moves=1, total=moved.payload.amount)
        rows.put(sums, entity=moved.entity, last=moved.payload.amount)

    if flags:

        @domain.derive(Moved)
        def flag(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:
            row = rows.get(sums, moved.entity)
            assert row is not None
            if row.total % 7 == 0:
                yield domain.attest(Flagged(total=row.total), entity=moved.entity)

    return domain


def counting(name: str) -> Domain:
    """Return a domain that counts flags."""
    domain = Domain(name)
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("flags", BigInteger, nullable=False, default=0),
        Column("last", BigInteger),
    )

    @domain.project(Flagged)
    def count(flagged: Recorded[Flagged], rows: Rows) -> None:
        rows.add(counts, flagged.entity, flags=1)
        rows.put(counts, entity=flagged.entity, last=flagged.payload.total)

    return domain


def domains() -> list[Domain]:
    """Return the four projectors that every process runs."""
    return [
        summing("ledger", flags=True),
        summing("mirror", flags=False),
        counting("audit"),
        counting("watch"),
    ]


def rows_of(host: Host) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of the four read models."""
    with host.database.read() as connection:
        return {
            name: sorted(tuple(row) for row in connection.execute(select(table)))
            for domain in host.domains.values()
            if domain.name != "pulse"
            for name, table in domain.tables.items()
        }


def derived_of(host: Host) -> dict[str, tuple[Any, ...]]:
    """Return what was derived, by id, and all but where it came to stand."""
    return {one.id: (one.entity, one.actor, one.text) for one in host.ax(contexts="flagged")}


class Crowd:
    """The processes that run, and what is done to them; each is forked by the program below."""

    def __init__(self, program: "subprocess.Popen[str]") -> None:
        self._program = program
        self._running = [self._start() for _ in range(PROCESSES)]
        self._stopped: list[tuple[float, int]] = []

    def kill(self, draw: random.Random) -> None:
        """Kill one, and put a new one in its place."""
        victim = self._running.pop(draw.randrange(len(self._running)))
        os.kill(victim, signal.SIGKILL)
        self._stopped = [one for one in self._stopped if one[1] != victim]
        self._running.append(self._start())

    def stop(self, draw: random.Random) -> None:
        """Stop one where it stands; it is woken once its lease is over."""
        asleep = {process for _, process in self._stopped}
        awake = [one for one in self._running if one not in asleep]
        if awake:
            victim = draw.choice(awake)
            os.kill(victim, signal.SIGSTOP)
            self._stopped.append((time.monotonic() + 2 * LEASE_SECONDS, victim))

    def wake(self, *, everybody: bool = False) -> None:
        """Wake those whose time has come."""
        for until, process in list(self._stopped):
            if everybody or time.monotonic() >= until:
                self._stopped.remove((until, process))
                os.kill(process, signal.SIGCONT)

    def end(self) -> None:
        """Kill all that are left."""
        for process in self._running:
            os.kill(process, signal.SIGKILL)

    def _start(self) -> int:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write("start\n")
        self._program.stdin.flush()
        return int(self._program.stdout.readline())


@contextmanager
def crowd(url: str) -> Iterator[Crowd]:
    """Run the program below in several processes, and leave none behind."""
    with subprocess.Popen(
        [sys.executable, __file__, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        processes = Crowd(program)
        try:
            yield processes
        finally:
            processes.end()
            program.kill()


@pytest.mark.derive_once
@pytest.mark.parametrize(
    ("kills", "stops"),
    [(8, 4), pytest.param(100, 20, marks=pytest.mark.nightly)],
)
def test_whoever_is_killed_or_stopped_the_rest_go_on(
    postgres_url: str, tmp_path: Path, kills: int, stops: int
) -> None:
    """After any kills and stops of three processes, all is as one undisturbed fold left it."""
    draw = random.Random(kills)  # noqa: S311 - moments, not secrets
    host = Host(postgres_url, domains())
    host.upgrade()
    moves = []
    deeds = ["kill"] * kills + ["stop"] * stops
    draw.shuffle(deeds)
    with closing(host), crowd(postgres_url) as processes:
        for deed in deeds:
            some = [
                Attestation(
                    context="moved",
                    entity=f"account {draw.randrange(ENTITIES)}",
                    actor="x",
                    payload={"amount": draw.randint(-50, 50)},
                )
                for _ in range(PIECE)
            ]
            moves += some
            host.append(some)
            processes.wake()
            getattr(processes, deed)(draw)
        position = host.append(moves[-1]).position
        for domain in ("ledger", "mirror"):
            host.wait_for(position, domain, timeout=BOUND)
        processes.wake(everybody=True)
        head = settled(host)

        undisturbed = Host(f"sqlite:///{tmp_path / 'undisturbed.db'}", domains())
        with closing(undisturbed):
            undisturbed.upgrade()
            undisturbed.append(moves)
            undisturbed.catch_up()
            assert rows_of(host) == rows_of(undisturbed)
            assert derived_of(host) == derived_of(undisturbed)
            assert head == undisturbed.log.head()
        assert [one.position for one in host.log.read()] == list(range(1, head + 1))


def settled(host: Host) -> int:
    """Wait until every projector stands at a head that does not move any more."""
    while True:
        head = host.log.head()
        for domain in host.domains:
            host.wait_for(head, domain, timeout=BOUND)
        if host.log.head() == head and not host.log.waiting():
            with host.database.read() as connection:
                at = connection.execute(select(cursors.c.position)).scalars().all()
            assert set(at) == {head}
            return head


@pytest.mark.zombie
@pytest.mark.parametrize("point", STOPPED_AT)
def test_one_that_is_stopped_inside_a_batch_holds_up_nobody(postgres_url: str, point: str) -> None:
    """Within the lease another goes on; the one that is woken finds itself late."""
    settings = Settings(lease_seconds=LEASE_SECONDS)
    command = [sys.executable, __file__, postgres_url, point]
    with closing(Host(postgres_url, domains(), settings=settings)) as host:
        host.upgrade()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                moves = [moved(number) for number in range(PIECE)]
                position = host.append(moves)[-1].position
                _, status = os.waitpid(process.pid, os.WUNTRACED)
                assert os.WIFSTOPPED(status)

                with host.running():
                    for domain in host.domains:
                        host.wait_for(position, domain, timeout=BOUND)
                    os.kill(process.pid, signal.SIGCONT)
                    settled(host)
            finally:
                process.kill()
        rows = rows_of(host)["mirror_sums"]
        assert [row[:3] for row in rows] == [("account", PIECE, sum(range(PIECE)))]


@pytest.mark.dead_reader
def test_with_every_runner_killed_the_lag_grows_and_the_status_says_why(postgres_url: str) -> None:
    """Nobody remembers a head or a lease for long: both are read from the tables, as they are."""
    with closing(Host(postgres_url, domains())) as host:
        host.upgrade()
        with crowd(postgres_url):
            host.wait_for(host.append(moved(1)).position, "mirror", timeout=BOUND)

        lags = []
        for amount in range(3):
            host.append(moved(amount))
            lags.append(status_of(host, "mirror").lag)
        while status_of(host, "mirror").holder is not None:
            time.sleep(0.05)

        assert lags == [lags[0], lags[0] + 1, lags[0] + 2]
        assert status_of(host, "mirror").why == "unowned: no running host holds its lease"


def status_of(host: Host, name: str) -> ProjectorStatus:
    """Return how a projector stands."""
    return next(one for one in host.statuses() if one.name == name)


def moved(amount: int) -> Attestation:
    """Move an amount to the one account there is."""
    return Attestation(context="moved", entity="account", actor="x", payload={"amount": amount})


def stop_once() -> Callable[[], None]:
    """Return what stops this process the first time."""
    first = [True]

    def stop() -> None:
        if first.pop() if first else False:
            os.kill(os.getpid(), signal.SIGSTOP)

    return stop


def run(url: str, *points: str) -> None:
    """Run until killed; at a point that is named, stop once."""
    host = Host(url, domains(), settings=Settings(lease_seconds=LEASE_SECONDS))
    with faults.planned({point: stop_once() for point in points}), host.running():
        print(os.getpid(), flush=True)  # noqa: T201 - a program's output
        while True:
            signal.pause()


def main() -> None:
    """Run, if a point is named; else let a process of its own run for each line that is read."""
    url, *points = sys.argv[1:]
    if points:
        run(url, *points)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who are killed
    for _ in sys.stdin:
        if os.fork() == 0:
            run(url)


if __name__ == "__main__":
    main()
