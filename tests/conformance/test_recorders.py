"""The library's own test cases for recorders, as anybody can hold his own recorders to them."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from eventsourcing.utils import Environment

from qntx_es.recorders import Factory
from qntx_es.testing import exercise_recorders
from qntx_es.testing.bench import postgres_server


def factory_on(url: str) -> Factory:
    """Make the factory of an application on a database."""
    return Factory(Environment(env={"QNTX_DATABASE_URL": url}))


@contextmanager
def factory_on_sqlite() -> Iterator[Factory]:
    """Make a factory on a file."""
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'log.db'}"
        with closing(factory_on(url)) as factory:
            yield factory


@contextmanager
def factory_on_postgresql() -> Iterator[Factory]:
    """Make a factory on the one server of this process."""
    server = postgres_server()
    url = server.create_database()
    with closing(factory_on(url)) as factory:
        yield factory
    server.drop_database(url)


TestRecordersInMemory = exercise_recorders(lambda: factory_on("sqlite://"))
TestRecordersOnSQLite = exercise_recorders(factory_on_sqlite)
TestRecordersOnPostgreSQL = exercise_recorders(factory_on_postgresql)
