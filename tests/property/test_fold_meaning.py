"""A fold run by the database means what it means when it is called, whatever the log says."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Integer,
    String,
    Table,
    delete,
    insert,
    select,
    update,
)

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Payload,
    ProjectorStopped,
    Recorded,
    Rows,
    count,
    first,
    last,
    least,
    most,
    total,
)
from qntx_es.projections.batch import Batches
from qntx_es.projections.folding import is_apart
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.rows import RowMap
from qntx_es.projections.runner import Runner
from qntx_es.projections.shape import Shape
from qntx_es.tables import cursors
from qntx_es.testing import PostgresServer

Said = tuple[str, str, dict[str, Any], int]
Put = list[dict[str, Any]]
Outcome = tuple[list[list[tuple[Any, ...]]], int | None]

INT32, INT64 = 2**31 - 1, 2**63 - 1


class Inner(BaseModel):
    """What lies inside."""

    b: int | None = None
    c: str


class Bought(Payload, context="bought"):
    """Has a field of each kind that both databases can hold against it."""

    n: int
    m: int | None = None
    d: int = 3
    text: str = "no"
    share: float = 0.5
    flag: bool = True
    inner: Inner | None = None
    small: int = Field(default=1, ge=-5, le=9)


class Sold(Payload, context="sold", schema_version=2):
    """Is of a later version than some that were said."""

    n: int | None
    text: str | None = None


class Never(Payload, context="never"):
    """Is never said."""


def folded(name: str) -> Domain:
    """Return a domain that has nothing but folds, of all kinds."""
    domain = Domain(name)
    things = domain.table(
        "things",
        Column("entity", String, primary_key=True),
        Column("bought", Integer, nullable=False, default=7),
        Column("sum", BigInteger, nullable=False, default=-5),
        Column("little", Integer),
        Column("inside", BigInteger, default=2),
        Column("least", BigInteger),
        Column("most", Integer),
        Column("text", String(3)),
        Column("flag", Boolean),
        Column("who", String),
        Column("at", DateTime(timezone=True)),
        Column("position", BigInteger),
        Column("sold", BigInteger, default=0),
        Column("word", String),
        Column("top", String),
    )
    pairs = domain.table(
        "pairs",
        Column("text", String, primary_key=True),
        Column("d", Integer, primary_key=True),
        Column("c", String),
        Column("since", DateTime(timezone=True)),
        Column("small", Integer),
    )
    domain.fold(
        Bought,
        into=things,
        key="entity",
        bought=count(),
        sum=total("payload.n"),
        little=total("payload.m"),
        inside=total("payload.inner.b"),
        least=least("payload.n"),
        most=most("payload.m"),
        text=first("payload.text"),
        flag=last("payload.flag"),
        who=last("actor"),
        at=last("recorded_at"),
        position=first("position"),
    )
    domain.fold(
        Sold,
        into=things,
        key="entity",
        sold=total("payload.n"),
        word=least("payload.text"),
        top=most("payload.text"),
    )

    @domain.upcast(Sold, from_=1)
    def lift(old: dict[str, Any]) -> dict[str, Any]:
        return old | {"n": 100}

    domain.fold(
        Bought,
        into=pairs,
        key={"d": "payload.d", "text": "payload.text"},
        c=last("payload.inner.c"),
        since=first("recorded_at"),
        small=most("payload.small"),
    )
    return domain


by_database = folded("folded")
by_python = folded("called")


@by_python.project(Never)
def never(_: Recorded[Never], rows: Rows) -> None:
    """Be there, so that the folds of this domain are called one by one."""


SMALL = st.integers(-3, 3)
KINDS = [None, "5", "a", "long", True, [], [1], {}, {"b": 1}]
NUMBERS = [1.0, 1e3, 1.5, 1e16, 1e23, -0.0, INT32, -INT32, INT64, -INT64 - 1, 2**63, -(2**70)]
ODD = st.sampled_from([*KINDS, *NUMBERS])
TEXTS = st.sampled_from(["", "a", "B", "é", "z", "😀", '"', "\n", "abc"])
INNER = st.none() | st.fixed_dictionaries(
    {"c": TEXTS}, optional={"b": st.none() | SMALL, "x": SMALL}
)
PLAIN = st.fixed_dictionaries(
    {"n": SMALL},
    optional={
        "m": st.none() | SMALL,
        "d": SMALL,
        "text": TEXTS,
        "share": st.sampled_from([0, 1, 0.1, 1e300]),
        "flag": st.booleans(),
        "inner": INNER,
        "small": SMALL,
        "unread": ODD,
    },
)
FIELDS = ("n", "m", "d", "text", "share", "flag", "inner", "small")


@st.composite
def misfits(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a payload that may not be of its class, or not plainly."""
    payload: dict[str, Any] = draw(PLAIN)
    for name in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=2)):
        if draw(st.booleans()):
            payload[name] = draw(ODD)
        else:
            payload.pop(name, None)
    return payload


ENTITIES = st.sampled_from("abc")
BOUGHT = st.tuples(st.just("bought"), ENTITIES, PLAIN, st.just(1))
SOLD = st.tuples(
    st.just("sold"),
    ENTITIES,
    st.fixed_dictionaries({"n": st.none() | SMALL}, optional={"text": st.none() | TEXTS}),
    st.just(2),
)
ODD_BOUGHT = st.tuples(st.just("bought"), ENTITIES, misfits(), st.just(1))
OTHER_VERSION = st.tuples(st.just("sold"), ENTITIES, st.just({"n": 1}), st.sampled_from([1, 3]))
NOTHING = st.builds(dict[str, Any])
NOISE = st.tuples(st.just("noise"), ENTITIES, NOTHING, st.just(1))
MOSTLY_PLAIN = st.one_of(BOUGHT, SOLD, BOUGHT, SOLD, BOUGHT, SOLD, NOISE)
LOGS = st.lists(MOSTLY_PLAIN, max_size=12)
ODD_LOGS = st.lists(st.one_of(MOSTLY_PLAIN, ODD_BOUGHT, OTHER_VERSION), max_size=8)
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=3)
PUTS = st.lists(
    st.fixed_dictionaries(
        {"entity": ENTITIES, "bought": SMALL | st.just(INT32 - 1)},
        optional={
            "sum": st.sampled_from([INT64 - 1, 2**62, -(2**62), -INT64]),
            "little": st.sampled_from([None, 0, INT32 - 1, -INT32]),
            "inside": st.sampled_from([None, 0, 5]),
            "most": st.sampled_from([None, 0, INT32]),
            "least": st.sampled_from([None, 0, -(2**40)]),
            "text": st.sampled_from([None, "", "b"]),
            "word": st.sampled_from([None, "", "b"]),
            "flag": st.sampled_from([None, False]),
        },
    ),
    max_size=2,
    unique_by=lambda row: row["entity"],
)


class Bench:
    """A log that grows from example to example, and read models of its last piece."""

    def __init__(self, url: str) -> None:
        self.host = Host(url, [by_database, by_python])
        self.host.upgrade()
        self.start = 0

    def append(self, log: Sequence[Said]) -> None:
        """Append a log, be its payloads of their class or not; what follows is about this one."""
        self.start = self.host.log.head()
        self.host.log.append(
            [
                Attestation(
                    context=context,
                    entity=entity,
                    actor=f"{entity}@test",
                    payload=payload,
                    schema_version=version,
                )
                for context, entity, payload, version in log
            ]
        )

    def project(self, domain: Domain, sizes: Sequence[int], put: Put) -> Outcome:
        """Project it over these rows, in batches of these sizes; return the rows and the stop."""
        database, tables = self.host.database, domain.tables.values()
        with database.write() as connection:
            for table in tables:
                connection.execute(delete(table))
            for row in put:
                connection.execute(insert(domain.tables[f"{domain.name}_things"]).values(row))
            cursor = update(cursors).where(cursors.c.domain == domain.name)
            connection.execute(cursor.values(position=self.start, token=cursors.c.token + 1))
        stopped = None
        runner = self._runner(domain)
        for size in cycle(sizes):
            runner.size = size
            try:
                step = runner.advance(eager=True)
            except ProjectorStopped as error:
                stopped = error.position - self.start
                break
            if step.position >= step.head:
                break
        return [self._rows(table) for table in tables], stopped

    def _rows(self, table: Table) -> list[tuple[Any, ...]]:
        with self.host.database.read() as connection:
            found = connection.execute(select(table))
            return sorted([tuple(self._seen(one) for one in row) for row in found], key=repr)

    def _seen(self, value: Any) -> Any:  # noqa: ANN401 - the column decides
        # The clocks of two databases differ, and nothing else.
        return "an instant" if hasattr(value, "tzinfo") else value

    def _runner(self, domain: Domain) -> Runner:
        at_once = Event()
        at_once.set()
        shapes = [Shape(table) for table in domain.tables.values()]
        sequencer = self.host._sequencer  # noqa: SLF001 - the batches of a host, one by one
        rows = RowMap(shapes, lambda table: table)
        batches = Batches(self.host.database, sequencer, Handlers(domain), rows)
        return Runner(self.host.database, domain, batches, at_once)


@pytest.fixture(scope="module")
def benches(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> Iterator[list[Bench]]:
    """Set up a bench on each database, for all examples."""
    path: Path = tmp_path_factory.mktemp("folds") / "qntx.db"
    made = [Bench(f"sqlite:///{path}"), Bench(postgres_server.create_database())]
    yield made
    for bench in made:
        bench.host.close()


def outcomes(
    benches: list[Bench], log: Sequence[Said], sizes: list[int], put: Put
) -> list[Outcome]:
    """Return what comes of a log: called one at a time, and by the database in three cuttings."""
    found = []
    for bench in benches:
        bench.append(log)
        found.append(bench.project(by_python, [1], put))
        found += [bench.project(by_database, cut, put) for cut in ([1], sizes, [100])]
    return found


def test_the_two_domains_differ_in_who_folds() -> None:
    """Of the two domains that are compared, the database may fold for one."""
    assert is_apart(by_database)
    assert not is_apart(by_python)


# An example is projected eight times, half of them on a server.
@pytest.mark.fold_meaning
@settings(max_examples=settings().max_examples // 4)
@given(log=LOGS, sizes=SIZES, put=PUTS)
@example(log=[("bought", "a", {"n": 1}, 1)], sizes=[1], put=[{"entity": "a", "bought": INT32}])
@example(
    log=[("bought", "a", {"n": 1}, 1), ("bought", "a", {"n": -2}, 1)],
    sizes=[2],
    put=[{"entity": "a", "sum": INT64}],
)
@example(
    log=[("bought", "a", {"n": 0, "m": INT32}, 1), ("bought", "a", {"n": 0, "m": -INT32}, 1)],
    sizes=[2],
    put=[{"entity": "a", "little": 1}],
)
def test_a_fold_means_the_same_wherever_it_runs(
    benches: list[Bench], log: list[Said], sizes: list[int], put: Put
) -> None:
    """Rows are those of one call at a time, over whatever stood there, for every cutting."""
    found = outcomes(benches, log, sizes, put)

    assert found[1:] == found[:1] * 7


@pytest.mark.fold_meaning
@settings(max_examples=settings().max_examples // 4)
@given(log=ODD_LOGS, sizes=SIZES)
@example(log=[("bought", "a", {"n": 1}, 1), ("bought", "a", {}, 1)], sizes=[2])
@example(log=[("bought", "a", {"n": 2**63}, 1)], sizes=[1])
@example(log=[("bought", "a", {"n": True}, 1), ("bought", "a", {"n": "5"}, 1)], sizes=[2])
@example(log=[("bought", "a", {"n": 1, "inner": {"b": 2}}, 1)], sizes=[1])
def test_what_is_not_of_its_class_is_never_passed_over(
    benches: list[Bench], log: list[Said], sizes: list[int]
) -> None:
    """A payload that is no such one stops the projector there, or is read as Python reads it."""
    found = outcomes(benches, log, sizes, [])

    assert found[1:] == found[:1] * 7
