"""What follows from an attestation is said once, whoever says it and however often they try."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
from sqlalchemy import Column, Integer, String, select, update

from qntx_es import (
    Attestation,
    Domain,
    Host,
    LeaseLost,
    Payload,
    ProjectorStopped,
    ReadRows,
    Recorded,
    Rows,
    faults,
)
from qntx_es.attestation import derived_id
from qntx_es.domain import OnFailure
from qntx_es.faults import Action
from qntx_es.tables import cursors

BOUND = 60
MOVES = 400
HostOf = Callable[..., Host]


class Moved(Payload, context="moved"):
    """Something moved."""

    amount: int


class Odd(Payload, context="odd"):
    """An odd amount, and how many moves there were by then."""

    moves: int
    which: int = 0


class Rung(Payload, context="rung"):
    """An echo."""

    n: int


def make_ledger(*, since: str | None = None) -> Domain:
    """Make a domain that derives two attestations from each odd amount."""
    domain = Domain("ledger", emits=("moved", "odd"))
    accounts = domain.table(
        "accounts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )
    totals = domain.table(
        "totals",
        Column("name", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(totals, "all", moves=1)
        rows.add(accounts, moved.entity, moves=1)
        if moved.payload.amount % 7 == 0:
            rows.select(select(accounts.c.moves).where(accounts.c.entity == moved.entity))

    @domain.derive(Moved, since=since)
    def say_odd(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:
        account = rows.get(accounts, moved.entity)
        assert account is not None
        for which in range(2 * (moved.payload.amount % 2)):
            yield domain.attest(Odd(moves=account.moves, which=which), entity=moved.entity)

    return domain


def moves(domain: Domain, start: int = 0, count: int = MOVES) -> list[Attestation]:
    """Return moves over a few accounts, with ids of their own."""
    return [
        domain.attest(Moved(amount=n), entity=f"account {n % 9}", id=f"move {n}")
        for n in range(start, start + count)
    ]


def assert_derived_once(host: Host, count: int = MOVES) -> None:
    """Assert that every odd move is answered by its two, with the rows as of it, and no more."""
    seen = dict.fromkeys(range(9), 0)
    wanted = {}
    for n in range(count):
        seen[n % 9] += 1
        for which in range(2 * (n % 2)):
            identity = derived_id(f"move {n}", "ledger", "say_odd", str(which))
            wanted[identity] = {"moves": seen[n % 9], "which": which}
    derived = host.ax(contexts="odd")
    assert {one.id: dict(one.payload) for one in derived} == wanted
    assert len(derived) == len(wanted)
    head = host.log.head()
    assert [one.position for one in host.log.read()] == list(range(1, head + 1))
    with host.database.read() as connection:
        asked = select(cursors.c.position).where(cursors.c.domain == "ledger")
        assert connection.execute(asked).scalar_one() == head
        table = select(next(iter(make_ledger().tables.values())))
        assert sum(row.moves for row in connection.execute(table)) == count


@pytest.fixture
def host_of(url: str) -> Iterator[HostOf]:
    """Make hosts of domains over one database, as many as a test likes."""
    hosts: list[Host] = []

    def make(*domains: Domain, size: int = 20) -> Host:
        host = Host(url, domains)
        hosts.append(host)
        host.upgrade()
        for runner in [each for them in host._projectors.values() for each in them.runners]:  # noqa: SLF001 - a host chooses its sizes by time
            runner.size = size
        return host

    yield make
    for host in hosts:
        host.close()


@pytest.mark.derive_once
def test_hosts_in_threads_derive_once(host_of: HostOf) -> None:
    """Three hosts that catch up at once leave every derived attestation exactly once."""
    hosts = [host_of(make_ledger(), size=size) for size in (7, 13, 20)]
    hosts[0].append(moves(make_ledger()))
    start = threading.Barrier(len(hosts))
    troubles: list[BaseException] = []

    def catch_up(host: Host) -> None:
        start.wait(BOUND)
        try:
            host.catch_up()
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            troubles.append(error)

    threads = [threading.Thread(target=catch_up, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)

    assert troubles == []
    hosts[0].catch_up()
    assert_derived_once(hosts[0])


def test_threads_of_one_host_derive_once(host_of: HostOf) -> None:
    """A host that is asked to catch up from several threads at once projects everything once."""
    host = host_of(make_ledger(), size=7)
    host.append(moves(make_ledger()))
    start = threading.Barrier(3)
    troubles: list[BaseException] = []

    def catch_up() -> None:
        start.wait(BOUND)
        try:
            host.catch_up()
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            troubles.append(error)

    threads = [threading.Thread(target=catch_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)

    assert troubles == []
    assert_derived_once(host)


def test_catching_up_while_running_projects_once(host_of: HostOf) -> None:
    """A running host may be asked to catch up, too."""
    host = host_of(make_ledger(), size=7)

    with host.running():
        for start in range(0, MOVES, 40):
            host.append(moves(make_ledger(), start, 40))
            host.catch_up()

    host.catch_up()
    assert_derived_once(host)


@pytest.mark.derive_once
def test_hosts_in_processes_derive_once(host_of: HostOf, url: str) -> None:
    """Two processes that catch up at once leave every derived attestation exactly once."""
    host = host_of(make_ledger())
    host.append(moves(make_ledger()))
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        troubles = [process.communicate("go\n", timeout=BOUND)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()

    assert troubles == ["", ""]
    host.catch_up()
    assert_derived_once(host)


# From `before_flush` on one writes, and the other waits for it.
@pytest.mark.derive_once
@pytest.mark.parametrize("point", ["batch.after_look", "batch.after_read"])
def test_whoever_is_overtaken_undoes_its_batch(host_of: HostOf, point: str) -> None:
    """A batch that another host overtakes at any point leaves nothing, and is read again."""
    slow, fast = host_of(make_ledger(), size=50), host_of(make_ledger(), size=30)
    slow.append(moves(make_ledger()))

    batches = slow._projectors["ledger"].runners[0].batches  # noqa: SLF001 - one batch, and no second try
    with faults.planned({point: Action(fast.catch_up)}), pytest.raises(LeaseLost):
        batches.step(50)

    slow.catch_up()
    assert_derived_once(slow)


@pytest.mark.derive_once
def test_a_cursor_that_is_set_back_says_nothing_twice(host_of: HostOf) -> None:
    """An id depends on its source alone, so a past that is met again is said again as it was."""
    ledger = make_ledger()
    host = host_of(ledger)
    host.append(moves(ledger, 0, 20))
    host.catch_up()
    head = host.log.head()
    with host.database.write() as connection:
        for table in ledger.tables.values():
            connection.execute(table.delete())
        connection.execute(update(cursors).where(cursors.c.domain == "ledger").values(position=0))

    again = host_of(make_ledger(), size=3)
    again.catch_up()

    assert again.log.head() == head
    assert_derived_once(again, 20)


@pytest.mark.loops
@pytest.mark.parametrize("on_failure", ["stop", "park"])
def test_a_chain_that_feeds_itself_ends(host_of: HostOf, on_failure: OnFailure) -> None:
    """A domain that answers its own answers ends at 64 links, as it chose, and tells the chain."""
    domain = Domain("echo", cycles=Rung, on_failure=on_failure)

    @domain.derive(Rung)
    def ring(rung: Recorded[Rung], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        yield domain.attest(Rung(n=rung.payload.n + 1), entity=rung.entity)

    host = host_of(domain)
    host.append(Attestation(context="moved", entity="bell", actor="a", payload={"amount": 1}))
    first = host.append(domain.attest(Rung(n=0), entity="bell"))

    with pytest.raises(ProjectorStopped) if on_failure == "stop" else nullcontext():
        host.catch_up()

    said = host.ax(contexts="rung")
    assert [one.depth for one in said] == list(range(65))
    assert [one.caused_by for one in said] == [None, *(one.id for one in said[:-1])]
    assert {one.correlation_id for one in said[1:]} == {first.id}
    status = {one.name: one for one in host.statuses()}["echo"]
    parked = host.parked("echo")
    found = [one for one in (status.failure, *parked) if one is not None]
    assert status.state == ("stopped" if on_failure == "stop" else "live")
    assert [(one.position, one.handler) for one in found] == [(67, "ring")]
    assert "DerivationTooDeep" in found[0].error
    assert " → ".join(f"rung ({number})" for number in (2, *range(4, 68))) in found[0].error


def test_what_is_derived_says_where_it_comes_from(host_of: HostOf) -> None:
    """Cause, correlation and depth of what is derived follow from the source's own."""
    ledger = make_ledger()
    host = host_of(ledger)
    said = [
        Attestation(context="moved", entity="a", actor="x", payload={"amount": 1}, id="first"),
        Attestation(
            context="moved",
            entity="b",
            actor="x",
            payload={"amount": 1},
            id="second",
            caused_by="somebody",
            correlation_id="story",
            depth=5,
        ),
    ]
    host.append(said)

    host.catch_up()

    derived = host.ax(contexts="odd")
    assert [(one.caused_by, one.correlation_id, one.depth) for one in derived] == [
        ("first", "first", 1),
        ("first", "first", 1),
        ("second", "story", 6),
        ("second", "story", 6),
    ]
    assert [one.id for one in derived] == [
        derived_id(source, "ledger", "say_odd", str(n))
        for source in ("first", "second")
        for n in (0, 1)
    ]


@pytest.mark.new_derive
@pytest.mark.parametrize("since", [None, "beginning"])
def test_a_domain_on_an_old_log_is_silent_about_the_past(
    host_of: HostOf, since: str | None
) -> None:
    """A domain seen first projects all of the past and derives of it only if it says so."""
    stranger = host_of(Domain("other"))
    stranger.append(moves(make_ledger(), 0, 10))
    host = host_of(make_ledger(since=since))
    host.catch_up()

    with host.database.read() as connection:
        table = make_ledger().tables["ledger_totals"]
        assert connection.execute(select(table.c.moves)).scalar_one() == 10
    assert len(host.ax(contexts="odd")) == (10 if since else 0)
    host.append(moves(make_ledger(), 10, 2))
    host.catch_up()
    assert {one.caused_by for one in host.ax(contexts="odd")} >= {"move 11"}
    assert len(host.ax(contexts="odd")) == (12 if since else 2)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (Attestation(context="foreign", entity="a", actor="ledger@plugin", payload={}), "Context"),
        (Attestation(context="odd", entity="a", actor="root@system", payload={}), "ForeignActor"),
        (
            Attestation(context="pulse.job_started", entity="a", actor="ledger@plugin", payload={}),
            "ForeignContext",
        ),
        ("not an attestation", "InvalidDerivation"),
        (None, "InvalidDerivation"),
        ({"context": "odd"}, "InvalidDerivation"),
    ],
)
def test_what_may_not_be_said_stops_the_projector(
    host_of: HostOf, said: object, error: str
) -> None:
    """A derive handler that yields what is not its to say stops by name, and nothing is said."""
    domain = Domain("ledger", emits=("moved", "odd"))

    @domain.derive(Moved)
    def say(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        yield domain.attest(Odd(moves=1), entity="a")
        yield said  # type: ignore[misc]

    host = host_of(domain)
    host.append(moves(domain, 0, 2))

    with pytest.raises(ProjectorStopped, match=error) as raised:
        host.catch_up()

    assert raised.value.position == 1
    assert host.log.head() == 2


def main() -> None:
    """Catch up in a process of its own, when told to."""
    host = Host(sys.argv[1], [make_ledger()])
    for runner in [each for them in host._projectors.values() for each in them.runners]:  # noqa: SLF001 - a host chooses its sizes by time
        runner.size = 5
    host.log.head()
    print("ready", flush=True)  # noqa: T201 - a program's output
    sys.stdin.readline()
    host.catch_up()
    host.close()


if __name__ == "__main__":
    main()
