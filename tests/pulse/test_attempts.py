"""What a handler may do with its job, and what becomes of it."""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from qntx_es import (
    Attestation,
    Backoff,
    CancellationRequested,
    Child,
    DatabaseUnavailable,
    Domain,
    GiveUp,
    Host,
    InvalidOutcome,
    InvalidRequest,
    Job,
    JobHandler,
    JobStopped,
    Payload,
    ReadRows,
    Recorded,
    ServiceRegistry,
    Settings,
    Snooze,
    StaleToken,
    TryAgain,
    UnknownHandler,
    faults,
    request,
)
from qntx_es.faults import Crash, crash, fail
from qntx_es.pulse import Worker, pulse
from qntx_es.pulse.rescue import is_gone, this_process
from qntx_es.pulse.statements import JobsPruned
from qntx_es.pulse.tables import handlers, jobs
from qntx_es.tables import epochs, leases

BOUND = 60
AT_ONCE = Backoff(first=timedelta(0), spread=0)
HostOf = Callable[..., Host]
Doing = Callable[[Job[Any], ServiceRegistry], object]


class Said(Payload, context="said"):
    """What a job says."""

    what: str


def working(function: Doing, **options: Any) -> tuple[Domain, JobHandler[Any]]:  # noqa: ANN401
    """Make a domain of one job, which a function of the test does."""
    domain = Domain("code", emits=("said",))

    def work(job: Job, services: ServiceRegistry) -> object:
        return function(job, services)

    granted: dict[str, Any] = {"name": "work", "backoff": AT_ONCE} | options
    return domain, domain.job(**granted)(work)


def worker_of(host: Host) -> Worker:
    """Return one more worker of this host."""
    return host._worker()  # noqa: SLF001 - one claim at a time is not the host's face


def row_of(host: Host, job: str) -> Any:  # noqa: ANN401 - a row
    """Return the row of a job."""
    with host.database.read() as connection:
        return connection.execute(select(jobs).where(jobs.c.job == job)).one()


def said(host: Host) -> list[str]:
    """Return what jobs have said, in order."""
    return [one.payload["what"] for one in host.ax(contexts="said")]


def contexts(host: Host) -> list[str]:
    """Return what was said of jobs, in order."""
    return [one.context.removeprefix("pulse.job_") for one in host.log.read()]


def until(is_so: Callable[[], bool]) -> None:
    """Look again until it is so, with a limit."""
    pause = threading.Event()
    for _ in range(BOUND * 50):
        if is_so():
            return
        pause.wait(0.02)
    pytest.fail("it did not come to pass")


def test_a_long_job_goes_on_where_it_was(host_of: HostOf) -> None:
    """What was advanced is committed with its state, and the next attempt does not repeat it."""

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        for page in range(job.state or 0, 3):
            services.store.append(domain.attest(Said(what=f"page {page}"), entity="a"))
            job.advance(page + 1)
            if page == 1 and job.attempt == 1:
                raise LookupError

    domain, handler = working(work)
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    assert said(host) == ["page 0", "page 1", "page 2"]
    assert contexts(host).count("failed") == 1
    assert host.rebuild("pulse").is_same


def test_a_crash_in_an_advance_repeats_nothing_that_was_committed(sqlite_url: str) -> None:
    """A worker that dies before an advance leaves nothing of it; the next attempt does it once."""

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        for page in range(job.state or 0, 2):
            services.store.append(domain.attest(Said(what=f"page {page}"), entity="a"))
            job.advance(page + 1)

    domain, handler = working(work)
    host = Host(sqlite_url, [domain])
    host.upgrade()
    host.append(handler.request(entity="a"))
    plan = {"job.before_advance": crash(nth=2)}
    with faults.planned(plan), pytest.raises(Crash):
        host.catch_up(jobs=True)
    assert said(host) == ["page 0"]
    with host.database.write() as connection:
        connection.execute(update(leases).values(expires_at=0))

    host.catch_up(jobs=True)

    assert said(host) == ["page 0", "page 1"]
    host.close()


def test_a_job_waits_for_its_children_and_sees_what_became_of_them(host_of: HostOf) -> None:
    """A suspended job runs again when no child is open, with its state and their results."""
    seen: list[Child] = []

    def work(job: Job[Any], services: ServiceRegistry) -> object:
        if job.entity != "parent":
            if job.entity == "bad":
                raise GiveUp("no use")
            return {"of": job.entity}
        if job.state is None:
            for name in ("one", "bad", "two"):
                services.store.append(handler.request(entity=name, parent=job.id))
            job.suspend({"asked": 3})
        seen.extend(job.children)
        return job.state

    domain, handler = working(work)
    host = host_of(domain)
    asked = handler.request(entity="parent")
    host.append(asked)

    host.catch_up(jobs=True)

    assert [(one.status, one.result) for one in seen] == [
        ("succeeded", {"of": "one"}), ("failed", None), ("succeeded", {"of": "two"}),
    ]  # fmt: skip
    row = row_of(host, asked.id)
    assert (row.status, row.attempt, row.open_children) == ("succeeded", 1, 0)
    assert host.ax(contexts="pulse.job_succeeded")[-1].payload["result"] == {"asked": 3}
    assert host.rebuild("pulse").is_same


def test_a_job_without_children_does_not_wait_for_them(host_of: HostOf) -> None:
    """Suspended with nothing open, a job is due again at once."""

    def work(job: Job[Any], _: ServiceRegistry) -> None:
        if job.state is None:
            job.suspend("again")

    domain, handler = working(work)
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)

    host.catch_up(jobs=True)

    assert row_of(host, asked.id).status == "succeeded"


def test_snoozing_is_no_attempt(host_of: HostOf) -> None:
    """A job may be put off any number of times, and still has all its attempts."""
    calls: list[int] = []

    def work(job: Job[Any], _: ServiceRegistry) -> None:
        calls.append(job.attempt)
        if len(calls) < 4:
            raise Snooze(delay=timedelta(0))

    domain, handler = working(work, retries=0)
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    assert calls == [1, 1, 1, 1]
    assert contexts(host).count("snoozed") == 3


def test_a_handler_says_when_to_try_again(host_of: HostOf) -> None:
    """`TryAgain` with a delay wins over the backoff, and is an attempt."""

    def work(_: Job[Any], __: ServiceRegistry) -> None:
        raise TryAgain(delay=timedelta(0))

    domain, handler = working(work, retries=2, backoff=Backoff(first=timedelta(hours=1)))
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    assert contexts(host).count("started") == 3


def test_some_errors_are_not_worth_another_attempt(host_of: HostOf) -> None:
    """An error of a kind in `give_up_on` ends the job, also one that is derived from it."""

    def work(_: Job[Any], __: ServiceRegistry) -> None:
        raise KeyError("gone")

    domain, handler = working(work, retries=5, give_up_on=(LookupError,))
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    assert contexts(host).count("started") == 1


@pytest.mark.parametrize("result", ["x" * (33 << 10), object(), float("nan")])
def test_a_result_that_cannot_be_kept_fails_the_job(host_of: HostOf, result: object) -> None:
    """A result is a JSON value of at most 32 KiB; another one is told, and not tried again."""
    domain, handler = working(lambda *_: result)
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)

    host.catch_up(jobs=True)

    row = row_of(host, asked.id)
    assert row.status == "failed"
    assert InvalidOutcome.__name__ in row.error
    assert contexts(host).count("started") == 1


def test_requests_of_one_unique_value_are_one_job(host_of: HostOf) -> None:
    """While a job is open, another of its unique value is merged into it; afterwards it is new."""
    done: list[str] = []
    domain, handler = working(
        lambda job, _: done.append(job.id), unique=lambda payload: str(payload["path"])
    )
    host = host_of(domain)
    first, second = (handler.request(entity="a", path="/r") for _ in range(2))
    other = handler.request(entity="a", path="/s")
    host.append([first, second, other])

    host.catch_up(jobs=True)
    third = handler.request(entity="a", path="/r")
    host.append(third)
    host.catch_up(jobs=True)

    assert done == [first.id, other.id, third.id]
    merged = row_of(host, second.id)
    assert (merged.status, merged.merged_into) == ("merged", first.id)
    with pytest.raises(InvalidRequest, match="parent"):
        handler.request(entity="a", unique="x", parent=first.id, path="/r")


def test_the_queue_takes_requests_in_their_own_words(host_of: HostOf) -> None:
    """`enqueue` finds a handler by its bare name, and keeps who asked; unknown ones are refused."""
    done: list[tuple[str, Any]] = []
    domain, _ = working(
        lambda job, _: done.append((job.entity, job.payload)), name="analyze_dependencies"
    )
    host = host_of(domain)
    repository = {"repo": "github.com/teranos/QNTX"}

    receipt = host.queue.enqueue("analyze_dependencies", repository, source="code-plugin")
    host.catch_up(jobs=True)

    assert done == [(receipt.id, repository)]
    (asked,) = host.ax(contexts="pulse.job_requested")
    assert asked.payload["source"] == "code-plugin"
    assert asked.payload["handler"] == "code.analyze_dependencies"
    assert host.queue.enqueue("biotech.align", {}, entity="e").position > 0
    for unknown in ("analyse_dependencies", "code.analyse_dependencies"):
        with pytest.raises(UnknownHandler, match="did you mean"):
            host.queue.enqueue(unknown)


def test_another_domains_job_is_asked_for_by_name(host_of: HostOf) -> None:
    """A derive handler asks for a job of a domain that it does not import."""
    done: list[Any] = []
    domain, _ = working(lambda job, _: done.append((job.entity, job.payload)))
    asking = Domain("asking", emits=())

    @asking.derive(Said)
    def ask(heard: Recorded[Said], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        yield request("code.work", entity=heard.entity, what=heard.payload.what)

    host = host_of(domain, asking)
    host.append(domain.attest(Said(what="x"), entity="repo"))

    host.catch_up(jobs=True)

    assert done == [("repo", {"what": "x"})]


def test_a_cancelled_job_never_runs(host_of: HostOf) -> None:
    """A job that waits and is cancelled is over."""
    domain, handler = working(lambda *_: pytest.fail("it ran"))
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append([asked, domain.attest(CancellationRequested(by="ann@desk"), entity=asked.id)])

    host.catch_up(jobs=True)

    assert row_of(host, asked.id).status == "cancelled"


def test_a_running_job_is_told_to_stop_at_once(host_of: HostOf) -> None:
    """In the same process a cancellation reaches a running handler without a renewal."""
    begun = threading.Event()

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        services.store.append(domain.attest(Said(what="half"), entity="a"))
        begun.set()
        until(lambda: job.cancelled)
        job.check()

    domain, handler = working(work)
    host = host_of(domain, settings=Settings(lease_seconds=600))
    asked = handler.request(entity="a")
    with host.running():
        host.append(asked)
        assert begun.wait(BOUND)
        host.append(domain.attest(CancellationRequested(by="ann@desk"), entity=asked.id))
        until(lambda: row_of(host, asked.id).status == "cancelled")

    assert said(host) == []


def test_a_job_that_succeeds_all_the_same_has_succeeded(host_of: HostOf) -> None:
    """Who does not listen to a cancellation and comes to its end has done its work."""

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        services.store.append(domain.attest(Said(what="x"), entity=job.id))

    domain, handler = working(work)
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)
    worker = worker_of(host)
    (claimed,) = worker.claim(1)
    host.append(domain.attest(CancellationRequested(), entity=asked.id))

    worker.execute(claimed)

    assert row_of(host, asked.id).status == "succeeded"
    assert said(host) == ["x"]


def expire(host: Host) -> None:
    """Let every lease run out."""
    with host.database.write() as connection:
        connection.execute(update(leases).values(expires_at=0))


def test_the_jobs_of_a_lost_worker_are_taken_over(host_of: HostOf) -> None:
    """Whoever's lease has run out is struck off by anybody, and its outcome counts no more."""
    swallowed: list[str] = []

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        services.store.append(domain.attest(Said(what=str(job.attempt)), entity="a"))
        try:
            job.advance("x")
        except StaleToken:
            swallowed.append("swallowed")

    domain, handler = working(work)
    host = host_of(domain)
    host.append(handler.request(entity="a"))
    lost, other = worker_of(host), worker_of(host)
    (asleep,) = lost.claim(1)
    expire(host)

    other.run_due()
    lost.execute(asleep)

    assert said(host) == ["2"]
    assert swallowed == ["swallowed"]
    assert lost.stale_tokens == 1
    (lapsed,) = host.ax(contexts="pulse.job_lapsed")
    assert lapsed.payload["reason"] == "worker_lost"


def test_an_attempt_that_vanished_is_not_repeated_where_that_was_asked(host_of: HostOf) -> None:
    """With `on_lapse="fail"` a job is tried at most once, whatever crashes."""
    domain, handler = working(lambda *_: pytest.fail("it ran again"), on_lapse="fail")
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)
    worker_of(host).claim(1)
    expire(host)

    worker_of(host).run_due()

    assert row_of(host, asked.id).status == "failed"


def test_dropping_every_lease_loses_nothing(host_of: HostOf) -> None:
    """A living worker whose lease row is gone makes it again, and its outcome counts."""
    domain, handler = working(lambda *_: "done")
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)
    worker = worker_of(host)
    (claimed,) = worker.claim(1)
    with host.database.write() as connection:
        connection.execute(delete(leases))

    worker_of(host).claim(1)  # which finds nobody, and lets the owner show that it lives
    assert worker._lease.renew()  # noqa: SLF001 - what its own thread does every five seconds
    worker.execute(claimed)

    assert row_of(host, asked.id).status == "succeeded"


def test_who_was_struck_off_goes_on_under_another_name(host_of: HostOf) -> None:
    """Renewing a lease that was struck off fails, and what the worker ran is told to stop."""
    domain, handler = working(lambda *_: None)
    host = host_of(domain)
    host.append(handler.request(entity="a"))
    worker = worker_of(host)
    worker.claim(1)
    before = worker.name
    expire(host)
    worker_of(host).claim(1)

    assert not worker._lease.renew()  # noqa: SLF001 - what its own thread does

    assert worker.name != before


def test_a_process_of_this_machine_that_is_gone_is_known_to_be() -> None:
    """By number and start time: this process lives, another of its number does not."""
    ours = this_process()
    who, pid, started, boot = ours.rsplit(" ", 3)

    assert not is_gone(ours)
    assert is_gone(f"{who} {pid} {int(started) - 1} {boot}")
    assert not is_gone(f"{who} {pid} {started} another-boot")
    assert not is_gone("unknown")


def test_a_handler_whose_attempts_vanish_is_paused(host_of: HostOf) -> None:
    """After five lapses in succession a handler starts nothing more, until a new version does."""
    domain, handler = working(lambda *_: pytest.fail("it ran"), retries=9)
    host = host_of(domain)
    host._declarations().state(host.log, is_whole=True)  # noqa: SLF001 - without running
    host.append(handler.request(entity="a"))

    for _ in range(12):  # a lapse and a start in turn
        worker_of(host).claim(1)
        expire(host)

    assert len(host.ax(contexts="pulse.job_lapsed")) == 5
    assert [one.entity for one in host.ax(contexts="pulse.handler_paused")] == ["code.work"]
    newer = Domain("code", version=2, emits=("said",))
    newer.job(name="work")(handler.function)
    Host(host.database.engine, [newer])._declarations().state(host.log, is_whole=True)  # noqa: SLF001
    with host.database.read() as connection:
        row = connection.execute(select(handlers)).one()
    assert (row.paused_by, row.lapses, row.version) == (None, 0, 2)


def test_a_token_of_another_log_does_not_count(sqlite_url: str) -> None:
    """Where an older backup was restored a position comes again: the log's epoch tells."""
    domain, handler = working(lambda *_: None)
    host = Host(sqlite_url, [domain])
    host.upgrade()
    asked = handler.request(entity="a")
    host.append(asked)
    worker = worker_of(host)
    (claimed,) = worker.claim(1)
    with host.database.write() as connection:
        connection.execute(update(epochs).values(epoch="another"))

    worker.execute(claimed)

    assert row_of(host, asked.id).status == "running"
    assert worker.stale_tokens == 1
    host.close()


def test_draining_gives_jobs_back_without_spending_an_attempt(host_of: HostOf) -> None:
    """What does not end in time is released, and another worker has all attempts for it."""
    begun, go_on = threading.Event(), threading.Event()

    def work(job: Job[Any], _: ServiceRegistry) -> None:
        begun.set()
        if job.attempt == 1 and not go_on.is_set():
            go_on.wait(BOUND)

    domain, handler = working(work, retries=0)
    host = host_of(domain, settings=Settings(drain_seconds=0.2))
    asked = handler.request(entity="a")
    with host.running():
        host.append(asked)
        assert begun.wait(BOUND)

    row = row_of(host, asked.id)
    assert (row.status, row.attempt) == ("ready", 0)
    go_on.set()
    host.catch_up(jobs=True)
    assert row_of(host, asked.id).status == "succeeded"
    with host.database.read() as connection:
        names = connection.execute(select(leases.c.name)).scalars().all()
    assert not [one for one in names if one.startswith("worker:")]


def test_coroutines_run_side_by_side(host_of: HostOf) -> None:
    """Twenty coroutines that wait for each other take no thread each."""
    domain = Domain("code")
    meeting: list[str] = []

    @domain.job(retries=0)
    async def meet(job: Job, services: ServiceRegistry) -> str:  # noqa: ARG001 - its shape
        meeting.append(job.entity)
        while len(meeting) < 20:  # noqa: ASYNC110 - an event would be of one loop
            await asyncio.sleep(0.01)
        return job.entity

    host = host_of(domain, settings=Settings(job_threads=1))
    host.append(meet.request(entity=str(n)) for n in range(20))
    with host.running():
        until(lambda: len(host.ax(contexts="pulse.job_succeeded")) == 20)


def test_a_coroutine_past_its_deadline_is_cancelled(host_of: HostOf) -> None:
    """A coroutine that never comes back is ended at its timeout, and the job is tried again."""
    domain = Domain("code")
    ended: list[str] = []

    @domain.job(retries=0, timeout=timedelta(seconds=0.2))
    async def wait(job: Job, services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        try:
            await asyncio.sleep(BOUND)
        finally:
            ended.append("ended")

    host = host_of(domain)
    asked = wait.request(entity="a")
    with host.running():
        host.append(asked)
        until(lambda: row_of(host, asked.id).status == "failed")

    assert ended == ["ended"]
    assert JobStopped.__name__ in row_of(host, asked.id).error


MODULE = """
import os
from datetime import timedelta
from qntx_es import Backoff, Domain, GiveUp, Payload

class Said(Payload, context="said"):
    what: str

far = Domain("far", emits=("said",))

@far.job(runs="process", retries=1, backoff=Backoff(first=timedelta(0), spread=0))
def work(job, services):
    services.store.append(far.attest(Said(what=job.payload["what"]), entity=job.entity))
    if job.payload["what"] == "exit" and job.attempt == 1:
        os._exit(3)
    if job.payload["what"] == "give up":
        raise GiveUp("no use")
    if job.state is None:
        job.advance("half")
        services.store.append(far.attest(Said(what="more"), entity=job.entity))
    job.spend(5)
    return {"pid": os.getpid(), "head": services.store.head()}
"""


def test_a_job_runs_in_a_process_of_its_own(
    host_of: HostOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by import, it says, advances, spends and returns as in a thread; it may even exit."""
    (tmp_path / "far_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import far_module  # type: ignore[import-not-found]  # noqa: PLC0415 - it is written just now

    host = host_of(far_module.far)
    asked = {
        what: far_module.work.request(entity=what, what=what) for what in ("a", "exit", "give up")
    }
    with host.running():
        host.append(asked.values())
        until(lambda: all(row_of(host, one.id).ended for one in asked.values()))

    statuses = {what: row_of(host, one.id).status for what, one in asked.items()}
    assert statuses == {"a": "succeeded", "exit": "succeeded", "give up": "failed"}
    assert sorted(said(host)) == ["a", "exit", "more", "more"]
    assert "exit code 3" in "".join(
        one.payload["error"] for one in host.ax(contexts="pulse.job_failed")
    )
    results = [one.payload for one in host.ax(contexts="pulse.job_succeeded")]
    assert all(one["cost"] == 5 for one in results)
    del sys.modules["far_module"]


def test_pruned_rows_stay_away_and_open_ones_stay(host_of: HostOf) -> None:
    """Rows of ended jobs are forgotten, and a rebuild forgets the same."""
    domain, handler = working(lambda *_: None)
    host = host_of(domain)
    host.append(handler.request(entity=str(n)) for n in range(3))
    host.catch_up(jobs=True)
    waits = handler.request(entity="later", delay=timedelta(days=1))
    host.append(waits)

    host.log.append(pulse.attest(JobsPruned(before=host.log.head() + 1), entity="pulse"))

    with host.database.read() as connection:
        left = connection.execute(select(jobs.c.job)).scalars().all()
    assert left == [waits.id]
    assert host.rebuild("pulse").is_same


def test_secrets_of_the_database_are_not_told(host_of: HostOf) -> None:
    """The password of the database's address is not in a recorded error."""
    domain, handler = working(lambda *_: None, retries=0)
    host = host_of(domain)
    host.append(handler.request(entity="a"))
    worker = worker_of(host)
    (claimed,) = worker.claim(1)
    worker._completion._secrets = ("s3cret",)  # noqa: SLF001 - test databases have no password
    object.__setattr__(claimed.handler, "function", _raise_secret)

    worker.execute(claimed)

    (failed,) = host.ax(contexts="pulse.job_failed")
    assert "s3cret" not in failed.payload["error"]
    assert "postgresql://ann:***@db" in failed.payload["error"]


def _raise_secret(*_: object) -> None:
    raise ConnectionError("postgresql://ann:s3cret@db")


def test_a_rebuild_calls_no_handler(host_of: HostOf) -> None:
    """The queue is rebuilt while a job runs: nobody is called, and the running job's end counts."""
    calls: list[str] = []
    domain, handler = working(lambda job, _: calls.append(job.entity))
    host = host_of(domain)
    host.append(handler.request(entity=str(n)) for n in range(5))
    worker = worker_of(host)
    (claimed,) = worker.claim(1)

    assert host.rebuild("pulse").is_same
    assert calls == []
    worker.execute(claimed)

    assert row_of(host, claimed.job.id).status == "succeeded"


def test_the_last_word_of_a_job_is_kept_with_its_outcome(host_of: HostOf) -> None:
    """How far a job said it was is told with how it ended, and what it spent."""

    def work(job: Job[Any], _: ServiceRegistry) -> None:
        job.progress(1, 3)
        job.progress(2, 3, "x" * 2_000)
        job.spend(7)
        job.spend(5)
        with pytest.raises(ValueError, match="does not come back"):
            job.spend(-1)

    domain, handler = working(work)
    host = host_of(domain)
    host.append(handler.request(entity="a"))

    host.catch_up(jobs=True)

    (ended,) = host.ax(contexts="pulse.job_succeeded")
    assert ended.payload["progress"] == {"done": 2, "total": 3, "message": "x" * 512}
    assert ended.payload["cost"] == 12


def test_a_job_that_says_too_much_fails_alone(host_of: HostOf) -> None:
    """What cannot be appended fails its own job, and those stated in the same pass succeed."""

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        count = 10_001 if job.entity == "much" else 1
        one = domain.attest(Said(what=job.entity), entity="a")
        services.store.append([one] * count)

    domain, handler = working(work)
    host = host_of(domain)
    asked = {name: handler.request(entity=name) for name in ("a", "much", "b")}
    host.append(asked.values())
    worker = worker_of(host)
    attempts = [worker._attempt(one) for one in worker.claim(3)]  # noqa: SLF001 - one pass, by hand
    for attempt in attempts:
        work(attempt.claimed.job, host._services(domain, attempt.store))  # noqa: SLF001 - as above
    completion = worker._completion  # noqa: SLF001 - as above

    completion.conclude([completion.returned(attempt, None) for attempt in attempts])

    statuses = {name: row_of(host, one.id).status for name, one in asked.items()}
    assert statuses == {"a": "succeeded", "much": "failed", "b": "succeeded"}
    assert said(host) == ["a", "b"]
    assert contexts(host).count("started") == 3, "another attempt could not help"


def test_an_outcome_whose_answer_was_lost_is_not_stated_twice(host_of: HostOf) -> None:
    """Sent again, it finds that it was itself what ended the attempt, and where it stands."""
    receipts: list[Any] = []

    def work(job: Job[Any], services: ServiceRegistry) -> None:
        receipts.append(services.store.append(domain.attest(Said(what="x"), entity=job.entity)))

    domain, handler = working(work)
    host = host_of(domain)
    asked = handler.request(entity="a")
    host.append(asked)
    worker = worker_of(host)
    (claimed,) = worker.claim(1)

    with faults.planned({"append.after_commit": fail(DatabaseUnavailable())}):
        worker.execute(claimed)

    assert row_of(host, asked.id).status == "succeeded"
    assert worker.stale_tokens == 0
    (one,) = host.ax(contexts="said")
    assert [receipt.position for receipt in receipts] == [one.position]
    assert contexts(host).count("succeeded") == 1
