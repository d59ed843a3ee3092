"""What one source file is like: its lines, and the complexity of its functions.

Lines are counted here, for every language alike. Complexity is lizard's, which reads some thirty
languages without compiling them; it is imported when first needed, since it comes with an extra.
It parses whatever people wrote, and fails on some of it: then complexity is unknown.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from qntx_es import GiveUp

PEEK_BYTES = 8000
# A parser of unfinished code gets lost in its own structures, in one of these ways.
LIZARD_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)


class _Function(Protocol):
    cyclomatic_complexity: int


class _File(Protocol):
    function_list: list[_Function]


class _Analyzer(Protocol):
    def analyze_source_code(self, filename: str, code: str) -> _File: ...


class Lizard(Protocol):
    """The part of lizard that is used."""

    analyze_file: _Analyzer

    def get_reader_for(self, filename: str) -> object | None:
        """Return what reads a file of this name, if anything does."""


@dataclass(frozen=True, slots=True)
class Complexity:
    """Cyclomatic complexity, summed over so many functions."""

    total: int
    functions: int


def load_lizard() -> Lizard:
    """Import lizard, or give the job up with what to install."""
    # On import it puts two folders in front of sys.path, where their files would shadow others.
    path = list(sys.path)
    try:
        return cast("Lizard", import_module("lizard"))
    except ImportError:
        reason = "analysis needs an extra: pip install 'qntx-es[code]', then retry this job"
        raise GiveUp(reason) from None
    finally:
        sys.path[:] = path


def is_binary(content: bytes) -> bool:
    """Tell as git does: a file with a NUL near its beginning is no text."""
    return b"\0" in content[:PEEK_BYTES]


def count_lines(content: bytes) -> int:
    """Count the lines that are not blank."""
    return sum(1 for line in content.splitlines() if line.strip())


def complexity_of(path: str, content: bytes, lizard: Lizard) -> Complexity | None:
    """Sum the complexity of a file's functions; None where lizard does not read its language.

    Raises one of `LIZARD_FAILURES` where lizard does not understand the file.
    """
    if lizard.get_reader_for(path) is None:
        return None
    text = content.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    functions = lizard.analyze_file.analyze_source_code(path, text).function_list
    total = sum(function.cyclomatic_complexity for function in functions)
    return Complexity(total=total, functions=len(functions))
