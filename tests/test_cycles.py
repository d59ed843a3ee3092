"""A domain whose derive handlers feed each other is refused, unless it says that it may."""

# ruff: noqa: ARG001, ARG002, ARG005 - a handler has its two arguments, whether it looks at them or not

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from qntx_es import (
    Attestation,
    Domain,
    DomainRefused,
    Host,
    Job,
    Payload,
    ReadRows,
    Recorded,
    ServiceRegistry,
    jobs,
)
from qntx_es.jobs import JobRequested


class Asked(Payload, context="asked"):
    """Somebody asked."""


class Answered(Payload, context="answered"):
    """Somebody answered."""


class Doubted(Payload, context="doubted"):
    """Somebody doubted."""


def made_elsewhere(domain: Domain, entity: str) -> Attestation:
    """Return what a handler's source does not show."""
    return domain.attest(Asked(), entity=entity)


def make_talk(*cycles: str | type[Payload], emits: tuple[str, ...] | None = None) -> Domain:
    """Make a domain in which doubts lead back to the question."""
    talk = Domain("talk", emits=emits, cycles=cycles)

    @talk.derive(Asked)
    def answer(asked: Recorded[Asked], rows: ReadRows) -> Iterator[Attestation]:
        yield talk.attest(Answered(), entity=asked.entity)

    @talk.derive(Answered)
    def doubt(answered: Recorded[Answered], rows: ReadRows) -> Iterator[Attestation]:
        doubted = [Doubted() for _ in range(2)]
        yield from (talk.attest(one, entity=answered.entity) for one in doubted)

    @talk.derive(Doubted)
    def ask(doubted: Recorded[Doubted], rows: ReadRows) -> Iterator[Attestation]:
        yield talk.attest(Asked(), entity=doubted.entity)

    return talk


def problems_of(domain: Domain) -> list[str]:
    """Return why a host refuses this domain."""
    try:
        Host("sqlite://", [domain])
    except DomainRefused as refused:
        return list(refused.problems)
    return []


def test_a_cycle_is_refused_by_name() -> None:
    """What comes round again is spelled out once, with its handlers and the remedy."""
    (problem,) = problems_of(make_talk())

    assert problem.startswith(
        "derive `answer`, `doubt`, `ask`: `asked → answered → doubted → asked` comes round again"
    )
    assert problem.endswith('cycles=("asked",)')


@pytest.mark.parametrize("declared", ["asked", "doubted", Answered], ids=str)
def test_a_declared_cycle_is_accepted(declared: str | type[Payload]) -> None:
    """One context, or payload class, on the way round is enough."""
    assert problems_of(make_talk(declared)) == []


def test_each_cycle_is_declared_by_itself() -> None:
    """Of two cycles the one that was not declared is refused, and a handler that feeds itself."""
    talk = make_talk("doubted")

    @talk.derive(Asked)
    def insist(asked: Recorded[Asked], rows: ReadRows) -> list[Attestation]:
        return [talk.attest(payload=Asked(), entity=asked.entity)]

    (problem,) = problems_of(talk)

    assert problem.startswith("derive `insist`: `asked → asked` comes round again")


def test_requests_of_jobs_count() -> None:
    """Who answers each request of a job with a request feeds himself."""
    talk = Domain("talk")

    @talk.job()
    def work(job: Job, services: ServiceRegistry) -> None: ...

    @talk.derive(JobRequested)
    def once_more(asked: Recorded[JobRequested], rows: ReadRows) -> Iterator[Attestation]:
        yield work.request(entity=asked.entity)

    (problem,) = problems_of(talk)

    assert "`pulse.job_requested → pulse.job_requested`" in problem


def test_only_what_is_certain_is_refused() -> None:
    """A name that is not called, what may not be said and what is hidden make no cycle."""
    silent = make_talk(emits=("answered", "doubted"))
    talk = Domain("talk")

    @talk.derive(Asked)
    def look(asked: Recorded[Asked], rows: ReadRows) -> Iterator[Attestation]:
        if isinstance(asked.payload, Asked):
            yield made_elsewhere(talk, asked.entity)

    @talk.every(timedelta(hours=1))
    def remind(due: datetime, rows: ReadRows) -> Iterator[Attestation]:
        yield talk.attest(Asked(), entity="all")

    talk.derive(Answered, name="lambda")(lambda said, rows: [talk.attest(Answered(), entity="a")])

    assert problems_of(silent) == []
    assert problems_of(talk) == []


def test_objects_and_modules_are_looked_into() -> None:
    """A callable object is read like a function, and a class by the name of its module."""
    talk = Domain("talk")

    class Echo:
        """A handler with state."""

        def __call__(self, asked: Recorded[Asked], rows: ReadRows) -> Iterator[Attestation]:
            yield talk.attest(Asked(), entity=asked.entity)

    talk.derive(Asked, name="echo")(Echo())

    @talk.derive(jobs.JobRequested)
    def again(asked: Recorded[jobs.JobRequested], rows: ReadRows) -> Iterator[Attestation]:
        yield talk.attest(jobs.JobRequested(handler=asked.payload.handler), entity=asked.entity)

    found = [problem.partition(" comes")[0] for problem in problems_of(talk)]

    assert found == [
        "derive `echo`: `asked → asked`",
        "derive `again`: `pulse.job_requested → pulse.job_requested`",
    ]


def test_a_cycle_that_nobody_answers_is_a_mistake() -> None:
    """What is declared to come round is a context that a derive handler answers."""
    assert problems_of(make_talk("asked", "doubtd")) == [
        "cycles `doubtd`: no derive handler answers it; did you mean `doubted`?"
    ]
