"""The database itself refuses to change the log, whoever asks and however cleverly."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from qntx_es import Attestation, Ax
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer

CHANGES = {
    "update": "UPDATE qntx_attestations SET payload = '{}' WHERE position = 2",
    "update of nothing but itself": "UPDATE qntx_attestations SET payload = payload",
    "delete": "DELETE FROM qntx_attestations WHERE position = 3",
    "delete all": "DELETE FROM qntx_attestations",
}
ON_SQLITE = {
    "update or ignore": "UPDATE OR IGNORE qntx_attestations SET actor = 'eve'",
    "update or replace": "UPDATE OR REPLACE qntx_attestations SET position = 1 WHERE position = 2",
    "upsert": "INSERT INTO qntx_attestations SELECT * FROM qntx_attestations WHERE true "
    "ON CONFLICT (position) DO UPDATE SET payload = '{}'",
    "replace": "REPLACE INTO qntx_attestations SELECT * FROM qntx_attestations WHERE position = 2",
}
ON_POSTGRESQL = {
    "truncate": "TRUNCATE qntx_attestations",
    "truncate cascade": "TRUNCATE qntx_attestations, qntx_inbox CASCADE",
    "delete of nothing": "DELETE FROM qntx_attestations WHERE false",
    "upsert": "INSERT INTO qntx_attestations SELECT * FROM qntx_attestations "
    "ON CONFLICT (position) DO UPDATE SET payload = '{}'",
    "delete in a cte": "WITH gone AS (DELETE FROM qntx_attestations RETURNING *) "
    "SELECT count(*) FROM gone",
    "as a replica": "SET LOCAL session_replication_role = replica; "
    "UPDATE qntx_attestations SET payload = '{}'",
}
INSERT = (
    "{verb} INTO qntx_attestations (position, id, recorded_at, context, entity, actor, slice, "
    "depth, schema_version, payload) VALUES ({position}, '{id}', {at}, 'seen', 'a', 'ann', 0, 0, 1,"
    " '{{}}')"
)
FUTURE = 1 << 61
# What a taken position or id is refused by first is free.
REFUSED = "append-only|must continue the log|unique constraint|UNIQUE constraint|has no such tag"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """Open a log of three attestations."""
    database = Database(url)
    database.upgrade()
    log = Log(database, Sequencer(database))
    log.append(
        Attestation(context="seen", entity=f"e{n}", actor="ann", payload={"n": n}, id=f"id{n}")
        for n in range(1, 4)
    )
    yield database
    database.close()


def rows(database: Database) -> list[tuple[object, ...]]:
    """Read all that the log holds."""
    with database.read() as connection:
        asked = text("SELECT * FROM qntx_attestations ORDER BY position")
        return [tuple(row) for row in connection.execute(asked)]


def attempt(database: Database, statement: str) -> None:
    """Run a statement as the owner, and expect the database to refuse it."""
    before = rows(database)

    def run() -> None:
        with database.write() as connection:
            for one in statement.split("; "):
                connection.execute(text(one))

    with pytest.raises(DBAPIError, match=REFUSED):
        run()
    assert rows(database) == before


@pytest.mark.append_only
@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_nothing_in_the_log_can_be_changed(database: Database, statement: str) -> None:
    """UPDATE and DELETE are refused, also where they would change nothing."""
    attempt(database, statement)


@pytest.mark.append_only
def test_no_other_way_to_change_it_is_left_open(database: Database) -> None:
    """Each database's own ways to change a row are refused too."""
    for statement in (ON_SQLITE if database.is_sqlite else ON_POSTGRESQL).values():
        attempt(database, statement)


def test_an_insert_must_continue_the_log(database: Database) -> None:
    """Neither a hole, nor a taken position, nor one before the first can be inserted."""
    for position in (5, 3, 2, 0, -1, 1 << 62):
        attempt(database, INSERT.format(verb="INSERT", position=position, id="new", at=FUTURE))


def test_an_insert_cannot_go_back_in_time(database: Database) -> None:
    """What comes later in the log was not recorded earlier."""
    last = rows(database)[-1][2]
    attempt(database, INSERT.format(verb="INSERT", position=4, id="new", at=int(str(last)) - 1))


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_sqlite_cannot_be_talked_into_replacing(database: Database) -> None:
    """`INSERT OR …` in any of its moods overwrites neither a position nor an id."""
    for mood in ("REPLACE", "IGNORE", "FAIL", "ABORT"):
        verb = f"INSERT OR {mood}"
        for position, name in ((2, "new"), (4, "id2"), (2, "id2"), (6, "new")):
            attempt(database, INSERT.format(verb=verb, position=position, id=name, at=FUTURE))


def test_an_id_is_there_once(database: Database) -> None:
    """A second row under one id is refused, though it continues the log."""
    attempt(database, INSERT.format(verb="INSERT", position=4, id="id2", at=FUTURE))


def test_several_rows_at_once_must_be_dense(database: Database) -> None:
    """One statement of many rows is held against the log as one."""
    first = INSERT.format(verb="INSERT", position=4, id="four", at=FUTURE)
    for position, at in ((6, FUTURE), (4, FUTURE), (5, FUTURE - 1)):
        second = f", ({position}, 'five', {at}, 'seen', 'a', 'ann', 0, 0, 1, '{{}}')"
        attempt(database, first + second)


def test_continuing_the_log_by_hand_is_allowed(database: Database) -> None:
    """The guard lets through what continues the log: it guards history and not the way in."""
    with database.write() as connection:
        connection.execute(text(INSERT.format(verb="INSERT", position=4, id="new", at=FUTURE)))

    assert len(rows(database)) == 4


def test_every_reading_is_the_start_of_every_later_one(database: Database) -> None:
    """Whatever is appended, what was read before is read again, unchanged."""
    log = Log(database, Sequencer(database))
    before = [one.row for one in log.read()]

    log.append(Attestation(context="seen", entity="e", actor="ann", payload={}))

    assert [one.row for one in log.read()][: len(before)] == before


ON_TAGS = {
    "a false tag": "INSERT INTO qntx_tags (tag, position) VALUES ('false', 4)",
    "a tag of an untagged one": "INSERT INTO qntx_tags (tag, position) VALUES ('true', 3)",
    "a tag of what is not there": "INSERT INTO qntx_tags (tag, position) VALUES ('true', 9)",
    "true and false": "INSERT INTO qntx_tags (tag, position) VALUES ('true', 4), ('false', 4)",
    "update": "UPDATE qntx_tags SET position = 1",
    "update of nothing but itself": "UPDATE qntx_tags SET tag = tag",
    "delete": "DELETE FROM qntx_tags WHERE tag = 'true'",
    "upsert": "INSERT INTO qntx_tags (tag, position) VALUES ('true', 4)"
    " ON CONFLICT (tag, position) DO UPDATE SET position = 1",
}
TAGS_ON_SQLITE = {
    "replace": "REPLACE INTO qntx_tags (tag, position) VALUES ('false', 4)",
    "update or replace": "UPDATE OR REPLACE qntx_tags SET tag = 'false'",
    "insert or ignore": "INSERT OR IGNORE INTO qntx_tags (tag, position) VALUES ('false', 4)",
}
TAGS_ON_POSTGRESQL = {
    "truncate": "TRUNCATE qntx_tags",
    "as a replica": "SET LOCAL session_replication_role = replica; "
    "INSERT INTO qntx_tags (tag, position) VALUES ('false', 4)",
    "delete as a replica": "SET LOCAL session_replication_role = replica; DELETE FROM qntx_tags",
}


def test_the_tags_say_what_the_log_says(database: Database) -> None:
    """No tag can be invented, moved or removed: an Ax finds exactly what was tagged."""
    log = Log(database, Sequencer(database))
    tagged = Attestation(
        context="seen", entity="e", actor="ann", payload={}, tags=("true", "too", "'; drop --")
    )
    log.append(tagged)

    own = TAGS_ON_SQLITE if database.is_sqlite else TAGS_ON_POSTGRESQL
    for statement in (*ON_TAGS.values(), *own.values()):
        attempt(database, statement)

    for tag in tagged.tags:
        assert [one.position for one in log.read(Ax(entities=tag))] == [4]
    assert list(log.read(Ax(entities="false"))) == []


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_sqlite_cannot_be_talked_into_replacing_a_version(database: Database) -> None:
    """`INSERT OR REPLACE` under a version that an entity has overwrites nothing."""
    Log(database, Sequencer(database)).append(
        Attestation(context="seen", entity="v", actor="ann", payload={}), expected_version=0
    )
    attempt(
        database,
        "INSERT OR REPLACE INTO qntx_attestations (position, id, recorded_at, context, entity, "  # noqa: S608 - ours
        "actor, slice, depth, schema_version, payload, entity_version) "
        f"VALUES (5, 'new', {FUTURE}, 'seen', 'v', 'eve', 0, 0, 1, '{{}}', 1)",
    )


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_temporary_table_cannot_stand_in_for_the_log(database: Database) -> None:
    """The guards look at the log itself, whatever a session calls by its name."""
    columns = "position, 0::bigint AS recorded_at, '[\"false\"]'::text AS tags"
    shadow = f"CREATE TEMP TABLE qntx_attestations AS SELECT {columns} FROM "  # noqa: S608 - ours
    beyond = INSERT.format(verb="INSERT", position=9, id="new", at=FUTURE)
    attempt(
        database,
        f"{shadow} generate_series(8, 9) AS position; "
        + beyond.replace("qntx_attestations", "public.qntx_attestations"),
    )
    attempt(
        database,
        f"{shadow} generate_series(2, 2) AS position; "  # noqa: S608 - ours
        "INSERT INTO public.qntx_tags (tag, position) VALUES ('false', 2)",
    )
