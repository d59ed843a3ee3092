"""A caller's own transaction: found in what he hands in, joined, and otherwise left alone.

It is his: never committed, rolled back, flushed or retried here. Whatever is refused leaves nothing
of ours in it, and it can go on.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, Union
from weakref import WeakSet

from sqlalchemy import Connection, event, inspect, select
from sqlalchemy.exc import UnboundExecutionError

from qntx_es.database import Database
from qntx_es.errors import OtherDatabase
from qntx_es.tables import attestations, epochs

if TYPE_CHECKING:  # slow, and imported by whoever has a session to hand in
    from sqlalchemy.orm import Session, SessionTransaction, scoped_session

AnySession: TypeAlias = Union["Session", "scoped_session[Any]", Connection]
_HINTS = "qntx_hints"
_COMMITTED = "qntx_committed"


def connection_of(session: AnySession) -> Connection:
    """Return the connection that a session would use, in its transaction, without a flush."""
    if isinstance(session, Connection):
        return session
    if not _is_of_the_orm(session):
        raise OtherDatabase(
            f"session is a {type(session).__name__}: hand in a Session or a Connection, "
            "and their async kin to qntx_es.aio"
        )
    try:
        return session.connection(bind_arguments={"clause": attestations})
    except UnboundExecutionError as error:
        raise OtherDatabase(f"this session has no bind for the log: {error}") from error


def _is_of_the_orm(session: object) -> bool:
    from sqlalchemy.orm import Session, scoped_session  # noqa: PLC0415 - as above

    return isinstance(session, Session | scoped_session)


class Kinship:
    """Knows which engines lead to the log of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kin: WeakSet[Any] = WeakSet()

    def check(self, connection: Connection) -> None:
        """Raise `OtherDatabase` unless the connection sees this very log."""
        if connection.engine.pool is self._database.engine.pool or connection.engine in self._kin:
            return
        if connection.dialect.name != self._database.engine.dialect.name:
            raise OtherDatabase
        # Asked first: to miss a table would end the caller's transaction on PostgreSQL.
        if not inspect(connection).has_table(epochs.name):
            raise OtherDatabase
        asked = select(epochs.c.epoch)
        with self._database.read() as ours:
            epoch = ours.execute(asked).scalar_one()
        if connection.execute(asked).scalar_one() != epoch:
            raise OtherDatabase
        self._kin.add(connection.engine)


@contextmanager
def whole(connection: Connection) -> Iterator[None]:
    """Let what is done in the block be undone as a whole, in whatever transaction there is."""
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "postgresql" and driver.autocommit:
        connection.exec_driver_sql("BEGIN")
        try:
            yield
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")
        return
    with connection.begin_nested():
        yield


def after_commit(session: AnySession, hint: Callable[[], object]) -> None:
    """Call `hint` after the session's next commit, in a thread where the caller has a loop.

    A Connection has no such event.
    """
    if isinstance(session, Connection):
        return
    found = session() if callable(session) else session  # a registry of sessions gives its own
    if _HINTS not in found.info:
        found.info[_HINTS] = []
        event.listen(found, "after_commit", _committed)
        event.listen(found, "after_transaction_end", _ended)
    if hint not in found.info[_HINTS]:
        found.info[_HINTS].append(hint)


def _committed(session: "Session") -> None:
    if not session.in_nested_transaction():  # a savepoint that is released is no commit
        session.info[_COMMITTED] = True


def _ended(session: "Session", transaction: "SessionTransaction") -> None:
    # Not before the session has given its connection back: as many commits at once as a pool has
    # connections would wait for each other.
    if transaction.parent is not None or not session.info.pop(_COMMITTED, False):
        return
    hints, session.info[_HINTS] = session.info[_HINTS], []
    if session.get_bind(clause=attestations).dialect.is_async:
        from asyncio import get_running_loop  # noqa: PLC0415 - as above

        get_running_loop().run_in_executor(None, _hint, hints)
    else:
        _hint(hints)


def _hint(hints: Iterable[Callable[[], object]]) -> None:
    for hint in hints:
        hint()
