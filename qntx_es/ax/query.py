"""The query as a value: what is asked for, and nothing about how it is found.

One value stands for a query wherever it comes from, so that its text, its SQL and its meaning in
Python can be held against each other.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from qntx_es.attestation import checked_name
from qntx_es.errors import InvalidTime, QntxError


@dataclass(frozen=True, slots=True, init=False)
class Ax:
    """Attestations about any of `entities`, in any of `contexts`, by any of `actors`.

    What is tagged with an entity is about it too. An empty part asks for anything. A single text
    stands for a tuple of one. `since` and `until` bound `recorded_at`, both inclusive. `limit` asks
    for the newest n; the answer is always in the order of positions. Raises `InvalidTime` for a
    time without a zone.
    """

    contexts: tuple[str, ...]
    actors: tuple[str, ...]
    entities: tuple[str, ...]
    since: datetime | None
    until: datetime | None
    limit: int | None

    def __init__(  # noqa: PLR0913 - one keyword a part of the query
        self,
        *,
        contexts: str | Iterable[str] = (),
        actors: str | Iterable[str] = (),
        entities: str | Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "contexts", _names(contexts, "context"))
        put(self, "actors", _names(actors, "actor"))
        put(self, "entities", _names(entities, "entity"))
        put(self, "since", _zoned(since))
        put(self, "until", _zoned(until))
        if limit is not None and limit < 0:
            raise QntxError(f"limit {limit}: a limit is 0 or more")
        put(self, "limit", limit)


def _names(given: str | Iterable[str], what: str) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    return tuple(checked_name(name, what) for name in names)


def _zoned(at: datetime | None) -> datetime | None:
    if at is not None and at.tzinfo is None:
        raise InvalidTime(f"{at} has no zone, so it names no instant. Give it one")
    return at
