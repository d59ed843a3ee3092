"""The query as a value: what is asked for, and nothing about how it is found.

One value stands for a query wherever it comes from, so that its text, its SQL and its meaning in
Python can be held against each other.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

from qntx_es.attestation import checked_name
from qntx_es.ax.where import Where, check_limits, is_bare
from qntx_es.errors import AxError, InvalidTime, QntxError

_NOT_IN_A_WORD = re.compile(r'[\s,"()=<>!⌬]')


@dataclass(frozen=True, slots=True)
class Glob:
    """Every name of this shape, `*` standing for any characters or none. Raises `AxError`."""

    pattern: str

    def __post_init__(self) -> None:
        checked_name(self.pattern, "glob")
        if "*" not in self.pattern or _NOT_IN_A_WORD.search(self.pattern):
            raise AxError(f"`{self.pattern}` is no glob: one word with a * in it")

    def matches(self, name: str) -> bool:
        """Tell whether a name has this shape."""
        shape = ".*".join(map(re.escape, self.pattern.split("*")))
        return re.fullmatch(shape, name, re.DOTALL) is not None

    def __str__(self) -> str:
        return self.pattern


Name: TypeAlias = str | Glob
Names: TypeAlias = str | Glob | Iterable[str | Glob]


class Asked(Protocol):
    """What a query looks at: an attestation as the log holds it."""

    @property
    def context(self) -> str:
        """Tell what kind of statement."""
        ...

    @property
    def actor(self) -> str:
        """Tell who says it."""
        ...

    @property
    def entity(self) -> str:
        """Tell whom it is about."""
        ...

    @property
    def tags(self) -> tuple[str, ...]:
        """Tell whom else."""
        ...

    @property
    def recorded_at(self) -> datetime:
        """Tell when the log took it."""
        ...

    @property
    def payload(self) -> Mapping[str, object]:
        """Tell its JSON values."""
        ...


@dataclass(frozen=True, slots=True, init=False)
class Ax:
    """Attestations about any of `entities`, in any of `contexts`, by any of `actors`.

    What is tagged with an entity is about it too. An empty part asks for anything. A single text
    stands for a tuple of one, and a text for that very name: `Glob("github.com/*")` is a shape.
    `since` and `until` bound `recorded_at`, both inclusive. `where` is a condition on the payload.
    `limit` asks for the newest n; the answer is always in the order of positions. Raises
    `InvalidTime` for a time without a zone, `AxTooComplex`.
    """

    contexts: tuple[Name, ...]
    actors: tuple[Name, ...]
    entities: tuple[Name, ...]
    where: Where | None
    since: datetime | None
    until: datetime | None
    limit: int | None

    def __init__(  # noqa: PLR0913 - one keyword a part of the query
        self,
        *,
        contexts: Names = (),
        actors: Names = (),
        entities: Names = (),
        where: Where | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "contexts", _names(contexts, "context"))
        put(self, "actors", _names(actors, "actor"))
        put(self, "entities", _names(entities, "entity"))
        if where is not None:
            check_limits(where)
        put(self, "where", where)
        put(self, "since", _zoned(since))
        put(self, "until", _zoned(until))
        if limit is not None and limit < 0:
            raise QntxError(f"limit {limit}: a limit is 0 or more")
        put(self, "limit", limit)

    def newest(self, limit: int | None) -> "Ax":
        """Return this query for the newest `limit` of what it asks for, or for all of it."""
        parts = {name: getattr(self, name) for name in self.__slots__}
        return Ax(**{**parts, "limit": limit})

    def matches(self, said: Asked) -> bool:
        """Tell whether an attestation is asked for; which of them are the newest is not."""
        return (
            _is_any(self.contexts, said.context)
            and _is_any(self.actors, said.actor)
            and (_is_any(self.entities, said.entity) or self._is_tagged(said.tags))
            and (self.since is None or said.recorded_at >= self.since)
            and (self.until is None or said.recorded_at <= self.until)
            and (self.where is None or self.where.matches(said.payload))
        )

    def _is_tagged(self, tags: tuple[str, ...]) -> bool:
        return any(_is_any(self.entities, tag) for tag in tags)

    def __str__(self) -> str:
        parts = [
            _text_of("", self.entities),
            _text_of("is ", self.contexts),
            _text_of("by ", self.actors),
            "" if self.since is None else f"since {_instant(self.since)}",
            "" if self.until is None else f"until {_instant(self.until)}",
            "" if self.where is None else f"where {self.where}",
            "" if self.limit is None else f"limit {self.limit}",
        ]
        return " ".join(part for part in parts if part)


def _is_any(names: tuple[Name, ...], name: str) -> bool:
    return not names or any(
        one.matches(name) if isinstance(one, Glob) else one == name for one in names
    )


def _text_of(word: str, names: tuple[Name, ...]) -> str:
    texts = [
        str(one) if isinstance(one, Glob) or is_bare(one) else json.dumps(one, ensure_ascii=False)
        for one in names
    ]
    return word + ", ".join(texts) if texts else ""


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()


def _names(given: Names, what: str) -> tuple[Name, ...]:
    names = (given,) if isinstance(given, str | Glob) else tuple(given)
    return tuple(one if isinstance(one, Glob) else checked_name(one, what) for one in names)


def _zoned(at: datetime | None) -> datetime | None:
    if at is not None and at.tzinfo is None:
        raise InvalidTime(f"{at} has no zone, so it names no instant. Give it one")
    return at
