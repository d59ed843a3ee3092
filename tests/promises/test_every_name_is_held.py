"""What the order of the log and the projections have to stand is tried, each by its name.

A name without a test would be a promise that nobody keeps; the markers are read from the sources,
so that asking costs no collection of the whole suite.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]


def marked(source: str) -> Iterator[str]:
    """Yield the names of the markers that are on the tests of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for decorator in node.decorator_list:
                said = ast.unparse(decorator)
                if said.startswith("pytest.mark."):
                    yield said.removeprefix("pytest.mark.")


def test_every_name_has_a_test(names: dict[str, str]) -> None:
    """Each name that a marker may have is on a test."""
    held = {name for path in TESTS.rglob("test_*.py") for name in marked(path.read_text())}

    assert set(names) <= held
