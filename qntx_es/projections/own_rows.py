"""The rows of a domain whose entities are independent: what is said about one concerns its own.

Ranges of entities are projected by themselves, each at its own pace, so a row of another entity may
stand anywhere. Reading it, or setting it, would tell how the domain is cut. Only adding does not:
amounts come together in any order. This is checked of every domain that is `by_entity`, cut or not,
so that nobody learns of it on the day of the first cut.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sqlalchemy import Delete, Insert, SelectBase, Table, Update

from qntx_es.domain import Domain
from qntx_es.errors import ForeignRow
from qntx_es.projections.rows import RowMap
from qntx_es.projections.shape import Key, Shape
from qntx_es.rows import Row

# A key column of this name holds the entity; without one, any that is equal to it does.
ENTITY = "entity"


def row_map(domain: Domain, physical: Callable[[Table], Table]) -> RowMap:
    """Return the rows that the handlers of a domain are handed."""
    shapes = [Shape(table) for table in domain.tables.values()]
    return OwnRows(shapes, physical) if domain.by_entity else RowMap(shapes, physical)


class OwnRows(RowMap):
    """Rows of the entity in hand, and what is added to others. Raises `ForeignRow`."""

    is_by_entity = True

    def get(self, table: Table, *key: object) -> Row | None:
        """Return a row of the entity in hand."""
        self._refuse_foreign("read", table, key)
        return super().get(table, *key)

    def put(self, table: Table, /, **columns: object) -> None:
        """Set columns of a row of the entity in hand."""
        key = tuple(columns.get(name) for name in self._map(table).shape.key)
        self._refuse_foreign("set", table, key)
        super().put(table, **columns)

    def add(self, table: Table, /, *key: object, **amounts: float) -> None:
        """Add to columns of any row; of another entity's, what needs no reading."""
        if not self._is_own(table, key):
            rows = self._map(table)
            plan = rows.adds.get(tuple(amounts)) or rows.add_plan(tuple(amounts))
            if not plan.is_blind or any(not by >= 0 for by in amounts.values()):
                self._refuse_foreign("take from", table, key)
            # Somebody else may have added meanwhile: it is added to whatever stands there.
            rows.known.pop(rows.key_of(key), None)
        super().add(table, *key, **amounts)

    def delete(self, table: Table, *key: object) -> None:
        """Remove a row of the entity in hand."""
        self._refuse_foreign("delete", table, key)
        super().delete(table, *key)

    def select(self, statement: SelectBase) -> Sequence[Any]:
        """Refuse SQL, which sees all entities."""
        self._refuse_sql(statement)

    def execute(self, statement: Insert | Update | Delete) -> int:
        """Refuse SQL, which reaches all entities."""
        self._refuse_sql(statement)

    def _refuse_foreign(self, verb: str, table: Table, key: Key) -> None:
        if not self._is_own(table, key):
            raise ForeignRow(
                f"a handler for `{self.entity}` may not {verb} the row {key} of {table.name}: in a "
                "domain with by_entity=True it may only add to it, whole amounts that are not "
                "negative"
            )

    def _is_own(self, table: Table, key: Key) -> bool:
        names = self._map(table).shape.key
        if ENTITY in names:
            return len(key) == len(names) and key[names.index(ENTITY)] == self.entity
        return self.entity in key

    @staticmethod
    def _refuse_sql(statement: object) -> NoReturn:
        kind = type(statement).__name__.lower()
        raise ForeignRow(
            f"a domain with by_entity=True runs no {kind}, which would see the rows of all entities"
        )
