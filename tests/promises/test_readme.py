"""The README is true: its code runs, word for word, and what it names is there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_code_of_the_readme_runs(tmp_path: Path) -> None:
    """Every Python block of the README runs, in order, in a folder of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks))

    ran = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert len(blocks) >= 2
    assert ran.returncode == 0, ran.stderr


def test_the_readme_links_to_what_is_there() -> None:
    """Every relative link of the README leads to a file or folder."""
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_names_targets_that_make_knows() -> None:
    """Every `make` target of the README is in the Makefile."""
    targets = set(re.findall(r"(?:^    |`)make ([\w-]+)", README, re.MULTILINE))
    known = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {"demo", "test"} <= targets
    assert targets <= known
