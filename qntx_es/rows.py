"""What a handler sees of its read model.

`project` is handed `Rows` and `derive` is handed `ReadRows`: what a handler may do is what it was
handed, and the type checker holds it to that. Rows are found by key; a row once read is frozen, so
that nothing changes a read model but the four verbs here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import Delete, Insert, SelectBase, Table, Update


class Row(Mapping[str, Any]):
    """One row of a read model, frozen: `row.commits`, or `row["commits"]`."""

    __slots__ = ("_show", "_values")

    def __init__(self, values: Mapping[str, Any], show: Mapping[str, Callable[[Any], Any]]) -> None:
        object.__setattr__(self, "_values", dict(values))
        object.__setattr__(self, "_show", show)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the column decides
        try:
            return self[name]
        except KeyError:
            message = f"no column {name!r}; there are {', '.join(self._values)}"
            raise AttributeError(message) from None

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - the column decides
        value = self._values[name]
        show = self._show.get(name)
        return value if show is None or value is None else show(value)

    def __setattr__(self, name: str, value: object) -> None:
        message = f"a row is frozen: rows.put(table, {name}=…) changes it"
        raise AttributeError(message)

    def __iter__(self) -> Any:  # noqa: ANN401 - an iterator of names
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        columns = ", ".join(f"{name}={self[name]!r}" for name in self)
        return f"Row({columns})"


class ReadRows(Protocol):
    """A domain's own tables, as of the attestation in hand; nothing can be written."""

    def get(self, table: Table, *key: object) -> Row | None:
        """Return the row of this key, or None. Raises `ForeignTable` for another domain's table."""
        ...

    def select(self, statement: SelectBase) -> Sequence[Any]:
        """Return the rows of a Core statement over the domain's own tables."""
        ...


class Rows(ReadRows, Protocol):
    """A domain's own tables, to be written: the batch commits what is said here, or none of it."""

    def put(self, table: Table, /, **columns: object) -> None:
        """Set columns of the row of this key, making it if there is none; others stay as they are.

        Raises `InvalidRow` for an unknown or a missing column, `LossyValue` for a value that would
        come back as another one.
        """
        ...

    def add(self, table: Table, /, *key: object, **amounts: float) -> None:
        """Add to columns of the row of this key; a missing row, or NULL, counts as the default.

        Raises as `put` does.
        """
        ...

    def delete(self, table: Table, *key: object) -> None:
        """Remove the row of this key, if there is one."""
        ...

    def execute(self, statement: Insert | Update | Delete) -> int:
        """Run a Core statement that writes the domain's own tables; return how many rows it met.

        What was put so far is flushed first; what it wrote is read anew.
        """
        ...
