"""`qntx-es domains`: which are enabled, what is wrong with them, and whether they replay."""

import logging
from dataclasses import dataclass

import typer

from qntx_es.cli import exercise
from qntx_es.cli.exits import FAILURE
from qntx_es.cli.flags import group
from qntx_es.cli.output import Column, Row, complain
from qntx_es.cli.session import PLAIN, Session, log_to_stderr
from qntx_es.discovery import find_domain
from qntx_es.errors import DomainRefused
from qntx_es.host import Host

COLUMNS = (
    Column("domain"),
    Column("version", is_number=True),
    Column("from"),
    Column("tables", is_number=True),
    Column("jobs", is_number=True),
    Column("problems", styles={"none": "green"}),
)
NONE_ENABLED = (
    "no domain is enabled: name them with --domains, QNTX_DOMAINS, or in qntx.toml "
    '([domains] enabled = ["code"])'
)


@dataclass(frozen=True, slots=True)
class Described:
    """An enabled domain: what it is, or what keeps it from being run."""

    name: str
    version: int | None
    home: str | None
    tables: list[str]
    jobs: list[str]
    problems: list[str]


def register(app: typer.Typer) -> None:
    """Add the commands; alone it shows what is enabled."""
    commands = group(app, "domains", "See and try domains.", alone=domains)
    exercise.register(commands)


def domains(session: Session) -> None:
    """Show the enabled domains, and what is wrong."""
    # What is wrong is the answer here, and no warning beside it.
    log_to_stderr(PLAIN, logging.CRITICAL)
    with session.host(url="sqlite://") as host:
        found = [_describe(name, host) for name in session.settings.domains]
    session.out.document(found)
    session.out.table(COLUMNS, [_row(one) for one in found])
    if not found:
        complain(NONE_ENABLED)
    if any(one.problems for one in found):
        raise typer.Exit(FAILURE)


def _describe(name: str, host: Host) -> Described:
    error = host.failed.get(name)
    if error is None:
        found = find_domain(name)
        tables, jobs = sorted(found.domain.tables), sorted(job.name for job in found.domain.jobs)
        return Described(found.domain.name, found.domain.version, found.home, tables, jobs, [])
    problems = error.problems if isinstance(error, DomainRefused) else (str(error),)
    return Described(name, None, None, [], [], list(problems))


def _row(one: Described) -> Row:
    problems = "; ".join(one.problems) or "none"
    return (one.name, one.version, one.home, len(one.tables), len(one.jobs), problems)
