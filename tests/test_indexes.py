"""An index on a payload path makes queries quick, and changes no answer."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from sqlalchemy import text

from qntx_es import Attestation, Ax, Domain, Host, Payload, indexes
from qntx_es.ax import keys_of, parse
from qntx_es.searches import AMONG_MAX


class Seen(Payload, context="seen"):
    """Something was seen."""

    n: int = 0
    name: str = ""
    where: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it


def seeing(*paths: str) -> Domain:
    """Return a domain that asks for indexes."""
    domain = Domain("seeing")
    for path in paths:
        domain.index(Seen, path)
    return domain


def said(**payload: object) -> Attestation:
    """Say what was seen."""
    return Attestation(context="seen", entity="a", actor="x", payload=payload)


@pytest.fixture
def host_of(url: str) -> Iterator[Callable[..., Host]]:
    """Make hosts over one database of each kind."""
    hosts: list[Host] = []

    def make(*domains: Domain) -> Host:
        hosts.append(Host(url, domains))
        hosts[-1].upgrade()
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def index_of(host: Host, query: str) -> tuple[str, int] | None:
    """Return which index answers a query first, and how many positions it leaves."""
    return host.log.explain(parse(query)).index


def test_a_declared_index_is_made_and_used(host_of: Callable[..., Host]) -> None:
    """After `upgrade` a condition on its path looks at what the index names, and no more."""
    host = host_of(seeing("n", "where.x"))
    host.append([said(n=n, where={"x": n // 10}, name=f"{n}") for n in range(100)])

    assert index_of(host, "where n = 42") == ("n", 1)
    assert index_of(host, "is seen where n > 40 and n <= 45") == ("n", 6)  # the ends may be in
    assert index_of(host, "where n in (1, 2, 3)") == ("n", 3)
    assert index_of(host, "where where.x = 4 and not name exists") == ("where.x", 10)
    for unhelped in (
        "where n != 42",
        "where not n = 42",
        "where n = 1 or n = 2",
        'where name = "4"',
    ):
        assert index_of(host, unhelped) is None

    assert [one.payload["n"] for one in host.ax("where n > 40 and n <= 45")] == [41, 42, 43, 44, 45]
    assert [one.payload["n"] for one in host.ax("where n < 50 and n > 10 limit 2")] == [48, 49]


def test_an_index_made_late_covers_all_that_was_said(host_of: Callable[..., Host]) -> None:
    """On a log that is long already, the next upgrade makes it, and nothing is missing."""
    host = host_of(seeing())
    host.append([said(n=n) for n in range(50)])
    assert index_of(host, "where n = 7") is None

    later = host_of(seeing("n"))

    assert index_of(later, "where n = 7") == ("n", 1)
    assert index_of(host, "where n = 7") == ("n", 1)  # the database knows, whoever asks
    assert [one.position for one in later.ax("where n = 7")] == [8]
    later.upgrade()


def test_a_running_host_makes_its_indexes(url: str, host_of: Callable[..., Host]) -> None:
    """A host that is started without an upgrade makes them before it runs."""
    first = host_of(seeing())
    with closing(Host(url, [seeing("n")])) as host, host.running():
        assert host.append(said(n=3)).position == 1
        assert index_of(first, "where n = 3") == ("n", 1)


def test_what_is_common_is_read_and_not_looked_up(host_of: Callable[..., Host]) -> None:
    """Where the index names more than ten thousand, the newest are sooner found without it."""
    host = host_of(seeing("name"))
    host.append([said(name="often", n=n) for n in range(AMONG_MAX)])
    assert index_of(host, 'where name = "often"') == ("name", AMONG_MAX)

    host.append(said(name="often", n=-1))

    assert index_of(host, 'where name = "often"') is None
    assert [one.payload["n"] for one in host.ax('where name = "often" limit 2')] == [
        AMONG_MAX - 1,
        -1,
    ]
    assert len(host.ax('where name = "often"')) == AMONG_MAX + 1


def test_a_text_of_any_length_is_indexed_by_its_beginning(host_of: Callable[..., Host]) -> None:
    """A megabyte under an indexed path is appended, and found by all of it."""
    host = host_of(seeing("name"))
    long = "é" * 300
    host.append([said(name=long + "a"), said(name=long + "b"), said(name="x" * 1_000_000)])

    assert index_of(host, f'where name = "{long}a"') == ("name", 2)
    assert [one.position for one in host.ax(f'where name = "{long}a"')] == [1]
    assert [one.position for one in host.ax(f'where name > "{long}a"')] == [2]
    assert [one.position for one in host.ax(f'where name <= "{long}a"')] == [1, 3]


VALUES: list[float | str] = [
    *(0, -0.0, 1, -1, 1.5, -2.5, 1e23, 5e-324, -1e308, 1.7976931348623157e308, 0.1),
    *((1 << 53) + 1, (1 << 63) - 1, -(1 << 63), True, False),
    *("", "a", "A", "é", "\U0001f600", "0", "b"),
]


def test_a_value_is_found_by_each_comparison_that_holds_of_it(host_of: Callable[..., Host]) -> None:
    """The keys of a condition always hold the key of a value that satisfies it."""
    host = host_of(seeing("name"))
    host.append([said(name=value) for value in VALUES])
    host.append([said(name=None), said(name=[1, "a"]), said(name={"a": 1}), said()])
    for position, value in enumerate(VALUES, 1):
        written = json.dumps(value, ensure_ascii=False)
        for operator in ["="] if isinstance(value, bool) else ["=", "<=", ">="]:
            query = f"where name {operator} {written}"
            assert position in [one.position for one in host.ax(query)], query
            assert index_of(host, query) is not None


def test_a_key_with_a_dot_is_no_path_of_two_keys(host_of: Callable[..., Host]) -> None:
    """The index on `where.x` does not answer for a field that is called `where.x`."""
    host = host_of(seeing("where.x"))
    host.append([said(**{"where.x": 1}), said(where={"x": 1})])

    assert index_of(host, 'where "where.x" = 1') is None
    assert [one.position for one in host.ax('where "where.x" = 1')] == [1]
    assert [one.position for one in host.ax("where where.x = 1")] == [2]


@pytest.mark.parametrize("on", ["sqlite", "postgresql"])
def test_of_two_bounds_both_count(on: str) -> None:
    """What must lie between two values is looked for between them, and not from each on."""
    (keys,) = keys_of(parse("where n >= 10 and n < 20").where, on)
    (low, high), *more = keys.ranges

    assert more == []
    assert None not in (low, high)
    (listed,) = keys_of(parse("where n in (1, 2) and n > 0").where, on)
    assert len(listed.ranges) == 2


def test_an_index_that_was_left_half_made_is_made_again(postgres_url: str) -> None:
    """Where its maker was killed the index is there and not valid: it is not used, and replaced."""
    with closing(Host(postgres_url, [seeing("n")])) as host:
        host.upgrade()
        host.append(said(n=1))
        with host.database.write() as connection:
            connection.execute(
                text(
                    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = CAST(:n AS regclass)"
                ),
                {"n": indexes.name_of(["n"])},
            )
        assert index_of(host, "where n = 1") is None
        assert len(host.ax("where n = 1")) == 1

        host.upgrade()

        assert index_of(host, "where n = 1") == ("n", 1)


def test_appends_go_on_while_an_index_is_made(postgres_url: str) -> None:
    """The making waits for an old transaction; nobody waits for the making."""
    with closing(Host(postgres_url, [seeing("n")])) as host:
        host.database.upgrade()
        host.append(said(n=1))
        with host.database.snapshot() as old:
            old.execute(text("SELECT count(*) FROM qntx_attestations"))
            making = threading.Thread(target=host.upgrade)
            making.start()
            while not _is_being_made(host):
                assert making.is_alive()
            assert host.append(said(n=2)).position == 2
            assert index_of(host, "where n = 2") is None
        making.join(30)

        assert index_of(host, "where n = 2") == ("n", 1)


def _is_being_made(host: Host) -> bool:
    with host.database.read() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_stat_progress_create_index")))


def test_hosts_that_upgrade_at_once_make_it_once(url: str, host_of: Callable[..., Host]) -> None:
    """Several hosts that want the same index do not disturb each other."""
    host_of().append([said(n=n) for n in range(100)])
    failures: list[BaseException] = []

    def upgrade() -> None:
        try:
            with closing(Host(url, [seeing("n")])) as host:
                host.upgrade()
        except BaseException as error:  # noqa: BLE001 - to be shown by the test
            failures.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert index_of(host_of(), "where n = 7") == ("n", 1)


def test_a_query_by_entity_looks_at_nothing_else(host_of: Callable[..., Host]) -> None:
    """With an entity named nothing is scanned, whatever the statistics of the database say."""
    host = host_of()
    host.append([said(n=n) for n in range(10)])

    plan = "\n".join(host.log.explain(Ax(entities="a", contexts="seen", limit=1)).plan)

    if host.database.is_sqlite:  # PostgreSQL may know that a context is the rarer one
        assert "USING INDEX qntx_attestations_entity (entity=?" in plan
        assert "SCAN said" not in plan
    assert "Join" not in plan.split("InitPlan")[0]
    assert "Seq Scan" not in plan
