"""The query: which attestations of the log are meant."""

from qntx_es.ax.payload import holds_of_text
from qntx_es.ax.query import Ax, Glob
from qntx_es.ax.sql import conditions
from qntx_es.ax.text import parse
from qntx_es.ax.where import All, Compare, Contains, Exists, Not, OneOf, Some, Where

__all__ = [
    "All",
    "Ax",
    "Compare",
    "Contains",
    "Exists",
    "Glob",
    "Not",
    "OneOf",
    "Some",
    "Where",
    "conditions",
    "holds_of_text",
    "parse",
]
