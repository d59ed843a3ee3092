"""Procedures called in one way there and back, each a transaction of its own: PostgreSQL.

An append is one such call, and a host may make thousands in a second. To take a connection out of
a pool, have it commit by itself, and undo both costs as much as the call does, and so does what a
driver does for any statement at all. So some connections are kept that always commit by themselves,
made by the engine as it makes all others, and spoken to in the driver's lowest words.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import finalize

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from qntx_es.wire import array

# A text, an array of texts or of integers, or an array in its binary form.
Value: TypeAlias = str | Sequence[str | None] | Sequence[int] | bytes
# What the driver puts in the place of %(name)s, or of %s.
Given: TypeAlias = Mapping[str, Any] | Sequence[Any]

# At most so many at once. The log takes one at a time; the others only wait together.
CALLS_MAX = 10
_IDLE = 0  # psycopg.pq.TransactionStatus
_DONE, _TUPLES = 1, 2  # psycopg.pq.ExecStatus
_TEXT, _BINARY = 0, 1


# To be collected is to be closed, and what is closed here would be closed there.
_OTHERS: list["_Line"] = []


@dataclass(slots=True)
class _Line:
    """A connection of the driver's that commits by itself, and what is prepared on it."""

    driver: Any
    prepared: set[bytes] = field(default_factory=set)

    def run(self, statement: bytes, values: Sequence[Value]) -> Any:  # noqa: ANN401 - a result
        formats = [_TEXT if isinstance(one, str) else _BINARY for one in values]
        encoded = [*map(encode, values)]
        if self.driver.prepare_threshold is None:  # the driver's switch, for some proxies
            return self.driver.pgconn.exec_params(statement, encoded, param_formats=formats)
        if statement not in self.prepared:
            result = self.driver.pgconn.prepare(_name(statement), statement)
            if result.status != _DONE:
                return result
            self.prepared.add(statement)
        return self.driver.pgconn.exec_prepared(_name(statement), encoded, formats)

    def ask(self, statement: str, values: Given) -> list[tuple[Any, ...]]:
        is_prepared = self.driver.prepare_threshold is not None
        found = self.driver.execute(statement, values, prepare=is_prepared)
        rows: list[tuple[Any, ...]] = found.fetchall()
        return rows


def _name(statement: bytes) -> bytes:
    return b"qntx_%d" % (hash(statement) & 0xFFFFFFFF)


class Calls:
    """Calls procedures of one database, from any thread."""

    def __init__(
        self, engine: Engine, timeout_seconds: float, distrust: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._timeout_seconds = timeout_seconds
        # Lets the pool open each connection anew before its next use.
        self._distrust = distrust
        self._free = threading.Semaphore(CALLS_MAX)
        self._kept: deque[_Line] = deque()
        finalize(self, _close, self._kept)

    def call(self, statement: bytes, values: Sequence[Value]) -> list[str | None]:
        """Run a statement with its $1…, and return its one row as text.

        Raises what SQLAlchemy would.
        """
        with self._one_of_few():
            return self._run(_pop(self._kept) or self._connect(), statement, values)

    def ask(self, statement: str, values: Given) -> list[tuple[Any, ...]]:
        """Run a statement with the driver's %s or %(name)s, and return its rows as it gives them.

        Raises what SQLAlchemy would.
        """
        with self._one_of_few():
            line = _pop(self._kept) or self._connect()
            try:
                rows = line.ask(statement, values)
            except self._psycopg.Error as error:
                is_lost = line.driver.info.transaction_status != _IDLE
                if is_lost:
                    self._lose(line)
                else:
                    self._kept.append(line)
                raise self._named(error, statement, is_lost=is_lost) from error
            except BaseException:
                line.driver.close()  # whatever it was amid
                raise
            self._kept.append(line)
            return rows

    @contextmanager
    def _one_of_few(self) -> Iterator[None]:
        if not self._free.acquire(timeout=self._timeout_seconds):
            raise PoolTimeout
        try:
            yield
        finally:
            self._free.release()

    def forget(self) -> None:
        """Leave what is kept to the process that this one was forked from."""
        _OTHERS.extend(self._kept)
        self._kept.clear()
        self._free = threading.Semaphore(CALLS_MAX)

    def close(self) -> None:
        """Close what is kept; the next call opens anew."""
        _close(self._kept)

    def _connect(self) -> _Line:
        connection = self._engine.connect()
        driver: Any = connection.connection.driver_connection
        connection.detach()  # what is kept here must not be missing in the pool
        driver.autocommit = True
        if driver.info.encoding != "utf-8":
            driver.execute("SET client_encoding = 'UTF8'")
        return _Line(driver)

    def _run(self, line: _Line, statement: bytes, values: Sequence[Value]) -> list[str | None]:
        try:
            result = line.run(statement, values)
        except self._psycopg.Error as error:
            self._lose(line)
            raise self._named(error, statement.decode(), is_lost=True) from error
        except BaseException:
            line.driver.close()  # whatever it was amid
            raise
        is_lost = line.driver.info.transaction_status != _IDLE
        if is_lost:
            self._lose(line)
        else:
            self._kept.append(line)
        if result.status != _TUPLES:
            refusal = self._psycopg.errors.error_from_result(result)
            raise self._named(refusal, statement.decode(), is_lost=is_lost) from refusal
        row = (result.get_value(0, column) for column in range(result.nfields))
        return [None if one is None else one.decode() for one in row]

    @property
    def _psycopg(self) -> Any:  # noqa: ANN401 - the driver, an extra: whoever has a line has it
        return self._engine.dialect.loaded_dbapi

    def _lose(self, line: _Line) -> None:
        """Give up a line, and as SQLAlchemy does all others: they are not trusted either."""
        line.driver.close()
        self.close()
        self._distrust()

    def _named(self, error: Any, statement: str, *, is_lost: bool) -> BaseException:  # noqa: ANN401
        """Return an error of the driver's as SQLAlchemy raises it."""
        named: BaseException = DBAPIError.instance(
            statement,
            None,
            error,
            self._psycopg.Error,
            connection_invalidated=is_lost,
            dialect=self._engine.dialect,
        )
        return named


def run_within(connection: Connection, statement: bytes, values: Sequence[Value]) -> None:
    """Run a statement with its $1… in the transaction of a connection, in the lowest words.

    Raises what SQLAlchemy would.
    """
    driver: Any = connection.connection.driver_connection
    if driver.info.transaction_status == _IDLE:
        connection.execute(select(1))  # so that the driver begins one
    formats = [_TEXT if isinstance(one, str) else _BINARY for one in values]
    result = driver.pgconn.exec_params(statement, [*map(encode, values)], param_formats=formats)
    if result.status in (_DONE, _TUPLES):
        return
    dbapi: Any = connection.dialect.loaded_dbapi
    refusal = dbapi.errors.error_from_result(result)
    is_lost = driver.closed or driver.broken
    if is_lost:
        connection.invalidate(refusal)
    raise DBAPIError.instance(
        statement.decode(),
        None,
        refusal,
        dbapi.Error,
        connection_invalidated=is_lost,
        dialect=connection.dialect,
    ) from refusal


def _pop(kept: deque[_Line]) -> _Line | None:
    try:
        return kept.pop()
    except IndexError:
        return None


def _close(kept: deque[_Line]) -> None:
    while (line := _pop(kept)) is not None:
        line.driver.close()


def encode(value: Value) -> bytes:
    """Return a parameter in PostgreSQL's form: a text as it is, an array as binary."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return array("integer" if any(isinstance(one, int) for one in value) else "text", value)
