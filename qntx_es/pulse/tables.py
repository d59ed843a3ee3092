"""The queue's rows, and the domain they belong to: Pulse is a domain like any other.

Payloads, states and results stay in the log; a row holds their positions. Amounts are integers
throughout, since the sum of floats would depend on the batch.
"""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Index, Integer, String, Text, text

from qntx_es.domain import Domain

ACTOR = "pulse@system"
# Statuses of a job that has not ended.
OPEN = frozenset(("ready", "running", "suspended"))

pulse = Domain("pulse", actors=(ACTOR,), emits=("pulse.*",), inline=True)

IS_READY, IS_RUNNING = text("status = 'ready'"), text("status = 'running'")


def _where(name: str, *columns: str, only: str) -> Index:
    condition = IS_READY if only == "ready" else IS_RUNNING
    return Index(name, *columns, sqlite_where=condition, postgresql_where=condition)


jobs = pulse.table(
    "jobs",
    Column("job", String, primary_key=True),
    Column("status", String, nullable=False),
    Column("handler", String, nullable=False),
    Column("entity", String, nullable=False),
    Column("key", String, nullable=False),
    Column("unique_value", String),
    Column("priority", Integer, nullable=False),
    Column("requested", BigInteger, nullable=False),
    Column("run_at", DateTime(timezone=True), nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("attempts_allowed", Integer),
    Column("on_lapse", String),
    Column("handler_version", Integer),
    Column("token", BigInteger),
    Column("worker", String),
    Column("started_at", DateTime(timezone=True)),
    Column("deadline_at", DateTime(timezone=True)),
    Column("cancelling", Boolean, nullable=False, default=False),
    Column("awaits", String),
    Column("parent", String),
    Column("counted", Boolean, nullable=False, default=False),
    Column("open_children", Integer, nullable=False, default=0),
    Column("advanced", BigInteger),
    Column("merged_into", String),
    Column("cost", BigInteger),
    Column("error", Text),
    Column("ended", BigInteger),
    Column("ended_at", DateTime(timezone=True)),
    # Each priority is a range of its own, so that delayed jobs are never walked over.
    _where("pulse_jobs_due", "handler", "priority", "run_at", "requested", only="ready"),
    _where("pulse_jobs_keys", "handler", "key", "priority", "run_at", "requested", only="ready"),
    _where("pulse_jobs_running", "handler", "key", only="running"),
    _where("pulse_jobs_worker", "worker", only="running"),
    _where("pulse_jobs_deadline", "deadline_at", only="running"),
    Index("pulse_jobs_parent", "parent"),
    Index("pulse_jobs_ended", "ended"),
)

unique = pulse.table(
    "unique",
    Column("value", String, primary_key=True),
    Column("job", String, nullable=False),
)

handlers = pulse.table(
    "handlers",
    Column("handler", String, primary_key=True),
    Column("queue", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("at_once", Integer),
    Column("per_key", Integer),
    Column("rate", Integer),
    Column("rate_window", BigInteger),
    Column("budget", String),
    Column("declared", BigInteger, nullable=False),
    Column("is_withdrawn", Boolean, nullable=False, default=False),
    Column("paused_by", String),
    Column("pause_reason", String),
    Column("lapses", Integer, nullable=False, default=0),
)

queues = pulse.table(
    "queues",
    Column("queue", String, primary_key=True),
    Column("at_once", Integer),
    Column("rate", Integer),
    Column("rate_window", BigInteger),
    Column("weight", Integer, nullable=False, default=1),
    Column("paused_by", String),
    Column("pause_reason", String),
)

budgets = pulse.table(
    "budgets",
    Column("budget", String, primary_key=True),
    Column("unit", String, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("window", BigInteger, nullable=False),
    Column("is_withdrawn", Boolean, nullable=False, default=False),
    Column("is_exhausted", Boolean, nullable=False, default=False),
)

# A ring of slots for each rate and budget: what was started or spent, by when it was recorded.
usage = pulse.table(
    "usage",
    Column("name", String, primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("slot", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
)

__all__ = [
    "ACTOR", "OPEN", "budgets", "handlers", "jobs", "pulse", "queues", "unique", "usage",
]  # fmt: skip
