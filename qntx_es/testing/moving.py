"""A host over one database, moved batch by batch as a plan has it, and what is in its tables."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any, TypeAlias

from sqlalchemy import Connection, MetaData, Table, select

from qntx_es import faults
from qntx_es.domain import Domain
from qntx_es.errors import LeaseLost
from qntx_es.host import Host
from qntx_es.projections.batch import Step as Moved
from qntx_es.projections.digest import as_stored
from qntx_es.projections.runner import Runner
from qntx_es.testing.bench import Clock, Place
from qntx_es.testing.subject import Subject

Values: TypeAlias = tuple[Any, ...]
TableRows: TypeAlias = Mapping[str, tuple[Values, ...]]

# All that a plan leaves over is one batch.
REST = 1_000


class Moving:
    """A host over one database, moved batch by batch."""

    def __init__(
        self, subject: Subject, domain: Domain, place: Place, *, is_watched: bool = False
    ) -> None:
        self.subject = subject
        self.name = domain.name
        self.clock = Clock()
        self._domain = domain
        self._place = place
        self._is_watched = is_watched
        self._watched: list[tuple[int, TableRows]] = []
        self.host = place.open([domain], self.clock)

    def poll(self, count: int, until: int | None = None) -> list[Moved]:
        """Run a batch of each range, and return what it did."""
        moved = []
        for runner in runners_of(self.host, self.name):
            runner.size = count
            moved.append(runner.advance(eager=True, until=until))
        if self._is_watched:
            self._watched.append((min(one.position for one in moved), self.rows()))
        return moved

    def offer(self, count: int, times: int) -> None:
        """Run a batch so many times, and undo all but the last."""
        for _ in range(times - 1):
            with undone():
                self.poll(count)
        self.poll(count)

    def catch_up(self) -> None:
        """Run batches until nothing is left and nothing follows."""
        head = -1
        while head != (head := self.host.log.head()):
            while any(one.start < one.position < one.head for one in self.poll(REST)):
                pass  # one that stands, stands for a failure that is still to be mended

    def rows(self) -> TableRows:
        """Return what is in the tables."""
        with self.host.database.snapshot() as connection:
            return {name: rows_of(connection, table) for name, table in self._domain.tables.items()}

    def close(self) -> None:
        """End the process."""
        self.host.close()


def runners_of(host: Host, name: str) -> list[Runner]:
    """Return what moves a domain in a host, waiting for nothing; a host chooses sizes by time."""
    runners = host._projectors[name].runners  # noqa: SLF001 - driven by hand, batch by batch
    for runner in runners:
        runner.stopping = _AT_ONCE
    return runners


def rows_of(connection: Connection, table: Table, name: str | None = None) -> tuple[Values, ...]:
    """Return the rows of a table, or of one like it with another name, in the order of its key."""
    if name is not None:
        table = table.to_metadata(MetaData(), name=name)
    asked = select(*map(as_stored, table.columns)).order_by(*table.primary_key.columns)
    return tuple(map(tuple, connection.execute(asked)))


@contextmanager
def undone() -> Iterator[None]:
    """Let a batch be undone just before its commit, as that of a runner that was overtaken."""
    with suppress(LeaseLost), faults.planned({"batch.before_commit": faults.fail(LeaseLost())}):
        yield


_AT_ONCE = Event()
_AT_ONCE.set()
