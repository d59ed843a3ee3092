"""What is drawn is what a domain may meet: valid payloads, few entities, whole histories."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from annotated_types import Len
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, NaiveDatetime, field_validator
from sqlalchemy import Column, Integer, String

from domains.code import CommitRecorded, RepositoryCloned, code
from qntx_es import (
    Attestation,
    Domain,
    Host,
    JobRequested,
    Payload,
    Recorded,
    Rows,
    ScheduleFired,
)
from qntx_es.testing import NoStrategy, attestations, from_log
from qntx_es.testing.payloads import payloads
from qntx_es.testing.strategies import UNHEARD

QUICK = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


class Colour(Enum):
    """What a part is painted."""

    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    """A part of an order."""

    number: Annotated[int, Field(gt=0, le=9)]
    colour: Colour | None = None


class Ordered(Payload, context="ordered"):
    """An order with a field of each kind."""

    count: Annotated[int, Field(ge=10, lt=20)]
    step: Annotated[int, Field(multiple_of=7, ge=0)]
    share: Annotated[float, Field(gt=0, lt=1)]
    price: Decimal = Field(ge=0, decimal_places=2)
    code: str = Field(pattern=r"^[A-Z]{2}-\d{3}$")
    name: str = Field(min_length=2, max_length=3)
    kind: Literal["new", "old"]
    colour: Colour
    parts: list[Part] = Field(min_length=1)
    pair: tuple[str, int | None]
    many: tuple[int, ...] = ()
    tags: Annotated[set[str], Len(1, 2)]
    notes: dict[str, int] = Field(default_factory=dict)
    free: Any = None
    at: datetime
    aware: AwareDatetime
    naive: NaiveDatetime | None = None
    day: date
    hour: time = time(0)
    took: timedelta
    number: UUID
    is_paid: bool = False
    renamed: int = Field(default=1, alias="otherName")


class Odd(Payload, context="odd"):
    """Only odd numbers, says a validator."""

    number: int

    @field_validator("number")
    @classmethod
    def be_odd(cls, number: int) -> int:
        """Refuse what is even."""
        if number % 2 == 0:
            raise ValueError("even")
        return number


def never(number: int) -> int:
    """Refuse everything."""
    raise ValueError(number)


class Never(Payload, context="never"):
    """Nothing is valid, says a validator."""

    number: Annotated[int, AfterValidator(never)]


def domain_of(*read: type[Payload]) -> Domain:
    """Return a domain that reads these and keeps nothing."""
    made = Domain("made")
    made.table("things", Column("entity", String, primary_key=True), Column("n", Integer))
    for payload in read:
        made.project(payload, name=payload.context.replace(".", "_"))(ignore)
    return made


def ignore(said: Recorded[Any], rows: Rows) -> None:
    """Do nothing."""


@given(payloads(Ordered))
@QUICK
def test_payloads_are_valid_by_their_fields(ordered: Ordered) -> None:
    """Bounds, patterns, multiples, lengths, kinds and nested classes are all kept."""
    assert 10 <= ordered.count < 20
    assert ordered.step % 7 == 0
    assert 0 < ordered.share < 1
    assert ordered.parts
    assert Ordered.model_validate_json(ordered.model_dump_json(by_alias=True)) == ordered


def test_fields_with_a_default_are_drawn_too() -> None:
    """A default is drawn, and so is another value."""
    paid: set[bool] = set()
    renamed: set[int] = set()

    @given(payloads(Ordered))
    @QUICK
    def draw(ordered: Ordered) -> None:
        paid.add(ordered.is_paid)
        renamed.add(ordered.renamed)

    draw()

    assert paid == {False, True}
    assert 1 in renamed
    assert len(renamed) > 1


def test_a_validator_that_refuses_most_is_refused() -> None:
    """A class of which nearly nothing drawn is valid asks for a strategy of the author's own."""
    with pytest.raises(NoStrategy, match=r"Never refuse .* attestations\(…, strategies=\{Never"):
        attestations(domain_of(Never))


def test_a_strategy_of_ones_own_is_taken() -> None:
    """`strategies` replaces what would be drawn of a class."""
    drawn = attestations(domain_of(Odd), strategies={Odd: st.just(Odd(number=3))})

    @given(drawn)
    @QUICK
    def are_three(log: list[Attestation]) -> None:
        assert {one.text for one in log if one.context == "odd"} <= {'{"number":3}'}

    are_three()


@given(attestations(code, entities=2, starts_with=RepositoryCloned, then=[CommitRecorded]))
@QUICK
def test_a_history_begins_as_it_must(log: list[Attestation]) -> None:
    """The first statement about each entity is the one it starts with, and it comes once."""
    heard = [one for one in log if one.context != UNHEARD]
    for entity in {one.entity for one in heard}:
        said = [one.context for one in heard if one.entity == entity]
        assert said[0] == "repository_cloned"
        assert set(said[1:]) <= {"commit_recorded"}
    assert {one.entity for one in log} <= {"a", "b"}
    assert len(log) <= 30


@given(attestations(code, entities=2, actors=1))
@QUICK
def test_ids_are_of_places(log: list[Attestation]) -> None:
    """No two have one id, and what a log shrinks to keeps the ids of its places."""
    assert len({one.id for one in log}) == len(log)
    assert {one.actor for one in log if one.context != UNHEARD} <= {code.actors[0]}


def test_some_is_heard_by_nobody() -> None:
    """A context that no handler reads is among what is drawn, and all that is read as well."""
    met: set[str] = set()

    @given(attestations(code))
    @settings(QUICK, max_examples=100)
    def meet(log: list[Attestation]) -> None:
        met.update(one.context for one in log)

    meet()

    assert met >= {UNHEARD, *(one.payload.context for one in code.projects)}


def test_jobs_and_fires_are_those_of_the_domain() -> None:
    """A handler for job requests meets the domain's jobs, one for fires its schedules."""
    made = domain_of(JobRequested, ScheduleFired)

    class Work(BaseModel):
        size: Annotated[int, Field(ge=1, le=3)]

    @made.job()
    def work(job: Any, services: Any) -> None:  # noqa: ANN401 - its shape
        """Do nothing."""

    @made.every(timedelta(hours=1))
    def hourly(due: datetime, rows: Any) -> list[Attestation]:  # noqa: ANN401, ARG001 - its shape
        return []

    @given(attestations(made))
    @QUICK
    def are_known(log: list[Attestation]) -> None:
        for one in log:
            if one.context == "pulse.job_requested":
                assert one.payload["handler"] == "made.work"
            elif one.context == "pulse.schedule_fired":
                due = datetime.fromisoformat(one.payload["due_at"])
                assert one.entity == "made.hourly"
                assert (due - datetime(1970, 1, 1, tzinfo=UTC)) % timedelta(hours=1) == timedelta(0)

    are_known()


def test_a_domain_without_handlers_has_no_strategy() -> None:
    """Where nothing is read there is nothing to draw."""
    with pytest.raises(NoStrategy, match="no handlers"):
        attestations(Domain("empty"))


def test_slices_of_a_real_log_are_drawn(url: str) -> None:
    """What a log holds is said again, in its order, and an empty one is refused."""
    with Host(url, [code]) as host:
        host.upgrade()
        with pytest.raises(NoStrategy):
            from_log(host)
        said = [code.attest(CommitRecorded(sha=str(n)), entity="r", tags=["t"]) for n in range(9)]
        host.append(said)
        host.catch_up()
        host.rebuild("code")
        drawn = from_log(host, sample=6, longest=4)

    known = {one.id: one for one in said}
    order = [one.id for one in said]

    @given(drawn)
    @QUICK
    def are_real(log: list[Attestation]) -> None:
        assert 1 <= len(log) <= 4
        assert all(known[one.id] == one for one in log)
        assert [one.id for one in log] == sorted((one.id for one in log), key=order.index)

    are_real()
    assert len(find(drawn, lambda log: len(log) > 1, settings=QUICK)) == 2
