"""What is said of jobs, in the contexts that are Pulse's own; the entity is the job's id.

Whatever carries a `token` counts only for a job that is running under that very token: the position
of its `pulse.job_started`. All of it is bounded, so that no valid statement can keep the fold from
going on: an index has a longest key, and a column a largest number.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from qntx_es.attestation import Payload
from qntx_es.jobs import COST_MAX, Amount, At, Cost, Name, Priority, Token, Words

# What a job may leave behind: states of a long job, and what a finished one returns.
STATE_BYTES_MAX = 64 << 10
RESULT_BYTES_MAX = 32 << 10
MESSAGE_CHARACTERS_MAX = 512


class Progress(BaseModel):
    """How far a job said it was, when it said so last."""

    done: int
    total: int | None = None
    message: str | None = Field(default=None, max_length=MESSAGE_CHARACTERS_MAX)


class JobStarted(Payload, context="pulse.job_started"):
    """A worker took the job up, and may run it until `deadline_at`."""

    worker: Words
    attempts_allowed: int = Field(ge=1, le=1_000_000)
    deadline_at: At | None
    handler_version: int = Field(default=1, ge=1, lt=2**31)
    on_lapse: Literal["again", "fail"] = "again"
    cost: Cost = 0


class JobAdvanced(Payload, context="pulse.job_advanced"):
    """The next attempt goes on from this state; what was appended before it is in the log."""

    token: Token
    state: Any


class JobSucceeded(Payload, context="pulse.job_succeeded"):
    """The attempt of this token ended well, and all it said is in the log."""

    token: Token
    result: Any = None
    cost: Cost = 0
    took_ms: Amount = 0
    progress: Progress | None = None


class JobFailed(Payload, context="pulse.job_failed"):
    """The attempt of this token raised; without `retry_at` there is no other."""

    token: Token
    error: str
    retry_at: At | None
    cost: Cost = 0
    took_ms: Amount = 0
    progress: Progress | None = None


class JobLapsed(Payload, context="pulse.job_lapsed"):
    """The attempt of this token did not come back in time."""

    token: Token
    reason: str
    retry_at: At | None
    cost: Cost = 0


class JobSnoozed(Payload, context="pulse.job_snoozed"):
    """The handler asked to be called again at `run_at`; that was no attempt."""

    token: Token
    run_at: At
    cost: Cost = 0
    took_ms: Amount = 0


class JobReleased(Payload, context="pulse.job_released"):
    """A worker that ends gave the job back; that was no attempt."""

    token: Token
    reason: str
    cost: Cost = 0


class JobSuspended(Payload, context="pulse.job_suspended"):
    """With a token: the job waits for its children. Without: somebody holds it."""

    token: Token | None = None
    state: Any = None
    by: Words | None = None
    reason: str | None = None
    cost: Cost = 0
    took_ms: Amount = 0


class JobResumed(Payload, context="pulse.job_resumed"):
    """A suspended job may run again."""

    by: Words | None = None
    reason: str | None = None


class JobCancelled(Payload, context="pulse.job_cancelled"):
    """The attempt of this token obeyed: it was asked to stop, and did."""

    token: Token
    by: Words | None = None
    reason: str | None = None
    cost: Cost = 0
    took_ms: Amount = 0


class JobChanged(Payload, context="pulse.job_changed"):
    """A job that is not running gets another priority or time."""

    priority: Priority | None = None
    run_at: At | None = None
    by: Words | None = None
    reason: str | None = None


class JobRetried(Payload, context="pulse.job_retried"):
    """A job that failed or was cancelled begins anew."""

    by: Words | None = None
    reason: str | None = None


class JobsPruned(Payload, context="pulse.jobs_pruned"):
    """Rows of jobs that ended before this position are dropped; the log keeps all."""

    before: Token


class HandlerDeclared(Payload, context="pulse.handler_declared"):
    """A domain's handler, as its code says; the entity is its name."""

    queue: Name
    version: int = Field(ge=1, lt=2**31)
    options: dict[str, Any] = Field(default_factory=dict)
    payload_schema: dict[str, Any] | None = None
    limit: Amount | None = None
    per_key: Amount | None = None
    rate: Amount | None = None
    rate_window_ms: Amount | None = Field(default=None, ge=1)
    budget: Name | None = None


class HandlerWithdrawn(Payload, context="pulse.handler_withdrawn"):
    """Its domain has this handler no more."""


class HandlerPaused(Payload, context="pulse.handler_paused"):
    """Nothing of this handler is started until somebody resumes it."""

    by: Words
    reason: str | None = None


class HandlerResumed(Payload, context="pulse.handler_resumed"):
    """The handler goes on."""

    by: Words
    reason: str | None = None


class QueueConfigured(Payload, context="pulse.queue_configured"):
    """The limits of a queue, as a host's configuration says; the entity is its name."""

    limit: Amount | None = None
    rate: Amount | None = None
    rate_window_ms: Amount | None = Field(default=None, ge=1)
    weight: int = Field(default=1, ge=1, le=1_000)


class QueuePaused(Payload, context="pulse.queue_paused"):
    """Nothing of this queue is started until somebody resumes it."""

    by: Words
    reason: str | None = None


class QueueResumed(Payload, context="pulse.queue_resumed"):
    """The queue goes on."""

    by: Words
    reason: str | None = None


class BudgetDeclared(Payload, context="pulse.budget_declared"):
    """How much may be spent in any window; amounts are millionths of the unit."""

    unit: str = Field(max_length=64)
    amount: int = Field(ge=0, le=COST_MAX)
    window_ms: int = Field(ge=1, lt=2**31)


class BudgetWithdrawn(Payload, context="pulse.budget_withdrawn"):
    """No configuration names this budget any more: it holds nobody up."""


class BudgetExhausted(Payload, context="pulse.budget_exhausted"):
    """Spent and reserved leave no room for what waits."""

    spent: int = Field(ge=0)
    reserved: int = Field(ge=0)


class BudgetRestored(Payload, context="pulse.budget_restored"):
    """There is room again, since the window has passed."""

    spent: int = Field(ge=0)
    reserved: int = Field(ge=0)
