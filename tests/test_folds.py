"""A fold is checked when it is declared, and called it writes what a handler would."""

from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Float, Integer, String, select

from qntx_es import (
    Domain,
    DomainRefused,
    Host,
    Measure,
    Payload,
    count,
    first,
    last,
    least,
    most,
    total,
)


class Place(BaseModel):
    """Where something is."""

    city: str


class Paid(Payload, context="paid"):
    """Somebody paid."""

    cents: int
    rate: float = 1.0
    by: str | None = None
    at: datetime | None = None
    is_late: bool = False
    place: Place | None = None
    anything: Any = None
    parts: tuple[int, ...] = ()


def payers(domain: Domain) -> Any:  # noqa: ANN401 - a table
    """Declare a table with a column of each kind."""
    return domain.table(
        "payers",
        Column("entity", String, primary_key=True),
        Column("times", Integer, nullable=False, default=0),
        Column("cents", BigInteger, nullable=False, default=0),
        Column("rate", Float),
        Column("by", String),
        Column("city", String),
        Column("at", DateTime(timezone=True)),
        Column("is_late", Boolean),
    )


def problems_of(domain: Domain) -> tuple[str, ...]:
    """Return why a host refuses this domain."""
    with pytest.raises(DomainRefused) as refused:
        Host("sqlite://", [domain])
    return refused.value.problems


@pytest.mark.parametrize(
    ("column", "measure", "wanted"),
    [
        ("cents", total("payload.cent"), "did you mean `cents`"),
        ("cents", total("cents"), "a path is entity"),
        ("cents", total("payload"), "a path is entity"),
        ("cents", total("payload.cents.more"), "nothing is known of what lies inside `cents`"),
        ("city", last("payload.place.town"), "Place has no field `town`"),
        ("city", last("payload.anything"), "may be of any kind"),
        ("city", last("payload.parts"), "may be of any kind"),
        ("cents", total("payload.rate"), "the sum of floats depends on their order"),
        ("rate", total("payload.cents"), "the sum of floats depends on their order"),
        ("cents", total("payload.by"), "only integers add up"),
        ("by", count(), "takes none"),
        ("rate", least("payload.cents"), "takes none"),
        ("by", most("payload.cents"), "takes none"),
        ("is_late", least("payload.is_late"), "neither is the least"),
        ("cents", last("payload.cents"), "leave out its default="),
        ("cent", total("payload.cents"), "no such column; did you mean `cents`"),
        ("entity", last("entity"), "part of the key"),
    ],
)
def test_a_measure_that_cannot_be_kept_is_refused(
    column: str, measure: Measure, wanted: str
) -> None:
    """What a column cannot hold, or a path does not lead to, is said with the table and why."""
    domain = Domain("bills")

    domain.fold(Paid, into=payers(domain), key="entity", **{column: measure})

    (problem,) = problems_of(domain)
    assert "fold into `bills_payers`" in problem
    assert wanted in problem


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ((), "the key of `bills_payers` is (entity)"),
        (("entity", "actor"), "the key of `bills_payers` is (entity)"),
        ({"payer": "entity"}, "the key of `bills_payers` is (entity)"),
        ("payload.by", "may be null, and a key never is"),
        ("payload.cents", "takes none"),
        ("nowhere", "no path `nowhere`"),
    ],
)
def test_a_key_that_does_not_fit_the_table_is_refused(key: Any, wanted: str) -> None:  # noqa: ANN401 - of several forms
    """A key gives each column of the table's key a path that always leads to a value of it."""
    domain = Domain("bills")

    domain.fold(Paid, into=payers(domain), key=key, times=count())

    (problem,) = problems_of(domain)
    assert wanted in problem


def test_a_row_must_be_whole_by_each_fold() -> None:
    """A column that is never NULL has a default, or is kept, and from what is never null."""
    domain = Domain("bills")
    strict = domain.table(
        "strict",
        Column("entity", String, primary_key=True),
        Column("times", Integer, nullable=False),
        Column("by", String, nullable=False),
    )

    domain.fold(Paid, into=strict, key="entity", times=count())
    domain.fold(Paid, into=strict, key="entity", by=first("payload.by"))
    domain.fold(Paid, into=strict, key="entity")

    found = "\n".join(problems_of(domain))
    assert "give it default=0" in found
    assert "a new row of `bills_strict` needs `by`" in found
    assert "a new row of `bills_strict` needs `times`" in found
    assert "so the column must be nullable" in found
    assert "it keeps nothing" in found


def test_a_fold_is_into_a_table_of_its_own_domain() -> None:
    """Another domain's table is not to be written, and neither is a payload that is none."""
    domain = Domain("bills")

    domain.fold(Paid, into=payers(Domain("bills")), key="entity", times=count())
    domain.fold(Place, into=payers(domain), key="entity", times=count())  # type: ignore[arg-type]

    foreign, no_payload = problems_of(domain)
    assert "it is no table of this domain" in foreign
    assert "is no Payload class" in no_payload


def test_every_kind_of_measure_is_kept(url: str) -> None:
    """Counts, totals, extremes, first and last of all kinds; null says nothing."""
    domain = Domain("bills")
    table = payers(domain)
    domain.fold(
        Paid,
        into=table,
        key="entity",
        times=count(),
        cents=total("payload.cents"),
        rate=most("payload.rate"),
        by=first("payload.by"),
        city=last("payload.place.city"),
        at=least("payload.at"),
        is_late=last("payload.is_late"),
    )
    noon = datetime.fromisoformat("2026-01-04T12:00:00+00:00")
    said = [
        Paid(cents=5, at=noon, place=Place(city="Ulm")),
        Paid(cents=-2, rate=2.5, by="ada", is_late=True),
        Paid(cents=9, by="bob", at=noon.replace(hour=11)),
    ]
    with Host(url, [domain]) as host:
        host.upgrade()
        host.append([domain.attest(one, entity="a") for one in said])
        host.catch_up()
        with host.database.read() as connection:
            rows = connection.execute(select(table)).all()

    assert [tuple(row) for row in rows] == [
        ("a", 3, 12, 2.5, "ada", "Ulm", noon.replace(hour=11), False)
    ]


def test_the_catalogue_knows_who_folds() -> None:
    """A fold is a reader of its context, by the columns that it keeps."""
    domain = Domain("bills")
    domain.fold(Paid, into=payers(domain), key="entity", times=count())
    with Host("sqlite://", [domain]) as host:
        host.upgrade()
        (paid,) = [one for one in host.catalogue() if one.name == "paid"]

    assert domain.payloads == {"paid": Paid}
    assert [(one.handler, one.kind) for one in paid.read_by] == [("bills_payers: times", "fold")]
