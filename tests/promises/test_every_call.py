"""A crash, or somebody else's commit, at each single statement that a catch-up sends.

The named points are where we thought of trouble; here each call to the database is one, found by
counting, so that a statement somebody adds is tried from the day it is added.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress

import pytest
from sqlalchemy import Column, Integer, String, event, select

from qntx_es import Attestation, Domain, Host, Payload, ReadRows, Recorded, Rows, faults
from qntx_es.faults import Crash
from qntx_es.tables import cursors

MOVES = 4


class Moved(Payload, context="moved"):
    """Something moved."""


class Echoed(Payload, context="echoed"):
    """It was heard."""


def make() -> Domain:
    """Make a domain that counts moves with floats, and answers each."""
    domain = Domain("ledger", emits=(Echoed,))
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
        Column("last", Integer),
    )

    @domain.project(Moved)
    def count(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(counts, moved.entity, moves=1)
        rows.put(counts, entity=moved.entity, last=moved.position)

    @domain.derive(Moved)
    def echo(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:
        row = rows.get(counts, moved.entity)
        assert row is not None
        yield domain.attest(Echoed(), entity=f"{moved.entity} {row.moves}")

    return domain


def host_on(url: str) -> Host:
    """Open a host of two or more batches."""
    host = Host(url, [make()])
    host.upgrade()
    host._projectors["ledger"].runners[0].size = MOVES // 2  # noqa: SLF001 - a host chooses its sizes by time
    return host


def moves(count: int) -> list[Attestation]:
    """Return moves of two entities in turn."""
    return [
        Attestation(context="moved", entity=f"e{n % 2}", actor="a", payload={})
        for n in range(count)
    ]


@contextmanager
def before_each_call(host: Host, act: Callable[[int], None]) -> Iterator[None]:
    """Do something before each statement and each commit, which are counted from 1 on."""
    count = 0

    def called(*_: object) -> None:
        nonlocal count
        count += 1
        act(count)

    engine = host.database.engine
    for name in ("before_cursor_execute", "commit"):
        event.listen(engine, name, called)
    try:
        yield
    finally:
        for name in ("before_cursor_execute", "commit"):
            event.remove(engine, name, called)


def assert_whole(host: Host, count: int) -> None:
    """Assert that the rows count each move, each is answered once, and cursors are at the head."""
    (table,) = host.domain("ledger").tables.values()
    with host.database.read() as connection:
        found = connection.execute(select(table.c.entity, table.c.moves).order_by(table.c.entity))
        assert [tuple(row) for row in found] == [("e0", count // 2), ("e1", count // 2)]
        head = 2 * count + 1  # since when the derive handler speaks is said as well
        assert set(connection.execute(select(cursors.c.position)).scalars()) == {head}
    heard = sorted(one.entity for one in host.ax(contexts="echoed"))
    assert heard == sorted(f"e{n % 2} {n // 2 + 1}" for n in range(count))


@pytest.mark.crash_at_every_call
@pytest.mark.derive_once
@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_crash_at_the_nth_call_is_continued(url: str, stride: int) -> None:
    """Whichever statement or commit of a batch and its pass is the last, the next is as if not."""
    has_crashed, nth, count = True, 1, 0
    with closing(host_on(url)) as host:
        while has_crashed:
            has_crashed, count = False, count + 2
            host.append(moves(2))

            def crash(number: int, nth: int = nth) -> None:
                nonlocal has_crashed
                if number == nth:
                    has_crashed = True
                    raise Crash

            batches = host._projectors["ledger"].runners[0].batches  # noqa: SLF001 - one batch after another
            with before_each_call(host, crash), suppress(Crash):
                batches.step(MOVES)
            # What a process knew of rows and cursors is gone with it.
            host._projectors = {  # noqa: SLF001 - a fresh host without its start
                name: host._projector(domain)  # noqa: SLF001 - the same
                for name, domain in host.domains.items()
            }
            host.catch_up()
            assert_whole(host, count)
            nth += stride

    assert nth > 10


@pytest.mark.ceiling
def test_what_is_committed_within_a_batch_is_not_passed_over(url: str) -> None:
    """Another's commits before every statement of a catch-up are met, each once and in order."""
    with closing(host_on(url)) as host, closing(host_on(url)) as other:
        host.append(moves(MOVES))
        left = [moves(2) for _ in range(30)]
        count = MOVES + 2 * len(left)

        is_within = False

        def append(*_: object) -> None:
            if left and is_within:
                other.append(left.pop())

        def end() -> None:
            nonlocal is_within
            is_within = False  # what follows is a pass, which holds the lock

        # SQLite has one writer: there it is while a batch reads that others can commit.
        reads = dict.fromkeys(("batch.after_look", "batch.after_read"), append)
        plan = reads if host.database.is_sqlite else {}
        calls = nullcontext() if host.database.is_sqlite else before_each_call(host, append)
        batches = host._projectors["ledger"].runners[0].batches  # noqa: SLF001 - one batch after another
        with faults.planned({**plan, "batch.after_commit": end}), calls:
            while left:
                is_within = True
                batches.step(MOVES // 2)
        host.catch_up()

        assert left == []
        assert_whole(host, count)
