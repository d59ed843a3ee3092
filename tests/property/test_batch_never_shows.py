"""One attestation at a time is the meaning; a batch is an optimisation that must not show."""

from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Integer,
    String,
    UniqueConstraint,
    delete,
    insert,
    select,
    update,
)

from qntx_es import Domain, Host, LossyValue, Payload, ProjectorStopped, Recorded, Rows
from qntx_es.projections.batch import Batches
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.rows import RowMap
from qntx_es.projections.runner import Runner
from qntx_es.projections.shape import Shape
from qntx_es.tables import cursors
from qntx_es.testing import PostgresServer

Op = list[Any]
Log = list[tuple[str, list[Op]]]
Outcome = tuple[dict[str, list[tuple[Any, ...]]], str | None]


class Told(Payload, context="told"):
    """What is to be done to the rows, in order."""

    ops: list[list[Any]]


domain = Domain("batches")
things = domain.table(
    "things",
    Column("entity", String, primary_key=True),
    Column("count", Integer, nullable=False, default=7),
    Column("debt", Integer, nullable=False, default=-5),
    Column("maybe", BigInteger),
    Column("weight", Float, nullable=False, default=0.5),
    Column("drift", Float),
    Column("flag", Boolean, nullable=False, default=True),
    Column("note", JSON),
)
pairs = domain.table(
    "pairs",
    Column("entity", String, primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("count", Integer, default=2),
)
names = domain.table(
    "names",
    Column("entity", String, primary_key=True),
    Column("code", String),
    UniqueConstraint("code"),
)
seen = domain.table(
    "seen",
    Column("entity", String, primary_key=True),
    Column("said", String, nullable=False),
    Column("sum", Integer),
)


@domain.project(Told)
def do(told: Recorded[Told], rows: Rows) -> None:
    """Do what was told."""
    for verb, *given_ in told.payload.ops:
        VERBS[verb](told.entity, rows, *given_)


def put(entity: str, rows: Rows, columns: dict[str, Any]) -> None:
    """Set columns of a thing."""
    rows.put(things, entity=entity, **columns)


def add(entity: str, rows: Rows, amounts: dict[str, Any]) -> None:
    """Add to columns of a thing."""
    rows.add(things, entity, **amounts)


def try_add(entity: str, rows: Rows, amounts: dict[str, Any]) -> None:
    """Add, or count what could not be added, as a careful handler may."""
    try:
        rows.add(things, entity, **amounts)
    except LossyValue:
        rows.add(things, entity, debt=1)


def remove(entity: str, rows: Rows) -> None:
    """Remove a thing."""
    rows.delete(things, entity)


def look(entity: str, rows: Rows, other: str) -> None:
    """Write down what can be read of another thing."""
    rows.put(seen, entity=entity, said=repr(rows.get(things, other)))


def pair(entity: str, rows: Rows, day: int, size: int | None, count: int) -> None:
    """Set or add to a row with a key of two."""
    if size is None:
        rows.add(pairs, entity, day, size=1, count=count)
    else:
        rows.put(pairs, entity=entity, day=day, size=size)


def unpair(entity: str, rows: Rows, day: int) -> None:
    """Remove a row with a key of two."""
    rows.delete(pairs, entity, day)


def hand_on(entity: str, rows: Rows, code: str) -> None:
    """Take a unique value from whoever has it."""
    for (owner,) in rows.select(select(names.c.entity).where(names.c.code == code)):
        rows.put(names, entity=owner, code=None)
    rows.put(names, entity=entity, code=code)


def take(entity: str, rows: Rows, code: str) -> None:
    """Take a unique value without asking whose it is."""
    rows.put(names, entity=entity, code=code)


def swap_names(entity: str, rows: Rows, other: str) -> None:
    """Exchange two unique values by key alone, so that only the order of writing keeps them so."""
    mine, theirs = rows.get(names, entity), rows.get(names, other)
    if mine is None or theirs is None or entity == other:
        return
    rows.put(names, entity=entity, code=None)
    rows.put(names, entity=other, code=mine.code)
    rows.put(names, entity=entity, code=theirs.code)


def total(entity: str, rows: Rows) -> None:
    """Write down a sum that the database makes."""
    found = rows.select(select(things.c.count).where(things.c.flag))
    rows.put(seen, entity=entity, said="sum", sum=sum(row.count for row in found))


def double(entity: str, rows: Rows, least: int) -> None:
    """Change rows by a statement, and write down how many there were."""
    met = rows.execute(update(things).where(things.c.count >= least).values(count=least + 1))
    rows.put(seen, entity=entity, said=f"{met} doubled")


def purge(entity: str, rows: Rows, day: int) -> None:
    """Remove rows by a statement, and put one back in the same way."""
    rows.execute(delete(pairs).where(pairs.c.day == day))
    rows.execute(insert(pairs).values(entity=entity, day=day, size=1))


VERBS: dict[str, Callable[..., None]] = {
    "put": put,
    "add": add,
    "try_add": try_add,
    "remove": remove,
    "look": look,
    "pair": pair,
    "unpair": unpair,
    "hand_on": hand_on,
    "take": take,
    "swap_names": swap_names,
    "total": total,
    "double": double,
    "purge": purge,
}

ENTITIES = st.sampled_from("abc")
DAYS = st.integers(1, 2)
SMALL = st.integers(-3, 3)
FLOATS = st.sampled_from([0.1, 0.2, 1e16, -1e16, 1 / 3, 0.0, -0.0])
COLUMNS = st.fixed_dictionaries(
    {},
    optional={
        "count": SMALL,
        "debt": SMALL,
        "maybe": st.none() | SMALL,
        "weight": FLOATS,
        "drift": st.none() | FLOATS,
        "flag": st.booleans(),
        "note": st.sampled_from([None, {}, [1, 0.1], {"b": {"é": None}}, "text", 0]),
    },
)
AMOUNTS = st.fixed_dictionaries(
    {}, optional={"count": SMALL, "debt": SMALL, "maybe": SMALL, "weight": FLOATS, "drift": FLOATS}
)
OPS = st.one_of(
    st.tuples(st.just("put"), COLUMNS),
    st.tuples(st.just("add"), AMOUNTS),
    st.tuples(st.just("remove")),
    st.tuples(st.just("look"), ENTITIES),
    st.tuples(st.just("pair"), DAYS, st.none() | SMALL, SMALL),
    st.tuples(st.just("unpair"), DAYS),
    st.tuples(st.just("hand_on"), st.sampled_from("xy")),
    st.tuples(st.just("swap_names"), ENTITIES),
    st.tuples(st.just("total")),
    st.tuples(st.just("double"), SMALL),
    st.tuples(st.just("purge"), DAYS),
).map(list)
LOGS = st.lists(st.tuples(ENTITIES, st.lists(OPS, min_size=1, max_size=3)), max_size=12)
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
MOST = 2**31 - 1


class Bench:
    """A log that grows from example to example, and read models of its last piece."""

    def __init__(self, url: str) -> None:
        self.host = Host(url, [domain])
        self.host.upgrade()
        self.start = 0

    def append(self, log: Log) -> None:
        """Append a log; what follows is about this one."""
        self.start = self.host.log.head()
        self.host.append([domain.attest(Told(ops=ops), entity=entity) for entity, ops in log])

    def project(self, sizes: list[int], *, is_warm: bool = True) -> Outcome:
        """Project it from nothing in batches of these sizes, and return the rows and the stop."""
        database, tables = self.host.database, domain.tables.values()
        with database.write() as connection:
            for table in tables:
                connection.execute(delete(table))
            cursor = update(cursors).where(cursors.c.domain == domain.name)
            connection.execute(cursor.values(position=self.start, token=cursors.c.token + 1))
        at_once = Event()
        at_once.set()
        stopped = None
        runner = self._runner(at_once)
        for size in cycle(sizes):
            if not is_warm:
                runner = self._runner(at_once)
            runner.size = size
            try:
                step = runner.advance(eager=True)
            except ProjectorStopped as error:
                stopped = f"{error.position - self.start}"
                break
            if step.position >= step.head:
                break
        with database.read() as connection:
            rows = {
                table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
                for table in tables
            }
        return rows, stopped

    def _runner(self, stopping: Event) -> Runner:
        host = self.host
        shapes = [Shape(table) for table in domain.tables.values()]
        sequencer = host._sequencer  # noqa: SLF001 - the batches of a host, one by one
        rows = RowMap(shapes, lambda table: table)
        batches = Batches(host.database, sequencer, Handlers(domain), rows)
        return Runner(host.database, domain, batches, stopping)


@pytest.fixture(scope="module")
def benches(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> Iterator[list[Bench]]:
    """Set up a bench on each database, for all examples."""
    path: Path = tmp_path_factory.mktemp("batches") / "qntx.db"
    made = [Bench(f"sqlite:///{path}"), Bench(postgres_server.create_database())]
    yield made
    for bench in made:
        bench.host.close()


# An example is projected six times, half of them on a server.
@pytest.mark.batch_never_shows
@settings(max_examples=settings().max_examples // 4)
@given(log=LOGS, sizes=SIZES)
@example(
    log=[("a", [["hand_on", "x"]]), ("b", [["hand_on", "x"]]), ("a", [["hand_on", "x"]])],
    sizes=[3],
)
@example(log=[("a", [["add", {"maybe": 1}], ["put", {"maybe": None}], ["look", "a"]])], sizes=[2])
@example(
    log=[("a", [["remove"]]), ("a", [["add", {"count": 1}]]), ("a", [["look", "a"]])], sizes=[3]
)
def test_any_cutting_gives_the_same_rows(benches: list[Bench], log: Log, sizes: list[int]) -> None:
    """A log cut into batches in any way gives the rows of one at a time, on both databases."""
    outcomes = []
    for bench in benches:
        bench.append(log)
        outcomes += [bench.project([1]), bench.project(sizes), bench.project(sizes, is_warm=False)]

    assert outcomes[1:] == outcomes[:1] * 5


@pytest.mark.batch_never_shows
@pytest.mark.parametrize(
    "log",
    [
        pytest.param(
            [
                ("a", [["add", {"count": 1}]]),
                ("a", [["add", {"count": MOST - 8}], ["add", {"count": 1}]]),
            ],
            id="a sum up to the very bound",
        ),
        pytest.param(
            [
                ("a", [["put", {"count": 1}]]),
                ("a", [["add", {"count": MOST}]]),
                ("a", [["add", {"count": -MOST}]]),
            ],
            id="over the bound and back",
        ),
        pytest.param(
            [
                ("a", [["add", {"count": 1}]]),
                ("b", [["add", {"count": 1}]]),
                ("a", [["add", {"count": MOST}]]),
                ("a", [["add", {"count": -MOST}]]),
            ],
            id="blind over the bound and back",
        ),
        pytest.param(
            [
                ("a", [["put", {"count": -MOST}]]),
                ("b", [["total"]]),
                ("a", [["add", {"count": MOST}]]),
                ("a", [["add", {"count": MOST}]]),
            ],
            id="amounts that are larger than any value",
        ),
        pytest.param(
            [
                ("a", [["put", {"count": -9}]]),
                ("b", [["total"]]),
                ("a", [["add", {"count": MOST - 2}]]),
            ],
            id="an amount near the bound beside a default",
        ),
        pytest.param(
            [
                ("a", [["try_add", {"count": 1, "maybe": 1}]]),
                ("a", [["try_add", {"count": 1, "maybe": 2**63}]]),
            ],
            id="a refusal that the handler catches",
        ),
        pytest.param(
            [
                ("a", [["put", {"count": 1}], ["try_add", {"count": 1, "debt": 2**31}]]),
            ],
            id="a refusal that the handler catches after a put",
        ),
    ],
)
def test_the_edges_of_numbers_do_not_show_a_batch(benches: list[Bench], log: Log) -> None:
    """What stops one at a time, or does not, does the same in any batch, near the bounds too."""
    outcomes = []
    for bench in benches:
        bench.append(log)
        outcomes += [bench.project(sizes) for sizes in ([1], [2], [len(log)], [1, 3])]
        outcomes.append(bench.project([1], is_warm=False))

    assert outcomes[1:] == outcomes[:1] * 9


@pytest.mark.batch_never_shows
def test_a_unique_value_taken_without_asking_stops_at_every_batch_size(
    benches: list[Bench],
) -> None:
    """What violates a unique constraint one at a time is not healed by what comes after it."""
    log: Log = [
        ("a", [["take", "x"]]),
        ("b", [["take", "x"]]),
        ("a", [["take", "y"]]),
    ]
    outcomes = []
    for bench in benches:
        bench.append(log)
        outcomes += [bench.project(sizes) for sizes in ([1], [2], [3])]

    assert outcomes[0][1] == "2"
    assert outcomes[1:] == outcomes[:1] * 5
