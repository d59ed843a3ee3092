"""Finance values what others state, whoever they are, and each statement once."""

import importlib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from domains.finance import MODEL, finance, value
from domains.finance.read_model import budgets, valuations
from qntx_es import Attestation, Ax, Host

QNTX = "github.com/teranos/QNTX"


@pytest.fixture
def host(url: str) -> Iterator[Host]:
    """Open a host with the finance domain, and no other, on an empty database."""
    with closing(Host(url, domains=[finance])) as opened:
        opened.upgrade()
        yield opened


def state(host: Host, context: str, *payloads: dict[str, Any], entity: str = QNTX) -> None:
    """State something as others do, and have finance read it."""
    host.append(
        [
            Attestation(context=context, entity=entity, actor="others@system", payload=payload)
            for payload in payloads
        ]
    )
    host.catch_up()


def rows(host: Host) -> list[dict[str, Any]]:
    """Return the valuations in the order of their repositories."""
    with host.database.read() as connection:
        found = connection.execute(select(valuations).order_by(valuations.c.repository))
        return [dict(row) for row in found.mappings()]


def test_an_analysed_repository_is_valued_once(host: Host) -> None:
    """Each analysis leads to one statement of value, and to the row that shows the latest."""
    state(
        host,
        "repository_analyzed",
        {"files": 9, "loc": 1000, "complexity": 2},
        {"files": 250, "loc": 45000, "complexity": 3.2},
    )
    host.catch_up()
    first, second = host.ax(Ax(contexts=("repository_valued",)))
    assert (second.actor, second.entity) == ("valuer@finance", QNTX)
    worth = value(45000)
    expected = {
        "person_months_hundredths": worth.person_months_hundredths,
        "schedule_months_hundredths": worth.schedule_months_hundredths,
        "cost_euro": worth.cost_euro,
    }
    assert second.payload == {"model": MODEL, "loc": 45000, **expected}
    assert first.payload["loc"] == 1000
    (row,) = rows(host)
    assert {name: row[name] for name in expected} == expected
    assert (row["loc"], row["complexity_hundredths"], row["model"]) == (45000, 320, MODEL)
    (_, analyzed) = host.ax(Ax(contexts=("repository_analyzed",)))
    assert (row["position"], second.caused_by) == (analyzed.position, analyzed.id)


def test_commits_are_counted_once_with_their_span(host: Host) -> None:
    """A commit stated twice is one; those without a time count and change no span."""
    early, late = "2026-01-04T12:00:00+01:00", "2026-02-04T11:00:00Z"
    state(
        host,
        "commit_recorded",
        {"sha": "a", "committed_at": late, "boundary": True},
        {"sha": "a", "committed_at": late, "files": [["x", 1, 2]]},
        {"sha": "b", "committed_at": early},
        {"sha": "c", "committed_at": None},
        {"sha": "d"},
    )
    (row,) = rows(host)
    assert row["commits"] == 4
    assert row["first_commit_at"] == datetime(2026, 1, 4, 11, tzinfo=UTC)
    assert row["last_commit_at"] == datetime(2026, 2, 4, 11, tzinfo=UTC)
    assert row["cost_euro"] is None


def test_repositories_are_valued_apart(host: Host) -> None:
    """What is stated of one repository changes nothing of another."""
    state(host, "repository_analyzed", {"loc": 1000, "complexity": 1}, entity="one")
    state(host, "commit_recorded", {"sha": "a"}, entity="two")
    assert [(row["repository"], row["loc"], row["commits"]) for row in rows(host)] == [
        ("one", 1000, 0),
        ("two", None, 1),
    ]


def test_a_rebuild_gives_the_same_rows_and_says_nothing(host: Host) -> None:
    """The tables built anew hold the same, and no value is stated a second time."""
    state(host, "repository_analyzed", {"loc": 1000, "complexity": 1})
    state(host, "commit_recorded", {"sha": "a"})
    host.catch_up()
    before, said = rows(host), host.ax(Ax(contexts=("repository_valued",)))
    host.rebuild("finance")
    host.catch_up()
    assert rows(host) == before
    assert host.ax(Ax(contexts=("repository_valued",))) == said


def test_a_budget_is_what_was_granted_and_approved_of_it(host: Host) -> None:
    """Grants and approvals of a team add up, and those of another team are its own."""
    state(host, "budget_granted", {"amount": 100}, {"amount": 50}, entity="team:search")
    state(host, "valuation_approved", {"valuation": "a", "amount": 70}, entity="team:search")
    state(host, "budget_granted", {"amount": 1}, entity="team:other")

    with host.database.read() as connection:
        found = connection.execute(select(budgets).order_by(budgets.c.team)).all()
    assert [tuple(one) for one in found] == [("team:other", 1, 0, 0), ("team:search", 150, 70, 1)]


def test_finance_reads_what_an_application_of_eventsourcing_decides(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget example's decisions are in finance's table, as any other statement would be."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "examples"))
    example = importlib.import_module("budget")
    with closing(Host(url)) as empty:
        empty.upgrade()
    example.run(url)

    with closing(Host(url, domains=[finance])) as host:
        host.catch_up()
        with host.database.read() as connection:
            (found,) = connection.execute(select(budgets)).all()
        approved = host.ax(contexts="valuation_approved")
    assert found.granted == example.BUDGET >= found.approved > 0
    assert found.approved == sum(one.payload["amount"] for one in approved)
    assert found.approvals == len(approved)
