"""Jobs: effects exactly once, execution at least once, and never one job in two hands."""

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Column, Integer, String, select

from qntx_es import (
    Attestation,
    Backoff,
    Domain,
    ForeignActor,
    ForeignContext,
    ForeignDomain,
    ForeignTable,
    GiveUp,
    Host,
    InvalidPayload,
    Job,
    JobHandler,
    NotYetCommitted,
    Payload,
    QntxError,
    ReadRows,
    Recorded,
    Rows,
    ServiceRegistry,
    Settings,
    StorageFull,
    faults,
)
from qntx_es.faults import Crash, crash
from qntx_es.pulse.statements import JobLapsed
from qntx_es.pulse.tables import pulse
from qntx_es.pulse.worker import Worker

BOUND = 30
SECOND = 1_000_000_000
AT_ONCE = Backoff(first=timedelta(0), spread=0)
HostOf = Callable[..., Host]


class Said(Payload, context="said"):
    """What a job says."""

    what: str


class Wanted(Payload, context="wanted"):
    """What asks a domain for a job."""

    what: str = ""


class Wish(BaseModel):
    """What a job is asked with."""

    number: int = 1


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.nanoseconds = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        """Return nanoseconds since 1970."""
        return self.nanoseconds


def contexts(host: Host) -> list[str]:
    """Return the contexts of the whole log, in order."""
    return [one.context for one in host.log.read()]


def job_row(host: Host, job: str) -> Any:  # noqa: ANN401 - a row
    """Return the row of a job."""
    with host.database.read() as connection:
        jobs = pulse.tables["pulse_jobs"]
        return connection.execute(select(jobs).where(jobs.c.job == job)).one()


def worker_of(host: Host) -> Worker:
    """Return one more worker of this host."""
    return host._worker()  # noqa: SLF001 - claims and outcomes one at a time are not the host's face


def working(
    function: Callable[[Job[Any], ServiceRegistry], object],
    **options: Any,  # noqa: ANN401
) -> tuple[Domain, JobHandler[Any]]:
    """Make a domain of one job, which a function of the test does."""
    domain = Domain("code", emits=("said", "wanted"), actors=("code@system",))

    def work(job: Job, services: ServiceRegistry) -> None:
        function(job, services)

    granted: dict[str, Any] = {"name": "work", "backoff": AT_ONCE} | options
    return domain, domain.job(**granted)(work)


def test_a_job_is_requested_started_and_succeeds(host_of: HostOf) -> None:
    """The log tells the whole story of a job, and what it said stands before its success."""
    seen: list[Job[Any]] = []

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        seen.append(job)
        services.store.append(domain.attest(Said(what="done"), entity=job.entity))

    domain, handler = working(work)
    host = host_of(domain)
    asked = handler.request({"n": 1}, entity="repo")
    host.append(asked)

    host.catch_up(jobs=True)

    requested, started, said, succeeded = host.log.read()
    assert [one.context for one in (requested, started, said, succeeded)] == [
        "pulse.job_requested", "pulse.job_started", "said", "pulse.job_succeeded",
    ]  # fmt: skip
    (job,) = seen
    assert (job.id, job.entity, job.payload, job.attempt) == (asked.id, "repo", {"n": 1}, 1)
    assert job.handler == "code.work"
    assert job.token == started.position
    assert (said.caused_by, said.correlation_id, said.depth) == (asked.id, asked.id, 1)
    assert succeeded.payload.items() >= {"token": job.token, "result": None}.items()
    row = job_row(host, asked.id)
    assert (row.status, row.token, row.attempt) == ("succeeded", None, 1)


def test_without_jobs_nothing_runs(host_of: HostOf) -> None:
    """Catching up projects and never works, unless it is asked to."""
    domain, handler = working(lambda *_: pytest.fail("it ran"))
    host = host_of(domain)
    host.append(handler.request(entity="repo"))

    host.catch_up()

    assert contexts(host) == ["pulse.job_requested"]


def test_a_job_handler_takes_its_model(host_of: HostOf) -> None:
    """A handler annotated with a model is given the model, and a request is held against it."""
    seen: list[Wish] = []
    domain = Domain("code", emits=("said",))

    @domain.job()
    def work(job: Job[Wish], services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        seen.append(job.payload)

    host = host_of(domain)
    host.append([work.request(Wish(number=2), entity="a"), work.request(entity="b", number=3)])
    with pytest.raises(InvalidPayload, match="number"):
        work.request(entity="c", number="many")

    host.catch_up(jobs=True)

    assert seen == [Wish(number=2), Wish(number=3)]


def test_a_payload_that_does_not_fit_fails_at_once(host_of: HostOf) -> None:
    """No further attempt can help a request that its handler cannot read."""
    domain = Domain("code")

    @domain.job(retries=5, backoff=AT_ONCE)
    def work(job: Job[Wish], services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        pytest.fail("it ran")

    host = host_of(domain)
    asked = {"handler": "code.work", "payload": {"number": "many"}}
    said = Attestation(
        context="pulse.job_requested", entity="a", actor="code@plugin", payload=asked
    )
    host.append(said)

    host.catch_up(jobs=True)

    assert contexts(host)[1:] == ["pulse.job_started", "pulse.job_failed"]
    row = job_row(host, said.id)
    assert row.status == "failed"
    assert "number" in row.error


def test_a_failing_job_is_tried_again_and_leaves_no_effect(host_of: HostOf) -> None:
    """What a failed attempt said is dropped; only the attempt that succeeds leaves its mark."""

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        services.store.append(domain.attest(Said(what=f"attempt {job.attempt}"), entity="a"))
        if job.attempt < 3:
            raise LookupError(f"attempt {job.attempt} failed")

    domain, handler = working(work, retries=3)
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    assert [one.payload for one in host.ax(contexts="said")] == [{"what": "attempt 3"}]
    failed = host.ax(contexts="pulse.job_failed")
    assert len(failed) == 2
    assert "attempt 1 failed" in failed[0].payload["error"]
    assert len(host.ax(contexts="pulse.job_started")) == 3


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (2, 3)])
def test_attempts_are_counted_exactly(host_of: HostOf, retries: int, attempts: int) -> None:
    """A job runs `retries + 1` times and not once more, and its last failure has no next time."""

    def work(*_: object) -> None:
        raise LookupError

    domain, handler = working(work, retries=retries)
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)

    host.catch_up(jobs=True)

    assert len(host.ax(contexts="pulse.job_started")) == attempts
    failed = host.ax(contexts="pulse.job_failed")
    assert [one.payload["retry_at"] is None for one in failed] == [False] * retries + [True]
    row = job_row(host, asked.id)
    assert (row.status, row.attempt) == ("failed", attempts)


def test_the_next_time_is_recorded_and_kept(sqlite_url: str) -> None:
    """A failed job waits for the moment its failure named, by backoff, and not a second less."""
    clock = Clock()

    def work(*_: object) -> None:
        raise LookupError

    backoff = Backoff(first=timedelta(seconds=10), factor=3, spread=0.2)
    domain, handler = working(work, retries=2, backoff=backoff)
    host = Host(sqlite_url, [domain], clock=clock)
    host.upgrade()
    asked = handler.request(entity="a")
    host.append(asked)

    for attempt in (1, 2):
        host.catch_up(jobs=True)
        failed = host.ax(contexts="pulse.job_failed")
        assert len(failed) == attempt
        retry_at = datetime.fromisoformat(failed[-1].payload["retry_at"])
        assert retry_at == failed[-1].recorded_at + backoff.pause(asked.id, attempt)
        assert (
            abs(backoff.pause(asked.id, attempt) / timedelta(seconds=10 * 3 ** (attempt - 1)) - 1)
            <= 0.2
        )
        clock.nanoseconds += int(backoff.pause(asked.id, attempt).total_seconds() * SECOND) - 1_000
        host.catch_up(jobs=True)
        assert len(host.ax(contexts="pulse.job_started")) == attempt
        clock.nanoseconds += 2_000
    host.close()


def test_giving_up_ends_a_job(host_of: HostOf) -> None:
    """`GiveUp` says that a further attempt cannot help, and there is none."""

    def work(*_: object) -> None:
        raise GiveUp("no use")

    domain, handler = working(work, retries=5)
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)

    host.catch_up(jobs=True)

    assert contexts(host)[1:] == ["pulse.job_started", "pulse.job_failed"]
    assert "no use" in job_row(host, asked.id).error


@pytest.mark.parametrize(
    "error",
    [
        LookupError("a\x00b"),
        LookupError("\udcff in a file's name"),
        LookupError("x" * 100_000),
        LookupError("ünïcode 😀"),
        SystemExit(3),
        ExceptionGroup("many", [ValueError("one"), TypeError("two")]),
        StorageFull(),
    ],
    ids=["NUL", "surrogate", "long", "unicode", "exit", "group", "ours"],
)
def test_whatever_a_handler_raises_is_a_recorded_failure(
    host_of: HostOf, error: BaseException
) -> None:
    """No exception of a handler breaks its worker, and each ends up in the log."""

    def work(*_: object) -> None:
        raise error

    domain, handler = working(work, retries=0)
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)

    host.catch_up(jobs=True)

    assert contexts(host)[1:] == ["pulse.job_started", "pulse.job_failed"]
    assert job_row(host, asked.id).status == "failed"


def test_an_error_says_which(host_of: HostOf) -> None:
    """However long the message, the recorded error names the exception."""

    def work(*_: object) -> None:
        raise LookupError("x" * 100_000)

    domain, handler = working(work, retries=0)
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    (failed,) = host.ax(contexts="pulse.job_failed")
    assert "LookupError" in failed.payload["error"]


def test_what_a_job_says_has_its_id_at_once_and_its_position_with_success(host_of: HostOf) -> None:
    """Inside a job a receipt has no position; behind its success it has the true one."""
    receipts: list[Any] = []

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        receipts.append(services.store.append(domain.attest(Said(what="a"), entity=job.entity)))
        receipts.extend(
            services.store.append([domain.attest(Said(what=w), entity="b") for w in "bc"])
        )
        with pytest.raises(NotYetCommitted):
            _ = receipts[0].position
        assert services.store.get(receipts[0].id) is None
        assert services.store.head() == 2
        assert [one.context for one in services.store.read()] == contexts(host)

    domain, handler = working(work)
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    assert [receipt.position for receipt in receipts] == [3, 4, 5]
    assert [one.id for one in host.ax(contexts="said")] == [one.id for one in receipts]


def test_a_job_speaks_for_its_own_domain_only(host_of: HostOf) -> None:
    """A foreign context or actor is refused in the job's hands, and nothing of it is kept."""
    refused: list[type[QntxError]] = []

    def work(job: Job[Any], services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        good = domain.attest(Said(what="good"), entity="a")
        for context, actor in (
            ("price_paid", "code@system"),
            ("said", "eve@system"),
            ("pulse.job_succeeded", "pulse@system"),
            ("qntx.anything", "code@system"),
        ):
            bad = Attestation(context=context, entity="a", actor=actor, payload={})
            try:
                services.store.append([good, bad])
            except QntxError as error:
                refused.append(type(error))

    domain, handler = working(work)
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    assert refused == [ForeignContext, ForeignActor, ForeignContext, ForeignContext]
    assert host.ax(contexts="said") == [], "an append that was refused left a part of it"


def test_a_job_reads_its_own_tables_and_no_others(host_of: HostOf) -> None:
    """`services.database` shows the domain's rows as committed; another's are refused."""
    seen: list[Any] = []

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        with services.database.read() as rows:
            row = rows.get(wishes, job.entity)
            assert row is not None
            seen.extend([row.count, rows.select(select(wishes.c.entity))[0].entity])
            assert rows.get(wishes, "unheard of") is None
            for touch in (
                lambda: rows.get(theirs, "a"),
                lambda: rows.select(select(pulse.tables["pulse_jobs"])),
            ):
                with pytest.raises(ForeignTable):
                    touch()
            assert not hasattr(rows, "put")

    domain, handler = working(work, retries=0)
    wishes = domain.table(
        "wishes",
        Column("entity", String, primary_key=True),
        Column("count", Integer, nullable=False, default=0),
    )
    theirs = Domain("other").table("things", Column("entity", String, primary_key=True))

    @domain.project(Wanted)
    def count(wanted: Recorded[Wanted], rows: Rows) -> None:
        rows.add(wishes, wanted.entity, count=1)

    host = host_of(domain)
    host.append([domain.attest(Wanted(), entity="repo"), handler.request(entity="repo")])

    host.catch_up(jobs=True)

    assert seen == [1, "repo"]
    assert contexts(host)[-1] == "pulse.job_succeeded"


def test_a_job_logs_as_its_own_domain(host_of: HostOf) -> None:
    """The logger of another domain is refused."""
    names: list[str] = []

    def work(job: Job[Any], services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        names.append(services.logger("code").logger.name)
        with pytest.raises(ForeignDomain):
            services.logger("finance")

    domain, handler = working(work, retries=0)
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    assert names == ["qntx_es.domains.code"]
    assert contexts(host)[-1] == "pulse.job_succeeded"


def test_a_derive_handler_asks_for_a_job_once(host_of: HostOf) -> None:
    """A request derived from an attestation is there once, however often it is projected."""
    entities: list[str] = []
    domain, handler = working(lambda job, _: entities.append(job.entity))

    @domain.derive(Wanted)
    def ask(wanted: Recorded[Wanted], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        yield handler.request(entity=wanted.entity)

    host, other = host_of(domain), host_of(domain)
    host.append(domain.attest(Wanted(), entity="repo"))

    host.catch_up(jobs=True)
    other.catch_up(jobs=True)
    host.rebuild("code")
    other.catch_up(jobs=True)

    assert entities == ["repo"]
    wanted, requested = host.ax(contexts=["wanted", "pulse.job_requested"])
    assert (requested.caused_by, requested.correlation_id) == (wanted.id, wanted.id)


def test_a_bad_request_stops_who_made_it_and_never_the_queue(host_of: HostOf) -> None:
    """A request that nobody can read is refused where it is said; all other jobs go on."""
    done: list[str] = []
    domain, handler = working(lambda job, _: done.append(job.entity))
    bad = Domain("bad")

    @bad.derive(Wanted)
    def ask(wanted: Recorded[Wanted], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        yield Attestation(
            context="pulse.job_requested", entity="x", actor="bad@plugin", payload={"no": "handler"}
        )

    host = host_of(domain, bad)
    host.append([domain.attest(Wanted(), entity="repo"), handler.request(entity="good")])

    with pytest.raises(QntxError):
        host.catch_up(jobs=True)

    assert {one.name: one.state for one in host.statuses()}["pulse"] == "inline"
    worker_of(host).run_due()
    assert done == ["good"]


def test_a_job_cannot_poison_the_queue(host_of: HostOf) -> None:
    """A request that nobody can read is refused in the hands of the job that makes it."""

    def work(job: Job[Any], services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        services.store.append(
            Attestation(
                context="pulse.job_requested", entity="x", actor="code@system", payload={"no": 1}
            )
        )

    domain, handler = working(work, retries=0)
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    assert contexts(host)[-1] == "pulse.job_failed"
    assert {one.name: one.state for one in host.statuses()}["pulse"] == "inline"


def test_a_queue_that_is_behind_starts_nothing_twice(host_of: HostOf) -> None:
    """However many requests come at once, each claim is of another job."""
    domain, handler = working(lambda *_: None, retries=0)
    host = host_of(domain)
    host.append(handler.request(entity=str(n)) for n in range(2_500))
    one, other = worker_of(host), worker_of(host)

    claimed = [claim.job.id for worker in (one, other, one) for claim in worker.claim(1)]

    assert len(set(claimed)) == len(claimed)
    started = host.ax(contexts="pulse.job_started")
    assert len({start.entity for start in started}) == len(started)


def test_a_queue_that_cannot_follow_starts_nothing(host_of: HostOf) -> None:
    """A degraded queue refuses to decide: what it shows as ready may be running already."""
    domain, handler = working(lambda *_: None, retries=0)
    host = host_of(domain)
    host.append(handler.request(entity="a"))
    host.log.append(
        Attestation(context="pulse.job_requested", entity="x", actor="eve", payload={"no": 1})
    )
    worker = worker_of(host)

    for _ in range(2):
        try:
            worker.claim(1)
        except QntxError:
            continue

    assert len(host.ax(contexts="pulse.job_started")) <= 1


def test_two_workers_never_start_one_job_twice(host_of: HostOf) -> None:
    """Two hosts that run at once share the jobs among them, each job once."""
    done: list[str] = []
    domain, handler = working(lambda job, _: done.append(job.entity), retries=0)
    hosts = [host_of(domain), host_of(domain)]
    hosts[0].append(handler.request(entity=str(n)) for n in range(30))

    threads = [threading.Thread(target=worker_of(host).run_due) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)

    assert sorted(done, key=int) == [str(n) for n in range(30)]
    started = hosts[0].ax(contexts="pulse.job_started")
    assert len({one.entity for one in started}) == len(started) == 30
    assert len(hosts[0].ax(contexts="pulse.job_succeeded")) == 30


def test_jobs_run_in_the_order_they_were_asked_for(host_of: HostOf) -> None:
    """One worker takes what is due by time and then by position."""
    done: list[str] = []
    domain, handler = working(lambda job, _: done.append(job.entity))
    host = host_of(domain)
    host.append(handler.request(entity=str(n)) for n in range(5))
    host.append(handler.request(entity=str(n)) for n in range(5, 8))

    host.catch_up(jobs=True)

    assert done == [str(n) for n in range(8)]


def test_a_job_asked_for_twice_under_one_id_runs_once(host_of: HostOf) -> None:
    """A request sent again is the same request."""
    done: list[str] = []
    domain, handler = working(lambda job, _: done.append(job.entity))
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)

    host.catch_up(jobs=True)
    host.append(asked)
    host.catch_up(jobs=True)

    assert done == ["a"]


def test_a_job_of_a_domain_that_is_not_here_waits(host_of: HostOf) -> None:
    """A request for an unknown handler holds up nobody and waits for a host that knows it."""
    done: list[str] = []
    domain, handler = working(lambda job, _: done.append(job.entity))
    host = host_of()
    host.append(handler.request(entity="a"))
    host.catch_up(jobs=True)
    assert done == []

    host_of(domain).catch_up(jobs=True)

    assert done == ["a"]


def test_an_attempt_past_its_deadline_does_not_count(sqlite_url: str) -> None:
    """A worker that wakes up behind its deadline finds its token stale and leaves no trace."""
    clock = Clock()

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        services.store.append(domain.attest(Said(what=str(job.attempt)), entity="a"))

    domain, handler = working(work, retries=1, timeout=timedelta(minutes=1))
    host = Host(sqlite_url, [domain], clock=clock)
    host.upgrade()
    host.append(handler.request(entity="a"))
    sleeper, other = worker_of(host), worker_of(host)
    (asleep,) = sleeper.claim(1)

    clock.nanoseconds += 69 * SECOND
    sleeper._lease.take()  # noqa: SLF001 - its own thread lives, only the handler sleeps
    assert other.claim(1) == []
    assert host.ax(contexts="pulse.job_lapsed") == []
    clock.nanoseconds += 2 * SECOND
    other.run_due()
    other.run_due()
    sleeper.execute(asleep)

    assert [one.payload["reason"] for one in host.ax(contexts="pulse.job_lapsed")] == ["deadline"]
    assert [one.payload for one in host.ax(contexts="said")] == [{"what": "2"}]
    assert contexts(host)[1:] == [
        "pulse.job_started", "pulse.job_lapsed", "pulse.job_started", "said", "pulse.job_succeeded",
    ]  # fmt: skip
    host.close()


def test_catching_up_runs_what_lapsed(sqlite_url: str) -> None:
    """A job whose worker never came back is due again, and one catching up does all that is due."""
    clock = Clock()
    done: list[int] = []
    domain, handler = working(lambda job, _: done.append(job.attempt), timeout=timedelta(minutes=1))
    host = Host(sqlite_url, [domain], clock=clock)
    host.upgrade()
    host.append(handler.request(entity="a"))
    worker_of(host).claim(1)
    clock.nanoseconds += 71 * SECOND

    host.catch_up(jobs=True)

    assert done == [2]
    host.close()


def test_an_attempt_that_lapsed_for_the_last_time_ends_the_job(sqlite_url: str) -> None:
    """No crash makes more attempts than were allowed."""
    clock = Clock()
    domain, handler = working(lambda *_: pytest.fail("it ran"), retries=1, timeout=timedelta(0))
    host = Host(sqlite_url, [domain], clock=clock)
    host.upgrade()
    asked = handler.request(entity="a")
    host.append(asked)

    for _ in range(6):
        worker_of(host).claim(1)
        clock.nanoseconds += 11 * SECOND

    row = job_row(host, asked.id)
    assert (row.status, row.attempt) == ("failed", 2)
    assert len(host.ax(contexts="pulse.job_started")) == 2
    host.close()


def test_a_job_that_was_taken_away_leaves_no_effect(host_of: HostOf) -> None:
    """On both databases: an outcome under a token that no longer counts appends nothing."""

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        services.store.append(domain.attest(Said(what=str(job.attempt)), entity="a"))

    domain, handler = working(work)
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)
    sleeper = worker_of(host)
    (asleep,) = sleeper.claim(1)
    lapsed = JobLapsed(token=asleep.job.token, reason="by hand", retry_at=asked_at(host, asked.id))
    host.log.append(pulse.attest(lapsed, entity=asked.id))
    worker_of(host).run_due()

    sleeper.execute(asleep)

    assert [one.payload for one in host.ax(contexts="said")] == [{"what": "2"}]
    assert contexts(host).count("pulse.job_succeeded") == 1


def asked_at(host: Host, job: str) -> datetime:
    """Return when a job was asked for, which is due in any case."""
    said = host.log.get(job)
    assert said is not None
    return said.recorded_at


def test_an_outcome_under_another_token_changes_nothing(host_of: HostOf) -> None:
    """The fold ignores what is said of a job that is not running under that very token."""
    domain, handler = working(lambda *_: None)
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)
    (claimed,) = worker_of(host).claim(1)
    before = job_row(host, asked.id)

    for token in (claimed.job.token - 1, claimed.job.token + 1, 0):
        lapsed = JobLapsed(token=token, reason="stale", retry_at=None)
        host.log.append(pulse.attest(lapsed, entity=asked.id))
    unheard_of = JobLapsed(token=1, reason="stale", retry_at=None)
    host.log.append(pulse.attest(unheard_of, entity="unheard of"))

    assert job_row(host, asked.id) == before
    assert {one.name: one.state for one in host.statuses()}["pulse"] == "inline"


@pytest.mark.parametrize("point", ["job.after_start", "job.before_outcome", "job.after_outcome"])
def test_a_crash_in_a_job_leaves_its_effect_once(sqlite_url: str, point: str) -> None:
    """Wherever a worker dies, after the deadline the effect is in the log exactly once."""
    clock = Clock()

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        services.store.append(domain.attest(Said(what="done"), entity=job.entity))

    domain, handler = working(work, timeout=timedelta(minutes=1))
    host = Host(sqlite_url, [domain], clock=clock)
    host.upgrade()
    host.append(handler.request(entity="a"))
    with faults.planned({point: crash()}), pytest.raises(Crash):
        host.catch_up(jobs=True)

    for _ in range(3):
        clock.nanoseconds += 71 * SECOND
        host.catch_up(jobs=True)

    assert len(host.ax(contexts="said")) == 1
    assert len(host.ax(contexts="pulse.job_succeeded")) == 1
    host.close()


def test_a_clock_set_back_starves_no_job(sqlite_url: str) -> None:
    """A job asked for after the clock went back an hour is done now, not in an hour."""
    clock = Clock()
    done: list[str] = []
    domain, handler = working(lambda job, _: done.append(job.entity))
    host = Host(sqlite_url, [domain], clock=clock)
    host.upgrade()
    host.append(domain.attest(Said(what="before"), entity="a"))
    clock.nanoseconds -= 3_600 * SECOND
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    assert done == ["a"]
    host.close()


def test_a_running_host_runs_jobs_and_drains(host_of: HostOf) -> None:
    """Leaving `running()` waits for the job in hand, whose outcome is in the log then."""
    begun, go_on = threading.Event(), threading.Event()

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        begun.set()
        assert go_on.wait(BOUND)
        services.store.append(domain.attest(Said(what="done"), entity=job.entity))

    domain, handler = working(work, retries=0)
    host = host_of(domain, settings=Settings(job_threads=1))

    with host.running():
        host.append(handler.request(entity="a"))
        assert begun.wait(BOUND)
        threading.Timer(0.05, go_on.set).start()

    assert [one for one in contexts(host) if one != "pulse.handler_declared"] == [
        "pulse.job_requested", "pulse.job_started", "said", "pulse.job_succeeded",
    ]  # fmt: skip
    assert not [one for one in threading.enumerate() if one.name in ("worker", "ticker")]


def test_a_running_host_uses_its_threads(host_of: HostOf) -> None:
    """Four jobs run side by side in four threads, and a failing one holds up none."""
    meeting = threading.Barrier(4)

    def work(job: Job[Any], services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        if job.entity == "bad":
            raise SystemExit(1)
        meeting.wait(BOUND)

    domain, handler = working(work, retries=0)
    host = host_of(domain, settings=Settings(job_threads=5))
    host.append(handler.request(entity=name) for name in ("bad", "a", "b", "c", "d"))

    with host.running():
        until(lambda: contexts(host).count("pulse.job_succeeded") == 4)

    assert contexts(host).count("pulse.job_failed") == 1


def test_a_host_can_run_again(host_of: HostOf) -> None:
    """What stopped may be started again, and goes on."""
    done: list[str] = []
    domain, handler = working(lambda job, _: done.append(job.entity))
    host = host_of(domain)

    for name in ("a", "b"):
        with host.running():
            asked = handler.request(entity=name)
            host.append(asked)
            until(lambda asked=asked: job_row(host, asked.id).status == "succeeded")  # type: ignore[misc]

    assert done == ["a", "b"]


def test_a_rebuild_of_the_queue_gives_the_same_queue(host_of: HostOf) -> None:
    """The queue is a fold of the log: rebuilt, it holds the same rows, and no job runs again."""
    done: list[str] = []

    def work(job: Job[Any], services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        done.append(job.entity)
        if job.entity.startswith("bad"):
            raise LookupError(job.entity)

    domain, handler = working(work, retries=1)
    host = host_of(domain)
    names = ["a", "bad", "b", "bad too", "c"]
    host.append(handler.request(entity=name) for name in names)
    worker = worker_of(host)
    for _ in range(3):
        (claimed,) = worker.claim(1)
        worker.execute(claimed)
    worker.claim(1)

    rebuilt = host.rebuild("pulse")

    assert rebuilt.is_same
    rows = {proof.table: proof.rebuilt.rows for proof in rebuilt.tables if proof.rebuilt}
    assert {table for table, count in rows.items() if count} == {"pulse_jobs"}
    assert rows["pulse_jobs"] == 5
    before = len(done)
    host.catch_up(jobs=True)
    assert len(done) > before
    assert done.count("a") == 1
    assert host.rebuild("pulse").is_same


def test_backoff_grows_to_its_most_and_never_leaves_its_spread() -> None:
    """Each pause is `factor` times the one before, within `spread`, and the same each time."""
    backoff = Backoff(first=timedelta(seconds=10), factor=3, most=timedelta(hours=1), spread=0.2)

    for attempt in (1, 2, 3, 6, 7, 64, 65, 10_000):
        pause = backoff.pause("job", attempt)
        wanted = min(10 * 3.0 ** min(attempt - 1, 64), 3_600)
        assert abs(pause.total_seconds() / wanted - 1) <= 0.2 + 1e-6
        assert pause == backoff.pause("job", attempt)
    assert backoff.pause("job", 1) != backoff.pause("another", 1)
    assert Backoff(first=timedelta(0), spread=0).pause("job", 3) == timedelta(0)


def test_a_request_is_data_whatever_its_fields_are_called(host_of: HostOf) -> None:
    """A field named like a keyword of `request` is given by a mapping and comes through."""
    seen: list[Any] = []
    domain, handler = working(lambda job, _: seen.append(job.payload))
    host = host_of(domain)
    fields = {"entity": "x", "payload": 1, "self": 2, "__proto__": "'; drop table pulse_jobs"}
    host.append(handler.request(fields, entity="a"))

    host.catch_up(jobs=True)

    assert seen == [fields]


def until(is_so: Callable[[], bool]) -> None:
    """Look again until it is so, with a limit."""
    pause = threading.Event()
    for _ in range(BOUND * 100):
        if is_so():
            return
        pause.wait(0.01)
    pytest.fail("it did not come to pass")
