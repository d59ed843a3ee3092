"""From what `git log` prints to one payload a commit, as a stream.

Options are spelled out where git's defaults have changed or may: the same commit must give the same
payload under every git, or stating it again would contradict the log. A commit that touches more
files than an attestation holds names the first of them; its totals are always exact.
"""

import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from json import dumps

from .names import name, pseudonym
from .payloads import CommitRecorded, FileChange, plausible

# A payload holds 1 MiB; what stands beside the files needs little of the rest.
FILES_MAX = 5_000
FILES_BYTES_MAX = 900_000
NUMBERS_BYTES = 32

LOG = (
    "log",
    "-z",
    "--numstat",
    "--reverse",
    "--topo-order",
    "--format=tformat:commit %H|%P|%ct|%ae",
    "--encoding=UTF-8",
    "--diff-merges=off",
    "--diff-algorithm=myers",
    "--no-color",
    "--no-ext-diff",
    "--no-mailmap",
    "--no-notes",
    "--no-renames",
    "--no-textconv",
    "--root",
    "--submodule=short",
)
LAST_CHANGES = (
    "log",
    "-z",
    "--name-only",
    "--format=tformat:/%ct",
    "--diff-merges=off",
    "--no-color",
    "--no-mailmap",
    "--no-notes",
    "--no-renames",
    "--root",
)
_COMMIT = b"commit "
_MOMENT = b"/"  # no path of git's begins so
_CHANGE = re.compile(rb"\n?(\d+|-)\t(\d+|-)\t(.+)", re.DOTALL)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _Commit:
    """A commit, as far as it has been read."""

    sha: str
    parents: int
    committed_at: datetime | None
    author: str
    files: list[FileChange] = field(default_factory=list)
    files_bytes: int = 0
    files_omitted: int = 0
    added: int = 0
    deleted: int = 0

    def change(self, added: bytes, deleted: bytes, path: bytes) -> None:
        """Take in one changed file."""
        change = (name(path), _lines(added), _lines(deleted))
        self.added += change[1] or 0
        self.deleted += change[2] or 0
        self.files_bytes += len(dumps(change[0], ensure_ascii=False).encode()) + NUMBERS_BYTES
        if len(self.files) < FILES_MAX and self.files_bytes <= FILES_BYTES_MAX:
            self.files.append(change)
        else:
            self.files_omitted += 1

    def recorded(self) -> CommitRecorded:
        """Return it as it is stated."""
        return CommitRecorded(
            sha=self.sha,
            author=self.author,
            committed_at=self.committed_at,
            parents=self.parents,
            files=tuple(self.files),
            files_omitted=self.files_omitted,
            added=self.added,
            deleted=self.deleted,
        )


def commits(records: Iterable[bytes], boundary: AbstractSet[str]) -> Iterator[CommitRecorded]:
    """Read the records that `LOG` prints; nothing is known of the changes at the boundary."""
    commit: _Commit | None = None
    for record in records:
        if record.startswith(_COMMIT):
            if commit is not None:
                yield _stated(commit, boundary)
            commit = _begun(record.removeprefix(_COMMIT))
        elif commit is not None and (change := _CHANGE.fullmatch(record)):
            commit.change(*change.groups())
    if commit is not None:
        yield _stated(commit, boundary)


def last_changes(records: Iterable[bytes], paths: AbstractSet[bytes]) -> dict[bytes, datetime]:
    """Read the records that `LAST_CHANGES` prints until the last change of each path is known."""
    missing = set(paths)
    found: dict[bytes, datetime] = {}
    moment: datetime | None = None
    for record in records:
        if not missing:
            break
        if record.startswith(_MOMENT):
            moment = _moment(record.removeprefix(_MOMENT))
            continue
        path = record.removeprefix(b"\n")
        if path in missing:
            missing.remove(path)
            if moment is not None:
                found[path] = moment
    return found


def _begun(header: bytes) -> _Commit:
    sha, parents, moment, email = header.split(b"|", 3)
    return _Commit(
        sha=sha.decode(),
        parents=len(parents.split()),
        committed_at=_moment(moment),
        author=pseudonym(email),
    )


def _stated(commit: _Commit, boundary: AbstractSet[str]) -> CommitRecorded:
    if commit.sha not in boundary:
        return commit.recorded()
    return CommitRecorded(
        sha=commit.sha, author=commit.author, committed_at=commit.committed_at, boundary=True
    )


def _lines(printed: bytes) -> int | None:
    return None if printed == b"-" else int(printed)


def _moment(seconds: bytes) -> datetime | None:
    try:
        return plausible(_EPOCH + timedelta(seconds=int(seconds)))
    except (OverflowError, ValueError):  # no number, or no year that a calendar has
        return None
