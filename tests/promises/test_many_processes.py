"""Appenders, runners, rebuilds and readers in processes of their own, killed and stopped at will.

Each writes down what it is about to do and what came of it, as the checker of histories reads it
(`qntx_es.testing.histories`). When the killing stops, lag, leases and rows have to come to rest;
then all that is left is held against what was promised. The plan of the killer is drawn by a
number that a failure tells; the moments are the machine's, so a rerun is another one.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, String, create_engine, select, text
from sqlalchemy.exc import DBAPIError

from qntx_es import (
    AppendConditionFailed,
    Attestation,
    Ax,
    DatabaseUnavailable,
    Domain,
    Host,
    LogBusy,
    Payload,
    PositionPending,
    QntxError,
    ReadRows,
    Receipt,
    Recorded,
    Rows,
    Settings,
    faults,
)
from qntx_es.log import Log
from qntx_es.projections.cursor import lease_name
from qntx_es.projections.slices import ALL
from qntx_es.tables import leases
from qntx_es.testing import PostgresServer
from qntx_es.testing.histories import Deed, Entry, Evidence, Move, State, deeds_of, violations

BOUND = 60
LEASE_SECONDS = 1.0
ACCOUNTS = 12
SIZE_MAX = 3
# Appenders rest between two appends, for up to so much of the whole: a night's log is as readable.
PAUSE = 0.0002
# By day two lives of each role, and a bit.
DEEDS = 16
GROWTH = 40
PATIENCE_SECONDS = 1.0
NAMES = ("ledger", "audit", "mirror")
ROLES = ("own", "own", "caller", "caller", "runner", "runner", "rebuilder", "reader")
SECONDS = [pytest.param(5), pytest.param(600, marks=pytest.mark.nightly)]


class Moved(Payload, context="moved"):
    """Something went to an account."""

    amount: int


class Flagged(Payload, context="flagged"):
    """The ledger found a sum to be odd."""

    total: int


def domains() -> list[Domain]:
    """Return a ledger that flags, an audit of its flags, and a mirror that is projected inline."""
    ledger, audit = Domain("ledger", emits=(Flagged,)), Domain("audit")
    mirror = Domain("mirror", inline=True)
    sums = ledger.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("moves", BigInteger, nullable=False, default=0),
        Column("total", BigInteger, nullable=False, default=0),
        Column("last", BigInteger),
    )

    @ledger.project(Moved)
    def add(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(sums, moved.entity, moves=1, total=moved.payload.amount)
        rows.put(sums, entity=moved.entity, last=moved.payload.amount)

    @ledger.derive(Moved)
    def flag(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:
        row = rows.get(sums, moved.entity)
        assert row is not None
        if row.total % 7 == 0:
            yield ledger.attest(Flagged(total=row.total), entity=moved.entity)

    flags, moves = (
        domain.table(
            "counts",
            Column("entity", String, primary_key=True),
            Column("number", BigInteger, nullable=False, default=0),
            Column("last", BigInteger),
        )
        for domain in (audit, mirror)
    )

    @audit.project(Flagged)
    def count_flag(flagged: Recorded[Flagged], rows: Rows) -> None:
        rows.add(flags, flagged.entity, number=1)
        rows.put(flags, entity=flagged.entity, last=flagged.payload.total)

    @mirror.project(Moved)
    def count_move(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(moves, moved.entity, number=1)
        rows.put(moves, entity=moved.entity, last=moved.payload.amount)

    return [ledger, audit, mirror]


# What the processes do, each until it is killed.


class History:
    """What one process writes down; whatever was written outlives it."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def write(self, line: str) -> None:
        """Write a line at once."""
        os.write(self._file, line.encode())


class Appender:
    """Appends and appends; where it does not know what came of it, it says the same again.

    A caller does so in transactions of his own, with an order in his own table, and sometimes
    thinks better of it.
    """

    def __init__(self, host: Host, url: str, history: History, who: str, pause: float) -> None:
        self._host = host
        self._orders = create_engine(url)
        self._history = history
        self._who = who
        self._pause = pause
        self._draw = random.Random(who)  # noqa: S311 - moments, not secrets

    def run(self, *, is_caller: bool) -> None:
        """Go on until killed."""
        number = 0
        while True:
            number += 1
            said = [self._say(number, n) for n in range(self._draw.randint(1, SIZE_MAX))]
            entity = f"account {self._draw.randrange(ACCOUNTS)}"
            is_odd = self._draw.random() < 0.2
            asked = Deed(
                self._who,
                number,
                "invoke",
                tuple(one.id for one in said),
                entity if is_odd and not is_caller else None,
                until_known(self._host.log.head),
            )
            while not self._try(asked, said, is_caller=is_caller, is_kept=not is_odd):
                time.sleep(0.02)
            time.sleep(self._draw.random() * self._pause)

    def _try(self, asked: Deed, said: list[Attestation], *, is_caller: bool, is_kept: bool) -> bool:
        """Append once, and tell whether it is known what came of it."""
        self._history.write(asked.line())
        positions: tuple[int, ...] = ()
        state: State = "ok"
        try:
            if not is_caller:
                positions = self._append(asked, said)
            elif not (positions := self._order(asked, said, is_kept=is_kept)):
                state = "fail"
        except AppendConditionFailed:
            state = "fail"
        except (DatabaseUnavailable, LogBusy, PositionPending, DBAPIError):
            state = "unknown"
        self._history.write(replace(asked, state=state, positions=positions).line())
        return state != "unknown"

    def _append(self, asked: Deed, said: list[Attestation]) -> tuple[int, ...]:
        if asked.entity is None:
            return placed(self._host.append(said))
        unless = Ax(entities=asked.entity)
        return placed(self._host.append(said, unless=unless, after=asked.after))

    def _order(self, asked: Deed, said: list[Attestation], *, is_kept: bool) -> tuple[int, ...]:
        with self._orders.connect() as connection:
            receipts = self._host.append(said, session=connection)
            ordered = text("INSERT INTO orders VALUES (:id) ON CONFLICT DO NOTHING")
            connection.execute(ordered, {"id": f"{asked.who}.{asked.number}"})
            if not is_kept:
                connection.rollback()
                return ()
            connection.commit()
        return placed(receipts)

    def _say(self, number: int, n: int) -> Attestation:
        return Attestation(
            context="moved",
            entity=f"account {self._draw.randrange(ACCOUNTS)}",
            actor="x",
            payload={"amount": self._draw.randint(-50, 50)},
            id=f"{self._who}.{number}.{n}",
        )


def placed(receipts: list[Receipt]) -> tuple[int, ...]:
    """Return positions."""
    return tuple(one.position for one in receipts)


def until_known(ask: Callable[[], int]) -> int:
    """Ask until the database answers."""
    while True:
        try:
            return ask()
        except (DatabaseUnavailable, LogBusy):
            time.sleep(0.02)


def read_on(log: Log, history: History) -> None:
    """Read on and on, and write down what was seen."""
    position = 0
    while True:
        with suppress(DatabaseUnavailable, LogBusy):
            for one in log.read(after=position, limit=50):
                history.write(json.dumps([one.position, one.id]) + "\n")
                position = one.position
        time.sleep(0.005)


def rebuild_on(host: Host, draw: random.Random) -> None:
    """Rebuild one domain after another; who is in the way is told by name."""
    while True:
        with suppress(QntxError):
            host.rebuild(draw.choice(NAMES))
        time.sleep(0.05)


def play(role: str, who: str, url: str, folder: Path, pause: float) -> None:
    """Be one of the processes, until killed."""
    if url.startswith("postgresql"):
        url = f"{url}&application_name={role}"
    host = Host(url, domains(), settings=Settings(lease_seconds=LEASE_SECONDS))
    history = History(folder / f"{role}-{who}")
    until_known(host.log.head)
    if role == "reader":
        read_on(host.log, history)
    elif role == "rebuilder":
        rebuild_on(host, random.Random(who))  # noqa: S311 - moments, not secrets
    elif role == "runner":
        run_on(host)
    else:
        Appender(host, url, history, who, pause).run(is_caller=role == "caller")


def run_on(host: Host) -> None:
    """Run; who finds the database gone while it begins, begins again."""
    while True:
        with suppress(DatabaseUnavailable, LogBusy), host.running():
            while True:
                signal.pause()


def main() -> None:
    """Fork a process for each line that is read: its role, and what it is called."""
    url, folder, pause = sys.argv[1:]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who are killed
    for line in sys.stdin:
        role, who = line.split()
        process = os.fork()
        if process == 0:
            play(role, who, url, Path(folder), float(pause))
        print(process, flush=True)  # noqa: T201 - a program's output


# Who starts, stops and kills them.


class Crowd:
    """The processes that play, by their numbers; whoever is killed is replaced."""

    def __init__(self, program: "subprocess.Popen[str]") -> None:
        self._program = program
        self._lives = 0
        self._running: dict[int, str] = {}
        self._asleep: dict[int, float] = {}
        for role in ROLES:
            self._start(role)

    def kill(self) -> None:
        """Kill whoever has lived longest, and put another one in its place."""
        victim = next(iter(self._running))
        self._start(self._end(victim))

    def stop(self, draw: random.Random) -> None:
        """Stop one where it stands; it is woken once its lease is over."""
        victim = draw.choice([one for one in self._running if one not in self._asleep])
        os.kill(victim, signal.SIGSTOP)
        self._asleep[victim] = time.monotonic() + 1.5 * LEASE_SECONDS

    def wake(self, *, everybody: bool = False) -> None:
        """Wake those whose time has come."""
        for victim, until in list(self._asleep.items()):
            if everybody or time.monotonic() >= until:
                del self._asleep[victim]
                os.kill(victim, signal.SIGCONT)

    def end(self, *roles: str) -> None:
        """Kill all who have one of these roles."""
        for victim in [one for one, role in self._running.items() if role in roles]:
            self._end(victim)

    def _end(self, victim: int) -> str:
        os.kill(victim, signal.SIGKILL)
        self._asleep.pop(victim, None)
        return self._running.pop(victim)

    def _start(self, role: str) -> None:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._lives += 1
        self._program.stdin.write(f"{role} {role}{self._lives}\n")
        self._program.stdin.flush()
        self._running[int(self._program.stdout.readline())] = role


@contextmanager
def crowd(url: str, folder: Path, pause: float) -> Iterator[Crowd]:
    """Run the program above in many processes, and leave none behind."""
    with subprocess.Popen(
        [sys.executable, __file__, url, str(folder), str(pause)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        processes = Crowd(program)
        try:
            yield processes
        finally:
            processes.end(*ROLES)
            program.kill()


WATCHED = "CREATE TABLE seen_moves (domain text, position bigint, token bigint"
SEE = """INSERT INTO seen_moves (domain, position, token)
    VALUES (NEW.domain, NEW.position, NEW.token)"""
WATCH = {
    # Within the transaction that moves a cursor, and in the order of those: it holds its row.
    "sqlite": [
        f"{WATCHED}, number integer PRIMARY KEY)",
        f"CREATE TRIGGER seen_moves AFTER UPDATE ON qntx_cursors BEGIN {SEE}; END",
    ],
    "postgresql": [
        f"{WATCHED}, number bigserial)",
        f"""CREATE FUNCTION see_move() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN {SEE}; RETURN NULL; END $$""",
        """CREATE TRIGGER seen_moves AFTER UPDATE ON qntx_cursors
            FOR EACH ROW EXECUTE FUNCTION see_move()""",
    ],
}


def come_to_rest(host: Host) -> None:
    """Wait until every projector is at a head that moves no more, under a lease that is alive."""
    # First the inbox: what a killed caller has left there is given its place by a runner's look.
    until_none(host.log.waiting)
    head = -1
    while head != (head := host.log.head()):
        for name in host.domains:
            host.wait_for(head, name, timeout=BOUND)
    states = {one.name: one.state for one in host.statuses()}
    # Who was killed while he rebuilt is believed to be at it, until somebody wants to.
    assert set(states.values()) <= {"live", "inline", "rebuilding"}, states
    until_none(lambda: stale_leases(host))


def left_behind(host: Host) -> list[str]:
    """Return the roles of the killed for whom the server still works: a commit may be in hand."""
    if host.database.is_sqlite:
        return []
    with host.database.read() as connection:
        asked = "SELECT application_name FROM pg_stat_activity WHERE application_name IN "
        return list(connection.execute(text(f"{asked} ('own', 'caller', 'rebuilder')")).scalars())


def stale_leases(host: Host) -> list[str]:
    """Return the leases that nobody keeps.

    Whoever appends moves an inline projector: nobody takes over what a killed rebuild held of it.
    """
    inline = [lease_name(one.name, ALL) for one in host.domains.values() if one.inline]
    with host.database.read() as connection:
        now = host.database.now(connection)
        lapsed = select(leases.c.name).where(leases.c.expires_at < now)
        return list(connection.execute(lapsed.where(leases.c.name.not_in(inline))).scalars())


def until_none(left: Callable[[], object]) -> None:
    """Look until nothing is left, with a limit."""
    deadline = time.monotonic() + BOUND
    while found := left():
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def evidence_of(host: Host, folder: Path, undisturbed: Host) -> Evidence:
    """Gather all that is left, and what one undisturbed host makes of the same moves."""
    written = {one.name: one.read_text().splitlines(keepends=True) for one in folder.iterdir()}
    log = list(host.log.read())
    moves = [one for one in log if one.context == "moved"]
    for start in range(0, len(moves), 1_000):
        undisturbed.append([as_said(one) for one in moves[start : start + 1_000]])
    undisturbed.catch_up()
    with host.database.read() as connection:
        asked = text("SELECT domain, position, token FROM seen_moves ORDER BY number")
        seen = [Move(*row) for row in connection.execute(asked)]
    return Evidence(
        deeds=[
            one
            for name, lines in written.items()
            if "reader" not in name
            for one in deeds_of(lines)
        ],
        log=[
            Entry(
                one.position,
                one.id,
                one.entity,
                one.text,
                one.caused_by if one.context == "flagged" else None,
                one.context.startswith("qntx."),
            )
            for one in log
        ],
        readings={
            name: [tuple(json.loads(one)) for one in lines if one.endswith("\n")]
            for name, lines in written.items()
            if "reader" in name
        },
        moves=seen,
        derived={one.id: one.text for one in undisturbed.ax(contexts="flagged")},
        rows=rows_of(host),
        folded=rows_of(undisturbed),
    )


def as_said(recorded: Recorded) -> Attestation:
    """Return what was said, to be said elsewhere."""
    return Attestation(
        context=recorded.context,
        entity=recorded.entity,
        actor=recorded.actor,
        payload=recorded.payload,
        id=recorded.id,
    )


def rows_of(host: Host) -> dict[str, list[Any]]:
    """Return every row of the three read models."""
    with host.database.read() as connection:
        return {
            name: [tuple(row) for row in connection.execute(select(table))]
            for domain in NAMES
            for name, table in host.domain(domain).tables.items()
        }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresServer]:
    """Start a server of our own, to be crashed."""
    monkeypatch.delenv("QNTX_TEST_POSTGRES_URL", raising=False)
    with PostgresServer.start() as server:
        yield server


@pytest.mark.gap
@pytest.mark.derive_once
@pytest.mark.zombie
@pytest.mark.rebuild_killed
@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_many_processes_have_done_is_one_story(
    kind: str, seconds: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Killed, stopped past their leases, and the database with them: nothing contradicts."""
    server: PostgresServer | None = None
    url = f"sqlite:///{tmp_path / 'qntx.db'}"
    if kind == "postgresql":
        server = request.getfixturevalue("server")
        url = server.create_database()
    with ExitStack() as stack:
        host = stack.enter_context(Host(url, domains()))
        host.upgrade()
        with host.database.write() as connection:
            for statement in (*WATCH[kind], "CREATE TABLE orders (id text PRIMARY KEY)"):
                connection.execute(text(statement))
        folder = tmp_path / "histories"
        folder.mkdir()

        with crowd(url, folder, pause=PAUSE * seconds) as processes:
            disturb(processes, host, seconds, server)
            host.database.close()  # its connections were the old server's
            processes.wake(everybody=True)
            processes.end("own", "caller", "rebuilder")
            until_none(lambda: left_behind(host))
            come_to_rest(host)
            processes.end("runner", "reader")

        undisturbed = stack.enter_context(
            Host(f"sqlite:///{tmp_path / 'undisturbed.db'}", domains())
        )
        undisturbed.upgrade()
        evidence = evidence_of(host, folder, undisturbed)
        assert [str(one) for one in violations(evidence)[:10]] == []
        assert all(host.verify(name).is_same for name in NAMES)
        assert orders_of(host) == {
            one.id.rpartition(".")[0] for one in evidence.log if one.id.startswith("caller")
        }
        met = {one.state for one in evidence.deeds}
        assert "ok" in met
        faults.sometimes("an append was refused amid kills", is_met="fail" in met)
        faults.sometimes("nobody knew what came of an append", is_met="unknown" in met)


def disturb(processes: Crowd, host: Host, seconds: float, server: PostgresServer | None) -> None:
    """Kill and stop for so long, and each role at least once; crash the server half way, or often.

    Between two deeds the log grows, so that a slow machine is not only killed and started.
    """
    draw = random.Random(seconds)  # noqa: S311 - moments, not secrets
    begun, deeds, crashes = time.monotonic(), 0, 0
    while deeds < DEEDS or time.monotonic() - begun < seconds:
        growth, patience = draw.randrange(GROWTH), time.monotonic() + PATIENCE_SECONDS
        head = until_known(host.log.head)
        while until_known(host.log.head) < head + growth and time.monotonic() < patience:
            processes.wake()
            time.sleep(0.01)
        deeds += 1
        if draw.random() < 0.75:
            processes.kill()
        else:
            processes.stop(draw)
        if server is not None and deeds > min(DEEDS // 2, 60) * (2 * crashes + 1):
            crashes += 1
            server.restart_immediately()


def orders_of(host: Host) -> set[str]:
    """Return the orders that callers have committed."""
    with host.database.read() as connection:
        return set(connection.execute(text("SELECT id FROM orders")).scalars())


if __name__ == "__main__":
    main()
