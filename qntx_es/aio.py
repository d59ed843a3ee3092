"""The host for callers with an event loop: one thin face, and the same synchronous core behind it.

What is the host's own work runs in a thread. What belongs in the caller's transaction runs on his
own connection, through SQLAlchemy's `run_sync`, so that it commits or rolls back with the rest.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from qntx_es.attestation import Attestation, Json, Payload, Recorded
from qntx_es.ax import Ax
from qntx_es.errors import OtherDatabase
from qntx_es.host import Host
from qntx_es.log import Receipt

AnyAsyncSession: TypeAlias = AsyncSession | AsyncConnection
P = TypeVar("P", bound=Payload)


class AsyncHost:
    """A host whose calls can be awaited: `AsyncHost(host)`. The host stays its owner's to close."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @overload
    async def append(
        self,
        attestations: Attestation,
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
        session: AnyAsyncSession | None = None,
    ) -> Receipt: ...
    @overload
    async def append(
        self,
        attestations: Iterable[Attestation],
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
        session: AnyAsyncSession | None = None,
    ) -> list[Receipt]: ...
    async def append(
        self,
        attestations: Attestation | Iterable[Attestation],
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
        session: AnyAsyncSession | None = None,
    ) -> Receipt | list[Receipt]:
        """Append as `Host.append` does; `session` is an AsyncSession or an AsyncConnection."""
        said: Any = attestations if isinstance(attestations, Attestation) else list(attestations)
        append = partial(
            self.host.append,
            said,
            unless=unless,
            after=after,
            expected_version=expected_version,
        )
        if session is None:
            return await asyncio.to_thread(append)
        if not isinstance(session, AsyncSession | AsyncConnection):
            raise OtherDatabase(
                f"session is a {type(session).__name__}, not an AsyncSession or AsyncConnection"
            )
        # Elsewhere than on the caller's connection nothing may block the loop.
        await asyncio.to_thread(self.host.get_ready)
        return await session.run_sync(lambda joined: append(session=joined))

    async def position(self, receipt: Receipt) -> int:
        """Return the receipt's position. Raises what `Receipt.position` raises."""
        return await asyncio.to_thread(lambda: receipt.position)

    async def ax(
        self,
        ax: Ax | str | None = None,
        *,
        as_of: datetime | None = None,
        **parts: Any,  # noqa: ANN401 - the parts of an Ax
    ) -> list[Recorded[Json]]:
        """Return what is asked for, as `Host.ax` does."""
        return await asyncio.to_thread(partial(self.host.ax, ax, as_of=as_of, **parts))

    @overload
    async def latest(self, context: str, entity: str) -> Recorded[Json] | None: ...
    @overload
    async def latest(self, context: type[P], entity: str) -> Recorded[P] | None: ...
    async def latest(
        self, context: str | type[P], entity: str
    ) -> Recorded[Json] | Recorded[P] | None:
        """Return the newest statement about an entity in a context, as `Host.latest` does."""
        if isinstance(context, str):
            return await asyncio.to_thread(self.host.latest, context, entity)
        return await asyncio.to_thread(self.host.latest, context, entity)

    async def wait_for(
        self,
        position: int,
        name: str,
        timeout: timedelta | float = timedelta(seconds=10),  # noqa: ASYNC109 - as Host has it
    ) -> None:
        """Return once the domain's rows hold `position`, as `Host.wait_for` does."""
        await asyncio.to_thread(self.host.wait_for, position, name, timeout)
