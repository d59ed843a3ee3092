"""Calls in one way there and back: what they carry and keep, and what their errors are."""

import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from qntx_es import Attestation, DatabaseUnavailable, Host, LogBusy
from qntx_es.calls import CALLS_MAX
from qntx_es.database import Database

# What PostgreSQL can hold; anything else is refused long before.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """Open a database on PostgreSQL."""
    database = Database(postgres_url, timeout=timedelta(seconds=0.2))
    yield database
    database.close()


@pytest.fixture
def wire(postgres_url: str) -> Iterator[Database]:
    """Open one for many examples."""
    database = Database(postgres_url)
    yield database
    database.close()


@given(
    texts=st.lists(st.none() | TEXTS),
    ints=st.lists(st.integers(-(1 << 31), (1 << 31) - 1)),
    one=TEXTS,
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_sent_arrives(
    wire: Database, texts: list[str | None], ints: list[int], one: str
) -> None:
    """Every text, null and number comes to the server as it was, and so does an empty list."""
    asked = b"SELECT $1::text[] = $2::text[], array_length($1::text[], 1), ($1::text[])[1]"
    assert wire.call(asked, (texts, texts)) == [
        "t",
        str(len(texts)) if texts else None,
        texts[0] if texts else None,
    ]
    total = b"SELECT coalesce(sum(n), 0), count(*), $2::text FROM unnest($1::int[]) AS n"
    # An empty list has no type of its own: none of ours is ever empty.
    sent: Sequence[int] = ints or [0]
    assert wire.call(total, (sent, one)) == [str(sum(sent)), str(len(sent)), one]


def test_calls_keep_one_connection_and_leave_the_pool_its_own(postgres_url: str) -> None:
    """One after the other they share a connection, which a pool of one does not miss."""
    engine = create_engine(postgres_url, pool_size=1, max_overflow=0)
    database = Database(engine)

    called = {database.call(b"SELECT pg_backend_pid()", ())[0] for _ in range(5)}
    with engine.connect() as connection:
        pooled = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        assert len(called) == 1
        assert str(pooled) not in called
    database.close()


def test_a_call_commits_by_itself(database: Database) -> None:
    """What a call has done is there at once, and what fails has done nothing."""
    assert database.call(b"SELECT 1 FROM pg_class LIMIT 1", ()) == ["1"]
    with database.write() as connection:
        connection.execute(text("CREATE TABLE said (n int PRIMARY KEY)"))
    insert = b"INSERT INTO said SELECT unnest($1::int[]) RETURNING n"

    database.call(insert, ([1],))
    with pytest.raises(IntegrityError):
        database.call(insert, ([2, 1],))

    with database.read() as connection:
        assert connection.execute(text("SELECT n FROM said")).scalars().all() == [1]


def test_a_refused_call_keeps_its_connection(database: Database) -> None:
    """An error of the statement's is SQLAlchemy's, and the same connection goes on."""
    before = database.call(b"SELECT pg_backend_pid()", ())

    with pytest.raises(ProgrammingError, match="nothing_of_that_name"):
        database.call(b"CALL nothing_of_that_name()", ())

    assert database.call(b"SELECT pg_backend_pid()", ()) == before


def test_a_lost_connection_is_named_and_made_anew(database: Database) -> None:
    """Cut off, a call says that the database is out of reach; the next one reaches it."""
    (pid,) = database.call(b"SELECT pg_backend_pid()", ())
    with database.write() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": int(pid or 0)})

    with pytest.raises(DatabaseUnavailable):
        database.call(b"SELECT 1", ())

    assert database.call(b"SELECT 1", ()) == ["1"]


def test_a_database_that_nobody_serves_is_unavailable_to_calls(tmp_path: object) -> None:
    """Nobody there is the same trouble by the same name as for any other statement."""
    database = Database(f"postgresql://nobody@/nothing?host={tmp_path}")

    with pytest.raises(DatabaseUnavailable):
        database.call(b"SELECT 1", ())

    database.close()


def test_too_many_calls_at_once_wait_and_then_are_refused(database: Database) -> None:
    """As many as there are connections run at once; one more waits, and no longer than it may."""
    running = threading.Barrier(CALLS_MAX + 1)

    def hold() -> None:
        running.wait(30)
        with pytest.raises(LogBusy):
            database.call(
                b"SELECT set_config('lock_timeout', '2s', false), wait_for_the_test()", ()
            )

    with database.write() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION wait_for_the_test() RETURNS void LANGUAGE sql AS "
                "'SELECT pg_advisory_xact_lock(1)'"
            )
        )
    with database.write() as gate:
        gate.execute(text("SELECT pg_advisory_xact_lock(1)"))
        holders = [threading.Thread(target=hold) for _ in range(CALLS_MAX)]
        for one in holders:
            one.start()
        running.wait(30)
        until_wait(database, CALLS_MAX)

        with pytest.raises(DatabaseUnavailable, match="in use"):
            database.call(b"SELECT 1", ())
        for one in holders:
            one.join(30)

    assert database.call(b"SELECT 1", ()) == ["1"]


def until_wait(database: Database, count: int) -> None:
    """Return when so many wait for the lock of the test."""
    asked = text(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database WHERE NOT granted"
        " AND locktype = 'advisory' AND datname = current_database()"
    )
    pause = threading.Event()
    for _ in range(3_000):
        with database.read() as connection:
            if connection.execute(asked).scalar_one() == count:
                return
        pause.wait(0.01)
    pytest.fail("they do not wait")


@pytest.mark.parametrize("threshold", [None, 5])
def test_whoever_prepares_no_statements_appends_too(
    postgres_url: str, threshold: int | None
) -> None:
    """The driver's own switch, which some proxies need, is obeyed."""
    engine = create_engine(postgres_url, connect_args={"prepare_threshold": threshold})
    asked = b"SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'qntx%'"
    with Host(engine) as host:
        host.upgrade()
        for n in range(3):
            said = Attestation(context="seen", entity=str(n), actor="ann", payload={})
            assert host.append(said).position == n + 1
        (prepared,) = host.database.call(asked, ())
    assert (prepared != "0") == (threshold is not None)


def test_a_driver_that_speaks_another_encoding_changes_no_text(postgres_url: str) -> None:
    """Whatever encoding an application's engine asks for, what is said is kept as it was said."""
    engine = create_engine(postgres_url, connect_args={"options": "-c client_encoding=LATIN1"})
    with Host(engine) as host:
        host.upgrade()
        host.append(Attestation(context="seen", entity="Zoë", actor="ann", payload={"é": "ü"}))
    with Host(postgres_url) as other:
        (one,) = other.ax(entities="Zoë")
        assert one.payload == {"é": "ü"}
