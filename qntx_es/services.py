"""All that a domain may touch of its host, as protocols: the host fills them.

A job handler is handed a `ServiceRegistry`; project and derive handlers get rows only. There is no
way from here to another domain, and no way to write but by saying something.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from logging import LoggerAdapter
from typing import Any, Protocol, TypeAlias, overload

from qntx_es.attestation import Attestation, Json, Recorded
from qntx_es.ax import Ax
from qntx_es.rows import ReadRows

Logger: TypeAlias = "LoggerAdapter[Any]"


class Said(Protocol):
    """What the store gives back for an append: the id at once, the position once committed."""

    @property
    def id(self) -> str:
        """The id of the attestation."""
        ...

    @property
    def position(self) -> int:
        """Its position in the log. Raises `NotYetCommitted` before the commit."""
        ...


class Store(Protocol):
    """The log, as a domain sees it. There is no update and no delete."""

    @overload
    def append(self, attestations: Attestation) -> Said: ...
    @overload
    def append(self, attestations: Iterable[Attestation]) -> Sequence[Said]: ...
    def append(self, attestations: Attestation | Iterable[Attestation]) -> Said | Sequence[Said]:
        """State one or many. Inside a job they are committed together with its success."""
        ...

    def read(
        self, ax: Ax | None = None, after: int = 0, limit: int | None = None
    ) -> Iterator[Recorded[Json]]:
        """Yield committed attestations behind `after`, in the order of positions."""
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


class ReadDatabase(Protocol):
    """The domain's own tables, to be read."""

    def read(self) -> AbstractContextManager[ReadRows]:
        """Give the rows of one moment, for the length of a `with` block."""
        ...


class ServiceRegistry(Protocol):
    """The only way to touch the host."""

    @property
    def database(self) -> ReadDatabase:
        """The domain's own read model."""
        ...

    @property
    def store(self) -> Store:
        """The log."""
        ...

    def logger(self, domain: str) -> Logger:
        """Return the domain's logger. Raises `ForeignDomain` for another's."""
        ...


__all__ = ["Logger", "ReadDatabase", "Said", "ServiceRegistry", "Store"]
