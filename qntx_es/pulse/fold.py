"""The queue as a fold of the log: what every `pulse.*` attestation makes of a job's row.

The fold is total: what does not apply changes nothing, and nothing raises. It reads no clock: an
instant that matters was decided by somebody and recorded. The position of `pulse.job_started` is
the attempt's token; an outcome counts only for a row that is running under that very token.
"""

from pydantic import AwareDatetime
from sqlalchemy import BigInteger, Column, DateTime, Index, Integer, String, Text

from qntx_es.attestation import Payload, Recorded
from qntx_es.domain import Domain
from qntx_es.jobs import JobRequested, ScheduleFired
from qntx_es.rows import Row, Rows

ACTOR = "pulse@system"

pulse = Domain("pulse", actors=(ACTOR,), emits=("pulse.*",), inline=True)

jobs = pulse.table(
    "jobs",
    Column("job", String, primary_key=True),
    Column("status", String, nullable=False),
    Column("handler", String, nullable=False),
    Column("entity", String, nullable=False),
    Column("requested", BigInteger, nullable=False),
    Column("run_at", DateTime(timezone=True), nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("attempts_allowed", Integer),
    Column("token", BigInteger),
    Column("worker", String),
    Column("started_at", DateTime(timezone=True)),
    Column("deadline_at", DateTime(timezone=True)),
    Column("ended_at", DateTime(timezone=True)),
    Column("error", Text),
    Index("pulse_jobs_due", "status", "handler", "run_at", "requested"),
)

schedules = pulse.table(
    "schedules",
    Column("schedule", String, primary_key=True),
    Column("step_seconds", Integer, nullable=False),
    Column("declared_at", DateTime(timezone=True), nullable=False),
    Column("last_due", DateTime(timezone=True)),
)


class JobStarted(Payload, context="pulse.job_started"):
    """A worker took the job up; the entity is the job's id, as in all that follows."""

    worker: str
    attempts_allowed: int
    deadline_at: AwareDatetime | None


class JobSucceeded(Payload, context="pulse.job_succeeded"):
    """The attempt of this token ended well, and all it said is in the log."""

    token: int


class JobFailed(Payload, context="pulse.job_failed"):
    """The attempt of this token raised; without `retry_at` there is no other."""

    token: int
    error: str
    retry_at: AwareDatetime | None


class JobLapsed(Payload, context="pulse.job_lapsed"):
    """The attempt of this token did not come back in time."""

    token: int
    reason: str
    retry_at: AwareDatetime | None


class ScheduleDeclared(Payload, context="pulse.schedule_declared"):
    """A domain's schedule, as its code says; the entity is its name."""

    step_seconds: int


@pulse.project(JobRequested)
def request(requested: Recorded[JobRequested], rows: Rows) -> None:
    """Put the job in the queue."""
    rows.put(
        jobs,
        job=requested.id,
        status="ready",
        handler=requested.payload.handler,
        entity=requested.entity,
        requested=requested.position,
        run_at=requested.recorded_at,
    )


@pulse.project(JobStarted)
def start(started: Recorded[JobStarted], rows: Rows) -> None:
    """Give the job to the worker."""
    job = rows.get(jobs, started.entity)
    if job is None or job.status != "ready":
        return
    rows.put(
        jobs,
        job=started.entity,
        status="running",
        attempt=job.attempt + 1,
        attempts_allowed=started.payload.attempts_allowed,
        token=started.position,
        worker=started.payload.worker,
        started_at=started.recorded_at,
        deadline_at=started.payload.deadline_at,
    )


@pulse.project(JobSucceeded)
def succeed(succeeded: Recorded[JobSucceeded], rows: Rows) -> None:
    """End the job."""
    if _runs_under(rows, succeeded.entity, succeeded.payload.token):
        rows.put(
            jobs,
            job=succeeded.entity,
            status="succeeded",
            token=None,
            error=None,
            ended_at=succeeded.recorded_at,
        )


@pulse.project(JobFailed)
def fail(failed: Recorded[JobFailed], rows: Rows) -> None:
    """Try again, or end the job."""
    _put_back(rows, failed, failed.payload.error)


@pulse.project(JobLapsed)
def lapse(lapsed: Recorded[JobLapsed], rows: Rows) -> None:
    """Try again, or end the job."""
    _put_back(rows, lapsed, lapsed.payload.reason)


@pulse.project(ScheduleDeclared)
def declare(declared: Recorded[ScheduleDeclared], rows: Rows) -> None:
    """Let the schedule fire from here on."""
    rows.put(
        schedules,
        schedule=declared.entity,
        step_seconds=declared.payload.step_seconds,
        declared_at=declared.recorded_at,
    )


@pulse.project(ScheduleFired)
def fire(fired: Recorded[ScheduleFired], rows: Rows) -> None:
    """Remember what was due last."""
    if rows.get(schedules, fired.entity) is not None:
        rows.put(schedules, schedule=fired.entity, last_due=fired.payload.due_at)


def _put_back(rows: Rows, ended: Recorded[JobFailed] | Recorded[JobLapsed], error: str) -> None:
    said = ended.payload
    if not _runs_under(rows, ended.entity, said.token):
        return
    if said.retry_at is None:
        ended_at = ended.recorded_at
        rows.put(
            jobs, job=ended.entity, status="failed", token=None, error=error, ended_at=ended_at
        )
    else:
        rows.put(
            jobs, job=ended.entity, status="ready", token=None, error=error, run_at=said.retry_at
        )


def _runs_under(rows: Rows, job: str, token: int) -> bool:
    row: Row | None = rows.get(jobs, job)
    return row is not None and row.status == "running" and row.token == token
