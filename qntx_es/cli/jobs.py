"""`qntx-es jobs`: what Pulse has to do, and what became of what it had."""

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer
from sqlalchemy import Connection, func, select

from qntx_es.cli.flags import command, group
from qntx_es.cli.output import LIMIT_MAX, Column, Row, counted
from qntx_es.cli.session import Session
from qntx_es.errors import UnknownHandler
from qntx_es.host import Host
from qntx_es.pulse.tables import jobs
from qntx_es.pulse.why import why

NEWEST = 50
STYLES = {
    "succeeded": "green",
    "failed": "bold red",
    "running": "cyan",
    "ready": "yellow",
    "suspended": "yellow",
    "cancelled": "dim",
    "merged": "dim",
}
COLUMNS = (
    Column("requested at", is_number=True),
    Column("handler"),
    Column("entity"),
    Column("status", styles=STYLES),
    Column("attempt", is_number=True),
    Column("due (UTC)", is_spare=True),
    Column("error", is_spare=True),
)

WHY = (Column("why it is not running"), Column("what to do"))


class Status(StrEnum):
    """What a job may be."""

    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUSPENDED = "suspended"
    MERGED = "merged"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    jobs_group = group(app, "jobs", "See what Pulse does.")
    command(jobs_group, "list")(list_jobs)
    command(jobs_group, "why")(why_not)


def list_jobs(
    session: Session,
    *,
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    handler: Annotated[
        str | None, typer.Option(metavar="H", help="Only of this one: code.analyze_repository.")
    ] = None,
    entity: Annotated[str | None, typer.Option(metavar="E", help="Only about this.")] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, max=LIMIT_MAX, help="The newest N.")
    ] = NEWEST,
) -> None:
    """Show jobs, the newest last."""
    wanted = {"status": status and status.value, "handler": handler, "entity": entity}
    with session.host() as host:
        if handler is not None:
            _refuse_unknown(handler, host)
        found = read_jobs(host, wanted, limit)
    session.out.document(found)
    session.out.table(COLUMNS, [row_of(job) for job in found])
    session.out.say(counted(len(found), "job"), style="dim")


def why_not(
    session: Session, job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
) -> None:
    """Say why a job is not running, nearest cause first, and what to do."""
    with session.host() as host:
        host.get_ready()
        with host.log.reading() as turn:
            reasons = why(turn, job)
    session.out.document([asdict(one) for one in reasons])
    session.out.table(WHY, [(one.text, one.remedy) for one in reasons])


def read_jobs(host: Host, wanted: dict[str, str | None], limit: int) -> list[dict[str, Any]]:
    """Return the newest jobs that are as wanted, in the order they were requested in."""
    asked = select(jobs).order_by(jobs.c.requested.desc()).limit(limit)
    for column, value in wanted.items():
        if value is not None:
            asked = asked.where(jobs.c[column] == value)
    if not is_there(host):
        return []
    with host.database.read() as connection:
        rows = connection.execute(asked).mappings().all()
    return [dict(row) for row in reversed(rows)]


def count_jobs(host: Host) -> dict[str, int]:
    """Return how many jobs have each status."""
    asked = select(jobs.c.status, func.count()).group_by(jobs.c.status).order_by(jobs.c.status)
    with host.database.read() as connection:
        return {row[0]: row[1] for row in connection.execute(asked)}


def row_of(job: dict[str, Any]) -> Row:
    """Return the row of a table for a job."""
    allowed = job["attempts_allowed"]
    attempt = f"{job['attempt']} of {allowed}" if allowed else job["attempt"]
    due = job["run_at"] if job["status"] == "ready" else None
    named = (job["requested"], job["handler"], job["entity"], job["status"])
    return (*named, attempt, due, reason_of(job))


def reason_of(job: dict[str, Any]) -> str:
    """Return what a job's last attempt failed with: its first line, without names of modules."""
    first = (job["error"] or "").strip().partition("\n")[0]
    kind, colon, message = first.partition(": ")
    is_dotted_name = kind.replace(".", "").isidentifier()
    return kind.rpartition(".")[2] + colon + message if is_dotted_name else first


def is_there(host: Host) -> bool:
    """Tell whether any host has run here yet: the first one makes Pulse's tables."""
    return any(status.name == "pulse" for status in host.statuses())


def _refuse_unknown(handler: str, host: Host) -> None:
    """Refuse a handler that is neither enabled nor remembered."""
    known = {job.name for domain in host.domains.values() for job in domain.jobs}
    if handler in known:
        return
    if is_there(host):
        with host.database.read() as connection:
            known |= set(_handlers(connection))
    if handler not in known:
        raise UnknownHandler(handler, known)


def _handlers(connection: Connection) -> Sequence[str]:
    return connection.execute(select(jobs.c.handler).distinct()).scalars().all()
