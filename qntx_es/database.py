"""One database, and the two ways into it: a transaction that reads, one that writes.

SQLite and PostgreSQL differ in how a writer begins, in their clocks, and in the errors they give
for the same trouble; that is settled here once, so that what stands above speaks of transactions
and named errors. Nothing is opened before the first transaction.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4
from weakref import ref

import sqlalchemy
from sqlalchemy import (
    Connection,
    Engine,
    bindparam,
    event,
    func,
    inspect,
    literal,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from qntx_es import faults
from qntx_es.ax import holds_of_text
from qntx_es.calls import Calls, Given, Value
from qntx_es.errors import (
    AxTimeout,
    DatabaseMissing,
    DatabaseUnavailable,
    LogBusy,
    MissingExtra,
    QntxError,
    SchemaOutdated,
    SchemaTooNew,
    StorageFull,
    UnsupportedDatabase,
)
from qntx_es.tables import REVISION, VERSION_TABLE

PAGE_BYTES = 4_096
# SQLite's write-ahead log, in pages, before it is written back.
WAL_PAGES_MIN, WAL_PAGES_MAX = 1_000, 40_000
WAL_SHARE = 4
SQLITE_OLDEST = (3, 35, 0)
POSTGRESQL_OLDEST = (14,)
# Half of a host's connections wait in the pool, the rest are made for a burst.
POOL_SIZE = 10
POOL_OVERFLOW = 20
# SQLite's own small steps, some ten thousand a millisecond.
STEPS_BETWEEN_LOOKS = 10_000
WRITE = "qntx_write"
WAL_PAGES = "qntx_wal_pages"
RECYCLED = "qntx_recycled"
# PostgreSQL's clock, in microseconds since 1970.
CLOCK = func.floor(func.extract("epoch", func.clock_timestamp()) * 1_000_000)
# What the names of the framework's own tables begin with.
_OURS = ("qntx_", "pulse_")
UPGRADE_LOCK = 0x716E7478_00000001  # "qntx" in the upper half: a key nobody else will choose


def include_name(name: str | None, kind: str, _parents: object = None) -> bool:
    """Tell an application's alembic, as its `include_name`, what is not a table of the framework's.

    Those of domains are told apart by a host: `Host.include_name`.
    """
    return kind != "table" or name is None or not name.startswith(_OURS)


class Database:
    """A SQLite file (or `sqlite://`, in memory) or a PostgreSQL database, by URL or Engine.

    `clock` gives nanoseconds since 1970 and is SQLite's clock; PostgreSQL has its own. `timeout`
    bounds every wait for a lock, and `patience` how long PostgreSQL lets a transaction that writes
    do nothing: a process stopped inside of one is cut off, and the next goes on. Raises
    `UnsupportedDatabase` and `MissingExtra` at once, and nothing else before the first transaction.
    """

    def __init__(
        self,
        url_or_engine: str | Engine,
        *,
        clock: Callable[[], int] = time.time_ns,
        timeout: timedelta = timedelta(seconds=10),
        patience: timedelta = timedelta(seconds=15),
    ) -> None:
        self._clock = clock
        self._idle = max(1, round(patience.total_seconds() * 1000))
        self.timeout_seconds = timeout.total_seconds()
        self._writer = threading.Lock()
        self._file: Path | None = None
        self.engine = self._engine(url_or_engine)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._calls = Calls(self.engine, self.timeout_seconds, partial(_recycle, ref(self)))
        self._recycled = 0
        if not self.is_sqlite:
            event.listen(self.engine, "checkout", partial(_keep_or_renew, ref(self)))
        os.register_at_fork(after_in_child=partial(_forget, ref(self)))

    @property
    def name(self) -> str:
        """The database's URL without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection in a transaction that is rolled back: one snapshot on SQLite."""
        with self.named_errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Give a connection whose every statement sees the same moment, on both databases."""
        with self.named_errors(), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def limited(self, seconds: float) -> Iterator[Connection]:
        """Give a connection to read, none of whose statements may take longer than `seconds`.

        Its plans follow an index where there is one, also while statistics say otherwise. Raises
        `AxTimeout`.
        """
        with self.read() as connection, ExitStack() as stack:
            if self.is_sqlite:
                stack.enter_context(_interrupted(connection, seconds))
            else:
                connection.execute(_PATIENCE, {"patience": f"{max(1, round(seconds * 1000))}ms"})
            try:
                yield connection
            except DBAPIError as error:
                if _is_interrupted(error):
                    raise AxTimeout from error
                raise

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """Give a connection whose every statement is a transaction of its own: PostgreSQL."""
        with self.named_errors(), self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def own(self) -> Iterator[Any]:
        """Give a connection of the driver's that commits by itself, to keep for long."""
        with self.named_errors(), self.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            connection.detach()  # what is kept must not be missing in the pool
            if not self.is_sqlite:
                driver.autocommit = True
            yield driver

    @property
    def driver_error(self) -> type[Exception]:
        """The root of what the driver raises."""
        error: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        return error

    def call(self, statement: bytes, values: Sequence[Value]) -> list[str | None]:
        """Run what is a transaction of its own, and return its one row as text: PostgreSQL."""
        with self.named_errors():
            return self._calls.call(statement, values)

    def ask(self, statement: str, values: Given) -> list[tuple[Any, ...]]:
        """Ask in the driver's words, in a transaction of its own: PostgreSQL."""
        with self.named_errors():
            return self._calls.ask(statement, values)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection in a transaction that commits at the end of the block, or undoes all.

        On SQLite it is the one writer from its first moment. Raises `LogBusy` when it cannot be.
        """
        if not self.is_sqlite:
            with self.named_errors(), self.engine.begin() as connection:
                self._begin_bounded(connection)
                with _closed_by_a_crash(connection):
                    yield connection
            return
        # Threads of one process queue here, where waiting is fair; processes wait in SQLite.
        if not self._writer.acquire(timeout=self.timeout_seconds):
            raise LogBusy
        try:
            with self.named_errors(), self.engine.connect() as connection:
                connection.execution_options(**{WRITE: True})
                self._let_wal_grow(connection)
                with connection.begin(), _closed_by_a_crash(connection):
                    yield connection
        finally:
            self._writer.release()

    def _begin_bounded(self, connection: Connection) -> None:
        """Begin, and bound how long the transaction may stand idle, in one way there and back."""
        driver: Any = connection.connection.driver_connection
        driver.pgconn.exec_(_BEGIN_BOUNDED % self._idle)
        if driver.info.transaction_status != _IN_TRANSACTION:
            # Whatever is wrong with the connection, by this road it is named, and given up.
            connection.execute(select(1))

    def _let_wal_grow(self, connection: Connection) -> None:
        """Let the write-ahead log of a file grow to a quarter of the file itself.

        A long log dirties a page of its index for nearly every attestation. Written back for every
        thousand pages, as SQLite has it by default, each would be written back by itself.
        """
        if self._file is None or not self._file.exists():
            return
        pages = self._file.stat().st_size // (WAL_SHARE * PAGE_BYTES)
        pages = min(max(pages, WAL_PAGES_MIN), WAL_PAGES_MAX)
        if pages >= 2 * connection.info.get(WAL_PAGES, 0):
            driver: Any = connection.connection.driver_connection
            driver.execute(f"PRAGMA wal_autocheckpoint = {pages}")
            connection.info[WAL_PAGES] = pages

    def now(self, connection: Connection) -> int:
        """Return the database's clock, in microseconds since 1970."""
        if self.is_sqlite:
            return self._clock() // 1000
        return int(connection.execute(_ASK_CLOCK).scalar_one())

    def written(self) -> tuple[int, int] | None:
        """Return what changes whenever somebody commits, nearly always: SQLite.

        None without a file, where only this process can.
        """
        if self._file is None:
            return None
        try:
            wal = os.stat(self._wal)  # noqa: PTH116 - dozens of times a second
        except FileNotFoundError:
            return (0, 0)
        return wal.st_mtime_ns, wal.st_size

    def close(self) -> None:
        """Close every connection; the next transaction opens new ones."""
        self._calls.close()
        self.engine.dispose()

    def recycle(self) -> None:
        """Let the pool open each connection anew before its next use; those in use go on.

        A statement that was prepared before a column changed its type is refused ever after.
        """
        self._recycled += 1

    def is_recent(self, known: dict[Any, Any]) -> bool:
        """Tell whether the connection that this is known of was opened after the last `recycle`."""
        return bool(known.setdefault((RECYCLED, id(self)), self._recycled) == self._recycled)

    def forget(self) -> None:
        """Leave every connection to the process that this one was forked from."""
        self._writer = threading.Lock()
        self._calls.forget()
        self.engine.dispose(close=False)

    def create(self) -> None:
        """Create the SQLite file if there is none, readable by its owner alone."""
        if self._file is None or self._file.exists():
            return
        # Elsewhere first, and then in its place at one blow: of several who turn an empty file to
        # write-ahead logging at once, SQLite refuses all but one, and lets nobody wait.
        unborn = self._file.with_name(f".{self._file.name}-{uuid4()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(unborn, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            try:
                self._connect(f"file:{quote(str(unborn))}?mode=rw").close()
                with suppress(FileExistsError):  # another was first
                    os.link(unborn, self._file)
            finally:
                unborn.unlink()
        except OSError as error:
            raise DatabaseUnavailable(f"cannot create {self._file}: {error.strerror}") from error

    def revision(self) -> str | None:
        """Return the revision of the framework's tables, or None where there are none."""
        with self.read() as connection:
            self._check_versions(connection)
            if not inspect(connection).has_table(VERSION_TABLE):
                return None
            version = sqlalchemy.table(VERSION_TABLE, sqlalchemy.column("version_num"))
            return connection.execute(select(version.c.version_num)).scalar_one_or_none()

    def upgrade(self) -> None:
        """Bring the framework's tables to this code's revision, in one locked transaction.

        Raises `SchemaTooNew` where they are ahead of it.
        """
        self.create()
        revision = self.revision()
        if revision is not None and revision >= REVISION:
            self.check()
            return
        run_revisions = _revisions()
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(UPGRADE_LOCK)))
            with _ALEMBIC:
                run_revisions(connection)

    def check(self) -> None:
        """Raise `DatabaseMissing`, `SchemaOutdated` or `SchemaTooNew` unless the tables fit."""
        if self._file is not None and not self._file.exists():
            raise DatabaseMissing(f"there is no database at {self._file}. {_UPGRADE}")
        revision = self.revision()
        if revision is None:
            raise DatabaseMissing(f"{self.name} holds no tables of qntx-es. {_UPGRADE}")
        if revision > REVISION:
            raise SchemaTooNew(
                f"the tables are at revision {revision}, newer than this code ({REVISION}). "
                "Upgrade qntx-es on this machine"
            )
        if revision < REVISION:
            raise SchemaOutdated

    def _check_versions(self, connection: Connection) -> None:
        found: tuple[Any, ...] = connection.dialect.server_version_info or ()
        oldest: tuple[int, ...] = SQLITE_OLDEST if self.is_sqlite else POSTGRESQL_OLDEST
        if found < oldest:
            raise UnsupportedDatabase

    def _engine(self, url_or_engine: str | Engine) -> Engine:
        if isinstance(url_or_engine, Engine) and url_or_engine.dialect.name == "postgresql":
            if url_or_engine.dialect.driver != "psycopg":
                raise UnsupportedDatabase
            return url_or_engine.execution_options(isolation_level="READ COMMITTED")
        given = url_or_engine.url if isinstance(url_or_engine, Engine) else url_or_engine
        try:
            url = make_url(given)
        except (ArgumentError, ValueError):
            # Not even the cause is shown: what was meant as a URL may hold a password.
            raise UnsupportedDatabase(
                "this is no database URL; for example sqlite:///qntx.db "
                "or postgresql://user@host/database"
            ) from None
        dialect = url.get_backend_name()
        if dialect == "sqlite":
            return self._sqlite(url.database)
        if dialect not in ("postgresql", "postgres"):
            raise UnsupportedDatabase
        return self._postgresql(url.set(drivername="postgresql+psycopg"))

    def _postgresql(self, url: sqlalchemy.URL) -> Engine:
        try:
            return sqlalchemy.create_engine(
                url,
                isolation_level="READ COMMITTED",
                pool_size=POOL_SIZE,
                max_overflow=POOL_OVERFLOW,
                connect_args={
                    "connect_timeout": max(2, round(self.timeout_seconds)),
                    # Of statements that are a transaction each, whatever the server's default.
                    "options": "-c default_transaction_isolation=read\\ committed",
                },
            )
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise MissingExtra("postgres") from error

    def _sqlite(self, path: str | None) -> Engine:
        if path in (None, "", ":memory:"):
            # A name of its own, shared by this process's connections for as long as one is open.
            uri = f"file:/qntx-{uuid4()}?vfs=memdb"
            self._anchor = self._connect(uri)
        else:
            self._file = Path(str(path)).absolute()
            self._wal = f"{self._file}-wal"
            uri = f"file:{quote(str(self._file))}?mode=rw"
        engine = sqlalchemy.create_engine(
            sqlalchemy.URL.create("sqlite", database=path),
            creator=lambda: self._connect(uri),
            poolclass=sqlalchemy.QueuePool,
            pool_size=POOL_SIZE,
            max_overflow=POOL_OVERFLOW,
        )
        event.listen(engine, "begin", _begin)
        return engine

    def _connect(self, uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri,
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=self.timeout_seconds,
        )
        connection.create_function("qntx_holds", 2, holds_of_text, deterministic=True)
        for pragma in (
            f"page_size = {PAGE_BYTES}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "cache_size = -32768",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Give the same trouble the same name on both databases."""
        try:
            yield
        except PoolTimeout as error:
            raise DatabaseUnavailable("all connections are in use; give some back") from error
        except DBAPIError as error:
            named = self._named(error)
            if named is None:
                raise
            raise named from error

    def _named(self, error: DBAPIError) -> QntxError | None:
        if not is_trouble(error):
            return None
        text = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else ""
        code = getattr(error.orig, "sqlite_errorcode", None)
        if code is not None:
            return self._named_sqlite(code & 0xFF, text)
        state = getattr(error.orig, "sqlstate", None)
        if state == "53100":
            return StorageFull()
        if state in TRY_AGAIN:
            return LogBusy("another transaction was in the way; nothing was written. Try again")
        if error.connection_invalidated or _is_unreachable(error, state):
            return DatabaseUnavailable(f"{self.name} cannot be reached: {text}")
        return None

    def _named_sqlite(self, code: int, text: str) -> QntxError | None:
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return LogBusy(f"{self.name}: another process holds the write lock. Try again")
        if code == sqlite3.SQLITE_FULL:
            return StorageFull()
        if code == sqlite3.SQLITE_CANTOPEN and self._file is not None and not self._file.exists():
            return DatabaseMissing(f"there is no database at {self._file}. {_UPGRADE}")
        if code in SQLITE_TROUBLE:
            return DatabaseUnavailable(f"{self.name} cannot be used: {text}")
        return None


@contextmanager
def _closed_by_a_crash(connection: Connection) -> Iterator[None]:
    """Leave it to the database to undo what a crash cut off, as it is when a process ends."""
    try:
        yield
    except faults.Crash:
        connection.invalidate()
        raise


def _forget(of: "ref[Database]") -> None:
    database = of()
    if database is not None:
        database.forget()


def _recycle(of: "ref[Database]") -> None:
    database = of()
    if database is not None:
        database.recycle()


def _keep_or_renew(of: "ref[Database]", _: object, record: Any, __: object) -> None:  # noqa: ANN401 - the pool's
    database = of()
    if database is not None and not database.is_recent(record.info):
        raise DisconnectionError  # the pool's own way: it opens another in its place


def _revisions() -> Callable[[Connection], None]:
    """Return what brings the tables to the head."""
    # Here and not above: alembic takes a tenth of a second to import, and only upgrades need it.
    # On a busy machine a transaction that waited for it would be ended for standing idle.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    packaged = Path(__file__).parent / "_alembic"
    folder = packaged if packaged.exists() else packaged.parent.parent / "alembic"

    def run(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    return run


# Alembic keeps what it works on in its modules: one upgrade at a time in a process.
_ALEMBIC = threading.Lock()
_ASK_CLOCK = select(CLOCK)
_BEGIN_BOUNDED = (
    b"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = %d"
)
_IN_TRANSACTION = 2  # psycopg.pq.TransactionStatus
# Until the transaction ends; compiling a plan of a query that is estimated high takes longer than
# most queries do.
_PATIENCE = select(
    func.set_config("statement_timeout", bindparam("patience"), literal(True)),  # noqa: FBT003 - SQL's
    func.set_config("enable_seqscan", "off", literal(True)),  # noqa: FBT003
    func.set_config("jit", "off", literal(True)),  # noqa: FBT003
)
# A lock not had in time, a serialization failure, a deadlock.
TRY_AGAIN = ("55P03", "40001", "40P01")
SQLITE_TROUBLE = (
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_PERM,
)
_UPGRADE = "Run `qntx-es db upgrade`, or `host.upgrade()`"


@contextmanager
def _interrupted(connection: Connection, seconds: float) -> Iterator[None]:
    """Let SQLite give up whatever it is asked, once the time has passed."""
    deadline = time.monotonic() + seconds
    driver: Any = connection.connection.driver_connection
    driver.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)


def _is_interrupted(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code == sqlite3.SQLITE_INTERRUPT or getattr(error.orig, "sqlstate", None) == "57014"


def _begin(connection: Connection) -> None:
    # The driver's own BEGIN comes late and never locks; a reader that turns writer is refused.
    options: dict[str, Any] = dict(connection.get_execution_options())
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(WRITE) else "BEGIN")


def hurry(connection: Connection) -> None:
    """Let this transaction's commit not wait for the disk: PostgreSQL.

    A server that crashes may lose it, whole, and with it whatever was committed since in this way;
    what commits in the ordinary way makes all before it last.
    """
    if connection.dialect.name != "sqlite":
        connection.execute(text("SET LOCAL synchronous_commit = off"))


def is_trouble(error: DBAPIError) -> bool:
    """Tell whether the database itself is in trouble, whatever it was asked."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        waited_for = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
        return code & 0xFF in (*SQLITE_TROUBLE, *waited_for)
    state = getattr(error.orig, "sqlstate", None)
    is_named = state == "53100" or state in TRY_AGAIN
    return is_named or error.connection_invalidated or _is_unreachable(error, state)


def _is_unreachable(error: DBAPIError, state: str | None) -> bool:
    if state is None:
        return isinstance(error, OperationalError)
    # 08: connection, 57P: shutdown, 3D: no such database, 28: not let in, 53300: too many.
    return state.startswith(("08", "57P", "3D", "28")) or state == "53300"
