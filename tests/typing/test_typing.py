"""Both checkers accept what an author writes, and refuse a handler paired with a wrong payload."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
MARK = "# refused"


def tool(name: str) -> str:
    """Return a program of this environment."""
    return str(Path(sys.executable).with_name(name))


def mypy(module: Path, folder: Path) -> set[int]:
    """Return the lines in which mypy, as strict as our own, finds an error."""
    command = [
        tool("mypy"), "--strict", "--no-error-summary", "--hide-error-context",
        "--enable-error-code", "redundant-expr", "--cache-dir", str(CHECKOUT / ".mypy_cache"),
        "--config-file", str(CHECKOUT / "pyproject.toml"), str(module),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return {
        int(line.split(":")[1])
        for line in done.stdout.splitlines()
        if ": error:" in line and module.name in line.split(":")[0]
    }


def pyright(module: Path, folder: Path) -> set[int]:
    """Return the lines in which pyright finds an error."""
    (folder / "pyrightconfig.json").write_text(
        json.dumps(
            {
                "include": [str(module)],
                "extraPaths": [str(CHECKOUT)],
                "pythonVersion": "3.11",
                "typeCheckingMode": "standard",
                "enableTypeIgnoreComments": False,
            }
        )
    )
    command = [tool("pyright"), "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}


@pytest.mark.parametrize("checker", [mypy, pyright], ids=["mypy", "pyright"])
def test_a_checker_accepts_what_is_right_and_refuses_what_is_marked(
    checker: Callable[[Path, Path], set[int]], tmp_path: Path
) -> None:
    """The accepted module has no error; the refused one has errors on just the marked lines."""
    for name in ("accepted.py", "refused.py"):
        module = tmp_path / name
        # The mark is no comment that a checker knows, and the copy no module that ours check.
        shutil.copy(HERE / name.replace("refused.py", "refused.py.txt"), module)
        marked = {
            number
            for number, line in enumerate(module.read_text().splitlines(), 1)
            if line.endswith(MARK)
        }

        found = checker(module, tmp_path)

        assert around(found, module) == marked


def around(lines: set[int], module: Path) -> set[int]:
    """Count an error at a function as one at its decorator, where the other checker has it."""
    text = ["", *module.read_text().splitlines()]
    return {
        line - 1
        if text[line].startswith(("def ", "async def ")) and text[line - 1].endswith(MARK)
        else line
        for line in lines
    }
