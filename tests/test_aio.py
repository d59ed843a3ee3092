"""The async face: awaited calls, and the caller's own async transaction."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from qntx_es import (
    Attestation,
    Ax,
    ConditionNeedsOwnTransaction,
    Domain,
    Host,
    NotYetCommitted,
    OtherDatabase,
)
from qntx_es.aio import AsyncHost


def said(entity: str = "a", **parts: object) -> Attestation:
    """Say something small."""
    fields = {"context": "seen", "actor": "ann", "payload": {"ü": ["😀", 1]}} | parts
    return Attestation(entity=entity, **fields)  # type: ignore[arg-type]


@pytest.fixture(params=["sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"])
def application_url(request: pytest.FixtureRequest) -> str:
    """Name a database as applications do, by each driver they may have."""
    driver: str = request.param
    kind = driver.partition("+")[0]
    url: str = request.getfixturevalue("sqlite_url" if kind == "sqlite" else "postgres_url")
    return url.replace(f"{kind}://", f"{driver}://")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[AsyncHost, AsyncEngine]]:
    """Open a host and an application's engine on one database."""
    kind, _, rest = url.partition("+")
    host = Host(f"{kind}:{rest.partition(':')[2]}", [Domain("shop")])
    await asyncio.to_thread(host.upgrade)
    engine = create_async_engine(url)
    try:
        yield AsyncHost(host), engine
    finally:
        await engine.dispose()
        host.close()


Story = Callable[[AsyncHost, AsyncEngine], Awaitable[None]]


def told(url: str, story: Story) -> None:
    """Run a story in a loop of its own."""

    async def tell() -> None:
        async with opened(url) as (host, engine):
            await story(host, engine)

    asyncio.run(tell())


def test_calls_can_be_awaited(application_url: str) -> None:
    """Append, ask, conditions and waiting work as on the host."""

    async def story(host: AsyncHost, _: AsyncEngine) -> None:
        receipt = await host.append(said("a"), unless=Ax(entities="a"))
        more = await host.append([said("b"), said("c")], expected_version={"b": 0})
        assert [receipt.position, *(one.position for one in more)] == [1, 2, 3]
        assert [one.entity for one in await host.ax(contexts="seen")] == ["a", "b", "c"]
        await asyncio.to_thread(host.host.catch_up)
        await host.wait_for(3, "shop")

    told(application_url, story)


def test_an_async_session_commits_both(application_url: str) -> None:
    """What is appended in an AsyncSession comes with its commit, and is gone with a rollback."""

    async def story(host: AsyncHost, engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            receipts = await host.append([said("a"), said("b")], session=session)
            with pytest.raises(NotYetCommitted):
                await host.position(receipts[0])
            await session.commit()
            await host.append(said("gone"), session=session)
            await session.rollback()
        assert [await host.position(one) for one in receipts] == [1, 2]
        found = await host.ax(contexts="seen")
        assert [one.entity for one in found] == ["a", "b"]
        assert found[0].payload == {"ü": ["😀", 1]}

    told(application_url, story)


def test_an_async_connection_commits_both(application_url: str) -> None:
    """The same holds for an AsyncConnection, and for a savepoint of it."""

    async def story(host: AsyncHost, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE qntx_epoch SET epoch = epoch WHERE false"))
            first = await host.append(said("a"), session=connection)
            inner = await connection.begin_nested()
            await host.append(said("gone"), session=connection)
            await inner.rollback()
            second = await host.append(said("b"), session=connection)
        assert [await host.position(first), await host.position(second)] == [1, 2]

    told(application_url, story)


def test_a_session_of_the_wrong_kind_is_refused(application_url: str) -> None:
    """A sync session here, an async one at the sync host, and a condition beside one: by name."""

    async def story(host: AsyncHost, engine: AsyncEngine) -> None:
        with pytest.raises(OtherDatabase, match="is a str"):
            await host.append(said(), session="session")  # type: ignore[call-overload]
        async with AsyncSession(engine) as session:
            with pytest.raises(OtherDatabase, match="AsyncSession"):
                host.host.append(said(), session=session)  # type: ignore[call-overload]
            with pytest.raises(ConditionNeedsOwnTransaction):
                await host.append(said(), session=session, expected_version=0)
        assert host.host.log.head() == 0

    told(application_url, story)


def test_many_tasks_append_at_once(application_url: str) -> None:
    """Twenty tasks, each in a session of its own: all are there, once, and positions are dense."""

    async def story(host: AsyncHost, engine: AsyncEngine) -> None:
        async def one(n: int) -> None:
            if engine.dialect.name == "sqlite":
                await host.append(said(f"e{n}"))
                return
            async with AsyncSession(engine) as session:
                await host.append(said(f"e{n}"), session=session)
                await session.commit()

        await asyncio.gather(*(one(n) for n in range(20)))
        await asyncio.to_thread(host.host.catch_up)
        found = await host.ax()
        assert sorted(each.entity for each in found) == sorted(f"e{n}" for n in range(20))
        assert [each.position for each in found] == list(range(1, 21))

    told(application_url, story)
