"""The host: one composition root, and what people say and ask through it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Integer, String, create_engine, select

from qntx_es import (
    Attestation,
    Domain,
    ForeignContext,
    Host,
    InvalidPayload,
    Payload,
    ProjectorStopped,
    QntxError,
    ReadRows,
    Recorded,
    Rows,
    UnknownDomain,
    WaitTimeout,
)

BOUND = 30


class Seen(Payload, context="seen"):
    """Something was counted."""

    n: int = 1


class Counted(Payload, context="counted"):
    """What follows from it."""

    n: int


def counting(**options: Any) -> Domain:  # noqa: ANN401 - Domain's own
    """Make a domain that counts what was seen, and says so."""
    domain = Domain("code", **({"emits": ("seen", "counted")} | options))
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("n", Integer, nullable=False, default=0),
    )

    @domain.project(Seen)
    def count(seen: Recorded[Seen], rows: Rows) -> None:
        rows.add(counts, seen.entity, n=seen.payload.n)

    if not domain.inline:

        @domain.derive(Seen)
        def tell(seen: Recorded[Seen], rows: ReadRows) -> Iterator[Attestation]:
            row = rows.get(counts, seen.entity)
            assert row is not None
            yield domain.attest(Counted(n=row.n), entity=seen.entity)

    return domain


@pytest.fixture
def host_of(url: str) -> Iterator[Callable[..., Host]]:
    """Make hosts of domains over one database, as many as a test likes."""
    hosts: list[Host] = []

    def make(*domains: Domain, **options: Any) -> Host:  # noqa: ANN401 - Host's own
        hosts.append(Host(url, domains, **options))
        hosts[-1].upgrade()
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def counts(host: Host) -> dict[str, int]:
    """Read what was counted."""
    table = host.domain("code").tables["code_counts"]
    with host.database.read() as connection:
        return {row.entity: row.n for row in connection.execute(select(table))}


def said(payload: Any, context: str = "seen", **parts: Any) -> Attestation:  # noqa: ANN401
    """Say something as plain data."""
    return Attestation(context=context, entity="a", actor="ann", payload=payload, **parts)


def test_the_whole_loop_closes(host_of: Callable[..., Host]) -> None:
    """Appended, projected, derived, and in the log again, with its cause."""
    host = host_of(counting())
    host.append([said({"n": 2}), said({"n": 3})])

    host.catch_up()

    assert counts(host) == {"a": 5}
    derived = host.ax(contexts="counted")
    assert [one.payload["n"] for one in derived] == [2, 5]
    assert [one.caused_by for one in derived] == [one.id for one in host.ax(contexts="seen")]


def test_a_payload_is_held_against_the_class_of_who_emits_it(
    host_of: Callable[..., Host],
) -> None:
    """What the emitting domain could not read is refused; other contexts and versions are free."""
    host = host_of(counting())

    for wrong in ({"n": "many"}, {"n": None}, {"n": 1.5}):
        with pytest.raises(InvalidPayload, match="n:"):
            host.append([said({"n": 1}), said(wrong)])
    assert host.ax() == []

    host.append([said({"n": 1, "more": "is ignored"}), said({"x": 1}, "unheard_of")])
    host.append(said({"n": "many"}, schema_version=2))
    assert len(host.ax()) == 3


def test_a_reader_that_emits_nothing_holds_nobody_to_its_class(
    host_of: Callable[..., Host],
) -> None:
    """Only who declares a context in `emits` says what fits it."""
    host = host_of(counting(emits=("counted",)))

    host.append(said({"n": "many"}))

    assert len(host.ax()) == 1


@pytest.mark.parametrize(
    "context", ["qntx.append_refused", "qntx.x", "pulse.job_started", "pulse."]
)
def test_the_frameworks_contexts_are_its_own(host_of: Callable[..., Host], context: str) -> None:
    """Nobody says what only Pulse and the framework say."""
    host = host_of()

    with pytest.raises(ForeignContext):
        host.append([said({}), said({}, context)])

    assert host.ax() == []


@pytest.mark.parametrize("context", ["Pulse.job_started", "pulse", "qntx", "pulses.x", "qntx_x"])
def test_what_only_looks_reserved_is_free(host_of: Callable[..., Host], context: str) -> None:
    """Names near the framework's belong to everybody."""
    assert host_of().append(said({}, context)).position == 1


def test_a_derived_statement_in_a_foreign_name_stops_its_projector(
    host_of: Callable[..., Host],
) -> None:
    """A derive handler that speaks for another writes neither that nor its rows."""
    domain = Domain("code", emits=("counted",))

    @domain.derive(Seen)
    def tell(seen: Recorded[Seen], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        yield said({"n": 1}, seen.payload.n * "price")

    host = host_of(domain)
    host.append(said({"n": 1}))

    with pytest.raises(ProjectorStopped, match="tell"):
        host.catch_up()
    assert [one.context for one in host.ax()] == ["seen"]
    assert {one.name: one.state for one in host.statuses()}["code"] == "stopped"


def test_parts_of_a_query_may_be_given_by_keyword(host_of: Callable[..., Host]) -> None:
    """`host.ax` takes the parts of an Ax, and refuses a part that there is not."""
    host = host_of()
    host.append([said({}, "one"), said({}, "two")])

    assert [one.context for one in host.ax(contexts="two", limit=1)] == ["two"]
    with pytest.raises((TypeError, QntxError)):
        host.ax(context="two")


def test_waiting_reads_your_own_writes(host_of: Callable[..., Host]) -> None:
    """Behind `wait_for` the rows hold what was appended."""
    host = host_of(counting())
    with host.running():
        for n in range(1, 4):
            receipt = host.append(said({"n": 1}))
            host.wait_for(receipt.position, "code", timeout=BOUND)
            assert counts(host) == {"a": n}


def test_waiting_ends(host_of: Callable[..., Host]) -> None:
    """Nobody waits longer than he said, nor for a domain that there is not."""
    host = host_of(counting())
    host.append(said({"n": 1}))

    with pytest.raises(WaitTimeout, match="did not reach 1"):
        host.wait_for(1, "code", timeout=0.01)
    with pytest.raises(UnknownDomain, match="did you mean `code`"):
        host.wait_for(1, "codes")
    host.wait_for(0, "code", timeout=0)


@pytest.mark.inline_leaves_nothing_out
def test_an_inline_domain_is_there_with_the_append(host_of: Callable[..., Host]) -> None:
    """Its rows hold what was appended when the append returns, and a rebuild agrees."""
    host = host_of(counting(inline=True))

    host.append(said({"n": n}) for n in range(4))

    assert counts(host) == {"a": 6}
    assert host.rebuild("code").is_same


@pytest.mark.inline_leaves_nothing_out
def test_an_inline_domain_that_fails_holds_up_no_append(host_of: Callable[..., Host]) -> None:
    """A handler that raises degrades its domain, and the append goes through."""
    domain = Domain("code", inline=True)
    broken = [True]

    @domain.project(Seen)
    def count(seen: Recorded[Seen], rows: Rows) -> None:  # noqa: ARG001 - its shape
        if broken[0]:
            raise LookupError

    host = host_of(domain)

    assert host.append(said({"n": 1})).position == 1
    assert {one.name: one.state for one in host.statuses()}["code"] == "degraded"

    broken[0] = False
    host.catch_up()
    assert {one.name: one.state for one in host.statuses()}["code"] == "inline"


def test_two_hosts_share_the_work(host_of: Callable[..., Host]) -> None:
    """Two hosts that run one domain over one database count everything once."""
    hosts = [host_of(counting()), host_of(counting())]
    with hosts[0].running(), hosts[1].running():
        for n in range(20):
            receipt = hosts[n % 2].append(said({"n": 1}))
        hosts[0].wait_for(receipt.position, "code", timeout=BOUND)

    assert counts(hosts[0]) == {"a": 20}
    hosts[0].catch_up()
    assert len(hosts[0].ax(contexts="counted")) == 20


def test_an_engine_of_the_callers_is_taken(url: str) -> None:
    """A host runs over an Engine, too, and closing the host leaves the engine of use."""
    prefix, _, rest = url.partition("://")
    engine = create_engine(url if prefix == "sqlite" else f"postgresql+psycopg://{rest}")
    host = Host(engine, [counting()])
    host.upgrade()
    host.append(said({"n": 1}))
    host.catch_up()

    assert counts(host) == {"a": 1}
    host.close()
    with engine.connect() as connection:
        assert connection.execute(select(1)).scalar_one() == 1
    engine.dispose()


def test_a_closed_host_opens_again(host_of: Callable[..., Host]) -> None:
    """Closing gives connections back; the next call makes new ones."""
    host = host_of()
    host.append(said({}))

    host.close()

    assert host.append(said({})).position == 2


def test_running_leaves_no_thread_behind(host_of: Callable[..., Host]) -> None:
    """Whatever ends the block, all threads have ended with it."""
    before = set(threading.enumerate())
    host = host_of(counting())

    def run_and_fail() -> None:
        with host.running():
            host.append(said({"n": 1}))
            raise LookupError

    with pytest.raises(LookupError):
        run_and_fail()

    assert {one for one in threading.enumerate() if one.is_alive()} <= before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run(sqlite_url: str, number: signal.Signals) -> None:
    """`run` comes back after SIGTERM or SIGINT, and puts back the handlers it found."""
    host = Host(sqlite_url, [counting()])
    host.upgrade()
    before = signal.getsignal(number)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()

    host.run()

    assert signal.getsignal(number) is before
    timer.join(BOUND)
    host.close()
