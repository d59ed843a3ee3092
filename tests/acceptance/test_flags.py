"""What every command has in common: its flags, its settings, and how it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

from qntx_es import Host

Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]
Opened: TypeAlias = Callable[..., Host]

COMMANDS = (
    "append",
    "ax",
    "db",
    "demo",
    "domains",
    "export",
    "import",
    "jobs",
    "projections",
    "run",
)
BOXES = "─│┌└━╭╰"


def test_help_and_version_need_nothing(each: Each, tmp_path: Path) -> None:
    """Without a database or a configuration, help names every command, and the version is told."""
    helped, versioned = each(("--help",), ("--version",))

    assert helped.returncode == versioned.returncode == 0
    listed = {line.split()[0] for line in helped.stdout.splitlines() if line.startswith("  ")}
    assert listed >= set(COMMANDS)
    assert not set(helped.stdout) & set(BOXES)
    assert versioned.stdout.startswith("qntx-es 0.")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_meant_is_refused_and_nothing_is_done(each: Each, tmp_path: Path) -> None:
    """A line that cannot be meant ends with 2 and says why, and leaves no trace."""
    said = ("append", "order_placed", "a", "--payload")
    refused = {
        ("projections", "lst"): "No such command 'lst'. Did you mean 'list'?",
        ("ax", "--since", "yesterday"): "`yesterday` is no time; for example 2026-01-04",
        ("projections", "rebuild"): "name projectors, or say --all",
        (*said, "{"): "the payload is not JSON: ",
        (*said, "@nowhere"): "nowhere cannot be read: No such file",
        ("--domains", "shoop", "jobs", "list"): "no domain `shoop`",
    }

    for arguments, finished in zip(refused, each(*refused), strict=True):
        assert finished.returncode == 2, arguments
        assert refused[arguments] in finished.stderr.replace("\n", " "), finished.stderr
        assert "Traceback" not in finished.stderr
        assert finished.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_flags_work_before_and_behind_the_command(
    each: Each, opened: Opened, sqlite_url: str
) -> None:
    """Flags mean the same at every level of the line, and the last one counts."""
    opened(sqlite_url)
    elsewhere = ("--database", "sqlite:///nowhere.db")
    flags = ("--database", sqlite_url, "--domains", "shop", "--json")

    finished = each(
        ("jobs", *flags, "list"),
        (*elsewhere, "jobs", "list", *flags),
    )

    for one in finished:
        assert (one.returncode, one.stderr) == (0, "")
        assert json.loads(one.stdout) == []


def test_settings_come_from_flag_variable_and_file(
    each: Each, opened: Opened, tmp_path: Path
) -> None:
    """A flag wins over a variable, a variable over the file; an unknown setting is refused."""
    for name in ("file", "variable", "flag"):
        opened(f"sqlite:///{tmp_path / name}.db")
    (tmp_path / "qntx.toml").write_text('[database]\nurl = "sqlite:///file.db"\n')
    (tmp_path / "other.toml").write_text('[domains]\nenable = ["shop"]\n')

    by_file, refused = each(("db", "check"), ("--config", "other.toml", "domains"))
    by_variable, by_flag = each(
        ("db", "check"),
        ("db", "check", "--database", "sqlite:///flag.db"),
        QNTX_DATABASE_URL="sqlite:///variable.db",
    )

    assert by_file.stdout.startswith("sqlite:///file.db: ")
    assert by_variable.stdout.startswith("sqlite:///variable.db: ")
    assert by_flag.stdout.startswith("sqlite:///flag.db: ")
    assert refused.returncode == 2
    assert refused.stderr == (
        "qntx-es: other.toml: no setting `domains.enable`; did you mean `domains.enabled`?\n"
    )
