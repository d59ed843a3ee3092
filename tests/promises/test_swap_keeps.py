"""A swap loses nothing that others have made on the live tables: it keeps it, or is refused."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Column, Integer, String, inspect, text

from qntx_es import (
    Attestation,
    Domain,
    ForeignDependants,
    Host,
    Payload,
    RebuildProgress,
    Recorded,
    Rows,
    faults,
)
from qntx_es.database import Database

HostOf = Callable[..., Host]

# What somebody makes and drops, and what a refused rebuild calls it.
REFUSED_ON_POSTGRESQL = (
    (
        "CREATE VIEW my_view AS SELECT entity, moves FROM ledger_accounts",
        "DROP VIEW my_view",
        "view my_view",
    ),
    (
        "CREATE MATERIALIZED VIEW my_sum AS SELECT sum(moves) FROM ledger_accounts",
        "DROP MATERIALIZED VIEW my_sum",
        "materialized view my_sum",
    ),
    (
        "CREATE TABLE my_notes (of text CONSTRAINT my_key REFERENCES ledger_accounts)",
        "DROP TABLE my_notes",
        "constraint my_key on table my_notes",
    ),
    (
        "CREATE TABLE my_rows (one ledger_accounts, many ledger_accounts[])",
        "DROP TABLE my_rows",
        "column one of table my_rows, column many of table my_rows",
    ),
    (
        "CREATE TABLE my_heir () INHERITS (ledger_accounts)",
        "DROP TABLE my_heir",
        "table my_heir",
    ),
    (
        "CREATE FUNCTION my_taker(ledger_accounts) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DROP FUNCTION my_taker",
        "function my_taker(ledger_accounts)",
    ),
    (
        (
            "CREATE FUNCTION my_reader() RETURNS bigint LANGUAGE sql"
            " BEGIN ATOMIC SELECT sum(moves) FROM ledger_accounts; END"
        ),
        "DROP FUNCTION my_reader",
        "function my_reader()",
    ),
    (
        "CREATE POLICY mine ON ledger_accounts USING (moves > 0)",
        "DROP POLICY mine ON ledger_accounts",
        "policy mine on table ledger_accounts",
    ),
    (
        "ALTER TABLE ledger_accounts ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE ledger_accounts DISABLE ROW LEVEL SECURITY",
        "row-level security of table ledger_accounts",
    ),
    (
        "CREATE PUBLICATION mine FOR TABLE ledger_accounts",
        "DROP PUBLICATION mine",
        "publication of table ledger_accounts in publication mine",
    ),
    (
        (
            "CREATE TRIGGER mine BEFORE UPDATE ON ledger_accounts FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        ),
        "DROP TRIGGER mine ON ledger_accounts",
        "trigger mine on table ledger_accounts",
    ),
    (
        "CREATE RULE mine AS ON DELETE TO ledger_accounts DO ALSO SELECT 1",
        "DROP RULE mine ON ledger_accounts",
        "rule mine on table ledger_accounts",
    ),
)
REFUSED_ON_SQLITE = (
    (
        "CREATE TRIGGER mine AFTER UPDATE ON Ledger_accounts BEGIN SELECT 1; END",
        "DROP TRIGGER mine",
        "trigger mine on table ledger_accounts",
    ),
)
# What follows the name, or is nobody's loss.
HARMLESS_ON_POSTGRESQL = (
    "CREATE PUBLICATION everything FOR ALL TABLES",
    "CREATE TABLE others (entity text PRIMARY KEY)",
    "CREATE VIEW of_others AS SELECT * FROM others",
    "ALTER TABLE ledger_accounts ADD CHECK (moves > 0)",
    "ALTER TABLE ledger_accounts ADD COLUMN twice integer GENERATED ALWAYS AS (2 * moves) STORED",
    "ALTER TABLE ledger_accounts ADD FOREIGN KEY (entity) REFERENCES others NOT VALID",
    (
        "CREATE FUNCTION in_text() RETURNS bigint LANGUAGE sql"
        " AS 'SELECT sum(moves) FROM ledger_accounts'"
    ),
)
HARMLESS_ON_SQLITE = (
    "CREATE VIEW mine AS SELECT entity, moves FROM ledger_accounts",
    "CREATE VIEW broken AS SELECT * FROM nowhere",
    "CREATE TABLE children (entity text REFERENCES ledger_accounts, moves integer)",
    "CREATE TABLE others (entity text)",
    (
        "CREATE TRIGGER counted AFTER INSERT ON others BEGIN INSERT INTO children"
        " SELECT entity, moves FROM ledger_accounts WHERE entity = new.entity; END"
    ),
)
AS_IT_IS = {"no_parameters": True}
KEPT = """
    SELECT pg_get_userbyid(relowner), reloptions::text, obj_description(c.oid, 'pg_class'),
        (SELECT reloptions::text FROM pg_class AS toast WHERE toast.oid = c.reltoastrelid),
        ARRAY(SELECT DISTINCT concat_ws(' ', grantee::regrole, privilege_type, is_grantable)
         FROM aclexplode(COALESCE(relacl, acldefault('r', relowner))) AS a(by, grantee,
            privilege_type, is_grantable) ORDER BY 1),
        ARRAY(SELECT concat_ws(' ', attname, col_description(attrelid, attnum), attacl)
         FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 ORDER BY 1)
    FROM pg_class AS c WHERE relname = 'ledger_accounts'
"""


class Moved(Payload, context="moved"):
    """Something moved."""


def make(version: int = 1) -> Domain:
    """Make a domain that counts moves; its second version counts in another type."""
    domain = Domain("ledger", version=version)
    kind = Integer if version == 1 else String
    accounts = domain.table(
        "accounts",
        Column("entity", String, primary_key=True),
        Column("moves", kind, comment="Counted by code"),
        Column("note", String),
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        row = rows.get(accounts, moved.entity)
        moves = 1 if row is None else int(row.moves) + 1
        rows.put(accounts, entity=moved.entity, moves=moves if version == 1 else str(moves))

    return domain


def move(host: Host) -> None:
    """Let a thing move once more, and project it."""
    host.append(Attestation(context="moved", entity="a", actor="x", payload={}))
    host.catch_up()


def run(host: Host, *statements: str) -> None:
    """Do something by hand."""
    with host.database.write() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options=AS_IT_IS)


def ask(host: Host, question: str) -> list[tuple[Any, ...]]:
    """Return what somebody else reads."""
    with host.database.read() as connection:
        found = connection.exec_driver_sql(question, execution_options=AS_IT_IS)
        return [tuple(row) for row in found]


@pytest.fixture
def host_of() -> Iterator[HostOf]:
    """Make hosts of a domain, as many as a test likes."""
    hosts: list[Host] = []

    def make_host(url: str, domain: Domain) -> Host:
        host = Host(url, [domain])
        hosts.append(host)
        host.upgrade()
        return host

    yield make_host
    for host in hosts:
        host.close()


@pytest.mark.swap_keeps
def test_what_would_be_lost_is_refused_by_name_before_the_fill(host_of: HostOf, url: str) -> None:
    """Neither a rebuild nor its rehearsal begins, and both name all that others have made."""
    host = host_of(url, make())
    move(host)
    refused = REFUSED_ON_SQLITE if host.database.is_sqlite else REFUSED_ON_POSTGRESQL
    run(host, *(made for made, _, _ in refused))
    begun: list[RebuildProgress] = []

    with pytest.raises(ForeignDependants) as rebuilt:
        host.rebuild("ledger", progress=begun.append)
    with pytest.raises(ForeignDependants) as rehearsed:
        host.rehearse("ledger", progress=begun.append)

    called = sorted(one for _, _, names in refused for one in names.split(", "))
    assert [*rebuilt.value.found] == [*rehearsed.value.found] == called
    assert all(name in str(rebuilt.value) for name in called)
    assert begun == []
    assert host.verify("ledger").is_same
    run(host, *(dropped for _, dropped, _ in refused))
    assert host.rebuild("ledger").is_same


@pytest.mark.swap_keeps
def test_what_is_made_meanwhile_is_refused_with_live_untouched(host_of: HostOf, url: str) -> None:
    """What is found only under the locks of the swap undoes it, and the projector goes on."""
    host = host_of(url, make())
    move(host)
    refused = REFUSED_ON_SQLITE if host.database.is_sqlite else REFUSED_ON_POSTGRESQL
    made, dropped, called = refused[0]

    with (
        faults.planned({"rebuild.before_swap": lambda: run(host, made)}),
        pytest.raises(ForeignDependants, match=called),
    ):
        host.rebuild("ledger")

    move(host)
    assert ask(host, "SELECT entity, moves FROM ledger_accounts") == [("a", 2)]
    with host.database.read() as connection:
        assert not [name for name in inspect(connection).get_table_names() if "__g" in name]
    run(host, dropped)
    assert host.rebuild("ledger").is_same


def test_what_follows_the_name_is_no_hindrance(host_of: HostOf, url: str) -> None:
    """What others made by the name of a table works after the swap as it did before."""
    host = host_of(url, make())
    move(host)
    is_sqlite = host.database.is_sqlite
    run(host, *(HARMLESS_ON_SQLITE if is_sqlite else HARMLESS_ON_POSTGRESQL))

    host.rebuild("ledger")
    move(host)
    assert host.rebuild("ledger").is_same

    if not is_sqlite:
        assert ask(host, "SELECT in_text()") == [(2,)]
        return
    run(host, "INSERT INTO others VALUES ('a')")
    assert ask(host, "SELECT * FROM mine") == [("a", 2)]
    assert ask(host, "SELECT * FROM children") == [("a", 2)]
    assert ask(host, "SELECT * FROM pragma_foreign_key_check('children')") == []
    assert ask(host, "SELECT \"table\" FROM pragma_foreign_key_list('children')") == [
        ("ledger_accounts",)
    ]


@pytest.fixture
def roles(postgres_url: str) -> Iterator[tuple[str, str, str]]:
    """Make three roles with awkward names."""
    names = [f'"%s :a {uuid4().hex} $1"' for _ in range(3)]
    with Host(postgres_url) as host:
        host.upgrade()
        run(host, *(f"CREATE ROLE {name}" for name in names))
        yield names[0], names[1], names[2]
        run(host, *(f"DROP OWNED BY {name}; DROP ROLE {name}" for name in names))


@pytest.mark.swap_keeps
def test_rights_comments_and_options_stay_with_the_name(
    host_of: HostOf, postgres_url: str, roles: tuple[str, str, str]
) -> None:
    """Owner, grants, comments and storage options are after a swap what they were before it."""
    owner, reader, spy = roles
    host = host_of(postgres_url, make())
    move(host)
    run(
        host,
        f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC, {spy}",
        f"GRANT CREATE ON SCHEMA public TO {owner}",
        f"ALTER TABLE ledger_accounts OWNER TO {owner}",
        f"REVOKE TRUNCATE ON ledger_accounts FROM {owner}",
        f"GRANT SELECT, UPDATE ON ledger_accounts TO {reader} WITH GRANT OPTION",
        "GRANT REFERENCES ON ledger_accounts TO PUBLIC",
        f"SET ROLE {reader}; GRANT UPDATE ON ledger_accounts TO {spy}; RESET ROLE",
        f"GRANT SELECT (moves, entity), UPDATE (note) ON ledger_accounts TO {spy}",
        "COMMENT ON TABLE ledger_accounts IS 'it''s 100 %s :sure'",
        "COMMENT ON COLUMN ledger_accounts.note IS 'free \\text'",
        "ALTER TABLE ledger_accounts SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.3,"
        " toast.autovacuum_enabled = false)",
    )
    before = ask(host, KEPT)

    rebuilt = [host.rebuild("ledger") for _ in range(2)]

    assert all(one.is_same for one in rebuilt)
    assert ask(host, KEPT) == before
    assert ask(host, f"SELECT has_table_privilege('{spy[1:-1]}', 'ledger_accounts', 'DELETE')") == [
        (False,)
    ]


@pytest.mark.swap_keeps
def test_a_new_version_keeps_what_it_still_has(
    host_of: HostOf, postgres_url: str, roles: tuple[str, str, str]
) -> None:
    """Rights to a column that is gone go with it, and a comment of the code is the new code's."""
    reader = roles[1]
    host = host_of(postgres_url, make())
    move(host)
    run(
        host,
        "ALTER TABLE ledger_accounts ADD COLUMN mine integer",
        f"GRANT SELECT (mine, moves) ON ledger_accounts TO {reader}",
        "COMMENT ON COLUMN ledger_accounts.mine IS 'mine'",
        "COMMENT ON COLUMN ledger_accounts.moves IS 'mine'",
    )

    host_of(postgres_url, make(version=2)).rebuild("ledger")

    asked = (
        "SELECT attname, col_description(attrelid, attnum), attacl IS NULL FROM pg_attribute"
        " WHERE attrelid = 'ledger_accounts'::regclass AND attnum > 0 ORDER BY attnum"
    )
    assert ask(host, asked) == [
        ("entity", None, True),
        ("moves", "Counted by code", False),
        ("note", None, True),
    ]


@pytest.mark.prepared
def test_what_others_have_prepared_goes_on(host_of: HostOf, postgres_url: str) -> None:
    """A prepared statement of somebody's connection reads the new table, if its shape is equal."""
    host = host_of(postgres_url, make())
    move(host)
    others = Database(postgres_url)
    with closing(others), others.alone() as connection:
        connection.exec_driver_sql("PREPARE mine AS SELECT * FROM ledger_accounts")
        before = connection.exec_driver_sql("EXECUTE mine").all()

        host.rebuild("ledger")
        move(host)

        assert (before, connection.exec_driver_sql("EXECUTE mine").all()) == (
            [("a", 1, None)],
            [("a", 2, None)],
        )


@pytest.mark.prepared
def test_our_own_connections_are_opened_anew_after_a_swap(host_of: HostOf, url: str) -> None:
    """What was prepared before a column changed its type is refused to nobody after the swap."""
    move(host_of(url, make()))
    host = host_of(url, make(version=2))
    asked = text("SELECT * FROM ledger_accounts")
    connections = [host.database.engine.connect() for _ in range(3)]
    for connection in connections:
        for _ in range(10):  # the driver prepares what it has met five times
            assert connection.execute(asked).all() == [("a", 1, None)]
            connection.commit()

    host.rebuild("ledger")
    for connection in connections:
        connection.close()

    for _ in range(20):
        with host.database.engine.begin() as connection:
            assert connection.execute(asked).all() == [("a", "1", None)]
