"""A scenario tells one history on the real log and runner, and means every `then` twice."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Column, DateTime, Integer, String

from domains.code import CommitRecorded, RepositoryCloned, analyze_repository, code
from qntx_es import Attestation, Domain, InvalidTime, Payload, ReadRows, Recorded, Rows
from qntx_es.testing import scenario

shop = Domain("shop")
sales = shop.table(
    "sales",
    Column("entity", String, primary_key=True),
    Column("number", Integer, nullable=False, default=0),
    Column("at", DateTime(timezone=True)),
)
seen: list[str] = []


class Sold(Payload, context="sold"):
    """Something was sold."""

    amount: int = 1


class Counted(Payload, context="counted"):
    """A day is over."""

    number: int


@shop.project(Sold)
def sell(sold: Recorded[Sold], rows: Rows) -> None:
    """Add to what an entity has sold."""
    if sold.payload.amount < 0:
        raise ValueError("nothing is sold backwards")
    rows.add(sales, sold.entity, number=sold.payload.amount)
    rows.put(sales, entity=sold.entity, at=sold.recorded_at)


@shop.every(timedelta(days=1))
def close(due: datetime, rows: ReadRows) -> Iterator[Attestation]:
    """Say at the end of each day how much was sold."""
    del due
    row = rows.get(sales, "a")
    yield shop.attest(Counted(number=row.number if row else 0), entity="a")


def sold(amount: int = 1) -> Attestation:
    """Return a sale."""
    return shop.attest(Sold(amount=amount), entity="a")


def test_a_scenario_reads_as_it_is_told() -> None:
    """What is given and what happens make the rows and the jobs that are expected, once."""
    cloned = code.attest(RepositoryCloned(path="/r"), entity="r")
    commit = code.attest(CommitRecorded(sha="a1"), entity="r")

    (
        scenario(code, at="2026-01-04T00:00Z")
        .given(cloned)
        .when(commit, times=2)
        .then(repositories=[{"entity": "r", "commits": 1}], derived=[analyze_repository])
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"sales": []},
        {"sales": [{"entity": "b"}]},
        {"sales": [{"entity": "a", "number": 2}]},
        {"sales": [{"entity": "a"}, {"entity": "a"}]},
        {"derived": [Counted]},
    ],
)
def test_what_is_otherwise_is_told(wrong: dict[str, Any]) -> None:
    """A row too many, too few or another one fails, as does what was not derived."""
    with pytest.raises(AssertionError, match=r"shop_sales holds|derived is something else"):
        scenario(shop).when(sold()).then(**wrong)


def test_time_passes_when_it_is_told_to() -> None:
    """The log's clock stands at the moment given, and moves by as much as is said."""
    at = datetime(2026, 1, 4, tzinfo=UTC)

    begun = scenario(shop, at=at).when(sold()).then(sales=[{"at": at, "number": 1}], derived=[])

    later = begun.after(days=1).when(sold())
    later.then(sales=[{"at": at + timedelta(days=1), "number": 2}], derived=[Counted(number=1)])


def test_a_handler_that_refuses_is_expected() -> None:
    """`then_raises` takes what the handler raised, and nothing else for it."""
    refused = scenario(shop).given(sold()).when(sold(-1))

    refused.then_raises(ValueError, match="backwards")
    with pytest.raises(AssertionError, match="refuses nothing"):
        scenario(shop).when(sold()).then_raises(ValueError)
    with pytest.raises(Exception, match="backwards"):
        refused.then_raises(KeyError)


def test_twice_is_the_default() -> None:
    """A handler that counts outside its rows is found by offering its batch twice."""
    careless = Domain("careless")
    table = careless.table(
        "sales", Column("entity", String, primary_key=True), Column("n", Integer)
    )
    counted: list[int] = []

    @careless.project(Sold)
    def keep(said: Recorded[Sold], rows: Rows) -> None:
        counted.append(said.position)
        rows.put(table, entity=said.entity, n=len(counted))

    said = careless.attest(Sold(), entity="a")
    with pytest.raises(AssertionError):
        scenario(careless).when(said).then(sales=[{"n": 1}])


def test_every_then_holds_after_a_rebuild() -> None:
    """Rows that a rebuild makes otherwise fail, though the live ones are as expected."""
    careless = Domain("careless")
    table = careless.table(
        "sales", Column("entity", String, primary_key=True), Column("n", Integer)
    )
    counted: list[int] = []

    @careless.project(Sold)
    def keep(said: Recorded[Sold], rows: Rows) -> None:
        counted.append(said.position)
        rows.put(table, entity=said.entity, n=len(counted))

    said = careless.attest(Sold(), entity="a")
    with pytest.raises(AssertionError, match="after a rebuild"):
        scenario(careless).when(said, times=1).then(sales=[{"n": 1}])


def test_what_means_nothing_is_refused() -> None:
    """A moment without a zone, an unknown table and what is said no time are refused by name."""
    with pytest.raises(InvalidTime):
        scenario(shop, at="2026-01-04T00:00")
    with pytest.raises(ValueError, match="did you mean `sales`"):
        scenario(shop).then(sale=[])
    with pytest.raises(ValueError, match="once at least"):
        scenario(shop).when(sold(), times=0)


def test_a_scenario_runs_on_postgresql() -> None:
    """The same history makes the same rows on PostgreSQL."""
    scenario(shop, on="postgresql").when(sold(), sold()).then(sales=[{"entity": "a", "number": 2}])
