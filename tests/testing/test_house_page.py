"""The page that shows a test of several domains shows one that runs."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/house-tests.md").read_text()


def test_the_test_of_the_page_passes(tmp_path: Path) -> None:
    """Written to a file as it stands, the example is collected and passes."""
    (written,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "test_house.py").write_text(written)

    asked = [str(Path(sys.executable).with_name("pytest")), "-q"]
    ran = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout
