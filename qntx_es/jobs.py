"""What authors touch of Pulse: a job is its request, and its request is an attestation.

Nothing here runs anything. `handler.request(...)` makes a statement like any other, so it commits
or vanishes with the rest of its transaction; what becomes of it is Pulse's affair.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Generic

from pydantic import AwareDatetime, BaseModel, Field, ValidationError
from typing_extensions import TypeVar

from qntx_es.attestation import Attestation, Json, Payload, problems_of
from qntx_es.errors import GiveUp, InvalidPayload
from qntx_es.services import ServiceRegistry

J = TypeVar("J", default=Any)


class JobRequested(Payload, context="pulse.job_requested"):
    """Somebody wants this handler to run; the entity is what the job is about."""

    handler: str
    payload: dict[str, Any] = Field(default_factory=dict)
    source: str | None = None


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
class Job(Generic[J]):
    """One attempt at a job: `id` is the request's, and the key to hand to the outside world.

    `token` is the position of this attempt's start: an attempt that was given up for lost finds
    that its token no longer counts. `attempt` is 1 the first time.
    """

    id: str
    token: int
    attempt: int
    handler: str
    entity: str
    payload: J
    deadline_at: datetime | None


@dataclass(frozen=True)
class JobHandler(Generic[J]):
    """A function that does slow or outside things, and what Pulse grants it."""

    name: str
    function: Callable[[Job[J], ServiceRegistry], object]
    actor: str
    model: type[BaseModel] | None
    retries: int
    timeout: timedelta | None
    backoff: Backoff = field(default_factory=Backoff)

    def request(self, payload: BaseModel | Json | None = None, /, *, entity: str, **fields: object
    ) -> Attestation:  # fmt: skip
        """Return the attestation that asks for this job: append it, or yield it from a derive.

        `payload` is the handler's model, or a mapping; `fields` are named one by one instead.
        Raises `InvalidPayload` where they do not fit the model.
        """
        given = payload.model_dump(mode="json") if isinstance(payload, BaseModel) else payload
        wanted = self.checked({**(given or {}), **fields})
        asked = wanted.model_dump(mode="json") if isinstance(wanted, BaseModel) else wanted
        requested = JobRequested(handler=self.name, payload=asked)
        return Attestation(
            context=JobRequested.context, entity=entity, actor=self.actor, payload=requested
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


__all__ = ["Backoff", "GiveUp", "Job", "JobHandler", "JobRequested", "ScheduleFired"]
