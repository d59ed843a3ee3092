"""A file's language is told by its name, the same for ever."""

import pytest

from domains.code.languages import commonest_language, language_of


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("main.go", "Go"),
        ("src/App.TSX", "TypeScript"),
        ("a.b/c.py", "Python"),
        ("README.md", None),
        ("package-lock.json", None),
        ("a.py/Makefile", None),
        (".py", None),
        ("py", None),
        ("", None),
    ],
)
def test_the_ending_tells_the_language(path: str, language: str | None) -> None:
    """What follows the last dot of the last part decides, in upper or lower case."""
    assert language_of(path) == language


def test_the_commonest_language_is_the_one_of_most_files() -> None:
    """Files in no programming language do not count; of equals, the first by name is taken."""
    assert commonest_language(["a.md", "b.md", "c.rs", "d.go", "e.go"]) == "Go"
    assert commonest_language(["c.rs", "d.go"]) == "Go"
    assert commonest_language(["a.md"]) is None
