"""How every projector stands, and why nothing moves where nothing does: what a person looks at.

What `standing` tells of all is here with its reason, its ranges and whoever holds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from qntx_es.attestation import instant
from qntx_es.domain import Domain
from qntx_es.projections.blocked import Blocked, blocked
from qntx_es.projections.cursor import Pause, pause_of
from qntx_es.projections.drift import Drift, first_drifts
from qntx_es.projections.slices import Slices
from qntx_es.projections.standing import Standing, standings


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
    found = standings(connection, domains, now)
    waits = blocked(connection) if any(one.is_any_behind for one in found) else {}
    return [_status(connection, one, domains.get(one.name), waits.get(one.name)) for one in found]


def _status(
    connection: Connection, seen: Standing, domain: Domain | None, blocked_by: Blocked | None
) -> ProjectorStatus:
    row = seen.row
    ranges = tuple(map(_range_status, seen.rows))
    failure = next((one.failure for one in ranges if one.failure is not None), None)
    holders = sorted({one.holder for one in ranges if one.holder is not None})
    found = first_drifts(connection, row.domain) if row.drifted else ()
    return ProjectorStatus(
        name=seen.name,
        version=seen.version,
        state=seen.state,
        position=seen.position,
        head=seen.head,
        lag=seen.lag,
        lag_seconds=seen.lag_seconds,
        generation=row.generation,
        parked=seen.parked,
        pause=pause_of(row),
        failure=failure,
        rebuild=None if row.rebuild is None else f"{row.rebuild}, {row.filled} of {row.target}",
        holder=", ".join(holders) or None,
        why=_why(seen.state, row, failure, domain)
        or _doubt(seen.state, row, found)
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
