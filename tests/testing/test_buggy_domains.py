"""The one line finds what a domain must not do, and names the cause that was planted."""

import os
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field
from sqlalchemy import Column, Integer, String, Table, func, select

from qntx_es import Domain, Payload, Recorded, Rows
from qntx_es.testing import InconsistentReplay, replay_consistency

total = 0
numbers = count(1)


class Sold(Payload, context="sold"):
    """Something was sold."""

    amount: int
    parts: dict[str, int] = Field(default_factory=dict)


class Till:
    """What a careless author keeps beside the rows."""

    sales = 0


Note = Callable[[Recorded[Sold]], object]


def shop_noting(note: Note) -> Domain:
    """Return a domain that notes something of each sale."""
    shop, table = shop_and_table()

    @shop.project(Sold)
    def keep(sold: Recorded[Sold], rows: Rows) -> None:
        rows.put(table, entity=sold.entity, note=str(note(sold)))

    return shop


def shop_and_table() -> tuple[Domain, Table]:
    """Return a domain without handlers, and its table."""
    shop = Domain("shop")
    table = shop.table(
        "sales",
        Column("entity", String, primary_key=True),
        Column("number", Integer, nullable=False, default=0),
        Column("note", String),
    )
    return shop, table


def count_in_module(_: object) -> int:
    """Count in a global of this module."""
    global total  # noqa: PLW0603 - the bug
    total += 1
    return total


def count_in_class(_: object) -> int:
    """Count in an attribute of a class."""
    Till.sales += 1
    return Till.sales


def count_in_default(_: object, seen: list[int] = []) -> int:  # noqa: B006 - the bug
    """Count in a default argument."""
    seen.append(0)
    return len(seen)


def count_in_closure() -> Note:
    """Return what counts in its closure."""
    seen: dict[str, int] = {}

    def note(sold: Recorded[Sold]) -> int:
        seen[sold.entity] = seen.get(sold.entity, 0) + 1
        return seen[sold.entity]

    return note


def past_rows() -> Domain:
    """Return a domain that reads by a connection, and so what is flushed only."""
    shop, table = shop_and_table()

    @shop.project(Sold)
    def number(sold: Recorded[Sold], rows: Rows) -> None:
        connection: Any = rows.connect(False)  # type: ignore[attr-defined]  # noqa: FBT003 - the bug
        known = connection.execute(select(func.count()).select_from(table)).scalar_one()
        if rows.get(table, sold.entity) is None:
            rows.put(table, entity=sold.entity, number=known)

    return shop


BUGS: dict[str, tuple[str, Note]] = {
    "time": ("clock", lambda _: time.time()),
    "today": ("clock", lambda _: datetime.now(UTC).date()),
    "local time": ("zone", lambda sold: datetime.fromtimestamp(sold.payload.amount)),  # noqa: DTZ006
    "strftime": ("clock", lambda _: time.strftime("%Y")),
    "environment": ("environment", lambda _: os.environ.get("SHOP_CURRENCY", "EUR")),
    "getenv": ("environment", lambda _: os.getenv("SHOP_CURRENCY")),
    "random": ("random", lambda _: random.randint(0, 1_000_000)),  # noqa: S311
    "uuid4": ("uuid", lambda _: uuid.uuid4()),
    "uuid1": ("uuid", lambda _: uuid.uuid1()),
    "order of keys": ("keys", lambda sold: [*sold.payload.parts]),
    "global": ("restart", count_in_module),
    "counter": ("restart", lambda _: next(numbers)),
    "class": ("restart", count_in_class),
    "default argument": ("restart", count_in_default),
    "closure": ("restart", count_in_closure()),
}


def failure_of(shop: Domain) -> InconsistentReplay:
    """Return how the one line fails."""
    with pytest.raises(InconsistentReplay) as failed:
        replay_consistency(shop)()
    return failed.value


# By day there is the gallery, tests/property/bugs.
@pytest.mark.nightly
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_and_its_cause_named(bug: str) -> None:
    """Whatever a handler looks at beside its arguments is found, and nothing else is blamed."""
    cause, note = BUGS[bug]

    failure = failure_of(shop_noting(note))

    assert failure.cause == cause, str(failure)


@pytest.mark.nightly
def test_reading_past_rows_is_found() -> None:
    """A handler that reads by a connection of its own sees how the log is cut, and is told so."""
    failure = failure_of(past_rows())

    assert failure.cause == "batch", str(failure)


@pytest.mark.nightly
def test_a_file_is_found(tmp_path: Path) -> None:
    """What a handler writes elsewhere is there when the log is folded again, without a cause."""
    file = tmp_path / "sales"

    def note(_: object) -> int:
        with file.open("a") as sales:
            return sales.write("x") + sales.tell()

    assert failure_of(shop_noting(note)).cause == "nothing"


class Billed(BaseModel):
    """What a bill said at first."""

    euros: int


class Bill(Payload, context="billed", schema_version=2):
    """A bill, in cents."""

    cents: int


def billing(*, is_right: bool) -> Domain:
    """Return a domain that reads bills of both versions, by an upcaster that may be wrong."""
    shop, table = shop_and_table()

    @shop.upcast(Bill, from_=1)
    def in_cents(old: Billed) -> dict[str, Any]:
        return {"cents": old.euros * 100}

    @shop.project(Bill)
    def keep(bill: Recorded[Bill], rows: Rows) -> None:
        is_old = not is_right and bill.schema_version == 1
        rows.put(table, entity=bill.entity, number=bill.payload.cents // (100 if is_old else 1))

    return shop


def test_old_payloads_are_read_as_new_ones() -> None:
    """Old payloads are drawn too, and a handler that tells them apart is found."""
    replay_consistency(billing(is_right=True), examples=8, checks={"upcast", "batch"})()

    failure = failure_of(billing(is_right=False))
    assert "where old payloads are lifted beforehand (P11)" in str(failure)
    assert "schema_version" not in str(failure)
    assert "payload={'euros': " in str(failure)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("asked", "cause"),
    [(func.strftime("%Y", "now"), "clock"), (func.now(), "clock"), (func.random(), "random")],
    ids=str,
)
def test_the_clock_of_the_database_is_found(asked: Any, cause: str) -> None:  # noqa: ANN401
    """A handler that asks SQL for the time, or for chance, is found as if it had asked Python."""
    shop, table = shop_and_table()

    @shop.project(Sold)
    def keep(sold: Recorded[Sold], rows: Rows) -> None:
        rows.put(table, entity=sold.entity)
        ((told, _),) = rows.select(
            select(asked, table.c.entity).where(table.c.entity == sold.entity)
        )
        rows.put(table, entity=sold.entity, note=str(told))

    failure = failure_of(shop)
    assert failure.cause == cause, str(failure)
