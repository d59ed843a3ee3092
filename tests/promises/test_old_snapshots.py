"""A pass costs what it cost before, however many dead rows somebody's old snapshot keeps.

What is moved out of the inbox stays in its pages until nobody could see it any more, and one idle
transaction anywhere keeps all of it. A pass that waded through that each time would stop the log.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from qntx_es import Attestation
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer

PART = 10_000


def said(n: int) -> Attestation:
    """Say something small."""
    return Attestation(context="seen", entity=str(n), actor="ann", payload={})


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """Open an empty log on PostgreSQL."""
    database = Database(postgres_url)
    database.upgrade()
    yield database
    database.close()


def drop(database: Database, many: list[Attestation]) -> None:
    """Leave attestations in the inbox, as a caller's transaction does."""
    with database.write() as connection:
        Sequencer(database).drop(connection, many)


def pages_of_a_pass(connection: Connection) -> int:
    """Make a pass in this session, and return how many pages it looked at."""
    asked = text("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT qntx_take_in('{}')")
    with connection.begin():
        connection.execute(text("SELECT pg_advisory_xact_lock(qntx_lock())"))
        (plan,) = connection.execute(asked).scalar_one()
    return int(plan["Plan"]["Shared Hit Blocks"]) + int(plan["Plan"]["Shared Read Blocks"])


@pytest.mark.old_snapshot
@pytest.mark.parametrize("dead", [30_000, pytest.param(500_000, marks=pytest.mark.nightly)])
def test_a_pass_does_not_wade_through_what_is_settled(database: Database, dead: int) -> None:
    """One row costs as many pages after all that an idle transaction keeps as before."""
    with (
        database.snapshot() as idle,
        database.engine.connect() as session,
        database.engine.connect() as newcomer,
    ):
        idle.execute(text("SELECT count(*) FROM qntx_inbox"))
        drop(database, [said(-1)])
        pages_of_a_pass(session)
        drop(database, [said(-2)])
        before = pages_of_a_pass(session)
        for first in range(0, dead, PART):
            drop(database, [said(n) for n in range(first, first + PART)])
            pages_of_a_pass(session)
        drop(database, [said(-3)])

        after = pages_of_a_pass(session)

        # The guard is guarded: who does not know what is settled has to look at all of it, once.
        drop(database, [said(-4)])
        assert pages_of_a_pass(newcomer) > 10 * before
        drop(database, [said(-5)])
        assert pages_of_a_pass(newcomer) < 2 * before
    assert after < 2 * before
    assert Log(database, Sequencer(database)).head() == dead + 5


@pytest.mark.old_snapshot
def test_a_pass_that_is_undone_settles_nothing(database: Database) -> None:
    """What a pass has moved and not committed is moved by the next one of the same session."""
    with database.engine.connect() as session:
        drop(database, [said(1)])
        with session.begin() as undone:
            session.execute(text("SELECT pg_advisory_xact_lock(qntx_lock())"))
            session.execute(text("SELECT qntx_take_in('{}')"))
            undone.rollback()

        pages_of_a_pass(session)

    log = Log(database, Sequencer(database))
    assert [one.entity for one in log.read()] == ["1"]


@pytest.mark.old_snapshot
def test_an_open_transaction_is_not_settled(database: Database) -> None:
    """Who was open while others were moved is moved in his turn, by a session that knows."""
    with database.engine.connect() as session, database.engine.connect() as caller:
        Sequencer(database).drop(caller, [said(1)])
        for n in range(2, 5):
            drop(database, [said(n)])
            pages_of_a_pass(session)
        caller.commit()

        pages_of_a_pass(session)

    log = Log(database, Sequencer(database))
    assert [one.entity for one in log.read()] == ["2", "3", "4", "1"]
