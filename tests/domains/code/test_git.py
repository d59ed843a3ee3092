"""A local repository is found from wherever one may stand, or the trouble is named."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domains.code import GitFailed, GitMissing, NoCommits, NotARepository, PathMissing
from domains.code.git import find_repository, history_of, tracked_files

Git = Callable[..., str]
Make = Callable[..., Path]


def test_a_folder_without_a_repository_is_named(tmp_path: Path) -> None:
    """A folder in no repository is refused, with its path and the remedy."""
    with pytest.raises(NotARepository, match=rf"{tmp_path} belongs to no git repository\. Give"):
        find_repository(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere is refused, with the path."""
    with pytest.raises(PathMissing, match=r"there is no folder .*nowhere"):
        find_repository(tmp_path / "nowhere")


def test_a_file_is_no_folder(project: Path) -> None:
    """The path of a file is refused as no folder."""
    with pytest.raises(PathMissing):
        find_repository(project / "README.md")


def test_a_repository_without_commits_is_named(make: Make) -> None:
    """A repository in which nothing was committed is refused, with the remedy."""
    with pytest.raises(NoCommits, match="has no commits on the branch it is on"):
        find_repository(make())


def test_git_that_is_not_installed_is_named(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without git on PATH, the error says where to get it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitMissing, match="Install it"):
        find_repository(project)


def test_a_broken_repository_is_named_with_gits_own_words(project: Path) -> None:
    """Where git cannot read a repository, the error repeats what git said."""
    (project / ".git" / "config").write_text("[core\n")
    with pytest.raises(GitFailed, match=r"git rev-parse failed: .*bad config"):
        find_repository(project)


def test_a_subdirectory_stands_for_its_repository(project: Path) -> None:
    """Any folder in a repository finds its top."""
    (project / "deep" / "er").mkdir(parents=True)
    found = find_repository(project / "deep" / "er")
    assert (found.path, found.entity) == (str(project), "local/project")


def test_a_git_directory_is_refused(project: Path) -> None:
    """Inside a git directory there are no files, and the error says so."""
    with pytest.raises(NotARepository, match="inside a git directory"):
        find_repository(project / ".git" / "refs")


def test_a_bare_repository_is_found(project: Path, tmp_path: Path, git: Git) -> None:
    """A bare repository has a history like any other, and says that it is bare."""
    git(tmp_path, "clone", "--quiet", "--bare", str(project), "bare.git")
    found = find_repository(tmp_path / "bare.git")
    assert (found.is_bare, found.path, found.branch) == (True, str(tmp_path / "bare.git"), "main")


def test_a_worktree_has_the_name_of_its_repository(project: Path, tmp_path: Path, git: Git) -> None:
    """A linked worktree is a place of its own, of the same repository, on its own branch."""
    git(project, "worktree", "add", "--quiet", "-b", "side", str(tmp_path / "linked"))
    found = find_repository(tmp_path / "linked")
    assert (found.path, found.branch) == (str(tmp_path / "linked"), "side")
    assert found.entity == find_repository(project).entity
    with history_of(found) as (reading, _):
        assert reading.line("rev-list", "--count", found.head) == "2"


def test_a_detached_head_is_on_no_branch(project: Path, git: Git) -> None:
    """Where no branch is checked out, the branch is git's own word for it."""
    git(project, "checkout", "--quiet", "--detach")
    assert find_repository(project).branch == "HEAD"


def test_the_first_remote_names_the_repository(project: Path, git: Git) -> None:
    """The name is that of `origin` as it was configured, whatever rewrites it, without secrets."""
    git(project, "remote", "add", "origin", "https://u:secret@github.com/teranos/QNTX.git")
    git(project, "config", "--add", "remote.origin.url", "https://example.org/other.git")
    git(project, "config", "url.https://example.org/.insteadOf", "https://u:secret@github.com/")
    assert find_repository(project).entity == "github.com/teranos/QNTX"


def test_a_remote_on_this_machine_gives_no_name(project: Path, tmp_path: Path, git: Git) -> None:
    """Where the remote is a folder, the repository is named by its own folder."""
    git(tmp_path, "clone", "--quiet", str(project), "copy")
    assert find_repository(tmp_path / "copy").entity == "local/copy"


def test_a_folder_with_odd_bytes_is_found(tmp_path: Path, git: Git, commit: Git) -> None:
    """A repository in a folder whose name is no UTF-8 has a name with visible escapes."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, {"a.py": "pass\n"})
    found = find_repository(folder)
    assert found.entity == r"local/caf\xe9"
    assert tracked_files(found) == [(b"100644", b"a.py")]


def test_the_callers_git_variables_do_not_matter(
    project: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that runs inside a git hook finds the repository it was asked for."""
    monkeypatch.setenv("GIT_DIR", str(make("other") / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere")
    assert find_repository(project).entity == "local/project"


def test_tracked_files_are_those_of_the_index(project: Path, commit: Git) -> None:
    """Files that git does not track are not among the tracked ones; odd names are."""
    commit(project, {b"caf\xe9.py": "pass\n", "new\nline.py": "pass\n"})
    (project / "untracked.py").write_text("pass\n")
    paths = [path for _, path in tracked_files(find_repository(project))]
    assert paths == [b"README.md", b"caf\xe9.py", b"main.go", b"new\nline.py"]
