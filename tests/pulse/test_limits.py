"""Limits, rates and budgets: exact over all workers, counted from the log and not believed."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qntx_es import Domain, Host, Job, JobHandler, Recorded, ServiceRegistry, Settings
from qntx_es.config import BudgetSettings, QueueSettings
from qntx_es.pulse import Worker, pulse
from qntx_es.pulse.claim import Candidate, Rooms, admit
from qntx_es.pulse.statements import HandlerPaused, HandlerResumed, QueuePaused, QueueResumed

BOUND = 60
CLAIMERS = 8
SECOND = 1_000_000_000
NOON = datetime(2026, 1, 4, 12, tzinfo=UTC)
HostOf = Callable[..., Host]


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.nanoseconds = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        """Return nanoseconds since 1970."""
        return self.nanoseconds


def working(
    function: Callable[[Job[Any]], object] = lambda _: None,
    **options: Any,  # noqa: ANN401
) -> tuple[Domain, JobHandler[Any]]:
    """Make a domain of one job."""
    domain = Domain("code", emits=("said",))

    @domain.job(name="work", **options)
    def work(job: Job, services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        function(job)

    return domain, work


def worker_of(host: Host) -> Worker:
    """Return one more worker of this host."""
    return host._worker()  # noqa: SLF001 - one claim at a time is not the host's face


def declare(host: Host) -> None:
    """Say what the host's handlers may do, as it does when it starts."""
    host._declarations().state(host.log, is_whole=True)  # noqa: SLF001 - without running


def lives(host: Host) -> Iterable[tuple[int, int, str]]:
    """Return of each attempt where it started and ended in the log, and its job's entity."""
    log = list(host.log.read())
    entities = {one.id: one.entity for one in log if one.context == "pulse.job_requested"}
    ends = {one.payload["token"]: one.position for one in log if one.payload.get("token")}
    for one in log:
        if one.context == "pulse.job_started":
            yield one.position, ends.get(one.position, len(log) + 1), entities[one.entity]


def most_at_once(spans: Iterable[tuple[int, int]]) -> int:
    """Return how many of the spans overlap at most."""
    steps = sorted((at, by) for start, end in spans for at, by in ((start, 1), (end, -1)))
    running = most = 0
    for _, by in steps:
        running += by
        most = max(most, running)
    return most


def run_all(host_of: HostOf, domain: Domain, handler: JobHandler[Any], count: int) -> Host:
    """Let eight workers do so many jobs of a few entities side by side."""
    host = host_of(domain)
    declare(host)
    host.append(handler.request(entity=f"e{n % 3}") for n in range(count))

    def work() -> None:
        worker = worker_of(host)
        while True:
            worker.run_due()
            done = len(host.ax(contexts="pulse.job_succeeded"))
            if done >= count:
                return

    threads = [threading.Thread(target=work) for _ in range(CLAIMERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    return host


def test_eight_claimers_never_pass_a_limit(host_of: HostOf) -> None:
    """With `limit=1` no two attempts of a handler overlap in the log, whoever claims."""
    domain, handler = working(limit=1)

    host = run_all(host_of, domain, handler, 12)

    spans = [(start, end) for start, end, _ in lives(host)]
    assert len(spans) == 12
    assert most_at_once(spans) == 1


def test_eight_claimers_never_pass_a_limit_of_a_key(host_of: HostOf) -> None:
    """With `per_key=1` no two attempts about one entity overlap, and others go on beside them."""
    domain, handler = working(per_key=1)

    host = run_all(host_of, domain, handler, 12)

    by_entity: dict[str, list[tuple[int, int]]] = {}
    for start, end, entity in lives(host):
        by_entity.setdefault(entity, []).append((start, end))
    assert {entity: len(spans) for entity, spans in by_entity.items()} == dict.fromkeys(
        ("e0", "e1", "e2"), 4
    )
    assert max(map(most_at_once, by_entity.values())) == 1


def most_in(starts: Iterable[Recorded[Any]], window: timedelta) -> int:
    """Return how many starts lie in any window of this length."""
    times = sorted(one.recorded_at for one in starts)
    return max(sum(first <= at < first + window for at in times) for first in times)


def test_a_rate_holds_in_any_window(sqlite_url: str) -> None:
    """However time passes, no window of a minute ever holds more starts than the rate allows."""
    clock = Clock()
    domain, handler = working(rate="5/m")
    host = Host(sqlite_url, [domain], clock=clock)
    host.upgrade()
    declare(host)
    host.append(handler.request(entity=str(n)) for n in range(40))

    for _ in range(40):
        for _ in range(2):
            worker_of(host).run_due()
        clock.nanoseconds += 7 * SECOND

    starts = host.ax(contexts="pulse.job_started")
    assert most_in(starts, timedelta(minutes=1)) == 5
    assert len(starts) >= 20, "the rate starves nobody"
    assert host.rebuild("pulse").is_same
    host.close()


def test_eight_claimers_never_pass_a_rate(host_of: HostOf) -> None:
    """Over all workers no more are started in a window than the rate allows."""
    domain, handler = working(rate="4/d")
    host = host_of(domain)
    declare(host)
    host.append(handler.request(entity=str(n)) for n in range(20))

    threads = [threading.Thread(target=worker_of(host).run_due) for _ in range(CLAIMERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)

    assert len(host.ax(contexts="pulse.job_started")) == 4


def test_a_budget_runs_out_and_comes_back_by_itself(sqlite_url: str) -> None:
    """Jobs wait for a budget that is spent, and go on when its window has passed: nobody acts."""
    clock = Clock()
    domain, handler = working(lambda job: job.spend(400_000), cost=300_000, budget="llm")
    settings = Settings(budgets={"llm": BudgetSettings(amount=1, window="1h")})
    host = Host(sqlite_url, [domain], clock=clock, settings=settings)
    host.upgrade()
    host.append(handler.request(entity=str(n)) for n in range(4))

    host.catch_up(jobs=True)
    assert len(host.ax(contexts="pulse.job_succeeded")) == 2, "0.4 + 0.4 leave no room for 0.3"

    clock.nanoseconds += 3_700 * SECOND
    host.catch_up(jobs=True)

    assert len(host.ax(contexts="pulse.job_succeeded")) == 4
    assert host.rebuild("pulse").is_same
    host.close()


def test_a_budget_is_told_once_at_each_edge(sqlite_url: str) -> None:
    """That a budget ran out, and that it is there again, is said once each."""
    clock = Clock()
    domain, handler = working(lambda job: job.spend(1_000_000), cost=1_000_000, budget="llm")
    settings = Settings(budgets={"llm": BudgetSettings(amount=1, window="1h")})
    host = Host(sqlite_url, [domain], clock=clock, settings=settings)
    host.upgrade()
    host.append(handler.request(entity=str(n)) for n in range(3))

    for _ in range(3):
        for _ in range(3):
            host.catch_up(jobs=True)
        clock.nanoseconds += 3_700 * SECOND

    told = [one.context for one in host.log.read() if one.context.startswith("pulse.budget_")]
    assert told[0] == "pulse.budget_declared"
    assert set(told[1::2]) == {"pulse.budget_exhausted"}
    assert set(told[2::2]) == {"pulse.budget_restored"}
    assert len(host.ax(contexts="pulse.job_succeeded")) == 3
    host.close()


def test_a_queue_has_limits_in_common(host_of: HostOf) -> None:
    """Handlers of one queue share its room."""
    domain = Domain("code")
    for name in ("one", "two"):

        @domain.job(name=name, queue="slow")
        def work(job: Job, services: ServiceRegistry) -> None: ...

    host = host_of(domain, settings=Settings(queues={"slow": QueueSettings(limit=3)}))
    declare(host)
    host.append(handler.request(entity=str(n)) for n in range(4) for handler in domain.jobs)

    claimed = [one for _ in range(3) for one in worker_of(host).claim(2)]

    assert len(claimed) == 3


@pytest.mark.parametrize("what", ["handler", "queue"])
def test_what_is_paused_starts_nothing(host_of: HostOf, what: str) -> None:
    """A paused handler or queue starts nothing on any host until it is resumed."""
    domain, handler = working()
    host = host_of(domain)
    declare(host)
    host.append(handler.request(entity="a"))
    said = {
        "handler": (HandlerPaused(by="ann@desk"), HandlerResumed(by="ann@desk"), "code.work"),
        "queue": (QueuePaused(by="ann@desk"), QueueResumed(by="ann@desk"), "code"),
    }
    pause, resume, name = said[what]

    host.log.append(pulse.attest(pause, entity=name))
    assert worker_of(host).claim(1) == []
    host.log.append(pulse.attest(resume, entity=name))

    assert len(worker_of(host).claim(1)) == 1


def test_what_is_blocked_does_not_stand_before_others(host_of: HostOf) -> None:
    """Jobs of a full key and of next week do not keep one that could run from starting."""
    domain, handler = working(per_key=1)
    host = host_of(domain)
    declare(host)
    host.append(handler.request(entity="full") for _ in range(500))
    host.append(
        handler.request(entity=f"later{n}", priority=0, delay=timedelta(days=7)) for n in range(500)
    )
    (first,) = worker_of(host).claim(5)
    host.append(handler.request(entity="z"))

    claimed = worker_of(host).claim(5)

    assert first.job.entity == "full"
    assert [one.job.entity for one in claimed] == ["z"]


def test_keys_take_turns(host_of: HostOf) -> None:
    """A worker that claims one at a time visits every key before it comes back to the first."""
    domain, handler = working(per_key=2)
    host = host_of(domain)
    declare(host)
    host.append(handler.request(entity=key) for key in "abc" for _ in range(2))
    worker = worker_of(host)

    claimed = [one.job.entity for _ in range(6) for one in worker.claim(1)]

    assert claimed == ["a", "b", "c", "a", "b", "c"]


def test_urgent_jobs_come_first(host_of: HostOf) -> None:
    """Within a queue it goes by priority, then time, then position."""
    domain, handler = working()
    host = host_of(domain)
    host.append(handler.request(entity=str(n), priority=n) for n in (3, 1, 0, 2))

    claimed = [one.job.entity for one in worker_of(host).claim(4)]

    assert claimed == ["0", "1", "2", "3"]


candidates = st.builds(
    Candidate,
    job=st.uuids().map(str),
    requested=st.integers(1, 99),
    handler=st.sampled_from(["a.one", "a.two", "b.one"]),
    key=st.sampled_from("xyz"),
    attempt=st.just(0),
    priority=st.integers(0, 3),
    run_at=st.integers(0, 9).map(lambda n: NOON + timedelta(seconds=n)),
    cost=st.integers(0, 5),
    advanced=st.none(),
    queue=st.sampled_from(["a", "b"]),
    effort=st.sampled_from([1.0, 0.25]),
    runs=st.just("thread"),
)


@given(
    st.lists(candidates, max_size=30),
    st.integers(0, 5),
    st.dictionaries(st.sampled_from(["a.one", "a.two", "b.one"]), st.integers(0, 4)),
    st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 4)),
    st.integers(0, 10),
)
def test_no_room_is_given_twice(
    waiting: list[Candidate],
    slots: int,
    of_handlers: dict[str, int],
    of_queues: dict[str, int],
    money: int,
) -> None:
    """Whatever waits, those admitted fit into every room at once, and who is left out does not."""
    budget_of = {"a.one": "llm", "b.one": "llm"}
    rooms = Rooms(
        {"thread": slots},
        dict(of_handlers),
        dict(of_queues),
        budgets={"llm": money},
        budget_of=budget_of,
        weights={"b": 3},
    )

    admitted = admit(waiting, rooms)

    assert sum(one.effort for one in admitted) <= slots
    for name, count in Counter(one.handler for one in admitted).items():
        assert count <= of_handlers.get(name, count)
    for name, count in Counter(one.queue for one in admitted).items():
        assert count <= of_queues.get(name, count)
    assert sum(one.cost for one in admitted if one.handler in budget_of) <= max(money, 0)
    left = [one for one in waiting if one not in admitted]
    assert not any(rooms.take(one) for one in left)


def test_queues_take_turns_by_weight() -> None:
    """A queue of weight 3 is served three times as often as one of weight 1."""
    waiting = [
        Candidate(f"{q}{n}", n, f"{q}.work", "k", 0, 1, NOON, 0, None, q, 1.0, "thread")
        for q in "ab"
        for n in range(40)
    ]

    admitted = admit(waiting, Rooms({"thread": 20}, weights={"a": 1, "b": 3}))

    assert Counter(one.queue for one in admitted) == {"a": 5, "b": 15}
