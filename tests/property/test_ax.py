"""One query, three forms: its text comes back as it was, and its SQL means what Python says."""

import json
import string
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qntx_es import Attestation, Ax, indexes
from qntx_es.ax import (
    All,
    Compare,
    Contains,
    Exists,
    Glob,
    Not,
    OneOf,
    Some,
    Where,
    parse,
)
from qntx_es.database import Database
from qntx_es.errors import AxError
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer

AS_OF = datetime(2026, 1, 4, 12, tzinfo=UTC)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=4)
# Few keys, so that queries meet payloads, and each with its own trap.
KEYS = st.sampled_from(["a", "b", "a.b", 'q"t', "0", "is", "é", "$", "it's", "a b", "\\"])
EDGES = [0, 1, -1, (1 << 53) + 1, (1 << 63) - 1, -(1 << 63), 0.1, -0.0, 1.5, 1e23, 5e-324, 1.8e19]
NUMBERS = st.sampled_from(EDGES) | st.integers(-3, 3) | st.floats(-3, 3)
LARGER = st.sampled_from([1 << 63, (1 << 63) + 1, 10**23, 99999999999999991611392, -(10**400)])
WORDS = st.sampled_from(["", "a", "A", "ab", "é", "É", "%", "_", "null", "true", "1", "\U0001f600"])
SCALARS: st.SearchStrategy[Any] = st.none() | st.booleans() | NUMBERS | WORDS | TEXTS
VALUES = st.recursive(
    SCALARS | LARGER,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
PAYLOADS = st.dictionaries(KEYS, VALUES, max_size=4)
PATHS = st.lists(KEYS, min_size=1, max_size=3).map(tuple)
ORDERED = st.builds(
    Compare, PATHS, st.sampled_from(["<", "<=", ">", ">="]), NUMBERS | WORDS | TEXTS
)
TESTS: st.SearchStrategy[Where] = (
    ORDERED
    | st.builds(Compare, PATHS, st.sampled_from(["=", "!="]), SCALARS)
    | st.builds(OneOf, PATHS, st.lists(SCALARS, min_size=1, max_size=3).map(tuple))
    | st.builds(Contains, PATHS, SCALARS)
    | st.builds(Exists, PATHS)
)
WHERE = st.recursive(
    TESTS,
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(All, st.lists(inner, min_size=2, max_size=3).map(tuple))
        | st.builds(Some, st.lists(inner, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["a", "A", "ab", "a*b", "[a]", "a?", "a_b", "a%b", "x y", "is", 'q"', "a\\b"]
)
GLOBS = st.sampled_from(["*", "a*", "*b", "a*b", "[a]*", "a?*", "a_*", "a%*", "*\\*", "A*"])
ANY = st.lists(NAMES | GLOBS.map(Glob), max_size=2)
INSTANTS = st.none() | st.datetimes(timezones=st.just(UTC))
QUERIES = st.builds(
    Ax,
    contexts=ANY,
    actors=ANY,
    entities=ANY,
    where=st.none() | WHERE,
    since=INSTANTS,
    until=INSTANTS,
    limit=st.none() | st.integers(0, 10_000),
)
SAID = st.builds(
    Attestation,
    context=NAMES,
    actor=NAMES,
    entity=NAMES,
    payload=PAYLOADS,
    tags=st.lists(NAMES, max_size=2, unique=True),
)
PIECES = """
    a * is by since until on between and where limit not or = != < ( ) , " "a" in contains exists 3
    . a.b 2026-01-04 days ago today \\ ⌬ null -1 1e999
"""
NEARLY = st.lists(st.sampled_from(PIECES.split())).map(" ".join)


@given(QUERIES)
def test_the_text_of_a_query_is_read_as_that_query(ax: Ax) -> None:
    """`parse(str(ax)) == ax`, whatever stands in it."""
    assert parse(str(ax)) == ax


@given(st.text(max_size=80) | st.text(string.printable, max_size=80) | NEARLY)
@example("(" * 4_000)
@example("where " + "not " * 1_000 + "a exists")
@example("where " + "(" * 900 + "a exists" + ")" * 900)
@example('where a = "\\ud800"')
@example('"\\u0000"')
@example("a" * 5_000)
@example("since 1e5 days ago")
@settings(max_examples=settings().max_examples * 20)
def test_no_text_is_more_than_a_query_or_an_error_of_its_own(text: str) -> None:
    """Whatever is typed is a query that comes back the same, or an `AxError`."""
    try:
        ax = parse(text, as_of=AS_OF)
    except AxError:
        return
    assert parse(str(ax)) == ax


INDEXED = [("a",), ("b",), ("0",), ("a", "b"), ("is",)]


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    """Open an empty log, some of whose payload paths are indexed."""
    database = Database(url)
    database.upgrade()
    for path in INDEXED:
        indexes.make(database, path)
    yield Log(database, Sequencer(database))
    database.close()


@given(
    said=st.lists(SAID, min_size=1, max_size=5),
    queries=st.lists(
        st.builds(Ax, contexts=ANY, actors=ANY, entities=ANY, where=WHERE), max_size=4
    ),
    wheres=st.lists(WHERE, max_size=4),
)
@example(
    said=[
        Attestation(context="a", actor="a", entity="a", payload={"a": value})
        for value in (1 << 63, 99999999999999991611392, -(10**400), 1e23, "1", [1, "1"], {"a": 1})
    ],
    queries=[],
    wheres=[
        Compare(("a",), operator, value)
        for operator in ("=", "!=", "<", "<=", ">", ">=")
        for value in (1, 1e23, 9223372036854775807, "1", 9.223372036854775808e18)
    ],
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sql_finds_what_python_finds(
    log: Log, said: list[Attestation], queries: list[Ax], wheres: list[Where]
) -> None:
    """Of whatever was said both find the same, on both databases, by an index or without."""
    start = log.head()
    log.append(said)
    recorded = list(log.read(after=start))

    for ax in [*queries, *(Ax(where=where) for where in wheres)]:
        found = [one.position for one in log.read(ax, after=start)]
        assert found == [one.position for one in recorded if ax.matches(one)], (
            str(ax),
            [json.dumps(one.payload) for one in recorded],
        )


def test_a_query_bounds_times_in_both_forms_alike(log: Log) -> None:
    """Since and until are inclusive, in SQL as in Python."""
    log.append([Attestation(context="a", actor="a", entity=str(n), payload={}) for n in range(3)])
    log.append(Attestation(context="a", actor="a", entity="last", payload={}))
    recorded = list(log.read())
    first, last = recorded[0].recorded_at, recorded[-1].recorded_at

    for ax in (Ax(since=last), Ax(until=first), Ax(since=first, until=first)):
        found = [one.entity for one in log.read(ax)]
        assert found == [one.entity for one in recorded if ax.matches(one)]
        assert found
