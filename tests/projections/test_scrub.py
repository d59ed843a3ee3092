"""The scrubber finds rows that are not what the log makes, and cries wolf over no others."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Executable,
    Float,
    String,
    Table,
    delete,
    insert,
    update,
)

from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows, Settings, count, last
from qntx_es.domain import OnFailure
from qntx_es.errors import ScrubRefused
from qntx_es.projections import scrub as scrub_module
from qntx_es.projections.drift import Drift
from qntx_es.projections.status import ProjectorStatus

BOUND = 30.0
# 0.1 + 0.2, and its neighbour: they differ in their last bit.
SUM, NEIGHBOUR = 0.30000000000000004, 0.3


class Weighed(Payload, context="weighed"):
    """Something was weighed."""

    grams: float
    fails: bool = False


class Opened(Payload, context="opened"):
    """An account was opened, on whose word."""

    on: str


def make(*, on_failure: OnFailure = "stop", fold: bool = False) -> Domain:
    """Make a domain of independent things, with columns of every kind."""
    domain = Domain("scale", by_entity=True, on_failure=on_failure)
    sums = domain.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("grams", Float, nullable=False, default=0.0),
        Column("times", BigInteger, nullable=False, default=3),
        Column("last_at", DateTime(timezone=True)),
        Column("notes", JSON),
    )
    days = domain.table(
        "days",
        Column("day", BigInteger, primary_key=True),
        Column("thing", String, primary_key=True),
        Column("is_heavy", BigInteger, nullable=False),
    )
    over_all = domain.table(
        "over_all",
        Column("what", String, primary_key=True),
        Column("total", BigInteger, nullable=False, default=0),
    )
    if fold:
        counts = domain.table(
            "counts",
            Column("entity", String, primary_key=True),
            Column("times", BigInteger),
            Column("last", BigInteger),
        )
        domain.fold(Weighed, into=counts, key="entity", times=count(), last=last("position"))

    @domain.project(Weighed)
    def weigh(weighed: Recorded[Weighed], rows: Rows) -> None:
        if weighed.payload.fails:
            message = "it fell off"
            raise ValueError(message)
        rows.add(sums, weighed.entity, grams=weighed.payload.grams, times=1)
        rows.put(
            sums,
            entity=weighed.entity,
            last_at=weighed.recorded_at,
            notes={"grams": weighed.payload.grams},
        )
        rows.put(days, day=weighed.position % 2, thing=weighed.entity, is_heavy=1)
        rows.add(over_all, "all", total=1)

    return domain


@pytest.fixture
def host_of(url: str) -> Iterator[Callable[..., Host]]:
    """Make hosts over one database; what runs scrubs only if a test says so."""
    with ExitStack() as stack:

        def make_host(domain: Domain, *, rate: int = 0) -> Host:
            settings = Settings(scrub_entities_per_minute=rate)
            host = stack.enter_context(Host(url, [domain], settings=settings))
            host.upgrade()
            return host

        yield make_host


def weigh(host: Host, *grams: float, entity: str = "a", fails: bool = False) -> None:
    """Weigh a thing, some times."""
    host.append(
        Attestation(
            context="weighed", entity=entity, actor="x", payload={"grams": one, "fails": fails}
        )
        for one in grams
    )


def table(host: Host, name: str = "sums") -> Table:
    """Return a table of the domain."""
    return host.domain("scale").tables[f"scale_{name}"]


def patch(host: Host, statement: Executable) -> None:
    """Change live rows behind everybody's back."""
    with host.database.write() as connection:
        connection.execute(statement)


def status(host: Host) -> ProjectorStatus:
    """Return how the projector stands."""
    return {one.name: one for one in host.statuses()}["scale"]


def found(drifts: list[Drift]) -> list[tuple[str, str, str]]:
    """Return who drifted where, and how."""
    return [(one.entity, one.table, one.detail) for one in drifts]


@pytest.fixture
def host(host_of: Callable[..., Host]) -> Host:
    """Run the domain over a few weighings of two things."""
    host = host_of(make(fold=True))
    weigh(host, 0.1, 0.2)
    weigh(host, 5.0, 7.0, entity="b")
    host.catch_up()
    return host


def test_healthy_entities_are_clean(host: Host) -> None:
    """Every column of every kind is what the log makes, spelt alike; also of who is unknown."""
    assert host.scrub("scale", entities=["a", "b", "all", "nobody"]) == []
    assert host.scrub("scale", count=10) == []
    assert host.scrubbed["scale"].scrubbed == 14
    assert host.scrubbed["scale"].drifted == 0
    assert status(host).state == "live"


@pytest.mark.parametrize(
    ("change", "name", "detail"),
    [
        (lambda t: update(t).where(t.c.entity == "a").values(times=6), "sums", "differs in times"),
        (
            lambda t: update(t).where(t.c.entity == "a").values(grams=NEIGHBOUR),
            "sums",
            "differs in grams",
        ),
        (
            lambda t: update(t).where(t.c.entity == "a").values(notes={"grams": 1}),
            "sums",
            "differs in notes",
        ),
        (
            lambda t: update(t).where(t.c.entity == "a").values(last_at=datetime.now(UTC)),
            "sums",
            "differs in last_at",
        ),
        (lambda t: delete(t).where(t.c.entity == "a"), "sums", "is missing"),
        (lambda t: delete(t).where(t.c.thing == "a", t.c.day == 1), "days", "is missing"),
        (
            lambda t: update(t).where(t.c.entity == "a").values(times=9),
            "counts",
            "differs in times",
        ),
        (lambda t: delete(t).where(t.c.entity == "a"), "counts", "is missing"),
    ],
)
def test_what_somebody_changed_is_found(
    host: Host, change: Callable[[Table], Executable], name: str, detail: str
) -> None:
    """A patched row, a lost one, one bit of a float: the entity has drifted, and no other has."""
    patch(host, change(table(host, name)))

    drifts = host.scrub("scale", entities=["b", "a"])

    key = "('a',)" if name != "days" else "(1, 'a')"
    assert found(drifts) == [("a", f"scale_{name}", f"row {key} {detail}")]
    assert (host.scrubbed["scale"].scrubbed, host.scrubbed["scale"].drifted) == (2, 1)


def test_a_row_too_many_is_found(host_of: Callable[..., Host]) -> None:
    """A row that nothing in the log has made is found where the log speaks of its entity."""
    host = host_of(make(fold=True))
    host.append(Attestation(context="seen", entity="c", actor="x", payload={}))
    weigh(host, 1.0)
    host.catch_up()
    patch(host, insert(table(host)).values(entity="c", grams=0.0, times=3))

    drifts = host.scrub("scale", entities=["a", "c"])

    assert found(drifts) == [("c", "scale_sums", "row ('c',) is surplus")]


def test_drift_is_told_until_it_is_gone(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """The status tells which rows and since when, the log once; a clean scrub ends it."""
    good = table(host).c
    patch(host, update(table(host)).where(good.entity == "a").values(times=6))

    first, second = (host.scrub("scale", entities=["a"]) for _ in range(2))

    seen = status(host)
    assert first == second == list(seen.drifts)
    assert (seen.state, seen.drifted) == ("drifted", 1)
    assert seen.why is not None
    assert "`a` in scale_sums: row ('a',) differs in times, since" in seen.why
    assert "projections verify scale" in seen.why
    assert [one.levelno for one in caplog.records if "drifted" in one.message] == [logging.WARNING]

    patch(host, update(table(host)).where(good.entity == "a").values(times=5))
    assert host.scrub("scale", entities=["a"]) == []
    assert (status(host).state, status(host).drifts) == ("live", ())


@pytest.mark.parametrize("remedy", ["verify", "rebuild"])
def test_a_proof_of_all_rows_forgets_drift(host: Host, remedy: str) -> None:
    """A verify that finds all the same, and a rebuild, leave nobody drifted."""
    good = table(host).c
    patch(host, update(table(host)).where(good.entity == "a").values(times=6))
    host.scrub("scale", entities=["a"])

    assert host.verify("scale").is_same is False
    assert status(host).state == "drifted"
    if remedy == "verify":
        patch(host, update(table(host)).where(good.entity == "a").values(times=5))
        assert host.verify("scale").is_same
    else:
        host.rebuild("scale")

    assert status(host).state == "live"
    assert host.scrub("scale", entities=["a"]) == []


@pytest.mark.parametrize("choice", ["park", "skip"])
def test_who_waits_and_what_is_skipped_is_no_drift(
    host_of: Callable[..., Host], choice: OnFailure
) -> None:
    """The rows of a parked entity are those of before, and what was skipped is not missed."""
    host = host_of(make(on_failure=choice))
    weigh(host, 1.0)
    weigh(host, 2.0, fails=True)
    weigh(host, 3.0)
    host.catch_up()

    assert host.scrub("scale", entities=["a"]) == []
    assert len(host.parked("scale")) == (1 if choice == "park" else 0)

    if choice == "park":
        host.skip("scale", 2, "it fell off")
        host.retry("scale", entity="a")
        assert host.parked("scale") == []
        assert host.scrub("scale", entities=["a"]) == []


def test_rows_that_others_add_to_are_left_to_a_verify(host_of: Callable[..., Host]) -> None:
    """A row that another entity has added to is not what its own attestations make: no drift."""
    domain = make()
    accounts = domain.table(
        "accounts",
        Column("entity", String, primary_key=True),
        Column("opened", BigInteger, nullable=False, default=0),
    )

    @domain.project(Opened)
    def opened(one: Recorded[Opened], rows: Rows) -> None:
        rows.add(accounts, one.entity, opened=1)
        rows.add(accounts, one.payload.on, opened=1)

    host = host_of(domain)
    said = [("d", "e"), ("e", "d"), ("e", "f")]
    host.append(
        Attestation(context="opened", entity=who, actor="x", payload={"on": on}) for who, on in said
    )
    weigh(host, 1.0, entity="f")
    host.catch_up()

    assert host.scrub("scale", entities=["f", "d", "e"]) == []


def test_an_entity_of_too_much_is_left_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whom more is said than memory should hold, nothing is looked at."""
    monkeypatch.setattr(scrub_module, "ATTESTATIONS_MAX", 1)
    patch(host, delete(table(host)))

    assert host.scrub("scale", entities=["a"]) == []
    assert host.scrubbed["scale"].scrubbed == 0


def test_only_independent_entities_are_scrubbed(host_of: Callable[..., Host]) -> None:
    """Where handlers see all rows an entity cannot be proved by itself, and the error says so."""
    host = host_of(Domain("scale"))

    with pytest.raises(ScrubRefused, match=r"by_entity=True.*projections verify scale"):
        host.scrub("scale")


def test_a_running_host_scrubs_what_it_holds_under_load(
    host_of: Callable[..., Host],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While appends go on, and the domain is cut, nobody is said to have drifted; a patch is."""
    monkeypatch.setattr(scrub_module, "REST", 0)
    host = host_of(make(fold=True), rate=6_000)
    with host.running():
        ended = threading.Event()

        def load() -> None:
            for number in range(10_000):
                if ended.is_set():
                    return
                weigh(host, number / 7, entity=f"e{number % 5}")

        loading = threading.Thread(target=load)
        loading.start()
        host.cut("scale", into=3)
        assert wait_until(lambda: host.scrubbed["scale"].scrubbed >= 20)
        ended.set()
        loading.join()
        host.wait_for(host.log.head(), "scale", BOUND)
        assert host.scrubbed["scale"].drifted == 0
        assert "drifted" not in caplog.text

        patch(host, update(table(host)).values(times=1))
        assert wait_until(lambda: status(host).state == "drifted")


def wait_until(holds: Callable[[], bool]) -> bool:
    """Look until something holds, and return whether it ever did."""
    deadline = time.monotonic() + BOUND
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held
