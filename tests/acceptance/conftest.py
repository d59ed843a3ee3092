"""The real command line, started as anybody starts it, in a folder and surroundings of its own.

Beside it a domain that somebody else might have written: a shop, installed as a package, of whom
its customers may ask everything that can go wrong.
"""

import fcntl
import importlib.util
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import TypeAlias

import pytest

from qntx_es import Domain, Host

Qntx: TypeAlias = Callable[..., CompletedProcess[str]]

PROGRAM = str(Path(sys.executable).with_name("qntx-es"))
SECONDS_MAX = 60
AT_ONCE = 2
ROWS, COLUMNS = 60, 100
BLOCK_BYTES = 1 << 16

SHOP = '''
"""A shop that counts what is ordered."""

import sys
from threading import Event

from sqlalchemy import BigInteger, Column, String

from qntx_es import Domain, GiveUp, Payload

PRICE = 1
shop = Domain("shop", version=1, emits=("order_placed", "order_shipped"))
orders = shop.table(
    "orders",
    Column("entity", String, primary_key=True),
    Column("total", BigInteger, nullable=False, default=0),
)


class OrderPlaced(Payload, context="order_placed"):
    total: int


def wait_for_ever():
    print("waiting", file=sys.stderr, flush=True)
    Event().wait()


@shop.project(OrderPlaced)
def count(placed, rows):
    if placed.payload.total < 0:
        raise ValueError("[red]less\\x1b[31m than nothing")
    rows.add(orders, placed.entity, total=PRICE * placed.payload.total)


@shop.derive(OrderPlaced)
def ask_to_ship(placed, rows):
    yield ship.request(entity=placed.entity)


@shop.job(retries=0)
def ship(job, services):
    if job.entity == "nowhere":
        raise GiveUp("[red]no address\\x1b[31m")
    if job.entity == "far":
        wait_for_ever()
'''


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """Return an environment that says nothing to qntx-es, and lets the shop be found."""
    silent = ("QNTX_", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "GIT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(silent)}
    return kept | {
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]),
        "TERM": "xterm-256color",
    }


@pytest.fixture
def qntx(tmp_path: Path, surroundings: dict[str, str]) -> Qntx:
    """Run a command to its end; keywords are variables of its environment."""

    def run(*arguments: str, stdin: str = "", **variables: str) -> CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *arguments],
            cwd=tmp_path,
            env=surroundings | variables,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )

    return run


@pytest.fixture
def each(qntx: Qntx) -> Callable[..., list[CompletedProcess[str]]]:
    """Run commands that do not need each other, two at a time, and return what became of them."""

    def run(*commands: tuple[str, ...], **variables: str) -> list[CompletedProcess[str]]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda arguments: qntx(*arguments, **variables), commands))

    return run


@pytest.fixture
def started(tmp_path: Path, surroundings: dict[str, str]) -> Iterator[Callable[..., Popen[str]]]:
    """Start a command and let it run; it does not outlive the test."""
    # Where the whole run stands in the background, SIGINT is ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    processes: list[Popen[str]] = []

    def start(*arguments: str) -> Popen[str]:
        process = Popen(
            [PROGRAM, *arguments],
            cwd=tmp_path,
            env=surroundings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def at_terminal(tmp_path: Path, surroundings: dict[str, str]) -> Callable[..., tuple[int, str]]:
    """Run a command at a terminal of 100 columns; return its exit code and all it showed.

    What is `typed` waits there to be read.
    """

    def run(*arguments: str, typed: str = "") -> tuple[int, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        with Popen(
            [PROGRAM, *arguments],
            cwd=tmp_path,
            env=surroundings,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            os.write(ours, typed.encode())
            shown = b"".join(_blocks(ours))
            os.close(ours)
            return process.wait(SECONDS_MAX), shown.decode()

    return run


def _blocks(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            block = os.read(terminal, BLOCK_BYTES)
        except OSError:  # on Linux, how a terminal says that nobody is there any more
            return
        if not block:
            return
        yield block


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Install the shop, and return the file of its source; a mill is announced, but not there."""
    site = tmp_path / "site"
    described = site / "shop-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(
        "[qntx_es.domains]\nshop = shop:shop\nmill = mill:mill\n"
    )
    # In the place of a folder, it keeps Python from remembering what the shop was a moment ago.
    (site / "__pycache__").touch()
    source = site / "shop.py"
    source.write_text(SHOP)
    return source


@pytest.fixture
def opened(shop: Path) -> Iterator[Callable[..., Host]]:
    """Open a host with the shop as it is now, on an upgraded database."""
    hosts: list[Host] = []

    def open_host(url: str) -> Host:
        host = Host(url, domains=[_load(shop)])
        hosts.append(host)
        host.upgrade()
        return host

    yield open_host
    for host in hosts:
        host.close()


def _load(source: Path) -> Domain:
    spec = importlib.util.spec_from_file_location("shop_of_this_test", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    domain: Domain = module.shop
    return domain


@pytest.fixture
def empty_log(sqlite_url: str) -> str:
    """Make an empty SQLite database, and name it."""
    with closing(Host(sqlite_url)) as host:
        host.upgrade()
    return sqlite_url
