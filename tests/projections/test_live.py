"""Right behind the log: a runner that was woken reads on, and writes what is new in one go."""

from collections.abc import Callable

import pytest
from sqlalchemy import BigInteger, Column, String, select

from qntx_es import (
    Attestation,
    Domain,
    Host,
    LeaseLost,
    Payload,
    ProjectorPaused,
    Recorded,
    Rows,
)
from qntx_es.projections import batch
from qntx_es.projections.batch import Batches

HostOf = Callable[..., Host]


class Sold(Payload, context="sold"):
    """Something was sold."""

    amount: int


def shop() -> Domain:
    """Return a domain that sums sales by entity in one table, and keeps the last in another."""
    domain = Domain("shop")
    sums = domain.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("sum", BigInteger, nullable=False, default=0),
    )
    last = domain.table(
        "last",
        Column("entity", String, primary_key=True),
        Column("amount", BigInteger, nullable=False),
    )

    @domain.project(Sold)
    def sell(sold: Recorded[Sold], rows: Rows) -> None:
        rows.add(sums, sold.entity, sum=sold.payload.amount)
        rows.put(last, entity=sold.entity, amount=sold.payload.amount)
        if sold.payload.amount == 0:
            rows.delete(last, sold.entity)

    return domain


def sales(*amounts: int) -> list[Attestation]:
    """Return sales of one entity."""
    return [
        Attestation(context="sold", entity="a", actor="x", payload={"amount": one})
        for one in amounts
    ]


def batches_of(host: Host) -> Batches:
    """Return the batches of the only domain, to be run one after another."""
    found = host._projectors["shop"].runners[0].batches  # noqa: SLF001 - one batch after another
    assert isinstance(found, Batches)
    return found


def rows_of(host: Host, domain: Domain) -> dict[str, list[int]]:
    """Return what the tables hold."""
    with host.database.read() as connection:
        return {
            table.name: [row[1] for row in connection.execute(select(table))]
            for table in domain.tables.values()
        }


def test_who_was_woken_goes_on_where_it_stands(host_of: HostOf) -> None:
    """Batch after batch without a look gives the rows of a look before each, in every table."""
    domain = shop()
    host = host_of(domain)
    batches, held = batches_of(host), []
    for amounts in ((1,), (2, 3), (4,), (0,), (5,)):
        host.append(sales(*amounts))
        step = batches.step(200, woken=True)
        held.append((step.position, rows_of(host, domain)))

    assert held == [
        (1, {"shop_sums": [1], "shop_last": [1]}),
        (3, {"shop_sums": [6], "shop_last": [3]}),
        (4, {"shop_sums": [10], "shop_last": [4]}),
        (5, {"shop_sums": [10], "shop_last": []}),
        (6, {"shop_sums": [15], "shop_last": [5]}),
    ]


def test_who_was_woken_for_nothing_stays(host_of: HostOf) -> None:
    """A hint that comes too early, twice, or for somebody else moves nothing."""
    host = host_of(shop())
    host.append(sales(1))
    batches = batches_of(host)
    batches.step(200, woken=True)

    assert [batches.step(200, woken=True).position for _ in range(3)] == [1, 1, 1]


@pytest.mark.zombie
def test_who_was_woken_and_fenced_writes_nothing(host_of: HostOf) -> None:
    """Who goes on without a look after a pause finds that it may not, before a row is changed."""
    domain = shop()
    host = host_of(domain)
    host.append(sales(1))
    batches = batches_of(host)
    batches.step(200, woken=True)
    host.pause("shop")
    host.append(sales(2))

    with pytest.raises((LeaseLost, ProjectorPaused)):
        batches.step(200, woken=True)
    assert rows_of(host, domain) == {"shop_sums": [1], "shop_last": [1]}
    with pytest.raises(ProjectorPaused):
        batches.step(200, woken=True)
    host.resume("shop")
    assert batches.step(200, woken=True).position == 2 + 2  # that it was paused is said as well
    assert rows_of(host, domain) == {"shop_sums": [3], "shop_last": [2]}


@pytest.mark.zombie
def test_of_two_that_were_woken_one_writes(
    host_of: HostOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one has projected is not projected again by another that did not look either."""
    monkeypatch.setattr(batch, "STORE_SECONDS", 60.0)  # or a slow machine looks all the same
    domain = shop()
    host, other = host_of(domain), host_of(domain)
    host.append(sales(1))
    batches_of(other).step(200)
    host.append(sales(2))
    batches_of(host).step(200)

    with pytest.raises(LeaseLost):
        batches_of(other).step(200, woken=True)
    assert batches_of(other).step(200, woken=True).matched == 0
    assert rows_of(host, domain) == {"shop_sums": [3], "shop_last": [2]}
