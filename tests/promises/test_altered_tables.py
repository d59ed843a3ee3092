"""A read model altered by hand stops its projector, by name, and a rebuild makes it whole."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Integer, String, select, text

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Payload,
    ProjectorStopped,
    Recorded,
    Rows,
    TableAltered,
    count,
    last,
)

HostOf = Callable[..., Host]

# What somebody does, and what the projector then says of it.
ALTERED = {
    "DROP TABLE ledger_accounts": "table `ledger_accounts` is missing",
    "ALTER TABLE ledger_accounts RENAME TO mine": "table `ledger_accounts` is missing",
    "ALTER TABLE ledger_accounts DROP COLUMN note": "column `ledger_accounts.note` is missing",
    "ALTER TABLE ledger_accounts RENAME COLUMN note TO remark": (
        "column `ledger_accounts.note` is missing"
    ),
}
# SQLite has no statements for these. The first is about the first generation, by a name of its own.
ALTERED_ON_POSTGRESQL = {
    "ALTER TABLE ledger_accounts DROP CONSTRAINT ledger_accounts_pkey": (
        "table `ledger_accounts` has another primary key"
    ),
    "ALTER TABLE ledger_accounts ALTER COLUMN moves TYPE text": (
        "column `ledger_accounts.moves` is now TEXT"
    ),
    "ALTER TABLE ledger_accounts ALTER COLUMN entity TYPE integer USING ascii(entity)": (
        "column `ledger_accounts.entity` is now INTEGER"
    ),
    "ALTER TABLE ledger_accounts ADD COLUMN more integer NOT NULL DEFAULT 1;"
    "ALTER TABLE ledger_accounts ALTER COLUMN more DROP DEFAULT": (
        "column `ledger_accounts.more` was added, and has no default"
    ),
    "UPDATE ledger_accounts SET spare = '';"
    "ALTER TABLE ledger_accounts ALTER COLUMN spare SET NOT NULL": (
        "column `ledger_accounts.spare` now refuses NULL"
    ),
}


class Moved(Payload, context="moved"):
    """Something moved."""

    n: int = 1


def make(name: str, *, is_folded: bool = False, inline: bool = False) -> Domain:
    """Make a domain that counts moves, and would park what fails if it may."""
    domain = Domain(name, inline=inline, on_failure="stop" if inline else "park")
    accounts = domain.table(
        "accounts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
        Column("note", String),
        Column("spare", String),
    )
    if is_folded:
        domain.fold(Moved, into=accounts, key="entity", moves=count(), note=last("actor"))
        return domain

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(accounts, moved.entity, moves=1)
        rows.put(accounts, entity=moved.entity, note=moved.actor)

    return domain


def moves(*entities: str) -> list[Attestation]:
    """Return a move of each of these."""
    return [Attestation(context="moved", entity=one, actor="a", payload={}) for one in entities]


def rows_of(host: Host, name: str) -> list[tuple[Any, ...]]:
    """Return the rows of a domain."""
    table = host.domain(name).tables[f"{name}_accounts"]
    with host.database.read() as connection:
        found = connection.execute(select(table.c.entity, table.c.moves, table.c.note))
        return sorted(map(tuple, found))


def alter(host: Host, statements: str) -> None:
    """Do something by hand."""
    with host.database.write() as connection:
        for statement in statements.split(";"):
            connection.execute(text(statement))


@pytest.fixture
def host_of(url: str) -> Iterator[HostOf]:
    """Make hosts of domains over one database, as many as a test likes."""
    hosts: list[Host] = []

    def make_host(*domains: Domain) -> Host:
        host = Host(url, domains)
        hosts.append(host)
        host.upgrade()
        return host

    yield make_host
    for host in hosts:
        host.close()


@pytest.mark.parametrize("is_folded", [False, True], ids=["coded", "folded"])
def test_an_altered_table_stops_its_projector_and_is_rebuilt(
    host_of: HostOf, *, is_folded: bool
) -> None:
    """What differs is named, nothing is parked, others go on, and a rebuild makes it whole."""
    host = host_of(make("ledger", is_folded=is_folded), make("other"))
    host.append(moves("a"))
    host.catch_up()
    altered = ALTERED if host.database.is_sqlite else ALTERED_ON_POSTGRESQL | ALTERED

    for times, (statements, told) in enumerate(altered.items(), 1):
        alter(host, statements)
        host.append(moves("a", f"{times} new"))
        with pytest.raises(TableAltered) as stopped:
            host.catch_up()

        status = {one.name: one for one in host.statuses()}
        failure = status["ledger"].failure
        position = status["ledger"].position
        assert told in stopped.value.found
        assert "qntx-es projections rebuild ledger" in str(stopped.value)
        assert failure is not None
        assert (failure.position, failure.handler) == (position + 1, "its tables")
        assert f"TableAltered: {stopped.value}" in failure.error
        assert (status["ledger"].state, status["ledger"].lag > 0) == ("stopped", True)
        assert (host.parked("ledger"), status["other"].lag) == ([], 0)
        assert host.rebuild("ledger").position == position
        host.catch_up()
        assert rows_of(host, "ledger") == rows_of(host, "other")
    assert ("a", len(altered) + 1, "a") in rows_of(host, "ledger")
    assert host.verify("ledger").is_same


def test_an_altered_table_degrades_an_inline_projector(host_of: HostOf) -> None:
    """The append goes through, the status names the table at once, and a rebuild makes it whole."""
    host = host_of(make("ledger", inline=True))
    host.append(moves("a"))
    alter(host, "DROP TABLE ledger_accounts")

    host.append(moves("a", "b"))

    (status,) = [one for one in host.statuses() if one.name == "ledger"]
    assert status.state == "degraded"
    assert status.failure is not None
    assert "table `ledger_accounts` is missing" in status.failure.error
    with pytest.raises(TableAltered):
        host.catch_up()
    host.rebuild("ledger")
    host.catch_up()
    assert rows_of(host, "ledger") == [("a", 2, "a"), ("b", 1, "a")]


def test_what_does_not_matter_stops_nobody(host_of: HostOf) -> None:
    """A column that was added with a default, or that may be NULL, is nobody's business."""
    host = host_of(make("ledger"))
    host.append(moves("a"))
    host.catch_up()
    alter(
        host,
        "ALTER TABLE ledger_accounts ADD COLUMN colour varchar;"
        "ALTER TABLE ledger_accounts ADD COLUMN size integer NOT NULL DEFAULT 7",
    )

    host.append(moves("a", "b"))
    host.catch_up()

    with host.database.read() as connection:
        found = connection.execute(text("SELECT entity, moves, size FROM ledger_accounts"))
        assert sorted(map(tuple, found)) == [("a", 2, 7), ("b", 1, 7)]


def test_a_handler_is_blamed_where_its_tables_are_whole(host_of: HostOf) -> None:
    """A row that the database refuses is the failure of its handler, as ever."""
    domain = Domain("ledger")
    codes = domain.table(
        "codes", Column("entity", String, primary_key=True), Column("code", String, unique=True)
    )

    @domain.project(Moved)
    def name(moved: Recorded[Moved], rows: Rows) -> None:
        rows.put(codes, entity=moved.entity, code="the same")

    host = host_of(domain)
    host.append(moves("a", "b"))

    with pytest.raises(ProjectorStopped) as stopped:
        host.catch_up()

    assert not isinstance(stopped.value, TableAltered)
    assert stopped.value.position == 2
