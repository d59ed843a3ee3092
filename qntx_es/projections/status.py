"""How every projector stands, read from the tables alone.

It needs no domain's code, so a broken domain can always be seen, and takes no lock, so that
watching never slows what is watched. Head and cursors come from one statement: with a remembered
head, lag is 0 when whoever remembers it is dead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, and_, func, select

from qntx_es.attestation import instant
from qntx_es.domain import Domain
from qntx_es.projections.blocked import Blocked, blocked
from qntx_es.projections.cursor import Pause, lease_of_row, pause_of
from qntx_es.projections.drift import Drift, first_drifts
from qntx_es.projections.fingerprint import is_unproved
from qntx_es.projections.slices import Slices
from qntx_es.tables import attestations, cursors, drifts, failures, fills, leases, parked, rebuilds

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
class RangeStatus:
    """How far one range of a projector's slices is, and who projects it."""

    slices: str
    position: int
    lag: int
    holder: str | None
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class ProjectorStatus:
    """One projector: `lag` is head less position, `lag_seconds` the age of the first unread.

    `state` is live, standby, inline, paused, stopped, stuck, degraded, outdated, retired,
    rebuilding, drifted or unproved; `why` says in words why nothing moves, if nothing does, or why
    its rows may not be right. `parked` counts the entities that wait, `drifted` those whose rows
    the scrubber found to be others; `drifts` are the first. Of one that is cut, position and lag
    are those of the range that is furthest behind, and `ranges` has them all.
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
    holder: str | None
    why: str | None
    ranges: tuple[RangeStatus, ...]
    drifted: int
    drifts: tuple[Drift, ...]


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
    drifted = (
        select(func.count(drifts.c.entity.distinct()))
        .where(drifts.c.domain == cursors.c.domain)
        .scalar_subquery()
    )
    stopped = and_(
        failures.c.domain == cursors.c.domain,
        failures.c.first_slice == cursors.c.first_slice,
        failures.c.cursor == cursors.c.position,
    )
    # One that has not looked for so long was killed; its tables go with the next.
    looked = rebuilds.c.looked_at > now - REBUILD_MICROSECONDS
    running = and_(rebuilds.c.domain == cursors.c.domain, looked)
    filled = (
        select(func.coalesce(func.min(fills.c.position), 0))
        .where(fills.c.domain == cursors.c.domain)
        .scalar_subquery()
    )
    held = and_(leases.c.name == lease_of_row(), leases.c.expires_at > now)
    asked = (
        select(
            cursors.c.domain,
            cursors.c.version,
            cursors.c.position.label("at"),
            cursors.c.generation,
            cursors.c.fingerprint,
            *(cursors.c[name] for name in ("first_slice", "last_slice")),
            *(cursors.c[name] for name in ("paused_by", "paused_at", "pause_reason")),
            head.label("head"),
            first_unread.label("first_unread"),
            waiting.label("parked"),
            drifted.label("drifted"),
            leases.c.holder,
            failures.c.state.label("failed_as"),
            failures.c.position.label("failed"),
            *(failures.c[name] for name in ("handler", "error", "traceback", "failed_at")),
            rebuilds.c.state.label("rebuild"),
            filled.label("filled"),
            rebuilds.c.target,
        )
        .outerjoin(failures, stopped)
        .outerjoin(rebuilds, running)
        .outerjoin(leases, held)
        .order_by(cursors.c.domain, cursors.c.first_slice)
    )
    rows = connection.execute(asked).all()
    is_any_behind = any(row.at < row.head for row in rows)
    waits = blocked(connection) if is_any_behind else {}
    by_domain = groupby(rows, key=attrgetter("domain"))
    return [
        _status(connection, list(some), domains.get(name), now, waits.get(name))
        for name, some in by_domain
    ]


def _status(
    connection: Connection,
    rows: Sequence[Any],  # the rows of the query above that are a domain's
    domain: Domain | None,
    now: int,
    blocked_by: Blocked | None,
) -> ProjectorStatus:
    row = min(rows, key=attrgetter("at"))
    ranges = tuple(map(_range_status, rows))
    failure = next((one.failure for one in ranges if one.failure is not None), None)
    holders = sorted({one.holder for one in ranges if one.holder is not None})
    state = _state(rows, domain)
    found = first_drifts(connection, row.domain) if row.drifted else ()
    since = row.first_unread
    return ProjectorStatus(
        name=row.domain,
        version=row.version,
        state=state,
        position=row.at,
        head=row.head,
        lag=row.head - row.at,
        lag_seconds=0.0 if since is None else max(0, now - since) / 1_000_000,
        generation=row.generation,
        parked=row.parked,
        pause=pause_of(row),
        failure=failure,
        rebuild=None if row.rebuild is None else f"{row.rebuild}, {row.filled} of {row.target}",
        holder=", ".join(holders) or None,
        why=_why(state, row, failure, domain)
        or _doubt(state, row, found)
        or _waits(row, blocked_by),
        ranges=ranges,
        drifted=row.drifted,
        drifts=found,
    )


def _range_status(row: Any) -> RangeStatus:  # noqa: ANN401 - a row of the query above
    failure = (
        None
        if row.failed is None
        else Failure(row.failed, row.handler, row.error, row.traceback, instant(row.failed_at))
    )
    slices = str(Slices(row.first_slice, row.last_slice))
    return RangeStatus(slices, row.at, row.head - row.at, row.holder, failure)


def _state(rows: Sequence[Any], domain: Domain | None) -> str:
    row = rows[0]
    if row.rebuild not in (None, *IN_THE_DARK):
        return "rebuilding"
    if row.paused_by is not None:
        return "paused"
    if domain is not None and domain.version != row.version:
        return "outdated" if domain.version > row.version else "retired"
    return _state_as_it_runs(rows, domain)


def _state_as_it_runs(rows: Sequence[Any], domain: Domain | None) -> str:
    row = rows[0]
    is_inline = domain is not None and domain.inline
    failed_as = next((one.failed_as for one in rows if one.failed is not None), None)
    if failed_as is not None:
        return "degraded" if is_inline else str(failed_as)
    if row.drifted:
        return "drifted"
    if domain is not None and is_unproved(domain, row.fingerprint):
        return "unproved"
    return "inline" if is_inline else "live"


def _waits(row: Any, blocked_by: Blocked | None) -> str | None:  # noqa: ANN401 - as above
    if blocked_by is not None:
        return str(blocked_by)
    return f"{row.parked} entities are parked, and wait to be retried" if row.parked else None


def _why(
    state: str,
    row: Any,  # noqa: ANN401 - a row of the query above
    failure: Failure | None,
    domain: Domain | None,
) -> str | None:
    if row.at > row.head:
        return "beyond the end of the log: an older one was restored, without the rows and cursors"
    if state in ("outdated", "retired") and domain is not None:
        told = f"its tables are of version {row.version}, the code is of version {domain.version}"
        remedy = f": qntx-es projections rebuild {row.domain}" if state == "outdated" else ""
        return told + remedy
    if state == "paused":
        return str(pause_of(row))
    if failure is not None:
        return f"{state} at {failure.position}: `{failure.handler}` {failure.error}"
    if state == "live" and row.holder is None and row.at < row.head:
        return "unowned: no running host holds its lease"
    return None


def _doubt(state: str, row: Any, found: Sequence[Drift]) -> str | None:  # noqa: ANN401 - a row of the query above
    """Say why the rows may not be what the log makes, and how that is settled."""
    if state == "unproved":
        return (
            f"its code is not the one that made the rows: qntx-es projections verify {row.domain}"
        )
    if state == "drifted" and found:
        first = f"{found[0]}, since {found[0].found_at:%Y-%m-%d %H:%M} UTC"
        return f"{first}: qntx-es projections verify {row.domain} tells all, rebuild mends it"
    return None
