"""One stretch: its handlers run, in order, and its rows are written.

The same for a batch, a pass and a rebuild, so that none of them can mean something else by it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

from sqlalchemy import Connection, select
from sqlalchemy.exc import DataError, IntegrityError

from qntx_es.attestation import Attestation, RecordedRow
from qntx_es.log import COLUMNS
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.ledger import Change, Standing, Stretch
from qntx_es.projections.recovery import HandlerFailed, InHand
from qntx_es.projections.rows import RowMap
from qntx_es.tables import attestations


def project(
    handlers: Handlers,
    rows: RowMap,
    standing: Standing,
    stretch: Stretch,
    *,
    derives_from: Mapping[str, int] | None,
) -> list[Attestation]:
    """Run the handlers over a stretch, write its rows, and return what was derived.

    Raises `HandlerFailed`.
    """
    derived = run(handlers, rows, standing, stretch, derives_from=derives_from)
    flush(rows, rows.connect(True), stretch.rows)  # noqa: FBT003 - to write
    return derived


def run(
    handlers: Handlers,
    rows: RowMap,
    standing: Standing,
    stretch: Stretch,
    *,
    derives_from: Mapping[str, int] | None,
) -> list[Attestation]:
    """Run the handlers over a stretch and return what was derived; its rows are yet to be written.

    Who is worked off goes one at a time, rows and all, for of that alone is it known where it
    fails. Raises `HandlerFailed`.
    """
    if stretch.change is None:
        handlers.read_ahead(rows, stretch.rows)
        return handlers.run(stretch.rows, rows, derives_from=derives_from)
    derived: list[Attestation] = []
    try:
        for row in worked_off(rows.connect(False), standing, stretch.change):  # noqa: FBT003
            handlers.read_ahead(rows, [row])
            derived += handlers.run([row], rows, derives_from=derives_from)
            flush(rows, rows.connect(True), [row])  # noqa: FBT003 - to write
    except HandlerFailed as failed:
        failed.at = stretch.ceiling
        raise
    return derived


def worked_off(connection: Connection, standing: Standing, change: Change) -> Sequence[RecordedRow]:
    """Return what has waited about an entity and counts from here on, in order."""
    if change.since is None:
        return ()
    said = attestations.c
    asked = (
        select(*COLUMNS)
        .where(said.entity == change.entity)
        .where(said.position >= change.since, said.position < change.until)
        .order_by(said.position)
    )
    waited = [cast("RecordedRow", tuple(row)) for row in connection.execute(asked)]
    return replace(standing, waiting={}).that_count(waited)


def flush(rows: RowMap, connection: Connection, batch: Sequence[RecordedRow]) -> None:
    """Write the rows. Raises `HandlerFailed`."""
    with refused_rows(batch):
        rows.flush(connection)


@contextmanager
def refused_rows(batch: Sequence[RecordedRow]) -> Iterator[None]:
    """Make what the database refuses of rows the failure of whoever put them."""
    try:
        yield
    except (IntegrityError, DataError) as error:
        raise HandlerFailed(InHand(batch[0][0], "a row that was put"), error) from error
