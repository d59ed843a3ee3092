"""SIGKILL is no event: a process that dies anywhere in a catch-up leaves nothing half done.

The program at the end of this file is what is killed: it forks a process for each line it reads,
so that dying twenty times costs one start-up.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, BigInteger, Column, Float, Integer, String, select

from qntx_es import Attestation, Domain, Host, Payload, ReadRows, Recorded, Rows, faults
from qntx_es.faults import kill
from qntx_es.projections.batch import Batches
from qntx_es.tables import cursors

KILLS = 28  # two for each point
MOVES = 3_000
BATCH = 25
BOUND = 60
POINTS = [point for point in faults.POINTS if point.startswith(("batch.", "append.", "pass."))]
# What catching up of domains that are not inline passes by; appends of callers are others' tests.
POINTS = [point for point in POINTS if not point.startswith("append.")]
POINTS.remove("pass.before_inline")


class Moved(Payload, context="moved"):
    """Something went from one account to another."""

    amount: int
    rate: float
    day: int
    note: dict[str, Any] | None = None


class Flagged(Payload, context="flagged"):
    """The ledger found a move to be odd."""

    amount: int
    balance: int


class Noticed(Payload, context="noticed"):
    """The audit saw a flag."""

    flags: int


ledger = Domain("ledger", emits=("moved", "flagged"))
accounts = ledger.table(
    "accounts",
    Column("entity", String, primary_key=True),
    Column("moves", Integer, nullable=False, default=3),
    Column("balance", BigInteger, nullable=False, default=0),
    Column("weight", Float),
    Column("note", JSON),
)
days = ledger.table(
    "days",
    Column("entity", String, primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("moves", Integer, nullable=False, default=0),
    Column("open", Integer),
)
audit = Domain("audit", emits=("noticed",))
flags = audit.table(
    "flags",
    Column("entity", String, primary_key=True),
    Column("flags", Integer, nullable=False, default=0),
    Column("last", String),
)


@ledger.project(Moved)
def move(moved: Recorded[Moved], rows: Rows) -> None:
    """Count it in, in all the ways there are."""
    said = moved.payload
    rows.add(accounts, moved.entity, moves=1, balance=said.amount)
    before = rows.get(accounts, moved.entity)
    weight = None if said.day % 7 == 0 else ((before and before.weight) or 0.0) + said.rate
    rows.put(accounts, entity=moved.entity, weight=weight, note=said.note)
    rows.add(days, moved.entity, said.day, moves=1, open=1)
    if said.amount % 11 == 0:
        rows.delete(days, moved.entity, said.day)


@ledger.derive(Moved)
def flag(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:
    """Say what is odd, with the balance as of this very move."""
    account = rows.get(accounts, moved.entity)
    assert account is not None
    for _ in range(moved.payload.amount % 3):
        said = Flagged(amount=moved.payload.amount, balance=account.balance)
        yield ledger.attest(said, entity=moved.entity)


@audit.project(Flagged)
def note(flagged: Recorded[Flagged], rows: Rows) -> None:
    """Count the flags of an account."""
    rows.add(flags, flagged.entity, flags=1)
    rows.put(flags, entity=flagged.entity, last=flagged.id)


@audit.derive(Flagged)
def notice(flagged: Recorded[Flagged], rows: ReadRows) -> Iterator[Attestation]:
    """Answer every fifth flag."""
    row = rows.get(flags, flagged.entity)
    assert row is not None
    if row.flags % 5 == 0:
        yield audit.attest(Noticed(flags=row.flags), entity=flagged.entity)


def small_batches(host: Host) -> Host:
    """Keep every batch small, so that there are many to die in."""
    for one in [each for them in host._projectors.values() for each in them.runners]:  # noqa: SLF001 - a host chooses its sizes by time
        one.size = BATCH
        batches = one.batches
        if isinstance(batches, Batches):
            batches._portions = replace(batches._portions, read_max=BATCH)  # noqa: SLF001 - the same
    return host


def fill(host: Host, moves: list[Attestation]) -> None:
    """Make the tables, then a log that nobody has projected yet."""
    host.upgrade()
    for start in range(0, len(moves), 1_000):
        host.append(moves[start : start + 1_000])


def drawn(draw: random.Random) -> list[Attestation]:
    """Return moves over a few accounts."""
    return [
        ledger.attest(
            Moved(
                amount=draw.randint(-50, 50),
                rate=draw.choice([0.1, 1e17, -1e17, 1 / 3]),
                day=draw.randint(1, 20),
                note=draw.choice([None, {"n": 0.1, "b": [1, {"é": None}]}]),
            ),
            entity=f"account {draw.randint(1, 9)}",
        )
        for _ in range(MOVES)
    ]


def rows_of(host: Host) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of both read models."""
    with host.database.read() as connection:
        return {
            name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for domain in (ledger, audit)
            for name, table in domain.tables.items()
        }


def derived_of(host: Host) -> dict[str, tuple[Any, ...]]:
    """Return what was derived, by id, and all but where it came to stand."""
    return {
        one.id: (one.context, one.entity, one.actor, one.text, *one.row[8:])
        for one in host.log.read()
        if one.context != "moved"
    }


def cursors_of(host: Host) -> dict[str, int]:
    """Return where both projectors stand."""
    with host.database.read() as connection:
        asked = select(cursors.c.domain, cursors.c.position)
        return {row.domain: row.position for row in connection.execute(asked)}


class Mortal:
    """The program below, and the process of it that runs at the moment."""

    def __init__(self, program: "subprocess.Popen[str]") -> None:
        self._program = program

    def run(self, point: str, nth: int, kill: Callable[[], bool] | None = None) -> int:
        """Catch up until the end or a death, and return the signal that ended it, or 0."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{point} {nth}\n")
        self._program.stdin.flush()
        pid = int(self._program.stdout.readline())
        if kill is not None and kill():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(int(self._program.stdout.readline()))


@contextmanager
def mortal(url: str) -> Iterator[Mortal]:
    """Start the program below."""
    program = subprocess.Popen(
        [sys.executable, __file__, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Mortal(program)
    finally:
        program.kill()
        program.communicate(timeout=BOUND)


@pytest.mark.crash_at_every_call
def test_a_catch_up_killed_at_every_point_is_as_if_never_killed(url: str, tmp_path: Path) -> None:
    """Rows, derived attestations and cursors are the same after a death anywhere as after none."""
    draw = random.Random(20)  # noqa: S311 - moments, not secrets
    moves = drawn(draw)
    undisturbed = Host(f"sqlite:///{tmp_path / 'undisturbed.db'}", [ledger, audit])
    fill(undisturbed, moves)
    undisturbed.catch_up()
    host = Host(url, [ledger, audit])
    fill(host, moves)
    points = [point for point in POINTS if not host.database.is_sqlite or "pass." not in point]

    def has_moved_by(least: int) -> Callable[[], bool]:
        start = sum(cursors_of(host).values())

        def wait() -> bool:
            deadline = time.monotonic() + BOUND
            pause = threading.Event()
            while sum(cursors_of(host).values()) < start + least:
                assert time.monotonic() < deadline
                pause.wait(0.002)
            return True

        return wait

    with mortal(url) as process:
        deaths = 0
        for number in range(KILLS):
            if number % 2:
                ended = process.run("never", 1, kill=has_moved_by(draw.randint(1, 120)))
            else:
                ended = process.run(points[number // 2 % len(points)], draw.randint(1, 3))
            assert ended == -signal.SIGKILL
            deaths += 1
        at_last = cursors_of(host)
        assert process.run("never", 1) == 0

    assert deaths == KILLS
    assert min(at_last["ledger"], at_last["audit"]) < host.log.head()
    assert rows_of(host) == rows_of(undisturbed)
    assert derived_of(host) == derived_of(undisturbed)
    head = host.log.head()
    assert cursors_of(host)["ledger"] == cursors_of(host)["audit"] == head
    assert [one.position for one in host.log.read()] == list(range(1, head + 1))
    host.close()
    undisturbed.close()


def main() -> None:
    """Catch up in a process of its own for each line, and say how that ended."""
    for line in sys.stdin:
        point, nth = line.split()
        pid = os.fork()
        if pid == 0:
            plan = {point: kill(nth=int(nth))} if point in faults.POINTS else {}
            with faults.planned(plan):
                small_batches(Host(sys.argv[1], [ledger, audit])).catch_up()
            os._exit(0)
        print(pid, flush=True)  # noqa: T201 - a program's output
        print(os.waitpid(pid, 0)[1], flush=True)  # noqa: T201 - a program's output


if __name__ == "__main__":
    main()
