"""Whoever reads while a read model is rebuilt or replaced sees one version of it, whole.

A reader of his own looks at two tables that have to agree, wherever in the rebuild it stands: he
finds the old ones or the new ones, never one of each, none, or an empty one. Where the swap holds
its locks he waits, and that is all that he notices. A rebuild that is cut off anywhere has changed
nothing, and once it is made again nobody can tell.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, String, create_engine, text
from sqlalchemy.exc import DBAPIError

from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows, faults
from qntx_es.projections.digest import Digest, digest

POINTS = [point for point in faults.POINTS if point.startswith("rebuild.")]
# Crashed at each of them it is in test_crash_anywhere.
BY_DAY = ["rebuild.in_fill", "rebuild.before_commit"]
COUNT = 7
FACTOR = 10
WAITS = "canceling statement due to lock timeout"


class Moved(Payload, context="moved"):
    """Something moved."""

    amount: int


def make(version: int) -> Domain:
    """Make a domain whose two tables say the same number, which its second version multiplies."""
    domain = Domain("ledger", version=version)
    factor = 1 if version == 1 else FACTOR
    tables = [
        domain.table(
            name,
            Column("entity", String, primary_key=True),
            Column("number", Integer, nullable=False, default=0),
        )
        for name in ("left", "right")
    ]

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        for table in tables:
            rows.add(table, moved.entity, number=factor)

    return domain


def moves() -> list[Attestation]:
    """Return a few moves of one thing."""
    return [
        Attestation(context="moved", entity="a", actor="x", payload={"amount": n})
        for n in range(COUNT)
    ]


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[int], Host]]:
    """Open hosts of a version each."""
    hosts: list[Host] = []

    def open_host(version: int) -> Host:
        host = Host(url, [make(version)])
        hosts.append(host)
        host.upgrade()
        return host

    yield open_host
    for host in hosts:
        host.close()


@pytest.fixture
def outside(url: str) -> Iterator[Engine]:
    """Open a reader's own connections, which wait for no lock longer than a moment."""
    is_sqlite = url.startswith("sqlite")
    patience: dict[str, Any] = {} if is_sqlite else {"options": "-c lock_timeout=20ms"}
    engine = create_engine(url, connect_args=patience)
    yield engine
    engine.dispose()


def seen(outside: Engine) -> tuple[int, int] | None:
    """Return what a reader finds in one statement over both tables; None where he has to wait."""
    both = text(
        "SELECT (SELECT sum(number) FROM ledger_left), (SELECT sum(number) FROM ledger_right)"
    )
    try:
        with outside.connect() as connection:
            left, right = connection.execute(both).one()
            return left, right
    except DBAPIError as error:
        if WAITS in str(error):
            return None
        raise


@pytest.mark.swap_under_readers
@pytest.mark.old_code
def test_every_reader_sees_one_whole_version(
    opened: Callable[[int], Host], outside: Engine
) -> None:
    """At every point of a rebuild to a new version, and back, both tables are of one version."""
    host = opened(1)
    host.append(moves())
    host.catch_up()
    host.close()
    old, new = (COUNT, COUNT), (COUNT * FACTOR, COUNT * FACTOR)
    found: Counter[tuple[int, int] | None] = Counter()

    def look() -> None:
        found[seen(outside)] += 1

    for version, before, after in ((2, old, new), (1, new, old)):
        found.clear()
        host = opened(version)
        with faults.planned(dict.fromkeys(POINTS, look)):
            host.rebuild("ledger")
        host.close()

        assert set(found) <= {before, after, None}
        assert found[before]
        assert found[after]
        assert seen(outside) == after


@pytest.mark.rebuild_killed
@pytest.mark.parametrize("points", [BY_DAY, pytest.param(POINTS, marks=pytest.mark.nightly)])
def test_a_rebuild_cancelled_anywhere_and_made_again_is_a_rebuild(
    opened: Callable[[int], Host], outside: Engine, points: list[str]
) -> None:
    """Cancelled it leaves rows that are whole; made again it is the same, and so is one more."""
    host = opened(1)
    host.append(moves())
    host.catch_up()
    undisturbed = digests(host)
    for point in points:
        cancel = faults.fail(KeyboardInterrupt())
        with faults.planned({point: cancel}), pytest.raises(KeyboardInterrupt):
            host.rebuild("ledger")
        assert seen(outside) == (COUNT, COUNT), point

        assert host.rebuild("ledger").is_same, point

        assert digests(host) == undisturbed, point
    assert host.rebuild("ledger").is_same
    assert digests(host) == undisturbed


def digests(host: Host) -> list[Digest]:
    """Return the digest of each table."""
    with host.database.read() as connection:
        return [digest(connection, one) for one in host.domain("ledger").tables.values()]
