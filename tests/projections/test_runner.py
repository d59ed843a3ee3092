"""A handler that fails stops its own projector, at its attestation, and nothing else."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Integer, String, UniqueConstraint, func, select

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Payload,
    ProjectorStopped,
    QntxError,
    ReadRows,
    Recorded,
    Rows,
)
from qntx_es.projections import runner as running
from qntx_es.projections.batch import Step

BOUND = 20.0
HostOf = Callable[..., Host]
Handler = Callable[[Recorded[Any], Rows, Domain], object]


class Moved(Payload, context="moved"):
    """Something moved."""

    n: int
    code: str | None = None


class Rare(Payload, context="rare"):
    """What hardly ever happens."""


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once: how long a runner pauses is no part of what is promised here."""
    monkeypatch.setattr(running, "RETRY_SECONDS", 0.001)


def make(handler: Handler | None = None, name: str = "ledger", *, inline: bool = False) -> Domain:
    """Make a domain that counts moves, with something more to do for each."""
    domain = Domain(name, inline=inline)
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )
    domain.table(
        "codes",
        Column("entity", String, primary_key=True),
        Column("code", String),
        UniqueConstraint("code"),
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(counts, moved.entity, moves=1)
        if handler is not None:
            handler(moved, rows, domain)

    return domain


def moves(count: int, start: int = 0) -> list[Attestation]:
    """Return moves of a few entities; the n-th has position n."""
    return [
        Attestation(context="moved", entity=f"e{n % 5}", actor="a", payload={"n": n})
        for n in range(start + 1, start + count + 1)
    ]


def rows_of(host: Host, domain: Domain) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of a domain."""
    with host.database.read() as connection:
        return {
            name: sorted(map(tuple, connection.execute(select(table))), key=repr)
            for name, table in domain.tables.items()
        }


def counted(host: Host, domain: Domain) -> int:
    """Return how many moves a domain has counted."""
    return sum(row[1] for row in rows_of(host, domain)[f"{domain.name}_counts"])


def failing_at(*positions: int, error: Callable[[], BaseException] = LookupError) -> Handler:
    """Return a handler that fails at these positions."""

    def fail(moved: Recorded[Moved], *_: object) -> None:
        if moved.position in positions:
            raise error()

    return fail


def test_a_failure_stops_before_it_and_mending_goes_on(host_of: HostOf) -> None:
    """Rows are those of what stands before, status says why, and a mended handler ends as ever."""
    tries: list[int] = []

    def fail(moved: Recorded[Moved], *_: object) -> None:
        if moved.position == 7:
            tries.append(7)
            raise LookupError("no such thing")

    domain = make(fail)
    host = host_of(domain)
    host.append(moves(12))

    with pytest.raises(ProjectorStopped, match="no such thing") as raised:
        host.catch_up()

    assert raised.value.position == 7
    assert len(tries) == 1 + 3  # found in a batch, then three times alone
    assert counted(host, domain) == 6
    status = {one.name: one for one in host.statuses()}["ledger"]
    assert (status.state, status.position, status.lag) == ("stopped", 6, 6)
    assert status.failure is not None
    assert (status.failure.position, status.failure.handler) == (7, "move")
    assert status.failure.error == "LookupError: no such thing"
    assert "in fail" in status.failure.traceback
    mended = host_of(make())
    mended.catch_up()
    assert counted(mended, domain) == 12
    status = {one.name: one for one in mended.statuses()}["ledger"]
    assert (status.state, status.failure, status.lag) == ("live", None, 0)


def test_a_failure_in_a_batch_of_thousands_is_found(host_of: HostOf) -> None:
    """What stands before a failure in the midst of a long log is projected, and nothing else."""
    domain = make(failing_at(2_345))
    host = host_of(domain)
    host.append(moves(3_000))

    with pytest.raises(ProjectorStopped) as raised:
        host.catch_up()

    assert raised.value.position == 2_345
    assert counted(host, domain) == 2_344


def test_a_passing_trouble_is_tried_again(host_of: HostOf) -> None:
    """A handler that fails twice and then works leaves no trace of it."""
    left = [3]

    def fail(moved: Recorded[Moved], *_: object) -> None:
        if moved.position == 5 and left[0]:
            left[0] -= 1
            raise ConnectionError

    domain = make(fail)
    host = host_of(domain)
    host.append(moves(9))

    host.catch_up()

    assert counted(host, domain) == 9


@pytest.mark.failing
@pytest.mark.parametrize("is_first", [True, False])
def test_others_never_wait(host_of: HostOf, is_first: bool) -> None:  # noqa: FBT001 - a case
    """One catch-up takes every other domain to the head, wherever the failing one stands."""
    bad, good = make(failing_at(3), "bad"), make(None, "good")
    host = host_of(*((bad, good) if is_first else (good, bad)))
    host.append(moves(10))

    with pytest.raises(ProjectorStopped, match="bad"):
        host.catch_up()

    assert (counted(host, bad), counted(host, good)) == (2, 10)


@pytest.mark.failing
def test_others_never_wait_while_running(host_of: HostOf) -> None:
    """A running host carries on with every domain but the one that stopped."""
    bad, good = make(failing_at(3), "bad"), make(None, "good")
    host = host_of(bad, good)

    with host.running():
        host.append(moves(10))
        host.wait_for(10, "good", BOUND)
        host.append(moves(5, 10))
        host.wait_for(15, "good", BOUND)
        host.wait_for(2, "bad", BOUND)

    assert (counted(host, bad), counted(host, good)) == (2, 15)


class Mute(Exception):
    """An exception that cannot be written."""

    def __str__(self) -> str:
        """Fail."""
        raise LookupError("no words")


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(lambda: SystemExit(3), id="SystemExit"),
        pytest.param(lambda: ValueError("a\x00b"), id="NUL in its text"),
        pytest.param(lambda: ValueError("a\udc80b"), id="a surrogate in its text"),
        pytest.param(lambda: ValueError("x" * 2_000_000), id="a long text"),
        pytest.param(Mute, id="no text"),
        pytest.param(lambda: StopIteration(1), id="StopIteration"),
        pytest.param(lambda: RecursionError("deep"), id="RecursionError"),
        pytest.param(lambda: ExceptionGroup("many", [ValueError("one")]), id="a group"),
    ],
)
def test_whatever_is_raised_stops_by_name(
    host_of: HostOf, error: Callable[[], BaseException]
) -> None:
    """However odd an exception is, the projector stops at its attestation and keeps why."""
    domain = make(failing_at(4, error=error))
    host = host_of(domain)
    host.append(moves(6))

    with pytest.raises(ProjectorStopped):
        host.catch_up()

    status = {one.name: one for one in host.statuses()}["ledger"]
    assert (status.state, counted(host, domain)) == ("stopped", 3)
    assert status.failure is not None
    assert status.failure.position == 4


@pytest.mark.parametrize("inline", [False, True])
def test_a_mistake_in_a_statement_is_the_handlers(
    host_of: HostOf,
    inline: bool,  # noqa: FBT001 - a case
) -> None:
    """SQL that the database does not know stops its projector like any other mistake."""

    def ask(moved: Recorded[Moved], rows: Rows, domain: Domain) -> None:
        if moved.position == 4:
            rows.select(select(func.no_such_function(domain.tables["ledger_counts"].c.moves)))

    domain = make(ask, inline=inline)
    host = host_of(domain)
    for one in moves(6):
        host.append(one)

    with pytest.raises(ProjectorStopped, match="no_such_function"):
        host.catch_up()

    assert counted(host, domain) == 3
    assert {one.name: one.state for one in host.statuses()}["ledger"] in {"stopped", "degraded"}


def test_a_value_handed_on_within_one_attestation(host_of: HostOf) -> None:
    """A unique value may pass from row to row in the handler's order, whatever their keys."""

    def hand_on(moved: Recorded[Moved], rows: Rows, domain: Domain) -> None:
        codes = domain.tables["ledger_codes"]
        owner, heir = ("z", "a") if moved.payload.n % 2 else ("a", "z")
        rows.put(codes, entity=owner, code=None)
        rows.put(codes, entity=heir, code="the crown")

    domain = make(hand_on)
    host = host_of(domain)
    for one in moves(5):
        host.append(one)
        host.catch_up()

    assert rows_of(host, domain)["ledger_codes"] == [("a", "the crown"), ("z", None)]


@pytest.mark.batch_never_shows
def test_what_fails_in_bulk_is_done_one_by_one(host_of: HostOf) -> None:
    """A unique value handed on from attestation to attestation is right in any batch."""

    def hand_on(moved: Recorded[Moved], rows: Rows, domain: Domain) -> None:
        codes = domain.tables["ledger_codes"]
        n = moved.payload.n
        entity = "az"[n // 2 % 2] if n % 2 else "az"[(n // 2 - 1) % 2]
        rows.put(codes, entity=entity, code="the crown" if n % 2 else None)

    domain = make(hand_on)
    host = host_of(domain)
    host.append(moves(101))

    host.catch_up()

    held = [code for _, code in rows_of(host, domain)["ledger_codes"]]
    assert sorted(held, key=str) == [None, "the crown"]
    assert counted(host, domain) == 101


def test_a_failure_behind_rows_that_fail_in_bulk(host_of: HostOf) -> None:
    """Where rows fail in bulk before a failing handler, both are found, each in its place."""
    said = {1: ("z", "x"), 2: ("z", None), 3: ("a", "x")}

    def hand_on(moved: Recorded[Moved], rows: Rows, domain: Domain) -> None:
        if moved.payload.n == 9:
            raise LookupError
        if moved.payload.n in said:
            entity, code = said[moved.payload.n]
            rows.put(domain.tables["ledger_codes"], entity=entity, code=code)

    domain = make(hand_on)
    host = host_of(domain)
    host.append(moves(1))
    host.catch_up()
    host.append(moves(11, 1))

    with pytest.raises(ProjectorStopped) as raised:
        host.catch_up()

    assert raised.value.position == 9
    assert counted(host, domain) == 8
    assert rows_of(host, domain)["ledger_codes"] == [("a", "x"), ("z", None)]


def test_a_violated_constraint_stops_where_it_was_violated(host_of: HostOf) -> None:
    """A row that the database refuses is the failure of the attestation that put it."""

    def take(moved: Recorded[Moved], rows: Rows, domain: Domain) -> None:
        codes = domain.tables["ledger_codes"]
        rows.put(codes, entity=str(moved.payload.n), code=str(moved.payload.n % 50))

    domain = make(take)
    host = host_of(domain)
    host.append(moves(80))

    with pytest.raises(ProjectorStopped) as raised:
        host.catch_up()

    assert raised.value.position == 51
    assert counted(host, domain) == 50


@pytest.mark.parametrize(
    ("put", "error"),
    [
        pytest.param({"move": 1}, "InvalidRow.*did you mean `moves`", id="an unknown column"),
        pytest.param({"moves": 1.0}, "LossyValue", id="a float for an integer"),
        pytest.param({"moves": True}, "LossyValue", id="a bool for an integer"),
        pytest.param({"moves": 2**31}, "LossyValue", id="too large"),
        pytest.param({"moves": None}, "LossyValue", id="NULL where there is none"),
        pytest.param({"entity": None}, "LossyValue", id="a key that is NULL"),
        pytest.param({"entity": "a\x00"}, "LossyValue", id="NUL in a text"),
    ],
)
def test_a_row_that_does_not_fit_stops_by_name(
    host_of: HostOf, put: dict[str, Any], error: str
) -> None:
    """An unknown column is refused with a suggestion, and a lossy value by its name."""

    def bad(moved: Recorded[Moved], rows: Rows, domain: Domain) -> None:
        if moved.position == 3:
            rows.put(domain.tables["ledger_counts"], **{"entity": "e", **put})

    domain = make(bad)
    host = host_of(domain)
    host.append(moves(5))

    with pytest.raises(ProjectorStopped, match=error) as raised:
        host.catch_up()

    assert (raised.value.position, counted(host, domain)) == (3, 2)


def test_another_domains_table_is_refused(host_of: HostOf) -> None:
    """A handler reaches its own tables only, by key, by statement and in the midst of one."""
    other = make(None, "other")
    foreign = other.tables["other_counts"]
    refused: list[str] = []

    def reach(_: object, rows: Rows, domain: Domain) -> None:
        own = domain.tables["ledger_counts"]
        reaches: list[Callable[[], object]] = [
            lambda: rows.get(foreign, "e1"),
            lambda: rows.put(foreign, entity="e1"),
            lambda: rows.add(foreign, "e1", moves=1),
            lambda: rows.delete(foreign, "e1"),
            lambda: rows.select(select(foreign.c.moves)),
            lambda: rows.select(select(own).where(own.c.moves.in_(select(foreign.c.moves)))),
            lambda: rows.select(select(foreign.alias("x").c.moves)),
            lambda: rows.execute(foreign.delete()),
            lambda: rows.execute(
                own.update().values(moves=select(foreign.c.moves).scalar_subquery())
            ),
        ]
        for one in reaches:
            with pytest.raises(QntxError) as raised:
                one()
            refused.append(type(raised.value).__name__)

    host = host_of(make(reach), other)
    host.append(moves(1))

    host.catch_up()

    assert refused == ["ForeignTable"] * 9


def test_statements_over_ones_own_tables_are_taken(host_of: HostOf) -> None:
    """Counts, aliases, subqueries and CTEs over a domain's own tables are Core like any other."""
    said: list[list[int]] = []

    def ask(_: object, rows: Rows, domain: Domain) -> None:
        own = domain.tables["ledger_counts"]
        other = own.alias("other")
        inner = select(own.c.moves.label("n")).subquery()
        most = select(func.max(own.c.moves).label("n")).cte("most")
        said.append(
            [
                len(rows.select(statement))
                for statement in (
                    select(func.count()).select_from(own),
                    select(other.c.moves),
                    select(inner.c.n),
                    select(most.c.n),
                    select(own.c.entity).join(other, other.c.entity == own.c.entity),
                    select(own.c.entity).where(select(other.c.moves).exists()),
                )
            ]
        )

    domain = make(ask)
    host = host_of(domain)
    host.append(moves(3))

    host.catch_up()

    assert said[-1] == [1, 3, 3, 1, 3, 3]


@pytest.mark.parametrize("key", [("x",), (None,), (1,), ("a", "b"), ()], ids=repr)
def test_keys_that_do_not_fit_stop_where_they_were_named(
    host_of: HostOf, key: tuple[object, ...]
) -> None:
    """A function of keys that names nonsense stops at its attestation, and not at another's."""
    domain = Domain("ledger")
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    def keys(moved: Recorded[Moved]) -> Iterable[tuple[Any, ...]]:
        yield (counts, *(key if moved.position == 3 else (moved.entity,)))

    @domain.project(Moved, keys=keys)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(counts, moved.entity, moves=1)

    host = host_of(domain)
    host.append(moves(5))
    if key == ("x",):
        host.catch_up()
        assert counted(host, domain) == 5
        return

    with pytest.raises(ProjectorStopped) as raised:
        host.catch_up()

    assert (raised.value.position, counted(host, domain)) == (3, 2)


def test_a_payload_that_does_not_fit_stops(host_of: HostOf) -> None:
    """What cannot be read as its class stops the projector that asked for it."""
    domain = make(lambda moved, *_: moved.payload.n)
    host = host_of(domain)
    host.log.append(moves(2))
    host.log.append(Attestation(context="moved", entity="e", actor="a", payload={"n": "many"}))

    with pytest.raises(ProjectorStopped, match=r"InvalidPayload.*n: ") as raised:
        host.catch_up()

    assert raised.value.position == 3


@pytest.mark.inline_leaves_nothing_out
@pytest.mark.parametrize("size", [200, 1_000])
def test_a_degraded_inline_domain_never_blocks_an_append(host_of: HostOf, size: int) -> None:
    """Appends go on past a failing inline handler, and its runner stops by name."""
    domain = make(failing_at(3), inline=True)
    host = host_of(domain)

    for one in moves(6):
        host.append(one)

    assert host.log.head() == 6
    assert {one.name: one.state for one in host.statuses()}["ledger"] == "degraded"
    host._projectors["ledger"].runners[0].size = size  # noqa: SLF001 - any size is one that time may choose
    outcome: list[BaseException] = []

    def catch_up() -> None:
        try:
            host.catch_up()
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            outcome.append(error)

    thread = threading.Thread(target=catch_up, daemon=True)
    thread.start()
    thread.join(BOUND)
    assert not thread.is_alive()
    assert [type(one).__name__ for one in outcome] == ["ProjectorStopped"]
    assert counted(host, domain) == 2
    mended = host_of(make(None, inline=True))
    mended.catch_up()
    mended.append(moves(1))
    assert counted(mended, domain) == 7


@pytest.mark.sparse
def test_a_rare_context_is_reached_over_anything(host_of: HostOf) -> None:
    """A projector of one rare context arrives behind 50 000 that it does not read, in windows."""
    domain = Domain("sparse")
    seen = domain.table("seen", Column("entity", String, primary_key=True))

    @domain.project(Rare)
    def see(rare: Recorded[Rare], rows: Rows) -> None:
        rows.put(seen, entity=rare.entity)

    host = host_of(domain)
    for start in range(0, 50_000, 10_000):
        host.append(moves(10_000, start))
    host.append(Attestation(context="rare", entity="at last", actor="a", payload={}))

    steps: list[Step] = []
    batches = host._projectors["sparse"].runners[0].batches  # noqa: SLF001 - one batch after another
    while not steps or steps[-1].position < steps[-1].head:
        steps.append(batches.step(200))

    assert len(steps) <= 3
    assert rows_of(host, domain) == {"sparse_seen": [("at last",)]}
    assert {one.name: one.lag for one in host.statuses()}["sparse"] == 0
    host.wait_for(steps[-1].head, "sparse", timeout=0)
    again = host_of(domain)._projectors["sparse"].runners[0].batches.step(200)  # noqa: SLF001 - after a restart
    assert again.start == steps[-1].head


def test_derive_handlers_may_return_nothing(host_of: HostOf) -> None:
    """A derive handler that returns None, a list or a generator says what is in it."""
    domain = Domain("ledger")

    @domain.derive(Moved)
    def none(moved: Recorded[Moved], rows: ReadRows) -> Any:  # noqa: ANN401, ARG001 - any
        return None

    @domain.derive(Moved)
    def some(moved: Recorded[Moved], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        return iter([domain.attest(Rare(), entity=moved.entity)])

    host = host_of(domain)
    host.append(moves(2))

    host.catch_up()

    assert len(host.ax(contexts="rare")) == 2
