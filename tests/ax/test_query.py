"""The query is a value: what it refuses, and what it takes for granted."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import make_url

from qntx_es import Ax, InvalidId, InvalidTime, QntxError
from qntx_es.ax import Span, search
from qntx_es.tables import attestations, tags


def test_a_single_text_is_one_name() -> None:
    """`contexts="seen"` means one context and never its letters."""
    assert Ax(contexts="seen") == Ax(contexts=["seen"]) == Ax(contexts=iter(("seen",)))
    assert Ax(contexts="seen").contexts == ("seen",)
    assert hash(Ax(entities="a")) == hash(Ax(entities=("a",)))


@pytest.mark.parametrize("part", ["contexts", "actors", "entities"])
@pytest.mark.parametrize("name", ["", "x" * 513, "a\x00", "\ud800", 7, None])
def test_a_name_that_nothing_can_have_is_refused(part: str, name: object) -> None:
    """What no attestation can be called is refused before any database is asked."""
    with pytest.raises(InvalidId):
        Ax(**{part: [name]})  # type: ignore[arg-type]


@pytest.mark.parametrize("bound", ["since", "until"])
def test_a_time_without_a_zone_is_refused(bound: str) -> None:
    """A time without a zone names no instant."""
    with pytest.raises(InvalidTime):
        Ax(**{bound: datetime(2026, 1, 4)})  # type: ignore[arg-type]  # noqa: DTZ001
    Ax(**{bound: datetime(2026, 1, 4, tzinfo=UTC)})  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [-1, -(2**70)])
def test_a_negative_limit_is_refused(limit: int) -> None:
    """A limit is nothing or more."""
    with pytest.raises(QntxError, match="limit"):
        Ax(limit=limit)
    assert Ax(limit=0).limit == 0


def test_a_query_is_a_value() -> None:
    """Equal parts are equal queries, and none can be changed."""
    assert Ax() == Ax(contexts=(), actors=[], entities=())
    with pytest.raises((AttributeError, TypeError)):
        Ax().limit = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
def test_every_value_is_a_bound_parameter(name: str) -> None:
    """No part of a query ever stands in the text of the statement."""
    hostile = "'; drop table qntx_attestations; --"
    ax = Ax(contexts=hostile, actors=[hostile, "b"], entities=hostile)

    dialect = make_url(f"{name}://").get_dialect()()
    span = Span(10, after=3, until=9, among=[4, 5], is_newest=True)
    asked = search(list(attestations.c), ax, span, attestations, tags, dialect=name)
    compiled = asked.compile(dialect=dialect)

    assert "drop" not in str(compiled)
    assert list(compiled.params.values()).count(hostile) == 4  # context and entity, in two searches
