"""Taking a log in: all of it or nothing, and only where there is none.

It is the same log elsewhere, so epoch, positions, times and versions are kept, and it comes in by
the insert that every append uses: the database's guards see each row. What is derived was derived
where the log comes from, so domains that are here already derive from the imported head on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import Connection, update
from sqlalchemy.exc import IntegrityError

from qntx_es.digests import LogDigest
from qntx_es.errors import ImportRefused
from qntx_es.log import head_of
from qntx_es.projections.generations import derive_from
from qntx_es.sequencer import Sequencer
from qntx_es.statements import insert_into_log, known_by_id, refresh_statistics
from qntx_es.tables import epochs
from qntx_es.transfer.lines import Entry, ExportReader, Progress, line_number, untold

BATCH_ROWS = 1_000
BATCH_CHARACTERS = 4 << 20
ELSEWHERE = "Import into a new database: `qntx-es --database URL db upgrade` makes one"


@dataclass(frozen=True, slots=True)
class Imported:
    """Which log is here now, its digest at its head, and the `domains` that derive from there."""

    epoch: str
    digest: LogDigest
    domains: tuple[str, ...]


def import_log(sequencer: Sequencer, stream: BinaryIO, progress: Progress = untold) -> Imported:
    """Append all of an export in one transaction, or raise `ImportRefused` and append nothing."""
    reader = ExportReader(stream)
    epoch, head = reader.header
    with sequencer.held_still() as connection:
        _refuse_unless_empty(sequencer, connection)
        done = 0
        for batch in _batches(reader.entries()):
            progress(done, head)
            _insert(connection, batch, done)
            done += len(batch)
        connection.execute(update(epochs).values(epoch=epoch))
        domains = derive_from(connection, head)
        refresh_statistics(connection)
    progress(done, head)
    return Imported(epoch, reader.digest, tuple(domains))


def _refuse_unless_empty(sequencer: Sequencer, connection: Connection) -> None:
    if head := head_of(connection):
        raise ImportRefused(f"the log here is not empty: its head is {head}", remedy=ELSEWHERE)
    if waiting := sequencer.waiting(connection):
        raise ImportRefused(f"{waiting} attestations wait in the inbox here", remedy=ELSEWHERE)


def _batches(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    characters = 0
    for entry in entries:
        batch.append(entry)
        characters += len(entry.attestation.text)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _insert(connection: Connection, batch: Sequence[Entry], head: int) -> None:
    """Insert behind `head`; where the guards refuse, find the one they refuse and why."""
    attestations, instants, numbers = map(list, zip(*batch, strict=True))
    try:
        with connection.begin_nested():
            insert_into_log(connection, attestations, numbers, head, instants)
    except IntegrityError as error:
        if len(batch) == 1:
            raise _refused(connection, batch[0], head + 1) from error
        for n, entry in enumerate(batch):
            _insert(connection, [entry], head + n)


def _refused(connection: Connection, entry: Entry, position: int) -> ImportRefused:
    said = entry.attestation
    known = known_by_id(connection, [said.id])
    if known:
        what = f"id `{said.id}` stands at position {known[said.id].position} already"
    else:
        what = f"entity `{said.entity}` has a version {entry.entity_version} already"
    return ImportRefused(what, line=line_number(position))
