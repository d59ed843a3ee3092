"""One database, its two ways in, and the names of its troubles."""

import os
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import inspect, make_url, text

from qntx_es import (
    Attestation,
    DatabaseMissing,
    DatabaseUnavailable,
    Host,
    LogBusy,
    SchemaOutdated,
    SchemaTooNew,
    Settings,
    UnsupportedDatabase,
)
from qntx_es.database import PAGE_BYTES, WAL_PAGES_MIN, WAL_SHARE, Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer
from qntx_es.tables import REVISION, VERSION_TABLE

BOUND = 60
UPGRADE = "import sys; from qntx_es.database import Database; Database(sys.argv[1]).upgrade()"
UPGRADE_TOGETHER = """
import sys, threading
from qntx_es.database import Database
ready = threading.Barrier(len(sys.argv) - 1)
def upgrade(url):
    database = Database(url)
    ready.wait(60)
    database.upgrade()
    database.check()
    database.close()
    sys.stdout.write("done\\n")
for url in sys.argv[1:]:
    threading.Thread(target=upgrade, args=(url,)).start()
"""
HOLD = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
held.execute("ROLLBACK")
"""


@contextmanager
def opened(url: str, seconds: float = 10) -> Iterator[Database]:
    """Open a database for a block."""
    database = Database(url, timeout=timedelta(seconds=seconds))
    try:
        yield database
    finally:
        database.close()


def said() -> Attestation:
    """Say something small."""
    return Attestation(context="seen", entity="a", actor="ann", payload={})


def test_nothing_is_opened_before_the_first_transaction(tmp_path: Path) -> None:
    """A database and a host are values: making one makes no file and no connection."""
    Database(f"sqlite:///{tmp_path}/none.db")
    Host(f"sqlite:///{tmp_path}/none.db")
    Host("postgresql://user@localhost:1/none")

    assert list(tmp_path.iterdir()) == []


def test_upgrading_twice_changes_nothing(url: str) -> None:
    """The second upgrade finds all done, and keeps what is in the log."""
    with opened(url) as database:
        database.upgrade()
        log = Log(database, Sequencer(database))
        log.append(said())

        database.upgrade()
        database.check()

        assert database.revision() == REVISION
        assert log.head() == 1


def test_threads_that_upgrade_at_once_upgrade_once(url: str) -> None:
    """Whoever comes second waits and finds all done."""
    errors: list[BaseException] = []
    ready = threading.Barrier(4)

    def upgrade() -> None:
        with opened(url) as database:
            ready.wait(BOUND)
            try:
                database.upgrade()
                database.check()
            except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
                errors.append(error)

    run([threading.Thread(target=upgrade) for _ in range(4)])

    assert errors == []


def test_threads_that_create_a_file_at_once_all_find_it(tmp_path: Path) -> None:
    """Whoever comes first makes it whole, so that nobody meets a file half made, or is refused."""
    errors: list[BaseException] = []
    ready = threading.Barrier(4)

    def create(path: Path) -> None:
        with opened(f"sqlite:///{path}") as database:
            ready.wait(BOUND)
            try:
                database.create()
                assert database.revision() is None
            except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
                errors.append(error)

    for n in range(25):
        path = tmp_path / f"{n}.db"
        run([threading.Thread(target=create, args=(path,)) for _ in range(4)])

    assert errors == []
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_several_databases_can_be_upgraded_at_once(tmp_path: Path, postgres_url: str) -> None:
    """Hosts of one process, on databases of their own, do not disturb each other."""
    urls = [f"sqlite:///{tmp_path}/{n}.db" for n in range(4)] + [postgres_url]

    # In a process of its own: threads that share a connection do not only fail, they crash.
    done = subprocess.run(
        [sys.executable, "-c", UPGRADE_TOGETHER, *urls],
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n" * len(urls), "")


def test_processes_that_upgrade_at_once_upgrade_once(url: str) -> None:
    """Three programs that start together all find the tables they need."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, url], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        for _ in range(3)
    ]
    troubles = [process.communicate(timeout=BOUND)[1].decode() for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], troubles
    with opened(url) as database:
        database.check()


def test_an_upgrade_that_fails_leaves_nothing(url: str) -> None:
    """What stands in the way of one table takes all others with it: one transaction."""
    with opened(url) as database:
        database.create()
        with database.write() as connection:
            connection.execute(text("CREATE TABLE qntx_rebuilds (mine INTEGER)"))

        with pytest.raises(Exception, match="qntx_rebuilds"):
            database.upgrade()

        with database.read() as connection:
            assert inspect(connection).get_table_names() == ["qntx_rebuilds"]


@pytest.mark.parametrize("revision", ["0002", "9999", "0001x"])
def test_newer_tables_are_refused_and_left_alone(url: str, revision: str) -> None:
    """Tables ahead of the code are `SchemaTooNew`, for checking and for upgrading."""
    with opened(url) as database:
        database.upgrade()
        stamp(database, revision)

        with pytest.raises(SchemaTooNew, match=revision):
            database.check()
        with pytest.raises(SchemaTooNew):
            database.upgrade()
        host = Host(url)
        with pytest.raises(SchemaTooNew):
            host.append(said())
        host.close()

        assert database.revision() == revision


def test_older_tables_say_what_to_do(url: str) -> None:
    """Tables behind the code are `SchemaOutdated`, with the command that helps."""
    with opened(url) as database:
        database.upgrade()
        stamp(database, "0000")

        with pytest.raises(SchemaOutdated, match="db upgrade"):
            database.check()


def test_a_database_without_tables_is_missing(url: str) -> None:
    """No file, or no tables in it: `DatabaseMissing` says so, and nothing is made."""
    host = Host(url)
    for use in (lambda: host.append(said()), host.ax, host.catch_up, host.statuses):
        with pytest.raises(DatabaseMissing, match="db upgrade"):
            use()
    host.close()

    file = make_url(url).database
    assert make_url(url).get_backend_name() != "sqlite" or not Path(str(file)).exists()


def test_a_file_without_tables_is_missing_too(sqlite_url: str) -> None:
    """An empty file is no log."""
    Path(sqlite_url.removeprefix("sqlite:///")).touch()

    with opened(sqlite_url) as database, pytest.raises(DatabaseMissing):
        database.check()


def test_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    """The file is made with mode 0600, as is what SQLite puts beside it, whatever the umask."""
    file = tmp_path / "deep" / "er" / "qntx.db"
    before = os.umask(0)
    try:
        with opened(f"sqlite:///{file}") as database:
            database.upgrade()
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in file.parent.iterdir()}
    finally:
        os.umask(before)

    assert modes
    assert set(modes.values()) == {0o600}, modes


def test_a_file_that_is_no_database_is_named(sqlite_url: str) -> None:
    """Somebody else's file is `DatabaseUnavailable`, and not a byte of it is changed."""
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    file.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    before = file.read_bytes()

    with opened(sqlite_url) as database, pytest.raises(DatabaseUnavailable):
        database.upgrade()

    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["a b.db", "a?b#c%20.db", "ü⌬.db", "'.db"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    """Odd characters in a path mean themselves."""
    file = tmp_path / name
    url = sqlalchemy.URL.create("sqlite", database=str(file))

    with opened(url.render_as_string()) as database:
        database.upgrade()

    assert file.exists()


def test_another_process_that_writes_for_too_long_is_named(sqlite_url: str) -> None:
    """While another process holds SQLite's write lock, an append gives up as `LogBusy`."""
    host = Host(sqlite_url, settings=Settings(lock_seconds=0.2))
    host.upgrade()
    file = sqlite_url.removeprefix("sqlite:///")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"

        with pytest.raises(LogBusy):
            host.append(said())
        assert host.ax() == []

        process.communicate("go on\n", timeout=BOUND)

    assert host.append(said()).position == 1
    host.close()


def test_another_thread_that_writes_for_too_long_is_named(sqlite_url: str) -> None:
    """Threads of one process wait in turn, and no longer than they are told."""
    with opened(sqlite_url, 0.2) as database:
        database.upgrade()
        with database.write():
            errors: list[BaseException] = []

            def write() -> None:
                try:
                    with database.write():
                        pass
                except LogBusy as error:
                    errors.append(error)

            run([threading.Thread(target=write)])
        assert len(errors) == 1
        with database.write():
            pass


def test_a_database_that_nobody_serves_is_unavailable() -> None:
    """A refused port is `DatabaseUnavailable`, without the password and with the place."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    url = f"postgresql://user:secret-word@127.0.0.1:{port}/none"

    with opened(url, 2) as database, pytest.raises(DatabaseUnavailable) as raised:
        database.upgrade()

    assert "secret-word" not in str(raised.value)
    assert str(port) in str(raised.value)


def test_a_database_that_is_not_there_is_unavailable(postgres_url: str) -> None:
    """A name that the server does not know is `DatabaseUnavailable`."""
    url = make_url(postgres_url).set(database="unheard_of").render_as_string(hide_password=False)

    with opened(url) as database, pytest.raises(DatabaseUnavailable, match="unheard_of"):
        database.upgrade()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql//user:secret-word@host/db",
        "postgresql:/user:secret-word@host/db",
        "mysql://user:secret-word@host/db",
        "postgresql://user:secret-word@host:port/db",
        "user:secret-word@host",
        "",
    ],
)
def test_no_message_shows_a_password(url: str) -> None:
    """Whatever is wrong with a URL, its password stays out of sight."""
    with pytest.raises(UnsupportedDatabase) as raised:
        Database(url)

    assert "secret-word" not in str(raised.value)


def test_a_databases_name_shows_no_password() -> None:
    """The name for logs and messages has its password hidden."""
    name = Database("postgresql://user:secret-word@host/db").name

    assert "secret-word" not in name
    assert "host" in name


def test_a_block_that_fails_is_undone(url: str) -> None:
    """Leaving `write` by an exception undoes all, and the exception is the caller's."""
    with opened(url) as database:
        database.upgrade()

        def fail() -> None:
            with database.write() as connection:
                connection.execute(text("CREATE TABLE mine (x INTEGER)"))
                raise LookupError

        with pytest.raises(LookupError):
            fail()

        with database.read() as connection:
            assert "mine" not in inspect(connection).get_table_names()


def test_reading_changes_nothing(url: str) -> None:
    """What is written through a reading connection is rolled back."""
    with opened(url) as database:
        database.upgrade()
        with database.read() as connection:
            connection.execute(text("CREATE TABLE mine (x INTEGER)"))
        with database.read() as connection:
            assert "mine" not in inspect(connection).get_table_names()


def test_a_snapshot_shows_one_moment(url: str) -> None:
    """Two statements of one snapshot see the same log, and the next transaction the newer one."""
    with opened(url) as database:
        database.upgrade()
        log = Log(database, Sequencer(database))
        log.append(said())
        count = text("SELECT count(*) FROM qntx_attestations")
        with database.snapshot() as connection:
            before = connection.execute(count).scalar_one()
            log.append(said())
            assert connection.execute(count).scalar_one() == before == 1
        with database.read() as connection:
            assert connection.execute(count).scalar_one() == 2


def test_lost_connections_are_made_anew(postgres_url: str) -> None:
    """After the server dropped all connections, at most one call is refused, by name."""
    with opened(postgres_url) as database, opened(postgres_url) as other:
        database.upgrade()
        log = Log(database, Sequencer(database))
        one = said()
        log.append(one)
        with other.read() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

        try:
            log.append(said())
        except DatabaseUnavailable:
            log.append(said())

        assert log.append(one).position == 1


def test_sqlite_is_as_safe_as_it_can_be(sqlite_url: str) -> None:
    """Write-ahead log and full synchronisation, on every connection."""
    with opened(sqlite_url) as database:
        database.upgrade()
        with database.read() as connection:
            assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
            assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2


def stamp(database: Database, revision: str) -> None:
    """Pretend that the tables are of another revision."""
    with database.write() as connection:
        connection.execute(
            text(f"UPDATE {VERSION_TABLE} SET version_num = :revision"),  # noqa: S608 - a constant
            {"revision": revision},
        )


def run(threads: list[threading.Thread]) -> None:
    """Run threads to their end, with a limit."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
        assert not thread.is_alive()


def test_the_driver_is_as_new_as_it_must_be() -> None:
    """The suite itself runs on a SQLite that is supported."""
    assert sqlite3.sqlite_version_info >= (3, 35)


def test_the_write_ahead_log_grows_with_the_file(sqlite_url: str, tmp_path: Path) -> None:
    """A small file is written back early, and a large one for a quarter of its size at a time."""
    database = Database(sqlite_url)
    database.upgrade()
    asked = text("PRAGMA wal_autocheckpoint")

    def pages_kept() -> int:
        with database.write() as connection:
            return int(connection.execute(asked).scalar_one())

    assert pages_kept() == WAL_PAGES_MIN
    with database.write() as connection:
        connection.execute(text("CREATE TABLE large (content)"))
        connection.execute(text("INSERT INTO large VALUES (zeroblob(40000000))"))
    with database.read() as connection:
        connection.execute(text("ROLLBACK"))
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    size = (tmp_path / "qntx.db").stat().st_size // PAGE_BYTES
    assert pages_kept() == size // WAL_SHARE > 2 * WAL_PAGES_MIN
    database.close()


FORK = """
import os, sys
from qntx_es import Attestation, Host

def said(entity):
    return Attestation(context="seen", entity=entity, actor="ann", payload={})

host = Host(sys.argv[1])
host.append(said("before"))
host.log.head()
children = []
for name in "abc":
    child = os.fork()
    if child == 0:
        for _ in range(20):
            host.append(said(name))
        host.close()
        os._exit(0)
    children.append(child)
for _ in range(20):
    host.append(said("parent"))
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
host.append(said("after"))
print(host.log.head())
host.close()
"""


def test_each_process_has_connections_of_its_own_after_a_fork(url: str) -> None:
    """A web server that forks after it has connected appends in every process, losing nothing."""
    database = Database(url)
    database.upgrade()
    database.close()

    forked = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, url],
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )

    assert (forked.stderr, forked.stdout) == ("", f"{2 + 4 * 20}\n")
