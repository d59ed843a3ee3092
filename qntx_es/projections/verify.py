"""Verify a read model: fold the log again in the dark, and compare with the live rows.

Rows and cursor commit together, so one snapshot shows live exactly at its cursor P. The fresh
tables are filled to P, compared and dropped; nobody waits for it, and live needs no fence.
"""

from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import attrgetter

from sqlalchemy import Column, Connection, MetaData, Table, inspect

from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import PositionPending, ProjectorOutdated
from qntx_es.log import Log
from qntx_es.projections.alteration import is_retyped
from qntx_es.projections.certificate import (
    Certificate,
    certificate_of,
    circumstances,
    verified,
)
from qntx_es.projections.comparison import Comparison, Side, TableProof, compared
from qntx_es.projections.cursor import Cursor, prove
from qntx_es.projections.derived import DeriveProof
from qntx_es.projections.digest import digest
from qntx_es.projections.drift import forget_drifts
from qntx_es.projections.fingerprint import fingerprint
from qntx_es.projections.fresh import Fresh, Report, live_cursors
from qntx_es.projections.touches import Touches
from qntx_es.sequencer import Sequencer

FIRST = 20


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of a verify: what was compared at `position`, and its certificate.

    `attested_at` is where the log speaks of the certificate; None while that waits for a position.
    """

    domain: str
    version: int
    position: int
    tables: tuple[TableProof, ...]
    derived: tuple[DeriveProof, ...]
    certificate: Certificate
    attested_at: int | None

    @property
    def is_same(self) -> bool:
        """Tell whether live rows and the log's derived attestations are what the log makes."""
        return all(one.is_same for one in self.tables) and all(one.is_same for one in self.derived)


def verify(  # noqa: PLR0913 - one keyword a part
    database: Database,
    sequencer: Sequencer,
    log: Log,
    domain: Domain,
    *,
    actor: str,
    first: int = FIRST,
    progress: Report | None = None,
) -> Verified:
    """Compare the live rows with the fold of the log, and say what wrote the first that differ.

    The live rows are never touched; where all is the same they are proved. Raises `RebuildRunning`,
    `ProjectorOutdated` where the tables are of another version, and `HandlerFailed` where a handler
    raises.
    """
    found = _compared_in_the_dark(Fresh(database, sequencer, domain, progress), first)
    said = circumstances(database, log, domain, position=found.position, actor=actor)
    certificate = certificate_of(said, found)
    attested_at = None
    with suppress(PositionPending):  # committed, and somebody's next pass gives it its position
        attested_at = sequencer.append([verified(said, certificate, found)])[0].position
    return Verified(
        domain=domain.name,
        version=domain.version,
        position=found.position,
        tables=found.tables,
        derived=found.derived,
        certificate=certificate,
        attested_at=attested_at,
    )


def _compared_in_the_dark(fresh: Fresh, first: int) -> Comparison:
    with fresh.standing():
        with fresh.database.read() as connection:
            live_of(connection, fresh.domain)
        fresh.fill("verifying")
        found = compare(fresh, "verifying", first=first)
        if found.is_same:
            _keep_proof(fresh, found)
        fresh.tell("verifying", found.position)
        return with_touches(fresh, found)


def _keep_proof(fresh: Fresh, found: Comparison) -> None:
    """Let it be known that this code makes the rows of that generation."""
    with fresh.database.write() as connection:
        prove(connection, found.lives[0], fingerprint(fresh.domain))
        forget_drifts(connection, fresh.domain.name)


def compare(fresh: Fresh, state: str, *, first: int, across_versions: bool = False) -> Comparison:
    """Fill up to where live stands in one snapshot, and compare with it there.

    `across_versions`, tables of another version are compared too, whatever columns they have.
    """
    with fresh.database.snapshot() as seen:
        lives = fresh.lives(seen)
        live = min(lives, key=attrgetter("position"))
        fresh.fill(state, to=lives)
        is_comparable = across_versions or live.version == fresh.domain.version
        before = _found_tables(seen, fresh.domain, live) if is_comparable else {}
        with fresh.database.snapshot() as connection:
            proofs = [
                compared(name, Side(seen, before[name]), Side(connection, table), first)
                if name in before
                else TableProof(name, None, digest(connection, table))
                for name, table in fresh.tables.items()
            ]
    proofs += [TableProof(name, None, None) for name in {*live.tables} - {*fresh.tables}]
    proofs.sort(key=lambda proof: proof.table)
    return Comparison(
        position=live.position,
        version=live.version,
        tables=tuple(proofs),
        derived=fresh.derivations.proofs(),
        lives=tuple(lives),
    )


def with_touches(fresh: Fresh, found: Comparison) -> Comparison:
    """Say of each row that differs which attestation wrote it last, at the cost of another fold."""
    rows = [row for proof in found.tables for row in proof.first]
    if not rows:
        return found
    touches = Touches((row.table, row.key) for row in rows)
    fresh.fill_watched(touches, found.lives)
    return replace(found, tables=tuple(_touched(proof, touches) for proof in found.tables))


def _touched(proof: TableProof, touches: Touches) -> TableProof:
    told = (replace(one, touched=touches.of(one.table, one.key)) for one in proof.first)
    return replace(proof, first=tuple(told))


def live_of(connection: Connection, domain: Domain) -> Cursor:
    """Return the cursor of live tables that this code can read. Raises `ProjectorOutdated`."""
    live = live_cursors(connection, domain)[0]
    if live.version != domain.version:
        raise ProjectorOutdated(
            f"the tables of `{domain.name}` are of version {live.version}, and the code is of "
            f"version {domain.version}: verify it with the code that wrote them, or run "
            f"`qntx-es projections rebuild {domain.name}`"
        )
    return live


def _found_tables(connection: Connection, domain: Domain, live: Cursor) -> dict[str, Table]:
    """Return the live tables as they are, whatever was altered by hand or by a version.

    Those that are gone, or have another key, cannot be compared row by row.
    """
    there = {*live.tables}.intersection(inspect(connection).get_table_names())
    found = {
        name: found_table(connection, table, name, there) for name, table in domain.tables.items()
    }
    return {name: table for name, table in found.items() if table is not None}


def found_table(
    connection: Connection, table: Table, name: str, there: Container[str]
) -> Table | None:
    """Return the table called `name` with the columns it has, or None if it has another key.

    Columns that `table` knows are read as it reads them, unless they are of another type by now.
    """
    if name not in there:
        return None
    types = {column["name"]: column["type"] for column in inspect(connection).get_columns(name)}
    known = {
        column.name: Column(column.name, column.type, primary_key=column.primary_key)
        for column in table.columns
        if column.name in types and not is_retyped(column, types[column.name], connection.dialect)
    }
    found = Table(name, MetaData(), *known.values(), autoload_with=connection)
    key = table.primary_key.columns.keys()
    is_alike = found.primary_key.columns.keys() == key and {*key} <= {*known}
    return found if is_alike else None
