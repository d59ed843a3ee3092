"""Why is it not running? Each reason is produced, and told with its numbers and its remedy."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete

from qntx_es import Attestation, Domain, Host, Job, JobHandler, ServiceRegistry, Settings
from qntx_es.config import BudgetSettings, QueueSettings
from qntx_es.pulse import Worker, pulse
from qntx_es.pulse.statements import (
    HandlerPaused,
    JobSuspended,
    QueuePaused,
)
from qntx_es.pulse.why import why
from qntx_es.tables import leases

HostOf = Callable[..., Host]


def working(**options: Any) -> tuple[Domain, JobHandler[Any]]:  # noqa: ANN401
    """Make a domain of one job that does nothing."""
    domain = Domain("code")

    @domain.job(name="work", **options)
    def work(job: Job, services: ServiceRegistry) -> None: ...

    return domain, work


def worker_of(host: Host) -> Worker:
    """Return one more worker of this host."""
    return host._worker()  # noqa: SLF001 - one claim at a time is not the host's face


def declared(host: Host) -> Host:
    """Let the host say what its handlers may do, and show a worker."""
    host._declarations().state(host.log, is_whole=True)  # noqa: SLF001 - without running
    worker_of(host).claim(1)
    return host


def reasons(host: Host, job: str) -> dict[str, str]:
    """Return the reasons for which a job is not running, by kind, nearest first."""
    with host.log.reading() as turn:
        found = why(turn, job)
    assert all(one.remedy for one in found)
    return {one.kind: one.text for one in found}


def ask(host: Host, handler: JobHandler[Any], **options: Any) -> str:  # noqa: ANN401
    """Ask for a job, and return its id."""
    asked = handler.request(**({"entity": "repo"} | options))
    host.append(asked)
    return asked.id


def test_a_job_that_nobody_knows_or_that_is_over_says_so(host_of: HostOf) -> None:
    """An unknown id, an ended, a running and a merged job are told apart."""
    domain, handler = working()
    host = declared(host_of(domain))
    runs = ask(host, handler, unique="one")
    merged = ask(host, handler, unique="one")
    worker = worker_of(host)
    (claimed,) = worker.claim(1)

    assert reasons(host, "nobody") == {"unknown": "no job has this id, or its row was pruned"}
    assert list(reasons(host, runs)) == ["running"]
    assert runs in reasons(host, merged)["merged"]
    worker.execute(claimed)
    assert "succeeded" in reasons(host, runs)["ended"]


def test_a_job_that_waits_for_time_people_or_children_says_so(host_of: HostOf) -> None:
    """A delay, a person who holds it, and open children are told with who and how many."""
    domain, handler = working()
    host = declared(host_of(domain))
    later = ask(host, handler, delay=timedelta(minutes=4, seconds=20))
    held = ask(host, handler)
    host.log.append(pulse.attest(JobSuspended(by="ann@desk"), entity=held))
    parent = ask(host, handler)
    (claimed,) = worker_of(host).claim(1)
    ask(host, handler, parent=parent)
    host.log.append(pulse.attest(JobSuspended(token=claimed.job.token), entity=parent))

    assert reasons(host, later)["due"] == "it is due in 4 min"
    assert reasons(host, held) == {"held": "it is held by ann@desk"}
    assert reasons(host, parent) == {"children": "it waits for 1 of 1 children"}


def test_a_job_that_nobody_could_run_says_so(host_of: HostOf) -> None:
    """An undeclared handler and the lack of any worker are told."""
    _, handler = working()
    host = host_of()
    job = ask(host, handler)

    assert list(reasons(host, job)) == ["handler", "worker", "line"]


@pytest.mark.parametrize("is_queue", [False, True], ids=["handler", "queue"])
def test_a_pause_is_told_with_who_and_why(host_of: HostOf, *, is_queue: bool) -> None:
    """A paused handler or queue is told."""
    domain, handler = working()
    host = declared(host_of(domain))
    job = ask(host, handler)
    pause = QueuePaused if is_queue else HandlerPaused
    said = pause(by="ann@desk", reason="the API is down")
    host.log.append(pulse.attest(said, entity="code" if is_queue else "code.work"))

    told = reasons(host, job)["queue_paused" if is_queue else "handler_paused"]

    assert "ann@desk" in told
    assert "the API is down" in told


def test_limits_are_told_with_their_numbers(host_of: HostOf) -> None:
    """A full queue, handler and key, each says how many run of how many, and who holds the key."""
    domain, handler = working(limit=1, per_key=1)
    settings = Settings(queues={"code": QueueSettings(limit=1)})
    host = declared(host_of(domain, settings=settings))
    holder, job = ask(host, handler), ask(host, handler)
    worker_of(host).claim(1)

    told = reasons(host, job)

    assert told["queue_full"] == "queue `code` is full: 1 of 1 run"
    assert told["handler_full"] == "its handler is full: 1 of 1 run"
    assert holder in told["key_full"]
    assert told["line"] == "it is number 1 in line for `code.work`"


def test_rates_and_budgets_are_told_with_when_they_have_room(host_of: HostOf) -> None:
    """A rate that is used up and a budget that is reserved say how much, and until when."""
    domain, handler = working(rate="1/h", cost=400_000, budget="llm")
    settings = Settings(budgets={"llm": BudgetSettings(amount=0.5, window="1d", unit="EUR")})
    host = declared(host_of(domain, settings=settings))
    ask(host, handler)
    job = ask(host, handler, cost=400_000)
    worker_of(host).claim(1)

    told = reasons(host, job)

    assert told["rate"].startswith("the rate of its handler is used up: 1 of 1, next in ")
    assert told["budget"] == "budget `llm`: 0.00 spent and 0.40 reserved of 0.50 EUR"


def test_a_queue_that_does_not_follow_is_the_first_reason(host_of: HostOf) -> None:
    """Where Pulse is degraded, nothing else that is said can be relied on."""
    domain, handler = working()
    host = declared(host_of(domain))
    job = ask(host, handler)
    host.log.append(
        Attestation(context="pulse.job_requested", entity="x", actor="eve", payload={"no": 1})
    )

    assert next(iter(reasons(host, job))) == "degraded"


def test_what_runs_no_more_is_no_worker(host_of: HostOf) -> None:
    """Only a lease that has not run out shows a worker."""
    domain, handler = working()
    host = declared(host_of(domain))
    job = ask(host, handler)
    with host.database.write() as connection:
        connection.execute(delete(leases))

    assert "worker" in reasons(host, job)


def test_a_request_without_a_position_is_in_the_inbox(postgres_url: str) -> None:
    """On PostgreSQL what a caller has just committed is told apart from what nobody knows."""
    domain, handler = working()
    host = Host(postgres_url, [domain])
    host.upgrade()
    asked = handler.request(entity="repo")
    with host.database.engine.begin() as connection:
        host.append(asked, session=connection)

    assert list(reasons(host, asked.id)) == ["inbox"]
    host.close()
