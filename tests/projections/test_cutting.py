"""Ranges of slices: each at its own pace, shared by hosts, and cut anew while everything runs."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Column, String, select

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Payload,
    ProjectorPaused,
    ProjectorStopped,
    ReadRows,
    Recorded,
    Rows,
    Settings,
    count,
    last,
)
from qntx_es.attestation import SLICES, slice_of
from qntx_es.errors import CutRefused
from qntx_es.projections.slices import ALL, Slices, refined
from qntx_es.tables import cursors

BOUND = 30.0
ENTITIES = 40


class Moved(Payload, context="moved"):
    """Something went to an account."""

    amount: int


class Flagged(Payload, context="flagged"):
    """An account passed a round sum."""

    total: int


def make(handler: Callable[[Recorded[Moved]], object] = lambda _: None) -> Domain:
    """Make a domain of independent accounts, with a sum over all of them beside."""
    domain = Domain("ledger", by_entity=True, emits=(Flagged,))
    sums = domain.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("total", BigInteger, nullable=False, default=0),
        Column("last", BigInteger),
    )
    over_all = domain.table(
        "over_all",
        Column("what", String, primary_key=True),
        Column("total", BigInteger, nullable=False, default=0),
    )

    @domain.project(Moved)
    def add(moved: Recorded[Moved], rows: Rows) -> None:
        handler(moved)
        rows.add(sums, moved.entity, total=moved.payload.amount)
        rows.put(sums, entity=moved.entity, last=moved.position)
        rows.add(over_all, "all", total=moved.payload.amount)

    @domain.derive(Moved)
    def flag(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:
        row = rows.get(sums, moved.entity)
        assert row is not None
        if row.total % 5 == 0:
            yield domain.attest(Flagged(total=row.total), entity=moved.entity)

    return domain


@pytest.fixture
def host_of(url: str) -> Iterator[Callable[..., Host]]:
    """Make hosts over one database."""
    with ExitStack() as stack:

        def make_host(domain: Domain) -> Host:
            host = stack.enter_context(Host(url, [domain], settings=Settings(lease_seconds=2)))
            host.upgrade()
            return host

        yield make_host


def move(host: Host, count: int, start: int = 0) -> int:
    """Append moves about all entities, and return the position of the last."""
    said = [
        Attestation(context="moved", entity=f"e{n % ENTITIES}", actor="a", payload={"amount": n})
        for n in range(start, start + count)
    ]
    return host.append(said)[-1].position


def rows_of(host: Host) -> dict[str, list[Any]]:
    """Return all rows of the domain."""
    with host.database.read() as connection:
        return {
            name: [tuple(row) for row in connection.execute(select(table).order_by(*table.c))]
            for name, table in host.domain("ledger").tables.items()
        }


def ranges_of(host: Host) -> dict[str, int]:
    """Return the position of each range."""
    with host.database.read() as connection:
        found = connection.execute(select(cursors).where(cursors.c.domain == "ledger")).all()
    return {f"{row.first_slice}-{row.last_slice}": row.position for row in found}


def wait_until(is_so: Callable[[], object]) -> None:
    """Look until it is so; fail where it never is."""
    deadline = time.monotonic() + BOUND
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_as_folded_whole(host: Host, url_of_another: str) -> None:
    """Hold rows and flags against those of a log that was projected by one, from its beginning."""
    flags = [(one.entity, one.text) for one in host.ax(contexts="flagged")]
    with Host(url_of_another, [make()]) as other:
        other.upgrade()
        moved = [
            Attestation(context="moved", entity=one.entity, actor="a", payload=one.payload)
            for one in host.ax(contexts="moved")
        ]
        for start in range(0, len(moved), 1_000):
            other.append(moved[start : start + 1_000])
        other.catch_up()
        ours, theirs = rows_of(host), rows_of(other)
        their_flags = [(one.entity, one.text) for one in other.ax(contexts="flagged")]
    assert ours["ledger_over_all"] == theirs["ledger_over_all"]
    assert [row[:2] for row in ours["ledger_sums"]] == [row[:2] for row in theirs["ledger_sums"]]
    assert sorted(flags) == sorted(their_flags)


@given(st.lists(st.integers(1, SLICES), min_size=1, max_size=3))
@settings(max_examples=50)
def test_a_cutting_covers_every_slice_once(cuttings: list[int]) -> None:
    """However it is cut, every slice is in exactly one range, and the finest fits in all."""
    found = [ALL.cut(into) for into in cuttings]
    finest: list[Slices] = list(refined(found[0], found[-1]))

    for ranges in (*found, finest):
        assert [n for one in ranges for n in range(one.first, one.last + 1)] == list(range(SLICES))
    assert all(any(one.within(each) for each in found[0]) for one in finest)
    assert all(any(one.within(each) for each in found[-1]) for one in finest)


@pytest.mark.slices
def test_slices_of_known_entities_stay() -> None:
    """An entity's slice is the same for ever: a range that is stored means the same entities."""
    known = {"e0": 788, "github.com/a/b": 791, "customer:ada": 881, "ü": 823, "": 692}

    assert {entity: slice_of(entity) for entity in known} == known


@pytest.mark.recut
def test_ranges_come_to_the_rows_of_one(host_of: Callable[..., Host]) -> None:
    """Cut in any way between batches, rows and derived attestations are those of one projector."""
    host = host_of(make())
    for round_, into in enumerate((3, 1, 4, 2)):
        move(host, 100, start=100 * round_)
        if round_ != 1:
            host.catch_up()
        assert host.cut("ledger", into) == [str(one) for one in ALL.cut(into)]
        host.catch_up()

    assert set(ranges_of(host).values()) == {host.log.head()}
    assert_as_folded_whole(host, "sqlite://")
    assert [one.payload["ranges"] for one in host.ax(contexts="qntx.cut")] == [3, 1, 4, 2]


@pytest.mark.recut
def test_ranges_that_stand_apart_are_brought_together(host_of: Callable[..., Host]) -> None:
    """Of ranges that are to be one, those behind come as far as the furthest, or stay apart."""
    stopped: list[str] = []

    def refuse(moved: Recorded[Moved]) -> None:
        if moved.entity in stopped:
            raise ValueError(moved.entity)

    host = host_of(make(refuse))
    host.cut("ledger", 2)
    stopped.append("e0")
    furthest = move(host, 100)
    with pytest.raises(ProjectorStopped):
        host.catch_up()
    assert len(set(ranges_of(host).values())) == 2
    with pytest.raises(ProjectorStopped):
        host.cut("ledger", 1)
    assert len(ranges_of(host)) == 2

    stopped.clear()
    move(host, 100, start=100)
    host.cut("ledger", 1)

    assert len(ranges_of(host)) == 1
    assert ranges_of(host)["0-1023"] >= furthest
    host.catch_up()
    assert_as_folded_whole(host, "sqlite://")


def test_running_hosts_share_ranges(host_of: Callable[..., Host]) -> None:
    """Two hosts hold half of the ranges each; when one ends, the other has them all."""
    one, other = host_of(make()), host_of(make())
    one.cut("ledger", 4)

    def held_by() -> list[int]:
        (found,) = [each for each in one.statuses() if each.name == "ledger"]
        holders = [each.holder for each in found.ranges]
        return sorted(holders.count(name) for name in {*holders} if name)

    with one.running():
        wait_until(lambda: held_by() == [4])
        with other.running():
            wait_until(lambda: held_by() == [2, 2])
            one.wait_for(move(other, 200), "ledger", timeout=BOUND)
        wait_until(lambda: held_by() == [4])
        one.wait_for(move(other, 200, start=200), "ledger", timeout=BOUND)

    assert_as_folded_whole(one, "sqlite://")


@pytest.mark.recut
def test_cutting_goes_on_while_hosts_run(host_of: Callable[..., Host]) -> None:
    """Ranges are split and merged under running hosts and appends: nothing is lost or met twice."""
    hosts = [host_of(make()), host_of(make())]
    ended = threading.Event()

    def append() -> None:
        start = 0
        while not ended.is_set():
            move(hosts[1], 20, start=start)
            start += 20

    with hosts[0].running(), hosts[1].running():
        appending = threading.Thread(target=append)
        appending.start()
        try:
            for into in (2, 5, 3, 1, 4):
                before = hosts[0].log.head()
                hosts[0].cut("ledger", into)
                hosts[0].wait_for(before, "ledger", timeout=BOUND)
        finally:
            ended.set()
            appending.join()
        hosts[0].wait_for(hosts[0].log.head(), "ledger", timeout=BOUND)

    assert len(ranges_of(hosts[0])) == 4
    hosts[0].catch_up()
    assert_as_folded_whole(hosts[0], "sqlite://")


def test_one_range_that_stops_holds_up_no_other(host_of: Callable[..., Host]) -> None:
    """A handler that fails for one entity stops the range it is in, and the status says which."""

    def refuse(moved: Recorded[Moved]) -> None:
        if moved.entity == "e0":
            raise ValueError(moved.entity)

    host = host_of(make(refuse))
    host.cut("ledger", 4)
    head = move(host, 100)

    with pytest.raises(ProjectorStopped):
        host.catch_up()

    (found,) = [one for one in host.statuses() if one.name == "ledger"]
    assert found.state == "stopped"
    assert sorted(one.position >= head for one in found.ranges) == [False, True, True, True]
    assert [one.failure is not None for one in found.ranges].count(True) == 1


def test_what_cannot_be_cut_is_refused_by_name(host_of: Callable[..., Host]) -> None:
    """Entities that are not independent, or more ranges than slices: nothing is changed."""
    host = host_of(make())
    whole = Domain("whole")
    with Host("sqlite://", [whole]) as other:
        other.upgrade()
        with pytest.raises(CutRefused, match="by_entity=True"):
            other.cut("whole", 2)
    for into in (0, SLICES + 1):
        with pytest.raises(CutRefused, match="1 to 1024"):
            host.cut("ledger", into)
    host.cut("ledger", 2)
    move(host, 50)
    host.pause("ledger")
    host.cut("ledger", 4)

    assert len(ranges_of(host)) == 4
    with pytest.raises(ProjectorPaused):
        host.wait_for(host.log.head(), "ledger")


def test_parked_entities_stay_parked_in_their_ranges(url: str) -> None:
    """Who waits goes on waiting however it is cut, and a retry is met by the range it is of."""
    broken = ["e0", "e1"]
    domain = Domain("ledger", by_entity=True, on_failure="park")
    sums = domain.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("total", BigInteger, nullable=False, default=0),
    )

    @domain.project(Moved)
    def add(moved: Recorded[Moved], rows: Rows) -> None:
        if moved.entity in broken:
            raise ValueError(moved.entity)
        rows.add(sums, moved.entity, total=moved.payload.amount)

    with Host(url, [domain]) as host:
        host.upgrade()
        host.cut("ledger", 3)
        move(host, 100)
        host.catch_up()
        assert {one.entity for one in host.parked("ledger")} == {"e0", "e1"}
        host.cut("ledger", 2)
        move(host, 100, start=100)
        host.catch_up()
        broken.clear()

        assert host.retry("ledger") == []

        found = dict(rows_of(host)["ledger_sums"])
    assert found == {f"e{k}": sum(range(k, 200, ENTITIES)) for k in range(ENTITIES)}


def test_folds_come_to_the_same_rows_in_ranges(url: str) -> None:
    """What the database folds range by range is what it folds at once."""
    domain = Domain("ledger", by_entity=True)
    sums = domain.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("moves", BigInteger, nullable=False, default=0),
        Column("last", BigInteger),
    )
    over_all = domain.table(
        "by_amount",
        Column("amount", BigInteger, primary_key=True),
        Column("moves", BigInteger, nullable=False, default=0),
    )
    domain.fold(Moved, into=sums, key="entity", moves=count(), last=last("payload.amount"))
    domain.fold(Moved, into=over_all, key="payload.amount", moves=count())
    with Host(url, [domain]) as host:
        host.upgrade()
        host.cut("ledger", 3)
        move(host, 90)
        host.catch_up()
        move(host, 90)
        host.catch_up()
        found = rows_of(host)

    assert found["ledger_sums"] == sorted(
        (f"e{k}", 2 * len(range(k, 90, ENTITIES)), max(range(k, 90, ENTITIES)))
        for k in range(ENTITIES)
    )
    assert found["ledger_by_amount"] == [(amount, 2) for amount in range(90)]


@pytest.mark.parametrize("reach", ["get", "put", "take", "delete", "select"])
def test_another_entitys_row_is_out_of_reach(url: str, reach: str) -> None:
    """Cut or not, a handler may only add to what is not its entity's, or its projector stops."""
    domain = Domain("ledger", by_entity=True)
    sums = domain.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("total", BigInteger, nullable=False, default=0),
    )
    ways: dict[str, Callable[[Rows], object]] = {
        "get": lambda rows: rows.get(sums, "other"),
        "put": lambda rows: rows.put(sums, entity="other", total=1),
        "take": lambda rows: rows.add(sums, "other", total=-1),
        "delete": lambda rows: rows.delete(sums, "other"),
        "select": lambda rows: rows.select(select(sums)),
    }

    @domain.project(Moved)
    def add(moved: Recorded[Moved], rows: Rows) -> None:  # noqa: ARG001 - by its class
        ways[reach](rows)

    with Host(url, [domain]) as host:
        host.upgrade()
        move(host, 1)

        with pytest.raises(ProjectorStopped, match="ForeignRow"):
            host.catch_up()


def test_a_fold_of_no_entity_may_only_add() -> None:
    """What is kept of several entities would depend on which range came first, so it is refused."""
    domain = Domain("ledger", by_entity=True)
    table = domain.table(
        "by_amount",
        Column("amount", BigInteger, primary_key=True),
        Column("moves", BigInteger, nullable=False, default=0),
        Column("last", BigInteger),
    )
    domain.fold(Moved, into=table, key="payload.amount", moves=count())
    assert domain.problems() == []

    domain.fold(Moved, into=table, key="payload.amount", last=last("position"))

    (problem,) = domain.problems()
    assert "may only count and total" in problem
