"""P11: a log of old payloads, lifted, gives the rows of the log that says the same today."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from sqlalchemy import BigInteger, Column, Float, String, select

from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows
from qntx_es.attestation import canonical
from qntx_es.upcasting import Chain, Upcaster

ENTITIES = st.sampled_from(["a", "b"])
NUMBERS = st.integers(-(10**9), 10**9)
FLOATS = st.floats(-1e6, 1e6)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5)


class First(BaseModel):
    """Version 1: cents as a float of the whole unit, one note."""

    price: float
    note: str = ""


class Priced(Payload, context="priced", schema_version=3):
    """Version 3, today: whole cents, and notes by their language."""

    cents: int
    notes: dict[str, str] = Field(default_factory=dict)
    weight: float | None = None


def to_cents(old: First) -> dict[str, Any]:
    """Lift 1 to 2: whole cents."""
    return {"cents": round(old.price * 100), "note": old.note}


def to_notes(old: dict[str, Any]) -> dict[str, Any]:
    """Lift 2 to 3: a note has a language."""
    note = old.pop("note", "")
    return {**old, "notes": {"": note} if note else {}}


CHAIN = Chain(Priced, [Upcaster(Priced, 1, to_cents, First), Upcaster(Priced, 2, to_notes)])
OF_VERSION: dict[int, st.SearchStrategy[dict[str, Any]]] = {
    1: st.fixed_dictionaries({"price": FLOATS}, optional={"note": TEXTS, "ignored": NUMBERS}),
    2: st.fixed_dictionaries({"cents": NUMBERS}, optional={"note": TEXTS, "weight": FLOATS}),
    3: st.fixed_dictionaries(
        {"cents": NUMBERS}, optional={"notes": st.dictionaries(TEXTS, TEXTS, max_size=2)}
    ),
}
SAID = st.integers(1, 3).flatmap(lambda one: st.tuples(st.just(one), ENTITIES, OF_VERSION[one]))


def pricing(*, version: int = 1) -> Domain:
    """Return a domain whose rows show every field, and whose upcasters read every version."""
    domain = Domain("pricing", version=version)
    prices = domain.table(
        "prices",
        Column("entity", String, primary_key=True),
        Column("cents", BigInteger, nullable=False, default=0),
        Column("notes", String),
        Column("weight", Float),
    )
    domain.upcast(Priced, from_=1)(to_cents)
    domain.upcast(Priced, from_=2)(to_notes)

    @domain.project(Priced)
    def price(priced: Recorded[Priced], rows: Rows) -> None:
        rows.add(prices, priced.entity, cents=priced.payload.cents)
        notes = repr(sorted(priced.payload.notes.items()))
        rows.put(prices, entity=priced.entity, notes=notes, weight=priced.payload.weight)

    return domain


def rows_of(host: Host, whose: str) -> list[tuple[object, ...]]:
    """Return the rows of the entities of one log, by key and without it."""
    prices = host.domains["pricing"].tables["pricing_prices"]
    asked = select(prices).where(prices.c.entity.startswith(whose)).order_by(prices.c.entity)
    with host.database.read() as connection:
        return [(row.entity.removeprefix(whose), *row[1:]) for row in connection.execute(asked)]


def attested(whose: str, version: int, entity: str, payload: dict[str, Any]) -> Attestation:
    """Say a price, about an entity of one log or the other."""
    return Attestation(
        context="priced",
        entity=whose + entity,
        actor="x",
        payload=payload,
        schema_version=version,
    )


def lifted(version: int, payload: dict[str, Any]) -> dict[str, Any]:
    """Return what an old payload would say today."""
    values: dict[str, Any] = json.loads(CHAIN.text_of(version, canonical(payload)))
    return values


@pytest.fixture
def new_url(request: pytest.FixtureRequest, on: str, tmp_path: Path) -> Callable[[], str]:
    """Name a new database for every example."""
    if on == "sqlite":
        return lambda: f"sqlite:///{tmp_path / uuid4().hex}.db"
    server = request.getfixturevalue("postgres_server")
    return lambda: str(server.create_database())


@pytest.mark.parametrize("on", ["sqlite", "postgresql"])
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(SAID, max_size=6))
def test_lifted_is_as_good_as_new(
    new_url: Callable[[], str], said: list[tuple[int, str, dict[str, Any]]]
) -> None:
    """Old payloads and their lifted selves give the same rows: live, rebuilt, in a new version."""
    url = new_url()
    with closing(Host(url, [pricing()])) as host:
        host.upgrade()
        host.append(attested("old/", *one) for one in said)
        host.append(
            attested("new/", 3, entity, lifted(version, payload))
            for version, entity, payload in said
        )
        host.catch_up()
        rows = rows_of(host, "old/")

        assert rows == rows_of(host, "new/")
        assert host.rebuild("pricing").is_same
        with closing(Host(url, [pricing(version=2)])) as newer:
            newer.rebuild("pricing")
            assert rows == rows_of(newer, "old/") == rows_of(newer, "new/")


@given(said=SAID)
def test_lifting_is_total_and_pure(said: tuple[int, str, dict[str, Any]]) -> None:
    """Whatever an old version allowed is lifted, always to the same text, which then stays."""
    version, _, payload = said
    text = canonical(payload)

    today = CHAIN.text_of(version, text)

    assert CHAIN.text_of(version, text) == today
    assert CHAIN.text_of(3, today) == today
    assert CHAIN.decode_of(3)(today) == CHAIN.decode_of(version)(text)
