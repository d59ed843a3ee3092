"""Databases to run on, by the hundred: a template is made once, and each run takes a copy.

SQLite in a file and not in memory: there a rebuild, which reads live while it writes beside it,
would have to wait for itself, and a restart would find nothing. Nothing is synced, since a machine
that crashes takes the whole run with it.
"""

import atexit
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal, TypeAlias
from weakref import finalize

from sqlalchemy import event

from qntx_es.domain import Domain
from qntx_es.host import Host
from qntx_es.pulse import pulse
from qntx_es.testing.circumstances import stand_in_for_sql
from qntx_es.testing.postgres import PostgresServer

Kind: TypeAlias = Literal["sqlite", "postgresql"]
On: TypeAlias = Literal["sqlite", "postgresql", "both"]
SECOND = 1_000_000_000
MONDAY = 1_767_571_200  # 2026-01-05


class Clock:
    """The clock of a log: it stands, and moves when it is told to (nanoseconds since 1970)."""

    def __init__(self, seconds: float = MONDAY) -> None:
        self.nanoseconds = round(seconds * SECOND)

    def __call__(self) -> int:
        """Return the time."""
        return self.nanoseconds

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.nanoseconds += round(seconds * SECOND)


@dataclass
class Place:
    """One database of a run; `open` gives a host over it, as a process that begins has one."""

    url: str

    def open(self, domains: Iterable[Domain], clock: Callable[[], int]) -> Host:
        """Open a host with the domains."""
        host = Host(self.url, _without_pulse(domains), clock=clock)
        if host.database.is_sqlite:
            event.listen(host.database.engine, "connect", _prepare)
        host.get_ready()
        return host


class Bench:
    """Fresh databases of one kind, with the tables of some domains."""

    def __init__(self, kind: Kind, *domains: Domain) -> None:
        self.kind: Kind = kind
        self._folder = Path(mkdtemp(prefix="qntx-testing-"))
        finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._made = 0
        self._template = self._made_once(domains)

    @contextmanager
    def database(self) -> Iterator[Place]:
        """Give a database until the block ends."""
        self._made += 1
        if self.kind == "sqlite":
            path = self._folder / f"{self._made}.db"
            shutil.copyfile(self._template, path)
            try:
                yield Place(f"sqlite:///{path}")
            finally:
                for file in path.parent.glob(f"{path.name}*"):
                    file.unlink()
            return
        server = postgres_server()
        url = server.create_database(self._template)
        try:
            yield Place(url)
        finally:
            server.drop_database(url)

    def _made_once(self, domains: Iterable[Domain]) -> str:
        path = self._folder / "template.db"
        is_sqlite = self.kind == "sqlite"
        url = f"sqlite:///{path}" if is_sqlite else postgres_server().create_database()
        with Host(url, _without_pulse(domains)) as host:
            host.upgrade()
        return str(path) if is_sqlite else url


def _without_pulse(domains: Iterable[Domain]) -> list[Domain]:
    """Return what a host must be given: Pulse is there anyway."""
    return [one for one in domains if one.name != pulse.name]


def kinds_of(on: On) -> tuple[Kind, ...]:
    """Return the databases that are meant. Raises `ValueError`."""
    if on == "both":
        return "sqlite", "postgresql"
    if on not in ("sqlite", "postgresql"):
        raise ValueError(f"on={on!r}: it is 'sqlite', 'postgresql' or 'both'")
    return (on,)


def postgres_server() -> PostgresServer:
    """Return the one server of this process, started when it is first asked for."""
    if not _servers:
        _servers.append(PostgresServer.start())
        atexit.register(_servers[0].stop)
    return _servers[0]


_servers: list[PostgresServer] = []


def _prepare(connection: Any, _: object) -> None:  # noqa: ANN401 - the driver's
    stand_in_for_sql(connection)
    connection.execute("PRAGMA synchronous = OFF")
