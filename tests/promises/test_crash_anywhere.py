"""A crash at any named point, and a fresh host after it, is as if nothing had happened."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Column, Float, Integer, String, inspect, select

from qntx_es import (
    Attestation,
    Backoff,
    Domain,
    Host,
    Job,
    Payload,
    ReadRows,
    Recorded,
    Rows,
    ServiceRegistry,
    Settings,
    faults,
)
from qntx_es.digests import EMPTY
from qntx_es.domain import OnFailure
from qntx_es.errors import DatabaseUnavailable
from qntx_es.faults import Crash, crash, fail
from qntx_es.tables import cursors, inbox

SECOND = 1_000_000_000
HOUR = 3_600 * SECOND
MOVES = 12
SIZE = 4
SECONDS_MAX = 30
# On SQLite positions are given with the append, so there is no pass to crash in.
PASS_ONLY = {
    "append.before_inbox",
    "append.after_inbox",
    "pass.before_lock",
    "pass.after_lock",
    "pass.before_move",
    "pass.before_commit",
    "pass.after_commit",
}
INBOX = ["append.before_inbox", "append.after_inbox", "pass.before_move"]
PASSED_BY_CATCH_UP = [point for point in faults.POINTS if point.startswith(("pass.", "batch."))]
PASSED_BY_BATCHES = [point for point in faults.POINTS if point.startswith("batch.")]
DECISIONS = [("park", "qntx.parked", 1), ("skip", "qntx.skipped", 4)]
PASSED_BY_APPEND = [
    point
    for point in faults.POINTS
    if point.startswith(("append.", "pass.")) and point not in INBOX
]
PASSED_BY_CALLERS = [*INBOX, "pass.before_lock", "pass.after_lock", "pass.before_commit"]
PASSED_BY_IMPORT = [point for point in faults.POINTS if point.startswith("import.")]
PASSED_BY_REBUILD = [point for point in faults.POINTS if point.startswith("rebuild.")]
PASSED_BY_JOBS = [
    point
    for point in faults.POINTS
    if point.startswith(("append.", "job.", "schedule.")) and point not in INBOX
]
PASSED_BY_LEASES = [point for point in faults.POINTS if point.startswith("lease.")]
PASSED_BY_UPGRADE = [point for point in faults.POINTS if point.startswith("upgrade.")]


class Moved(Payload, context="moved"):
    """Something moved."""

    amount: int


class Odd(Payload, context="odd"):
    """An odd amount."""

    amount: int


ledger = Domain("ledger", emits=("moved", "odd"))
accounts = ledger.table(
    "accounts",
    Column("entity", String, primary_key=True),
    Column("moves", Integer, nullable=False, default=0, index=True),
    Column("weight", Float, nullable=False, default=0.0),
    Column("answers", Integer, nullable=False, default=0),
)
live = Domain("mirror", inline=True)
mirrors = live.table(
    "mirrors",
    Column("entity", String, primary_key=True),
    Column("moves", Integer, nullable=False, default=0),
)


@ledger.project(Moved)
def move(moved: Recorded[Moved], rows: Rows) -> None:
    """Count a move."""
    rows.add(accounts, moved.entity, moves=1, weight=0.1)


@ledger.project(Odd)
def answer(odd: Recorded[Odd], rows: Rows) -> None:
    """Count what was derived."""
    rows.add(accounts, odd.entity, answers=1)


@ledger.derive(Moved)
def say_odd(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:
    """Say that an amount is odd, and ask for a job."""
    if moved.payload.amount % 2:
        row = rows.get(accounts, moved.entity)
        assert row is not None
        yield ledger.attest(Odd(amount=row.moves), entity=moved.entity)
        yield work.request(entity=moved.entity)


@ledger.every(timedelta(hours=1))
def hourly(due: Any, rows: ReadRows) -> Iterator[Attestation]:  # noqa: ANN401, ARG001 - its shape
    """Say something each hour."""
    yield ledger.attest(Odd(amount=0), entity="the clock")


@ledger.job(backoff=Backoff(first=timedelta(0), spread=0))
def work(job: Job, services: ServiceRegistry) -> None:
    """Say one thing, which an advance commits, and another with the outcome."""
    if job.state is None:
        services.store.append(ledger.attest(Odd(amount=-1), entity=job.entity))
        job.advance("said")
    services.store.append(ledger.attest(Odd(amount=-2), entity=job.entity))


@live.project(Moved)
def mirror(moved: Recorded[Moved], rows: Rows) -> None:
    """Count a move, with its position."""
    rows.add(mirrors, moved.entity, moves=1)


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.nanoseconds = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        """Return nanoseconds since 1970."""
        return self.nanoseconds


def host_on(url: str, clock: Callable[[], int] | None = None) -> Host:
    """Open a host with batches small enough to crash in the second and third."""
    host = Host(url, [ledger, live]) if clock is None else Host(url, [ledger, live], clock=clock)
    host.upgrade()
    for runner in [each for them in host._projectors.values() for each in them.runners]:  # noqa: SLF001 - a host chooses its sizes by time
        runner.size = SIZE
    return host


def moves(turn: object) -> list[Attestation]:
    """Return what is to be appended in a turn: the same ids each time."""
    return [
        ledger.attest(Moved(amount=number), entity=f"account {number % 3}", id=f"{turn}.{number}")
        for number in range(MOVES)
    ]


def rows_of(host: Host) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of both domains."""
    with host.database.read() as connection:
        return {
            name: sorted(map(tuple, connection.execute(select(table))))
            for domain in (ledger, live)
            for name, table in domain.tables.items()
        }


def said(host: Host, *, jobs: bool = False) -> dict[str, tuple[Any, ...]]:
    """Return the log by id, without the order in which domains took their turns.

    How often something was rebuilt is no part of what is compared.
    """
    return {
        one.id: (one.context, one.entity, one.text, *one.row[8:])
        for one in host.log.read()
        if (jobs or not one.context.startswith("pulse.job_s")) and one.context != "qntx.rebuilt"
    }


def assert_in_order(host: Host) -> None:
    """Assert that positions are dense, nothing waits and every cursor is at the head."""
    head = host.log.head()
    assert [one.position for one in host.log.read()] == list(range(1, head + 1))
    with host.database.read() as connection:
        assert set(connection.execute(select(cursors.c.position)).scalars()) == {head}
        if not host.database.is_sqlite:
            assert connection.execute(select(inbox.c.id)).all() == []


@pytest.fixture
def undisturbed(tmp_path: Path) -> Iterator[Host]:
    """Open a host that nothing ever happens to."""
    host = host_on(f"sqlite:///{tmp_path / 'undisturbed.db'}")
    yield host
    host.close()


def points_of(url: str, points: list[str]) -> list[str]:
    """Leave out what one of the databases has no need of."""
    return [one for one in points if not (url.startswith("sqlite") and one in PASS_ONLY)]


@pytest.mark.derive_once
@pytest.mark.crash_at_every_call
def test_a_catch_up_that_crashes_is_continued(url: str, undisturbed: Host) -> None:
    """Rows, derived attestations and cursors after a crash in a catch-up are as without."""
    for point in points_of(url, PASSED_BY_CATCH_UP):
        for nth in (1, 2, 3):
            turn = f"{point} {nth}"
            undisturbed.append(moves(turn))
            undisturbed.catch_up()
            host = host_on(url)
            host.append(moves(turn))
            with faults.planned({point: crash(nth=nth)}), suppress(Crash):
                host.catch_up()
                assert nth > 1  # until it passes untouched
            host.close()

            fresh = host_on(url)
            fresh.catch_up()

            assert rows_of(fresh) == rows_of(undisturbed), turn
            assert said(fresh) == said(undisturbed), turn
            assert_in_order(fresh)
            fresh.close()


@pytest.mark.failing
@pytest.mark.parametrize(("on_failure", "context", "count"), DECISIONS)
def test_a_decision_that_crashes_is_taken_once(
    url: str, on_failure: OnFailure, context: str, count: int
) -> None:
    """A crash around the batch that parks or skips leaves each decision once, and rows that fit."""
    start = 0
    for point in PASSED_BY_BATCHES:
        # Both go one way: the second batch is met for one of them.
        for nth in (1, 2) if on_failure == "park" else (1,):
            host = failing_host(url, on_failure, {"account 1"})
            host.append(moves(f"{point} {nth}"))
            with faults.planned({point: crash(nth=nth)}), suppress(Crash):
                host.catch_up()
            host.close()

            host = failing_host(url, on_failure, {"account 1"})
            host.catch_up()
            said = [one for one in host.ax(contexts=context) if one.position > start]
            assert len(said) == count, (point, nth)
            if on_failure == "park":
                host.close()
                host = failing_host(url, on_failure, set())
                host.retry("careful")
                host.catch_up()
            assert_in_order(host)
            start = host.log.head()
            host.close()
    with closing(failing_host(url, on_failure, set())) as host:
        assert host.rebuild("careful").is_same


@pytest.mark.failing
def test_a_retry_that_crashes_is_met_again(url: str) -> None:
    """A crash around the batch that works an entity off leaves it parked, or worked off once."""
    for count, point in enumerate(PASSED_BY_BATCHES, 1):
        host = failing_host(url, "park", {"account 1"})
        host.append(moves(point))
        host.catch_up()
        host.close()
        host = failing_host(url, "park", set())
        with faults.planned({point: crash()}), suppress(Crash):
            host.retry("careful")
        host.close()

        host = failing_host(url, "park", set())
        host.catch_up()

        (table,) = host.domain("careful").tables.values()
        with host.database.read() as connection:
            assert set(connection.execute(select(table.c.moves)).scalars()) == {4 * count}, point
        assert len(host.ax(contexts="qntx.unparked")) == count, point
        assert host.parked("careful") == []
        assert_in_order(host)
        host.close()


def failing_host(url: str, on_failure: OnFailure, failing: set[str]) -> Host:
    """Open a host with a domain that fails about these entities, and tries again at once."""
    careful = Domain("careful", on_failure=on_failure)
    table = careful.table(
        "accounts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @careful.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        if moved.entity in failing:
            raise LookupError
        rows.add(table, moved.entity, moves=1)

    host = Host(url, [careful])
    host.upgrade()
    runner = host._projectors["careful"].runners[0]  # noqa: SLF001 - a host chooses its sizes by time
    runner.size, runner.stopping = SIZE, Event()
    runner.stopping.set()
    return host


def test_an_append_that_crashes_is_all_or_nothing(url: str, undisturbed: Host) -> None:
    """An append that crashed and is made again leaves one log, and inline rows that fit it."""
    for point in points_of(url, PASSED_BY_APPEND):
        undisturbed.append(moves(point))
        undisturbed.catch_up()
        host = host_on(url)
        with faults.planned({point: crash()}), suppress(Crash):
            host.append(moves(point))
            # A pass follows an append only where another one was in its way.
            assert point in {"pass.before_commit", "pass.after_commit"}
        host.close()

        fresh = host_on(url)
        fresh.append(moves(point))
        fresh.catch_up()

        assert rows_of(fresh) == rows_of(undisturbed), point
        assert said(fresh) == said(undisturbed), point
        assert_in_order(fresh)
        fresh.close()


def test_what_a_caller_appends_crashes_with_him_or_not_at_all(
    postgres_url: str, undisturbed: Host
) -> None:
    """Wherever an append in a caller's transaction crashes, said again it is there once."""
    for point in PASSED_BY_CALLERS:
        undisturbed.append(moves(point))
        undisturbed.catch_up()
        host = host_on(postgres_url)
        with faults.planned({point: crash()}), pytest.raises(Crash):
            append_as_a_caller(host, moves(point))
        host.close()

        fresh = host_on(postgres_url)
        fresh.append(moves(point))
        fresh.catch_up()

        assert rows_of(fresh) == rows_of(undisturbed), point
        assert said(fresh) == said(undisturbed), point
        assert_in_order(fresh)
        fresh.close()


def append_as_a_caller(host: Host, said: list[Attestation]) -> None:
    """Append in a transaction of our own, and let the domains follow."""
    with host.database.engine.begin() as connection:
        host.append(said, session=connection)
    host.catch_up()


@pytest.mark.rebuild_killed
def test_a_rebuild_that_crashes_leaves_live_and_can_be_run_again(
    url: str, undisturbed: Host
) -> None:
    """Live tables are whole after a crash anywhere in a rebuild, and a second one cleans up."""
    for point in PASSED_BY_REBUILD:
        turns = [moves(f"{point} before"), moves(f"{point} after")]
        host = host_on(url)
        host.append(turns[0])
        host.catch_up()
        undisturbed.append(turns[0])
        undisturbed.catch_up()
        for name in ("ledger", "mirror"):
            with faults.planned({point: crash()}), pytest.raises(Crash):
                host.rebuild(name)
        host.close()

        fresh = host_on(url)
        assert rows_of(fresh) == rows_of(undisturbed), point
        fresh.append(turns[1])
        fresh.catch_up()
        undisturbed.append(turns[1])
        undisturbed.catch_up()
        assert rows_of(fresh) == rows_of(undisturbed), point
        again = [fresh.rebuild(name) for name in ("ledger", "mirror")]

        assert all(one.is_same for one in again), point
        assert rows_of(fresh) == rows_of(undisturbed), point
        assert said(fresh) == said(undisturbed), point
        assert {one.state for one in fresh.statuses()} == {"live", "inline"}
        with fresh.database.read() as connection:
            assert [one for one in inspect(connection).get_table_names() if "__g" in one] == []
        fresh.catch_up()
        assert_in_order(fresh)
        fresh.close()


def test_jobs_and_schedules_that_crash_are_continued(url: str) -> None:
    """A crash in a job or a schedule loses no job, and no outcome counts twice."""
    clock = Clock()
    host = host_on(url, clock)
    host.append(moves("jobs")[:4])
    host.catch_up(jobs=True)
    for point in PASSED_BY_JOBS:
        with faults.planned({point: crash()}), suppress(Crash):
            host.append([work.request(entity="one"), work.request(entity="two")])
            clock.nanoseconds += HOUR
            host.catch_up(jobs=True)
            # PostgreSQL has its own clock, and an hour has not passed there.
            assert point == "schedule.before_fire"
            assert not host.database.is_sqlite
        host.close()
        clock.nanoseconds += 2 * HOUR  # a job that was cut off is late by then
        host = host_on(url, clock)
        host.catch_up(jobs=True)

        asked = {one.id for one in host.ax(contexts="pulse.job_requested")}
        ended = [one.entity for one in host.ax(contexts="pulse.job_succeeded")]
        assert len(ended) == len(set(ended)), point
        # A job cut off on PostgreSQL is late only after its deadline, by the server's clock.
        assert set(ended) == asked or not host.database.is_sqlite, point
        said_by = Counter((one.caused_by, one.payload["amount"]) for one in host.ax(contexts="odd"))
        assert all(said_by[job, amount] == 1 for job in ended for amount in (-1, -2)), point
        fires = [one.payload["due_at"] for one in host.ax(contexts="pulse.schedule_fired")]
        assert len(fires) == len(set(fires)), point
    assert all(host.rebuild(name).is_same for name in ("ledger", "mirror", "pulse"))
    host.close()


def test_an_import_that_crashes_was_none_or_all(url: str) -> None:
    """Before the commit nothing of the log is here, and behind it all of it is."""
    file = BytesIO()
    with closing(host_on("sqlite://")) as source:
        source.append(moves("import"))
        source.catch_up()
        whole = source.export_log(file).digest
    for point in PASSED_BY_IMPORT:
        host = host_on(url)
        file.seek(0)
        with faults.planned({point: crash()}), pytest.raises(Crash):
            host.import_log(file)
        host.close()

        with closing(host_on(url)) as fresh:
            assert fresh.log.digest() == (whole if point == "import.after_commit" else EMPTY)


@pytest.mark.leases
def test_a_lease_that_is_in_trouble_is_taken_and_renewed_again(url: str) -> None:
    """Trouble with taking or renewing a lease is waited out, and its projector goes on."""
    trouble = {point: fail(DatabaseUnavailable()) for point in PASSED_BY_LEASES}
    before = faults.tally().fired.copy()
    with closing(Host(url, [ledger, live], settings=Settings(lease_seconds=0.5))) as host:
        host.upgrade()
        with faults.planned(trouble), host.running():
            wait_until(lambda: all(faults.tally().fired[one] > before[one] for one in trouble))
            host.append(moves("leases"))
            host.wait_for(MOVES, "ledger")

        assert {one.state for one in host.statuses()} == {"live", "inline"}


def test_an_upgrade_that_crashes_has_made_nothing(url: str) -> None:
    """An upgrade cut off in a revision leaves no table, and the next one makes them all."""
    for point in PASSED_BY_UPGRADE:
        with closing(Host(url)) as host:
            with faults.planned({point: crash()}), pytest.raises(Crash):
                host.upgrade()

            assert host.database.revision() is None
        with closing(host_on(url)) as fresh:
            assert fresh.append(moves("upgrade"))[-1].position == MOVES


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_every_point_is_passed_by_some_test() -> None:
    """No fault point stands in the code without a crash in it here."""
    passed = {
        *PASSED_BY_CATCH_UP,
        *PASSED_BY_APPEND,
        *PASSED_BY_CALLERS,
        *PASSED_BY_IMPORT,
        *PASSED_BY_REBUILD,
        *PASSED_BY_JOBS,
        *PASSED_BY_LEASES,
        *PASSED_BY_UPGRADE,
    }

    assert passed == set(faults.POINTS)
