"""The pytest plugin: databases, hosts, clocks and faults as fixtures, and one line that sums up.

pytest loads it wherever qntx-es is installed. Neither Hypothesis nor a driver of PostgreSQL is
imported before a test needs it.
"""

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from qntx_es import faults
from qntx_es.config import Settings
from qntx_es.domain import Domain
from qntx_es.host import Host
from qntx_es.log import Log
from qntx_es.testing.bench import Clock
from qntx_es.testing.failures import keep_log
from qntx_es.testing.figures import Figures
from qntx_es.testing.postgres import PostgresServer
from qntx_es.testing.processes import Process

# What these assert is told as what a test asserts.
pytest.register_assert_rewrite("qntx_es.testing.log_exercise")

OpenHost: TypeAlias = Callable[..., Host]
StartProcess: TypeAlias = Callable[..., Process]
PutInForce: TypeAlias = Callable[[Mapping[str, faults.Action | Callable[[], None]]], None]

KINDS = {"sqlite": ("sqlite",), "postgresql": ("postgresql",), "both": ("sqlite", "postgresql")}
_URL = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, all of which begin with `--qntx-`."""
    group = parser.getgroup("qntx", "qntx-es")
    group.addoption(
        "--qntx-on",
        choices=tuple(KINDS),
        default="sqlite",
        help="which databases the fixtures are on; a PostgreSQL is found, or started",
    )
    group.addoption(
        "--qntx-require-faults",
        action="store_true",
        help="fail where a planned fault point never fired, or a wanted state was never met",
    )
    group.addoption(
        "--qntx-keep-failures",
        type=Path,
        metavar="DIR",
        help="keep an export of the log of every test that fails",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.pluginmanager.register(Figures(config), "qntx-figures")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a database on each kind that was chosen."""
    if "qntx_url" in metafunc.fixturenames:
        kinds = KINDS[str(metafunc.config.getoption("--qntx-on"))]
        metafunc.parametrize("qntx_url", kinds, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what a failing test left in its log, while its database is still there."""
    report = yield
    folder = item.config.getoption("--qntx-keep-failures")
    if folder is not None and report.failed and _URL in item.stash:
        report.sections.append(("qntx", keep_log(item.stash[_URL], folder, item.nodeid)))
    return report


# Databases.


@pytest.fixture(scope="session")
def qntx_postgres_server() -> Iterator[PostgresServer]:
    """Start the one server of this session when the first test asks for it."""
    with PostgresServer.start() as server:
        yield server


@pytest.fixture(scope="session")
def _qntx_postgres_template(qntx_postgres_server: PostgresServer) -> str:
    url = qntx_postgres_server.create_database()
    _upgrade(url)
    return url


@pytest.fixture(scope="session")
def _qntx_sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("qntx") / "template.db"
    _upgrade(f"sqlite:///{file}")
    return file


def _upgrade(url: str) -> None:
    with Host(url) as host:
        host.upgrade()


@pytest.fixture
def qntx_postgres(
    qntx_postgres_server: PostgresServer, _qntx_postgres_template: str
) -> Iterator[str]:
    """Name a PostgreSQL database of this test alone, which holds the framework's tables."""
    url = qntx_postgres_server.create_database(_qntx_postgres_template)
    yield url
    qntx_postgres_server.drop_database(url)


@pytest.fixture
def qntx_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a database of this test alone, of each kind that `--qntx-on` says."""
    if request.param == "sqlite":
        file = tmp_path / "qntx.db"
        shutil.copyfile(request.getfixturevalue("_qntx_sqlite_template"), file)
        url = f"sqlite:///{file}"
    else:
        url = request.getfixturevalue("qntx_postgres")
    request.node.stash[_URL] = url
    return url


@pytest.fixture
def qntx_clock() -> Clock:
    """Stand still until told to `move`: the clock of this test's hosts on SQLite."""
    return Clock()


@pytest.fixture
def qntx_host(request: pytest.FixtureRequest, qntx_url: str) -> Iterator[OpenHost]:
    """Open hosts of some domains over one database, `qntx_host(code, finance)`, and close them.

    A second one is another process, as far as the first can tell. Where the test asks for
    `qntx_clock`, that is their clock.
    """
    is_told = "qntx_clock" in request.fixturenames
    clock = request.getfixturevalue("qntx_clock") if is_told else time.time_ns
    with ExitStack() as opened:

        def open_host(*domains: Domain | str, settings: Settings | None = None) -> Host:
            host = Host(qntx_url, domains, settings=settings, clock=clock)
            opened.enter_context(host).upgrade()
            return host

        yield open_host


@pytest.fixture
def qntx_log(qntx_host: OpenHost) -> Log:
    """Open an empty log."""
    return qntx_host().log


# Faults.


@pytest.fixture
def qntx_faults() -> Iterator[PutInForce]:
    """Put plans in force until the test ends; each point that they name must have fired by then.

    `qntx_faults({"batch.before_commit": faults.crash(nth=2)})`
    """
    wanted: set[str] = set()
    before = faults.tally().fired.copy()
    with ExitStack() as in_force:

        def put_in_force(plan: Mapping[str, faults.Action | Callable[[], None]]) -> None:
            in_force.enter_context(faults.planned(plan))
            wanted.update(plan)

        yield put_in_force
    unfired = sorted(one for one in wanted if faults.tally().fired[one] == before[one])
    if unfired:
        pytest.fail(f"planned and never fired: {', '.join(unfired)}", pytrace=False)


@pytest.fixture
def qntx_process() -> Iterator[StartProcess]:
    """Start processes of a program's text, to be stopped and killed; none outlives the test."""
    with ExitStack() as started:

        def start(program: str, *arguments: str) -> Process:
            return started.enter_context(Process(program, *arguments))

        yield start
