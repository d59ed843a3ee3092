"""Stating a local git repository: what it is, each of its commits, and that this was all.

Every id is computed from what is stated, so stating a repository again adds what is new and
repeats the rest, which the log takes as said before. Nothing is remembered between two times, and
an ingestion that was cut short is mended by the next. History is read as a stream: memory holds a
chunk of commits, however many there are.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from qntx_es import Attestation, Payload, computed_id

from .git import NO_FILES, Git, Repository, find_repository, history_of
from .history import LOG, commits
from .languages import commonest_language
from .names import readable
from .payloads import CommitRecorded, RepositoryCloned, RepositoryIngested
from .read_model import INGESTER, code

CHUNK_COMMITS = 250
# Commits are of very different sizes: a chunk of imports must not fill the memory either.
CHUNK_FILES = 20_000


@dataclass(frozen=True, slots=True)
class Ingested:
    """What was stated: so many commits of `repository`, up to `head`."""

    repository: str
    head: str
    commits: int


def ingest(
    path: str | os.PathLike[str],
    append: Callable[[list[Attestation]], object],
    *,
    repository: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Ingested:
    """State the git repository a folder belongs to, and its history up to HEAD, by `append`.

    `repository` names it where its remote should not. `progress` is told how many commits of how
    many are stated. Raises `PathMissing`, `NotARepository`, `NoCommits`, `GitMissing`, or
    `GitFailed`; what was appended before a failure stays, and the next ingestion goes on from it.
    """
    report = progress or _report_nothing
    found = find_repository(path)
    entity = repository or found.entity
    with history_of(found) as (git, boundary):
        total = int(git.line("rev-list", "--count", found.head))
        append([_cloned(entity, found)])
        stated = 0
        with closing(git.records(*LOG, found.head)) as records:
            for chunk in chunks(commits(records, boundary)):
                append([_recorded(entity, commit) for commit in chunk])
                stated += len(chunk)
                report(stated, total)
        append([_ingested(entity, found.head, stated, _language(git, found.head))])
    return Ingested(repository=entity, head=found.head, commits=stated)


def _report_nothing(done: int, total: int) -> None:
    del done, total


def chunks(recorded: Iterable[CommitRecorded]) -> Iterator[list[CommitRecorded]]:
    """Cut a history into parts that fit in one append and in memory."""
    chunk: list[CommitRecorded] = []
    files = 0
    for commit in recorded:
        chunk.append(commit)
        files += len(commit.files)
        if len(chunk) >= CHUNK_COMMITS or files >= CHUNK_FILES:
            yield chunk
            chunk, files = [], 0
    if chunk:
        yield chunk


def _cloned(entity: str, found: Repository) -> Attestation:
    cloned = RepositoryCloned(path=found.path, branch=found.branch)
    return _stated(cloned, entity, found.path, found.branch)


def _recorded(entity: str, commit: CommitRecorded) -> Attestation:
    # What a shallow clone knows of a commit contradicts what a full one knows: two statements.
    known = ("boundary",) if commit.boundary else ()
    return _stated(commit, entity, commit.sha, *known, at=commit.committed_at)


def _ingested(entity: str, head: str, count: int, language: str | None) -> Attestation:
    # All that is said is in the id: after a shallow clone is deepened, more is said of one head.
    ingested = RepositoryIngested(commit_count=count, language=language, head=head)
    return _stated(ingested, entity, head, str(count), language or "")


def _stated(payload: Payload, entity: str, *parts: str, at: datetime | None = None) -> Attestation:
    """State something under the id that its parts determine, with the version of its payload.

    A later version says more of the same thing, which is another statement and no contradiction.
    """
    version = str(payload.schema_version)
    said = computed_id(payload.context, version, entity, *parts, at=at)
    return code.attest(payload, entity=entity, actor=INGESTER, id=said)


def _language(git: Git, head: str) -> str | None:
    """Return the language most files of a commit are written in."""
    with closing(git.records("ls-tree", "-r", "-z", "--full-tree", head)) as records:
        return commonest_language(
            readable(path)
            for facts, _, path in (record.partition(b"\t") for record in records)
            if not facts.startswith(NO_FILES)
        )
