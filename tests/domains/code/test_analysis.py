"""An analysis reads what git tracks and nothing else, and says the same of the same tree."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domains.code.analysis import (
    FILE_BYTES_MAX,
    FILES_STATED_MAX,
    SourceFile,
    most_complex,
    source_files,
    summary,
)
from domains.code.git import find_repository
from domains.code.measures import Complexity, load_lizard
from domains.code.payloads import RepositoryAnalyzed

Git = Callable[..., str]
LOG = logging.getLogger("test")
FUNCTION = "def f(x):\n    return 1 if x else 0\n"


def measured(folder: Path) -> dict[bytes, SourceFile]:
    """Measure the source files of a repository, by path."""
    sources = source_files(find_repository(folder), load_lizard(), LOG)
    return {source.path: source for source in sources}


def test_only_tracked_source_files_are_measured(project: Path, commit: Git) -> None:
    """Prose, data, binaries, huge files, links and what git ignores are not source."""
    commit(
        project,
        {
            "a.py": FUNCTION,
            "data.json": "{}",
            "binary.py": b"\0",
            "huge.py": b"#" * (FILE_BYTES_MAX + 1),
        },
    )
    (project / "link.py").symlink_to("a.py")
    commit(project, {})
    (project / "untracked.py").write_text(FUNCTION)
    assert list(measured(project)) == [b"a.py", b"main.go"]


def test_a_link_does_not_lead_out_of_the_repository(
    project: Path, tmp_path: Path, commit: Git
) -> None:
    """A folder that was replaced by a link to elsewhere is not followed."""
    commit(project, {"inside/a.py": FUNCTION})
    (project / "inside").rename(tmp_path / "outside")
    (project / "inside").symlink_to(tmp_path / "outside")
    assert b"inside/a.py" not in measured(project)


def test_what_is_not_there_or_no_file_is_passed_over(project: Path, commit: Git) -> None:
    """A tracked file that was deleted, or became a pipe or a folder, does not stop an analysis."""
    commit(project, {"gone.py": FUNCTION, "pipe.py": FUNCTION, "folder.py": FUNCTION})
    for name in ("gone.py", "pipe.py", "folder.py"):
        (project / name).unlink()
    os.mkfifo(project / "pipe.py")
    (project / "folder.py").mkdir()
    assert list(measured(project)) == [b"main.go"]


def test_files_are_measured_in_the_order_of_their_paths(project: Path, commit: Git) -> None:
    """Two analyses of one tree name its files in one order, that of their bytes."""
    commit(project, {"b.py": "", "a/z.py": "", "a.py": "", b"\xe9.py": "", "é.py": ""})
    paths = list(measured(project))
    assert paths == sorted(paths)
    assert len(paths) == 6


def test_a_file_that_lizard_fails_on_still_counts(
    project: Path, commit: Git, caplog: pytest.LogCaptureFixture
) -> None:
    """Where lizard fails, the lines count, the complexity is unknown, and a line of log says so."""

    class Failing:
        analyze_file = property(lambda _: [].pop())

        def get_reader_for(self, filename: str) -> object:
            return filename

    commit(project, {"a.py": FUNCTION})
    lizard = Failing()
    with caplog.at_level(logging.WARNING):
        sources = list(source_files(find_repository(project), lizard, LOG))
    assert [(source.loc, source.complexity) for source in sources] == [(2, None), (2, None)]
    assert "complexity of a.py is unknown: lizard failed (IndexError" in caplog.text


def source(path: str, total: int | None = None, functions: int = 1) -> SourceFile:
    """Return a source file of three lines."""
    complexity = None if total is None else Complexity(total, functions)
    return SourceFile(path=path.encode(), language="Go", loc=3, complexity=complexity)


def test_a_repository_has_the_mean_complexity_of_its_functions() -> None:
    """Files and lines are summed; complexity is the mean over functions, in hundredths."""
    sources = [source("a", 7, 2), source("b", 3, 1), source("c")]
    assert summary(sources) == RepositoryAnalyzed(files=3, loc=9, complexity=3.33)
    assert summary([]) == RepositoryAnalyzed(files=0, loc=0, complexity=0.0)


def test_of_too_many_files_the_most_complex_are_stated() -> None:
    """What one append cannot hold is cut by complexity, and still told in the order of paths."""
    sources = [source(f"{number:05}", number % 100) for number in range(FILES_STATED_MAX + 90)]
    stated = most_complex(sources)
    assert len(stated) == FILES_STATED_MAX
    assert stated == sorted(stated, key=lambda one: one.path)
    left_out = {one.path for one in sources} - {one.path for one in stated}
    assert all(int(path) % 100 == 0 for path in left_out)
    assert most_complex(sources[:5]) == sources[:5]
