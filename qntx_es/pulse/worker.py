"""Does the slow and the outside things: claims what is due, runs it, states the outcome.

A start is attested before the handler runs, so that no crash makes more attempts than were allowed.
What a handler appends waits in a buffer and is committed together with its success: effects happen
exactly once, execution at least once. Claims and outcomes are decided at the head of the log, so no
two workers start one job, and an attempt that was given up for lost can do no harm when it wakes.
"""

import logging
import os
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event
from time import monotonic
from typing import Any, overload
from uuid import uuid4

from sqlalchemy import select

from qntx_es import faults
from qntx_es.attestation import Attestation, Json, Recorded, computed_id, instant
from qntx_es.ax import Ax
from qntx_es.domain import Domain
from qntx_es.errors import GiveUp, InvalidPayload, PulseBehind, QntxError, StaleToken
from qntx_es.jobs import Job, JobHandler
from qntx_es.log import Log, Receipt, Turn
from qntx_es.pulse.fold import JobFailed, JobLapsed, JobStarted, JobSucceeded, jobs, pulse
from qntx_es.services import ServiceRegistry, Store
from qntx_es.tables import attestations, cursors

LATE = timedelta(seconds=10)
LOOK_SECONDS = 0.05
LOOK_SECONDS_MAX = 1.0
BEHIND_SECONDS = 10.0
RESCUED_MAX = 100
ERROR_CHARACTERS = 2_048
FRAMES = 20

logger = logging.getLogger(__name__)


class JobStore:
    """The log as a job sees it: what it states waits for its success."""

    def __init__(self, log: Log, domain: Domain, request: Recorded[Json], token: int) -> None:
        self._log = log
        self._domain = domain
        self._request = request
        self._token = token
        self.said: list[Attestation] = []
        self.receipts: list[Receipt] = []

    @overload
    def append(self, attestations: Attestation) -> Receipt: ...
    @overload
    def append(self, attestations: Iterable[Attestation]) -> list[Receipt]: ...
    def append(self, attestations: Attestation | Iterable[Attestation]) -> Receipt | list[Receipt]:
        """State one or many; the ids are known at once, the positions once the job succeeded."""
        if isinstance(attestations, Attestation):
            return self._state([attestations])[0]
        return self._state(list(attestations))

    def read(
        self, ax: Ax | None = None, after: int = 0, limit: int | None = None
    ) -> Iterator[Recorded[Json]]:
        """Yield what is committed."""
        return self._log.read(ax, after, limit)

    def latest(self, context: str, entity: str) -> Recorded[Json] | None:
        """Return the newest committed statement about an entity in a context, or None."""
        return self._log.latest(context, entity)

    def get(self, attestation_id: str) -> Recorded[Json] | None:
        """Return the attestation of this id, or None."""
        return self._log.get(attestation_id)

    def head(self) -> int:
        """Return the largest position."""
        return self._log.head()

    def _state(self, attestations: Sequence[Attestation]) -> list[Receipt]:
        for said in attestations:
            self._domain.refuse_foreign(said)
        return [self._remember(said) for said in attestations]

    def _remember(self, said: Attestation) -> Receipt:
        request = self._request
        stated = said.caused(
            id=computed_id(request.id, str(self._token), str(len(self.said))),
            by=request.id,
            correlation_id=request.correlation_id or request.id,
            depth=request.depth + 1,
        )
        receipt = Receipt(stated.id)
        self.said.append(stated)
        self.receipts.append(receipt)
        return receipt


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job this worker has started, and what it takes to run it."""

    job: Job[Any]
    handler: JobHandler[Any]
    domain: Domain
    request: Recorded[Json]


class Worker:
    """Runs the job handlers of a host's domains."""

    def __init__(
        self,
        log: Log,
        domains: Iterable[Domain],
        services: Callable[[Domain, Store], ServiceRegistry],
        stopping: Event,
    ) -> None:
        self._log = log
        self._handlers: Mapping[str, tuple[JobHandler[Any], Domain]] = {
            handler.name: (handler, domain) for domain in domains for handler in domain.jobs
        }
        self._services = services
        self._stopping = stopping
        self.wake = Event()
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"

    def run_due(self) -> int:
        """Run what is due, in the calling thread, until nothing is; return how many attempts."""
        attempts = 0
        # What was only lapsed may be due again at once, so an empty claim is not the end of it.
        while started := self._start(1):
            for claimed in self._claimed_of(started):
                self.execute(claimed)
                attempts += 1
        return attempts

    def run(self, threads: int) -> None:
        """Run what is due in so many threads, until told to stop; then finish what runs."""
        with ThreadPoolExecutor(threads, thread_name_prefix="job") as pool:
            running: set[Future[None]] = set()
            while not self._stopping.is_set():
                self.wake.clear()
                running = _still_running(running)
                claimed = self._claim_or_wait(threads - len(running))
                for one in claimed:
                    future = pool.submit(self.execute, one)
                    future.add_done_callback(lambda _: self.wake.set())
                    running.add(future)
                if not claimed:
                    self.wake.wait(LOOK_SECONDS_MAX)
            wait(running)
            _still_running(running)

    def claim(self, slots: int) -> list[Claimed]:
        """Start at most `slots` of the jobs that are due, and return them."""
        return self._claimed_of(self._start(slots))

    def _start(self, slots: int) -> list[Receipt]:
        if slots < 1 or not self._handlers or not self._is_anything_due():
            return []
        faults.point("job.before_start")
        started = self._log.decide(lambda turn: self._starts(turn, slots))
        faults.point("job.after_start")
        return started

    def _claimed_of(self, started: Iterable[Receipt]) -> list[Claimed]:
        return [claimed for receipt in started if (claimed := self._claimed(receipt))]

    def execute(self, claimed: Claimed) -> None:
        """Run one attempt and state its outcome."""
        job, store = (
            claimed.job,
            JobStore(self._log, claimed.domain, claimed.request, claimed.job.token),
        )
        try:
            payload = claimed.handler.checked(job.payload)
            ready = Job(
                job.id, job.token, job.attempt, job.handler, job.entity, payload, job.deadline_at
            )
            claimed.handler.function(ready, self._services(claimed.domain, store))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a handler is somebody else's code
            self._conclude(claimed, [], self._failure(claimed, error))
            return
        positions = self._conclude(claimed, store.said, JobSucceeded(token=job.token))
        for receipt, position in zip(store.receipts, positions, strict=False):
            receipt.resolve(position)

    def _claim_or_wait(self, slots: int) -> list[Claimed]:
        try:
            return self.claim(slots)
        except QntxError as error:
            logger.warning("no job can be claimed: %s", error)
            return []

    def _is_anything_due(self) -> bool:
        # Without the lock: an idle worker must not make appenders wait.
        with self._log.reading() as turn:
            return bool(turn.read(self._due(turn, 1))) or bool(turn.read(_late(turn)))

    def _due(self, turn: Turn, slots: int) -> Any:  # noqa: ANN401 - a select
        return (
            select(jobs.c.job, jobs.c.handler)
            .where(jobs.c.status == "ready", jobs.c.handler.in_(sorted(self._handlers)))
            .where(jobs.c.run_at <= instant(turn.now))
            .order_by(jobs.c.run_at, jobs.c.requested)
            .limit(slots)
        )

    def _starts(self, turn: Turn, slots: int) -> Iterator[Attestation]:
        if is_behind(turn):
            logger.warning("no job is started: %s", PulseBehind())
            return
        for late in turn.read(_late(turn)):
            yield self._lapse(late, turn)
        now = instant(turn.now)
        for row in turn.read(self._due(turn, slots)):
            handler, _ = self._handlers[row.handler]
            started = JobStarted(
                worker=self.name,
                attempts_allowed=handler.retries + 1,
                deadline_at=None if handler.timeout is None else now + handler.timeout,
            )
            yield pulse.attest(started, entity=row.job, caused_by=row.job)

    def _lapse(self, late: Any, turn: Turn) -> Attestation:  # noqa: ANN401 - a row of pulse_jobs
        again = late.attempt < late.attempts_allowed
        lapsed = JobLapsed(
            token=late.token, reason="deadline", retry_at=instant(turn.now) if again else None
        )
        return pulse.attest(lapsed, entity=late.job, caused_by=late.job)

    def _claimed(self, receipt: Receipt) -> Claimed | None:
        """Return the job of a start: None for what was only lapsed."""
        said = self._log.get(receipt.id)
        if said is None or said.context != JobStarted.context:
            return None
        request = self._log.get(said.entity)
        if request is None:
            return None
        handler, domain = self._handlers[request.payload["handler"]]
        with self._log.reading() as turn:
            (attempt,) = turn.read(select(jobs.c.attempt).where(jobs.c.job == request.id))[0]
        deadline = said.payload["deadline_at"]
        job = Job(
            id=request.id,
            token=receipt.position,
            attempt=attempt,
            handler=handler.name,
            entity=request.entity,
            payload=request.payload["payload"],
            deadline_at=None if deadline is None else datetime.fromisoformat(deadline),
        )
        return Claimed(job, handler, domain, request)

    def _failure(self, claimed: Claimed, error: BaseException) -> JobFailed:
        job, handler = claimed.job, claimed.handler
        text = _told(error)
        logger.warning("job %s, attempt %d: %s", job.handler, job.attempt, text)
        is_last = isinstance(error, GiveUp | InvalidPayload) or job.attempt > handler.retries
        with self._log.reading() as turn:
            now = instant(turn.now)
        return JobFailed(
            token=job.token,
            error=text,
            retry_at=None if is_last else now + handler.backoff.pause(job.id, job.attempt),
        )

    def _conclude(
        self, claimed: Claimed, said: Sequence[Attestation], outcome: JobSucceeded | JobFailed
    ) -> list[int]:
        job = claimed.job

        def decide(turn: Turn) -> Iterable[Attestation]:
            if is_behind(turn):
                raise PulseBehind
            asked = select(jobs.c.status, jobs.c.token, jobs.c.worker).where(jobs.c.job == job.id)
            if [tuple(row) for row in turn.read(asked)] != [("running", job.token, self.name)]:
                raise StaleToken
            return [*said, pulse.attest(outcome, entity=job.id, caused_by=job.id)]

        faults.point("job.before_outcome")
        try:
            receipts = self._decide_in_time(decide)
        except (PulseBehind, StaleToken) as error:
            # Either way the attempt is given up when its deadline has passed.
            logger.warning("the outcome of job %s does not count: %s", job.id, error)
            return []
        faults.point("job.after_outcome")
        return [receipt.position for receipt in receipts[:-1]]

    def _decide_in_time(self, choose: Callable[[Turn], Iterable[Attestation]]) -> list[Receipt]:
        """Decide an outcome, waiting for a queue that is only being swapped."""
        deadline = monotonic() + BEHIND_SECONDS
        while True:
            try:
                return self._log.decide(choose)
            except PulseBehind:
                if monotonic() > deadline:
                    raise
            # Draining or not, an outcome is worth the wait, and who moved the queue may be gone.
            Event().wait(LOOK_SECONDS)
            self._log.catch_up_inline()


def _still_running(futures: Iterable[Future[None]]) -> set[Future[None]]:
    """Let go of those that are done; an outcome that could not be stated lapses in its time."""
    for future in futures:
        if future.done() and (error := future.exception()) is not None:
            logger.error("the outcome of a job could not be stated: %s", error)
    return {future for future in futures if not future.done()}


def _told(error: BaseException) -> str:
    """Say what was raised, then where: the last frames, as far as there is room."""
    kind = "".join(traceback.format_exception_only(error)).strip()[: ERROR_CHARACTERS // 2]
    frames = "".join(traceback.format_tb(error.__traceback__, limit=-FRAMES))
    told = f"{kind}\n{frames[-ERROR_CHARACTERS // 2 :]}"
    return told.replace("\x00", "\\0").encode(errors="backslashreplace").decode()


def is_behind(turn: Turn) -> bool:
    """Tell whether the queue's rows lack something that the log says of it."""
    reached = select(cursors.c.position).where(cursors.c.domain == pulse.name).scalar_subquery()
    contexts = attestations.c.context.in_(sorted(pulse.payloads))
    unread = select(attestations.c.position).where(attestations.c.position > reached, contexts)
    return bool(turn.read(unread.limit(1)))


def _late(turn: Turn) -> Any:  # noqa: ANN401 - a select
    return (
        select(jobs.c.job, jobs.c.token, jobs.c.attempt, jobs.c.attempts_allowed)
        .where(jobs.c.status == "running", jobs.c.deadline_at < instant(turn.now) - LATE)
        .limit(RESCUED_MAX)
    )
