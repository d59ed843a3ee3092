"""Arrays that are written by hand are those that the driver reads."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url

from qntx_es.testing import PostgresServer
from qntx_es.wire import KINDS, array

INSTANTS = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 - the zone is drawn beside it
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001 - the same
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30))]),
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "boolean": st.booleans(),
    "bytea": st.binary(max_size=9),
    "date": st.dates(),
    "double precision": st.floats(allow_nan=False),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "text": st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=9),
    "timestamptz": INSTANTS,
}


@pytest.fixture(scope="module")
def driver(postgres_server: PostgresServer) -> Iterator[psycopg.Connection]:
    """Connect to a database of its own."""
    url = make_url(postgres_server.create_database()).set(drivername="postgresql")
    opened = psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)
    with closing(opened):
        opened.execute("SET TIME ZONE 'UTC'")
        yield opened


def read_back(driver: psycopg.Connection, kind: str, values: Sequence[Any]) -> list[Any]:
    """Return what the server has read, as the driver reads it from there."""
    asked = f"SELECT unnest($1::{kind}[])".encode()
    result = driver.pgconn.exec_params(asked, [array(kind, values)], param_formats=[1])
    transformer = psycopg.adapt.Transformer(driver)
    transformer.set_pgresult(result)
    return [row[0] for row in transformer.load_rows(0, result.ntuples, tuple)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=min(30, settings().max_examples))
@given(data=st.data())
def test_an_array_comes_back(driver: psycopg.Connection, kind: str, data: st.DataObject) -> None:
    """Whatever a column may hold, null among it, is on the server what it was here."""
    values = data.draw(st.lists(st.none() | VALUES[kind], max_size=5))

    assert read_back(driver, kind, values) == values


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_nothing_is_empty(driver: psycopg.Connection, kind: str) -> None:
    """No values and only nulls are arrays too."""
    assert read_back(driver, kind, []) == []
    assert read_back(driver, kind, [None, None]) == [None, None]
