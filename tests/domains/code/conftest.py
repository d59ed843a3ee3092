"""Real git repositories to test on, made by git commands that no configuration can change."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import pytest

Git: TypeAlias = Callable[..., str]
AT = "2026-01-04T12:00:00+01:00"


@pytest.fixture
def git() -> Git:
    """Run git in a folder and return what it prints; keywords are variables of its environment."""

    def run(folder: Path, *arguments: str, stdin: bytes = b"", **variables: str) -> str:
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
            **variables,
        }
        command = ["git", "-c", "protocol.file.allow=always", *arguments]
        done = subprocess.run(
            command, cwd=folder, env=environment, input=stdin, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return os.fsdecode(done.stdout).strip()

    return run


@pytest.fixture
def make(tmp_path: Path, git: Git) -> Callable[..., Path]:
    """Make a repository without commits, on branch main."""

    def run(name: str = "project", *options: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        git(folder, "init", "--quiet", "--initial-branch=main", *options)
        return folder

    return run


@pytest.fixture
def commit(git: Git) -> Git:
    """Commit files (None deletes one) and return the commit's hash; keywords as for `git`."""

    def run(folder: Path, files: Mapping[str | bytes, str | bytes | None], **variables: str) -> str:
        for name, content in files.items():
            path = folder / os.fsdecode(name)
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--allow-empty", "--message=some words", **variables)
        return git(folder, "rev-parse", "HEAD")

    return run


@pytest.fixture
def project(make: Callable[..., Path], commit: Git) -> Path:
    """Return a repository with two commits."""
    folder = make()
    commit(folder, {"main.go": "package main\n", "README.md": "# Project\n"})
    commit(folder, {"main.go": "package main\n\nfunc main() {}\n"})
    return folder
