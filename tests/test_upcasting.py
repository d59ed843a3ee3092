"""Old payloads are read as if they had been written today, and the log keeps what was said."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import BigInteger, Column, String, select

from qntx_es import (
    Attestation,
    Domain,
    DomainRefused,
    Host,
    InvalidPayload,
    Payload,
    ProjectorStopped,
    Recorded,
    Rows,
    UpcastFailed,
)
from qntx_es.upcasting import Chain, Upcaster


class Walked(Payload, context="walked", schema_version=3):
    """Somebody walked so many metres, and where."""

    metres: int
    places: tuple[str, ...] = ()


class WalkedFirst(BaseModel):
    """What the first version said: whole kilometres, and one place."""

    km: int
    place: str | None = None


def walking(*, version: int = 1) -> Domain:
    """Return a domain that adds up metres, and reads all three versions."""
    domain = Domain("walking", version=version, emits=(Walked,))
    walks = domain.table(
        "walks",
        Column("entity", String, primary_key=True),
        Column("metres", BigInteger, nullable=False, default=0),
        Column("last", String),
    )

    @domain.upcast(Walked, from_=1)
    def in_metres(old: WalkedFirst) -> dict[str, Any]:
        return {"metres": old.km * 1000, "place": old.place}

    @domain.upcast(Walked, from_=2)
    def many_places(old: dict[str, Any]) -> dict[str, Any]:
        place = old.pop("place", None)
        return {**old, "places": [] if place is None else [place]}

    @domain.project(Walked)
    def add(walked: Recorded[Walked], rows: Rows) -> None:
        rows.add(walks, walked.entity, metres=walked.payload.metres)
        rows.put(walks, entity=walked.entity, last=",".join(walked.payload.places))

    return domain


def said(payload: dict[str, Any], schema_version: int) -> Attestation:
    """Say that ada walked, as a version of the class had it."""
    return Attestation(
        context="walked",
        entity="ada",
        actor="ada@home",
        payload=payload,
        schema_version=schema_version,
    )


OLD = [
    said({"km": 2, "place": "Ulm"}, 1),
    said({"km": 1}, 1),
    said({"metres": 300, "place": "Bonn"}, 2),
    said({"metres": 50, "places": ["Kiel", "Jena"]}, 3),
]


@pytest.fixture
def host_of(url: str) -> Iterator[Callable[..., Host]]:
    """Make hosts over one database of each kind."""
    hosts: list[Host] = []

    def make(*domains: Domain) -> Host:
        hosts.append(Host(url, domains))
        hosts[-1].upgrade()
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def rows_of(host: Host) -> list[tuple[object, ...]]:
    """Return the read model."""
    table = host.domains["walking"].tables["walking_walks"]
    with host.database.read() as connection:
        return [tuple(row) for row in connection.execute(select(table))]


def test_every_version_is_read_as_the_last_one(host_of: Callable[..., Host]) -> None:
    """Payloads of three versions, lifted by a model and by a mapping, give one read model."""
    host = host_of(walking())
    host.append(OLD)

    host.catch_up()

    assert rows_of(host) == [("ada", 3350, "Kiel,Jena")]
    assert host.rebuild("walking").is_same


def test_the_log_keeps_what_was_said(host_of: Callable[..., Host]) -> None:
    """A query shows the payload as it was written, with the version that wrote it."""
    host = host_of(walking())
    host.append(OLD)

    found = host.ax("ada is walked where km exists")

    assert [(one.payload, one.schema_version) for one in found] == [
        ({"km": 2, "place": "Ulm"}, 1),
        ({"km": 1}, 1),
    ]


def test_a_context_that_nobody_knows_is_kept_and_found(host_of: Callable[..., Host]) -> None:
    """What no domain declares, in a version that nobody knows, is appended, passed over, found."""
    host = host_of(walking())
    odd = Attestation(context="odd", entity="ada", actor="x", payload={"a": [1]}, schema_version=7)
    host.append([odd, said({"km": 1}, 1)])

    host.catch_up()

    assert rows_of(host) == [("ada", 1000, "")]
    (found,) = host.ax("ada is odd where a contains 1")
    assert (found.payload, found.schema_version) == ({"a": [1]}, 7)


def test_what_newer_code_says_is_never_passed_over(host_of: Callable[..., Host]) -> None:
    """A version above the class stops the projector, and newer code goes on from there."""
    host = host_of(walking())
    host.append([said({"metres": 5}, 3), said({"metres": 7, "steps": 9}, 4)])

    with pytest.raises(ProjectorStopped, match=r"at position 2.*SchemaVersionTooNew.*upgrade"):
        host.catch_up()

    assert rows_of(host) == [("ada", 5, "")]
    assert {one.name: one.position for one in host.statuses()}["walking"] == 1

    class WalkedLater(Payload, context="walked", schema_version=4):
        metres: int

    newer = Domain("walking")
    walks = newer.table(
        "walks",
        Column("entity", String, primary_key=True),
        Column("metres", BigInteger, nullable=False, default=0),
        Column("last", String),
    )
    for version in (1, 2, 3):
        newer.upcast(WalkedLater, from_=version)(as_it_is)

    @newer.project(WalkedLater)
    def add(walked: Recorded[WalkedLater], rows: Rows) -> None:
        rows.add(walks, walked.entity, metres=walked.payload.metres)

    upgraded = host_of(newer)
    upgraded.catch_up()
    assert rows_of(upgraded) == [("ada", 12, "")]


def as_it_is(old: dict[str, Any]) -> dict[str, Any]:
    """Lift by changing nothing."""
    return old


def test_a_handler_need_not_look_at_a_payload_to_be_stopped_by_a_newer_one(
    host_of: Callable[..., Host],
) -> None:
    """Newer code may mean another thing by the whole statement, so it is not counted either."""
    domain = Domain("counting")
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("n", BigInteger, nullable=False, default=0),
    )

    class WalkedAgain(Payload, context="walked"):
        pass

    @domain.project(WalkedAgain)
    def count(walked: Recorded[WalkedAgain], rows: Rows) -> None:
        rows.add(counts, walked.entity, n=1)

    host = host_of(domain)
    host.append(said({"km": 1}, 2))

    with pytest.raises(ProjectorStopped, match=r"`count` raised .*SchemaVersionTooNew"):
        host.catch_up()


def test_an_append_in_an_old_version_is_held_against_what_it_lifts_to(
    host_of: Callable[..., Host],
) -> None:
    """What the upcasters could not lift, or the class could not read then, is refused by name."""
    host = host_of(walking())

    with pytest.raises(UpcastFailed, match=r"`in_metres` lifts no such walked 1: km: "):
        host.append(said({"km": "far"}, 1))
    with pytest.raises(InvalidPayload, match="lifted from version 2: metres: "):
        host.append(said({"metres": "far"}, 2))
    assert host.ax() == []

    host.append([*OLD, said({"whatever": "it is"}, 4)])
    assert len(host.ax()) == 5


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (None, "it gave a NoneType, and not a mapping"),
        ([1], "it gave a list"),
        (KeyError("place"), "KeyError: 'place'"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_an_upcaster_that_fails_is_named(returned: object, why: str) -> None:
    """The error says which upcaster, of which context and version, and what it did."""

    def lift(_: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever an author may write
        if isinstance(returned, Exception):
            raise returned
        return returned

    chain = Chain(Walked, [Upcaster(Walked, 2, lift)])

    with pytest.raises(UpcastFailed, match=f"`lift` lifts no such walked 2: {why}"):
        chain.decode_of(2)("{}")


def test_a_failing_upcaster_stops_the_projector_before_its_attestation(
    host_of: Callable[..., Host],
) -> None:
    """What cannot be lifted is a failure of the projector, which stands with the rows before."""
    host = host_of()
    host.append([said({"metres": 5}, 3), said({"kilometres": 1}, 1)])
    with closing(Host(host.database.engine, [walking()])) as reading:
        reading.upgrade()
        with pytest.raises(ProjectorStopped, match=r"at position 2.*UpcastFailed.*in_metres"):
            reading.catch_up()
        assert rows_of(reading) == [("ada", 5, "")]


def problems_of(domain: Domain) -> str:
    """Return why a host refuses this domain, as one text; empty where it does not."""
    try:
        Host("sqlite://", [domain])
    except DomainRefused as refused:
        return "\n".join(refused.problems)
    return ""


@pytest.mark.parametrize(
    ("lifted", "missing"), [((), {1, 2}), ((1,), {2}), ((2,), {1}), ((1, 2), set())]
)
def test_a_gap_in_a_chain_is_refused_at_registration(
    lifted: tuple[int, ...], missing: set[int]
) -> None:
    """Every version but the last has an upcaster, or the domain is refused, each gap named."""
    domain = Domain("walking")
    for version in lifted:
        domain.upcast(Walked, from_=version)(as_it_is)

    @domain.project(Walked)
    def add(walked: Recorded[Walked], rows: Rows) -> None: ...

    found = problems_of(domain)

    for version in (1, 2):
        told = f"nothing lifts `walked` from version {version}"
        assert (told in found) == (version in missing)
        assert (f"walking.upcast(Walked, from_={version})" in found) == (version in missing)


def test_a_chain_of_what_is_only_said_needs_no_upcaster_but_no_gap_either() -> None:
    """A class that nobody reads may have none; one upcaster makes it a chain."""
    silent = Domain("walking", emits=(Walked,))
    assert problems_of(silent) == ""

    silent.upcast(Walked, from_=1)(as_it_is)
    assert "nothing lifts `walked` from version 2" in problems_of(silent)


def test_what_is_wrong_with_an_upcaster_is_said_at_once() -> None:
    """A version that is none, a second one, a wrong signature, a class without a context."""
    domain = Domain("walking")

    class First(Payload, context="first"):
        pass

    class Nowhere(Payload):
        pass

    async def later(old: dict[str, Any]) -> dict[str, Any]:
        return old

    def two(old: dict[str, Any], other: object) -> dict[str, Any]:  # noqa: ARG001
        return old

    for version in (0, 3, 4):
        domain.upcast(Walked, from_=version)(as_it_is)
    for _ in range(2):
        domain.upcast(Walked, from_=1)(as_it_is)
    domain.upcast(Walked, from_=2)(later)  # type: ignore[arg-type]
    domain.upcast(Walked, from_=2)(two)  # type: ignore[arg-type]
    domain.upcast(First, from_=1)(as_it_is)
    domain.upcast(Nowhere, from_=1)(as_it_is)

    found = problems_of(domain)

    assert "from_=0 leads nowhere; `Walked` is of version 3" in found
    assert "from_=3 leads nowhere" in found
    assert "from_=4 leads nowhere" in found
    assert "upcaster `as_it_is`: version 1 is lifted by another one already" in found
    assert "upcaster `later`: an async function is not run here" in found
    assert "upcaster `two`: it takes one argument" in found
    assert "`First` is of version 1, and there is none before" in found
    assert "Nowhere'> is no Payload class with a context" in found


def test_each_class_of_a_context_has_a_chain_of_its_own(host_of: Callable[..., Host]) -> None:
    """Two readers in one domain may know a context by two classes, each lifted by its own."""
    domain = walking()
    others = domain.table(
        "others",
        Column("entity", String, primary_key=True),
        Column("km", BigInteger, nullable=False, default=0),
    )

    class WalkedKm(Payload, context="walked", schema_version=3):
        km: int

    domain.upcast(WalkedKm, from_=1)(as_it_is)

    @domain.upcast(WalkedKm, from_=2)
    def in_km(old: dict[str, Any]) -> dict[str, Any]:
        return {"km": old.get("km", 0)}

    @domain.project(WalkedKm)
    def add_km(walked: Recorded[WalkedKm], rows: Rows) -> None:
        rows.add(others, walked.entity, km=walked.payload.km)

    host = host_of(domain)
    host.append(OLD[:3])
    host.catch_up()

    assert rows_of(host) == [("ada", 3300, "Bonn")]
    with host.database.read() as connection:
        assert [tuple(row) for row in connection.execute(select(others))] == [("ada", 3)]
