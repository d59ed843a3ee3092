"""A swap is certified, the log speaks of the certificate, and nobody can mend either unseen."""

import json
import linecache
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import Column, Integer, String, inspect, select, text

from qntx_es import (
    Attestation,
    Domain,
    Host,
    InvalidExpectation,
    Payload,
    ReadRows,
    RebuildDiffers,
    Recorded,
    Rows,
    faults,
)
from qntx_es import log as log_module
from qntx_es.digests import DigestChain
from qntx_es.faults import Crash, crash
from qntx_es.projections.fingerprint import fingerprint
from qntx_es.projections.touches import Touch
from qntx_es.tables import cursors, digests

Made = Callable[..., Host]
KEYS = [
    "certificate",
    "domain",
    "version",
    "version_live",
    "fingerprint",
    "compared_at",
    "swapped_at",
    "generation",
    "epoch",
    "log_digest",
    "is_same",
    "expected",
    "tables",
    "derived",
    "actor",
    "made_at",
]
UNGUARDED = {
    "sqlite": "DROP TRIGGER qntx_attestations_no_update",
    "postgresql": "ALTER TABLE qntx_attestations DISABLE TRIGGER ALL",
}


class Sold(Payload, context="sold"):
    """Something was sold."""

    pieces: int


def make_till(*, price: int = 2, version: int = 1, has_fee: bool = False) -> Domain:
    """Make a domain whose rows depend on a price, which is no part of its source."""
    till = Domain("till", version=version, emits=("sold",))
    fee = [Column("fee", Integer, nullable=False, default=1)] if has_fee else []
    takings = till.table(
        "takings",
        Column("entity", String, primary_key=True),
        Column("pieces", Integer, nullable=False, default=0),
        Column("cents", Integer, nullable=False, default=0),
        *fee,
    )

    @till.project(Sold)
    def sell(sold: Recorded[Sold], rows: Rows) -> None:
        pieces = sold.payload.pieces
        rows.add(takings, sold.entity, pieces=pieces, cents=price * pieces)

    return till


def sales(count: int) -> list[Attestation]:
    """Return sales of three things in turn."""
    return [
        Attestation(
            context="sold", entity="abc"[number % 3], actor="ann", payload=Sold(pieces=number)
        )
        for number in range(count)
    ]


@pytest.fixture
def host_of(url: str) -> Iterator[Made]:
    """Open hosts over one database, each with a till of its own."""
    hosts: list[Host] = []

    def make(till: Domain | None = None) -> Host:
        host = Host(url, [till or make_till()])
        hosts.append(host)
        host.upgrade()
        return host

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def host(host_of: Made) -> Host:
    """Open a host with a dozen sales projected."""
    opened = host_of()
    opened.append(sales(12))
    opened.catch_up()
    return opened


def rows_of(host: Host) -> list[tuple[Any, ...]]:
    """Return the live rows."""
    table = host.domains["till"].tables["till_takings"]
    with host.database.read() as connection:
        return [tuple(row) for row in connection.execute(select(table).order_by(table.c.entity))]


def generation_of(host: Host) -> int:
    """Return which life of the tables is live."""
    with host.database.read() as connection:
        asked = select(cursors.c.generation).where(cursors.c.domain == "till")
        return int(connection.execute(asked).scalar_one())


def tables_of(host: Host) -> set[str]:
    """Return the names of the tables that are the till's."""
    with host.database.read() as connection:
        names = inspect(connection).get_table_names()
    return {name for name in names if name.startswith("till_")}


def test_the_log_speaks_of_the_certificate_of_a_rebuild(host: Host) -> None:
    """The certificate says what was compared and swapped, and its SHA-256 is attested."""
    rebuilt = host.rebuild("till", actor="ann@desk")

    said = host.latest("qntx.rebuilt", "till")
    assert said is not None
    assert (said.position, said.actor) == (rebuilt.attested_at, "ann@desk")
    digest = sha256(rebuilt.certificate.text.encode()).hexdigest()
    assert said.payload["certificate"] == rebuilt.certificate.digest == digest
    found = json.loads(rebuilt.certificate.text)
    assert list(found) == KEYS
    assert (found["certificate"], found["domain"]) == ("rebuilt", "till")
    assert (found["version"], found["version_live"], found["generation"]) == (1, 1, 2)
    assert found["compared_at"] == found["swapped_at"] == 12
    assert (found["epoch"], found["actor"]) == (host.log.epoch(), "ann@desk")
    assert found["is_same"] is said.payload["is_same"] is True
    (table,) = found["tables"]
    assert table["live"] == table["rebuilt"]
    assert table["live"]["rows"] == 3


def test_the_log_speaks_of_the_certificate_of_a_verify(host: Host) -> None:
    """A verify is attested as well, by who runs it unless somebody is named, and swaps nothing."""
    verified = host.verify("till")

    said = host.latest("qntx.verified", "till")
    assert said is not None
    assert said.position == verified.attested_at == 13
    assert "@" in said.actor
    assert said.payload["certificate"] == verified.certificate.digest
    found = json.loads(verified.certificate.text)
    assert list(found) == KEYS
    assert (found["certificate"], found["swapped_at"]) == ("verified", None)
    assert generation_of(host) == 1


def test_swap_and_attestation_are_one(host: Host) -> None:
    """A crash just before the commit leaves neither, one just after it leaves both."""
    with faults.planned({"rebuild.before_commit": crash()}), pytest.raises(Crash):
        host.rebuild("till")
    assert host.latest("qntx.rebuilt", "till") is None
    assert generation_of(host) == 1

    with faults.planned({"rebuild.after_commit": crash()}), pytest.raises(Crash):
        host.rebuild("till")
    host.catch_up()
    assert host.latest("qntx.rebuilt", "till") is not None
    assert generation_of(host) == 2


def test_a_certificate_finds_a_log_that_was_changed(host: Host) -> None:
    """One changed payload changes the digest of the log that the next certificate carries."""
    kept = json.loads(host.verify("till").certificate.text)
    with host.database.write() as connection:
        connection.execute(text(UNGUARDED[connection.dialect.name]))
        connection.execute(text("UPDATE qntx_attestations SET actor = 'bob' WHERE position = 3"))

    found = host.log.digest_at(kept["compared_at"])

    assert found.value != kept["log_digest"]


def test_digests_are_kept_and_gone_on_from(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest at a position is the one that reading all of the log gives, from any kept one."""
    monkeypatch.setattr(log_module, "DIGEST_EVERY", 5)

    found = [host.log.digest_at(position) for position in (12, 12, 10, 7, 0)]

    assert [one.position for one in found] == [12, 12, 10, 7, 0]
    for one in found:
        chain = DigestChain()
        for recorded in host.log.read(limit=one.position):
            chain.add(recorded.row)
        assert one == chain.digest
    with host.database.read() as connection:
        kept = connection.execute(select(digests.c.position).order_by(digests.c.position))
        assert kept.scalars().all() == [5, 10]
    assert host.log.digest_at(12) == host.log.digest()


def test_nothing_but_the_same_is_swapped_where_that_is_expected(host: Host, host_of: Made) -> None:
    """`same` refuses any difference, tells it, leaves live rows alone, and drops its tables."""
    other = host_of(make_till(price=3))
    before = rows_of(host)

    with pytest.raises(RebuildDiffers, match=r"till_takings\.cents would change") as refused:
        other.rebuild("till", expect=["same"])

    (table,) = refused.value.found.tables
    assert (table.differing, table.columns) == (3, {"cents": 3})
    assert [one.touched for one in table.first] == [
        Touch(10, "sold"),
        Touch(11, "sold"),
        Touch(12, "sold"),
    ]
    assert rows_of(host) == before
    assert tables_of(host) == {"till_takings"}
    assert (generation_of(host), host.log.head()) == (1, 12)
    assert host.rebuild("till", expect=["same"]).is_same


def test_a_column_that_was_expected_to_change_may(host: Host, host_of: Made) -> None:
    """The columns that are named may change, and no other, nor any row come or go."""
    other = host_of(make_till(price=3))
    with pytest.raises(RebuildDiffers, match=r"till_takings\.cents"):
        other.rebuild("till", expect=["till_takings.pieces"])

    rebuilt = other.rebuild("till", expect=["till_takings.cents"])

    assert json.loads(rebuilt.certificate.text)["expected"] == ["till_takings.cents"]
    assert rows_of(host) == [("a", 18, 54), ("b", 22, 66), ("c", 26, 78)]
    with host.database.write() as connection:
        connection.execute(text("DELETE FROM till_takings WHERE entity = 'a'"))
    with pytest.raises(RebuildDiffers, match="the rows of till_takings"):
        other.rebuild("till", expect=["till_takings.cents", "till_takings.pieces"])


@pytest.mark.usefixtures("host")
def test_another_version_is_held_against_what_was_expected(host_of: Made) -> None:
    """A new version is compared by the columns it shares, and a new column has to be expected."""
    other = host_of(make_till(version=2, has_fee=True))

    with pytest.raises(RebuildDiffers, match=r"till_takings\.fee would change"):
        other.rebuild("till", expect=["same"])
    with pytest.raises(RebuildDiffers, match=r"till_takings\.cents would"):
        host_of(make_till(version=2, has_fee=True, price=9)).rebuild(
            "till", expect=["till_takings.fee"]
        )
    rebuilt = other.rebuild("till", expect=["till_takings.fee"])

    (table,) = rebuilt.tables
    assert table.columns == {"fee": 3}
    found = json.loads(rebuilt.certificate.text)
    assert (found["version"], found["version_live"]) == (2, 1)


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        (["till_takings.cent"], "did you mean `till_takings.cents`"),
        (["same", "till_takings.cents"], "say it alone"),
        (["till_takings"], "no TABLE.COLUMN"),
    ],
)
def test_what_cannot_be_expected_is_refused(host: Host, expect: list[str], message: str) -> None:
    """An expectation that names nothing of the domain is refused before anything is done."""
    with pytest.raises(InvalidExpectation, match=message):
        host.rebuild("till", expect=expect)
    assert host.log.head() == 12


def test_the_fingerprint_is_of_the_code() -> None:
    """It is the same for the same source, and another for another handler, table or payload."""
    said = fingerprint(make_till())

    assert said is not None
    assert said == fingerprint(make_till(price=7)) == fingerprint(make_till(version=2))
    assert said != fingerprint(make_till(has_fee=True))
    other = make_till()

    @other.project(Sold)
    def sell_again(sold: Recorded[Sold], rows: Rows) -> None:
        """Do nothing."""

    assert said != fingerprint(other)


def test_the_fingerprint_is_of_schedules_too() -> None:
    """What a schedule says is code of the domain like any other."""
    fingerprints = set()
    for loud in (False, True):
        till = make_till()
        if loud:

            @till.every(timedelta(hours=1), name="close")
            def close_loudly(due_at: datetime, rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
                yield till.attest(Sold(pieces=due_at.hour), entity="all")  # noqa: B023
        else:

            @till.every(timedelta(hours=1), name="close")
            def close(due_at: datetime, rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
                yield from ()

        fingerprints.add(fingerprint(till))

    assert len(fingerprints) == 2
    assert None not in fingerprints


def test_code_without_a_source_has_no_fingerprint() -> None:
    """Where the source of a handler cannot be read there is none, and no error either."""
    till = make_till()
    made: dict[str, Any] = {}
    exec("def sell_in_the_dark(sold, rows): pass", made)  # noqa: S102 - that is the point
    linecache.clearcache()
    till.project(Sold)(made["sell_in_the_dark"])

    assert fingerprint(till) is None
