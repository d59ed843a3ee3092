"""A rebuild goes on beside everything else, and nobody can tell that it does."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    Engine,
    Float,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Job,
    Payload,
    ProjectorOutdated,
    QntxError,
    ReadRows,
    RebuildProgress,
    Rebuilt,
    Recorded,
    Rows,
    ServiceRegistry,
    faults,
)
from qntx_es.projections import rebuild as rebuilding
from qntx_es.projections.digest import digest
from qntx_es.tables import cursors

BOUND = 60.0
PAUSE_SECONDS = 0.005
ACCOUNTS = 40
HostOf = Callable[..., Host]


class Moved(Payload, context="moved"):
    """Something moved."""

    amount: int
    code: str | None = None


class Odd(Payload, context="odd"):
    """An odd amount."""

    amount: int


def make_ledger(version: int = 1) -> Domain:
    """Make a domain whose second version has other tables and other columns."""
    domain = Domain("ledger", version=version, emits=("moved", "odd"))
    extra = [Column("largest", String)] if version > 1 else [Column("weight", Float, default=0.0)]
    accounts = domain.table(
        "accounts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0, index=True),
        Column("note", JSON),
        *extra,
        Index("ledger_accounts_busiest", "moves", "entity"),
    )
    codes = domain.table(
        "codes" if version == 1 else "labels",
        Column("entity", String, primary_key=True),
        Column("code", String, unique=True),
        Column("rank", Integer),
        UniqueConstraint("rank", "code", name="ledger_ranked"),
        Index(f"ledger_code_{version}", "code", unique=True),
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(accounts, moved.entity, moves=1)
        if version == 1:
            rows.add(accounts, moved.entity, weight=0.1)
        else:
            rows.put(accounts, entity=moved.entity, largest=str(moved.payload.amount))
        rows.put(accounts, entity=moved.entity, note={"last": [moved.payload.amount, 0.1]})
        if moved.payload.code is not None:
            code = f"{moved.payload.code} of {moved.entity}"
            rows.put(codes, entity=moved.entity, code=code, rank=1)

    @domain.derive(Moved)
    def say_odd(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        if moved.payload.amount % 2:
            yield domain.attest(Odd(amount=moved.payload.amount), entity=moved.entity)

    return domain


def moves(domain: Domain, start: int, count: int) -> list[Attestation]:
    """Return moves over all accounts, one after another."""
    return [
        domain.attest(
            Moved(amount=number, code="xyz"[number % 3] if number % 10 == 0 else None),
            entity=f"account {number % ACCOUNTS}",
            id=f"move {number}",
        )
        for number in range(start, start + count)
    ]


@pytest.fixture
def host_of(url: str) -> Iterator[HostOf]:
    """Make hosts of domains over one database, as many as a test likes."""
    hosts: list[Host] = []

    def make(*domains: Domain) -> Host:
        host = Host(url, domains)
        hosts.append(host)
        host.upgrade()
        return host

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def outside(url: str) -> Iterator[Engine]:
    """Open an application's own connections, which know nothing of rebuilds."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def connect(connection: Any, _: object) -> None:  # noqa: ANN401 - the driver's
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def begin(connection: Any) -> None:  # noqa: ANN401 - SQLAlchemy's
            connection.exec_driver_sql("BEGIN")

    yield engine
    engine.dispose()


def rows_of(host: Host, *domains: Domain) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of the domains."""
    with host.database.read() as connection:
        return {
            name: sorted(map(tuple, connection.execute(select(table))), key=repr)
            for domain in domains
            for name, table in domain.tables.items()
        }


def table_names(host: Host) -> set[str]:
    """Return the names of all tables that are not the framework's."""
    with host.database.read() as connection:
        names = inspect(connection).get_table_names()
    return {name for name in names if not name.startswith(("qntx_", "pulse_"))}


def position_of(host: Host, name: str) -> tuple[int, int, int]:
    """Return position, version and generation of a domain's cursor."""
    with host.database.read() as connection:
        asked = select(cursors.c.position, cursors.c.version, cursors.c.generation)
        position, version, generation = connection.execute(
            asked.where(cursors.c.domain == name)
        ).one()
    return position, version, generation


@contextmanager
def in_threads(*functions: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Run functions beside the block, and collect what goes wrong in them."""
    troubles: list[BaseException] = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            troubles.append(error)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in functions]
    for thread in threads:
        thread.start()
    try:
        yield troubles
    finally:
        for thread in threads:
            thread.join(BOUND)


class Beside:
    """Something that begins in a thread of its own when a fault point is first met.

    The point lets it run as far as it comes: where it must wait for what the point holds, the
    point is left for it to go on.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._has_begun = False
        self.outcome: object = None

    def meet(self) -> None:
        """Begin, the first time."""
        if not self._has_begun:
            self._has_begun = True
            self._thread.start()
            self._thread.join(0.5)

    def end(self) -> None:
        """Wait for its end."""
        self._thread.join(BOUND)

    def _run(self) -> None:
        try:
            self.outcome = self._function()
        except Exception as error:  # noqa: BLE001 - the outcome is the test's
            self.outcome = error


def wait_until(condition: Callable[[], bool], seconds: float = BOUND) -> bool:
    """Look until a condition holds or the time is up, and tell which."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.01)
    return True


def read_on(
    outside: Engine, table: Table, codes: Table, stopping: threading.Event, isolation: str
) -> None:
    """Read a table again and again, in transactions of two reads each: it is never less than all.

    Both reads of one transaction see all accounts, and where a snapshot is kept they are equal.
    """
    asked = select(func.count(), func.sum(table.c.moves))
    before = 0
    while not stopping.is_set():
        with outside.connect() as connection:
            if isolation:
                connection.execution_options(isolation_level=isolation)
            # In another order than that in which a swap takes them.
            connection.execute(select(func.count()).select_from(codes)).one()
            first = connection.execute(asked).one()
            second = connection.execute(asked).one()
        assert first[0] == second[0] == ACCOUNTS, isolation
        assert before <= first[1] <= second[1], isolation
        if isolation in ("REPEATABLE READ", "SERIALIZABLE"):
            assert first == second
        before = first[1]


@pytest.mark.swap_under_readers
@pytest.mark.parametrize(
    "levels",
    [
        pytest.param(("REPEATABLE READ",), id="a snapshot"),
        pytest.param(
            ("READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE"),
            id="every level",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_appenders_runners_and_readers_do_not_notice(
    host_of: HostOf,
    outside: Engine,
    tmp_path: Any,  # noqa: ANN401 - pytest's
    levels: tuple[str, ...],
) -> None:
    """Under appends and runners, repeated rebuilds show no reader an error or a hole."""
    ledger = make_ledger()
    accounts = ledger.tables["ledger_accounts"]
    codes = ledger.tables["ledger_codes"]
    host = host_of(ledger)
    host.append(moves(ledger, 0, ACCOUNTS))
    host.catch_up()
    stopping = threading.Event()
    appended = ACCOUNTS
    other = host_of(make_ledger())

    def append() -> None:
        nonlocal appended
        while not stopping.is_set():
            host.append(moves(ledger, appended, 7))
            appended += 7
            stopping.wait(0.02)

    isolations = [""] if host.database.is_sqlite else ["", *levels]
    readers = [
        lambda one=one: read_on(outside, accounts, codes, stopping, one) for one in isolations
    ]

    with host.running(), other.running(), in_threads(append, *readers) as troubles:
        try:
            rebuilt = [host.rebuild("ledger") for _ in range(4)]
        finally:
            stopping.set()
    host.catch_up()

    assert troubles == []
    assert all(one.is_same for one in rebuilt)
    assert [one.generation for one in rebuilt] == [2, 3, 4, 5]
    fold = Host(f"sqlite:///{tmp_path / 'fold.db'}", [make_ledger()])
    fold.upgrade()
    for start in range(0, appended, 5_000):
        fold.append(moves(ledger, start, min(5_000, appended - start)))
    fold.catch_up()
    assert rows_of(host, ledger) == rows_of(fold, ledger)
    assert sorted(one.id for one in host.ax(contexts="odd")) == sorted(
        one.id for one in fold.ax(contexts="odd")
    )
    assert table_names(host) == set(ledger.tables)
    fold.close()


@pytest.mark.swap_under_readers
def test_a_snapshot_from_before_never_sees_an_empty_table(
    postgres_url: str, request: pytest.FixtureRequest
) -> None:
    """A REPEATABLE READ reader that first touches a table after a swap finds its rows."""
    ledger = make_ledger()
    host = Host(postgres_url, [ledger])
    host.upgrade()
    host.append(moves(ledger, 0, ACCOUNTS))
    host.catch_up()
    engine = create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    request.addfinalizer(engine.dispose)
    request.addfinalizer(host.close)
    done = threading.Event()

    def rebuild() -> None:
        host.rebuild("ledger")
        done.set()

    with engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        assert connection.execute(select(func.count()).select_from(cursors)).scalar_one() == 2
        with in_threads(rebuild) as troubles:
            try:
                # It may swap at once, or wait for this very reader.
                wait_until(done.is_set, 3)
                found = connection.execute(select(ledger.tables["ledger_accounts"])).all()
            finally:
                connection.close()

    assert troubles == []
    assert done.is_set()
    assert len(found) == ACCOUNTS


@pytest.mark.swap_under_readers
def test_a_reader_that_stays_puts_off_the_swap_and_nobody_else(
    host_of: HostOf, outside: Engine
) -> None:
    """A long reader of a table keeps reading it, other readers go on, and then it is swapped."""
    ledger = make_ledger()
    accounts = ledger.tables["ledger_accounts"]
    host = host_of(ledger)
    host.append(moves(ledger, 0, ACCOUNTS))
    host.catch_up()
    done = threading.Event()
    asked = select(func.count()).select_from(accounts)

    def rebuild() -> None:
        assert host.rebuild("ledger").is_same
        done.set()

    with outside.connect() as long:
        assert long.execute(asked).scalar_one() == ACCOUNTS
        with in_threads(rebuild) as troubles:
            for _ in range(20):
                started = time.monotonic()
                with outside.connect() as short:
                    assert short.execute(asked).scalar_one() == ACCOUNTS
                host.append(ledger.attest(Moved(amount=2), entity="account 1"))
                assert time.monotonic() - started < 5
                wait_until(done.is_set, 0.05)
            assert long.execute(asked).scalar_one() == ACCOUNTS
            long.close()

    assert troubles == []
    assert done.is_set()


def test_the_certificate_says_what_a_fold_gives(host_of: HostOf) -> None:
    """The digests of live, rebuilt and the table as it stands afterwards are one."""
    ledger = make_ledger()
    host = host_of(ledger)
    host.append(moves(ledger, 0, 100))
    host.catch_up()

    rebuilt = host.rebuild("ledger")

    with host.database.read() as connection:
        now = {name: digest(connection, table) for name, table in ledger.tables.items()}
    assert {one.table: one.live for one in rebuilt.tables} == now
    assert {one.table: one.rebuilt for one in rebuilt.tables} == now
    assert rebuilt.compared_at == rebuilt.position == host.log.head() - 1
    assert rebuilt.is_same
    assert now["ledger_accounts"].rows == ACCOUNTS


def test_a_changed_row_is_found_and_mended(host_of: HostOf) -> None:
    """A row that somebody changed by hand is named as a difference, and right after the swap."""
    ledger = make_ledger()
    accounts = ledger.tables["ledger_accounts"]
    host = host_of(ledger)
    host.append(moves(ledger, 0, 100))
    host.catch_up()
    right = rows_of(host, ledger)
    with host.database.write() as connection:
        one = accounts.c.entity == "account 1"
        connection.execute(update(accounts).where(one).values(weight=0.30000000000000009))

    rebuilt = host.rebuild("ledger")

    assert not rebuilt.is_same
    assert {one.table: one.is_same for one in rebuilt.tables} == {
        "ledger_accounts": False,
        "ledger_codes": True,
    }
    assert rows_of(host, ledger) == right
    assert host.rebuild("ledger").is_same


@pytest.mark.rebuild_killed
def test_a_rebuild_of_an_empty_log(host_of: HostOf) -> None:
    """An empty log gives empty tables, a swap and a certificate all the same."""
    ledger = make_ledger()
    host = host_of(ledger)

    rebuilt = host.rebuild("ledger")

    assert rebuilt.is_same
    assert (rebuilt.position, rebuilt.generation) == (0, 2)
    host.append(moves(ledger, 0, 3))
    host.catch_up()
    assert len(rows_of(host, ledger)["ledger_accounts"]) == 3


def test_a_domain_without_tables(host_of: HostOf) -> None:
    """A domain that only derives can be rebuilt, which changes nothing and derives nothing."""
    echo = Domain("echo")

    @echo.derive(Moved)
    def say(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        yield echo.attest(Odd(amount=moved.payload.amount), entity=moved.entity)

    host = host_of(echo)
    host.append(moves(echo, 0, 3))
    host.catch_up()
    head = host.log.head()

    rebuilt = host.rebuild("echo")
    host.catch_up()

    assert rebuilt.is_same
    assert rebuilt.tables == ()
    assert head == 7  # three moves, three answers, and since when they are given
    assert [one.context for one in host.log.read(after=head)] == ["qntx.rebuilt"]


@pytest.mark.derive_once
def test_nothing_is_derived_twice_or_never(host_of: HostOf) -> None:
    """Sources before, during and after rebuilds are each answered once."""
    ledger = make_ledger()
    host = host_of(ledger)
    host.append(moves(ledger, 0, 20))
    host.catch_up()
    host.append(moves(ledger, 20, 20))  # what live has not seen yet

    host.rebuild("ledger")
    host.append(moves(ledger, 40, 20))
    host.catch_up()
    host.rebuild("ledger")
    host.catch_up()

    caused = [one.caused_by for one in host.ax(contexts="odd")]
    assert sorted(caused, key=str) == sorted(f"move {n}" for n in range(60) if n % 2)


@pytest.mark.derive_once
@pytest.mark.parametrize("swaps", [6, pytest.param(500, marks=pytest.mark.nightly)])
def test_swap_after_swap_with_live_advancing_each_source_is_answered_once(
    host_of: HostOf, swaps: int
) -> None:
    """Also what was parked, worked off and parked again meanwhile is answered, and only once."""
    failing: set[int] = set()
    ledger = Domain("ledger", emits=("moved", "odd"), on_failure="park")
    ledger.table("accounts", Column("entity", String, primary_key=True))

    @ledger.derive(Moved)
    def say(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        if moved.payload.amount in failing:
            raise LookupError
        yield ledger.attest(Odd(amount=moved.payload.amount), entity=moved.entity)

    host = host_of(ledger)
    with host.running():
        for n in range(swaps):
            failing.add(3 * n + 1)
            host.append(moves(ledger, 3 * n, 3))
            host.rebuild("ledger")
            if n % 3 == 0:
                failing.clear()
                if host.parked("ledger"):
                    host.retry("ledger")
    failing.clear()
    host.catch_up()
    if host.parked("ledger"):
        host.retry("ledger")
    host.catch_up()

    caused = sorted(str(one.caused_by) for one in host.ax(contexts="odd"))
    assert caused == sorted(f"move {n}" for n in range(3 * swaps))
    assert host.parked("ledger") == []


def test_the_target_is_the_live_cursor(host_of: HostOf) -> None:
    """A rebuild stops where live stands, so that readers never see it run ahead."""
    ledger = make_ledger()
    host = host_of(ledger)
    host.append(moves(ledger, 0, 20))
    host.catch_up()
    before = rows_of(host, ledger)
    position, _, _ = position_of(host, "ledger")
    host.append(moves(ledger, 20, 20))

    rebuilt = host.rebuild("ledger")

    assert rebuilt.position == position
    assert rows_of(host, ledger) == before
    assert position_of(host, "ledger") == (position, 1, 2)


def test_indexes_and_constraints_are_there_generation_after_generation(host_of: HostOf) -> None:
    """After each of three swaps the tables have the same indexes and constraints as at first."""
    ledger = make_ledger()
    host = host_of(ledger)
    host.append(moves(ledger, 0, 30))
    host.catch_up()

    def demands() -> dict[str, Any]:
        with host.database.read() as connection:
            seen = inspect(connection)
            return {
                name: (
                    sorted(
                        (one["column_names"], bool(one["unique"]))
                        for one in seen.get_indexes(name)
                        if not one.get("duplicates_constraint")
                    ),
                    sorted(one["column_names"] for one in seen.get_unique_constraints(name)),
                    seen.get_pk_constraint(name)["constrained_columns"],
                    [
                        (one["name"], str(one["type"]), one["nullable"])
                        for one in seen.get_columns(name)
                    ],
                )
                for name in ledger.tables
            }

    first = demands()
    for generation in (2, 3, 4):
        host.rebuild("ledger")
        assert demands() == first
        codes = ledger.tables["ledger_codes"]
        with pytest.raises(IntegrityError), host.database.write() as connection:
            connection.execute(insert(codes), [{"entity": n, "code": "same"} for n in "ab"])
        assert position_of(host, "ledger")[2] == generation
    assert first["ledger_accounts"][0] == [(["moves"], False), (["moves", "entity"], False)]


@pytest.mark.old_code
def test_a_new_version_brings_other_tables_and_columns(host_of: HostOf) -> None:
    """Old tables serve until the swap, then the new ones, and going back is one more rebuild."""
    old, new = make_ledger(1), make_ledger(2)
    host = host_of(old)
    host.append(moves(old, 0, 60))
    host.catch_up()
    before = rows_of(host, old)
    newer = host_of(new)
    with pytest.raises(ProjectorOutdated, match="projections rebuild ledger"):
        newer.catch_up()
    assert {one.name: one.state for one in newer.statuses()}["ledger"] == "outdated"
    assert rows_of(host, old) == before

    rebuilt = newer.rebuild("ledger")

    assert {one.table: (one.live is None, one.rebuilt is None) for one in rebuilt.tables} == {
        "ledger_accounts": (True, False),
        "ledger_codes": (True, True),
        "ledger_labels": (True, False),
    }
    assert table_names(newer) == set(new.tables)
    newer.append(moves(new, 60, 5))
    newer.catch_up()
    assert sum(row[1] for row in rows_of(newer, new)["ledger_accounts"]) == 65
    with pytest.raises(ProjectorOutdated, match="newer than this code"):
        host.catch_up()
    assert {one.name: one.state for one in host.statuses()}["ledger"] == "retired"
    odd = len(newer.ax(contexts="odd"))

    host.rebuild("ledger")
    host.append(moves(old, 65, 5))
    host.catch_up()

    assert table_names(host) == set(old.tables)
    assert sum(row[1] for row in rows_of(host, old)["ledger_accounts"]) == 70
    assert len(host.ax(contexts="odd")) == odd + 3


@pytest.mark.old_code
def test_a_batch_that_a_new_version_overtakes_is_undone_by_name(host_of: HostOf) -> None:
    """While a batch is in hand, tables of another shape wait, or the batch is undone by name."""
    old, new = make_ledger(1), make_ledger(2)
    host, newer = host_of(old), host_of(new)
    host.append(moves(old, 0, 10))
    beside = Beside(lambda: newer.rebuild("ledger"))

    with faults.planned({"batch.after_read": beside.meet}), suppress(QntxError):
        host.catch_up()
    beside.end()
    newer.catch_up()

    assert isinstance(beside.outcome, Rebuilt)
    assert sum(row[1] for row in rows_of(newer, new)["ledger_accounts"]) == 10
    assert len(newer.ax(contexts="odd")) == 5


@pytest.mark.old_code
def test_a_runner_that_a_new_version_overtakes_goes_on(host_of: HostOf) -> None:
    """A running host whose batch is overtaken by other tables keeps its threads."""
    old, new = make_ledger(1), make_ledger(2)
    host, newer = host_of(old), host_of(new)
    host.append(moves(old, 0, 10))
    beside = Beside(lambda: newer.rebuild("ledger"))

    def has_stopped() -> bool:
        return "projector:ledger" not in {one.name for one in threading.enumerate()}

    with faults.planned({"batch.after_read": beside.meet}), host.running():
        assert wait_until(lambda: beside.outcome is not None)
        assert not wait_until(has_stopped, 0.5)
    assert isinstance(beside.outcome, Rebuilt)


@pytest.mark.old_code
def test_a_version_is_rolled_out_and_back_while_both_run(host_of: HostOf) -> None:
    """No row of either is lost or of the wrong shape, and old tables go without their code."""
    old, new = make_ledger(1), make_ledger(2)
    host, newer = host_of(old), host_of(new)
    host.append(moves(old, 0, 20))
    host.catch_up()

    with host.running(), newer.running():
        host.append(moves(old, 20, 20))
        newer.rebuild("ledger")
        newer.wait_for(host.append(moves(old, 40, 20))[-1].position, "ledger", timeout=BOUND)
        rolled_out = rows_of(newer, new)
        names = table_names(newer)
        host.rebuild("ledger")
        host.wait_for(newer.append(moves(new, 60, 20))[-1].position, "ledger", timeout=BOUND)
    host.catch_up()

    assert names == set(new.tables)
    assert sum(row[1] for row in rolled_out["ledger_accounts"]) == 60
    assert table_names(host) == set(old.tables)
    assert sum(row[1] for row in rows_of(host, old)["ledger_accounts"]) == 80
    assert len(host.ax(contexts="odd")) == 40
    assert host.rebuild("ledger").is_same


def test_leftovers_of_a_dead_rebuild_are_dropped(host_of: HostOf) -> None:
    """Tables that a rebuild left when it died go with the next one, and none of another domain."""
    ledger = make_ledger()
    other = Domain("ledger2")
    other.table("things", Column("entity", String, primary_key=True))
    host = host_of(ledger, other)
    host.append(moves(ledger, 0, 10))
    host.catch_up()
    with host.database.write() as connection:
        connection.execute(text("CREATE TABLE ledger_accounts__g7 (entity text PRIMARY KEY)"))
        connection.execute(text("CREATE TABLE ledger2_things__g7 (entity text PRIMARY KEY)"))

    rebuilt = host.rebuild("ledger")

    assert rebuilt.is_same
    assert table_names(host) == {*ledger.tables, *other.tables, "ledger2_things__g7"}


@pytest.mark.rebuild_killed
def test_of_two_rebuilds_at_once_one_gives_way(host_of: HostOf) -> None:
    """Live is right in the end, and whoever lost is told so by name."""
    ledger = make_ledger()
    host, other = host_of(ledger), host_of(make_ledger())
    host.append(moves(ledger, 0, 100))
    host.catch_up()
    before = rows_of(host, ledger)

    for point in (one for one in faults.POINTS if one.startswith("rebuild.")):
        beside = Beside(lambda: other.rebuild("ledger"))
        with faults.planned({point: beside.meet}), suppress(QntxError):
            host.rebuild("ledger")
        beside.end()

        assert isinstance(beside.outcome, Rebuilt | QntxError), point
        assert rows_of(host, ledger) == before, point
        host.catch_up()
        assert host.rebuild("ledger").is_same, point
        assert table_names(host) == set(ledger.tables), point


def test_rebuilds_in_two_threads_leave_live_right(host_of: HostOf) -> None:
    """However two rebuilds meet, both end, by a swap or a named error."""
    ledger = make_ledger()
    hosts = host_of(ledger), host_of(make_ledger())
    hosts[0].append(moves(ledger, 0, 200))
    hosts[0].catch_up()
    before = rows_of(hosts[0], ledger)
    lost: list[QntxError] = []

    def rebuild(host: Host) -> Callable[[], None]:
        def run() -> None:
            for _ in range(3):
                try:
                    host.rebuild("ledger")
                except QntxError as error:
                    lost.append(error)

        return run

    with in_threads(*(rebuild(host) for host in hosts)) as troubles:
        pass

    assert troubles == []
    assert rows_of(hosts[0], ledger) == before
    assert hosts[0].rebuild("ledger").is_same
    assert table_names(hosts[0]) == set(ledger.tables)


def test_the_first_to_finish_leaves_the_tables_of_the_second_alone(host_of: HostOf) -> None:
    """A rebuild that begins between the swap and the end of another one is not disturbed by it."""
    ledger = make_ledger()
    host, other = host_of(ledger), host_of(make_ledger())
    host.append(moves(ledger, 0, 100))
    host.catch_up()
    planned, dropped = threading.Event(), threading.Event()
    outcome: list[object] = []

    def begin_second() -> None:
        if threading.current_thread().name != "second":
            second.start()
            assert planned.wait(BOUND)

    def has_planned() -> None:
        if threading.current_thread().name == "second":
            planned.set()
            assert dropped.wait(BOUND)

    def run_second() -> None:
        try:
            outcome.append(other.rebuild("ledger"))
        except QntxError as error:
            outcome.append(error)

    second = threading.Thread(target=run_second, name="second")
    with faults.planned(
        {"rebuild.before_drop": begin_second, "rebuild.after_planned": has_planned}
    ):
        assert host.rebuild("ledger").is_same
        dropped.set()
        second.join(BOUND)

    assert len(outcome) == 1
    assert rows_of(host, ledger) == rows_of(other, ledger)
    assert host.rebuild("ledger").is_same
    assert table_names(host) == set(ledger.tables)


@pytest.mark.inline_leaves_nothing_out
def test_an_inline_domain_is_rebuilt_while_jobs_are_requested(host_of: HostOf) -> None:
    """Pulse is rebuilt under load: no job is lost, run twice or forgotten by its table."""
    ledger = Domain("ledger")
    ran: list[str] = []

    @ledger.job()
    def work(job: Job, services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        ran.append(job.id)

    host = host_of(ledger)
    stopping = threading.Event()
    asked: list[str] = []

    def ask() -> None:
        while not stopping.wait(PAUSE_SECONDS):
            asked.append(host.append(work.request(entity="repo")).id)

    with host.running(), in_threads(ask) as troubles:
        try:
            rebuilt = [host.rebuild("pulse") for _ in range(3)]
        finally:
            stopping.set()
    host.catch_up(jobs=True)

    assert troubles == []
    assert all(one.is_same for one in rebuilt)
    assert sorted(ran) == sorted(asked)
    assert host.rebuild("pulse").is_same
    with host.database.read() as connection:
        found = connection.execute(text("SELECT job, status FROM pulse_jobs")).all()
    assert sorted(map(tuple, found)) == sorted((one, "succeeded") for one in asked)


def test_what_fails_in_bulk_is_rebuilt_one_by_one(host_of: HostOf) -> None:
    """A read model that is right one attestation at a time can be rebuilt, whatever its batches."""
    names = Domain("names")
    codes = names.table(
        "codes",
        Column("entity", String, primary_key=True),
        Column("code", String, unique=True),
    )

    @names.project(Moved)
    def hand_on(moved: Recorded[Moved], rows: Rows) -> None:
        rows.put(codes, entity=moved.entity, code=moved.payload.code)

    host = host_of(names)
    said = [("a", "x"), ("b", None), ("b", "y"), ("a", None), ("b", "x"), ("a", "y")]
    said += [("b", None), ("a", "x"), ("b", "y")]
    host.append([names.attest(Moved(amount=1, code=code), entity=entity) for entity, code in said])
    host.catch_up()
    before = rows_of(host, names)

    rebuilt = host.rebuild("names")

    assert rebuilt.is_same
    assert rows_of(host, names) == before == {"names_codes": [("a", "x"), ("b", "y")]}


def test_statements_of_handlers_are_pointed_at_the_fresh_tables(host_of: HostOf) -> None:
    """Whatever statement a handler runs, in a rebuild it meets the fresh tables and no others."""
    domain = Domain("spoken")
    table = domain.table(
        "table",
        Column("entity", String, primary_key=True),
        Column("n", Integer, nullable=False, default=3),
        Column("note", JSON),
    )
    log = domain.table(
        "log",
        Column("position", Integer, primary_key=True),
        Column("said", String, nullable=False),
    )

    @domain.project(Moved)
    def run(moved: Recorded[Moved], rows: Rows) -> None:
        n = moved.payload.amount
        many = table.alias("many")
        sub = select(table.c.n.label("n")).where(table.c.n > 1).subquery()
        cte = select(func.max(table.c.n).label("n")).cte("most")
        answers = [
            rows.execute(insert(table).values(entity=f"{moved.entity} {n}", note={"n": n})),
            rows.execute(update(table).values(n=table.c.n + 1).where(table.c.n < 9)),
            rows.execute(update(table).values({table.c.n: 5}).where(table.c.entity == "none")),
            rows.execute(
                delete(table).where(table.c.n > select(func.count(table.c.n)).scalar_subquery() + 9)
            ),
            rows.execute(
                insert(table).from_select(
                    ["entity", "n"],
                    select(table.c.entity + "'", table.c.n).where(table.c.n == 4).limit(1),
                )
            )
            if n == 5
            else 0,
            rows.select(
                select(table.c.n, many.c.n)
                .join(many, many.c.n == table.c.n)
                .order_by(table.c.n, many.c.n)
            ),
            rows.select(select(func.sum(sub.c.n))),
            rows.select(select(cte.c.n)),
            rows.select(select(func.count()).select_from(table)),
            rows.select(
                select(table.c.entity)
                .where(table.c.n.in_(select(many.c.n)))
                .order_by(table.c.entity)
            ),
        ]
        rows.put(log, position=moved.position, said=repr(answers)[:2000])

    host = host_of(domain)
    host.append(moves(domain, 0, 12))
    host.catch_up()
    before = rows_of(host, domain)

    rebuilt = host.rebuild("spoken")

    assert rebuilt.is_same
    assert rows_of(host, domain) == before
    assert len(before["spoken_log"]) == 12


def test_progress_is_told_from_nothing_to_all(host_of: HostOf) -> None:
    """Whoever asks hears of every state, and the count of what is done never goes back."""
    ledger = make_ledger()
    host = host_of(ledger)
    host.append(moves(ledger, 0, 100))
    host.catch_up()
    heard: list[RebuildProgress] = []

    host.rebuild("ledger", progress=heard.append)

    assert heard[-1].state == "swapped"
    assert heard[-1].done == heard[-1].total
    assert [one.done for one in heard] == sorted(one.done for one in heard)


@pytest.mark.swap_under_readers
def test_a_swap_that_a_reader_never_lets_through_gives_up_by_name(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A reader that never ends costs the rebuild, which says so, and costs nobody else."""
    monkeypatch.setattr(rebuilding, "SWAP_SECONDS", 0.5)
    ledger = make_ledger()
    host = Host(postgres_url, [ledger])
    request.addfinalizer(host.close)
    host.upgrade()
    host.append(moves(ledger, 0, 10))
    host.catch_up()
    before = rows_of(host, ledger)
    engine = create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    request.addfinalizer(engine.dispose)

    with engine.connect() as connection:
        connection.execute(select(ledger.tables["ledger_accounts"])).all()
        with pytest.raises(QntxError, match="reader"):
            host.rebuild("ledger")

    assert rows_of(host, ledger) == before
    host.append(moves(ledger, 10, 1))
    host.catch_up()
    assert host.rebuild("ledger").is_same
