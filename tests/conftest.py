"""What every test may ask for: a fresh database of each kind, and the depth of properties.

Every test that touches a database runs on both, so none can rely on one of them unawares.

Tests are named for what they promise. What the order of the log and the projections have to stand
has a name as well, short enough to ask for: `pytest -m gap` runs whatever holds that one. So have
the properties, and the layers that their tests are of, as `docs/properties.md` says: `-m P8`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from qntx_es.testing import PostgresServer

# The kit's profiles, and of them what a suite of ten minutes has the time for.
settings.register_profile("suite", settings.get_profile("qntx-fast"), max_examples=100)
settings.register_profile("suite-ci", settings.get_profile("qntx-ci"), max_examples=50)
settings.load_profile("suite-ci" if os.environ.get("CI") else "suite")

# What is provoked, and what must hold then: test_every_name_is_held sees to it that it is tried.
NAMES = {
    # The order of the log.
    "gap": "commits in any order: seen is what was committed, in order, dense, nothing twice",
    "lock_and_head_in_one_statement": "a pass that is written so is found by the checks of `gap`",
    "holes": "whatever is undone behind an insert leaves no hole",
    "whole_and_causal": "no transaction is interleaved, and no effect stands before its cause",
    "stalled_holder": "a pass that stops before its commit: others go on, and it cannot commit",
    "look_again": "what comes in at any point of a pass enters, though its holder be killed there",
    "old_snapshot": "a pass costs what it cost before, whatever an idle transaction keeps",
    "caller_session": "exactly what lives at the caller's commit is appended, however he commits",
    "conditions": "of conflicting appends one succeeds, unrelated ones all do, at one cost",
    "same_id": "one attestation, one receipt for the same bytes, a named refusal for others",
    "append_only": "UPDATE, DELETE and TRUNCATE are refused to the owner too",
    "replica": "a reader of a replica sees a dense beginning of the log, and nothing new behind",
    # Batches.
    "crash_at_every_call": "rows, derived attestations and cursor agree after any crash, and go on",
    "batch_never_shows": "any cutting of a log into batches gives the same rows",
    "rows_model": "rows are a dictionary, on both databases",
    "fold_meaning": "a fold means the same in SQL as in Python",
    "many_keys": "tens of thousands of keys in a batch, by two crosswise: no deadlock",
    "ceiling": "what is committed between any two reads of a batch is not passed over",
    "sparse": "a projector of a rare context arrives, is waited for, and does not begin anew",
    "zombie": "whoever is stopped beyond its lease, at any step, cannot commit",
    "leases": "a lease is kept for as long as its holder lives, whatever the clocks say",
    # Derived attestations, and inline.
    "derive_once": "every source's ids are there exactly once, whatever happens meanwhile",
    "derive_drift": "a handler that says other things is reported, and the log stays as it is",
    "new_derive": "a new handler is silent about the past, and says exactly what it is asked for",
    "loops": "a chain that feeds itself ends, or is parked and told",
    "inline_leaves_nothing_out": "whoever appends, and whatever fails, the rows end as the fold",
    # Rebuilds.
    "rebuild_killed": "live is untouched until the swap, and the next rebuild gives the same",
    "swap_under_readers": "no reader meets a missing or empty table, and appends go on",
    "swap_keeps": "grants, owner and comments stay; what would be left behind is refused",
    "prepared": "prepared statements go on after a swap, or the engines recover",
    "old_code": "old and new versions side by side write no row of the wrong shape",
    "verify_finds": "any changed, added or deleted row is found, and nothing where nothing is",
    # What fails, who runs, and what is seen of it.
    "failing": "others never wait, and what was retried is as if it had never failed",
    "recut": "ranges are split and merged under runners, and nothing is lost or met twice",
    "slices": "an entity has the same slice for ever",
    "hints": "whatever becomes of a hint, what was appended is met as soon as one looks",
    "dead_reader": "where nobody runs lag or waiting grows, and status says why",
    "restored": "an older log under newer cursors is refused, with the remedy",
    "watching": "whoever looks at the status takes no lock on a cursor, nor a connection each time",
    "autogenerate": "an application's alembic sees none of our tables",
}


TESTS = Path(__file__).parent
_ROW = re.compile(r"^\| (P\d+)? ?\|([^|]*)\| (?:`([^`]+)`)? ?\|([^|]*)\|([^|]*)\|$", re.MULTILINE)


@dataclass(frozen=True)
class Held:
    """That a property is held by a test (`file::name`), as the page says; "" where none is yet."""

    number: str
    promise: str
    test: str
    on: str
    layers: tuple[str, ...]


def read_properties() -> list[Held]:
    """Read the page of properties."""
    found: list[Held] = []
    for row in _ROW.findall((TESTS.parent / "docs/properties.md").read_text()):
        number, promise, test, on, layers = (one.strip() for one in row)
        if not number:
            number, promise = found[-1].number, found[-1].promise
        found.append(Held(number, promise, test, on, tuple(filter(None, layers.split(", ")))))
    return found


PROPERTIES = read_properties()


def pytest_configure(config: pytest.Config) -> None:
    """Make a marker of each name, and of each property."""
    named = NAMES | {one.number: one.promise for one in PROPERTIES}
    for name, what in named.items():
        config.addinivalue_line("markers", f"{name}: {what}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what holds a property by it, and by the layer that it is of."""
    held: dict[str, set[str]] = {}
    for one in PROPERTIES:
        held.setdefault(one.test, set()).update({one.number, *one.layers} - {"nightly"})
    for item in items:
        if item.path.is_relative_to(TESTS):
            test = f"{item.path.relative_to(TESTS)}::{item.name.partition('[')[0]}"
            for marker in sorted(held.get(test, ())):
                item.add_marker(marker)


@pytest.fixture
def properties() -> list[Held]:
    """Return what holds the properties."""
    return PROPERTIES


@pytest.fixture
def names() -> dict[str, str]:
    """Return each name, with what must hold."""
    return NAMES


@pytest.fixture(scope="session")
def postgres_server(qntx_postgres_server: PostgresServer) -> PostgresServer:
    """Take the one server of this run, started when the first test asks for it."""
    return qntx_postgres_server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Name an SQLite database that is not there yet."""
    return f"sqlite:///{tmp_path / 'qntx.db'}"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Create an empty PostgreSQL database for one test."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Name an empty database, of each kind in turn."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    named: str = request.getfixturevalue(fixture)
    return named
