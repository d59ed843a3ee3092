"""Pulse as a machine: anything may happen to a job in any order, and the promises hold.

Two workers over one database, driven by one thread, so that every order is chosen and repeatable.
After each step the rows are what the invariants of the fold say, and in the end faults stop, every
job ends, and what it said is in the log once.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select, update

from qntx_es import (
    Backoff,
    Domain,
    GiveUp,
    Host,
    Job,
    Payload,
    ServiceRegistry,
    Snooze,
    StaleToken,
    TryAgain,
    faults,
)
from qntx_es.faults import Crash, crash
from qntx_es.jobs import CancellationRequested, JobRequested
from qntx_es.log import Turn
from qntx_es.pulse import Worker, completion, pulse
from qntx_es.pulse.attempts import Claimed
from qntx_es.pulse.completion import Ended
from qntx_es.pulse.fold import unique_value
from qntx_es.pulse.statements import (
    JobChanged,
    JobResumed,
    JobRetried,
    JobsPruned,
    JobSuspended,
)
from qntx_es.pulse.tables import OPEN, jobs, unique
from qntx_es.tables import leases
from qntx_es.testing import PostgresServer

SECOND = 1_000_000_000
How: TypeAlias = Literal["succeed", "fail", "again", "give up", "snooze", "suspend"]
HOWS: tuple[How, ...] = ("succeed", "fail", "again", "give up", "snooze", "suspend")
POINTS = (
    "job.before_start", "job.after_start", "job.before_outcome", "job.after_outcome",
    "pass.before_commit", "append.after_commit",
)  # fmt: skip
STEPS_TO_THE_END = 400


class Told(Payload, context="told"):
    """What a job says: that this attempt did its work."""

    token: int


class Clock:
    """A clock that a machine moves, on SQLite."""

    def __init__(self) -> None:
        self.nanoseconds = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        """Return nanoseconds since 1970."""
        return self.nanoseconds


class Work:
    """A domain whose one handler does in each attempt what the machine says."""

    def __init__(self) -> None:
        self.next: How = "succeed"
        self.advances = False
        self.has_a_child = False
        self.domain = Domain("code", emits=("told",))
        self.refused = 0

        @self.domain.job(
            name="work", retries=1, backoff=Backoff(first=timedelta(0), spread=0), timeout=None
        )
        def work(job: Job, services: ServiceRegistry) -> object:
            return self._do(job, services)

        self.handler = work

    def _do(self, job: Job, services: ServiceRegistry) -> object:
        services.store.append(self.domain.attest(Told(token=job.token), entity=job.id))
        if self.advances:
            try:
                job.advance({"at": job.token})
            except StaleToken:
                self.refused += 1
        if self.has_a_child:
            services.store.append(self.handler.request(entity="child", parent=job.id))
        match self.next:
            case "succeed":
                return job.attempt
            case "fail":
                raise LookupError
            case "again":
                raise TryAgain(delay=timedelta(0))
            case "give up":
                raise GiveUp
            case "snooze":
                raise Snooze(delay=timedelta(0))
            case "suspend":
                job.suspend({"at": job.token})
        return None


class PulseMachine(RuleBasedStateMachine):
    """Two workers, their faults, and everybody who may say something to a job."""

    url: Callable[[], str]
    is_sqlite: bool

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.work = Work()
        self.host = Host(type(self).url(), [self.work.domain], clock=self.clock)
        self.asked: list[str] = []
        self.in_hand: list[tuple[Worker, Claimed]] = []

    @initialize()
    def begin(self) -> None:
        """Make the tables, and two workers with something to do."""
        self.host.upgrade()
        self.workers = [self.new_worker(), self.new_worker()]
        for key in "abc":
            self.request(None, 1, key)

    def teardown(self) -> None:
        """Let faults stop: then every job ends, and the queue is what the log makes of it."""
        try:
            if hasattr(self, "workers"):
                self.to_the_end()
        finally:
            self.host.close()

    # What may happen.

    @rule(
        value=st.sampled_from([None, None, "one"]),
        priority=st.integers(0, 3),
        key=st.sampled_from(["a", "b"]),
    )
    def request(self, value: str | None, priority: int, key: str) -> None:
        """Ask for a job, sometimes for one that may be asked for already."""
        asked = self.work.handler.request(entity=key, unique=value, priority=priority)
        self.host.append(asked)
        self.asked.append(asked.id)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def request_a_child(self, data: st.DataObject) -> None:
        """Ask for a job that another one may wait for, whatever has become of that."""
        parent = data.draw(st.sampled_from(self.asked))
        asked = self.work.handler.request(entity="child", parent=parent)
        self.host.append(asked)
        self.asked.append(asked.id)

    @rule(which=st.integers(0, 1), count=st.integers(1, 3))
    def claim(self, which: int, count: int) -> None:
        """Let a worker start what is due, and rescue what is lost."""
        worker = self.workers[which]
        self.in_hand += [(worker, one) for one in worker.claim(count)]

    @rule(which=st.integers(0, 1))
    def overtake(self, which: int) -> None:
        """Let one worker be given up for lost, and the other take over what it had."""
        with self.host.database.write() as connection:
            connection.execute(update(leases).values(expires_at=0))
        for _ in ("give up", "take over"):
            self.claim(which, 2)

    @rule(which=st.integers(0, 1), how=st.sampled_from(HOWS), has_a_child=st.booleans())
    def work_one(self, which: int, how: How, has_a_child: bool) -> None:  # noqa: FBT001 - drawn
        """Claim one and bring it to its end."""
        for claimed in self.workers[which].claim(1):
            self.run(self.workers[which], claimed, how, has_a_child=has_a_child)

    @precondition(lambda self: self.in_hand)
    @rule(
        data=st.data(), how=st.sampled_from(HOWS), advances=st.booleans(), has_a_child=st.booleans()
    )
    def finish(
        self,
        data: st.DataObject,
        how: How,
        advances: bool,  # noqa: FBT001 - drawn
        has_a_child: bool,  # noqa: FBT001 - drawn
    ) -> None:
        """Let an attempt come to its end, in time or long after it was given up."""
        worker, claimed = self.in_hand.pop(data.draw(st.integers(0, len(self.in_hand) - 1)))
        self.run(worker, claimed, how, advances=advances, has_a_child=has_a_child)

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data(), point=st.sampled_from(POINTS))
    def crash_at_an_outcome(self, data: st.DataObject, point: str) -> None:
        """Take a worker away while it states an outcome."""
        worker, claimed = self.in_hand.pop(data.draw(st.integers(0, len(self.in_hand) - 1)))
        with self.crashing(point):
            self.run(worker, claimed, "succeed")

    @rule(which=st.integers(0, 1), point=st.sampled_from(POINTS))
    def crash_at_a_claim(self, which: int, point: str) -> None:
        """Take a worker away while it claims; another one takes its place."""
        with self.crashing(point):
            self.workers[which].claim(2)
        self.workers[which] = self.new_worker()

    @rule()
    def lose_the_leases(self) -> None:
        """Stop everybody for longer than a lease: those who come back are late."""
        with self.host.database.write() as connection:
            connection.execute(update(leases).values(expires_at=0))

    @rule()
    def drop_the_leases(self) -> None:
        """Lose every soft row: no job is lost with it, and none ends twice."""
        with self.host.database.write() as connection:
            connection.execute(delete(leases))

    @rule(seconds=st.sampled_from([-3_600, 1, 20, 86_400]))
    def move_the_clock(self, seconds: int) -> None:
        """Let time pass, or go back an hour."""
        self.clock.nanoseconds += seconds * SECOND

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), what=st.sampled_from(["cancel", "retry", "hold", "resume", "change"]))
    def say_something(self, data: st.DataObject, what: str) -> None:
        """Let a person say something to any job, whether it fits or not."""
        job = data.draw(st.sampled_from(self.asked))
        said: dict[str, Payload] = {
            "cancel": CancellationRequested(by="ann@desk"),
            "retry": JobRetried(by="ann@desk"),
            "hold": JobSuspended(by="ann@desk"),
            "resume": JobResumed(by="ann@desk"),
            "change": JobChanged(by="ann@desk", priority=0),
        }
        self.host.log.append(pulse.attest(said[what], entity=job))

    @rule(share=st.sampled_from([0.25, 0.5]))
    def prune(self, share: float) -> None:
        """Forget what has ended in the beginning of the log."""
        before = JobsPruned(before=int(self.host.log.head() * share))
        self.host.log.append(pulse.attest(before, entity="pulse"))

    @rule()
    def rebuild(self) -> None:
        """Build the queue anew while jobs run: the same rows, and nobody is called."""
        assert self.host.rebuild("pulse").is_same

    # What always holds.

    @invariant()
    def rows_agree_with_each_other(self) -> None:
        """Hold the rows against each other after every step."""
        if not hasattr(self, "workers"):
            return
        rows = self.rows()
        held = {row.unique_value: row.job for row in rows.values() if is_holding(row)}
        assert held == {row.value: row.job for row in self.read(select(unique))}
        children = Counter(row.parent for row in rows.values() if row.counted)
        for row in rows.values():
            assert (row.token is not None) == (row.status == "running")
            assert (row.ended is None) == (row.status in OPEN)
            assert row.open_children == children[row.job]
            assert not row.counted or row.status in OPEN
            assert row.status != "suspended" or row.awaits in ("held", "children")
            assert row.awaits != "children" or row.open_children > 0
            assert row.attempt >= 0
            assert row.attempts_allowed is None or row.attempt <= row.attempts_allowed

    # How it is done.

    def new_worker(self) -> Worker:
        """Return one more worker."""
        return self.host._worker()  # noqa: SLF001 - one claim at a time is not the host's face

    def run(
        self,
        worker: Worker,
        claimed: Claimed,
        how: How,
        *,
        advances: bool = False,
        has_a_child: bool = False,
    ) -> None:
        """Run an attempt; one that counts no more leaves no trace."""
        self.work.next, self.work.advances = how, advances
        self.work.has_a_child = has_a_child and how in ("succeed", "suspend")
        row = self.rows().get(claimed.job.id)
        counts = row is not None and row.token == claimed.job.token
        before = self.host.log.head()
        worker.execute(claimed)
        if not counts:
            assert self.host.log.head() == before

    @contextmanager
    def crashing(self, point: str) -> Iterator[None]:
        """End whoever comes by a point, if somebody does."""
        with faults.planned({point: crash()}):
            try:
                yield
            except Crash:
                faults.sometimes("a worker was taken away in the middle of a decision")

    def read(self, statement: Any) -> Iterable[Any]:  # noqa: ANN401 - a select
        """Return rows as they are."""
        with self.host.database.read() as connection:
            return connection.execute(statement).all()

    def rows(self) -> dict[str, Any]:
        """Return the jobs by id."""
        return {row.job: row for row in self.read(select(jobs))}

    def to_the_end(self) -> None:
        """Stop all faults, release what is held, and run until nothing is open."""
        self.in_hand = []
        self.lose_the_leases()
        for _ in range(STEPS_TO_THE_END):
            left = [row for row in self.rows().values() if row.status in OPEN]
            if not left:
                break
            for row in left:
                if row.awaits == "held":
                    self.host.log.append(pulse.attest(JobResumed(), entity=row.job))
            self.clock.nanoseconds += 3_600 * SECOND
            worker = self.new_worker()
            for claimed in worker.claim(50):
                self.run(worker, claimed, "succeed")
            if not self.is_sqlite:
                self.lose_the_leases()
        assert not [row for row in self.rows().values() if row.status in OPEN]
        assert self.host.rebuild("pulse").is_same
        self.check_the_log()

    def check_the_log(self) -> None:
        """Nothing was started twice at once, ended twice, or said without its outcome."""
        log = list(self.host.log.read())
        succeeded = Counter(one.entity for one in log if one.context == "pulse.job_succeeded")
        assert all(count == 1 for count in succeeded.values())
        outcomes = Counter(
            one.payload["token"]
            for one in log
            if one.payload.get("token")
            and one.context.startswith("pulse.")
            and one.context != "pulse.job_advanced"
        )
        assert all(count == 1 for count in outcomes.values())
        told = Counter(one.payload["token"] for one in log if one.context == "told")
        assert all(count == 1 for count in told.values())
        starts = {one.position for one in log if one.context == "pulse.job_started"}
        assert set(outcomes) <= starts
        assert set(told) <= starts


def is_holding(row: Any) -> bool:  # noqa: ANN401 - a row of pulse_jobs
    """Tell whether a job keeps others of its unique value out."""
    return row.unique_value is not None and row.status in OPEN


def check(
    url: Callable[[], str],
    *,
    is_sqlite: bool,
    examples: int,
    phases: Collection[Phase] = tuple(Phase),
) -> None:
    """Run the machine on fresh databases."""
    made = type("Made", (PulseMachine,), {"url": staticmethod(url), "is_sqlite": is_sqlite})
    limits = settings(
        max_examples=examples,
        phases=phases,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(made, settings=limits)


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 20), ("postgresql", 10)])
def test_anything_may_happen_to_a_job(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    examples: int,
) -> None:
    """In every order of starts, ends, losses, crashes and rebuilds the queue's promises hold."""

    def sqlite_url() -> str:
        return f"sqlite:///{tmp_path_factory.mktemp('pulse') / 'qntx.db'}"

    if kind == "sqlite":
        check(sqlite_url, is_sqlite=True, examples=examples)
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        check(server.create_database, is_sqlite=False, examples=examples)


@pytest.mark.nightly
def test_anything_may_happen_to_a_job_all_night(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Many more orders, and longer ones."""

    def url() -> str:
        return f"sqlite:///{tmp_path_factory.mktemp('pulse') / 'qntx.db'}"

    check(url, is_sqlite=True, examples=500)


def test_a_queue_without_its_fence_is_found(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker is checked: where every outcome counts, whatever its token, it fails."""

    def url() -> str:
        return f"sqlite:///{tmp_path_factory.mktemp('pulse') / 'qntx.db'}"

    def all_are_entitled(_: Turn, group: Iterable[Ended]) -> set[int]:
        return {one.claimed.job.token for one in group}

    monkeypatch.setattr(completion, "_entitled", all_are_entitled)

    with pytest.raises(AssertionError):
        check(url, is_sqlite=True, examples=50, phases=(Phase.generate,))


def test_no_child_is_merged() -> None:
    """A child that others wait for is a job of its own, whatever unique value it names."""
    said = JobRequested(handler="code.work", unique="one", parent="x")
    assert unique_value(said) is None
