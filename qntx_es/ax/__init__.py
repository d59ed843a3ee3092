"""The query: which attestations of the log are meant."""

from qntx_es.ax.query import Ax
from qntx_es.ax.sql import conditions

__all__ = ["Ax", "conditions"]
