"""What every test may ask for: a fresh database of each kind, and the depth of properties.

Every test that touches a database runs on both, so none can rely on one of them unawares.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from qntx_es.testing import PostgresServer

# A deadline measures the machine, not the property: a slow one would fail what is right.
settings.register_profile("qntx", deadline=None)
settings.register_profile("qntx-ci", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("qntx-nightly", deadline=None, max_examples=2_000, print_blob=True)
settings.load_profile("qntx-ci" if os.environ.get("CI") else "qntx")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Start the one server of this run when the first test asks for it."""
    with PostgresServer.start() as server:
        yield server


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
