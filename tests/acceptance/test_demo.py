"""`qntx-es demo`: the whole loop on a real repository, twice."""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import pytest
from sqlalchemy import func, select, table

from qntx_es import Host

Qntx: TypeAlias = Callable[..., CompletedProcess[str]]
Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]
Terminal: TypeAlias = Callable[..., tuple[int, str]]

AT = "2026-01-04T12:00:00+01:00"
NAMES = ("main.py", "[red]odd[/red].py", "ünï/codé.go", "tab\tand\x1b[31m.md", b"not-utf-8-\xff.py")
HAS_FINANCE = (Path(__file__).parents[2] / "domains" / "finance").is_dir()


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, without anybody's configuration."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_AUTHOR_DATE": AT,
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
        "GIT_COMMITTER_DATE": AT,
    }
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a repository without an origin: a commit for each odd file name, and one more."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name in (*NAMES, NAMES[0]):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write("def f(x):\n    return 1 if x else 0\n")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message=some words")
    return folder


def count_commits(url: str) -> int:
    """Return how many commits the read model holds."""
    with closing(Host(url)) as host, host.database.read() as connection:
        counted = select(func.count()).select_from(table("code_commits"))
        return connection.execute(counted).scalar_one()


def test_a_repository_is_taken_in_and_shown_to_be_the_same(
    qntx: Qntx, project: Path, url: str
) -> None:
    """Every commit is in the log and the read model, and a second demo finds nothing new."""
    history = int(git(project, "rev-list", "--count", "HEAD"))

    first = qntx("demo", str(project), "--database", url, "--json")
    second = qntx("demo", str(project), "--database", url)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    told = json.loads(first.stdout)
    assert told["repository"] == "local/project"
    assert told["head"] == git(project, "rev-parse", "HEAD")
    assert told["commits"] == history == count_commits(url)
    assert told["new_attestations"] == told["attestations"] - 1, "all but the certificate's"
    assert told["rebuilt"]["is_same"] is True
    assert told["jobs"] == {"succeeded": 1}
    assert {one["lag"] for one in told["projections"]} == {0}
    assert "0 new attestations beside the certificate's" in second.stdout
    assert "Same: every row is as it was." in second.stdout
    assert not set(second.stdout) & set("━─│\x1b")
    assert f"commits: {history} of {history}" in second.stderr


def test_what_is_shown_names_everything(
    each: Each, at_terminal: Terminal, project: Path, tmp_path: Path
) -> None:
    """The repository, its files, jobs and projectors are shown, and three commands that work."""
    code, shown = at_terminal("demo", "project")

    assert code == 0
    assert (tmp_path / ".demo" / "qntx.db").exists(), "a database in use is left alone"
    for expected in (
        "local/project",
        "[red]odd[/red].py",
        "ünï/codé.go",
        "code.analyze_repository",
        "succeeded",
        "100 %",
        "━━━━",
        "Same: every row is as it was.",
    ):
        assert expected in shown, expected
    assert "\x1b[31m.md" not in shown
    assert ("cocomo" in shown) == HAS_FINANCE
    lines = shown.replace("\r", "").splitlines()
    *_, first, second, third = (line for line in lines if line.strip())
    commands = []
    for line in (first, second, third):
        assert "--database sqlite:///.demo/qntx.db" in line
        _, _, arguments = line.partition("qntx-es ")
        commands.append(tuple(arguments.replace("\x1b[0m", "").split()))
    assert [finished.returncode for finished in each(*commands)] == [0, 0, 0]
    assert project.exists()


def test_the_rest_is_shown_where_something_is_missing(qntx: Qntx, project: Path) -> None:
    """A missing domain and a failing job are named, and the demo goes on without them."""
    bare = project.with_name("bare.git")
    git(project, "clone", "--quiet", "--bare", ".", str(bare))

    finished = qntx("demo", str(bare), QNTX_DOMAINS="fortune,code")

    assert finished.returncode == 0
    assert finished.stderr.startswith("qntx-es: no domain `fortune`")
    assert f"failed, GiveUp: {bare} is bare" in finished.stdout
    assert "Same: every row is as it was." in finished.stdout
    assert "What it would cost" not in finished.stdout


def test_what_is_no_repository_is_named(each: Each, project: Path, tmp_path: Path) -> None:
    """Where there is no history to read, the demo says so with 1, and makes no database."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "fresh").mkdir()
    git(tmp_path / "fresh", "init", "--quiet")
    named = {
        "empty": "belongs to no git repository",
        "nowhere": "there is no folder",
        "fresh": "has no commits",
        "project/.git": "Give the folder of its files",
    }

    for finished, message in zip(
        each(*(("demo", one) for one in named)), named.values(), strict=True
    ):
        assert finished.returncode == 1
        assert message in finished.stderr
        assert len(finished.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "fresh", project.name}
