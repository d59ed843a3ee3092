"""One range of fresh tables, filled batch by batch; what it has come to is kept beside the rows.

How far a range is, what its derive handlers said so far, and who waits in it are kept in a row of
`qntx_fills`, in the transaction that writes the rows. So whoever comes after a crash goes on from
there, and ranges may be filled by several processes. The row names the holder of the rebuild: one
who lost it writes nothing any more. Nobody waits for the disk here: a server that crashes may lose
the last batches, rows and positions alike, and who goes on from where it was finds that out.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select, update

from qntx_es.attestation import Attestation, RecordedRow
from qntx_es.database import Database, hurry
from qntx_es.domain import Domain
from qntx_es.errors import RebuildLost
from qntx_es.projections.cursor import cursors_of
from qntx_es.projections.derived import Derivations
from qntx_es.projections.folding import Folding, FoldRefused
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.ledger import ParkedEntity, Standing, Stretch, read_ledger, read_waiting
from qntx_es.projections.own_rows import row_map
from qntx_es.projections.portions import Portions
from qntx_es.projections.projecting import flush, project, run, worked_off
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.projections.rows import RowMap
from qntx_es.projections.shape import Shape
from qntx_es.projections.slices import ALL, Slices
from qntx_es.projections.starts import Since, to_compare
from qntx_es.projections.touches import Touches, WatchedRows
from qntx_es.projections.transaction import Transaction
from qntx_es.sequencer import Sequencer
from qntx_es.tables import fills

# A writer holds others up: what a batch takes on SQLite, everybody waits.
BATCH_SECONDS = 0.5
# Nobody waits for one of its batches; in a larger one more of the attestations meet in a row.
FILL_MAX = 20_000
SIZE_FIRST = FILL_MAX


@dataclass(frozen=True, slots=True)
class Ground:
    """What all ranges of fresh tables have in common; `tables` are by their live names.

    What derive handlers say is compared with the log if it `derives`. Or some are to speak: of what
    those in `says` say, the log gets what it lacks.
    """

    database: Database
    sequencer: Sequencer
    domain: Domain
    holder: str
    generation: int
    tables: Mapping[str, Table]
    derives: bool = True
    says: Mapping[str, Since] | None = None
    touches: Touches | None = None

    def fresh_of(self, table: Table) -> Table:
        """Return the fresh table that stands for a domain's."""
        return self.tables[table.name]

    def row_map(self) -> RowMap:
        """Return a map that knows nothing yet of the fresh tables."""
        if self.touches is None:
            return row_map(self.domain, self.fresh_of)
        shapes = [Shape(self.domain.tables[name]) for name in self.tables]
        return WatchedRows(shapes, self.fresh_of, self.touches)


@dataclass(frozen=True, slots=True)
class _Filled:
    """What one batch did: how far it came, how things stand there, and what it owed of a source."""

    position: int
    standing: Standing
    owed: tuple[tuple[RecordedRow, Attestation], ...] = ()


@dataclass(slots=True)
class Filling:
    """The rows of a range of entities: the fold of the log up to `position`."""

    ground: Ground
    slices: Slices = ALL
    position: int = 0
    derivations: Derivations = field(init=False)
    stands: Standing = field(init=False)
    # What live never derived for those who wait there, by the source.
    said: list[tuple[RecordedRow, Attestation]] = field(default_factory=list)
    _handlers: Handlers = field(init=False)
    _owed: Mapping[str, ParkedEntity] = field(default_factory=dict)
    _size: int = field(default_factory=lambda: SIZE_FIRST)
    _rows: RowMap = field(init=False)
    _portions: Portions = field(init=False)

    def __post_init__(self) -> None:
        """Know nothing of the rows yet."""
        domain, touches = self.ground.domain, self.ground.touches
        self._handlers = Handlers(domain)
        self.derivations = Derivations(domain)
        self.stands = Standing(domain.name, self._handlers.contexts)
        self._rows = self.ground.row_map()
        # Who listens for touches folds in Python.
        folded = domain if touches is None else Domain(domain.name)
        is_sqlite = self.ground.database.is_sqlite
        folding = Folding(folded, self.ground.fresh_of, self.slices, is_sqlite=is_sqlite)
        self._portions = Portions(self._handlers, folding, self.slices, FILL_MAX)

    def split(self, into: Sequence[Slices]) -> list["Filling"]:
        """Return what stands here as several; what was counted so far is the first one's."""
        parts = [Filling(self.ground, slices, self.position) for slices in into]
        for part in parts:
            part.stands, part._owed = self.stands, self._owed  # noqa: SLF001 - its own kind
        parts[0].derivations, parts[0].said = self.derivations, self.said
        return parts

    def begin_anew(self, ground: Ground) -> "Filling":
        """Return the same range, empty, over other tables; what was decided is known."""
        anew = Filling(ground, self.slices)
        anew.stands = replace(self.stands, waiting={})
        return anew

    def read_ledger(self) -> None:
        """Know all that was decided by the batches that brought live to where it is."""
        ground = self.ground
        ground.sequencer.run_pass()
        with ground.database.read() as connection:
            ledger = read_ledger(connection, ground.domain.name, ground.domain.version)
            self._owed = read_owed(connection, ground.domain)
            since = to_compare(connection, ground.domain) if ground.says is None else ground.says
        self.derivations.since = since
        self.stands = replace(self.stands, ledger=ledger)

    def fill(self, target: int) -> None:
        """Fill one batch; what fails in bulk may be right one at a time, as it is live."""
        began = monotonic()
        try:
            with ExitStack() as stack:
                filled = self._fill_batch(Transaction(self.ground.database, stack), target)
        except FoldRefused:
            return
        except HandlerFailed:
            self._rows.forget()
            if self._size == 1:
                raise
            self._size = 1
            return
        except BaseException:
            self._rows.forget()
            raise
        self.derivations.keep()
        self.position, self.stands = filled.position, filled.standing
        self.said += filled.owed
        self._rows.cool()
        if monotonic() - began < BATCH_SECONDS:
            self._size = min(self._portions.size_max, self._size * 2)

    def _fill_batch(self, transaction: Transaction, target: int) -> _Filled:
        self._rows.connect = transaction
        # A handler's own SQL writes before it is known what the batch comes to.
        transaction.first = partial(self._keep_first, _Filled(self.position, self.stands))
        reading = transaction(False)  # noqa: FBT003 - to read
        portion = self._portions.after(self.position, target, self._size, reading, self.stands)
        if not portion.is_folded:
            return self._project(transaction, portion.rows, portion.until)
        self._rows.forget()  # what is known of rows is of the past then
        filled = _Filled(portion.until, self.stands)
        connection = self._begin(transaction, filled)
        self._portions.folding.run(connection, self.position, portion.until)
        return filled

    def _begin(self, transaction: Transaction, filled: _Filled) -> Connection:
        """Return the connection to write with, in which what a batch comes to is kept.

        That goes first, because it locks: the rows are not written by two.
        """
        if transaction.is_writing:
            self._keep(filled, transaction(True))  # noqa: FBT003 - to write
        else:
            transaction.first = partial(self._keep_first, filled)
        return transaction(True)  # noqa: FBT003 - to write

    def _project(
        self, transaction: Transaction, rows: Sequence[RecordedRow], until: int
    ) -> _Filled:
        stretch, is_owed = self._stretch(rows, until)
        said = self._run(transaction, stretch, is_owed=is_owed)
        standing = self.stands if stretch.change is None else self.stands.after(stretch.change)
        owed = tuple((stretch.rows[0], one) for one in said) if is_owed else ()
        filled = _Filled(stretch.ceiling, standing, owed)
        connection = self._begin(transaction, filled)
        flush(self._rows, connection, stretch.rows)
        if self.ground.says is not None:
            self.ground.sequencer.drop(connection, self.derivations.missing)
        return filled

    def _stretch(self, batch: Sequence[RecordedRow], ceiling: int) -> tuple[Stretch, bool]:
        """Return what comes first, and whether it is one source whose outputs are owed."""
        stretch = self.stands.stretch(batch, ceiling)
        first = next((n for n, row in enumerate(stretch.rows) if is_owed(row, self._owed)), None)
        if first is None or self.ground.touches is not None:
            return stretch, False
        if first:
            return Stretch(stretch.rows[first][0] - 1, stretch.rows[:first]), False
        return Stretch(stretch.rows[0][0], stretch.rows[:1]), True

    def _run(
        self, transaction: Transaction, stretch: Stretch, *, is_owed: bool
    ) -> list[Attestation]:
        """Run the handlers over a stretch, and return what is derived of it."""
        ground = self.ground
        if ground.touches is not None:
            self._run_watched(stretch, ground.touches)
            return []
        since = self.derivations.derives_from if ground.derives or is_owed else None
        said = run(self._handlers, self._rows, self.stands, stretch, derives_from=since)
        if ground.derives and not is_owed:
            reading, sources = transaction(False), stretch.rows  # noqa: FBT003 - to read
            if stretch.change is not None:
                sources = worked_off(reading, self.stands, stretch.change)
            self.derivations.compare(reading, sources, said)
        return said

    def _run_watched(self, stretch: Stretch, touches: Touches) -> None:
        if stretch.change is not None:
            touches.in_hand = stretch.change.row
            project(self._handlers, self._rows, self.stands, stretch, derives_from=None)
        for row in stretch.rows:
            touches.in_hand = row
            alone = Stretch(row[0], [row])
            project(self._handlers, self._rows, self.stands, alone, derives_from=None)

    def _keep_first(self, filled: _Filled, connection: Connection) -> None:
        hurry(connection)
        self._keep(filled, connection)

    def _keep(self, filled: _Filled, connection: Connection) -> None:
        stands = fills.c.position.in_((self.position, filled.position))
        ours = (*_of(self.ground), fills.c.first_slice == self.slices.first, stands)
        is_lost_by_a_crash = bool(self.said or filled.owed)
        said = {
            "position": filled.position,
            "kept": None if is_lost_by_a_crash else self._spelt(filled.standing),
        }
        if connection.execute(update(fills).where(*ours).values(said)).rowcount != 1:
            raise RebuildLost

    def _spelt(self, standing: Standing) -> str:
        waiting = [
            [one.entity, one.position, one.handler, one.error] for one in standing.waiting.values()
        ]
        return json.dumps({"derived": self.derivations.spelt(), "waiting": waiting})

    def restore(self, kept: str) -> None:
        """Know again what was kept with the rows."""
        found = json.loads(kept)
        self.derivations.restore(found["derived"])
        waiting = {one[0]: ParkedEntity(*one) for one in found["waiting"]}
        self.stands = replace(self.stands, waiting=waiting)


def keep_fillings(connection: Connection, fillings: Iterable[Filling]) -> None:
    """Keep these in the place of whatever fillings of the domain there were."""
    some = list(fillings)
    connection.execute(delete(fills).where(fills.c.domain == some[0].ground.domain.name))
    rows = [
        {
            "domain": one.ground.domain.name,
            "first_slice": one.slices.first,
            "last_slice": one.slices.last,
            "holder": one.ground.holder,
            "position": one.position,
            "kept": None if one.said else one._spelt(one.stands),  # noqa: SLF001 - a part of it
        }
        for one in some
    ]
    connection.execute(insert(fills), rows)


def read_fillings(connection: Connection, ground: Ground) -> list[Filling]:
    """Return the fillings as they were kept; empty where one of them cannot go on from there."""
    asked = select(fills).where(*_of(ground)).order_by(fills.c.first_slice)
    found: list[Filling] = []
    for row in connection.execute(asked):
        if row.kept is None:
            return []
        filling = Filling(ground, Slices(row.first_slice, row.last_slice), row.position)
        filling.restore(row.kept)
        found.append(filling)
    return found


def read_owed(connection: Connection, domain: Domain) -> Mapping[str, ParkedEntity]:
    """Return whom live keeps waiting, where this version is another and will not."""
    live = cursors_of(connection, domain.name)
    if not live or live[0].version == domain.version:
        return {}
    return read_waiting(connection, domain.name, live[0].version)


def is_owed(row: RecordedRow, owed: Mapping[str, ParkedEntity]) -> bool:
    """Tell whether an attestation waits, so that nothing was derived from it."""
    waits = owed.get(row[4])
    return waits is not None and row[0] >= waits.position


def _of(ground: Ground) -> tuple[Any, ...]:
    return fills.c.domain == ground.domain.name, fills.c.holder == ground.holder
