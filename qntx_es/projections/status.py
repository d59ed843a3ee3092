"""How every projector stands, read from the tables alone.

It needs no domain's code, so a broken domain can always be seen, and takes no lock, so that
watching never slows what is watched. Head and cursors come from one statement: with a remembered
head, lag is 0 when whoever remembers it is dead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, func, select

from qntx_es.attestation import instant
from qntx_es.domain import Domain
from qntx_es.projections.cursor import Pause, pause_of
from qntx_es.tables import attestations, cursors, failures, parked, rebuilds

REBUILD_MICROSECONDS = 60_000_000
# What is done with fresh tables that never become the live ones.
IN_THE_DARK = ("verifying", "watching", "travelling", "looking back")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a projector stands where it does."""

    position: int
    handler: str
    error: str
    traceback: str
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class ProjectorStatus:
    """One projector: `lag` is head less position, `lag_seconds` the age of the first unread.

    `state` is live, inline, paused, stopped, degraded, outdated, retired or rebuilding, and
    `parked` counts the entities that wait.
    """

    name: str
    version: int
    state: str
    position: int
    head: int
    lag: int
    lag_seconds: float
    generation: int
    parked: int
    pause: Pause | None
    failure: Failure | None
    rebuild: str | None


def statuses(
    connection: Connection, domains: Mapping[str, Domain], now: int
) -> list[ProjectorStatus]:
    """Return the status of every projector the database knows, by name."""
    head = select(func.coalesce(func.max(attestations.c.position), 0)).scalar_subquery()
    unread = attestations.alias("unread")
    first_unread = (
        select(unread.c.recorded_at)
        .where(unread.c.position == cursors.c.position + 1)
        .scalar_subquery()
    )
    waiting = (
        select(func.count())
        .where(parked.c.domain == cursors.c.domain, parked.c.version == cursors.c.version)
        .scalar_subquery()
    )
    stopped = and_(failures.c.domain == cursors.c.domain, failures.c.cursor == cursors.c.position)
    # One that has not looked for so long was killed; its tables go with the next.
    looked = rebuilds.c.looked_at > now - REBUILD_MICROSECONDS
    running = and_(rebuilds.c.domain == cursors.c.domain, looked)
    asked = (
        select(
            cursors.c.domain,
            cursors.c.version,
            cursors.c.position.label("at"),
            cursors.c.generation,
            *(cursors.c[name] for name in ("paused_by", "paused_at", "pause_reason")),
            head.label("head"),
            first_unread.label("first_unread"),
            waiting.label("parked"),
            failures.c.position.label("failed"),
            *(failures.c[name] for name in ("handler", "error", "traceback", "failed_at")),
            rebuilds.c.state.label("rebuild"),
            rebuilds.c.position.label("filled"),
            rebuilds.c.target,
        )
        .outerjoin(failures, stopped)
        .outerjoin(rebuilds, running)
        .order_by(cursors.c.domain)
    )
    rows = connection.execute(asked).all()
    return [_status(row, domains.get(row.domain), now) for row in rows]


def _status(
    row: Any,  # noqa: ANN401 - a row of the query above
    domain: Domain | None,
    now: int,
) -> ProjectorStatus:
    failure = (
        None
        if row.failed is None
        else Failure(row.failed, row.handler, row.error, row.traceback, instant(row.failed_at))
    )
    since = row.first_unread
    return ProjectorStatus(
        name=row.domain,
        version=row.version,
        state=_state(row, domain, failure),
        position=row.at,
        head=row.head,
        lag=row.head - row.at,
        lag_seconds=0.0 if since is None else max(0, now - since) / 1_000_000,
        generation=row.generation,
        parked=row.parked,
        pause=pause_of(row),
        failure=failure,
        rebuild=None if row.rebuild is None else f"{row.rebuild}, {row.filled} of {row.target}",
    )


def _state(
    row: Any,  # noqa: ANN401 - a row of the query above
    domain: Domain | None,
    failure: Failure | None,
) -> str:
    is_inline = domain is not None and domain.inline
    if row.rebuild not in (None, *IN_THE_DARK):
        return "rebuilding"
    if row.paused_by is not None:
        return "paused"
    if domain is not None and domain.version != row.version:
        return "outdated" if domain.version > row.version else "retired"
    if failure is not None:
        return "degraded" if is_inline else "stopped"
    return "inline" if is_inline else "live"
