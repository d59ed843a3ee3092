"""What authors touch of Pulse: a job is its request, and its request is an attestation.

Nothing here runs anything. `handler.request(...)` makes a statement like any other, so it commits
or vanishes with the rest of its transaction; what becomes of it is Pulse's affair.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any, Generic, Literal, Protocol, TypeAlias

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, ValidationError
from typing_extensions import TypeVar

from qntx_es.attestation import Attestation, Json, Payload, problems_of
from qntx_es.errors import (
    GiveUp,
    InvalidPayload,
    InvalidRequest,
    JobStopped,
    JobSuspends,
    Snooze,
    TryAgain,
)
from qntx_es.services import ServiceRegistry

J = TypeVar("J", default=Any)

# Bounds of what the queue keeps in columns and indexes: PostgreSQL's index rows end at 2704 bytes.
NAME_BYTES_MAX = 256
WORDS_BYTES_MAX = 1_024
COST_MAX = 10**12
DELAY_MAX = timedelta(days=3_650)
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9000, 1, 1, tzinfo=UTC)
# Whoever asks by name alone; `caused_by` says who that was.
REQUESTER = "request@pulse"
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
RATE = re.compile(r"([1-9]\d{0,8})/([1-9]\d{0,5})?([smhd])")

Runs: TypeAlias = Literal["thread", "loop", "process"]
OnLapse: TypeAlias = Literal["again", "fail"]
Keyed: TypeAlias = Callable[[Any], str] | Literal["entity"]


def _within(at: datetime) -> datetime:
    try:
        is_kept = EARLIEST <= at <= LATEST
    except OverflowError:
        is_kept = False
    if not is_kept:
        raise ValueError(f"an instant is between {EARLIEST.year} and {LATEST.year}")
    return at


def _at_most(size: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not 0 < len(text.encode(errors="replace")) <= size:
            raise ValueError(f"a text of 1 to {size} bytes is kept here")
        return text

    return check


At: TypeAlias = Annotated[AwareDatetime, AfterValidator(_within)]
Name: TypeAlias = Annotated[str, AfterValidator(_at_most(NAME_BYTES_MAX))]
Words: TypeAlias = Annotated[str, AfterValidator(_at_most(WORDS_BYTES_MAX))]
Token: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Priority: TypeAlias = Annotated[int, Field(ge=0, le=3)]
Amount: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
Cost: TypeAlias = Annotated[int, Field(ge=0, le=COST_MAX)]


class JobRequested(Payload, context="pulse.job_requested"):
    """Somebody wants this handler to run; the entity is what the job is about.

    It is due at `run_at`, else `delay_ms` after it was recorded. `cost` is in millionths of the
    budget's unit.
    """

    handler: Name
    payload: dict[str, Any] = Field(default_factory=dict)
    source: str | None = None
    priority: Priority = 1
    run_at: At | None = None
    delay_ms: int = Field(default=0, ge=0, le=int(DELAY_MAX / timedelta(milliseconds=1)))
    key: Words | None = None
    unique: Words | None = None
    parent: Words | None = None
    cost: Cost | None = None


class CancellationRequested(Payload, context="pulse.cancellation_requested"):
    """Somebody wants this job, named by the entity, to stop or never to run."""

    by: Words | None = None
    reason: str | None = None


class ScheduleFired(Payload, context="pulse.schedule_fired"):
    """A schedule came due; the entity is the schedule's name."""

    due_at: AwareDatetime


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next attempt: `first`, then `factor` times longer, up to `most`.

    `spread` moves each pause by up to that share, computed from job and attempt and not drawn, so
    that a recorded decision can be explained afterwards.
    """

    first: timedelta = timedelta(seconds=10)
    factor: float = 3
    most: timedelta = timedelta(hours=1)
    spread: float = 0.2

    def pause(self, job: str, attempt: int) -> timedelta:
        """Return the pause after this attempt (1 is the first)."""
        growth = self.factor ** min(attempt - 1, 64)
        wanted = min(self.first.total_seconds() * growth, self.most.total_seconds())
        hashed = int.from_bytes(sha256(f"{job} {attempt}".encode()).digest()[:4])
        return timedelta(seconds=wanted * (1 + self.spread * (hashed / 2**31 - 1)))


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` starts in any `window`."""

    count: int
    window: timedelta

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Read `100/m`, `5/10s`: a count, and a window of s, m, h or d. Raises `ValueError`."""
        found = RATE.fullmatch(text)
        if found is None:
            raise ValueError(f"rate {text!r}: a count and a window are written `100/m`, `5/10s`")
        window = timedelta(seconds=int(found[2] or 1) * UNIT_SECONDS[found[3]])
        if window > timedelta(days=20):
            raise ValueError(f"rate {text!r}: a window is at most 20 days")
        return cls(int(found[1]), window)

    def __str__(self) -> str:
        return f"{self.count}/{self.window.total_seconds():g}s"


@dataclass(frozen=True, slots=True)
class Child:
    """What became of a job that this one asked for: its result, where it succeeded."""

    id: str
    status: str
    result: Any


class Hands(Protocol):
    """What an attempt can do to itself while it runs; whoever runs it provides this."""

    def advance(self, state: object) -> None:
        """Commit what was appended, together with the state to go on from."""
        ...

    def progress(self, done: int, total: int | None, message: str | None) -> None:
        """Tell how far it is."""
        ...

    def spend(self, millionths: int) -> None:
        """Add to what it has cost."""
        ...

    def is_cancelled(self) -> bool:
        """Tell whether it should stop."""
        ...

    def check(self) -> None:
        """Raise where it should stop."""
        ...

    def children(self) -> Sequence[Child]:
        """Return what became of the jobs it asked for."""
        ...


class NoHands:
    """An attempt that nobody runs: a handler called by a test changes nothing but its arguments."""

    def advance(self, state: object) -> None:
        """Keep nothing."""

    def progress(self, done: int, total: int | None, message: str | None) -> None:
        """Tell nobody."""

    def spend(self, millionths: int) -> None:
        """Pay nothing."""

    def is_cancelled(self) -> bool:
        """Nobody asks it to stop."""
        return False

    def check(self) -> None:
        """Nobody asks it to stop."""

    def children(self) -> Sequence[Child]:
        """Return nothing: it has asked for nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class Job(Generic[J]):
    """One attempt at a job: `id` is the request's, and the key to hand to the outside world.

    `token` is the position of this attempt's start: an attempt that was given up for lost finds
    that its token no longer counts. `attempt` is 1 the first time. `state` is what the last
    `advance` or `suspend` left, None at first.
    """

    id: str
    token: int
    attempt: int
    handler: str
    entity: str
    payload: J
    deadline_at: datetime | None
    state: Any = None
    hands: Hands = field(default_factory=NoHands, repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop, has run past its deadline, or was given up for lost."""
        return self.hands.is_cancelled()

    @property
    def children(self) -> Sequence[Child]:
        """The jobs that this one asked for, in order; those that failed are reported, not raised.

        Results are there once a child has succeeded.
        """
        return self.hands.children()

    def check(self) -> None:
        """Raise `JobStopped` where it should stop: call it wherever stopping is safe."""
        self.hands.check()

    def advance(self, state: object) -> None:
        """Commit what was appended so far, and let the next attempt go on from `state`.

        `state` is a JSON value of at most 64 KiB. Raises `StaleToken` where this attempt no longer
        counts: nothing is committed then.
        """
        self.hands.advance(state)

    def progress(self, done: int, total: int | None = None, message: str | None = None) -> None:
        """Tell how far it is; the last word is kept with the outcome."""
        self.hands.progress(done, total, message)

    def spend(self, millionths: int) -> None:
        """Add to what this attempt has cost, in millionths of the budget's unit."""
        self.hands.spend(millionths)

    def suspend(self, state: object = None) -> None:
        """End this attempt, and run again with `state` once no child is open; never returns.

        Children are jobs that were requested with `parent=job.id`, now or before.
        """
        raise JobSuspends(state)


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What Pulse grants a handler; `Domain.job` says what each of them means."""

    retries: int = 3
    backoff: Backoff = field(default_factory=Backoff)
    timeout: timedelta | None = timedelta(hours=1)
    on_lapse: OnLapse = "again"
    queue: str = ""
    priority: int = 1
    limit: int | None = None
    per_key: int | None = None
    key: Keyed = "entity"
    rate: Rate | None = None
    cost: int = 0
    budget: str | None = None
    unique: Callable[[Any], str] | None = None
    delay: timedelta = timedelta(0)
    runs: Runs = "thread"
    give_up_on: tuple[type[Exception], ...] = ()


@dataclass(frozen=True)
class JobHandler(Generic[J]):
    """A function that does slow or outside things, and what Pulse grants it."""

    name: str
    function: Callable[[Job[J], ServiceRegistry], object]
    actor: str
    model: type[BaseModel] | None
    options: JobOptions
    version: int = 1

    @property
    def retries(self) -> int:
        """How many attempts may follow the first."""
        return self.options.retries

    def request(  # noqa: PLR0913 - one keyword a choice
        self,
        payload: BaseModel | Json | None = None,
        /,
        *,
        entity: str,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        key: str | None = None,
        unique: str | None = None,
        parent: str | None = None,
        cost: int | None = None,
        **fields: object,
    ) -> Attestation:
        """Return the attestation that asks for this job: append it, or yield it from a derive.

        `payload` is the handler's model, or a mapping; `fields` are named one by one instead.
        The options win over the handler's own; with a `parent`, a job's id, that job can wait for
        this one. Raises `InvalidPayload` where the payload does not fit the model, and
        `InvalidRequest` where an option cannot be had.
        """
        wanted = self.checked({**_json_of(payload), **fields})
        asked = wanted.model_dump(mode="json") if isinstance(wanted, BaseModel) else wanted
        options = self.options
        if key is None and options.key != "entity":
            key = options.key(wanted)
        if unique is None and options.unique is not None and parent is None:
            unique = options.unique(wanted)
        return request(
            self.name,
            asked,
            entity=entity,
            actor=self.actor,
            priority=options.priority if priority is None else priority,
            run_at=run_at,
            delay=options.delay if delay is None and run_at is None else delay,
            key=key,
            unique=unique,
            parent=parent,
            cost=cost,
        )

    def checked(self, payload: Json) -> Any:  # noqa: ANN401 - the handler's own model
        """Return the payload as the handler's model, or as it is where it has none."""
        if self.model is None:
            return dict(payload)
        try:
            return self.model.model_validate(payload)
        except ValidationError as error:
            raise InvalidPayload(f"{self.name}: {problems_of(error)}") from error

    def __call__(self, job: Job[J], services: ServiceRegistry) -> object:
        """Run the function itself, as a test may."""
        return self.function(job, services)


def request(  # noqa: PLR0913 - one keyword a choice
    handler: str,
    payload: BaseModel | Json | None = None,
    /,
    *,
    entity: str,
    actor: str = REQUESTER,
    source: str | None = None,
    priority: int = 1,
    run_at: datetime | None = None,
    delay: timedelta | None = None,
    key: str | None = None,
    unique: str | None = None,
    parent: str | None = None,
    cost: int | None = None,
    **fields: object,
) -> Attestation:
    """Return the attestation that asks for a handler by its name, as another domain's.

    `source` says in the asker's words where it comes from. Raises `InvalidRequest`.
    """
    if unique is not None and parent is not None:
        raise InvalidRequest(
            f"{handler}: a child cannot be merged into another job: unique= or parent="
        )
    if run_at is not None and delay is not None:
        raise InvalidRequest(f"{handler}: due at an instant or after a delay: run_at= or delay=")
    try:
        requested = JobRequested(
            handler=handler,
            payload={**_json_of(payload), **fields},
            source=source,
            priority=priority,
            run_at=run_at,
            delay_ms=0 if delay is None else round(delay / timedelta(milliseconds=1)),
            key=key,
            unique=unique,
            parent=parent,
            cost=cost,
        )
    except ValidationError as error:
        raise InvalidRequest(f"{handler}: {problems_of(error)}") from error
    return Attestation(context=JobRequested.context, entity=entity, actor=actor, payload=requested)


def _json_of(payload: BaseModel | Json | None) -> Mapping[str, Any]:
    if isinstance(payload, BaseModel):
        return payload.model_dump(mode="json")
    return payload or {}


__all__ = [
    "Backoff",
    "CancellationRequested",
    "Child",
    "GiveUp",
    "Hands",
    "Job",
    "JobHandler",
    "JobOptions",
    "JobRequested",
    "JobStopped",
    "Rate",
    "ScheduleFired",
    "Snooze",
    "TryAgain",
    "request",
]
