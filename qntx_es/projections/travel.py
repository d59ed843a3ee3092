"""Time travel: a read model as the log once made it, in tables of their own that stay.

It is the rebuild that never swaps. The tables are filled under the name of a generation and renamed
when they are whole, so nobody ever meets half of them. They keep their primary keys and no other
index, belong to nobody, and are dropped by whoever asked for them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, inspect, select

from qntx_es.attestation import microseconds
from qntx_es.columns import is_name
from qntx_es.database import Database
from qntx_es.domain import NAME, TAKEN, Domain
from qntx_es.errors import BeyondHead, PrefixRefused
from qntx_es.projections import generations
from qntx_es.projections.comparison import Comparison, Side, TableProof, compared
from qntx_es.projections.digest import digest
from qntx_es.projections.fresh import Fresh, Report
from qntx_es.projections.verify import FIRST, found_table, live_of
from qntx_es.searches import head_of, last_before
from qntx_es.sequencer import Sequencer
from qntx_es.tables import cursors


@dataclass(frozen=True, slots=True)
class Travelled:
    """Tables that hold the fold of the log up to `position`."""

    domain: str
    position: int
    tables: tuple[str, ...]


def travel(  # noqa: PLR0913 - one keyword a part
    database: Database,
    sequencer: Sequencer,
    domain: Domain,
    *,
    to: int | datetime,
    into: str,
    progress: Report | None = None,
) -> Travelled:
    """Fold the log up to a position into tables `<into>_…`.

    A time means the largest position recorded at or before it. Raises `BeyondHead`,
    `PrefixRefused`, `RebuildRunning`, and `HandlerFailed` where a handler raises.
    """
    with database.read() as connection:
        _refuse_prefix(connection, domain, into)
        position = _position_of(connection, to)
    fresh = Fresh(database, sequencer, domain, progress, derives=False)
    with fresh.standing():
        fresh.fill("travelling", to=position)
        with database.write() as connection:
            _refuse_prefix(connection, domain, into)
            fresh.hand_over(connection)
            names = {name: named(domain, name, into) for name in fresh.tables}
            generations.hand_out(connection, fresh.tables, names)
    fresh.tell("travelling", position)
    return Travelled(domain.name, position, tuple(sorted(names.values())))


def diff(database: Database, domain: Domain, prefix: str, *, first: int = FIRST) -> Comparison:
    """Compare live rows with the tables of a prefix, by the columns these have.

    Raises `PrefixRefused` where it has no tables of the domain.
    """
    with database.snapshot() as connection:
        live = live_of(connection, domain)
        there = set(inspect(connection).get_table_names())
        if not any(named(domain, name, prefix) in there for name in domain.tables):
            raise PrefixRefused(
                f"no table of `{domain.name}` has the prefix `{prefix}`: make them by "
                f"`qntx-es projections rebuild {domain.name} --to POSITION --into {prefix}`"
            )
        proofs = []
        for name, table in domain.tables.items():
            other = found_table(connection, table, named(domain, name, prefix), there)
            proofs.append(
                TableProof(name, digest(connection, table), None)
                if other is None
                else compared(name, Side(connection, table), Side(connection, other), first)
            )
    return Comparison(live.position, live.version, tuple(proofs))


def named(domain: Domain, table: str, prefix: str) -> str:
    """Return the name of a domain's table under a prefix."""
    return f"{prefix}{table.removeprefix(domain.name)}"


def _position_of(connection: Connection, to: int | datetime) -> int:
    head = head_of(connection)
    if isinstance(to, datetime):
        return last_before(connection, microseconds(to) + 1, head)
    if not 0 <= to <= head:
        raise BeyondHead(f"the log has the positions 1 to {head}, and {to} is none of them")
    return to


def _refuse_prefix(connection: Connection, domain: Domain, prefix: str) -> None:
    if not NAME.fullmatch(prefix) or prefix in TAKEN:
        raise PrefixRefused(f"prefix `{prefix}`: it is [a-z][a-z0-9]{{1,23}} and not reserved")
    known: Collection[str] = connection.execute(select(cursors.c.domain)).scalars().all()
    if prefix in known:
        raise PrefixRefused(
            f"prefix `{prefix}` is a domain's, whose tables it would be. Choose another"
        )
    seen = inspect(connection)
    taken = [
        one
        for one in sorted([*seen.get_table_names(), *seen.get_view_names()])
        if one.startswith(f"{prefix}_")
    ]
    if taken:
        raise PrefixRefused(
            f"prefix `{prefix}` is taken by {', '.join(taken)}. Drop them, or choose another"
        )
    long = [one for one in domain.tables if not is_name(named(domain, one, prefix))]
    if long:
        raise PrefixRefused(f"prefix `{prefix}` is too long for {', '.join(long)}. Choose another")
