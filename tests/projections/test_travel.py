"""Tables of another time hold what the log said then, and disturb nobody."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Index, Integer, String, UniqueConstraint, inspect, select, text

from qntx_es import (
    Attestation,
    BeyondHead,
    Domain,
    Host,
    Payload,
    PrefixRefused,
    Recorded,
    Rows,
    faults,
)
from qntx_es.tables import rebuilds

HostOf = Callable[..., Host]
SIZE = 12


class Paid(Payload, context="paid"):
    """Somebody paid."""

    amount: int


def make_purse() -> Domain:
    """Make a domain with every kind of index, so that names may meet."""
    purse = Domain("purse", emits=("paid",))
    sums = purse.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("total", Integer, nullable=False, default=0, index=True),
        Column("code", String),
        UniqueConstraint("code", name="purse_codes"),
        Index("purse_by_code", "code", unique=True),
    )

    @purse.project(Paid)
    def pay(paid: Recorded[Paid], rows: Rows) -> None:
        rows.add(sums, paid.entity, total=paid.payload.amount)
        rows.put(sums, entity=paid.entity, code=f"{paid.entity} {paid.position}")

    return purse


def payments(count: int) -> list[Attestation]:
    """Return payments of three people in turn."""
    return [
        Attestation(
            context="paid", entity="abc"[number % 3], actor="x", payload=Paid(amount=number)
        )
        for number in range(count)
    ]


def expected(position: int) -> list[tuple[Any, ...]]:
    """Return what the first so many payments make, computed without a database."""
    rows: dict[str, tuple[int, str]] = {}
    for number in range(position):
        entity = "abc"[number % 3]
        rows[entity] = (rows.get(entity, (0, ""))[0] + number, f"{entity} {number + 1}")
    return [(entity, *row) for entity, row in sorted(rows.items())]


def rows_of(host: Host, table: str) -> list[tuple[Any, ...]]:
    """Return the rows of a table by key."""
    with host.database.read() as connection:
        found = connection.execute(text(f"SELECT * FROM {table} ORDER BY entity"))  # noqa: S608
        return [tuple(row) for row in found]


def tables_of(host: Host) -> set[str]:
    """Return the names of all tables that are not the framework's."""
    with host.database.read() as connection:
        names = inspect(connection).get_table_names()
    return {name for name in names if not name.startswith(("qntx_", "pulse_"))}


@pytest.fixture
def host(host_of: HostOf) -> Host:
    """Open a host with a dozen payments projected."""
    opened = host_of(make_purse())
    for payment in payments(SIZE):
        opened.append(payment)
    opened.catch_up()
    return opened


def test_the_tables_hold_the_fold_up_to_the_position(host: Host) -> None:
    """Up to every position the tables hold what the log said by then; live and log stay."""
    live, head = rows_of(host, "purse_sums"), host.log.head()

    @settings(max_examples=8, derandomize=True)
    @given(st.integers(0, SIZE))
    def check(position: int) -> None:
        found = host.travel("purse", to=position, into="then")
        assert (found.position, found.tables) == (position, ("then_sums",))
        assert rows_of(host, "then_sums") == expected(position)
        with host.database.write() as connection:
            connection.execute(text("DROP TABLE then_sums"))

    check()

    assert rows_of(host, "purse_sums") == live == expected(SIZE)
    assert host.log.head() == head
    assert tables_of(host) == {"purse_sums"}


def test_a_time_is_the_last_position_by_then(host: Host) -> None:
    """A time means the largest position that was recorded at it or before."""
    times = [one.recorded_at for one in host.log.read()]

    def at(time: datetime) -> int:
        found = host.travel("purse", to=time, into="then")
        with host.database.write() as connection:
            connection.execute(text("DROP TABLE then_sums"))
        return found.position

    assert at(times[4]) == max(n for n, one in enumerate(times, 1) if one <= times[4])
    assert at(times[0] - timedelta(microseconds=1)) == 0
    assert at(times[-1] + timedelta(days=1)) == SIZE


def test_tables_of_several_times_stand_beside_rebuilds(host: Host) -> None:
    """Their names meet neither each other's nor those of any rebuild to come."""
    host.travel("purse", to=3, into="early")
    host.travel("purse", to=9, into="late")

    assert host.rebuild("purse").is_same
    assert host.verify("purse").is_same
    assert host.rebuild("purse").is_same

    assert rows_of(host, "early_sums") == expected(3)
    assert rows_of(host, "late_sums") == expected(9)
    assert tables_of(host) == {"purse_sums", "early_sums", "late_sums"}


def test_live_is_compared_with_another_time(host: Host) -> None:
    """The rows that changed since are told, with both values; at the head nothing has."""
    host.travel("purse", to=SIZE - 1, into="early")
    host.travel("purse", to=SIZE, into="late")

    (early,) = host.diff("purse", "early").tables

    (row,) = early.first
    assert (row.key, row.columns) == (("c",), ("code", "total"))
    assert row.live is not None
    assert row.rebuilt is not None
    assert (row.live["total"], row.rebuilt["total"]) == (26, 15)
    assert host.diff("purse", "late").is_same
    with pytest.raises(PrefixRefused, match="--into lat"):
        host.diff("purse", "lat")


@pytest.mark.parametrize(
    ("into", "message"),
    [
        ("purse", "is a domain's"),
        ("pulse", "is a domain's"),
        ("qntx", "not reserved"),
        ("Then", "not reserved"),
        ("x; drop", "not reserved"),
        ("taken", "taken by taken_notes"),
    ],
)
def test_a_prefix_that_is_somebodys_is_refused(host: Host, into: str, message: str) -> None:
    """Nothing is made under a name that is a domain's, reserved, or in use."""
    with host.database.write() as connection:
        connection.execute(text("CREATE TABLE taken_notes (n integer)"))

    with pytest.raises(PrefixRefused, match=message):
        host.travel("purse", to=3, into=into)

    assert tables_of(host) == {"purse_sums", "taken_notes"}


@pytest.mark.parametrize("position", [-1, SIZE + 1])
def test_what_the_log_does_not_reach_is_refused(host: Host, position: int) -> None:
    """There is nothing to make of positions that are not there."""
    with pytest.raises(BeyondHead, match=f"1 to {SIZE}"):
        host.travel("purse", to=position, into="then")


def test_nobody_meets_half_of_the_tables(host: Host) -> None:
    """Interrupted while it fills, nothing is there under the prefix, nor under any other name."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with faults.planned({"rebuild.in_fill": interrupt}), pytest.raises(KeyboardInterrupt):
        host.travel("purse", to=3, into="then")

    assert tables_of(host) == {"purse_sums"}
    with host.database.read() as connection:
        assert connection.execute(select(rebuilds)).all() == []
