"""Who comes first: the inbox, the lock, and the one way from the one to the other."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import Connection, text

from qntx_es import (
    Attestation,
    Ax,
    ConflictingAttestation,
    Host,
    LogBusy,
    PositionPending,
    faults,
)
from qntx_es.database import Database
from qntx_es.faults import Crash, crash
from qntx_es.inbox import PASS_ROWS_MAX
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer

BOUND = 30


def said(entity: str = "a", **parts: object) -> Attestation:
    """Say something small."""
    fields = {"context": "seen", "actor": "ann", "payload": {"n": 1}} | parts
    return Attestation(entity=entity, **fields)  # type: ignore[arg-type]


class Opened:
    """A database with its log and its sequencer."""

    def __init__(self, url: str, seconds: float = 10) -> None:
        self.database = Database(url, timeout=timedelta(seconds=seconds))
        self.database.upgrade()
        self.sequencer = Sequencer(self.database)
        self.log = Log(self.database, self.sequencer)

    def entities(self) -> list[str]:
        """Return whom the log is about, in order, having checked that it is dense."""
        read = list(self.log.read())
        assert [one.position for one in read] == list(range(1, len(read) + 1))
        return [one.entity for one in read]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close at the end what a test leaves open."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def on(url: str, stack: ExitStack) -> Opened:
    """Open each database."""
    opened = Opened(url)
    stack.callback(opened.database.close)
    return opened


@pytest.fixture
def pg(postgres_url: str, stack: ExitStack) -> Opened:
    """Open PostgreSQL, which has an inbox."""
    opened = Opened(postgres_url)
    stack.callback(opened.database.close)
    return opened


@pytest.fixture
def hasty(postgres_url: str, stack: ExitStack) -> Opened:
    """Open PostgreSQL with little patience."""
    opened = Opened(postgres_url, seconds=0.2)
    stack.callback(opened.database.close)
    return opened


@pytest.fixture
def begin(pg: Opened, stack: ExitStack) -> Callable[[], Connection]:
    """Begin transactions that are a caller's own; what he does not commit is rolled back."""
    return lambda: stack.enter_context(pg.database.engine.connect())


def test_what_a_caller_drops_comes_with_his_commit(on: Opened) -> None:
    """Dropped in a transaction, attestations are in the log after its commit and a pass."""
    on.log.append(said("before"))

    with on.database.write() as connection:
        on.sequencer.drop(connection, [said("b"), said("c")])
    on.sequencer.run_pass()

    assert on.entities() == ["before", "b", "c"]
    assert on.log.waiting() == 0


@pytest.mark.holes
def test_what_a_caller_rolls_back_was_never_said(on: Opened) -> None:
    """A rollback leaves nothing, neither in the log nor waiting, and no position is missing."""

    def drop_and_fail() -> None:
        with on.database.write() as connection:
            on.sequencer.drop(connection, [said("gone")])
            raise LookupError

    with pytest.raises(LookupError):
        drop_and_fail()
    on.sequencer.run_pass()

    on.log.append(said("stays"))
    assert on.entities() == ["stays"]
    assert on.log.waiting() == 0


def test_what_waits_comes_before_the_next_append(pg: Opened) -> None:
    """An append empties the inbox first: what was committed before it stands before it."""
    with pg.database.write() as connection:
        pg.sequencer.drop(connection, [said("first"), said("second")])
    assert (pg.log.head(), pg.log.waiting()) == (0, 2)

    receipt = pg.log.append(said("third"))

    assert receipt.position == 3
    assert pg.entities() == ["first", "second", "third"]


def test_nobody_sees_what_is_not_committed(pg: Opened, begin: Callable[[], Connection]) -> None:
    """What an open transaction dropped is not in the log, and holds nobody up."""
    idle = begin()
    pg.sequencer.drop(idle, [said("late")])

    positions = [pg.log.append(said(str(n))).position for n in range(3)]
    pg.sequencer.run_pass()

    assert positions == [1, 2, 3]
    assert pg.entities() == ["0", "1", "2"]
    idle.commit()
    pg.sequencer.run_pass()
    assert pg.entities() == ["0", "1", "2", "late"]


@pytest.mark.whole_and_causal
def test_whole_transactions_are_ordered_by_their_last_number(
    pg: Opened, begin: Callable[[], Connection]
) -> None:
    """No transaction is interleaved, and who finished later comes later."""
    a, b, c = begin(), begin(), begin()
    pg.sequencer.drop(a, [said("a1")])
    pg.sequencer.drop(b, [said("b1")])
    pg.sequencer.drop(c, [said("c1"), said("c2")])
    pg.sequencer.drop(b, [said("b2")])
    pg.sequencer.drop(a, [said("a2"), said("a3")])
    for connection in (a, b, c):
        connection.commit()

    pg.sequencer.run_pass()

    assert pg.entities() == ["c1", "c2", "b1", "b2", "a1", "a2", "a3"]


@pytest.mark.whole_and_causal
def test_no_effect_stands_before_its_cause(pg: Opened, begin: Callable[[], Connection]) -> None:
    """Who has read another's commit comes after it, though he began to speak before."""
    effect, cause = begin(), begin()
    pg.sequencer.drop(effect, [said("preface")])
    pg.sequencer.drop(cause, [said("cause")])
    cause.commit()
    pg.sequencer.drop(effect, [said("effect")])
    effect.commit()

    pg.sequencer.run_pass()

    assert pg.entities() == ["cause", "preface", "effect"]


def test_a_savepoint_rolled_back_takes_its_statements_with_it(
    pg: Opened, begin: Callable[[], Connection]
) -> None:
    """Exactly what lived at the commit is appended."""
    caller = begin()
    pg.sequencer.drop(caller, [said("kept")])
    savepoint = caller.begin_nested()
    pg.sequencer.drop(caller, [said("undone")])
    savepoint.rollback()
    with caller.begin_nested():
        pg.sequencer.drop(caller, [said("released")])
    caller.commit()

    pg.sequencer.run_pass()

    assert pg.entities() == ["kept", "released"]


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_callers_isolation_changes_nothing(pg: Opened, stack: ExitStack, level: str) -> None:
    """A caller may isolate himself as he likes: what he commits is in the log."""
    engine = pg.database.engine.execution_options(isolation_level=level)
    caller = stack.enter_context(engine.connect())
    caller.execute(text("SELECT count(*) FROM qntx_attestations"))
    pg.log.append(said("meanwhile"))

    pg.sequencer.drop(caller, [said("said")])
    caller.commit()
    pg.sequencer.run_pass()

    assert pg.entities() == ["meanwhile", "said"]


@pytest.mark.same_id
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("is_same", [True, False])
def test_of_twins_in_flight_at_any_isolation_one_is_there(
    pg: Opened,
    stack: ExitStack,
    level: str,
    is_same: bool,  # noqa: FBT001 - drawn by name
) -> None:
    """Who waited for his twin says the same, is refused by name, or is told to begin again."""
    engine = pg.database.engine.execution_options(isolation_level=level)
    first, second = (stack.enter_context(engine.connect()) for _ in range(2))
    for caller in (first, second):
        caller.execute(text("SELECT count(*) FROM qntx_attestations"))
    pg.sequencer.drop(first, [said("one", id="x")])
    with ThreadPoolExecutor(1) as pool:
        twin = said("one" if is_same else "another", id="x")
        late = pool.submit(pg.sequencer.drop, second, [twin])
        until(lambda: waits_for_a_transaction(pg))
        first.commit()
        trouble = late.exception(BOUND)
    (second.rollback if trouble else second.commit)()
    pg.sequencer.run_pass()

    assert pg.entities() == ["one"]
    if level == "READ COMMITTED":
        assert trouble is None if is_same else isinstance(trouble, ConflictingAttestation)
    else:
        assert "could not serialize access" in str(trouble)
    assert pg.log.append(said("one", id="x")).position == 1


def waits_for_a_transaction(pg: Opened) -> bool:
    """Tell whether somebody waits for another's transaction to end."""
    asked = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")
    with pg.database.read() as connection:
        return bool(connection.execute(asked).scalar_one())


def test_the_same_statement_waiting_and_appended_is_there_once(pg: Opened) -> None:
    """A twin in the inbox and an append of the same bytes are one attestation."""
    with pg.database.write() as connection:
        pg.sequencer.drop(connection, [said(id="x"), said("b")])

    receipts = pg.log.append([said(id="x"), said("c")])

    assert [receipt.position for receipt in receipts] == [1, 3]
    assert pg.entities() == ["a", "b", "c"]


def test_the_same_statement_dropped_twice_is_there_once(on: Opened) -> None:
    """Two transactions that drop the same statement leave one."""
    for _ in range(2):
        with on.database.write() as connection:
            on.sequencer.drop(connection, [said(id="x"), said(id="x")])
    on.sequencer.run_pass()

    assert on.entities() == ["a"]


def test_other_bytes_in_the_inbox_are_refused(on: Opened) -> None:
    """An id that waits names a statement already: another one is refused and takes all with it."""
    with on.database.write() as connection:
        on.sequencer.drop(connection, [said(id="x")])

    def drop_another() -> None:
        with on.database.write() as connection:
            on.sequencer.drop(connection, [said("new"), said(id="x", payload={"n": 2})])

    with pytest.raises(ConflictingAttestation):
        drop_another()
    on.sequencer.run_pass()

    assert on.entities() == ["a"]


@pytest.mark.holes
def test_a_twin_in_flight_is_dropped_without_a_hole(
    pg: Opened, begin: Callable[[], Connection]
) -> None:
    """A pass that meets an id the log has already passes over it, and numbers stay dense."""
    caller = begin()
    pg.sequencer.drop(caller, [said("b"), said(id="x"), said("c")])
    pg.log.append(said(id="x"))
    caller.commit()

    pg.sequencer.run_pass()

    assert pg.entities() == ["a", "b", "c"]
    assert pg.log.waiting() == 0


@pytest.mark.same_id
def test_a_conflicting_twin_in_flight_does_not_vanish_in_silence(
    pg: Opened, begin: Callable[[], Connection]
) -> None:
    """Too late to be refused, a statement under a taken id is set aside where it can be found."""
    caller = begin()
    pg.sequencer.drop(caller, [said("lost", id="x", payload={"n": 2})])
    pg.log.append(said(id="x"))
    caller.commit()

    pg.sequencer.run_pass()

    refused = [one for one in pg.log.read() if one.context == "qntx.append_refused"]
    assert refused, "the statement is neither in the log nor reported"


def test_a_pass_goes_on_past_a_full_load_of_twins(
    pg: Opened, begin: Callable[[], Connection]
) -> None:
    """A pass leaves nothing waiting, though its first ten thousand rows were all there already."""
    many = [said(str(n), id=str(n)) for n in range(PASS_ROWS_MAX)]
    caller, next_caller = begin(), begin()
    pg.sequencer.drop(caller, many)
    pg.log.append(many)
    caller.commit()
    pg.sequencer.drop(next_caller, [said("last")])
    next_caller.commit()

    pg.sequencer.run_pass()

    assert pg.log.waiting() == 0
    assert pg.log.head() == PASS_ROWS_MAX + 1


def test_more_than_a_load_is_moved_by_one_pass(pg: Opened, begin: Callable[[], Connection]) -> None:
    """However much waits, a pass leaves nothing, whole transactions in order."""
    for part in range(3):
        caller = begin()
        pg.sequencer.drop(caller, [said(f"{part}.{n}") for n in range(PASS_ROWS_MAX // 2 + 1)])
        caller.commit()

    pg.sequencer.run_pass()

    wanted = [f"{part}.{n}" for part in range(3) for n in range(PASS_ROWS_MAX // 2 + 1)]
    assert pg.entities() == wanted


def test_an_append_behind_a_held_lock_waits_in_the_inbox(pg: Opened) -> None:
    """Who finds the lock taken commits first and is numbered as soon as it is free."""
    held, found = threading.Event(), []
    release = threading.Event()

    def hold() -> None:
        with pg.sequencer.held():
            held.set()
            assert release.wait(BOUND)

    def append() -> None:
        found.append(pg.log.append([said("b"), said("c")]))

    holder, appender = threading.Thread(target=hold), threading.Thread(target=append)
    holder.start()
    assert held.wait(BOUND)
    appender.start()
    until(lambda: pg.log.waiting() == 2)
    assert (pg.log.head(), found) == (0, [])
    release.set()
    holder.join(BOUND)
    appender.join(BOUND)

    (receipts,) = found
    assert [receipt.position for receipt in receipts] == [1, 2]
    assert pg.entities() == ["b", "c"]


def test_a_lock_held_too_long_leaves_the_append_safe(hasty: Opened) -> None:
    """`PositionPending` means committed: the next pass gives the position, asked again or not."""
    with hasty.sequencer.held():
        with pytest.raises(PositionPending):
            hasty.log.append(said(id="x"))
        assert (hasty.log.head(), hasty.log.waiting()) == (0, 1)

    assert hasty.log.append(said(id="x")).position == 1

    assert hasty.entities() == ["a"]
    assert hasty.log.waiting() == 0


def test_a_decision_behind_a_lock_held_too_long_is_refused(hasty: Opened) -> None:
    """A decision needs the lock: it gives up by name, and nothing of it is written."""
    with hasty.sequencer.held(), pytest.raises(LogBusy):
        hasty.log.decide(lambda _: [said()])

    assert (hasty.log.head(), hasty.log.waiting()) == (0, 0)


BEFORE_COMMIT = """
    CREATE FUNCTION wait_for_the_test() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM pg_advisory_xact_lock(1);
      RETURN NULL;
    END $$;
    CREATE TRIGGER wait_for_the_test AFTER INSERT ON qntx_attestations
    FOR EACH STATEMENT EXECUTE FUNCTION wait_for_the_test();
"""


@pytest.mark.look_again
@pytest.mark.parametrize("how", ["append", "condition", "decide", "run_pass", "join"])
def test_who_lets_go_looks_again(pg: Opened, begin: Callable[[], Connection], how: str) -> None:
    """What came to the inbox while the lock was held is numbered by whoever held it."""
    # As a caller of his own engine commits: with nobody there to make a pass for him.
    caller = begin()
    ways: dict[str, Callable[[], object]] = {
        "append": lambda: pg.log.append(said("holder")),
        "condition": lambda: pg.log.append(said("holder"), unless=Ax(entities="nobody")),
        "decide": lambda: pg.log.decide(lambda _: [said("holder")]),
        "run_pass": pg.sequencer.run_pass,
        "join": lambda: pg.log.append(said("holder")),
    }
    with pg.database.write() as connection:
        connection.execute(text(BEFORE_COMMIT))
        if how == "run_pass":
            pg.sequencer.drop(connection, [said("holder")])

    with ThreadPoolExecutor(1) as holder:
        with pg.database.write() as gate:
            gate.execute(text("SELECT pg_advisory_xact_lock(1)"))
            with ExitStack() as taken:
                if how == "join":
                    taken.enter_context(pg.sequencer.held())
                done = holder.submit(ways[how])
                if how == "join":
                    until(lambda: pg.log.waiting() == 1)
            until(lambda: waits_at_the_gate(pg))
            pg.sequencer.drop(caller, [said("meanwhile")])
            caller.commit()
            pg.sequencer.look_again()
            assert pg.log.waiting() > 0
        done.result(BOUND)

    assert pg.entities() == ["holder", "meanwhile"]


def waits_at_the_gate(pg: Opened) -> bool:
    """Tell whether somebody waits before his commit, with the log's lock."""
    asked = text(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database WHERE NOT granted"
        " AND locktype = 'advisory' AND objid = 1 AND datname = current_database()"
    )
    with pg.database.read() as connection:
        return bool(connection.execute(asked).scalar_one())


@pytest.mark.holes
def test_an_append_that_fails_at_its_commit_leaves_no_hole(on: Opened) -> None:
    """A crash before the commit leaves neither rows nor a gap in the numbers."""
    with faults.planned({"append.before_commit": crash()}), pytest.raises(Crash):
        on.log.append([said(), said()])

    assert on.log.append(said("next")).position == 1
    assert on.entities() == ["next"]


@pytest.mark.same_id
def test_an_append_whose_answer_was_lost_can_be_sent_again(on: Opened) -> None:
    """After a crash behind the commit the same append gives the first receipts."""
    many = [said("a", id="a"), said("b", id="b")]
    with faults.planned({"append.after_commit": crash()}), pytest.raises(Crash):
        on.log.append(many)

    assert [receipt.position for receipt in on.log.append(many)] == [1, 2]
    assert on.entities() == ["a", "b"]


@pytest.mark.parametrize("signalled", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_killed_while_it_holds_the_lock_holds_nobody_up(
    on: Opened, url: str, signalled: signal.Signals
) -> None:
    """The lock of a process that dies goes with it, and so does what it had not committed."""
    with child(HOLD, url) as process:
        wait_for_line(process)
        process.send_signal(signalled)
        process.wait(BOUND)

    assert on.log.append(said("next")).position == 1
    assert on.entities() == ["next"]


def test_a_process_killed_while_waiting_loses_nothing_it_committed(pg: Opened, url_of: str) -> None:
    """What it had put into the inbox is numbered by whoever comes next."""
    with pg.sequencer.held(), child(APPEND, url_of) as process:
        until(lambda: pg.log.waiting() == 2)
        process.kill()
        process.wait(BOUND)

    pg.log.append(said("next"))

    assert pg.entities() == ["one", "two", "next"]


@pytest.mark.stalled_holder
@pytest.mark.parametrize(
    "holds", [pytest.param("before it moves", marks=pytest.mark.nightly), "before its commit"]
)
def test_a_stopped_process_is_cut_off_and_cannot_commit(
    pg: Opened, url_of: str, holds: str
) -> None:
    """A holder that is stopped loses the lock, and waking up it cannot commit over others."""
    with child(HOLD if holds == "before it moves" else HOLD_MOVED, url_of, "1") as process:
        wait_for_line(process)
        process.send_signal(signal.SIGSTOP)
        try:
            assert pg.log.append(said("others")).position == 1
        finally:
            process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.wait(BOUND) != 0

    assert pg.entities() == ["others"]


@pytest.mark.look_again
def test_what_came_during_the_pass_of_a_killed_process_enters_by_itself(
    pg: Opened, url_of: str
) -> None:
    """Wherever a holder is killed, a running host finds what waits without any further append."""
    points = ("pass.after_lock", "pass.before_commit", "pass.after_commit")
    with Host(url_of) as host, child(STAND_STILL, url_of) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for count, point in enumerate(points):
            drop(pg, f"before {point}")
            process.stdin.write(f"{point}\n")
            process.stdin.flush()
            holder = int(process.stdout.readline())
            wait_for_line(process)
            drop(pg, f"during {point}")
            os.kill(holder, signal.SIGKILL)

            with host.running():
                until(partial(has_grown, pg, 2 * count + 2))
        process.kill()

    assert pg.entities() == [f"{when} {one}" for one in points for when in ("before", "during")]


def has_grown(pg: Opened, head: int) -> bool:
    """Tell whether the log ends there by now."""
    return pg.log.head() == head


def drop(pg: Opened, entity: str) -> None:
    """Leave a statement in the inbox, with nobody there to make a pass."""
    with pg.database.write() as connection:
        pg.sequencer.drop(connection, [said(entity)])


@pytest.fixture
def url_of(postgres_url: str) -> str:
    """Give the URL of the database that `pg` has open."""
    return postgres_url


PREPARE = """
import sys
from qntx_es import Attestation
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer
database = Database(sys.argv[1])
sequencer = Sequencer(database)
log = Log(database, sequencer)
def said(entity):
    return Attestation(context="seen", entity=entity, actor="ann", payload={})
"""
HOLD = """
def choose(turn):
    turn.read(__import__("sqlalchemy").text("SELECT 1"))
    print("holding", flush=True)
    sys.stdin.readline()
    return [said("stale")]
log.decide(choose)
"""
HOLD_MOVED = """
from qntx_es import faults
def hold():
    print("holding", flush=True)
    sys.stdin.readline()
with faults.planned({"append.before_commit": hold}):
    log.decide(lambda turn: [said("stale")])
"""
# One that is forked for each point, and waits there to be killed.
STAND_STILL = """
import os, signal
from qntx_es import faults
def hold():
    print("holding", flush=True)
    signal.pause()
for point in sys.stdin:
    if os.fork() == 0:
        with faults.planned({point.strip(): hold}):
            print(os.getpid(), flush=True)
            sequencer.run_pass()
"""
APPEND = """
log.append([said("one"), said("two")])
"""


def child(script: str, url: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process of our own."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE + script, url, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def wait_for_line(process: subprocess.Popen[str]) -> None:
    """Wait until the process says that it is there."""
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"


def until(is_so: Callable[[], bool]) -> None:
    """Look again until it is so, with a limit."""
    pause = threading.Event()
    for _ in range(BOUND * 100):
        if is_so():
            return
        pause.wait(0.01)
    pytest.fail("it did not come to pass")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_stricter_default_of_the_server_changes_nothing(
    pg: Opened, postgres_url: str, stack: ExitStack, level: str
) -> None:
    """Whatever isolation the database gives by default, appends at once all succeed, in order."""
    name = pg.database.engine.url.database
    with pg.database.write() as connection:
        connection.execute(
            text(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
        )
    opened = Opened(postgres_url)
    stack.callback(opened.database.close)

    def append(writer: int) -> None:
        for n in range(20):
            opened.log.append(said(f"{writer}.{n}"))

    with ThreadPoolExecutor(6) as writers:
        list(writers.map(append, range(6)))

    assert sorted(opened.entities()) == sorted(f"{w}.{n}" for w in range(6) for n in range(20))
