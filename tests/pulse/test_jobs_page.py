"""The page about jobs shows what runs."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/jobs.md").read_text()


def test_the_example_of_the_page_prints_what_it_says(tmp_path: Path) -> None:
    """Run as it stands, the example prints the two lines below it."""
    (written,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    (printed,) = re.findall(r"^```text\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "jobs.py").write_text(written)

    ran = subprocess.run(
        [sys.executable, "jobs.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (ran.returncode, ran.stdout) == (0, printed), ran.stderr
