"""From attestations to rows, and from an attestation to the jobs it asks for.

A commit may be stated twice, first as the end of a shallow clone, whose changes nobody knows, and
later in full. It counts once, and its changes count when they become known.
"""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import select

from qntx_es import Attestation, ReadRows, Recorded, Rows

from .analysis import analyze_repository
from .payloads import (
    CommitRecorded,
    FileAnalyzed,
    RepositoryAnalyzed,
    RepositoryCloned,
    RepositoryIngested,
)
from .read_model import code, commits, files, repositories


@code.project(RepositoryCloned)
def place(cloned: Recorded[RepositoryCloned], rows: Rows) -> None:
    """Keep where a repository is on this machine."""
    rows.put(
        repositories,
        entity=cloned.entity,
        path=cloned.payload.path,
        branch=cloned.payload.branch,
    )


def _rows_of_commit(commit: Recorded[CommitRecorded]) -> list[tuple[object, ...]]:
    return [
        (repositories, commit.entity),
        (commits, commit.entity, commit.payload.sha),
        *((files, commit.entity, path) for path, _, _ in commit.payload.files),
    ]


@code.project(CommitRecorded, keys=_rows_of_commit)
def count(commit: Recorded[CommitRecorded], rows: Rows) -> None:
    """Count a commit and its changes, each once."""
    known = rows.get(commits, commit.entity, commit.payload.sha)
    is_repeated = known is not None and (commit.payload.boundary or not known.boundary)
    if is_repeated:
        return
    _put_commit(commit, rows)
    _count_in_repository(commit, rows, commits=1 if known is None else 0)
    _count_in_files(commit, rows)


def _put_commit(commit: Recorded[CommitRecorded], rows: Rows) -> None:
    said = commit.payload
    rows.put(
        commits,
        repository=commit.entity,
        sha=said.sha,
        author=said.author,
        committed_at=said.committed_at,
        parents=said.parents,
        files=len(said.files) + said.files_omitted,
        added=said.added,
        deleted=said.deleted,
        boundary=said.boundary,
    )


def _count_in_repository(commit: Recorded[CommitRecorded], rows: Rows, *, commits: int) -> None:
    said = commit.payload
    rows.add(repositories, commit.entity, commits=commits, added=said.added, deleted=said.deleted)
    row = rows.get(repositories, commit.entity)
    if row is not None and said.committed_at is not None:
        rows.put(
            repositories,
            entity=commit.entity,
            first_commit_at=min(row.first_commit_at or said.committed_at, said.committed_at),
            last_commit_at=_later(row.last_commit_at, said.committed_at),
        )


def _count_in_files(commit: Recorded[CommitRecorded], rows: Rows) -> None:
    moment = commit.payload.committed_at
    for path, added, deleted in commit.payload.files:
        row = rows.get(files, commit.entity, path)
        rows.add(files, commit.entity, path, commits=1, added=added or 0, deleted=deleted or 0)
        if moment is not None:
            last = _later(row.last_commit_at if row else None, moment)
            rows.put(files, repository=commit.entity, path=path, last_commit_at=last)


def _later(known: datetime | None, moment: datetime) -> datetime:
    return moment if known is None else max(known, moment)


@code.project(RepositoryIngested)
def describe(ingested: Recorded[RepositoryIngested], rows: Rows) -> None:
    """Keep how far history is known, and the language most files are in."""
    rows.put(
        repositories,
        entity=ingested.entity,
        head=ingested.payload.head,
        language=ingested.payload.language,
    )


def _row_of_file(analyzed: Recorded[FileAnalyzed]) -> list[tuple[object, ...]]:
    return [(files, analyzed.payload.repository, analyzed.entity)]


@code.project(FileAnalyzed, keys=_row_of_file)
def measure_file(analyzed: Recorded[FileAnalyzed], rows: Rows) -> None:
    """Keep the latest measures of a file, and the analysis they come from."""
    said = analyzed.payload
    rows.put(
        files,
        repository=said.repository,
        path=analyzed.entity,
        analysis=analyzed.caused_by,
        language=said.language,
        loc=said.loc,
        complexity=said.complexity,
        coverage=said.coverage,
        last_modified=said.last_modified,
    )


@code.project(RepositoryAnalyzed)
def measure_repository(analyzed: Recorded[RepositoryAnalyzed], rows: Rows) -> None:
    """Keep the latest measures of a repository; files that are gone have none any more."""
    rows.put(
        repositories,
        entity=analyzed.entity,
        files=analyzed.payload.files,
        loc=analyzed.payload.loc,
        complexity=analyzed.payload.complexity,
        analyzed_at=analyzed.recorded_at,
    )
    if analyzed.caused_by is not None:
        _forget_other_analyses(analyzed.entity, analyzed.caused_by, rows)


def _forget_other_analyses(repository: str, analysis: str, rows: Rows) -> None:
    gone = (
        select(files.c.path)
        .where(files.c.repository == repository, files.c.analysis != analysis)
        .order_by(files.c.path)
    )
    for row in rows.select(gone):
        rows.put(
            files,
            repository=repository,
            path=row.path,
            analysis=None,
            loc=None,
            complexity=None,
            coverage=None,
            last_modified=None,
        )


@code.derive(RepositoryCloned)
def ask_for_analysis(cloned: Recorded[RepositoryCloned], rows: ReadRows) -> Iterator[Attestation]:
    """Have a repository analysed as soon as it is here."""
    del rows
    yield analyze_repository.request(entity=cloned.entity, path=cloned.payload.path)


@code.derive(RepositoryIngested)
def ask_again(ingested: Recorded[RepositoryIngested], rows: ReadRows) -> Iterator[Attestation]:
    """Have a repository analysed anew when history has come to one that was analysed before."""
    row = rows.get(repositories, ingested.entity)
    if row is not None and row.path is not None and row.loc is not None:
        yield analyze_repository.request(entity=ingested.entity, path=row.path)
