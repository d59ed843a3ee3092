"""Appending in the caller's transaction: his commit is the attestations' commit, and his alone."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
from sqlalchemy import Connection, Engine, Integer, String, create_engine, event, func, select, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from qntx_es import (
    Attestation,
    Ax,
    ConditionNeedsOwnTransaction,
    ConflictingAttestation,
    Host,
    NotYetCommitted,
    OtherDatabase,
    QntxError,
    TooMany,
)

BOUND = 10
Level: TypeAlias = Literal["REPEATABLE READ", "SERIALIZABLE"]


class Base(DeclarativeBase):
    """An application's own tables."""


class Order(Base):
    """An application's own row."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String, unique=True)


def said(entity: str = "a", **parts: object) -> Attestation:
    """Say something small."""
    fields = {"context": "seen", "actor": "ann", "payload": {}} | parts
    return Attestation(entity=entity, **fields)  # type: ignore[arg-type]


def application_url(url: str) -> str:
    """Return the URL as an application would write it."""
    return url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def host(url: str) -> Iterator[Host]:
    """Open an empty log on each database."""
    with Host(url) as host:
        host.upgrade()
        yield host


@pytest.fixture
def engine(host: Host, url: str) -> Iterator[Engine]:
    """Open the application's own engine, as SQLAlchemy makes it."""
    engine = create_engine(application_url(url))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()
    host.close()


def orders(engine: Engine) -> int:
    """Count the application's own rows."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(Order)) or 0


def entities(host: Host) -> list[str]:
    """Return whom the log is about, in order, having seen that it is dense."""
    read = list(host.log.read())
    assert [one.position for one in read] == list(range(1, len(read) + 1))
    return [one.entity for one in read]


@pytest.mark.caller_session
def test_a_session_commits_both(host: Host, engine: Engine) -> None:
    """The application's rows and the attestations come with one commit, then the positions."""
    with Session(engine) as session:
        session.add(Order(id=1, name="one"))
        receipts = host.append([said("a"), said("b")], session=session)
        with pytest.raises(NotYetCommitted):
            _ = receipts[0].position
        assert host.log.head() == 0
        session.commit()

    assert entities(host) == ["a", "b"]
    assert [one.position for one in receipts] == [1, 2]
    assert orders(engine) == 1


@pytest.mark.caller_session
def test_a_connection_commits_both(host: Host, engine: Engine) -> None:
    """A plain connection gives no sign of its commit, and its receipts find their positions."""
    with engine.begin() as connection:
        receipt = host.append(said("a"), session=connection)

    assert receipt.position == 1
    assert entities(host) == ["a"]


def test_a_registry_of_sessions_will_do(host: Host, engine: Engine) -> None:
    """What `scoped_session` makes is handed in as it is."""
    sessions = scoped_session(sessionmaker(engine))
    receipt = host.append(said("a"), session=sessions)
    sessions.commit()
    sessions.remove()

    assert receipt.position == 1


@pytest.mark.caller_session
def test_a_rollback_leaves_nothing(host: Host, engine: Engine) -> None:
    """Rolled back, they were never said, no position is missing, and the receipt says so."""
    with Session(engine) as session:
        session.add(Order(id=1, name="one"))
        receipt = host.append(said("gone"), session=session)
        session.rollback()
    host.append(said("stays"))

    assert entities(host) == ["stays"]
    assert host.log.waiting() == 0
    assert orders(engine) == 0
    with pytest.raises(NotYetCommitted):
        _ = receipt.position


@pytest.mark.caller_session
def test_a_savepoint_that_is_rolled_back_leaves_nothing(host: Host, engine: Engine) -> None:
    """What was said within it goes with it, what was said around it stays, in its order."""
    with Session(engine) as session:
        session.execute(text("UPDATE orders SET id = id"))
        host.append(said("before"), session=session)
        inner = session.begin_nested()
        host.append(said("gone"), session=session)
        inner.rollback()
        with session.begin_nested():
            host.append(said("kept"), session=session)
        host.append(said("after"), session=session)
        session.commit()
    host.catch_up()

    assert entities(host) == ["before", "kept", "after"]


def test_nothing_of_the_callers_is_flushed(host: Host, engine: Engine) -> None:
    """His pending objects are written when he says so."""
    with Session(engine) as session:
        order = Order(id=1, name="one")
        session.add(order)
        host.append(said("a"), session=session)
        assert order in session.new
        session.commit()

    assert orders(engine) == 1


def test_nothing_of_the_callers_is_committed_or_undone(host: Host, engine: Engine) -> None:
    """An append, refused or not, sends neither a COMMIT nor a ROLLBACK on his connection."""
    ended: list[str] = []
    with engine.connect() as connection:
        for name in ("commit", "rollback"):
            event.listen(connection, name, lambda _, name=name: ended.append(name))
        host.append(said("a", id="one"), session=connection)
        with pytest.raises(ConflictingAttestation):
            host.append([said("c"), said("b", id="one")], session=connection)
        assert ended == []
        connection.commit()
    host.catch_up()

    assert entities(host) == ["a"]


def test_a_refused_append_leaves_a_usable_transaction(host: Host, engine: Engine) -> None:
    """All or none: what stood beside the refused one is gone, and the caller goes on."""
    host.append(said("first", id="one"))
    with Session(engine) as session:
        session.add(Order(id=1, name="one"))
        session.flush()
        with pytest.raises(ConflictingAttestation):
            host.append([said("beside"), said("second", id="one")], session=session)
        host.append(said("third"), session=session)
        session.commit()
    host.catch_up()

    assert entities(host) == ["first", "third"]
    assert orders(engine) == 1


@pytest.mark.caller_session
def test_a_caller_in_autocommit_has_each_append_at_once(host: Host, engine: Engine) -> None:
    """Where every statement is a transaction, an append is one, and all or none."""
    host.append(said("first", id="one"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        receipts = host.append([said("a"), said("b")], session=connection)
        with pytest.raises(ConflictingAttestation):
            host.append([said("beside"), said("second", id="one")], session=connection)

        assert [one.position for one in receipts] == [2, 3]
    assert entities(host) == ["first", "a", "b"]


@pytest.mark.caller_session
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_no_isolation_level_is_special(
    postgres_url: str,
    level: Level,
    request: pytest.FixtureRequest,
) -> None:
    """A caller with an old snapshot appends as any other, and sees no position early."""
    host = Host(postgres_url)
    request.addfinalizer(host.close)
    host.upgrade()
    engine = create_engine(application_url(postgres_url), isolation_level=level)
    request.addfinalizer(engine.dispose)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        host.append(said("other"))
        receipt = host.append(said("mine"), session=connection)

    assert receipt.position == 2


@pytest.mark.caller_session
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_what_a_test_suite_wraps_is_said_when_the_wrapping_commits(
    host: Host, url: str, end: str
) -> None:
    """Commits of sessions that join an outer transaction say nothing; its own says all or none."""
    engine = create_engine(application_url(url))
    if engine.dialect.name == "sqlite":
        # As SQLAlchemy's documentation has it, for savepoints.
        event.listen(engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
        event.listen(engine, "begin", lambda one: one.exec_driver_sql("BEGIN"))
    with engine.connect() as outer:
        wrapping = outer.begin()
        for entity in ("a", "b"):
            with Session(outer, join_transaction_mode="create_savepoint") as session:
                host.append(said(entity), session=session)
                session.commit()
                host.append(said("gone"), session=session)
                session.rollback()
        assert host.log.head() == 0
        getattr(wrapping, end)()
    engine.dispose()
    host.catch_up()

    assert entities(host) == (["a", "b"] if end == "commit" else [])
    assert host.log.waiting() == 0


@pytest.mark.caller_session
def test_two_phases_commit_it_too(postgres_url: str, request: pytest.FixtureRequest) -> None:
    """A prepared transaction brings its attestations when it is committed."""
    host = Host(postgres_url)
    request.addfinalizer(host.close)
    host.upgrade()
    engine = create_engine(application_url(postgres_url))
    request.addfinalizer(engine.dispose)
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        receipt = host.append(said("a"), session=connection)
        transaction.prepare()
        with pytest.raises(NotYetCommitted):
            _ = receipt.position
        transaction.commit()

    assert receipt.position == 1


def test_nobody_waits_for_a_callers_open_transaction(
    postgres_url: str, request: pytest.FixtureRequest
) -> None:
    """While it stays open others append and read; its own come behind them."""
    host = Host(postgres_url)
    request.addfinalizer(host.close)
    host.upgrade()
    engine = create_engine(application_url(postgres_url))
    request.addfinalizer(engine.dispose)
    with engine.begin() as connection:
        late = host.append(said("late"), session=connection)
        host.append(said("early"))
        assert entities(host) == ["early"]

    assert late.position == 2


def test_what_a_role_may_not_see_or_wait_for_comes_with_the_next_append(
    host: Host, engine: Engine
) -> None:
    """Where nobody asked for the receipt, the next append gives the positions, in their order."""
    with engine.begin() as connection:
        host.append([said("a"), said("b")], session=connection)
    host.append(said("c"))

    assert entities(host) == ["a", "b", "c"]


def test_said_twice_in_two_transactions_is_said_once(host: Host, engine: Engine) -> None:
    """The same id and bytes again: both receipts name the one position."""
    receipts = []
    for _ in range(2):
        with engine.begin() as connection:
            receipts.append(host.append(said("a", id="one"), session=connection))

    assert [one.position for one in receipts] == [1, 1]
    assert entities(host) == ["a"]


@pytest.mark.conditions
def test_conditions_need_a_transaction_of_their_own(host: Host, engine: Engine) -> None:
    """A condition beside `session` is refused by name, and nothing is left."""
    with Session(engine) as session:
        for condition in ({"unless": Ax(entities="a")}, {"expected_version": 0}):
            with pytest.raises(ConditionNeedsOwnTransaction):
                host.append(said("a"), session=session, **condition)
        session.commit()
    assert host.log.head() == 0


def test_a_session_of_another_database_is_refused(
    host: Host, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whatever cannot commit with the log is refused by name: no tables, or another log's."""
    bare = create_engine(f"sqlite:///{tmp_path / 'bare.db'}")
    request.addfinalizer(bare.dispose)
    with Host(f"sqlite:///{tmp_path / 'other.db'}") as other:
        other.upgrade()
        for engine in (bare, other.database.engine):
            with Session(engine) as session, pytest.raises(OtherDatabase):
                host.append(said("a"), session=session)
    with Session() as unbound, pytest.raises(OtherDatabase):
        host.append(said("a"), session=unbound)
    with pytest.raises(OtherDatabase, match="is a str"):
        host.append(said("a"), session="session")  # type: ignore[call-overload]
    assert host.log.head() == 0


def test_the_limits_hold_there_too(host: Host, engine: Engine) -> None:
    """Too many for one append are too many in a caller's transaction."""
    with engine.begin() as connection, pytest.raises(TooMany):
        host.append([said("a")] * 10_001, session=connection)


def test_read_models_follow(host: Host, engine: Engine) -> None:
    """A job requested in the caller's transaction is in the queue with its commit."""
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        host.append(said("a", context="noted"), session=connection)
    host.catch_up()

    assert {one.name: one.lag for one in host.statuses()}["pulse"] == 0


def test_a_caller_that_cannot_write_is_told(
    sqlite_url: str, request: pytest.FixtureRequest
) -> None:
    """On SQLite a transaction that read before another wrote can only be begun again: LogBusy."""
    host = Host(sqlite_url)
    request.addfinalizer(host.close)
    host.upgrade()
    engine = create_engine(sqlite_url, connect_args={"timeout": 0.1, "isolation_level": None})
    request.addfinalizer(engine.dispose)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    with engine.connect() as connection:
        connection.execute(text("SELECT count(*) FROM qntx_attestations"))
        host.append(said("other"))
        with pytest.raises(QntxError, match="Try again"):
            host.append(said("mine"), session=connection)
        connection.rollback()
        host.append(said("mine"), session=connection)
        connection.commit()

    assert entities(host) == ["other", "mine"]


def test_a_hint_is_given_once_and_only_by_a_commit(
    host: Host, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session's own commit starts a pass; a rollback or a released savepoint starts none."""
    passes: list[None] = []
    look_again = host.log._sequencer.look_again  # noqa: SLF001 - what a commit hints at

    def counted() -> None:
        passes.append(None)
        look_again()

    monkeypatch.setattr(host.log._sequencer, "look_again", counted)  # noqa: SLF001
    with Session(engine) as session:
        session.execute(text("UPDATE orders SET id = id"))
        with session.begin_nested():
            host.append(said("a"), session=session)
            host.append(said("b"), session=session)
        assert passes == []
        session.commit()
        session.execute(text("SELECT 1"))
        session.commit()

    assert passes == [None]
    assert entities(host) == ["a", "b"]


def test_sessions_may_share_the_hosts_pool(
    postgres_url: str, request: pytest.FixtureRequest
) -> None:
    """Over one engine of few connections, appends at once do not wait for each other."""
    engine = create_engine(
        application_url(postgres_url), pool_size=2, max_overflow=0, pool_timeout=BOUND
    )
    host = Host(engine)
    request.addfinalizer(engine.dispose)
    host.upgrade()
    host.append(said())
    meet = threading.Barrier(2)
    took: list[float] = []

    def append() -> None:
        with Session(engine) as session:
            host.append(said(), session=session)
            meet.wait(BOUND)
            started = time.monotonic()
            session.commit()
            took.append(time.monotonic() - started)

    threads = [threading.Thread(target=append) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(took) == 2
    assert max(took) < BOUND
    assert entities(host) == ["a", "a", "a"]
