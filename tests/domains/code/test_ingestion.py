"""Stating a repository again adds what is new, and repeats the rest byte for byte."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from domains.code import CommitRecorded, GitFailed, ingest
from domains.code.ingestion import CHUNK_COMMITS, CHUNK_FILES, chunks
from qntx_es import Attestation

Git = Callable[..., str]
Make = Callable[..., Path]


def said(folder: Path) -> list[Attestation]:
    """Return all that ingesting a repository states."""
    stated: list[Attestation] = []
    ingest(folder, stated.extend)
    return stated


def contexts(stated: list[Attestation]) -> list[str]:
    """Return in which contexts something is stated."""
    return [one.context for one in stated]


def test_a_repository_is_stated_from_the_clone_to_the_end(project: Path, git: Git) -> None:
    """First that it is here, then each commit, oldest first, then that this was all."""
    stated = said(project)
    assert contexts(stated) == [
        "repository_cloned",
        "commit_recorded",
        "commit_recorded",
        "repository_ingested",
    ]
    assert {(one.entity, one.actor) for one in stated} == {("local/project", "ixgest-git@user")}
    assert stated[0].payload == {"path": str(project), "branch": "main"}
    assert stated[-1].payload == {
        "commit_count": 2,
        "head": git(project, "rev-parse", "HEAD"),
        "language": "Go",
    }


def test_what_was_ingested_is_told(project: Path, git: Git) -> None:
    """The caller learns the name, the head and how many commits there are."""
    ingested = ingest(project, lambda _: None, repository="example.org/mine")
    assert ingested.repository == "example.org/mine"
    assert (ingested.commits, ingested.head) == (2, git(project, "rev-parse", "HEAD"))


def test_ingesting_twice_says_the_same(project: Path) -> None:
    """A second ingestion makes the same attestations, byte for byte."""
    assert said(project) == said(project)


def test_a_new_commit_adds_itself_and_the_new_end(project: Path, commit: Git) -> None:
    """After a commit, only that commit and the new end of history are said anew."""
    before = said(project)
    commit(project, {"more.go": "package main\n"})
    new = [one for one in said(project) if one not in before]
    assert contexts(new) == ["commit_recorded", "repository_ingested"]


def test_another_branch_or_place_repeats_the_commits(
    project: Path, tmp_path: Path, git: Git
) -> None:
    """Another branch, or the same repository elsewhere, says no commit otherwise."""
    before = said(project)
    git(project, "checkout", "--quiet", "-b", "side")
    (tmp_path / "elsewhere").mkdir()
    moved = project.rename(tmp_path / "elsewhere" / "project")
    new = [one for one in said(moved) if one not in before]
    assert contexts(new) == ["repository_cloned"]
    assert new[0].payload == {"path": str(moved), "branch": "side"}
    assert new[0].id not in {one.id for one in before}


CONFIGURATION = {
    "blame.ignoreRevsFile": "/nowhere",
    "color.ui": "always",
    "core.abbrev": "4",
    "core.attributesFile": "attributes",
    "core.quotePath": "true",
    "diff.algorithm": "histogram",
    "diff.external": "false",
    "diff.ignoreSubmodules": "all",
    "diff.mnemonicPrefix": "true",
    "diff.noprefix": "true",
    "diff.odd.binary": "true",
    "diff.odd.textconv": "false",
    "diff.orderFile": "/dev/null",
    "diff.relative": "true",
    "diff.renames": "copies",
    "diff.submodule": "log",
    "format.pretty": "oneline",
    "i18n.logOutputEncoding": "UTF-16",
    "log.date": "relative",
    "log.decorate": "full",
    "log.diffMerges": "first-parent",
    "log.follow": "true",
    "log.mailmap": "true",
    "log.showRoot": "false",
    "log.showSignature": "true",
    "mailmap.file": "mailmap",
}


def test_no_configuration_changes_what_is_said(project: Path, git: Git, commit: Git) -> None:
    """Settings, attributes, mail maps, replaced and grafted commits: none changes a byte."""
    attributes, mailmap = "* diff=odd\n*.go -diff\n", "Bob <bob@example.org> <ada@example.org>\n"
    commit(project, {".gitattributes": attributes, ".mailmap": mailmap, "image": b"\0"})
    head = commit(project, {"renamed.go": "package main\n\nfunc main() {}\n", "main.go": None})
    before = said(project)

    for key, value in CONFIGURATION.items():
        git(project, "config", key, value)
    (project / ".git" / "info" / "attributes").write_text(attributes)
    git(project, "replace", head, f"{head}~2")
    (project / ".git" / "info" / "grafts").write_text(f"{head}\n")

    assert said(project) == before


def test_no_variable_changes_what_is_said(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the environment tells git is not heard, and neither is a user's own configuration."""
    before = said(project)
    config = tmp_path / ".gitconfig"
    config.write_text("[log]\n\tshowRoot = false\n[diff]\n\texternal = false\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=0")
    monkeypatch.setenv("LANGUAGE", "nl")
    assert said(project) == before


def test_a_repositorys_own_commands_are_never_run(project: Path, git: Git) -> None:
    """A stranger's repository cannot have its configured commands run by being ingested."""
    trap = project / "sprung"
    for key in ("core.fsmonitor", "core.pager", "diff.external", "core.sshCommand"):
        git(project, "config", key, f"touch {trap};")
    said(project)
    assert not trap.exists()


def test_a_bare_clone_says_the_same_history(project: Path, tmp_path: Path, git: Git) -> None:
    """Without a working tree, each commit is said as it is with one."""
    bare = tmp_path / "bare"
    git(tmp_path, "clone", "--quiet", "--bare", str(project), str(bare))
    full: list[Attestation] = []
    ingest(project, full.extend, repository="one")
    from_bare: list[Attestation] = []
    ingest(bare, from_bare.extend, repository="one")
    assert from_bare[1:] == full[1:]


def test_a_worktree_says_the_same_history(project: Path, tmp_path: Path, git: Git) -> None:
    """From a linked worktree, each commit is said as it is from the first."""
    git(project, "worktree", "add", "--quiet", "-b", "side", str(tmp_path / "linked"))
    assert said(tmp_path / "linked")[1:] == said(project)[1:]


def test_borrowed_objects_are_found(project: Path, tmp_path: Path, git: Git) -> None:
    """A clone that shares the objects of another is read as one that has its own."""
    git(tmp_path, "clone", "--quiet", "--shared", str(project), "shared")
    said_there = said(tmp_path / "shared")
    assert [one.payload for one in said_there[1:-1]] == [one.payload for one in said(project)[1:-1]]


def test_a_repository_with_longer_hashes_is_read(make: Make, commit: Git) -> None:
    """Repositories that use SHA-256 are ingested like any other."""
    folder = make("long", "--object-format=sha256")
    sha = commit(folder, {"a.py": "pass\n"})
    assert len(sha) == 64
    assert said(folder)[1].payload["sha"] == sha


@pytest.fixture
def shallow(project: Path, tmp_path: Path, git: Git) -> Path:
    """Return a clone of `project` that knows only the newest commit."""
    git(project, "remote", "add", "origin", "https://example.org/project.git")
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{project}", "shallow")
    folder = tmp_path / "shallow"
    git(folder, "remote", "set-url", "origin", "https://example.org/project.git")
    return folder


def test_the_end_of_a_shallow_clone_claims_no_changes(shallow: Path, git: Git) -> None:
    """The commit at which a shallow clone ends is stated as a boundary, with no changes."""
    _, boundary, ingested = said(shallow)
    assert boundary.payload["boundary"] is True
    assert (boundary.payload["files"], boundary.payload["added"]) == ([], 0)
    assert boundary.payload["sha"] == git(shallow, "rev-parse", "HEAD")
    assert ingested.payload["commit_count"] == 1


def test_a_deepened_clone_contradicts_nothing(project: Path, shallow: Path, git: Git) -> None:
    """What a full history says has other ids than what the shallow one said."""
    before = {one.id: one for one in said(shallow)}
    git(shallow, "fetch", "--quiet", "--unshallow", f"file://{project}")
    after = {one.id: one for one in said(shallow)}
    assert [after[one] for one in before.keys() & after.keys()] == [
        before[one] for one in before.keys() & after.keys()
    ]
    assert list(after.values())[1:] == said(project)[1:]


def test_a_clone_without_contents_is_named(project: Path, tmp_path: Path, git: Git) -> None:
    """Where file contents were left on the remote, nothing is fetched and the error says so."""
    git(project, "config", "uploadpack.allowFilter", "true")
    source = f"file://{project}"
    git(tmp_path, "clone", "--quiet", "--no-checkout", "--filter=blob:none", source, "partial")
    with pytest.raises(GitFailed, match="git log failed"):
        said(tmp_path / "partial")


def test_progress_is_told_chunk_by_chunk(make: Make, git: Git) -> None:
    """How many commits of how many are stated is told after each append, up to all."""
    folder, total = _long_history(make(), git)
    told: list[tuple[int, int]] = []
    stated: list[int] = []
    ingest(
        folder,
        lambda chunk: stated.append(len(chunk)),
        progress=lambda done, of: told.append((done, of)),
    )
    assert told == [(CHUNK_COMMITS, total), (total, total)]
    assert stated == [1, CHUNK_COMMITS, total - CHUNK_COMMITS, 1]


def test_an_ingestion_that_was_cut_short_is_mended_by_the_next(make: Make, git: Git) -> None:
    """Where an append fails, its error is raised and git is stopped; going on says the rest."""
    folder, _ = _long_history(make(), git)
    stated: list[Attestation] = []

    def append(chunk: list[Attestation]) -> None:
        if stated[1:]:
            raise ConnectionError
        stated.extend(chunk)

    with pytest.raises(ConnectionError):
        ingest(folder, append)
    assert len(stated) == 1 + CHUNK_COMMITS
    assert said(folder)[: len(stated)] == stated


def _long_history(folder: Path, git: Git) -> tuple[Path, int]:
    """Give a repository more commits than one chunk holds."""
    total = CHUNK_COMMITS + 10
    lines = []
    for number in range(total):
        lines.append("commit refs/heads/main")
        lines.append(f"committer Ada <ada@example.org> {1767524400 + number} +0000")
        lines += ["data 0", f"M 644 inline file-{number % 7}", "data 2", str(number % 10), ""]
    git(folder, "fast-import", "--quiet", stdin="\n".join(lines).encode())
    return folder, total


def test_a_chunk_is_limited_by_its_files_too() -> None:
    """Commits of very many files are appended few at a time."""
    files = tuple((f"file-{number}", 1, 0) for number in range(CHUNK_FILES // 4))
    commits = [CommitRecorded(sha=str(number), files=files) for number in range(10)]
    assert [len(chunk) for chunk in chunks(commits)] == [4, 4, 2]


def test_a_repository_of_another_owner_is_read(project: Path) -> None:
    """Whoever owns the folder, this one reading trusts it."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for folder, _, files in os.walk(project):
        for name in (".", *files):
            shutil.chown(Path(folder, name), user=1, group=1)
    assert contexts(said(project))[0] == "repository_cloned"
