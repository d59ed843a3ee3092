"""The query: which attestations of the log are meant."""

from datetime import datetime

from qntx_es.ax.keys import KEY_CHARACTERS, Keys, checked_path, keys_of
from qntx_es.ax.payload import holds_of_text
from qntx_es.ax.query import Ax, Glob
from qntx_es.ax.sql import Span, search
from qntx_es.ax.where import All, Compare, Contains, Exists, Not, OneOf, Some, Where

__all__ = [
    "KEY_CHARACTERS",
    "All",
    "Ax",
    "Compare",
    "Contains",
    "Exists",
    "Glob",
    "Keys",
    "Not",
    "OneOf",
    "Some",
    "Span",
    "Where",
    "checked_path",
    "holds_of_text",
    "keys_of",
    "parse",
    "search",
]


def parse(text: str, *, as_of: datetime | None = None) -> Ax:
    """Return the query that a text means, its times relative to `as_of`, else to now.

    Raises `AxSyntaxError` with the column, `AxTooComplex`, or another `AxError`.
    """
    from qntx_es.ax.text import parse as parsed  # noqa: PLC0415 - slow, and few ever read a query

    return parsed(text, as_of=as_of)
