"""Why a job is not running: every reason that holds, nearest cause first, with its remedy.

What decides is what `claim` decides by: the same rows, read at one moment. A reason carries its
numbers, so that whoever reads it need not ask again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, and_, func, or_, select

from qntx_es.attestation import decode_mapping, instant
from qntx_es.log import Turn
from qntx_es.pulse.claim import is_behind, used_since
from qntx_es.pulse.limits import SLOTS, budget_usage, handler_usage, queue_usage, slot_of
from qntx_es.pulse.rescue import PREFIX
from qntx_es.pulse.statements import JobSuspended
from qntx_es.pulse.tables import OPEN, budgets, handlers, jobs, queues, usage
from qntx_es.tables import attestations, cursors, inbox, leases

MILLIONTHS = 1_000_000


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that keeps a job from running: what it is, said with numbers, and what to do."""

    kind: str
    text: str
    remedy: str


def why(turn: Turn, job: str) -> list[Reason]:
    """Return every reason for which a job is not running, nearest cause first."""
    return list(_reasons(turn, job))


def _reasons(turn: Turn, job: str) -> Iterator[Reason]:
    if is_behind(turn):
        (at,) = turn.read(select(cursors.c.position).where(cursors.c.domain == "pulse"))[0]
        yield Reason(
            "degraded",
            f"Pulse stands at position {at} and does not follow the log",
            "`qntx-es projections status pulse` says why",
        )
    row = next(iter(turn.read(select(jobs).where(jobs.c.job == job))), None)
    if row is None:
        yield _unknown(turn, job)
    elif row.status == "merged":
        yield Reason(
            "merged",
            f"it was merged into job {row.merged_into}, which holds the same unique value",
            f"ask about that one: `qntx-es jobs why {row.merged_into}`",
        )
    elif row.status == "running":
        text = f"it runs: attempt {row.attempt} since {row.started_at}, on worker {row.worker}"
        yield Reason("running", text, "wait for it, or cancel it")
    elif row.status not in OPEN:
        yield Reason(
            "ended", f"it ended: {row.status} at {row.ended_at}", "ask for it again, or retry it"
        )
    elif row.status == "suspended":
        yield _suspended(turn, row)
    else:
        yield from _waits(turn, row)


def _unknown(turn: Turn, job: str) -> Reason:
    is_postgresql = turn.connection.dialect.name == "postgresql"
    if is_postgresql and turn.read(select(inbox.c.id).where(inbox.c.id == job)):
        return Reason("inbox", "it is committed and has no position yet", "any host gives it one")
    return Reason(
        "unknown",
        "no job has this id, or its row was pruned",
        "`qntx-es jobs list` shows those that there are; a job's id is its request's",
    )


def _suspended(turn: Turn, row: Any) -> Reason:  # noqa: ANN401 - a row of pulse_jobs
    if row.awaits == "children":
        children = select(func.count()).where(jobs.c.parent == row.job)
        (count,) = turn.read(children)[0]
        return Reason(
            "children",
            f"it waits for {row.open_children} of {count} children",
            f"`qntx-es jobs why` for each of those with the parent {row.job}",
        )
    said = (
        select(attestations.c.payload)
        .where(attestations.c.entity == row.job, attestations.c.context == JobSuspended.context)
        .order_by(attestations.c.position.desc())
        .limit(1)
    )
    by = decode_mapping(turn.read(said)[0].payload).get("by") or "somebody"
    return Reason("held", f"it is held by {by}", "resume it")


def _waits(turn: Turn, row: Any) -> Iterator[Reason]:  # noqa: ANN401 - a row of pulse_jobs
    now = instant(turn.now)
    if row.run_at > now:
        yield Reason("due", f"it is due in {_span(row.run_at - now)}", "wait, or change its time")
    handler = next(iter(turn.read(select(handlers).where(handlers.c.handler == row.handler))), None)
    if handler is None or handler.is_withdrawn:
        yield Reason(
            "handler",
            f"no domain declares the handler `{row.handler}`",
            "enable its domain on a running host, or give a renamed handler its old name=",
        )
    living = select(func.count()).where(
        leases.c.name.startswith(PREFIX), leases.c.expires_at > turn.now
    )
    if not turn.read(living)[0][0]:
        yield Reason("worker", "no worker is alive", "start one: `qntx-es run`")
    if handler is not None:
        yield from _bounded(turn, row, handler, now)
    yield _in_line(turn, row, now)


def _bounded(turn: Turn, row: Any, handler: Any, now: datetime) -> Iterator[Reason]:  # noqa: ANN401 - rows
    if handler.paused_by is not None:
        text = f"its handler is paused by {handler.paused_by}: {handler.pause_reason or '-'}"
        yield Reason("handler_paused", text, "resume the handler")
    found = turn.read(select(queues).where(queues.c.queue == handler.queue))
    queue = next(iter(found), None)
    if queue is not None and queue.paused_by is not None:
        text = f"queue `{queue.queue}` is paused by {queue.paused_by}: {queue.pause_reason or '-'}"
        yield Reason("queue_paused", text, "resume the queue")
    running = _running()
    if queue is not None and queue.at_once is not None:
        of_queue = select(handlers.c.handler).where(handlers.c.queue == queue.queue)
        busy = turn.read(running.where(jobs.c.handler.in_(of_queue)))[0][0]
        if busy >= queue.at_once:
            text = f"queue `{queue.queue}` is full: {busy} of {queue.at_once} run"
            yield Reason("queue_full", text, "wait, or raise its limit")
    of_handler = running.where(jobs.c.handler == row.handler)
    if handler.at_once is not None:
        busy = turn.read(of_handler)[0][0]
        if busy >= handler.at_once:
            text = f"its handler is full: {busy} of {handler.at_once} run"
            yield Reason("handler_full", text, "wait, or raise limit=")
    if handler.per_key is not None:
        busy = turn.read(of_handler.where(jobs.c.key == row.key))[0][0]
        if busy >= handler.per_key:
            yield _key_full(turn, row, busy, handler.per_key)
    yield from _rates(turn, handler, queue, now)
    yield from _budget(turn, row, handler)


def _running() -> Select[Any]:
    return select(func.count()).select_from(jobs).where(jobs.c.status == "running")


def _key_full(turn: Turn, row: Any, busy: int, room: int) -> Reason:  # noqa: ANN401 - a row
    held = (
        select(jobs.c.job, jobs.c.started_at)
        .where(jobs.c.status == "running", jobs.c.handler == row.handler, jobs.c.key == row.key)
        .order_by(jobs.c.started_at)
        .limit(1)
    )
    ((holder, since),) = turn.read(held)
    text = f"key `{row.key}` is full: {busy} of {room} run, the first is {holder} since {since}"
    return Reason("key_full", text, f"wait for {holder}, or cancel it")


def _rates(turn: Turn, handler: Any, queue: Any, now: datetime) -> Iterator[Reason]:  # noqa: ANN401 - rows
    named = []
    if handler.rate is not None:
        named.append((handler_usage(handler.handler, handler.rate_window), handler, "its handler"))
    if queue is not None and queue.rate is not None:
        named.append((queue_usage(queue.queue, queue.rate_window), queue, f"queue `{queue.queue}`"))
    for name, row, whose in named:
        since = slot_of(turn.now, row.rate_window) - SLOTS
        used = used_since(turn, {name: since}).get(name, 0)
        if used >= row.rate:
            again = _free_again(turn, name, since, row.rate_window) - now
            text = f"the rate of {whose} is used up: {used} of {row.rate}, next in {_span(again)}"
            yield Reason("rate", text, "wait, or raise rate=")


def _budget(turn: Turn, row: Any, handler: Any) -> Iterator[Reason]:  # noqa: ANN401 - rows
    asked = select(budgets).where(budgets.c.budget == handler.budget)
    budget = next(iter(turn.read(asked)), None) if handler.budget is not None else None
    if budget is None or budget.is_withdrawn:
        return
    name = budget_usage(budget.budget, budget.window)
    since = slot_of(turn.now, budget.window) - SLOTS
    spent = used_since(turn, {name: since}).get(name, 0)
    drawing = select(handlers.c.handler).where(handlers.c.budget == budget.budget)
    held = select(func.coalesce(func.sum(jobs.c.cost), 0)).where(
        jobs.c.status == "running", jobs.c.handler.in_(drawing)
    )
    reserved = int(turn.read(held)[0][0])
    if budget.amount - spent - reserved >= max(row.cost or 0, 1):
        return
    again = _free_again(turn, name, since, budget.window) if spent else None
    text = (
        f"budget `{budget.budget}`: {spent / MILLIONTHS:.2f} spent and {reserved / MILLIONTHS:.2f} "
        f"reserved of {budget.amount / MILLIONTHS:.2f} {budget.unit}"
    )
    room = "" if again is None else f", room from {again:%Y-%m-%d %H:%M:%S} UTC on"
    yield Reason("budget", text + room, "wait, or raise the budget's amount")


def _free_again(turn: Turn, name: str, since: int, window: int) -> datetime:
    """Return when the oldest slot that counts will have left the window."""
    oldest = select(func.min(usage.c.slot)).where(usage.c.name == name, usage.c.slot >= since)
    (slot,) = turn.read(oldest)[0]
    return instant((slot + SLOTS + 1) * window // SLOTS + 1)


def _in_line(turn: Turn, row: Any, now: datetime) -> Reason:  # noqa: ANN401 - a row of pulse_jobs
    ahead = (
        select(func.count())
        .select_from(jobs)
        .where(jobs.c.status == "ready", jobs.c.handler == row.handler, jobs.c.run_at <= now)
        .where(
            or_(
                jobs.c.priority < row.priority,
                and_(jobs.c.priority == row.priority, jobs.c.run_at < row.run_at),
                and_(
                    jobs.c.priority == row.priority,
                    jobs.c.run_at == row.run_at,
                    jobs.c.requested < row.requested,
                ),
            )
        )
    )
    (count,) = turn.read(ahead)[0]
    text = f"it is number {count + 1} in line for `{row.handler}`"
    return Reason("line", text, "wait, run more workers, or give it another priority")


def _span(left: timedelta) -> str:
    seconds = max(0, left.total_seconds())
    if seconds < 90:  # noqa: PLR2004 - as people say it
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"  # noqa: PLR2004 - as above


__all__ = ["Reason", "why"]
