"""A connection that reads until somebody has to write, and then writes, all in one transaction.

Whoever writes holds others up: on SQLite everybody, on PostgreSQL whoever wants the same rows. So
nothing is locked while handlers run, unless one of them writes by its own SQL.
"""

from collections.abc import Callable
from contextlib import ExitStack

from sqlalchemy import Connection

from qntx_es.database import Database


class Transaction:
    """What `RowMap.connect` asks for connections; it ends with the stack.

    `first` is what a write transaction begins with, and has to be known before one is opened.
    """

    def __init__(self, database: Database, stack: ExitStack) -> None:
        self._database = database
        self._stack = stack
        self._reading = ExitStack()
        self._connection: Connection | None = None
        self.is_writing = False
        self.first: Callable[[Connection], object] = _nothing_to_begin_with
        stack.push(self._reading)

    def __call__(self, write: bool) -> Connection:  # noqa: FBT001 - the shape of RowMap.connect
        """Return the connection, in a write transaction from the first time that is asked for."""
        if self._connection is not None and (self.is_writing or not write):
            return self._connection
        if write:
            self._reading.close()
            self._connection = self._stack.enter_context(self._database.write())
            self.is_writing = True
            self.first(self._connection)
        else:
            # On PostgreSQL each statement is of its own moment anyway; to begin a transaction, and
            # to roll it back, would be two more ways there and back before rows are visible.
            database = self._database
            reading = database.read() if database.is_sqlite else database.alone()
            self._connection = self._reading.enter_context(reading)
        return self._connection


def _nothing_to_begin_with(_: Connection) -> None:
    message = "nothing is written before it is known what a write begins with"
    raise RuntimeError(message)
