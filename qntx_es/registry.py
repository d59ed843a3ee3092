"""The services of this host, as a domain's jobs are handed them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import ForeignDomain
from qntx_es.projections.handlers import ReadOnly
from qntx_es.projections.rows import RowMap
from qntx_es.projections.shape import Shape
from qntx_es.rows import ReadRows
from qntx_es.services import Logger, Store


class OwnTables:
    """A domain's read model, to be read and nothing else."""

    def __init__(self, domain: Domain, database: Database) -> None:
        self._domain = domain
        self._database = database

    @contextmanager
    def read(self) -> Iterator[ReadRows]:
        """Give the rows of one moment."""
        rows = RowMap(map(Shape, self._domain.tables.values()), lambda table: table)
        with self._database.snapshot() as connection:
            rows.connect = lambda _: connection
            yield ReadOnly(rows)


class Registry:
    """`ServiceRegistry` for one domain in this process."""

    def __init__(self, domain: Domain, database: Database, store: Store) -> None:
        self._domain = domain
        self.database = OwnTables(domain, database)
        self.store = store

    def logger(self, domain: str) -> Logger:
        """Return the domain's logger. Raises `ForeignDomain` for another's."""
        if domain != self._domain.name:
            raise ForeignDomain(f"domain `{self._domain.name}` may not log as `{domain}`")
        return logging.LoggerAdapter(logging.getLogger(f"qntx_es.domains.{domain}"), {})
