"""A role that owns nothing appends through the library, and can do nothing else to the log."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import Session

from qntx_es import Attestation, Ax, Host
from qntx_es.statements import COLUMNS

# What a process needs that gives positions: appends of its own, conditions, passes.
SEQUENCES = (
    "SELECT ON ALL TABLES IN SCHEMA public",
    "INSERT ON qntx_attestations, qntx_tags",
    "INSERT, DELETE ON qntx_inbox",
)
# What an application needs that appends in its own transactions, and leaves the order to others.
# Neither `number` nor `tx` is among the columns: both are the database's to give.
APPENDS = (
    "SELECT ON ALL TABLES IN SCHEMA public",
    f"INSERT (whole, {', '.join(COLUMNS)}) ON qntx_inbox",
)
SELECT_AND_INSERT = ("SELECT, INSERT ON ALL TABLES IN SCHEMA public",)
# Refused by the guards alone, and not for want of a right.
EVERY_RIGHT_TO_ROWS = ("SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public",)

INSERT = (
    "INSERT INTO qntx_attestations (position, id, recorded_at, context, entity, actor, slice,"
    " depth, schema_version, payload) VALUES ({position}, '{id}', {at}, 'seen', 'a', 'eve', 0, 0,"
    " 1, '{{}}')"
)
FUTURE = 1 << 61
ATTACKS = {
    "update": "UPDATE qntx_attestations SET payload = '{}' WHERE position = 2",
    "update of nothing": "UPDATE qntx_attestations SET payload = payload WHERE false",
    "delete": "DELETE FROM qntx_attestations WHERE position = 3",
    "truncate": "TRUNCATE qntx_attestations",
    "truncate all": "TRUNCATE qntx_inbox, qntx_tags, qntx_attestations CASCADE",
    "merge that updates": "MERGE INTO qntx_attestations AS old USING (SELECT 2 AS p) AS new"
    " ON old.position = p WHEN MATCHED THEN UPDATE SET payload = '{}'",
    "merge that deletes": "MERGE INTO qntx_attestations AS old USING (SELECT 2 AS p) AS new"
    " ON old.position = p WHEN MATCHED THEN DELETE",
    "upsert": INSERT.format(position=2, id="new", at=FUTURE)
    + " ON CONFLICT (position) DO UPDATE SET payload = '{}'",
    "a taken position": INSERT.format(position=2, id="new", at=FUTURE),
    "a hole": INSERT.format(position=5, id="new", at=FUTURE),
    "a far position": INSERT.format(position=1 << 62, id="new", at=FUTURE),
    "before the first": INSERT.format(position=0, id="new", at=FUTURE),
    "a taken id": INSERT.format(position=4, id="id2", at=FUTURE),
    "back in time": INSERT.format(position=4, id="new", at=0),
    "copy": "CREATE TEMP TABLE mine AS SELECT * FROM qntx_attestations WHERE position = 2; "
    "INSERT INTO qntx_attestations SELECT * FROM mine",
    "a number in the inbox": "INSERT INTO qntx_inbox (number, whole, id, context, entity, actor,"
    " slice, depth, schema_version, payload) VALUES"
    " (1, false, 'new', 'seen', 'a', 'eve', 0, 0, 1, '{}')",
    "a false tag": "INSERT INTO qntx_tags (tag, position) VALUES ('false', 2)",
    "a tag of nothing": "INSERT INTO qntx_tags (tag, position) VALUES ('true', 9)",
    "a true tag doubled": "INSERT INTO qntx_tags (tag, position) VALUES ('true', 2)",
    "update of a tag": "UPDATE qntx_tags SET position = 1",
    "delete of a tag": "DELETE FROM qntx_tags",
    "truncate of tags": "TRUNCATE qntx_tags",
    "triggers off": "ALTER TABLE qntx_attestations DISABLE TRIGGER ALL",
    "triggers dropped": "DROP TRIGGER qntx_attestations_no_change ON qntx_attestations",
    "as a replica": "SET session_replication_role = replica",
    "another function": "CREATE OR REPLACE FUNCTION qntx_refuse_change() RETURNS trigger"
    " LANGUAGE plpgsql AS $$ BEGIN RETURN NULL;END $$",
    "a rule": "CREATE RULE evil AS ON INSERT TO qntx_attestations DO INSTEAD NOTHING",
    "a trigger": "CREATE TRIGGER evil BEFORE INSERT ON qntx_attestations FOR EACH ROW"
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "drop": "DROP TABLE qntx_attestations CASCADE",
    "rename": "ALTER TABLE qntx_attestations RENAME TO gone",
}
REFUSED = re.compile(
    "permission denied|must be owner|append-only|must continue the log|has no such tag"
    "|duplicate key|cannot insert a non-DEFAULT value"
)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close at the end what a test leaves open."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def owner(postgres_url: str, stack: ExitStack) -> Host:
    """Open a log of three attestations, as its owner."""
    host = stack.enter_context(Host(postgres_url))
    host.upgrade()
    host.append([said(f"e{n}", id=f"id{n}", tags=("true",)) for n in range(1, 4)])
    return host


@pytest.fixture
def role(owner: Host, postgres_url: str, stack: ExitStack) -> Callable[[tuple[str, ...]], str]:
    """Make roles with the given grants, and return the URLs they connect by."""

    def make(grants: tuple[str, ...]) -> str:
        name = f"qntx_{uuid4().hex}"
        with owner.database.write() as connection:
            connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'"))
            for grant in grants:
                connection.execute(text(f"GRANT {grant} TO {name}"))
        stack.callback(drop, name)
        url = make_url(postgres_url).set(username=name, password=name)
        return url.render_as_string(hide_password=False)

    def drop(name: str) -> None:
        with owner.database.write() as connection:
            connection.execute(text(f"DROP OWNED BY {name}"))
            connection.execute(text(f"DROP ROLE {name}"))

    return make


def said(entity: str = "a", **parts: object) -> Attestation:
    """Say something small."""
    fields = {"context": "seen", "actor": "ann", "payload": {}} | parts
    return Attestation(entity=entity, **fields)  # type: ignore[arg-type]


def everything(host: Host) -> list[tuple[object, ...]]:
    """Read all that the log and its tags hold."""
    with host.database.read() as connection:
        return [
            tuple(row)
            for table in ("qntx_attestations", "qntx_tags")
            for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2"))  # noqa: S608 - our own names
        ]


@pytest.mark.parametrize("grants", [SELECT_AND_INSERT, EVERY_RIGHT_TO_ROWS], ids=["some", "every"])
def test_a_role_that_may_write_rows_cannot_change_history(
    owner: Host,
    role: Callable[[tuple[str, ...]], str],
    stack: ExitStack,
    grants: tuple[str, ...],
) -> None:
    """Raw SQL on a connection of its own changes nothing, chooses no position, and says no lies."""
    engine = create_engine(role(grants))
    stack.callback(engine.dispose)
    before = everything(owner)
    refusals: dict[str, str] = {}

    for name, attack in ATTACKS.items():
        try:
            with engine.begin() as connection:
                for statement in attack.split("; "):
                    connection.execute(text(statement))
        except DBAPIError as error:
            refusals[name] = str(error.orig)

    assert [name for name in ATTACKS if not REFUSED.search(refusals.get(name, ""))] == [], refusals
    assert everything(owner) == before
    assert owner.append(said("next")).position == 4


def test_a_role_with_few_grants_gives_positions(
    owner: Host, role: Callable[[tuple[str, ...]], str], stack: ExitStack
) -> None:
    """SELECT, INSERT into log, tags and inbox, DELETE from the inbox: enough for every append."""
    host = stack.enter_context(Host(role(SEQUENCES)))
    engine = create_engine(host.database.engine.url)
    stack.callback(engine.dispose)

    with engine.begin() as connection:
        receipt = host.append(said("caller"), session=connection)
    host.append([said("own", tags=("a", "b"))])
    host.append(said("unless"), unless=Ax(entities="unless"))
    host.append(said("numbered"), expected_version=0)
    host.log.decide(lambda turn: [said(f"decided at {turn.position}")])

    assert receipt.position == 4
    entities = [one.entity for one in owner.log.read(after=3)]
    assert entities == ["caller", "own", "unless", "numbered", "decided at 7"]
    assert [one.entity for one in host.ax(entities="b")] == ["own"]


@pytest.mark.parametrize("kind", ["connection", "session"])
def test_a_role_that_may_only_insert_appends_in_its_own_transactions(
    owner: Host, role: Callable[[tuple[str, ...]], str], stack: ExitStack, kind: str
) -> None:
    """SELECT, and INSERT of what is said into the inbox: whoever sequences gives the positions."""
    host = stack.enter_context(Host(role(APPENDS)))
    engine = create_engine(host.database.engine.url)
    stack.callback(engine.dispose)

    with engine.connect() if kind == "connection" else Session(engine) as caller:
        receipts = host.append([said("a"), said("b")], session=caller)
        caller.commit()
    assert owner.log.waiting() == 2
    owner.append(said("c"))

    assert [one.position for one in receipts] == [4, 5]
    assert [one.entity for one in owner.log.read(after=3)] == ["a", "b", "c"]


@pytest.mark.parametrize("column", ["number", "tx"])
def test_a_role_that_may_only_insert_cannot_choose_its_place_in_the_inbox(
    role: Callable[[tuple[str, ...]], str], stack: ExitStack, column: str
) -> None:
    """Neither the number nor the transaction of what waits can be given by hand."""
    engine = create_engine(role(APPENDS))
    stack.callback(engine.dispose)
    statement = (
        f"INSERT INTO qntx_inbox ({column}, whole, id, context, entity, actor, slice, depth,"  # noqa: S608 - our own names
        " schema_version, payload) OVERRIDING SYSTEM VALUE"
        " VALUES ('1', false, 'new', 'seen', 'a', 'eve', 0, 0, 1, '{}')"
    )

    with engine.connect() as connection, pytest.raises(ProgrammingError, match="permission denied"):
        connection.execute(text(statement))


TRAPS = """
    CREATE FUNCTION trap(text[], text) RETURNS text[]
      LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
    CREATE AGGREGATE array_agg(text) (SFUNC = trap, STYPE = text[]);
"""


def test_nobody_can_slip_a_function_under_the_logs_own(owner: Host) -> None:
    """What others put beside the tables, better fitting than the catalogue's, is not run."""
    with owner.database.write() as connection:
        connection.execute(text(TRAPS))
    with owner.database.write() as connection:
        owner.append([said("b", tags=("t",)), said("c")], session=connection)

    receipts = owner.append([said("d", tags=("t", "u")), said("e")])

    assert [one.position for one in receipts] == [6, 7]
    assert [one.entity for one in owner.ax(entities="t")] == ["b", "d"]
