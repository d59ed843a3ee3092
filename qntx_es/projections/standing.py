"""Where every projector stands, read from the tables alone, by one statement.

It needs no domain's code, so a broken domain can always be seen, and takes no lock, so that
watching never slows what is watched. Head and cursors come from one statement: with a remembered
head, lag is 0 when whoever remembers it is dead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Select, and_, func, select

from qntx_es.domain import Domain
from qntx_es.projections.cursor import lease_of_row
from qntx_es.projections.fingerprint import is_unproved
from qntx_es.tables import attestations, cursors, drifts, failures, fills, leases, parked, rebuilds

REBUILD_MICROSECONDS = 60_000_000
# What is done with fresh tables that never become the live ones.
IN_THE_DARK = ("verifying", "watching", "travelling", "looking back")
# All that the tables tell; that somebody else moves a projector (standby) is seen from a host.
STATES = (
    "live",
    "inline",
    "paused",
    "stopped",
    "stuck",
    "degraded",
    "outdated",
    "retired",
    "rebuilding",
    "drifted",
    "unproved",
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one projector stands: `lag` is head less position, `lag_seconds` the first unread's.

    `state` is one of `STATES`. `parked` counts the entities that wait, `differences` the tables of
    entities in which the scrubber found other rows, and `rebuilt` is how much of the fresh tables
    is filled, from 0 to 1, where a rebuild or a verify runs. `rows` are those of the statement, one
    a range, and `row` that of the range that is furthest behind.
    """

    rows: tuple[Any, ...]
    row: Any
    state: str
    lag_seconds: float

    @property
    def name(self) -> str:
        """Return whose it is."""
        return str(self.row.domain)

    @property
    def version(self) -> int:
        """Return that of its tables."""
        return int(self.row.version)

    @property
    def position(self) -> int:
        """Return up to where all its ranges are."""
        return int(self.row.at)

    @property
    def head(self) -> int:
        """Return the largest position there was."""
        return int(self.row.head)

    @property
    def lag(self) -> int:
        """Count the attestations still to come."""
        return self.head - self.position

    @property
    def parked(self) -> int:
        """Count the entities that wait."""
        return int(self.row.parked)

    @property
    def differences(self) -> int:
        """Count the tables of entities whose rows are known to be others."""
        return int(self.row.differences)

    @property
    def rebuilt(self) -> float | None:
        """Return how much of the fresh tables is filled, or None where there are none."""
        if self.row.rebuild is None:
            return None
        return min(1.0, self.row.filled / self.row.target) if self.row.target else 1.0

    @property
    def is_held(self) -> bool:
        """Tell whether a running host holds it, in all its ranges."""
        return all(one.holder is not None for one in self.rows)

    @property
    def is_any_behind(self) -> bool:
        """Tell whether any of its ranges is not at the head."""
        return self.position < self.head


def standings(connection: Connection, domains: Mapping[str, Domain], now: int) -> list[Standing]:
    """Return where every projector stands that the database knows, by name."""
    rows = connection.execute(_asked(now)).all()
    by_domain = groupby(rows, key=attrgetter("domain"))
    return [_standing(tuple(some), domains.get(name), now) for name, some in by_domain]


def _standing(rows: tuple[Any, ...], domain: Domain | None, now: int) -> Standing:
    row = min(rows, key=attrgetter("at"))
    since = row.first_unread
    return Standing(
        rows=rows,
        row=row,
        state=_state(rows, domain),
        lag_seconds=0.0 if since is None else max(0, now - since) / 1_000_000,
    )


def _asked(now: int) -> Select[Any]:
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
    theirs = drifts.c.domain == cursors.c.domain
    drifted = select(func.count(drifts.c.entity.distinct())).where(theirs).scalar_subquery()
    differences = select(func.count()).where(theirs).scalar_subquery()
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
    return (
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
            differences.label("differences"),
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


def _state(rows: tuple[Any, ...], domain: Domain | None) -> str:
    row = rows[0]
    if row.rebuild not in (None, *IN_THE_DARK):
        return "rebuilding"
    if row.paused_by is not None:
        return "paused"
    if domain is not None and domain.version != row.version:
        return "outdated" if domain.version > row.version else "retired"
    return _state_as_it_runs(rows, domain)


def _state_as_it_runs(rows: tuple[Any, ...], domain: Domain | None) -> str:
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
