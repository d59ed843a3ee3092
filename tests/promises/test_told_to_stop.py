"""Told to stop anywhere, a process ends in time, and what it leaves is as after any crash.

The program at the end of this file tells itself so, at each point that a run passes. A process
that is told finishes what it has in hand, so nothing is lost, nothing comes twice, and whoever
runs next needs nobody's lease to lapse.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import BigInteger, Column, String, select

from qntx_es import Attestation, Domain, Host, Payload, ReadRows, Recorded, Rows, Settings, faults

COUNT = 12
BOUND = 100
DRAIN_SECONDS = 5.0
BY_DAY = ["batch.in_handler", "batch.before_commit"]
BY_NIGHT = [
    "lease.before_take",
    "lease.before_renew",
    *(one for one in faults.POINTS if one.startswith("batch.") and one not in BY_DAY),
]


class Moved(Payload, context="moved"):
    """Something moved."""

    amount: int


class Odd(Payload, context="odd"):
    """An odd amount, and how many moves there were by then."""

    moves: int


def make() -> Domain:
    """Make a domain that counts, and says what it has counted."""
    domain = Domain("ledger", emits=(Odd,))
    accounts = domain.table(
        "accounts",
        Column("entity", String, primary_key=True),
        Column("moves", BigInteger, nullable=False, default=0),
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(accounts, moved.entity, moves=1)

    @domain.derive(Moved)
    def say_odd(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:
        row = rows.get(accounts, moved.entity)
        assert row is not None
        if moved.payload.amount % 2:
            yield domain.attest(Odd(moves=row.moves), entity=moved.entity)

    return domain


def run(url: str, point: str) -> None:
    """Append, run, and be told to stop at the first passing of a point."""
    settings = Settings(lease_seconds=1, drain_seconds=DRAIN_SECONDS)
    with closing(Host(url, [make()], settings=settings)) as host:
        said = [
            Attestation(context="moved", entity=point, actor="x", payload={"amount": n})
            for n in range(COUNT)
        ]
        host.append(said)
        tell = faults.Action(lambda: os.kill(os.getpid(), signal.SIGTERM))
        with faults.planned({point: tell}):
            host.run()


def main() -> None:
    """Run in a process of its own for each point, and print how it ended, and after how long."""
    url, *points = sys.argv[1:]
    for point in points:
        begun = time.monotonic()
        process = os.fork()
        if process == 0:
            signal.alarm(BOUND)
            run(url, point)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        ended = os.waitstatus_to_exitcode(status)
        print(point, ended, time.monotonic() - begun, flush=True)  # noqa: T201 - a program's output


@pytest.mark.leases
@pytest.mark.parametrize("points", [BY_DAY, pytest.param(BY_NIGHT, marks=pytest.mark.nightly)])
def test_a_process_told_to_stop_anywhere_ends_in_time_and_leaves_nothing_half(
    url: str, points: list[str]
) -> None:
    """It ends by itself within its time; then one catch-up makes the rows of an undisturbed one."""
    with closing(Host(url, [make()])) as host:
        host.upgrade()
        ran = subprocess.run(
            [sys.executable, __file__, url, *points],
            capture_output=True,
            text=True,
            check=True,
            timeout=BOUND,
        )
        told = [line.split() for line in ran.stdout.splitlines()]
        assert [(point, ended) for point, ended, _ in told] == [(point, "0") for point in points]
        assert max(float(seconds) for *_, seconds in told) < DRAIN_SECONDS

        host.catch_up()

        (accounts,) = host.domain("ledger").tables.values()
        with host.database.read() as connection:
            rows = {row.entity: row.moves for row in connection.execute(select(accounts))}
        assert rows == dict.fromkeys(points, COUNT)
        answers = [(one.entity, one.payload["moves"]) for one in host.ax(contexts="odd")]
        assert sorted(answers) == sorted((point, n) for point in points for n in range(2, 13, 2))
        assert host.verify("ledger").is_same


if __name__ == "__main__":
    main()
