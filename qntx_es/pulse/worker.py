"""Does the slow and the outside things: claims what is due, runs it, states the outcome.

A start is attested before the handler runs, so that no crash makes more attempts than were allowed.
One thread claims, one states outcomes, one renews the lease; handlers run in executors. Claims and
outcomes are decided at the head of the log, many in one pass, so no two workers start one job, and
an attempt that was given up for lost can do no harm when it wakes.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from queue import SimpleQueue
from statistics import median
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any

from sqlalchemy import bindparam, select

from qntx_es import faults
from qntx_es.attestation import Attestation, Json, Recorded, decode_mapping, instant
from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import PulseBehind, QntxError
from qntx_es.jobs import EARLIEST, Job, JobHandler, Runs
from qntx_es.log import COLUMNS, Log, Receipt, Turn
from qntx_es.pulse.attempts import Attempt, Claimed, JobStore
from qntx_es.pulse.claim import CLAIM_MAX, Candidate, Claims, Offer, is_behind
from qntx_es.pulse.completion import Completion, Ended
from qntx_es.pulse.executors import Executor, Loop, Processes, Threads, run_here
from qntx_es.pulse.rescue import WorkerLease, is_needed, rescues
from qntx_es.pulse.tables import jobs
from qntx_es.services import ServiceRegistry, Store
from qntx_es.tables import attestations, epochs

LOOK_SECONDS_MAX = 1.0
# How often a running worker looks whether others have lost theirs.
RESCUE_SECONDS = 2.0
# How much of the time to drain handlers have; the rest is for stating what became of them.
DRAIN_SHARE = 0.8
# Coroutines that wait take no thread.
LOOP_SLOTS = 100
# Handlers quicker than this are fetched ahead, so many seconds of work for each slot.
QUICK_SECONDS, AHEAD_SECONDS = 0.005, 0.05
MEASURED = 20
MEASURED_LEAST = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """What a worker needs of its host: where it is, and what its jobs are handed.

    `registry` makes the services of a job in another process, which finds it by import.
    """

    url: str
    services: Callable[[Domain, Store], ServiceRegistry]
    registry: Callable[[Domain, Database, Store], ServiceRegistry]
    threads: int = 4
    lease_seconds: float = 15.0
    drain_seconds: float = 10.0
    secrets: tuple[str, ...] = ()


@dataclass(slots=True)
class _Pace:
    """How long a handler takes, by its last attempts."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=MEASURED))

    @property
    def effort(self) -> float:
        """How much of a slot one job takes: quick ones are fetched ahead, many for one slot."""
        if len(self.seconds) < MEASURED_LEAST:
            return 1.0
        middle = median(self.seconds)
        if middle >= QUICK_SECONDS:
            return 1.0
        return max(middle / AHEAD_SECONDS, 1 / CLAIM_MAX)


@dataclass(slots=True)
class Started:
    """What one decision has started: the jobs, and the receipt of the start of each."""

    jobs: list[Candidate] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    epoch: str = ""
    at: datetime = EARLIEST


class Worker:
    """Runs the job handlers of a host's domains."""

    def __init__(
        self,
        database: Database,
        log: Log,
        domains: Iterable[Domain],
        places: Places,
        stopping: Event,
    ) -> None:
        self._database = database
        self._log = log
        self._handlers: Mapping[str, tuple[JobHandler[Any], Domain]] = {
            handler.name: (handler, domain) for domain in domains for handler in domain.jobs
        }
        self._places = places
        self._stopping = stopping
        self._paces = {name: _Pace() for name in self._handlers}
        self._claims = Claims(self._offers(), is_sqlite=database.is_sqlite)
        self._in_hand: dict[int, tuple[Attempt, float]] = {}
        self._lock = Lock()
        self._ended: SimpleQueue[Ended | None] = SimpleQueue()
        self._completion = Completion(log, secrets=places.secrets)
        self._lease = WorkerLease(database, places.lease_seconds, self._lease_changed)
        self.wake = Event()
        # When the next job is due, as it was seen last.
        self._next_due: datetime | None = None
        self._seen_at = EARLIEST
        self._is_running = False
        self._rescued_at = -RESCUE_SECONDS
        # Set where so many threads were left behind that this process had better begin anew.
        self.is_spent = Event()

    @property
    def name(self) -> str:
        """The worker's name: another one each time that it was given up for lost."""
        return self._lease.worker

    @property
    def stale_tokens(self) -> int:
        """How many outcomes of this worker did not count."""
        return self._completion.stale_tokens

    # In the calling thread.

    def run_due(self) -> int:
        """Run what is due, in the calling thread, until nothing is; return how many attempts."""
        if not self._handlers:
            return 0
        if not any(self._look()):
            return 0
        attempts = 0
        self._lease.keep()
        is_given_back = False
        try:
            # What was only lapsed may be due again at once, so an empty claim is not the end of it.
            while started := self._start({"thread": 1.0, "loop": 1.0, "process": 1.0}, most=1):
                for claimed in self._claimed(started):
                    self.execute(claimed)
                    attempts += 1
            is_given_back = True
        finally:
            # Whoever is torn out of a job leaves its lease, as a process that dies does.
            self._lease.let_go(is_given_back=is_given_back)
        return attempts

    def claim(self, slots: int) -> list[Claimed]:
        """Start at most `slots` of the jobs that are due, and return them."""
        if not self._handlers:
            return []
        self._lease.take()
        free: dict[Runs, float] = {"thread": slots, "loop": slots, "process": slots}
        started = self._start(free, most=slots)
        return self._claimed(started) if started else []

    def execute(self, claimed: Claimed) -> None:
        """Run one attempt in the calling thread and state its outcome."""
        attempt = self._attempt(claimed)
        ended: list[Ended] = []

        def done(one: Attempt, result: object, error: BaseException | None) -> None:
            ended.append(self._end(one, result, error))

        with self._lock:
            self._in_hand[claimed.job.token] = (attempt, 1.0)
        try:
            run_here(attempt, self._places.services, done)
        finally:
            with self._lock:
                self._in_hand.pop(claimed.job.token, None)
        self._completion.conclude(ended)

    # In threads.

    def run(self) -> None:
        """Run what is due until told to stop; then let what runs end, or give it back."""
        if not self._handlers:
            self._stopping.wait()
            return
        executors: dict[Runs, Executor] = {}
        self._is_running = True
        finisher = Thread(target=self._finish, name="job-finisher")
        finisher.start()
        self._keep_lease()
        try:
            while not (self._stopping.is_set() or self.is_spent.is_set()):
                self.wake.clear()
                wait = self._claim_some(executors)
                if wait > 0:
                    self.wake.wait(wait)
            self._drain()
        finally:
            for executor in executors.values():
                executor.close()
            self._ended.put(None)
            finisher.join()
            self._let_lease_go()
            self._is_running = False

    def _keep_lease(self) -> None:
        while not self._stopping.is_set():
            try:
                self._lease.keep()
            except QntxError as error:
                logger.warning("no job can be claimed: %s", error)
                self._stopping.wait(LOOK_SECONDS_MAX)
            else:
                return

    def _let_lease_go(self) -> None:
        try:
            self._lease.let_go()
        except QntxError as error:
            logger.warning("the lease of worker %s runs out by itself: %s", self.name, error)

    def look(self) -> None:
        """Look at once whether somebody wants a job of this worker to stop."""
        self._lease.look()

    def _claim_some(self, executors: dict[Runs, Executor]) -> float:
        """Start what there is room for; return for how long there is nothing to do."""
        free = self._free()
        if max(free.values()) < 1 or not self._lease.may_start:
            return LOOK_SECONDS_MAX
        try:
            started = self._start(free)
            claimed = self._claimed(started) if started else []
        except QntxError as error:
            logger.warning("no job can be claimed: %s", error)
            return LOOK_SECONDS_MAX
        for one in claimed:
            self._submit(one, executors)
        return self._seconds_to_next() if started is None else 0.0

    def _submit(self, claimed: Claimed, executors: dict[Runs, Executor]) -> None:
        attempt = self._attempt(claimed)
        runs = claimed.handler.options.runs
        effort = self._claims.offers[claimed.handler.name].effort
        with self._lock:
            self._in_hand[claimed.job.token] = (attempt, effort)
        if runs not in executors:
            executors[runs] = self._executor(runs)
        executors[runs].submit(attempt, self._came_back)

    def _executor(self, runs: Runs) -> Executor:
        places = self._places
        if runs == "thread":
            return Threads(places.services, places.threads)
        if runs == "loop":
            return Loop(places.services)
        return Processes(places.url, places.registry, places.threads)

    def _came_back(self, attempt: Attempt, result: object, error: BaseException | None) -> None:
        pace = self._paces[attempt.claimed.handler.name]
        pace.seconds.append(monotonic() - attempt.running_since)
        ended = self._end(attempt, result, error)
        with self._lock:
            is_ours = self._in_hand.pop(attempt.claimed.job.token, None) is not None
            if is_ours:  # and was not given back meanwhile
                self._ended.put(ended)
        if self._stopping.is_set() or max(self._free().values()) >= 1:
            self.wake.set()

    def _finish(self) -> None:
        """State outcomes, as many in one pass as have gathered, until told that there are none."""
        is_last = False
        while not is_last:
            first = self._ended.get()
            group: list[Ended] = [] if first is None else [first]
            is_last = first is None
            while not is_last and not self._ended.empty() and len(group) < CLAIM_MAX:
                one = self._ended.get()
                is_last = one is None
                group += [] if one is None else [one]
            if group:
                try:
                    self._completion.conclude(group)
                except Exception:
                    logger.exception("outcomes of %d jobs could not be stated", len(group))

    def _drain(self) -> None:
        """Wait for what runs; give the rest back in time, which costs no attempt."""
        deadline = monotonic() + self._places.drain_seconds * DRAIN_SHARE
        while self._in_hand and (left := deadline - monotonic()) > 0:
            self.wake.wait(left)
            self.wake.clear()
        with self._lock:
            attempts = [attempt for attempt, _ in self._in_hand.values()]
            self._in_hand.clear()
            for attempt in attempts:
                attempt.stop("draining")
                self._ended.put(self._completion.released(attempt))

    # Claims.

    def _free(self) -> dict[Runs, float]:
        free: dict[Runs, float] = {
            "thread": self._places.threads,
            "loop": LOOP_SLOTS,
            "process": self._places.threads,
        }
        with self._lock:
            for attempt, effort in self._in_hand.values():
                free[attempt.claimed.handler.options.runs] -= effort
        return free

    def _offers(self) -> dict[str, Offer]:
        return {
            name: Offer(handler, self._paces[name].effort)
            for name, (handler, _) in self._handlers.items()
        }

    def _start(self, free: Mapping[Runs, float], *, most: int = CLAIM_MAX) -> Started | None:
        """Start and rescue what there is; None where nothing was to be decided."""
        is_due, is_lost = self._look()
        if not (is_due or is_lost):
            return None
        self._claims.offers = self._offers()
        started = Started()

        def decide(turn: Turn) -> Iterator[Attestation]:
            if is_behind(turn):
                logger.warning("no job is started: %s", PulseBehind())
                return
            if is_lost:
                yield from rescues(turn, self._places.lease_seconds)
            (started.epoch,) = turn.read(select(epochs.c.epoch))[0]
            started.at = instant(turn.now)
            yield from self._claims.starts(turn, self.name, free, started.jobs, most)

        faults.point("job.before_start")
        receipts = self._log.decide(decide)
        faults.point("job.after_start")
        started.receipts = receipts[len(receipts) - len(started.jobs) :]
        return started if receipts else None

    def _look(self) -> tuple[bool, bool]:
        """Tell whether a job is due, and whether one may be lost.

        Without the lock: an idle worker must not make appenders wait.
        """
        with self._log.reading() as turn:
            self._next_due, now = self._claims.next_due(turn), instant(turn.now)
            self._seen_at = now
            is_lost = False
            if not self._is_running or monotonic() - self._rescued_at >= RESCUE_SECONDS:
                self._rescued_at = monotonic()
                is_lost = is_needed(turn)
        return self._next_due is not None and self._next_due <= now, is_lost

    def _seconds_to_next(self) -> float:
        """Return how long until a job is due, at most a second: others may ask for more."""
        due = self._next_due
        if due is None or due <= self._seen_at:
            return LOOK_SECONDS_MAX
        return min((due - self._seen_at).total_seconds(), LOOK_SECONDS_MAX)

    def _claimed(self, started: Started) -> list[Claimed]:
        """Read what the handlers are to be given, of all jobs at once."""
        wanted = {one.requested for one in started.jobs}
        wanted |= {one.advanced for one in started.jobs if one.advanced is not None}
        if not wanted:
            return []
        with self._database.read() as connection:
            rows = connection.execute(_AT, {"positions": sorted(wanted)})
            found: dict[int, Recorded[Json]] = {
                row[0]: Recorded(tuple(row), decode_mapping) for row in rows
            }
        claimed = []
        for one, start in zip(started.jobs, started.receipts, strict=True):
            handler, domain = self._handlers[one.handler]
            request = found[one.requested]
            timeout = handler.options.timeout
            job = Job(
                id=request.id,
                token=start.position,
                attempt=one.attempt + 1,
                handler=handler.name,
                entity=request.entity,
                payload=request.payload.get("payload", {}),
                deadline_at=None if timeout is None else started.at + timeout,
                state=None if one.advanced is None else found[one.advanced].payload["state"],
            )
            name = self.name
            claimed.append(Claimed(job, handler, domain, request, start.id, name, started.epoch))
        return claimed

    # Attempts.

    def _attempt(self, claimed: Claimed) -> Attempt:
        store = JobStore(self._log, claimed.domain, claimed.request, claimed.start)
        return Attempt(claimed, self._log, store, self._completion.advance)

    def _end(self, attempt: Attempt, result: object, error: BaseException | None) -> Ended:
        if error is None:
            return self._completion.returned(attempt, result)
        return self._completion.raised(attempt, error)

    def _lease_changed(self, is_lost: bool) -> None:  # noqa: FBT001 - the lease's own call
        """Stop what is to stop; called on the lease's thread, with every renewal."""
        with self._lock:
            attempts = [attempt for attempt, _ in self._in_hand.values()]
        if is_lost or self._lease.is_over:
            for attempt in attempts:
                attempt.stop("lost")
            return
        if not attempts:
            return
        try:
            self._stop_what_is_to(attempts)
        except QntxError as error:
            logger.warning("whether jobs are to stop is not known: %s", error)

    def _stop_what_is_to(self, attempts: Iterable[Attempt]) -> None:
        by_id = {attempt.claimed.job.id: attempt for attempt in attempts}
        with self._database.read() as connection:
            rows = connection.execute(_STANDING, {"ids": sorted(by_id)}).all()
        abandoned = 0
        for row in rows:
            attempt = by_id[row.job]
            if row.status != "running" or row.token != attempt.claimed.job.token:
                attempt.stop("lost")
                abandoned += attempt.claimed.handler.options.runs == "thread"
            elif row.cancelling:
                attempt.stop("cancelled")
        if abandoned * 2 >= max(2, self._places.threads):
            logger.critical(
                "%d of %d threads run jobs that were given up: this worker ends",
                abandoned, self._places.threads,
            )  # fmt: skip
            self.is_spent.set()
            self.wake.set()


_AT = select(*COLUMNS).where(attestations.c.position.in_(bindparam("positions", expanding=True)))
_STANDING = select(jobs.c.job, jobs.c.status, jobs.c.token, jobs.c.cancelling).where(
    jobs.c.job.in_(bindparam("ids", expanding=True))
)

__all__ = ["Places", "Worker"]
