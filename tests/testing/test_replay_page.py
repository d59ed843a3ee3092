"""The page that shows a stranger a replay test says what happens."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/replay-tests.md").read_text()
LINES_MAX = 40


def blocks(language: str) -> list[str]:
    """Return the blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def run(folder: Path, program: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment in a folder."""
    asked = [str(Path(sys.executable).with_name(program)), *command]
    return subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=False)


def test_the_page_goes_from_nothing_to_a_test_that_passes(tmp_path: Path) -> None:
    """The test fails in the words of the page, and passes once it is mended as the page says."""
    (written, mended), (told,) = blocks("python"), blocks("text")
    wrong = next(line for line in written.splitlines(keepends=True) if "datetime.now" in line)
    file = tmp_path / "test_orders.py"

    file.write_text(written)
    failing = run(tmp_path, "pytest", "-q")
    asked = run(tmp_path, "qntx-es", "domains", "exercise", "test_orders:orders")
    file.write_text(written.replace(wrong, mended))
    passing = run(tmp_path, "pytest", "-q")

    assert failing.returncode == asked.returncode == 1
    for line in told.splitlines():
        assert line in failing.stdout
        assert line.removeprefix("InconsistentReplay: ") in asked.stdout
    assert passing.returncode == 0, passing.stdout
    assert len(PAGE.splitlines()) <= LINES_MAX
