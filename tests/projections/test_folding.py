"""Where a domain has nothing but folds the database runs them, and nobody can tell."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from pydantic import field_validator, model_validator
from sqlalchemy import BigInteger, Column, Integer, String, Table, UniqueConstraint, select

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Payload,
    ProjectorStopped,
    Recorded,
    Rows,
    count,
    last,
    most,
    total,
)
from qntx_es.projections.folding import Folding, FoldRefused, is_apart

HostOf = Callable[..., Host]


class Sold(Payload, context="sold"):
    """Something was sold."""

    cents: int
    to: str = "anybody"


class Checked(Payload, context="checked"):
    """Has a rule that only Python knows."""

    cents: int

    @field_validator("cents")
    @classmethod
    def even(cls, cents: int) -> int:
        """Refuse what is odd."""
        if cents % 2:
            message = "it is odd"
            raise ValueError(message)
        return cents


class Delivered(Payload, context="sold"):
    """Has more fields than its cents, of kinds that no database knows."""

    cents: int
    to: str
    at: datetime
    goods: list[str]


class Strict(Payload, context="sold"):
    """Has a rule about the whole of it."""

    cents: int
    to: str = "anybody"

    @model_validator(mode="after")
    def refuse_nobody(self) -> "Strict":
        """Refuse what goes to nobody."""
        if self.to == "nobody":
            message = "it goes to nobody"
            raise ValueError(message)
        return self


def shop_of(*, payload: type[Payload] = Sold, inline: bool = False) -> tuple[Domain, Table]:
    """Return a domain that has nothing but a fold, and its table."""
    shop = Domain("shop", inline=inline)
    sales = shop.table(
        "sales",
        Column("entity", String, primary_key=True),
        Column("times", Integer, nullable=False, default=0),
        Column("cents", BigInteger, nullable=False, default=0),
        Column("last", BigInteger),
    )
    shop.fold(
        payload,
        into=sales,
        key="entity",
        times=count(),
        cents=total("payload.cents"),
        last=last("position"),
    )
    return shop, sales


def sell(host: Host, *said: Any, entity: str = "a") -> None:  # noqa: ANN401 - of its class or not
    """Append payloads of a sale, whether they are any or not."""
    host.log.append(
        [
            Attestation(context="sold", entity=entity, actor="a@test", payload={"cents": one})
            for one in said
        ]
    )


def rows_of(host: Host, table: Table) -> list[tuple[Any, ...]]:
    """Return all rows."""
    with host.database.read() as connection:
        return [tuple(row) for row in connection.execute(select(table))]


def folding_of(host: Host, domain: Domain) -> Folding:
    """Return a domain's folds as the database runs them."""
    return Folding(domain, lambda table: table, is_sqlite=host.database.is_sqlite)


def test_the_database_folds_what_is_plain(host_of: HostOf) -> None:
    """A statement alone makes the rows, without one attestation having been read."""
    shop, sales = shop_of()
    host = host_of(shop)
    sell(host, 1, 2, 3)

    with host.database.write() as connection:
        folding_of(host, shop).run(connection, 0, 3)

    assert rows_of(host, sales) == [("a", 3, 6, 3)]


@pytest.mark.parametrize("odd", ["5", 1.0, True, None, 2**63, 1e16, [1]])
def test_the_database_refuses_what_is_not_plain(host_of: HostOf, odd: object) -> None:
    """What Python may read otherwise, or not at all, is not for SQL, and is asked once."""
    shop, sales = shop_of()
    host = host_of(shop)
    sell(host, 1, odd, 3)
    folding = folding_of(host, shop)

    with pytest.raises(FoldRefused), host.database.write() as connection:
        folding.run(connection, 0, 3)

    assert rows_of(host, sales) == []
    assert folding.reach(0, 9, 5) is None
    assert folding.reach(3, 9, 5) == 8


@pytest.mark.fold_meaning
@pytest.mark.parametrize("is_called", [False, True])
def test_a_fold_looks_at_the_fields_it_names(host_of: HostOf, is_called: bool) -> None:  # noqa: FBT001 - a case
    """What else a class holds, or a payload lacks, is nothing to it, whoever folds."""
    shop, sales = shop_of(payload=Delivered)
    if is_called:

        @shop.project(Checked)
        def check(checked: Recorded[Checked], rows: Rows) -> None:
            """Be there, so that folds are called."""

    host = host_of(shop)
    sell(host, 1, 2, 3)
    host.catch_up()

    assert is_apart(shop) is not is_called
    assert rows_of(host, sales) == [("a", 3, 6, 3)]


def test_a_rule_about_the_whole_payload_is_held_against_it(host_of: HostOf) -> None:
    """Where a class looks at several fields at once, a fold stops at what it refuses."""
    shop, sales = shop_of(payload=Strict)
    host = host_of(shop)
    sell(host, 1)
    nobody = {"cents": 2, "to": "nobody"}
    host.log.append([Attestation(context="sold", entity="a", actor="a@test", payload=nobody)])

    with pytest.raises(ProjectorStopped, match="it goes to nobody"):
        host.catch_up()
    assert rows_of(host, sales) == [("a", 1, 1, 1)]


def test_a_projector_stops_before_what_is_not_of_its_class(host_of: HostOf) -> None:
    """It has the rows of the attestation before, and names the one that it cannot read."""
    shop, sales = shop_of()
    host = host_of(shop)
    sell(host, 1, 2, "much", 3)

    with pytest.raises(ProjectorStopped, match=r"position 3.*InvalidPayload"):
        host.catch_up()

    assert rows_of(host, sales) == [("a", 2, 3, 2)]


def test_a_sum_that_leaves_its_column_stops_there(host_of: HostOf) -> None:
    """It does so also where what follows would bring it back."""
    shop, sales = shop_of()
    host = host_of(shop)
    sell(host, 2**63 - 1, 1, -5)

    with pytest.raises(ProjectorStopped, match="position 2"):
        host.catch_up()

    assert rows_of(host, sales) == [("a", 1, 2**63 - 1, 1)]


def test_inline_folds_are_there_at_once(host_of: HostOf) -> None:
    """An inline domain folds in the transaction of the append, whoever reads the payload."""
    shop, sales = shop_of(inline=True)
    host = host_of(shop)

    host.append(shop.attest(Sold(cents=5), entity="a"))
    assert rows_of(host, sales) == [("a", 1, 5, 1)]
    sell(host, "7")
    assert rows_of(host, sales) == [("a", 2, 12, 2)]


def test_a_rebuild_fills_by_folds(host_of: HostOf) -> None:
    """Fresh tables are folded too, past what Python had to read, and are the same."""
    shop, sales = shop_of()
    host = host_of(shop)
    sell(host, *range(50), "7", *range(50))
    host.catch_up()
    before = rows_of(host, sales)

    rebuilt = host.rebuild("shop")

    assert rebuilt.is_same
    assert rows_of(host, sales) == before == [("a", 101, 2457, 101)]


def test_what_python_read_before_the_database_folded_is_read_anew(host_of: HostOf) -> None:
    """Between ranges that Python has to fold, what the database folded is not forgotten."""
    shop = Domain("shop")
    sales = shop.table(
        "sales", Column("entity", String, primary_key=True), Column("best", BigInteger)
    )
    shop.fold(Sold, into=sales, key="entity", best=most("payload.cents"))
    host = host_of(shop)
    sell(host, "7", *[1] * 4_999)
    sell(host, 1_000_000, *[1] * 9_999)
    sell(host, "500")
    host.catch_up()
    assert rows_of(host, sales) == [("a", 1_000_000)]

    assert host.rebuild("shop").is_same
    assert rows_of(host, sales) == [("a", 1_000_000)]


@pytest.mark.batch_never_shows
def test_folds_and_handlers_may_write_one_table(host_of: HostOf) -> None:
    """Beside a handler a fold is called in its turn, so the handler sees what was folded."""
    shop, sales = shop_of()

    @shop.project(Sold)
    def halve(sold: Recorded[Sold], rows: Rows) -> None:
        row = rows.get(sales, sold.entity)
        if row is not None and row.cents > 10:
            rows.put(sales, entity=sold.entity, cents=row.cents // 2)

    host = host_of(shop)
    sell(host, 8, 8, 8)
    host.catch_up()

    assert rows_of(host, sales) == [("a", 3, 8, 3)]


def test_a_projector_that_finds_nothing_reaches_the_head(host_of: HostOf) -> None:
    """The cursor moves over what no fold is for."""
    shop, sales = shop_of()
    host = host_of(shop)
    host.log.append(
        [Attestation(context="heard", entity="a", actor="a@test", payload={}) for _ in range(5)]
    )
    host.catch_up()

    (status,) = [one for one in host.statuses() if one.name == "shop"]
    assert (status.lag, rows_of(host, sales)) == (0, [])


def domain_with(*parts: Any) -> tuple[Domain, Table]:  # noqa: ANN401 - columns and constraints
    """Return a domain and its table of an entity and these parts."""
    domain = Domain("other")
    return domain, domain.table("things", Column("entity", String, primary_key=True), *parts)


def test_the_database_folds_only_where_nobody_can_tell() -> None:
    """A validator, a shared column or a unique value leaves all folds to Python."""
    validated, _ = shop_of(payload=Checked)
    shared, things = domain_with(Column("n", Integer, default=0))
    unique, named = domain_with(Column("to", String), UniqueConstraint("to"))
    for _ in range(2):
        shared.fold(Sold, into=things, key="entity", n=count())
    unique.fold(Sold, into=named, key="entity", to=last("payload.to"))

    assert is_apart(shop_of()[0])
    assert not any(map(is_apart, (validated, shared, unique)))


def test_the_first_portion_is_a_large_one_and_the_next_keeps_the_time(host_of: HostOf) -> None:
    """A few hundred are one statement from the start; what took too long is less the next time."""
    shop, _ = shop_of()
    host = host_of(shop)
    sell(host, *range(1_000))
    (runner,) = host._projectors["shop"].runners  # noqa: SLF001 - one portion after the other

    first = runner.advance(seconds=1e-6)
    sell(host, *range(1_000))
    second = runner.advance()

    assert first.position == 1_000
    assert second.position < 2_000


def test_an_inline_domain_begins_with_a_small_portion(host_of: HostOf) -> None:
    """Appends wait for it, so how much fits is found out from below."""
    shop, _ = shop_of(inline=True)
    (runner,) = host_of(shop)._projectors["shop"].runners  # noqa: SLF001 - what it would begin with

    assert runner.size < runner.batches.size_max
