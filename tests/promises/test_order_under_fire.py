"""Whatever dies, idles or is cut off, the order goes on, and what was acknowledged is there once.

Acknowledged means committed, in the log or in the inbox. Whoever does not know appends again under
the same ids. At every moment each reader has read 1…p without a hole, and reads on from there.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from qntx_es import (
    Attestation,
    Ax,
    DatabaseUnavailable,
    Host,
    LogBusy,
    NotYetCommitted,
    QntxError,
    Recorded,
)
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer
from qntx_es.testing import PostgresServer

BOUND = 60
# Far less than an idle caller idles, and than any timeout of ours.
AT_ONCE = timedelta(seconds=2)
HOLDER = """
    SELECT DISTINCT pid FROM pg_locks JOIN pg_database ON oid = database
    WHERE locktype = 'advisory' AND granted AND datname = current_database()
"""


def said(entity: str = "a", n: int = 0, **parts: object) -> Attestation:
    """Say something small."""
    fields = {"context": "seen", "actor": "ann", "payload": {"n": n}} | parts
    return Attestation(entity=entity, **fields)  # type: ignore[arg-type]


@dataclass
class Opened:
    """A log, an application's own engine beside it, and what is to be closed."""

    url: str
    stack: ExitStack
    timeout: timedelta = timedelta(seconds=10)
    database: Database = field(init=False)

    def __post_init__(self) -> None:
        self.database = Database(self.url, timeout=self.timeout)
        self.stack.callback(self.database.close)
        self.database.upgrade()
        self.sequencer = Sequencer(self.database)
        self.log = Log(self.database, self.sequencer)

    def engine(self, **options: int) -> Engine:
        """Open an engine of the application's."""
        engine = create_engine(self.url, **options)
        self.stack.callback(engine.dispose)
        return engine

    def entities(self) -> list[str]:
        """Return whom the log is about, in order, having seen that it is dense."""
        read = list(self.log.read())
        assert [one.position for one in read] == list(range(1, len(read) + 1))
        return [one.entity for one in read]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close at the end what a test leaves open."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def pg(postgres_url: str, stack: ExitStack) -> Opened:
    """Open an empty log on PostgreSQL."""
    return Opened(postgres_url, stack, AT_ONCE)


def kill(script: str, *arguments: str) -> None:
    """Run a process until it kills itself."""
    process = child(script, *arguments)
    _, trouble = process.communicate(timeout=BOUND)
    assert (process.returncode, trouble) == (-signal.SIGKILL, "")


def until(is_so: Callable[[], object]) -> None:
    """Look again until it is so, with a limit."""
    pause = threading.Event()
    for _ in range(BOUND * 100):
        if is_so():
            return
        pause.wait(0.01)
    pytest.fail("it did not come to pass")


# Callers that idle.


def test_idle_callers_hold_nobody_up(pg: Opened) -> None:
    """Beside open, old and prepared transactions every way in goes on at once, and reading too."""
    engine = pg.engine()
    plain = pg.stack.enter_context(engine.connect())
    old = pg.stack.enter_context(engine.execution_options(isolation_level="SERIALIZABLE").connect())
    prepared = pg.stack.enter_context(engine.connect())
    two_phase = prepared.begin_twophase()
    for name, caller in (("plain", plain), ("old", old), ("prepared", prepared)):
        pg.log.append([said(name), said(name)], session=caller)
    two_phase.prepare()

    with engine.begin() as busy:
        receipt = pg.log.append(said("busy"), session=busy)
    positions = [
        receipt.position,
        pg.log.append(said("own")).position,
        pg.log.append(said("unless"), unless=Ax(entities="unless")).position,
        pg.log.decide(lambda turn: [said(f"decided at {turn.position}")])[0].position,
    ]

    assert positions == [1, 2, 3, 4]
    assert pg.entities() == ["busy", "own", "unless", "decided at 3"]
    two_phase.commit()
    old.commit()
    plain.rollback()
    pg.sequencer.run_pass()
    # The order of what waited is that of the last words, whoever committed first.
    assert pg.entities()[4:] == ["old", "old", "prepared", "prepared"]


def test_an_idle_caller_on_sqlite_is_the_one_writer(sqlite_url: str, stack: ExitStack) -> None:
    """Others are told so by name, readers go on, and with his commit the order goes on."""
    on = Opened(sqlite_url, stack, timedelta(milliseconds=50))
    on.log.append(said("before"))

    with on.engine().begin() as idle:
        on.log.append(said("idle"), session=idle)
        with pytest.raises(LogBusy):
            on.log.append(said("refused"))
        assert on.entities() == ["before"]

    assert on.log.append(said("after")).position == 3
    assert on.entities() == ["before", "idle", "after"]


# Processes and connections that die.

CALLER = """
import os, signal, sys
from sqlalchemy import create_engine
from qntx_es import Attestation, Host, faults
from qntx_es.database import Database
from qntx_es.sequencer import Sequencer

url, point = sys.argv[1:]
host = Host(url)
with create_engine(url).begin() as connection:
    host.append(
        [Attestation(context="seen", entity=e, actor="ann", payload={"n": 0}) for e in "ab"],
        session=connection,
    )
if point == "commit":
    os.kill(os.getpid(), signal.SIGKILL)
with faults.planned({point: faults.kill()}):
    Sequencer(Database(url)).run_pass()
"""


@pytest.mark.parametrize("who", ["append", "caller", "receipt", "runner"])
def test_what_a_killed_process_left_comes_with_whoever_comes_next(pg: Opened, who: str) -> None:
    """Killed between his commit and its pass, a caller's attestations get their positions."""
    kill(CALLER, pg.url, "commit")
    assert (pg.log.head(), pg.log.waiting()) == (0, 2)

    with Host(pg.url) as host:
        if who == "append":
            assert host.append(said("next")).position == 3
        elif who == "caller":
            with pg.engine().begin() as connection:
                receipt = host.append(said("next"), session=connection)
            assert receipt.position == 3
        elif who == "receipt":
            host.catch_up()
        else:
            with host.running():
                until(lambda: host.log.head() == 2)

    assert pg.entities()[:2] == ["a", "b"]
    assert pg.log.waiting() == 0


@pytest.mark.parametrize("point", ["pass.before_commit", "pass.after_commit"])
def test_a_pass_killed_at_its_commit_is_made_again_or_was_made(pg: Opened, point: str) -> None:
    """Whole or not at all: either way both are in the log once, before whoever comes next."""
    kill(CALLER, pg.url, point)

    pg.log.append(said("next"))

    assert pg.entities() == ["a", "b", "next"]
    assert pg.log.waiting() == 0


def test_a_killed_backend_lets_go_of_the_lock(pg: Opened) -> None:
    """Who held the lock hears of it by name, nothing of his is there, and the next one goes on."""
    is_held, may_go = threading.Event(), threading.Event()
    troubles: list[BaseException] = []

    def decide() -> None:
        def choose(_: object) -> list[Attestation]:
            is_held.set()
            assert may_go.wait(BOUND)
            return [said("lost")]

        try:
            pg.log.decide(choose)
        except DatabaseUnavailable as error:
            troubles.append(error)

    holder = threading.Thread(target=decide)
    holder.start()
    assert is_held.wait(BOUND)
    with pg.engine().begin() as connection:
        (pid,) = connection.execute(text(HOLDER)).one()
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    receipt = pg.log.append(said("next"))
    may_go.set()
    holder.join(BOUND)

    assert receipt.position == 1
    assert [type(one) for one in troubles] == [DatabaseUnavailable]
    assert pg.log.append(said("last")).position == 2
    assert pg.entities() == ["next", "last"]


def test_a_caller_cut_off_at_his_commit_has_said_nothing_or_all(pg: Opened) -> None:
    """Killed before the commit, nothing of his transaction is in the log or waits."""
    engine = pg.engine()
    caller = pg.stack.enter_context(engine.connect())
    receipt = pg.log.append([said("a"), said("b")], session=caller)[0]
    pid = caller.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with engine.begin() as killer:
        killer.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    with pytest.raises(DBAPIError):
        caller.commit()

    with pytest.raises(NotYetCommitted):
        _ = receipt.position
    assert pg.log.waiting() == 0
    assert pg.log.append(said("next")).position == 1


# Connections that come back.


def test_a_connection_given_back_brings_nothing_along(pg: Opened) -> None:
    """After errors of every kind one pooled connection serves the next append, as good as new."""
    callers, ours = (pg.engine(pool_size=1, max_overflow=0) for _ in range(2))
    database = Database(ours, timeout=AT_ONCE)
    log = Log(database, Sequencer(database))
    log.append(said("first", id="one"))
    before = left_over(callers), left_over(ours)

    for trouble in (refuse, fail, fail_in_savepoint, leave_open):
        with callers.connect() as connection:
            trouble(log, connection)
        assert (left_over(callers), left_over(ours)) == before
        # Under the lock, with its own time-outs until the commit.
        log.append(said(trouble.__name__), unless=Ax(entities=trouble.__name__))
    with pytest.raises(LookupError):
        log.decide(look_up)

    assert (left_over(callers), left_over(ours)) == before
    assert [one[1:] for one in before] == [("0", "0", "0", 0)] * 2
    assert pg.entities() == ["first", "refuse", "fail", "fail_in_savepoint", "leave_open"]
    assert pg.log.waiting() == 0


def look_up(_: object) -> list[Attestation]:
    """Decide nothing, and fail."""
    raise LookupError


def refuse(log: Log, connection: Connection) -> None:
    """Be refused, and give the connection back with its transaction open."""
    with pytest.raises(QntxError):
        log.append([said("beside"), said(n=1, id="one")], session=connection)


def fail(log: Log, connection: Connection) -> None:
    """Append, and then fail in a statement of one's own."""
    log.append(said("gone"), session=connection)
    with pytest.raises(IntegrityError):
        connection.execute(text("DELETE FROM qntx_attestations"))


def fail_in_savepoint(log: Log, connection: Connection) -> None:
    """Fail behind a savepoint, and give the connection back with it."""
    connection.begin_nested()
    fail(log, connection)


def leave_open(log: Log, connection: Connection) -> None:
    """Append, and never commit."""
    log.append(said("never"), session=connection)


def left_over(engine: Engine) -> tuple[object, ...]:
    """Return which connection this is, its settings, and how many locks it holds."""
    with engine.connect() as connection:
        names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
        settings = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]
        asked = text(
            "SELECT pg_backend_pid(), (SELECT count(*) FROM pg_locks"
            " WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
        )
        pid, locks = connection.execute(asked).one()
        return pid, *settings, locks


def child(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process of our own."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


# All at once.

SIZES = (1, 3, 1, 7, 2)
THREADS, ROUNDS = 3, 25
WRITER = """
import sys, threading
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from qntx_es import Attestation, Ax, DatabaseUnavailable, LogBusy, PositionPending
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer

url, process, threads, rounds, *sizes = sys.argv[1:]
database = Database(url)
log = Log(database, Sequencer(database))
engine = create_engine(url)

def said(name, n, size):
    return Attestation(
        context="seen", entity=name, actor="ann", payload={"of": size}, id=f"{name}.{n}"
    )

def own(many):
    return log.append(many)

def conditional(many):
    return log.append(many, unless=Ax(entities=many[0].entity))

def caller(many):
    with engine.begin() as connection:
        return log.append(many, session=connection)

def hesitant(many):
    with engine.connect() as connection:
        log.append(said(f"gone {many[0].entity}", 0, 1), session=connection)
        connection.rollback()
        receipts = log.append(many[:1], session=connection)
        with connection.begin_nested() as savepoint:
            log.append(said(f"gone {many[0].entity}", 1, 1), session=connection)
            savepoint.rollback()
        with connection.begin_nested():
            receipts += log.append(many[1:], session=connection)
        connection.commit()
    return receipts

def insist(way, many):
    while True:
        try:
            return [receipt.position for receipt in way(many)]
        except (DatabaseUnavailable, LogBusy, PositionPending, DBAPIError) as error:
            # Whoever does not know says it again; anything else than a lost connection is a fault.
            orig = getattr(error, "orig", None)
            state = getattr(orig, "sqlstate", None) or "57P"
            if not state.startswith(("08", "57P")):
                raise
            threading.Event().wait(0.02)

def write(thread):
    for round in range(int(rounds)):
        name = f"{process}.{thread}.{round}"
        size = int(sizes[round % len(sizes)])
        way = (own, caller, conditional, hesitant)[(thread + round) % 4]
        positions = insist(way, [said(name, n, size) for n in range(size)])
        assert positions == list(range(positions[0], positions[0] + size)), (way, positions)
        sys.stdout.write(f"{name} {positions[0]}{chr(10)}")  # in one piece: others write too

print("ready", flush=True)
sys.stdin.readline()
writers = [threading.Thread(target=write, args=(n,)) for n in range(int(threads))]
for one in writers:
    one.start()
for one in writers:
    one.join()
"""


class Tail:
    """A reader that reads on and on, whatever becomes of the server meanwhile."""

    def __init__(self, url: str, limit: int | None, stack: ExitStack) -> None:
        self.seen: list[Recorded] = []
        self.failure: BaseException | None = None
        self._limit = limit
        self._last_round = threading.Event()
        database = Database(url)
        self._log = Log(database, Sequencer(database))
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()
        stack.callback(database.close)
        stack.callback(self.finish)

    def finish(self) -> list[Recorded]:
        """Read to the end, now that nobody writes any more."""
        self._last_round.set()
        self._thread.join(BOUND)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure
        return self.seen

    def _follow(self) -> None:
        pause = threading.Event()
        try:
            while True:
                is_last = self._last_round.is_set()
                before = len(self.seen)
                try:
                    self._read()
                except DatabaseUnavailable:
                    pause.wait(0.02)
                    continue
                if is_last and len(self.seen) == before:
                    return
                pause.wait(0.001)
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            self.failure = error

    def _read(self) -> None:
        for one in self._log.read(after=len(self.seen), limit=self._limit):
            assert one.position == len(self.seen) + 1
            self.seen.append(one)


def follow_writers(
    url: str, stack: ExitStack, disturb: Callable[[Callable[[], int]], None]
) -> list[Recorded]:
    """Let processes of threads append in every way while readers tail, and return the log."""
    tails = [Tail(url, limit, stack) for limit in (None, 1, 5)]
    numbers = [str(number) for number in (THREADS, ROUNDS, *SIZES)]
    writers = [child(WRITER, url, f"p{n}", *numbers) for n in range(2)]
    for writer in writers:
        stack.callback(writer.wait)
        stack.callback(writer.kill)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    disturb(lambda: len(tails[0].seen))
    answers = [writer.communicate(timeout=BOUND) for writer in writers]
    assert [trouble for _, trouble in answers] == ["", ""]
    database = Database(url)
    stack.callback(database.close)
    Sequencer(database).run_pass()
    log = list(Log(database, Sequencer(database)).read())
    for tail in tails:
        assert tail.finish() == log
    acknowledged = [line.split() for answer, _ in answers for line in answer.splitlines()]
    assert len(acknowledged) == 2 * THREADS * ROUNDS
    for name, first in acknowledged:
        assert log[int(first) - 1].id == f"{name}.0"
    assert Log(database, Sequencer(database)).waiting() == 0
    return log


def assert_whole(log: list[Recorded]) -> None:
    """Assert that each append is there once, whole and in its order, and nothing else is."""
    assert [one.position for one in log] == list(range(1, len(log) + 1))
    names = [
        (f"p{process}.{thread}.{turn}", SIZES[turn % len(SIZES)])
        for process in range(2)
        for thread in range(THREADS)
        for turn in range(ROUNDS)
    ]
    assert sorted(one.id for one in log) == sorted(
        f"{name}.{n}" for name, of in names for n in range(of)
    )
    for before, after in pairwise(log):
        name, _, n = after.id.rpartition(".")
        assert n == "0" or before.id == f"{name}.{int(n) - 1}", (before, after)
    times = [one.recorded_at for one in log]
    assert times == sorted(times)


TOTAL = 2 * THREADS * sum(SIZES[turn % len(SIZES)] for turn in range(ROUNDS))


@pytest.mark.gap
def test_every_reader_has_a_prefix_without_a_hole_at_all_times(url: str, stack: ExitStack) -> None:
    """Processes of threads append in every way at once, and readers of every pace miss nothing."""
    Opened(url, stack)

    log = follow_writers(url, stack, lambda _: None)

    assert_whole(log)


@pytest.mark.same_id
def test_backends_killed_amid_appends_lose_nothing(pg: Opened) -> None:
    """Again and again every connection is cut off: what was said again is there once."""
    everybody = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    killed: list[int] = []

    def kill_all(seen: Callable[[], int]) -> None:
        for part in range(1, 9):
            until(lambda part=part: seen() > TOTAL * part // 10)  # type: ignore[misc]
            with pg.engine().begin() as connection:
                killed.append(connection.execute(everybody).scalar_one())

    log = follow_writers(pg.url, pg.stack, kill_all)

    assert_whole(log)
    assert min(killed) > 0


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresServer]:
    """Start a server of our own, for one test to crash."""
    monkeypatch.delenv("QNTX_TEST_POSTGRES_URL", raising=False)
    with PostgresServer.start() as server:
        yield server


def test_a_crash_of_the_server_amid_appends_loses_nothing(
    own_server: PostgresServer, stack: ExitStack
) -> None:
    """Crashed twice, the server has all that was acknowledged, nothing by halves, and goes on."""
    url = own_server.create_database()
    Opened(url, stack)

    def crash(seen: Callable[[], int]) -> None:
        for part in (1, 2):
            until(lambda part=part: seen() > TOTAL * part // 3)  # type: ignore[misc]
            own_server.restart_immediately()

    log = follow_writers(url, stack, crash)

    assert_whole(log)
