"""A rebuild goes on where a crash has left it, range by range, in one process or in several.

The program at the end of this file is what is killed. What counts is in the database.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, String, inspect, select, update

from qntx_es import Attestation, Domain, Host, Payload, ReadRows, Recorded, Rows, faults
from qntx_es.errors import DatabaseUnavailable, NoWorkers, RebuildLost
from qntx_es.projections import filling
from qntx_es.projections.fresh import RebuildProgress
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.tables import fills, rebuilds
from qntx_es.testing import PostgresServer

BATCH = 25
MOVES = 400
ENTITIES = 30


class Moved(Payload, context="moved"):
    """Something went to an account."""

    amount: int


class Flagged(Payload, context="flagged"):
    """An account passed a round sum."""

    total: int


def make(*, step: int = 1, version: int = 1) -> Domain:
    """Make a domain of independent accounts; another `step` is other code.

    Of a new version nobody is parked, so that its rebuild meets what fails.
    """
    domain = Domain("ledger", version=version, by_entity=True, emits=(Flagged,), on_failure="park")
    sums = domain.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("total", BigInteger, nullable=False, default=0),
    )
    over_all = domain.table(
        "over_all",
        Column("what", String, primary_key=True),
        Column("moves", BigInteger, nullable=False, default=0),
    )

    @domain.project(Moved)
    def add(moved: Recorded[Moved], rows: Rows) -> None:
        if moved.entity == "e7" and moved.payload.amount > MOVES // 2:
            raise ValueError(moved.payload.amount)
        rows.add(sums, moved.entity, total=moved.payload.amount)
        rows.add(over_all, "all", moves=1)

    if step != 1:

        @domain.project(Flagged)
        def count(flagged: Recorded[Flagged], rows: Rows) -> None:
            rows.add(over_all, flagged.context, moves=step)

    @domain.derive(Moved)
    def flag(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:
        row = rows.get(sums, moved.entity)
        assert row is not None
        if row.total % 5 == 0:
            yield domain.attest(Flagged(total=row.total), entity=moved.entity)

    return domain


ledger = make()
brittle = make(version=2)


@pytest.fixture
def host(url: str) -> Iterator[Host]:
    """Open a host on each kind of database."""
    with projected(url) as opened:
        yield opened


@contextmanager
def projected(url: str) -> Iterator[Host]:
    """Open a host of a log that is projected, with an entity parked on the way."""
    with Host(url, [ledger]) as opened:
        opened.upgrade()
        opened.append(
            [
                Attestation(
                    context="moved", entity=f"e{n % ENTITIES}", actor="a", payload={"amount": n}
                )
                for n in range(MOVES)
            ]
        )
        opened.catch_up()
        yield opened


def rows_of(host: Host) -> dict[str, list[Any]]:
    """Return all rows of the domain."""
    with host.database.read() as connection:
        return {
            name: [tuple(row) for row in connection.execute(select(table).order_by(*table.c))]
            for name, table in host.domain("ledger").tables.items()
        }


def kill_a_rebuild(url: str, *, after: int) -> None:
    """Rebuild in a process of its own, which dies after so many batches."""
    done = subprocess.run(
        [sys.executable, __file__, url, str(after)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 9, done.stderr


def is_nothing_left(host: Host) -> bool:
    """Tell whether a rebuild has left neither rows of its own nor tables."""
    with host.database.read() as connection:
        left = [*connection.execute(select(rebuilds)), *connection.execute(select(fills))]
        tables = inspect(connection).get_table_names()
    return not left and not [one for one in tables if "__g" in one]


@pytest.mark.rebuild_killed
@pytest.mark.parametrize("ranges", [1, 3])
def test_a_rebuild_goes_on_where_a_crash_left_it(host: Host, url: str, ranges: int) -> None:
    """What was filled is kept, with what derive handlers said and who is parked."""
    host.cut("ledger", ranges)
    before = rows_of(host)
    whole = host.verify("ledger")
    kill_a_rebuild(url, after=5)

    rebuilt = host.rebuild("ledger", expect=["same"])

    assert rebuilt.generation == 2, "that of the one that was killed"
    assert rows_of(host) == before
    assert rebuilt.is_same
    assert rebuilt.derived == whole.derived
    assert {one.entity for one in host.parked("ledger")} == {"e7"}
    assert is_nothing_left(host)


def test_other_code_begins_anew(host: Host, url: str) -> None:
    """Where the code changed meanwhile, nothing of what was filled is used."""
    kill_a_rebuild(url, after=5)
    with Host(url, [make(step=2)]) as changed:
        rebuilt = changed.rebuild("ledger")

        assert rebuilt.generation == 3, "another one's than of the one that was killed"
        assert dict(rows_of(changed)["ledger_over_all"])["flagged"] > 0
        assert changed.verify("ledger").is_same
    assert is_nothing_left(host)


@pytest.mark.parametrize("ranges", [1, 3])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_what_a_server_that_crashed_has_lost_is_missed(
    host: Host, monkeypatch: pytest.MonkeyPatch, ranges: int, share: float
) -> None:
    """Nobody waits for the disk while tables are filled, and none that lacks a batch is swapped."""
    monkeypatch.setattr(filling, "FILL_MAX", BATCH)
    monkeypatch.setattr(filling, "SIZE_FIRST", BATCH)
    host.cut("ledger", ranges)
    before = rows_of(host)
    lost: list[int] = []

    def lose(at: RebuildProgress) -> None:
        if lost or at.state != "filling" or at.done < share * at.total:
            return
        lost.append(at.done)
        with host.database.write() as connection:
            connection.execute(update(fills).values(position=fills.c.position - 1))

    with pytest.raises(RebuildLost):
        host.rebuild("ledger", progress=lose)

    assert lost
    assert rows_of(host) == before
    assert is_nothing_left(host)
    assert host.rebuild("ledger", expect=["same"]).is_same


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_server_that_crashes_under_a_rebuild_costs_that_rebuild_and_no_row(
    postgres_server: PostgresServer,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    """What comes of it is the live rows, be it by this rebuild or by the next."""
    monkeypatch.setattr(filling, "FILL_MAX", BATCH)
    monkeypatch.setattr(filling, "SIZE_FIRST", BATCH)
    crashed: list[int] = []

    def crash(at: RebuildProgress) -> None:
        if not crashed and at.state == "filling" and at.done >= share * at.total:
            crashed.append(at.done)
            postgres_server.restart_immediately()

    with projected(postgres_url) as host:
        before = rows_of(host)
        with suppress(RebuildLost, DatabaseUnavailable):
            assert host.rebuild("ledger", progress=crash, expect=["same"]).is_same
        assert crashed
        assert rows_of(host) == before
        assert host.rebuild("ledger", expect=["same"]).is_same
        assert is_nothing_left(host)


def test_ranges_are_rebuilt_and_verified_where_each_stands(host: Host) -> None:
    """Of ranges that stand apart, each is compared at its own position, and the swap keeps it."""
    host.cut("ledger", 3)
    host.append(Attestation(context="moved", entity="e1", actor="a", payload={"amount": 1}))
    (runner, *_) = host._projectors["ledger"].runners  # noqa: SLF001 - one range goes ahead
    runner.catch_up()
    positions = [one.position for one in status_of(host).ranges]
    assert len(set(positions)) == 2

    assert host.verify("ledger").is_same
    assert host.rebuild("ledger", expect=["same"]).is_same

    assert [one.position for one in status_of(host).ranges] == positions
    host.catch_up()
    assert host.verify("ledger").is_same


def status_of(host: Host) -> Any:  # noqa: ANN401 - a status
    """Return how the projector stands."""
    (found,) = [one for one in host.statuses() if one.name == "ledger"]
    return found


def test_workers_fill_ranges_side_by_side(host: Host) -> None:
    """Two processes fill a range each, and rows, outputs and who is parked are those of one."""
    before, whole = rows_of(host), host.verify("ledger")

    rebuilt = host.rebuild("ledger", workers=2, expect=["same"])

    assert rows_of(host) == before
    assert (rebuilt.is_same, rebuilt.derived) == (True, whole.derived)
    assert {one.entity for one in host.parked("ledger")} == {"e7"}
    assert is_nothing_left(host)


def test_a_handler_that_fails_in_a_worker_is_named(host: Host, url: str) -> None:
    """What fails in another process is told as what fails here, and live is untouched."""
    before = rows_of(host)
    with Host(url, [brittle]) as changed, pytest.raises(HandlerFailed, match="ValueError"):
        changed.rebuild("ledger", workers=2)

    assert rows_of(host) == before
    assert is_nothing_left(host)


def test_any_executor_will_do(host: Host) -> None:
    """Workers are tasks for an executor of the caller's."""
    with ThreadPoolExecutor(3) as threads:
        assert host.rebuild("ledger", workers=3, executor=threads, expect=["same"]).is_same


def test_workers_that_could_not_work_are_refused(url: str) -> None:
    """A domain that nobody can import is not handed to processes, and live is untouched."""
    nameless = make()
    with Host(url, [nameless]) as host:
        host.upgrade()
        host.append(Attestation(context="moved", entity="a", actor="a", payload={"amount": 1}))
        host.catch_up()

        with pytest.raises(NoWorkers, match="ledger"):
            host.rebuild("ledger", workers=2)

        assert is_nothing_left(host)


def main() -> None:
    """Rebuild, and die after so many batches."""
    url, after = sys.argv[1], int(sys.argv[2])
    filling.SIZE_FIRST = BATCH
    filling.BATCH_SECONDS = 0.0
    left = [after]

    def die() -> None:
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)

    with faults.planned({"rebuild.in_fill": die}), Host(url, [ledger]) as host:
        host.rebuild("ledger")


if __name__ == "__main__":
    main()
