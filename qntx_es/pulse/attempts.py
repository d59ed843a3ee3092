"""One attempt at a job, from the side of its handler: what it may say, spend and ask.

What a handler appends waits in a buffer. Its ids are computed from the start and the ordinal, so a
commit whose answer was lost is sent again and gives the first receipts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from time import monotonic
from typing import Any, Protocol, overload

from sqlalchemy import select

from qntx_es.attestation import (
    Attestation,
    Json,
    Recorded,
    canonical_json,
    decode_mapping,
    derived_id,
)
from qntx_es.ax import Ax
from qntx_es.domain import Domain
from qntx_es.errors import InvalidAttestation, InvalidOutcome, JobStopped
from qntx_es.jobs import Child, Job, JobHandler
from qntx_es.log import Log, Receipt
from qntx_es.pulse.statements import MESSAGE_CHARACTERS_MAX, STATE_BYTES_MAX, Progress
from qntx_es.pulse.tables import jobs
from qntx_es.tables import attestations


class Reader(Protocol):
    """What a job reads of the log."""

    def read(
        self, ax: Ax | None = None, after: int = 0, limit: int | None = None
    ) -> Iterator[Recorded[Json]]:
        """Yield what is committed."""
        ...

    def latest(self, context: str, entity: str) -> Recorded[Json] | None:
        """Return the newest statement about an entity in a context, or None."""
        ...

    def get(self, attestation_id: str) -> Recorded[Json] | None:
        """Return the attestation of this id, or None."""
        ...

    def head(self) -> int:
        """Return the largest position."""
        ...


class JobStore:
    """The log as a job sees it: what it states waits for its success."""

    def __init__(self, log: Reader, domain: Domain, request: Recorded[Json], start: str) -> None:
        self._log = log
        self._domain = domain
        self._request = request
        self._start = start
        self._ordinal = 0
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

    def committed(self, positions: Iterable[int]) -> None:
        """Let go of what is in the log now."""
        for receipt, position in zip(self.receipts, positions, strict=True):
            receipt.resolve(position)
        self.said, self.receipts = [], []

    def take(self, said: Iterable[Attestation]) -> None:
        """Take what was said in another process, with its ids."""
        for one in said:
            self._keep(one)

    def hand_over(self) -> list[Attestation]:
        """Return what was said, for another process to take."""
        said, self.said, self.receipts = self.said, [], []
        return said

    def _state(self, attestations: Sequence[Attestation]) -> list[Receipt]:
        for said in attestations:
            self._domain.refuse_foreign(said)
        return [self._remember(said) for said in attestations]

    def _remember(self, said: Attestation) -> Receipt:
        request = self._request
        stated = said.caused(
            id=derived_id(self._start, str(self._ordinal)),
            by=request.id,
            correlation_id=request.correlation_id or request.id,
            depth=request.depth + 1,
        )
        return self._keep(stated)

    def _keep(self, stated: Attestation) -> Receipt:
        self._ordinal += 1
        receipt = Receipt(stated.id)
        self.said.append(stated)
        self.receipts.append(receipt)
        return receipt


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job this worker has started, and what it takes to run it.

    `start` is the id of the attempt's `pulse.job_started`, and `epoch` the log's it stands in: a
    position is given out again where an older backup was restored.
    """

    job: Job[Any]
    handler: JobHandler[Any]
    domain: Domain
    request: Recorded[Json]
    start: str
    worker: str
    epoch: str


class Advances(Protocol):
    """What commits the middle of an attempt."""

    def __call__(self, attempt: "Attempt", state: object) -> None:
        """Commit what was said so far. Raises `StaleToken`."""


@dataclass(slots=True)
class Attempt:
    """What a running job has in its hands; `stop` may be set from any thread."""

    claimed: Claimed
    log: Log
    store: JobStore
    advances: Advances
    begun: float = field(default_factory=monotonic)
    running_since: float = 0.0
    spent: int = 0
    told: Progress | None = None
    stopped: Event = field(default_factory=Event)
    reason: str = ""

    @property
    def is_late(self) -> bool:
        """Whether it has run past its timeout, by this process' own clock."""
        timeout = self.claimed.handler.options.timeout
        return timeout is not None and monotonic() - self.begun > timeout.total_seconds()

    @property
    def took_ms(self) -> int:
        """How long it has run."""
        return round((monotonic() - self.running_since) * 1_000) if self.running_since else 0

    def stop(self, reason: str) -> None:
        """Ask it to stop; the first reason stands."""
        self.reason = self.reason or reason
        self.stopped.set()

    def advance(self, state: object) -> None:
        """Commit what was said so far, together with the state to go on from."""
        self.advances(self, bounded(state, STATE_BYTES_MAX, "a state"))

    def progress(self, done: int, total: int | None, message: str | None) -> None:
        """Remember how far it is."""
        told = None if message is None else message[:MESSAGE_CHARACTERS_MAX]
        self.told = Progress(done=done, total=total, message=told)

    def spend(self, millionths: int) -> None:
        """Add to what it has cost."""
        self.spent += checked_amount(millionths)

    def is_cancelled(self) -> bool:
        """Tell whether it should stop."""
        return self.stopped.is_set() or self.is_late

    def check(self) -> None:
        """Raise where it should stop."""
        if self.is_cancelled():
            raise JobStopped(f"this attempt is to stop: {self.reason or 'its deadline has passed'}")

    def children(self) -> Sequence[Child]:
        """Return what became of the jobs it asked for, in the order they were asked for."""
        return children_of(self.log, self.claimed.job.id)


def children_of(log: Log, job: str) -> list[Child]:
    """Return the jobs that were requested with this parent, and what became of them."""
    asked = (
        select(jobs.c.job, jobs.c.status, attestations.c.payload)
        .outerjoin(attestations, attestations.c.position == jobs.c.ended)
        .where(jobs.c.parent == job)
        .order_by(jobs.c.requested)
    )
    with log.reading() as turn:
        rows = turn.read(asked)
    return [
        Child(
            row.job,
            row.status,
            decode_mapping(row.payload)["result"] if row.status == "succeeded" else None,
        )
        for row in rows
    ]


def checked_amount(millionths: int) -> int:
    """Return what is spent. Raises `ValueError`: what is spent does not come back."""
    if millionths < 0:
        raise ValueError("what is spent does not come back: millionths is at least 0")
    return millionths


def bounded(value: object, size: int, what: str) -> object:
    """Return a JSON value as it is. Raises `InvalidOutcome` for another one, or a larger."""
    try:
        text = canonical_json(value)
    except (InvalidAttestation, TypeError, ValueError) as error:
        raise InvalidOutcome(f"{what} is a JSON value: {error}") from error
    if len(text.encode()) > size:
        raise InvalidOutcome(f"{what} has {len(text.encode())} bytes: at most {size} are kept")
    return value
