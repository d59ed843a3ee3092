"""A module imports only from floors below, without exception, and the linter would notice."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def lint_imports(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Check the imports of the tree in `folder`, which comes first on the linter's path."""
    linter = Path(sys.executable).with_name("lint-imports")
    command = [str(linter), "--no-cache", "--no-logo", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy what the linter reads, to be spoilt."""
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    for package in ("domains", "qntx_es"):
        shutil.copytree(CHECKOUT / package, tmp_path / package)
    return tmp_path


def test_every_floor_stands_on_those_below() -> None:
    """Every contract in pyproject.toml is kept."""
    checked = lint_imports(CHECKOUT)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_domain_can_be_deleted(copy: Path) -> None:
    """No contract names a domain: with one alone, all are still kept."""
    domains = sorted(folder.parent for folder in copy.glob("domains/*/__init__.py"))
    for domain in domains[1:]:
        shutil.rmtree(domain)

    checked = lint_imports(copy)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("contract", "module", "line"),
    [
        pytest.param("floors", "qntx_es/errors.py", "import qntx_es.log", id="upwards"),
        pytest.param("floors", "qntx_es/errors.py", "import qntx_es.faults", id="sideways"),
        pytest.param("floors", "qntx_es/unheard_of.py", "", id="on no floor"),
        ("framework-first", "qntx_es/log.py", "import domains.code"),
        ("one-folder-for-eventsourcing", "qntx_es/log.py", "import eventsourcing.persistence"),
        ("one-folder-for-grpc", "qntx_es/log.py", "from grpc import Channel"),
        ("domains-apart", "domains/code/__init__.py", "import domains.other"),
        ("public-door", "domains/code/__init__.py", "from qntx_es import log"),
        ("domains-no-database", "domains/code/__init__.py", "import sqlite3"),
    ],
)
def test_what_is_forbidden_is_found(copy: Path, contract: str, module: str, line: str) -> None:
    """An import that breaks a contract is refused by that contract."""
    other = copy / "domains" / "other"
    other.mkdir()
    (other / "__init__.py").touch()
    with (copy / module).open("a") as spoilt:
        spoilt.write(f"\n{line}\n")

    checked = lint_imports(copy, "--contract", contract)

    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert "0 kept, 1 broken" in checked.stdout, checked.stdout + checked.stderr
