"""What bounds the starts: handlers, queues and budgets as they were declared, and what was used.

Usage slides. Each rate and budget has a ring of 61 slots, a sixtieth of its window each, and the
oldest counts whole: in *any* window there is never more than allowed, and at most a sixtieth less.
Windows pass by themselves: nobody reopens anything.
"""

from datetime import datetime

from qntx_es.attestation import Recorded, microseconds
from qntx_es.pulse.statements import (
    BudgetDeclared,
    BudgetExhausted,
    BudgetRestored,
    BudgetWithdrawn,
    HandlerDeclared,
    HandlerPaused,
    HandlerResumed,
    HandlerWithdrawn,
    QueueConfigured,
    QueuePaused,
    QueueResumed,
)
from qntx_es.pulse.tables import budgets, handlers, pulse, queues, usage
from qntx_es.rows import Row, Rows

SLOTS = 60
RING = SLOTS + 1
BREAKER = "pulse: breaker"
USED_MAX = 2**62


def slot_of(at: int, window: int) -> int:
    """Return which sixtieth of a window an instant falls into; both in microseconds."""
    return at * SLOTS // window


def handler_usage(handler: str, window: int) -> str:
    """Name what a handler's rate is counted under: another window begins another ring."""
    return f"handler {handler} {window}"


def queue_usage(queue: str, window: int) -> str:
    """Name what a queue's rate is counted under."""
    return f"queue {queue} {window}"


def budget_usage(budget: str, window: int) -> str:
    """Name what a budget is counted under."""
    return f"budget {budget} {window}"


def note_start(rows: Rows, name: str, at: datetime) -> None:
    """Count a start against the rates of its handler and queue."""
    handler = rows.get(handlers, name)
    if handler is None:
        return
    if handler.rate is not None:
        _use(rows, handler_usage(name, handler.rate_window), handler.rate_window, at, 1)
    queue = rows.get(queues, handler.queue)
    if queue is not None and queue.rate is not None:
        _use(rows, queue_usage(queue.queue, queue.rate_window), queue.rate_window, at, 1)


def note_spent(rows: Rows, name: str, amount: int, at: datetime) -> None:
    """Count what an attempt has spent against its handler's budget."""
    handler = rows.get(handlers, name)
    budget = None if handler is None else handler.budget
    found = None if budget is None else rows.get(budgets, budget)
    if found is not None:
        _use(rows, budget_usage(found.budget, found.window), found.window, at, amount)


def note_life(rows: Rows, job: Row) -> None:
    """Remember that an attempt of this handler came back."""
    handler = rows.get(handlers, job.handler)
    if handler is not None and handler.lapses:
        rows.put(handlers, handler=job.handler, lapses=0)


def note_lapse(rows: Rows, job: Row) -> None:
    """Count attempts of this handler, at this version, that vanished one after another."""
    handler = rows.get(handlers, job.handler)
    if handler is not None and handler.version == job.handler_version:
        rows.put(handlers, handler=job.handler, lapses=handler.lapses + 1)


@pulse.project(HandlerDeclared)
def declare_handler(declared: Recorded[HandlerDeclared], rows: Rows) -> None:
    """Take the handler as its code says; a new version has lapsed never, and lifts the breaker."""
    said = declared.payload
    before = rows.get(handlers, declared.entity)
    is_same = before is not None and before.version == said.version
    is_broken = before is not None and before.paused_by == BREAKER
    lifted = before is None or (is_broken and not is_same)
    rows.put(
        handlers,
        handler=declared.entity,
        queue=said.queue,
        version=said.version,
        at_once=said.limit,
        per_key=said.per_key,
        rate=said.rate if said.rate_window_ms else None,
        rate_window=said.rate_window_ms and said.rate_window_ms * 1_000,
        budget=said.budget,
        declared=declared.position,
        is_withdrawn=False,
        paused_by=None if lifted or before is None else before.paused_by,
        pause_reason=None if lifted or before is None else before.pause_reason,
        lapses=before.lapses if is_same and before is not None else 0,
    )


@pulse.project(HandlerWithdrawn)
def withdraw_handler(withdrawn: Recorded[HandlerWithdrawn], rows: Rows) -> None:
    """Remember that nobody declares it."""
    if rows.get(handlers, withdrawn.entity) is not None:
        rows.put(handlers, handler=withdrawn.entity, is_withdrawn=True)


@pulse.project(HandlerPaused)
def pause_handler(paused: Recorded[HandlerPaused], rows: Rows) -> None:
    """Start nothing of it."""
    if rows.get(handlers, paused.entity) is not None:
        said = paused.payload
        rows.put(handlers, handler=paused.entity, paused_by=said.by, pause_reason=said.reason)


@pulse.project(HandlerResumed)
def resume_handler(resumed: Recorded[HandlerResumed], rows: Rows) -> None:
    """Go on, and forgive what lapsed."""
    if rows.get(handlers, resumed.entity) is not None:
        rows.put(handlers, handler=resumed.entity, paused_by=None, pause_reason=None, lapses=0)


@pulse.project(QueueConfigured)
def configure_queue(configured: Recorded[QueueConfigured], rows: Rows) -> None:
    """Take the queue's limits as the configuration says."""
    said = configured.payload
    rows.put(
        queues,
        queue=configured.entity,
        at_once=said.limit,
        rate=said.rate if said.rate_window_ms else None,
        rate_window=said.rate_window_ms and said.rate_window_ms * 1_000,
        weight=said.weight,
    )


@pulse.project(QueuePaused)
def pause_queue(paused: Recorded[QueuePaused], rows: Rows) -> None:
    """Start nothing of the queue; it may be one that no configuration names."""
    said = paused.payload
    rows.put(queues, queue=paused.entity, paused_by=said.by, pause_reason=said.reason)


@pulse.project(QueueResumed)
def resume_queue(resumed: Recorded[QueueResumed], rows: Rows) -> None:
    """Go on."""
    if rows.get(queues, resumed.entity) is not None:
        rows.put(queues, queue=resumed.entity, paused_by=None, pause_reason=None)


@pulse.project(BudgetDeclared)
def declare_budget(declared: Recorded[BudgetDeclared], rows: Rows) -> None:
    """Take the budget as the configuration says."""
    said = declared.payload
    rows.put(
        budgets,
        budget=declared.entity,
        unit=said.unit,
        amount=said.amount,
        window=said.window_ms * 1_000,
        is_withdrawn=False,
    )


@pulse.project(BudgetWithdrawn)
def withdraw_budget(withdrawn: Recorded[BudgetWithdrawn], rows: Rows) -> None:
    """Let it hold nobody up."""
    if rows.get(budgets, withdrawn.entity) is not None:
        rows.put(budgets, budget=withdrawn.entity, is_withdrawn=True, is_exhausted=False)


@pulse.project(BudgetExhausted)
def exhaust_budget(exhausted: Recorded[BudgetExhausted], rows: Rows) -> None:
    """Remember that it is told."""
    if rows.get(budgets, exhausted.entity) is not None:
        rows.put(budgets, budget=exhausted.entity, is_exhausted=True)


@pulse.project(BudgetRestored)
def restore_budget(restored: Recorded[BudgetRestored], rows: Rows) -> None:
    """Remember that it is told."""
    if rows.get(budgets, restored.entity) is not None:
        rows.put(budgets, budget=restored.entity, is_exhausted=False)


def _use(rows: Rows, name: str, window: int, at: datetime, amount: int) -> None:
    slot = slot_of(microseconds(at), window)
    place = slot % RING
    before = rows.get(usage, name, place)
    used = amount if before is None or before.slot != slot else before.amount + amount
    # Past any budget already; a larger number would only be one that the column cannot hold.
    rows.put(usage, name=name, place=place, slot=slot, amount=min(used, USED_MAX))
