"""Lines are counted for every language alike; complexity is lizard's, where it has one."""

import sys

import pytest

from domains.code.measures import (
    LIZARD_FAILURES,
    Complexity,
    complexity_of,
    count_lines,
    is_binary,
    load_lizard,
)
from qntx_es import GiveUp

GO = b"package main\n\nfunc a(x int) bool {\n\tif x > 0 && x < 9 {\n\t\treturn true\n\t}\n}\n"
PYTHON = b"def a(x):\n    return 1 if x else 0\n\n\ndef b():\n    pass\n"


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", 0),
        (b"\n \n\t\n", 0),
        (b"one", 1),
        (b"one\r\ntwo\rthree\n\n", 3),
        (b"caf\xe9\n", 1),
    ],
)
def test_lines_that_are_not_blank_are_counted(content: bytes, lines: int) -> None:
    """Whatever ends a line, and in any encoding, lines with something on them count."""
    assert count_lines(content) == lines


def test_a_file_with_a_nul_in_front_is_binary() -> None:
    """What git would call binary is not read as code."""
    assert is_binary(b"MZ\0")
    assert not is_binary(b"")
    assert not is_binary(b"a" * 8000 + b"\0")


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("main.go", GO, Complexity(total=3, functions=1)),
        ("a.py", PYTHON, Complexity(total=3, functions=2)),
        ("a.py", b"\xef\xbb\xbf" + PYTHON.replace(b"\n", b"\r\n"), Complexity(3, 2)),
        ("a.py", b"", Complexity(0, 0)),
        ("a.py", b"caf\xe9 = 1\n", Complexity(0, 0)),
        ("a.css", b"a { b: c }\n", None),
    ],
)
def test_complexity_is_summed_over_functions(
    path: str, content: bytes, expected: Complexity | None
) -> None:
    """The complexity of a file is that of its functions; None where nobody can tell."""
    assert complexity_of(path, content, load_lizard()) == expected


def test_a_missing_lizard_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the job is given up with the command that installs it."""
    monkeypatch.setitem(sys.modules, "lizard", None)
    with pytest.raises(GiveUp, match=r"pip install 'qntx-es\[code\]'"):
        load_lizard()


def test_importing_lizard_leaves_the_import_path_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that analyses once imports afterwards from where it did before."""
    monkeypatch.delitem(sys.modules, "lizard", raising=False)
    before = list(sys.path)
    load_lizard()
    assert sys.path == before


def test_a_file_that_lizard_does_not_understand_is_a_known_failure() -> None:
    """How a parser fails on unfinished code is among the failures the job expects."""
    assert issubclass(RecursionError, LIZARD_FAILURES)
    assert issubclass(IndexError, LIZARD_FAILURES)
    assert not issubclass(OSError, LIZARD_FAILURES)
