"""The patterns of the plugin communication record, in its own words, on a running host."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from domains.code import FileAnalyzed, code, ingest
from domains.code.read_model import files, repositories
from qntx_es import Attestation, Ax, Host

Git = Callable[..., str]
QNTX = "github.com/teranos/QNTX"


@pytest.fixture
def host(url: str) -> Iterator[Host]:
    """Open a host with the code domain on an empty database."""
    with closing(Host(url, domains=[code])) as opened:
        opened.upgrade()
        yield opened


def rows(host: Host, table: Any) -> list[Any]:  # noqa: ANN401 - a table of any columns
    """Return the rows of a table."""
    with host.database.read() as connection:
        return list(connection.execute(select(table)))


def test_pattern_1_event_sourcing_via_attestations(host: Host) -> None:
    """An ingested repository is stated, found by its context, and known to the read model."""
    host.append(
        Attestation(
            actor="ixgest-git@user",
            context="repository_ingested",
            entity="github.com/teranos/QNTX",
            payload={"commit_count": 150, "language": "Go"},
        )
    )
    host.catch_up()

    (found,) = host.ax(Ax(contexts=("repository_ingested",)))
    assert (found.actor, found.entity) == ("ixgest-git@user", QNTX)
    assert found.payload == {"commit_count": 150, "language": "Go"}
    assert [(row.entity, row.language) for row in rows(host, repositories)] == [(QNTX, "Go")]


def test_pattern_2_state_sharing_via_attestations(host: Host) -> None:
    """The state of a file is what was last stated of it."""
    for complexity in (15, 12):
        host.append(
            Attestation(
                actor="code-analyzer@system",
                context="file_analyzed",
                entity="domains/code/plugin.go",
                payload={
                    "complexity": complexity,
                    "coverage": 85.3,
                    "last_modified": "2026-01-04",
                },
            )
        )
    host.catch_up()

    (row,) = rows(host, files)
    assert (row.path, row.complexity, row.coverage) == ("domains/code/plugin.go", 12, 85.3)
    assert row.last_modified.isoformat() == "2026-01-04"

    latest = host.latest("file_analyzed", "domains/code/plugin.go")
    assert latest is not None
    assert latest.payload == {"complexity": 12, "coverage": 85.3, "last_modified": "2026-01-04"}
    assert host.ax("domains/code/plugin.go is file_analyzed limit 1") == [latest]
    typed = host.latest(FileAnalyzed, "domains/code/plugin.go")
    assert typed is not None
    assert (typed.payload.complexity, typed.payload.coverage) == (12, 85.3)


def test_example_1_git_ingestion_to_code_analysis(host: Host) -> None:
    """A clone is stated, a job is asked for, and results are attestations again."""
    host.append(
        Attestation(
            actor="ixgest-git@user",
            context="repository_cloned",
            entity="github.com/teranos/QNTX",
            payload={"path": "/tmp/qntx", "branch": "main"},  # noqa: S108 - the record's own words
        )
    )
    host.catch_up()
    (requested,) = host.ax(Ax(contexts=("pulse.job_requested",)))
    assert requested.entity == QNTX
    assert requested.payload["handler"] == "code.analyze_repository"
    assert requested.payload["payload"] == {"path": "/tmp/qntx"}  # noqa: S108 - as above

    host.append(
        Attestation(
            actor="code-analyzer@system",
            context="repository_analyzed",
            entity="github.com/teranos/QNTX",
            payload={"files": 250, "loc": 45000, "complexity": 3.2},
        )
    )
    host.catch_up()
    (row,) = rows(host, repositories)
    assert (row.files, row.loc, row.complexity) == (250, 45000, 3.2)


def test_example_1_with_a_real_repository(host: Host, project: Path, git: Git) -> None:
    """From the clone on disk to its analysis nobody calls anybody: all is stated and read."""
    git(project, "remote", "add", "origin", "git@github.com:teranos/QNTX.git")
    ingest(project, host.append)
    host.catch_up(jobs=True)

    (analyzed,) = host.ax(
        Ax(contexts=("repository_analyzed",), actors=("code-analyzer@system",), entities=(QNTX,))
    )
    assert analyzed.payload == {"files": 1, "loc": 2, "complexity": 1.0}
    (requested,) = host.ax(Ax(contexts=("pulse.job_requested",)))
    (cloned,) = host.ax(Ax(contexts=("repository_cloned",)))
    assert requested.caused_by == cloned.id
    assert analyzed.correlation_id == requested.correlation_id


def test_the_correct_approach_is_to_state_that_a_repository_is_ready(host: Host) -> None:
    """Instead of calling another plugin, this one says what others may want to know."""
    host.append(
        Attestation(
            actor="code@plugin",
            context="repository_ready",
            entity="github.com/teranos/QNTX",
            payload={"trigger": "finance_analysis"},
        )
    )
    (ready,) = host.ax(Ax(contexts=("repository_ready",), actors=("code@plugin",)))
    assert ready.payload == {"trigger": "finance_analysis"}
