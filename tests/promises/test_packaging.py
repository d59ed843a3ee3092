"""What is installed is what was written: wheel, sdist and editable install alike.

The built-in domains and the framework's migrations lie beside the package in the checkout and
inside it in the wheel, so an import that works here proves little about a user's machine.
"""

import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

CHECKOUT = Path(__file__).parents[2]

# None of the checkout is on the path of these: they run elsewhere, with -I.
INSTALLED = """
import qntx_es, qntx_es._domains.code, code, alembic
from pathlib import Path
home = Path(qntx_es.__file__).parent
assert home.parent.name == "site-packages", home
assert (home / "py.typed").exists()
assert (home / "_alembic" / "env.py").exists()
assert list((home / "_alembic" / "versions").glob("*.py"))
assert code.InteractiveConsole
assert alembic.__version__
"""

EDITABLE = """
import sys
import qntx_es, domains.code, code, alembic
from pathlib import Path
checkout = Path(sys.argv[1])
assert Path(qntx_es.__file__).is_relative_to(checkout / "qntx_es")
assert Path(domains.code.__file__).is_relative_to(checkout / "domains")
assert code.InteractiveConsole
assert alembic.__version__
"""

UPGRADED = """
from qntx_es.database import Database
database = Database("sqlite:///qntx.db")
database.upgrade()
database.check()
database.close()
"""


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in `folder` and return what it said; fail with that if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def fresh_environment(folder: Path) -> Path:
    """Make an environment with our dependencies but without qntx-es; return its `bin`."""
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    # A path file in a folder on the path is not read: our own editable install stays unseen.
    ours = [entry for entry in sys.path if entry.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(ours))
    return folder / "bin"


def install(programs: Path, *what: str | Path) -> None:
    """Install without asking an index for anything."""
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    run(*pip, "install", *options, *what, folder=programs)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, as a packager does."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "-o", folder, CHECKOUT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """Return the wheel that came from the sdist."""
    return next(built.glob("*.whl"))


def test_an_installed_wheel_is_complete(wheel: Path, tmp_path: Path) -> None:
    """The wheel brings package, domains, migrations, types and command, outside the checkout."""
    programs = fresh_environment(tmp_path / "venv")
    install(programs, wheel)

    run(programs / "python", "-I", "-c", INSTALLED, folder=tmp_path)
    assert "projections" in run(programs / "qntx-es", "--help", folder=tmp_path)


def test_an_installed_wheel_makes_its_tables(wheel: Path, tmp_path: Path) -> None:
    """The migrations in the wheel are found and run where there is no checkout."""
    programs = fresh_environment(tmp_path / "venv")
    install(programs, wheel)

    run(programs / "python", "-I", "-c", UPGRADED, folder=tmp_path)


def test_a_wheel_from_the_sdist_is_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Nothing is lost on the way through the sdist."""
    direct = ("--wheel", "--no-isolation", "-o", tmp_path)
    run(sys.executable, "-m", "build", *direct, CHECKOUT, folder=tmp_path)

    with ZipFile(wheel) as through, ZipFile(next(tmp_path.glob("*.whl"))) as straight:
        assert through.namelist() == straight.namelist()


def test_the_wheel_takes_no_foreign_names(wheel: Path) -> None:
    """`alembic` and `domains` are not ours to install at the top level."""
    with ZipFile(wheel) as files:
        top = {name.split("/")[0] for name in files.namelist()}

    assert {name for name in top if not name.endswith(".dist-info")} == {"qntx_es"}


def test_the_index_shows_the_readme(wheel: Path) -> None:
    """The README is the page that a stranger sees first."""
    with ZipFile(wheel) as files:
        metadata = next(name for name in files.namelist() if name.endswith("/METADATA"))

        assert "Description-Content-Type: text/markdown" in files.read(metadata).decode()


def test_an_editable_install_shadows_nothing(tmp_path: Path) -> None:
    """The checkout on the path gives `domains`, and leaves `code` and `alembic` to their owners."""
    programs = fresh_environment(tmp_path / "venv")
    install(programs, "--editable", CHECKOUT)

    run(programs / "python", "-I", "-c", EDITABLE, CHECKOUT, folder=tmp_path)
    installed = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    assert not (installed / "qntx_es").exists()


def test_the_core_imports_without_extras() -> None:
    """Every extra may be absent: the core and the command still import."""
    extras = ("psycopg", "lizard", "prometheus_client", "hypothesis", "pytest")
    absent = f"import sys; sys.modules.update(dict.fromkeys({extras}))"

    run(sys.executable, "-c", f"{absent}; import qntx_es, qntx_es.cli", folder=CHECKOUT)
