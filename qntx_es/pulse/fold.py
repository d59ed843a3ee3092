"""The queue as a fold of the log: what every `pulse.job_*` attestation makes of a job's row.

The fold is total: what does not apply changes nothing, and nothing raises. It reads no clock: an
instant that matters was decided by somebody and recorded. The position of `pulse.job_started` is
the attempt's token; an outcome counts only for a row that is running under that very token.

What does not depend on the worker is decided here and nowhere else: that two requests of one unique
value are one job, and that the last child to end wakes its parent. So no append is refused for it,
and two children that end together cannot miss each other.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import Column, DateTime, Integer, String, delete

from qntx_es.attestation import Payload, Recorded
from qntx_es.jobs import CancellationRequested, JobRequested, ScheduleFired
from qntx_es.pulse.limits import note_lapse, note_life, note_spent, note_start
from qntx_es.pulse.statements import (
    JobAdvanced,
    JobCancelled,
    JobChanged,
    JobFailed,
    JobLapsed,
    JobReleased,
    JobResumed,
    JobRetried,
    JobSnoozed,
    JobsPruned,
    JobStarted,
    JobSucceeded,
    JobSuspended,
)
from qntx_es.pulse.tables import ACTOR, OPEN, jobs, pulse, unique
from qntx_es.rows import Row, Rows


class Outcome(Protocol):
    """What is said of an attempt by whoever ran it, or gave it up."""

    token: int
    cost: int


def unique_value(said: JobRequested) -> str | None:
    """Return what no two open jobs share, or None; a child is never merged into another's."""
    if said.unique is None or said.parent is not None:
        return None
    return f"{said.handler} {said.unique}"


def _rows_of_request(requested: Recorded[JobRequested]) -> Iterator[tuple[Any, ...]]:
    value = unique_value(requested.payload)
    if value is not None:
        yield unique, value
    if requested.payload.parent is not None:
        yield jobs, requested.payload.parent


@pulse.project(JobRequested, keys=_rows_of_request)
def request(requested: Recorded[JobRequested], rows: Rows) -> None:
    """Put the job in the queue, or let an open one of the same unique value stand for it."""
    said = requested.payload
    value = unique_value(said)
    holder = rows.get(unique, value) if value is not None else None
    parent = rows.get(jobs, said.parent) if said.parent is not None else None
    is_counted = parent is not None and parent.status in OPEN
    rows.put(
        jobs,
        job=requested.id,
        status="ready" if holder is None else "merged",
        handler=said.handler,
        entity=requested.entity,
        key=said.key or requested.entity,
        unique_value=value,
        priority=said.priority,
        requested=requested.position,
        run_at=due_at(said, requested.recorded_at),
        attempt=0,
        attempts_allowed=None,
        on_lapse=None,
        handler_version=None,
        token=None,
        worker=None,
        started_at=None,
        deadline_at=None,
        cancelling=False,
        awaits=None,
        parent=said.parent,
        counted=is_counted,
        open_children=0,
        advanced=None,
        merged_into=None if holder is None else holder.job,
        cost=said.cost,
        error=None,
        ended=None if holder is None else requested.position,
        ended_at=None if holder is None else requested.recorded_at,
    )
    if value is not None and holder is None:
        rows.put(unique, value=value, job=requested.id)
    if parent is not None and is_counted:
        rows.put(jobs, job=parent.job, open_children=parent.open_children + 1)


def due_at(said: JobRequested, recorded_at: datetime) -> datetime:
    """Return when a request is due: at its instant, or so long behind its place in the log."""
    return said.run_at or recorded_at + timedelta(milliseconds=said.delay_ms)


@pulse.project(JobStarted)
def start(started: Recorded[JobStarted], rows: Rows) -> None:
    """Give the job to the worker."""
    job = rows.get(jobs, started.entity)
    if job is None or job.status != "ready":
        return
    said = started.payload
    rows.put(
        jobs,
        job=started.entity,
        status="running",
        attempt=job.attempt + 1,
        attempts_allowed=said.attempts_allowed,
        on_lapse=said.on_lapse,
        handler_version=said.handler_version,
        token=started.position,
        worker=said.worker,
        started_at=started.recorded_at,
        deadline_at=said.deadline_at,
        cost=said.cost,
    )
    note_start(rows, job.handler, started.recorded_at)


@pulse.project(JobAdvanced)
def advance(advanced: Recorded[JobAdvanced], rows: Rows) -> None:
    """Let the next attempt go on from here."""
    if _running(rows, advanced.entity, advanced.payload.token) is not None:
        rows.put(jobs, job=advanced.entity, advanced=advanced.position)


@pulse.project(JobSucceeded)
def succeed(succeeded: Recorded[JobSucceeded], rows: Rows) -> None:
    """End the job: one that succeeds although it was to stop has succeeded."""
    job = _concluded(rows, succeeded)
    if job is not None:
        note_life(rows, job)
        _end(rows, job, "succeeded", succeeded)


@pulse.project(JobFailed)
def fail(failed: Recorded[JobFailed], rows: Rows) -> None:
    """Try again, or end the job."""
    job = _concluded(rows, failed)
    if job is not None:
        note_life(rows, job)
        _try_again(rows, job, failed, failed.payload.retry_at, failed.payload.error)


@pulse.project(JobLapsed)
def lapse(lapsed: Recorded[JobLapsed], rows: Rows) -> None:
    """Try again, or end the job."""
    job = _concluded(rows, lapsed)
    if job is not None:
        note_lapse(rows, job)
        _try_again(rows, job, lapsed, lapsed.payload.retry_at, lapsed.payload.reason)


@pulse.project(JobSnoozed)
def snooze(snoozed: Recorded[JobSnoozed], rows: Rows) -> None:
    """Wait; that was no attempt."""
    job = _concluded(rows, snoozed)
    if job is not None:
        _put_back(rows, job, snoozed, run_at=snoozed.payload.run_at, attempt=job.attempt - 1)


@pulse.project(JobReleased)
def release(released: Recorded[JobReleased], rows: Rows) -> None:
    """Let another worker have it; that was no attempt."""
    job = _concluded(rows, released)
    if job is not None:
        _put_back(rows, job, released, attempt=job.attempt - 1)


@pulse.project(JobCancelled)
def obey(cancelled: Recorded[JobCancelled], rows: Rows) -> None:
    """End a job whose handler has stopped because it was asked to."""
    job = _concluded(rows, cancelled)
    if job is not None:
        _end(rows, job, "cancelled", cancelled, error=cancelled.payload.reason)


@pulse.project(JobSuspended)
def suspend(suspended: Recorded[JobSuspended], rows: Rows) -> None:
    """Wait for the children or, said by a person, until somebody resumes it."""
    if suspended.payload.token is None:
        job = rows.get(jobs, suspended.entity)
        if job is not None and job.status == "ready":
            rows.put(jobs, job=job.job, status="suspended", awaits="held")
        return
    job = _concluded(rows, suspended)
    if job is None:
        return
    if job.cancelling:
        _end(rows, job, "cancelled", suspended, error=job.error)
        return
    waits = job.open_children > 0
    rows.put(
        jobs,
        job=job.job,
        status="suspended" if waits else "ready",
        awaits="children" if waits else None,
        token=None,
        attempt=0,
        advanced=suspended.position,
    )


@pulse.project(JobResumed)
def resume(resumed: Recorded[JobResumed], rows: Rows) -> None:
    """Let a suspended job run again, whatever it waits for."""
    job = rows.get(jobs, resumed.entity)
    if job is not None and job.status == "suspended":
        rows.put(jobs, job=job.job, status="ready", awaits=None)


@pulse.project(CancellationRequested)
def cancel(wanted: Recorded[CancellationRequested], rows: Rows) -> None:
    """End a job that waits; ask one that runs to stop."""
    job = rows.get(jobs, wanted.entity)
    if job is None:
        return
    if job.status == "running":
        rows.put(jobs, job=job.job, cancelling=True)
    elif job.status in OPEN:
        _end(rows, job, "cancelled", wanted, error=wanted.payload.reason)


@pulse.project(JobChanged)
def change(changed: Recorded[JobChanged], rows: Rows) -> None:
    """Move a job that is ready."""
    job = rows.get(jobs, changed.entity)
    if job is None or job.status != "ready":
        return
    said = changed.payload
    rows.put(
        jobs,
        job=job.job,
        priority=job.priority if said.priority is None else said.priority,
        run_at=said.run_at or job.run_at,
    )


@pulse.project(JobRetried)
def retry(retried: Recorded[JobRetried], rows: Rows) -> None:
    """Begin an ended job anew, unless another one holds its unique value by now."""
    job = rows.get(jobs, retried.entity)
    if job is None or job.status not in ("failed", "cancelled"):
        return
    value = job.unique_value
    if value is not None and rows.get(unique, value) is not None:
        return
    parent = rows.get(jobs, job.parent) if job.parent is not None else None
    is_counted = parent is not None and parent.status in OPEN
    rows.put(
        jobs,
        job=job.job,
        status="ready",
        attempt=0,
        run_at=retried.recorded_at,
        counted=is_counted,
        error=None,
        ended=None,
        ended_at=None,
    )
    if value is not None:
        rows.put(unique, value=value, job=job.job)
    if parent is not None and is_counted:
        rows.put(jobs, job=parent.job, open_children=parent.open_children + 1)


@pulse.project(JobsPruned)
def prune(pruned: Recorded[JobsPruned], rows: Rows) -> None:
    """Forget what ended before."""
    rows.execute(delete(jobs).where(jobs.c.ended < pruned.payload.before))


def _concluded(rows: Rows, said: Recorded[Any]) -> Row | None:
    """Return the job whose attempt this is the outcome of, and count what it has cost."""
    outcome: Outcome = said.payload
    job = _running(rows, said.entity, outcome.token)
    if job is not None and outcome.cost:
        note_spent(rows, job.handler, outcome.cost, said.recorded_at)
    return job


def _running(rows: Rows, job: str, token: int) -> Row | None:
    row = rows.get(jobs, job)
    is_so = row is not None and row.status == "running" and row.token == token
    return row if is_so else None


def _try_again(
    rows: Rows, job: Row, said: Recorded[Any], retry_at: datetime | None, error: str
) -> None:
    if retry_at is None and not job.cancelling:
        _end(rows, job, "failed", said, error=error)
    else:
        _put_back(rows, job, said, error=error, run_at=retry_at or job.run_at)


def _put_back(rows: Rows, job: Row, said: Recorded[Any], **columns: object) -> None:
    if job.cancelling:
        _end(rows, job, "cancelled", said, error=columns.get("error", job.error))
    else:
        rows.put(jobs, job=job.job, status="ready", token=None, **columns)


def _end(rows: Rows, job: Row, status: str, said: Recorded[Any], *, error: object = None) -> None:
    rows.put(
        jobs,
        job=job.job,
        status=status,
        token=None,
        cancelling=False,
        awaits=None,
        counted=False,
        error=error,
        ended=said.position,
        ended_at=said.recorded_at,
    )
    if job.unique_value is not None:
        rows.delete(unique, job.unique_value)
    parent = rows.get(jobs, job.parent) if job.counted else None
    if parent is None:
        return
    left = parent.open_children - 1
    rows.put(jobs, job=parent.job, open_children=left)
    if left == 0 and parent.status == "suspended" and parent.awaits == "children":
        rows.put(jobs, job=parent.job, status="ready", awaits=None)


schedules = pulse.table(
    "schedules",
    Column("schedule", String, primary_key=True),
    Column("step_seconds", Integer, nullable=False),
    Column("declared_at", DateTime(timezone=True), nullable=False),
    Column("last_due", DateTime(timezone=True)),
)


class ScheduleDeclared(Payload, context="pulse.schedule_declared"):
    """A domain's schedule, as its code says; the entity is its name."""

    step_seconds: int


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


__all__ = ["ACTOR", "jobs", "pulse", "unique_value"]
