"""Two domains on one host, neither of which knows the other, communicate by what they state."""

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select

from domains.code import code, ingest
from domains.finance import finance, value
from domains.finance.read_model import valuations
from qntx_es import Ax, Host


@pytest.fixture
def host(url: str) -> Iterator[Host]:
    """Open a host with both domains on an empty database."""
    with closing(Host(url, domains=[code, finance])) as opened:
        opened.upgrade()
        yield opened


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a repository with one commit."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "main.py").write_text("def f(x):\n    return 1 if x else 0\n" * 50)
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for arguments in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "first")):
        subprocess.run(("git", *who, *arguments), cwd=folder, check=True)
    return folder


def test_a_repository_is_valued_from_its_commits_to_its_cost(host: Host, project: Path) -> None:
    """From a folder to its value: ingested, analysed and valued, each by what the other stated."""
    ingest(project, host.append)
    host.catch_up(jobs=True)

    with host.database.read() as connection:
        (row,) = connection.execute(select(valuations))
    assert (row.repository, row.commits, row.loc) == ("local/project", 1, 100)
    assert (row.complexity_hundredths, row.cost_euro) == (200, value(100).cost_euro)

    (analyzed,) = host.ax(Ax(contexts=("repository_analyzed",)))
    (valued,) = host.ax(Ax(contexts=("repository_valued",)))
    assert valued.caused_by == analyzed.id
    assert valued.correlation_id == analyzed.correlation_id


def test_either_domain_is_rebuilt_without_the_other(host: Host, project: Path) -> None:
    """A rebuild of one domain leaves what the other states and shows as it was."""
    ingest(project, host.append)
    host.catch_up(jobs=True)
    before = host.ax(Ax())
    with host.database.read() as connection:
        rows = list(connection.execute(select(valuations)))
    host.rebuild("code")
    host.rebuild("finance")
    host.catch_up(jobs=True)
    with host.database.read() as connection:
        assert list(connection.execute(select(valuations))) == rows
    assert [one.id for one in host.ax(Ax()) if one.entity == "local/project"] == [
        one.id for one in before if one.entity == "local/project"
    ]
