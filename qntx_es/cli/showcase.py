"""What a demo ends with: the read models of the domains that come with qntx-es, as tables.

They are read as anybody's would be, by the names they have in the database.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, Table, select

from qntx_es.cli import jobs, projections
from qntx_es.cli.output import Column, Output, Row, grouped
from qntx_es.host import Host

ROWS = 10
JOBS = 5

_REPOSITORIES = (
    Column("repository"),
    Column("branch", least_width=90),
    Column("language"),
    Column("commits", is_number=True),
    Column("files", is_number=True),
    Column("lines", is_number=True),
    Column("complexity", is_number=True),
    Column("last commit (UTC)", least_width=100),
)
_FILES = (
    Column("path"),
    Column("commits", is_number=True),
    Column("added", is_number=True),
    Column("deleted", is_number=True),
    Column("lines now", is_number=True),
    Column("complexity", is_number=True),
)
_VALUATIONS = (
    Column("repository"),
    Column("lines", is_number=True),
    Column("person-months", is_number=True),
    Column("months", is_number=True),
    Column("cost", is_number=True),
    Column("model", least_width=90),
)


def show(host: Host, repository: str, out: Output) -> None:
    """Print what became of `repository`, and how everything stands."""
    _show(out, "Repositories", _REPOSITORIES, _repositories(host))
    _show(out, "Busiest files, by lines changed", _FILES, _files(host, repository))
    _show(out, "What it would cost to write them anew", _VALUATIONS, _valuations(host))
    newest = jobs.read_jobs(host, {}, JOBS)
    _show(out, "Jobs, the newest", jobs.COLUMNS, [jobs.row_of(job) for job in newest])
    stand = [projections.row_of(status) for status in host.statuses()]
    _show(out, "Projectors", projections.COLUMNS, stand)


def _show(out: Output, title: str, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    if rows:
        out.say()
        out.say(title, style="bold")
        out.table(columns, rows)


def _repositories(host: Host) -> list[Row]:
    table = _table(host, "code", "repositories")
    if table is None:
        return []
    names = ("entity", "branch", "language", "commits", "files", "loc", "complexity")
    asked = select(*(table.c[name] for name in (*names, "last_commit_at")))
    return _rows(host, asked.order_by(table.c.commits.desc(), table.c.entity))


def _files(host: Host, repository: str) -> list[Row]:
    table = _table(host, "code", "files")
    if table is None:
        return []
    names = ("path", "commits", "added", "deleted", "loc", "complexity")
    churn = table.c.added + table.c.deleted
    asked = select(*(table.c[name] for name in names)).where(table.c.repository == repository)
    return _rows(host, asked.order_by(churn.desc(), table.c.path))


def _valuations(host: Host) -> list[Row]:
    table = _table(host, "finance", "valuations")
    if table is None:
        return []
    names = ("person_months_hundredths", "schedule_months_hundredths", "cost_euro", "model")
    asked = select(table.c.repository, table.c.loc, *(table.c[name] for name in names))
    valued = asked.where(table.c.model.is_not(None))
    return [
        (repository, loc, f"{effort / 100:.2f}", f"{months / 100:.2f}", f"{grouped(cost)} €", model)
        for repository, loc, effort, months, cost, model in _rows(
            host, valued.order_by(table.c.cost_euro.desc(), table.c.repository)
        )
    ]


def _table(host: Host, domain: str, name: str) -> Table | None:
    if domain not in host.domains:
        return None
    return host.domains[domain].tables.get(f"{domain}_{name}")


def _rows(host: Host, asked: Select[Any]) -> list[Any]:
    with host.database.read() as connection:
        return list(connection.execute(asked.limit(ROWS)))
