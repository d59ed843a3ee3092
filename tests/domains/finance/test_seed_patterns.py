"""What finance does in the plugin communication record, in its own words, on a running host."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import select

from domains.finance import finance
from domains.finance.read_model import valuations
from qntx_es import Attestation, Ax, Host


@pytest.fixture
def host(url: str) -> Iterator[Host]:
    """Open a host with the finance domain, and no other, on an empty database."""
    with closing(Host(url, domains=[finance])) as opened:
        opened.upgrade()
        yield opened


def test_pattern_1_finance_watches_for_new_repositories(host: Host) -> None:
    """Whoever asks for the context finds what another plugin stated in it."""
    host.append(
        Attestation(
            actor="ixgest-git@user",
            context="repository_ingested",
            entity="github.com/teranos/QNTX",
            payload={"commit_count": 150, "language": "Go"},
        )
    )
    repos = host.ax(Ax(contexts=("repository_ingested",)))
    assert [(repo.entity, repo.payload["commit_count"]) for repo in repos] == [
        ("github.com/teranos/QNTX", 150)
    ]


def test_example_2_cross_domain_dependency(host: Host) -> None:
    """Finance reads the complexity of code from what the code plugin stated, and values it."""
    host.append(
        Attestation(
            actor="code-analyzer@system",
            context="repository_analyzed",
            entity="github.com/teranos/QNTX",
            payload={"files": 250, "loc": 45000, "complexity": 3.2},
        )
    )
    results = host.ax(
        Ax(
            actors=("code-analyzer@system",),
            contexts=("repository_analyzed",),
            entities=("github.com/teranos/QNTX",),
        )
    )
    assert [result.payload["complexity"] for result in results] == [3.2]

    host.catch_up()
    with host.database.read() as connection:
        (row,) = connection.execute(select(valuations))
    assert (row.repository, row.complexity_hundredths) == ("github.com/teranos/QNTX", 320)
    assert row.cost_euro > 0
