"""Each commit becomes one payload that depends on nothing but the commit."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from domains.code import CommitRecorded
from domains.code.git import find_repository, history_of
from domains.code.history import (
    FILES_BYTES_MAX,
    FILES_MAX,
    LAST_CHANGES,
    LOG,
    commits,
    last_changes,
)

Git = Callable[..., str]
Make = Callable[..., Path]

SHA = "a" * 40
HEADER = f"commit {SHA}||1767524400|ada@example.org".encode()


def history(folder: Path) -> list[CommitRecorded]:
    """Read the whole history of a repository."""
    repository = find_repository(folder)
    with history_of(repository) as (git, boundary):
        return list(commits(git.records(*LOG, repository.head), boundary))


def test_a_commit_says_who_when_and_what(make: Make, commit: Git) -> None:
    """A commit holds its hash, pseudonym, time in UTC, and each file with its lines."""
    folder = make()
    first = commit(folder, {"a.py": "one\ntwo\n", "image": b"\x00\x01"})
    second = commit(folder, {"a.py": "one\n", "image": b"\x00\x02"})
    author = "author-cfe00dde46"
    at = datetime(2026, 1, 4, 11, tzinfo=UTC)
    assert history(folder) == [
        CommitRecorded(
            sha=first,
            author=author,
            committed_at=at,
            files=(("a.py", 2, 0), ("image", None, None)),
            added=2,
        ),
        CommitRecorded(
            sha=second,
            author=author,
            committed_at=at,
            parents=1,
            files=(("a.py", 0, 1), ("image", None, None)),
            deleted=1,
        ),
    ]


def test_a_commit_names_no_person(make: Make, commit: Git) -> None:
    """Neither a name nor an address of author or committer is anywhere in the payload."""
    folder = make()
    commit(folder, {"a.py": "pass\n"}, GIT_COMMITTER_EMAIL="bob@example.org")
    (recorded,) = history(folder)
    text = recorded.model_dump_json()
    assert not [word for word in ("Ada", "ada@", "bob@", "example.org") if word in text]


def test_an_empty_commit_changes_nothing(make: Make, commit: Git) -> None:
    """A commit without changes is stated with no files."""
    folder = make()
    commit(folder, {})
    commit(folder, {})
    assert [(one.files, one.added, one.parents) for one in history(folder)] == [
        ((), 0, 0),
        ((), 0, 1),
    ]


def test_a_merge_changes_nothing_by_itself(project: Path, git: Git, commit: Git) -> None:
    """What a merge brings together was changed by its parents, and counts there."""
    git(project, "checkout", "--quiet", "-b", "side", "HEAD~1")
    side = commit(project, {"side.py": "pass\n"})
    git(project, "checkout", "--quiet", "main")
    git(project, "merge", "--quiet", "--no-edit", "side")
    *before, merge = history(project)
    assert (merge.parents, merge.files) == (2, ())
    assert side in [one.sha for one in before]


def test_parents_come_before_their_children(project: Path, git: Git, commit: Git) -> None:
    """History is told oldest first, by descent, whatever the clocks of the authors said."""
    git(project, "checkout", "--quiet", "-b", "side", "HEAD~1")
    commit(project, {"side.py": "pass\n"}, GIT_COMMITTER_DATE="2001-01-01T00:00:00Z")
    git(project, "checkout", "--quiet", "main")
    git(project, "merge", "--quiet", "--no-edit", "side")
    told = [one.sha for one in history(project)]
    edges = git(project, "rev-list", "--parents", "HEAD").splitlines()
    for child, *parents in (line.split() for line in edges):
        assert all(told.index(parent) < told.index(child) for parent in parents)


def test_a_renamed_file_is_one_deleted_and_one_added(make: Make, commit: Git) -> None:
    """Renames are not guessed: the old path loses its lines and the new one gains them."""
    folder = make()
    commit(folder, {"old.py": "one\ntwo\n"})
    commit(folder, {"old.py": None, "new.py": "one\ntwo\n"})
    assert history(folder)[1].files == (("new.py", 2, 0), ("old.py", 0, 2))


def test_odd_names_are_stated_with_visible_escapes(make: Make, commit: Git) -> None:
    """Names with bytes that are no UTF-8, tabs, line breaks or quotes are stated readably."""
    folder = make()
    names = [b"caf\xe9.py", "naïve.py".encode(), b'quo"te', b"tab\tbreak\n", b"1\t2\tx"]
    commit(folder, {os.fsencode(os.fsdecode(name)): "pass\n" for name in names})
    (recorded,) = history(folder)
    assert {path for path, _, _ in recorded.files} == {
        r"caf\xe9.py",
        "naïve.py",
        'quo"te',
        r"tab\x09break\x0a",
        r"1\x092\x09x",
    }


def test_odd_authors_are_no_trouble(make: Make, git: Git, commit: Git) -> None:
    """An address of any bytes, or none, gives a pseudonym."""
    folder = make()
    commit(folder, {}, GIT_AUTHOR_EMAIL=os.fsdecode(b"\xe9|\xff@x"), GIT_AUTHOR_NAME="|\t ü")
    tree = git(folder, "rev-parse", "HEAD^{tree}")
    bare = f"tree {tree}\nparent {git(folder, 'rev-parse', 'HEAD')}\n\nwithout author\n".encode()
    written = git(folder, "hash-object", "-t", "commit", "-w", "--stdin", "--literally", stdin=bare)
    git(folder, "update-ref", "HEAD", written)
    odd, nobody = history(folder)
    assert odd.author.startswith("author-")
    assert (nobody.author, nobody.committed_at) == ("author-unknown", None)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ("0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("-86400", None),  # git itself cannot say when this is
        ("99999999999", None),
        ("99999999999999999999999", None),
        ("soon", None),
    ],
)
def test_absurd_dates_are_no_dates(
    make: Make, git: Git, commit: Git, seconds: str, expected: datetime | None
) -> None:
    """A commit from outside the calendar is stated without a time."""
    folder = make()
    commit(folder, {})
    tree = git(folder, "rev-parse", "HEAD^{tree}")
    who = f"Ada <ada@example.org> {seconds} +0000"
    raw = f"tree {tree}\nauthor {who}\ncommitter {who}\n\nodd\n".encode()
    written = git(folder, "hash-object", "-t", "commit", "-w", "--stdin", "--literally", stdin=raw)
    git(folder, "update-ref", "HEAD", written)
    assert [one.committed_at for one in history(folder)] == [expected]


def test_a_time_before_1970_is_kept_where_git_tells_it() -> None:
    """A git that can say when it was, before its own epoch, is believed."""
    header = f"commit {SHA}||-86400|ada@example.org".encode()
    (recorded,) = commits([header], frozenset())
    assert recorded.committed_at == datetime(1969, 12, 31, tzinfo=UTC)


def test_a_submodule_is_a_line_that_changed(
    project: Path, make: Make, git: Git, commit: Git
) -> None:
    """A submodule counts as the one line that git keeps of it, and is never looked into."""
    folder = make("parent")
    git(folder, "submodule", "--quiet", "add", str(project), "module")
    commit(folder, {})
    assert [path for path, *_ in history(folder)[0].files] == [".gitmodules", "module"]
    assert history(folder)[0].files[1] == ("module", 1, 0)


def test_a_commit_of_very_many_files_names_the_first_and_counts_all() -> None:
    """What an attestation cannot hold is left out and counted; the totals are exact."""
    changes = [f"1\t2\tfile-{number}".encode() for number in range(FILES_MAX + 3)]
    (recorded,) = commits([HEADER, *changes], frozenset())
    assert (len(recorded.files), recorded.files_omitted) == (FILES_MAX, 3)
    assert (recorded.added, recorded.deleted) == (FILES_MAX + 3, 2 * (FILES_MAX + 3))


def test_a_commit_of_very_long_names_stays_below_the_limit() -> None:
    """However long the names are, and whatever is in them, the payload fits in an attestation."""
    changes = [b"1\t2\t" + b'"\\' * 250 + str(number).encode() for number in range(FILES_MAX)]
    (recorded,) = commits([HEADER, *changes], frozenset())
    assert recorded.files_omitted > 0
    assert len(recorded.files) + recorded.files_omitted == FILES_MAX
    assert FILES_BYTES_MAX / 2 < len(recorded.model_dump_json()) < 2**20


def test_the_last_change_of_a_file_is_the_newest_commit_that_touched_it(
    make: Make, commit: Git
) -> None:
    """Each path has the time of the newest commit with a change of it; unknown paths have none."""
    folder = make()
    commit(folder, {"a": "1", "b": "1"}, GIT_COMMITTER_DATE="2026-01-01T00:00Z")
    commit(folder, {"b": "2"}, GIT_COMMITTER_DATE="2026-01-02T00:00Z")
    repository = find_repository(folder)
    with history_of(repository) as (reading, _):
        found = last_changes(
            reading.records(*LAST_CHANGES, repository.head), {b"a", b"b", b"missing"}
        )
    assert {path: moment.day for path, moment in found.items()} == {b"a": 1, b"b": 2}
