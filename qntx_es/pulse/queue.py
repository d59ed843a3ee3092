"""The way to ask for a job from outside a domain: the same append, by the handler's name."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel

from qntx_es.attestation import Attestation, Json
from qntx_es.errors import UnknownHandler
from qntx_es.jobs import REQUESTER, JobHandler, request
from qntx_es.sequencer import Receipt
from qntx_es.sessions import AnySession


class Queue:
    """`host.queue`: what a host's own code asks of its domains' handlers."""

    def __init__(self, handlers: Iterable[JobHandler[Any]], append: Callable[..., Receipt]) -> None:
        self._handlers = {one.name: one for one in handlers}
        self._append = append

    def enqueue(  # noqa: PLR0913 - one keyword a choice
        self,
        handler: str | JobHandler[Any],
        payload: BaseModel | Json | None = None,
        *,
        source: str | None = None,
        entity: str | None = None,
        actor: str = REQUESTER,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        key: str | None = None,
        unique: str | None = None,
        cost: int | None = None,
        session: AnySession | None = None,
    ) -> Receipt:
        """Ask for a job, and return the receipt of its request, whose id is the job's.

        `handler` is one, or its name; without the domain's where only one has that. `source` says
        in your own words where it comes from. Without an `entity` the job is about itself. With a
        `session` it commits, or vanishes, with that transaction. Raises `UnknownHandler`,
        `InvalidPayload`, `InvalidRequest`, and what `Host.append` raises.
        """
        found = self._found(handler)
        options = {
            "priority": priority, "run_at": run_at, "delay": delay,
            "key": key, "unique": unique, "cost": cost,
        }  # fmt: skip
        given: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        about = "-" if entity is None else entity
        if isinstance(found, JobHandler):
            asked = found.request(payload, entity=about, **given)
        else:
            asked = request(found, payload, entity=about, **given)
        said = Attestation(
            context=asked.context,
            entity=asked.id if entity is None else entity,
            actor=actor,
            payload={**asked.payload, "source": source},
            id=asked.id,
        )
        return self._append(said, session=session)

    def _found(self, handler: str | JobHandler[Any]) -> JobHandler[Any] | str:
        """Return a handler by its name, or a name of another host's domain as it is."""
        if isinstance(handler, JobHandler):
            return handler
        if handler in self._handlers:
            return self._handlers[handler]
        domain, dot, bare = handler.rpartition(".")
        named = [one for one in self._handlers.values() if one.name.endswith(f".{bare}")]
        if not dot and len(named) == 1:
            return named[0]
        domains = {name.partition(".")[0] for name in self._handlers}
        if not dot or domain in domains:
            raise UnknownHandler(handler, self._handlers)
        return handler
