"""What fails is parked or skipped as the domain has chosen, retried or skipped by a person."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Column, Integer, String, UniqueConstraint, insert, select

from qntx_es import (
    Attestation,
    Domain,
    DomainRefused,
    Host,
    LedgerChanged,
    NothingToRetry,
    Payload,
    ProjectorPaused,
    ProjectorStopped,
    ReadRows,
    Recorded,
    Rows,
    SkipRefused,
    UnknownDomain,
    faults,
)
from qntx_es.domain import OnFailure
from qntx_es.projections import runner as running
from qntx_es.projections.ledger import PARKED_MAX
from qntx_es.tables import parked

BOUND = 20.0
HostOf = Callable[..., Host]
SYSTEM = "qntx@system"


class Moved(Payload, context="moved"):
    """Something moved."""

    n: int


class Told(Payload, context="told"):
    """A move was told of."""


@dataclass
class Handler:
    """What a test lets a handler do: fail at positions, as long as it wants."""

    failing: set[int] = field(default_factory=set)
    tries: list[int] = field(default_factory=list)
    error: Callable[[], Exception] = LookupError

    def __call__(self, moved: Recorded[Moved]) -> None:
        """Fail where it is to fail."""
        if moved.position in self.failing:
            self.tries.append(moved.position)
            raise self.error()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once: how long a runner pauses is no part of what is promised here."""
    monkeypatch.setattr(running, "RETRY_SECONDS", 0.001)


def make(
    handler: Handler, on_failure: OnFailure = "park", *, version: int = 1, name: str = "ledger"
) -> Domain:
    """Make a domain that numbers moves across all entities, and tells of each."""
    domain = Domain(name, on_failure=on_failure, version=version)
    places = domain.table(
        "places",
        Column("entity", String, primary_key=True),
        Column("last", Integer, nullable=False),
        Column("order", String, nullable=False),
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        handler(moved)
        every = rows.get(places, "every")
        number = 1 if every is None else every.last + 1
        rows.put(places, entity="every", last=number, order="")
        before = rows.get(places, moved.entity)
        order = "" if before is None else before.order
        rows.put(
            places, entity=moved.entity, last=number, order=f"{order} {moved.payload.n}".strip()
        )

    @domain.derive(Moved)
    def tell(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:
        row = rows.get(places, moved.entity)
        yield domain.attest(Told(), entity=moved.entity, tags=[row.order] if row else [])

    return domain


def moves(*entities: str) -> list[Attestation]:
    """Return a numbered move of each of these."""
    return [
        Attestation(context="moved", entity=entity, actor="a", payload={"n": n})
        for n, entity in enumerate(entities, 1)
    ]


def orders(host: Host, name: str = "ledger") -> dict[str, str]:
    """Return in which order a domain has met the moves of each entity."""
    return {row[0]: row[2] for row in rows_of(host, name) if row[0] != "every"}


def rows_of(host: Host, name: str = "ledger") -> list[tuple[Any, ...]]:
    """Return all rows of a domain."""
    table = host.domain(name).tables[f"{name}_places"]
    with host.database.read() as connection:
        return sorted(map(tuple, connection.execute(select(table))))


def told(host: Host) -> list[str]:
    """Return about whom it was told, in the order of entities."""
    return sorted(one.entity for one in host.ax(contexts="told"))


def state_of(host: Host) -> str:
    """Return the state that the projector shows."""
    return {one.name: one.state for one in host.statuses()}["ledger"]


@pytest.mark.failing
def test_an_entity_is_parked_and_the_others_go_on(host_of: HostOf) -> None:
    """What fails, and all that follows about its entity, waits; status and log say so."""
    handler = Handler({2})
    host = host_of(make(handler))
    host.append(moves("a", "b", "c", "b", "a", "b"))

    host.catch_up()

    assert orders(host) == {"a": "1 5", "c": "3"}
    assert told(host) == ["a", "a", "c"]
    (waits,) = host.parked("ledger")
    assert (waits.entity, waits.position, waits.handler) == ("b", 2, "move")
    status = {one.name: one for one in host.statuses()}["ledger"]
    assert (status.state, status.parked, status.lag) == ("live", 1, 0)
    (said,) = host.ax(contexts="qntx.parked", entities="ledger")
    assert (said.actor, said.tags, said.payload["position"]) == (SYSTEM, ("b",), 2)
    assert said.caused_by == host.ax(contexts="moved")[1].id
    assert len(handler.tries) == 1 + 3  # found in a batch, then three times alone


@pytest.mark.failing
@pytest.mark.derive_once
def test_a_retry_works_an_entity_off_in_order(host_of: HostOf) -> None:
    """Once the handler is mended a retry brings the entity up to date, and says each thing once."""
    handler = Handler({2})
    host = host_of(make(handler))
    host.append(moves("a", "b", "c", "b", "a", "b"))
    host.catch_up()
    handler.failing.clear()

    assert host.retry("ledger", entity="b", by="ann") == []

    assert orders(host) == {"a": "1 5", "b": "2 4 6", "c": "3"}
    assert told(host) == ["a", "a", "b", "b", "b", "c"]
    assert host.parked("ledger") == []
    (said,) = host.ax(contexts="qntx.retried")
    assert (said.actor, said.payload) == ("ann", {"parked_entity": "b", "position": 2})
    (done,) = host.ax(contexts="qntx.unparked")
    assert (done.actor, done.caused_by, done.payload["at"]) == (SYSTEM, said.id, said.position)


def test_what_fails_again_stays_parked_where_it_failed(host_of: HostOf) -> None:
    """A retry takes what works of an entity, and the rest waits from where it failed now."""
    handler = Handler({2, 4})
    host = host_of(make(handler))
    host.append(moves("a", "b", "c", "b", "a", "b"))
    host.catch_up()
    handler.failing.remove(2)

    (still,) = host.retry("ledger", 2)

    assert (still.entity, still.position) == ("b", 4)
    assert orders(host) == {"a": "1 5", "b": "2", "c": "3"}
    handler.failing.clear()
    assert host.retry("ledger") == []
    assert orders(host)["b"] == "2 4 6"


@pytest.mark.failing
def test_a_rebuild_does_what_live_did(host_of: HostOf) -> None:
    """Rows, and what is parked, are the same after a rebuild, though the handler fails no more."""
    handler = Handler({2, 3, 6})
    host = host_of(make(handler))
    host.append(moves("a", "b", "c", "b", "a", "b"))
    host.catch_up()
    handler.failing = {6}
    host.retry("ledger", entity="b")
    handler.failing.clear()
    before, waiting = rows_of(host), host.parked("ledger")
    said = host.log.head()

    rebuilt = host.rebuild("ledger")

    assert rebuilt.is_same
    assert rows_of(host) == before
    assert host.parked("ledger") == waiting
    assert {one.entity: one.position for one in waiting} == {"c": 3, "b": 6}
    assert [one.context for one in host.log.read(after=said)] == ["qntx.rebuilt"]
    assert host.retry("ledger") == []
    assert orders(host) == {"a": "1 5", "b": "2 4 6", "c": "3"}
    assert host.rebuild("ledger").is_same


def test_a_new_version_meets_what_was_parked_in_its_place(host_of: HostOf) -> None:
    """A new version parks nothing that the old one did, and skips what was skipped."""
    handler = Handler({2, 3})
    host = host_of(make(handler))
    host.append(moves("a", "b", "c", "b"))
    host.catch_up()
    host.skip("ledger", 3, "said by mistake")
    mended = host_of(make(Handler(), version=2))

    mended.rebuild("ledger")

    assert orders(mended) == {"a": "1", "b": "2 4"}
    assert told(mended) == ["a", "b", "b"]
    assert [one.tags for one in mended.ax(contexts="told", entities="b")] == [("2",), ("2 4",)]
    mended.catch_up()
    assert told(mended) == ["a", "b", "b"]
    assert mended.parked("ledger") == []
    with mended.database.read() as connection:
        assert connection.execute(select(parked)).all() == []


@pytest.mark.failing
@pytest.mark.parametrize("size", [1, 2, 7])
def test_what_is_skipped_is_left_out_alone(host_of: HostOf, size: int) -> None:
    """Of a domain that skips only what fails is left out, found by any cutting, and it is said."""
    handler = Handler({2, 5})
    host = host_of(make(handler, "skip"))
    host._projectors["ledger"].runners[0].size = size  # noqa: SLF001 - a host chooses its sizes by time
    host.append(moves("a", "b", "c", "b", "a", "b"))

    host.catch_up()

    assert orders(host) == {"a": "1", "b": "4 6", "c": "3"}
    said = host.ax(contexts="qntx.skipped")
    assert [(one.actor, one.payload["position"]) for one in said] == [(SYSTEM, 2), (SYSTEM, 5)]
    handler.failing.clear()
    assert host.rebuild("ledger").is_same


class Wide(Payload, context="moved"):
    """A move as somebody reads it who wants more of it."""

    n: int
    width: int


class Newer(Payload, context="moved", schema_version=2):
    """A move as newer code says it."""

    n: int


@pytest.mark.parametrize(
    ("on_failure", "payload", "version", "is_stopped"),
    [
        pytest.param("skip", Wide, 1, True, id="the undecodable is not skipped"),
        pytest.param("park", Wide, 1, False, id="the undecodable is parked"),
        pytest.param("skip", Moved, 2, True, id="what is newer is not skipped"),
        pytest.param("park", Moved, 2, True, id="what is newer is not parked"),
    ],
)
def test_what_no_handler_has_seen_is_not_left_out(
    host_of: HostOf,
    on_failure: OnFailure,
    payload: type[Moved | Wide],
    version: int,
    is_stopped: bool,  # noqa: FBT001 - a case
) -> None:
    """What cannot be read is never skipped, and what newer code wrote is not parked either."""
    domain = Domain("ledger", on_failure=on_failure)

    @domain.project(payload)
    def read(moved: Recorded[Any], rows: Rows) -> None:  # noqa: ARG001 - its shape
        _ = moved.payload.n

    host = host_of(domain)
    said = Attestation(
        context="moved", entity="e", actor="a", payload={"n": 1}, schema_version=version
    )
    host.log.append(said)

    if is_stopped:
        with pytest.raises(ProjectorStopped):
            host.catch_up()
    else:
        host.catch_up()

    assert state_of(host) == ("stopped" if is_stopped else "live")
    assert len(host.parked("ledger")) == (0 if is_stopped else 1)


def test_a_row_that_the_database_refuses_parks_its_entity(host_of: HostOf) -> None:
    """A violated constraint is the failure of whoever put the row, also where it is worked off."""
    domain = Domain("ledger", on_failure="park")
    codes = domain.table(
        "codes",
        Column("entity", String, primary_key=True),
        Column("code", Integer),
        UniqueConstraint("code"),
    )

    @domain.project(Moved)
    def take(moved: Recorded[Moved], rows: Rows) -> None:
        n = moved.payload.n
        rows.put(codes, entity=moved.entity, code=n % 3 if n < 10 else n)

    host = host_of(domain)
    host.append(moves("a", "b", "c", "d", "e"))
    host.catch_up()
    assert [(one.entity, one.position) for one in host.parked("ledger")] == [("d", 4), ("e", 5)]

    host.append(Attestation(context="moved", entity="a", actor="a", payload={"n": 10}))
    still = host.retry("ledger")

    assert [(one.entity, one.position) for one in still] == [("e", 5)]
    assert host.rebuild("ledger").is_same


def test_a_projector_that_parks_too_many_stops(host_of: HostOf) -> None:
    """Beyond a thousand parked entities the projector stops, and says that it parks no more."""
    handler = Handler({1})
    host = host_of(make(handler))
    with host.database.write() as connection:
        row = {"domain": "ledger", "version": 1, "position": 0, "handler": "h", "error": "e"}
        crowd = [{**row, "entity": f"crowd {n}"} for n in range(PARKED_MAX)]
        connection.execute(insert(parked), crowd)
    host.append(moves("one too many"))

    with pytest.raises(ProjectorStopped, match="1000 entities are parked"):
        host.catch_up()

    assert len(host.parked("ledger")) == PARKED_MAX


def test_a_stopped_projector_rests_until_it_is_told_to_go_on(host_of: HostOf) -> None:
    """While a host runs a handler that has failed is not tried again, until a person retries."""
    handler = Handler({1})
    host, other = host_of(make(handler, "stop")), host_of(make(handler, "stop"))
    host.append(moves("a", "b"))
    runner = host._projectors["ledger"].runners[0]  # noqa: SLF001 - one look of a running host after another
    with pytest.raises(ProjectorStopped):
        runner.advance()
    tried = len(handler.tries)
    for _ in range(3):
        assert runner.advance().position == 0
    assert len(handler.tries) == tried

    with pytest.raises(ProjectorStopped):
        other.retry("ledger", 1)
    handler.failing.clear()
    other.retry("ledger")

    assert orders(host) == {"a": "1", "b": "2"}
    assert runner.advance().position == host.log.head()
    assert state_of(host) == "live"


def test_a_skip_lets_a_stopped_projector_go_on(host_of: HostOf) -> None:
    """A running host that stopped goes on behind what a person skips, and a rebuild agrees."""
    handler = Handler({2})
    host, other = host_of(make(handler, "stop")), host_of()
    last = host.append(moves("a", "b", "b"))[-1].position
    runner = host._projectors["ledger"].runners[0]  # noqa: SLF001 - as a running host has it
    with pytest.raises(ProjectorStopped):
        runner.advance()

    assert other.skip("ledger", 2, "no such thing", by="ann")

    assert not other.skip("ledger", 2, "no such thing", by="bob")
    host.catch_up()
    host.wait_for(last, "ledger", BOUND)
    assert orders(host) == {"a": "1", "b": "3"}
    (said,) = host.ax(contexts="qntx.skipped")
    assert (said.actor, said.payload["reason"]) == ("ann", "no such thing")
    handler.failing.clear()
    assert host.rebuild("ledger").is_same


def test_a_skip_frees_an_inline_projector(host_of: HostOf) -> None:
    """What degrades an inline projector can be skipped by a person, without its code."""
    domain = Domain("ledger", inline=True)
    places = domain.table(
        "places", Column("entity", String, primary_key=True), Column("order", Integer)
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        if moved.payload.n == 1:
            raise LookupError
        rows.put(places, entity=moved.entity, order=moved.payload.n)

    host = host_of(domain)
    host.append(moves("a", "b"))
    assert state_of(host) == "degraded"

    host_of().skip("ledger", 1, "no such thing")

    host.catch_up()
    assert rows_of(host) == [("b", 2)]
    assert state_of(host) == "inline"
    assert host.rebuild("ledger").is_same


def test_what_has_had_its_effect_is_not_skipped(host_of: HostOf) -> None:
    """A skip never makes rows differ from their log: it is refused where they hold it already."""
    handler = Handler({2})
    host = host_of(make(handler))
    host.append(moves("a", "b", "b"))
    host.catch_up()

    with pytest.raises(SkipRefused, match="has projected position 1 already"):
        host.skip("ledger", 1, "too late")
    with pytest.raises(SkipRefused, match="no position 99"):
        host.skip("ledger", 99, "not there")
    with pytest.raises(SkipRefused, match="not skipped"):
        host.withdraw_skip("ledger", 2)
    with pytest.raises(UnknownDomain, match="did you mean `ledger`"):
        host.skip("leger", 2, "nobody's")

    assert host.skip("ledger", 2, "it waits")
    assert host.retry("ledger") == []
    assert orders(host) == {"a": "1", "b": "3"}


def test_a_skip_withdrawn_in_time_has_its_effect(host_of: HostOf) -> None:
    """What no rows have passed counts as ever, once its skip is withdrawn."""
    host = host_of(make(Handler()))
    host.append(moves("a", "b"))
    host.skip("ledger", 2, "by mistake")

    assert host.withdraw_skip("ledger", 2)

    host.catch_up()
    assert orders(host) == {"a": "1", "b": "2"}


def test_a_skip_withdrawn_too_late_counts_in_the_next_version(host_of: HostOf) -> None:
    """Rows that have gone on without it stay as they are, also rebuilt; a new version has it."""
    host = host_of(make(Handler()))
    host.append(moves("a", "b"))
    host.skip("ledger", 2, "by mistake")
    host.catch_up()

    assert not host.withdraw_skip("ledger", 2)

    assert host.rebuild("ledger").is_same
    assert orders(host) == {"a": "1"}
    second = host_of(make(Handler(), version=2))
    second.rebuild("ledger")
    assert orders(second) == {"a": "1", "b": "2"}


def test_a_rebuild_that_a_skip_overtakes_gives_way(host_of: HostOf) -> None:
    """Where what is filled already is skipped before the swap, live stays; the next is right."""
    handler = Handler({2})
    host = host_of(make(handler))
    host.append(moves("a", "b"))
    host.catch_up()
    second = host_of(make(Handler(), version=2))

    with (
        faults.planned({"rebuild.before_fence": lambda: _skip_once(host)}),
        pytest.raises(LedgerChanged),
    ):
        second.rebuild("ledger")

    second.rebuild("ledger")
    assert orders(second) == {"a": "1"}


def _skip_once(host: Host) -> None:
    host.skip("ledger", 2, "it waits")


def test_only_what_failed_can_be_retried(host_of: HostOf) -> None:
    """A retry of what neither stands nor waits is refused, and so is one of a paused projector."""
    host = host_of(make(Handler({2})))
    host.append(moves("a", "b"))
    host.catch_up()

    with pytest.raises(NothingToRetry):
        host.retry("ledger", 1)
    with pytest.raises(NothingToRetry):
        host.retry("ledger", entity="a")
    host.pause("ledger")
    with pytest.raises(ProjectorPaused):
        host.retry("ledger")

    assert host.ax(contexts="qntx.retried") == []


def test_an_imported_log_is_projected_as_it_was(host_of: HostOf, tmp_path: Any) -> None:  # noqa: ANN401 - a Path
    """The first build of an imported log parks, retries and skips where the log says it was so."""
    handler = Handler({2, 6})
    host = host_of(make(handler))
    host.append(moves("a", "b", "c", "b", "a", "c"))
    host.catch_up()
    handler.failing = {4, 6}
    host.retry("ledger", entity="b")
    host.skip("ledger", 6, "said by mistake")
    host.retry("ledger", entity="c")
    host.export_log(tmp_path / "log.ndjson")

    with Host(f"sqlite:///{tmp_path / 'other.db'}", [make(Handler())]) as other:
        other.upgrade()
        other.import_log(tmp_path / "log.ndjson")
        other.catch_up()

        assert rows_of(other) == rows_of(host)
        assert [one.entity for one in other.parked("ledger")] == ["b"]
        assert other.log.digest() == host.log.digest()


@pytest.mark.parametrize(
    ("domain", "problem"),
    [
        (Domain("ledger", on_failure="park", inline=True), "an inline domain stops"),
        (Domain("ledger", on_failure="ignore"), "it is one of stop, park, skip"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused(url: str, domain: Domain, problem: str) -> None:
    """A choice that there is not, or that an inline domain has not, is refused with the others."""
    with pytest.raises(DomainRefused, match=problem):
        Host(url, [domain])


def test_no_handler_reads_retries(url: str) -> None:
    """Retries are met by the projector, so a domain that reads them is refused."""
    domain = Domain("ledger")

    class Again(Payload, context="qntx.retried"):
        """Somebody tries again."""

    @domain.project(Again)
    def read(again: Recorded[Again], rows: Rows) -> None:
        """Read what is not for a handler."""

    with pytest.raises(DomainRefused, match="for the projector itself"):
        Host(url, [domain])
