"""`Rows` in bulk mean what a dictionary means, on both databases."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import JSON, Column, Connection, Float, Integer, String, Table, delete, update
from sqlalchemy import select as select_

from qntx_es import Domain, Host, InvalidRow, LossyValue
from qntx_es.projections.rows import RowMap
from qntx_es.projections.shape import Shape
from qntx_es.testing import PostgresServer

domain = Domain("model")
plain = domain.table(
    "plain",
    Column("entity", String, primary_key=True),
    Column("count", Integer, nullable=False, default=4),
    Column("maybe", Integer),
    Column("weight", Float),
    Column("note", JSON),
)
strict = domain.table(
    "strict",
    Column("entity", String, primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("count", Integer, default=-1),
)
TABLES = {"plain": plain, "strict": strict}
DEFAULTS: dict[str, dict[str, Any]] = {
    "plain": {"count": 4, "maybe": None, "weight": None, "note": None},
    "strict": {"size": None, "count": -1},
}
REQUIRED = {"plain": set[str](), "strict": {"size"}}

KEYS = {
    "plain": st.tuples(st.sampled_from(["a", "b", "é", ""])),
    "strict": st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 1)),
}
NUMBERS = st.integers(-3, 3)
FLOATS = st.sampled_from([0.1, 0.2, 1e16, -1e16])
PUTS = {
    "plain": st.fixed_dictionaries(
        {},
        optional={
            "count": NUMBERS,
            "maybe": st.none() | NUMBERS,
            "weight": st.none() | FLOATS,
            "note": st.sampled_from([None, {"a": [1]}, [], "x"]),
        },
    ),
    "strict": st.fixed_dictionaries({}, optional={"size": NUMBERS, "count": st.none() | NUMBERS}),
}
ADDS = {
    "plain": st.fixed_dictionaries(
        {}, optional={"count": NUMBERS, "maybe": NUMBERS, "weight": FLOATS}
    ),
    "strict": st.fixed_dictionaries({}, optional={"size": NUMBERS, "count": NUMBERS}),
}


def _ops(name: str) -> st.SearchStrategy[tuple[Any, ...]]:
    at = st.just(name)
    return st.one_of(
        st.tuples(st.just("get"), at, KEYS[name]),
        st.tuples(st.just("put"), at, KEYS[name], PUTS[name]),
        st.tuples(st.just("put"), at, KEYS[name], PUTS[name]),
        st.tuples(st.just("add"), at, KEYS[name], ADDS[name]),
        st.tuples(st.just("add"), at, KEYS[name], ADDS[name]),
        st.tuples(st.just("delete"), at, KEYS[name]),
        st.tuples(st.just("set_all"), at, NUMBERS),
        st.tuples(st.just("delete_where"), at, NUMBERS),
        st.tuples(st.just("select"), at),
        st.tuples(st.just("flush"), at),
        st.tuples(st.just("forget"), at),
        st.tuples(st.just("read_ahead"), at, st.lists(KEYS[name])),
    )


OPS = st.lists(st.one_of(_ops("plain"), _ops("strict")), max_size=30)


class Model:
    """Tables as dictionaries, without any cleverness."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {"plain": {}, "strict": {}}

    def get(self, name: str, key: tuple[Any, ...]) -> object:
        """Return the row, whole."""
        row = self.tables[name].get(key)
        return None if row is None else _keyed(name, key) | row

    def put(self, name: str, key: tuple[Any, ...], columns: dict[str, Any]) -> object:
        """Set columns."""
        if "size" in columns and columns["size"] is None:
            return "LossyValue"
        row = self._row(name, key, set(columns))
        if row is None:
            return "InvalidRow"
        self.tables[name][key] = row | columns
        return None

    def add(self, name: str, key: tuple[Any, ...], amounts: dict[str, Any]) -> object:
        """Add to columns."""
        row = self._row(name, key, set(amounts))
        if row is None:
            return "InvalidRow"
        for column, amount in amounts.items():
            before = DEFAULTS[name][column] if row[column] is None else row[column]
            row[column] = (before or 0) + amount
        self.tables[name][key] = row
        return None

    def delete(self, name: str, key: tuple[Any, ...]) -> object:
        """Remove the row."""
        self.tables[name].pop(key, None)
        return None

    def set_all(self, name: str, count: int) -> object:
        """Set a column of every row."""
        for row in self.tables[name].values():
            row["count"] = count
        return len(self.tables[name])

    def delete_where(self, name: str, count: int) -> object:
        """Remove rows by what they hold."""
        gone = [key for key, row in self.tables[name].items() if row["count"] == count]
        for key in gone:
            del self.tables[name][key]
        return len(gone)

    def select(self, name: str) -> object:
        """Return all rows, in an order of their own."""
        rows = [_keyed(name, key) | row for key, row in self.tables[name].items()]
        return sorted(rows, key=repr)

    def flush(self, _: str) -> object:
        """Change nothing."""
        return None

    def forget(self, _: str) -> object:
        """Change nothing."""
        return None

    def read_ahead(self, _: str, __: object) -> object:
        """Change nothing."""
        return None

    def _row(self, name: str, key: tuple[Any, ...], given_: set[str]) -> dict[str, Any] | None:
        row = self.tables[name].get(key)
        if row is not None:
            return dict(row)
        return None if REQUIRED[name] - given_ else dict(DEFAULTS[name])


def _keyed(name: str, key: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip([column.name for column in TABLES[name].primary_key], key, strict=True))


class Real:
    """The same verbs on the real thing."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.rows = RowMap([Shape(plain), Shape(strict)], lambda table: table)
        self.rows.connect = lambda _: connection

    def __getattr__(self, verb: str) -> Any:  # noqa: ANN401 - a verb of a row map
        return getattr(self.rows, verb)

    def get(self, name: str, key: tuple[Any, ...]) -> object:
        """Return the row, as a dictionary."""
        row = self.rows.get(TABLES[name], *key)
        return None if row is None else dict(row)

    def put(self, name: str, key: tuple[Any, ...], columns: dict[str, Any]) -> object:
        """Set columns."""
        return self.rows.put(TABLES[name], **_keyed(name, key), **columns)  # type: ignore[func-returns-value]

    def add(self, name: str, key: tuple[Any, ...], amounts: dict[str, Any]) -> object:
        """Add to columns."""
        return self.rows.add(TABLES[name], *key, **amounts)  # type: ignore[func-returns-value]

    def delete(self, name: str, key: tuple[Any, ...]) -> object:
        """Remove the row."""
        return self.rows.delete(TABLES[name], *key)  # type: ignore[func-returns-value]

    def set_all(self, name: str, count: int) -> object:
        """Set a column of every row."""
        return self.rows.execute(update(TABLES[name]).values(count=count))

    def delete_where(self, name: str, count: int) -> object:
        """Remove rows by what they hold."""
        table = TABLES[name]
        return self.rows.execute(delete(table).where(table.c.count == count))

    def select(self, name: str) -> object:
        """Return all rows, in an order of their own."""
        found = self.rows.select(select_(*TABLES[name].columns))
        return sorted((dict(row._mapping) for row in found), key=repr)  # noqa: SLF001 - public in all but name

    def flush(self, _: str) -> object:
        """Write what was said."""
        return self.rows.flush(self.connection)  # type: ignore[func-returns-value]

    def forget(self, _: str) -> object:
        """Write what was said, and know nothing any more."""
        self.rows.flush(self.connection)
        return self.rows.forget()  # type: ignore[func-returns-value]

    def read_ahead(self, name: str, keys: list[tuple[Any, ...]]) -> object:
        """Say what is coming."""
        named = [(TABLES[name], *key) for key in keys]
        return self.rows.read_ahead(["a", "b"], named)  # type: ignore[func-returns-value]


@pytest.fixture(scope="module")
def hosts(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> Iterator[list[Host]]:
    """Make the tables on each database, for all examples."""
    path = tmp_path_factory.mktemp("model") / "qntx.db"
    made = [Host(f"sqlite:///{path}", [domain])]
    made.append(Host(postgres_server.create_database(), [domain]))
    for host in made:
        host.upgrade()
    yield made
    for host in made:
        host.close()


def _answer(speaker: object, verb: str, arguments: list[Any]) -> object:
    try:
        return getattr(speaker, verb)(*arguments)
    except (InvalidRow, LossyValue) as error:
        return type(error).__name__


def _contents(connection: Connection, table: Table) -> list[dict[str, Any]]:
    found = connection.execute(select_(*table.columns))
    return sorted((dict(row._mapping) for row in found), key=repr)  # noqa: SLF001 - see above


@pytest.mark.rows_model
@given(ops=OPS)
@example(
    ops=[("put", "plain", ("a",), values) for values in ({}, {"count": 0, "note": {"a": [1]}})]
)
def test_rows_are_a_dictionary(hosts: list[Host], ops: list[tuple[Any, ...]]) -> None:
    """Whatever is said to rows, in any order, they answer and end as a dictionary would."""
    for host in hosts:
        model = Model()
        with host.database.engine.connect() as connection, connection.begin() as transaction:
            real = Real(connection)

            answers = [
                (op, _answer(real, op[0], list(op[1:])), _answer(model, op[0], list(op[1:])))
                for op in ops
            ]
            real.flush("")

            for op, answer, wanted in answers:
                assert answer == wanted, op
            for name, table in TABLES.items():
                assert _contents(connection, table) == model.select(name)
            transaction.rollback()
