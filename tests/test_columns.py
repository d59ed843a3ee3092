"""What is put into a row is what comes back, on both databases, or it is refused."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Table, select
from sqlalchemy.dialects import postgresql

from qntx_es import Domain, DomainRefused, Host, LossyValue, Payload, Recorded, Rows
from qntx_es.columns import admit, physical, prepared, problems
from qntx_es.database import Database

TYPES: dict[str, Any] = {
    "small": sa.SmallInteger(),
    "whole": sa.Integer(),
    "big": sa.BigInteger(),
    "words": sa.String(),
    "short": sa.String(5),
    "long": sa.Text(),
    "truth": sa.Boolean(),
    "number": sa.Float(),
    "at": sa.DateTime(timezone=True),
    "day": sa.Date(),
    "raw": sa.LargeBinary(),
    "document": sa.JSON(),
}
Put: Any = Callable[[dict[str, Any]], dict[str, Any]]


class Given(Payload, context="given"):
    """Something was given."""


def everything() -> tuple[Domain, Table]:
    """Make a domain with a column of every type."""
    domain = Domain("code")
    columns = [Column(name, kind) for name, kind in TYPES.items()]
    return domain, domain.table("all", Column("entity", sa.String, primary_key=True), *columns)


@pytest.fixture
def put(url: str) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Put values into a row, by a handler of a real host, and give back what another reads."""
    domain, table = everything()
    values: list[dict[str, Any]] = []

    @domain.project(Given)
    def keep(given: Recorded[Given], rows: Rows) -> None:
        rows.put(table, entity=given.entity, **values[-1])

    host = Host(url, [domain])
    host.upgrade()
    count = 0

    def put_and_read(row: dict[str, Any]) -> dict[str, Any]:
        nonlocal count
        count += 1
        values.append(row)
        host.append(domain.attest(Given(), entity=str(count)))
        host.catch_up()
        with host.database.read() as connection:
            asked = select(table).where(table.c.entity == str(count))
            read = connection.execute(asked).mappings().one()
        return {name: read[name] for name in row}

    yield put_and_read
    host.close()


def column(name: str) -> Column[Any]:
    """Return the column of a name, in a table as a domain declares it."""
    return everything()[1].c[name]


EDGES: dict[str, list[Any]] = {
    "small": [-(2**15), 2**15 - 1, 0],
    "whole": [-(2**31), 2**31 - 1, 0],
    "big": [-(2**63), 2**63 - 1, 0],
    "words": ["", " ", "a ", "é", "e\u0301", "😀", "\u202e", "'; --", "\x01\x7f", "x" * 100_000],
    "short": ["", "12345", "😀😀😀😀😀", "a    "],
    "long": ["", "\n\r\n\t", "%s :name \\"],
    "truth": [True, False],
    "number": [
        0.0,
        0.1,
        -1.5,
        5e-324,
        1.7976931348623157e308,
        2.0**53,
        1e16,
        -2.2250738585072014e-308,
    ],
    "at": [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
        datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
    ],
    "day": [date.min, date.max, date(1970, 1, 1), date(2024, 2, 29)],
    "raw": [b"", b"\x00\xff", bytes(range(256))],
    "document": [{"b": 1, "a": [None, -0.0, 2**80]}, [], "", "text", 0, False, {}],
}


def test_what_is_put_at_the_edges_comes_back(put: Callable[[dict[str, Any]], Any]) -> None:
    """The least, the largest and the oddest value of each type is itself when it is read."""
    most = max(map(len, EDGES.values()))
    for turn in range(most):
        row = {name: values[turn % len(values)] for name, values in EDGES.items()}

        read = put(row)

        for name, value in row.items():
            assert read[name] == value, name
            assert type(read[name]) is type(value), name
        assert put(dict.fromkeys(EDGES)) == dict.fromkeys(EDGES)


def test_what_would_look_different_is_put_as_it_will_come_back(
    put: Callable[[dict[str, Any]], Any],
) -> None:
    """A negative zero, a whole float and a foreign zone enter as what a reading would give."""
    amsterdam = timezone(timedelta(hours=2))

    read = put({"number": -0.0, "at": datetime(2026, 7, 1, 12, tzinfo=amsterdam)})

    assert str(read["number"]) == "0.0"
    assert read["at"] == datetime(2026, 7, 1, 10, tzinfo=UTC)
    assert read["at"].utcoffset() == timedelta(0)
    assert put({"number": 3}) == {"number": 3.0}
    assert type(admit(column("words"))(Words("a"))) is str


class Whole(int):
    """A number that only looks like an int."""


class Words(str):
    """A text that only looks like a str."""

    __slots__ = ()


REFUSED: dict[str, list[Any]] = {
    "small": [2**15, -(2**15) - 1, True, 1.0, "1", Whole(1)],
    "whole": [2**31, -(2**31) - 1, False, 1.0],
    "big": [2**63, -(2**63) - 1, 2**80, 0.5],
    "words": ["a\x00", "\ud800", 1, b"a", Words("a\x00")],
    "short": ["123456", "😀" * 6],
    "long": ["\x00"],
    "truth": [1, 0, "true", None.__class__],
    "number": [float("nan"), float("inf"), 2**53 + 1, True, "1.0", 1j],
    "at": [
        datetime(2026, 1, 1),  # noqa: DTZ001 - that is what is refused
        date(2026, 1, 1),
        "2026-01-01",
        0,
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        datetime(9999, 12, 31, 23, 59, tzinfo=timezone(-timedelta(hours=1))),
    ],
    "day": [datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01"],
    "raw": ["a", bytearray(b"a"), memoryview(b"a")],
    "document": [float("nan"), {"a": "\x00"}, {1: 2}, object(), {"a": b""}, "x" * (1 << 20)],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in REFUSED.items() for value in values],
    ids=lambda value: repr(value).partition(" at 0x")[0][:30],
)
def test_what_would_come_back_as_another_value_is_refused(name: str, value: Any) -> None:  # noqa: ANN401
    """Each is a `LossyValue` that names table and column, and never another exception."""
    try:
        admit(column(name))(value)
    except LossyValue as error:
        assert f"code_all.{name}" in str(error)  # noqa: PT017 - any other exception is a failure
    except Exception as error:  # noqa: BLE001 - which is the point
        pytest.fail(f"{type(error).__name__}: {error}")
    else:
        pytest.fail("it was admitted")


def test_null_needs_a_column_that_takes_it() -> None:
    """NULL is admitted where the column is nullable, and never in a key."""
    domain = Domain("code")
    table = domain.table(
        "all",
        Column("entity", sa.String, primary_key=True),
        Column("n", sa.Integer, nullable=False),
    )

    assert admit(column("words"))(None) is None
    for one in table.columns:
        with pytest.raises(LossyValue, match="never NULL"):
            admit(one)(None)


VALUES = st.fixed_dictionaries(
    {
        "small": st.integers(-(2**15), 2**15 - 1),
        "whole": st.integers(-(2**31), 2**31 - 1),
        "big": st.integers(-(2**63), 2**63 - 1),
        "words": st.text(max_size=20),
        "short": st.text(max_size=6),
        "truth": st.booleans(),
        "number": st.floats() | st.integers(-(2**54), 2**54),
        "at": st.datetimes(timezones=st.just(UTC)) | st.datetimes(timezones=st.timezones()),
        "day": st.dates(),
        "raw": st.binary(max_size=20),
        "document": st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=5,
        ),
    }
)


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(row=VALUES)
def test_what_is_admitted_is_what_comes_back(
    put: Callable[[dict[str, Any]], Any], row: dict[str, Any]
) -> None:
    """For any value at all: it is refused as lossy, or it comes back as it was admitted."""
    admitted = {}
    for name, value in row.items():
        try:
            admitted[name] = admit(column(name))(value)
        except LossyValue:
            continue

    read = put({name: row[name] for name in admitted})

    for name, value in admitted.items():
        again = admit(column(name))(read[name]) if value is not None else None
        assert again == value, name
        assert str(again) == str(value), name


@pytest.mark.parametrize(
    "kind",
    [
        sa.Numeric(10, 2), sa.Enum("a", "b", name="letters"), sa.DateTime(), sa.Time(),
        sa.Interval(), sa.Uuid(), sa.REAL(), sa.Float(precision=24), sa.Float(asdecimal=True),
        sa.ARRAY(sa.Integer), sa.PickleType(), sa.TIMESTAMP(), sa.types.NullType(),
        postgresql.JSONB(none_as_null=True).with_variant(sa.Numeric(), "sqlite"),
    ][:13],
    ids=lambda kind: type(kind).__name__,
)  # fmt: skip
def test_a_type_that_keeps_nothing_on_both_databases_is_refused(kind: Any) -> None:  # noqa: ANN401
    """A type that rounds, pads, or is one database's own is a problem of the domain."""
    table = Domain("code").table("all", Column("e", sa.String, primary_key=True), Column("x", kind))

    assert any("code_all.x" in problem for problem in problems(table))


@pytest.mark.parametrize(
    "kind",
    [
        sa.CHAR(5), sa.CLOB(), sa.BLOB(), sa.NVARCHAR(5), sa.VARBINARY(5), sa.DOUBLE(),
        postgresql.CITEXT(), sa.String(collation="NOCASE"),
        sa.Integer().with_variant(sa.SmallInteger(), "postgresql"),
    ],
    ids=lambda kind: type(kind).__name__,
)  # fmt: skip
def test_a_type_is_refused_or_works_on_this_database(url: str, kind: Any) -> None:  # noqa: ANN401
    """What a domain may declare can be created, and keeps what `admit` lets through."""
    domain = Domain("code")
    table = domain.table("all", Column("e", sa.String, primary_key=True), Column("x", kind))
    if problems(table):
        return
    samples: tuple[Any, ...] = ("a", "A", 1.5, b"a", 70_000)
    check = admit(table.c.x)
    database = Database(url)
    database.create()
    try:
        live = physical(table, table.name, on_sqlite=database.is_sqlite)
        with database.write() as connection:
            live.create(connection)
            for sample in samples:
                try:
                    admitted = check(sample)
                except LossyValue:
                    continue
                connection.execute(live.insert().values(e=str(sample), x=admitted))
                asked = select(live.c.x).where(live.c.e == str(sample), live.c.x == admitted)
                assert connection.execute(asked).scalars().all() == [admitted]
    finally:
        database.close()


def test_texts_are_ordered_by_code_point_on_both_databases(url: str) -> None:
    """An order that a handler reads depends on no locale of a server or a database."""
    domain, table = everything()
    host = Host(url, [domain])
    host.upgrade()

    with host.database.read() as connection:
        if host.database.is_sqlite:
            return host.close()
        asked = sa.text(
            "SELECT collation_name FROM information_schema.columns "
            "WHERE table_name = :table AND column_name IN ('entity', 'words', 'short', 'long')"
        )
        collations = connection.execute(asked, {"table": table.name}).scalars().all()
    host.close()

    assert set(collations) == {"C"}
    return None


@pytest.mark.parametrize("name", ["table", "self", "key", "order", "user", "get", "values"])
def test_a_column_may_have_any_name_that_was_accepted(url: str, name: str) -> None:
    """A column is refused when the domain is taken up, or it can be put, added to and read."""
    domain = Domain("code")
    key: Column[str] = Column("entity", sa.String, primary_key=True)
    table = domain.table("all", key, Column(name, sa.Integer))

    @domain.project(Given)
    def keep(given: Recorded[Given], rows: Rows) -> None:
        rows.put(table, entity=given.entity, **{name: 1})
        rows.add(table, given.entity, **{name: 2})
        row = rows.get(table, given.entity)
        assert row is not None
        assert row[name] == 3

    try:
        host = Host(url, [domain])
    except DomainRefused:
        return
    try:
        host.upgrade()
        host.append(domain.attest(Given(), entity="a"))
        host.catch_up()
    finally:
        host.close()


def test_a_prepared_column_keeps_its_values() -> None:
    """JSON becomes text, and an instant stays aware, whoever declares the column."""
    assert prepared(Column("x", sa.JSON)).type.__class__.__name__ == "Document"
    assert prepared(Column("x", postgresql.JSONB)).type.__class__.__name__ == "Document"
    assert prepared(Column("x", sa.TIMESTAMP(timezone=True))).type.__class__.__name__ == "Instant"
