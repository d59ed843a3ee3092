"""What the domain says of code, and what each field means.

Every count is an integer that JSON and both databases hold exactly, and every moment is in UTC.
Nothing here names a person: see `names.pseudonym`.
"""

from datetime import UTC, date, datetime
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, Field

from qntx_es import Payload

COUNT_MAX = 2**53 - 1
COMPLEXITY_MAX = 1e9
# Git keeps whatever a clock said. A commit from outside these years says nothing about when.
YEAR_MIN, YEAR_MAX = 1900, 2200


def plausible(moment: datetime | None) -> datetime | None:
    """Return a moment in UTC (one without a zone is taken to be), or None for an absurd one."""
    if moment is None or not YEAR_MIN <= moment.year <= YEAR_MAX:
        return None
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC)


Count: TypeAlias = Annotated[int, Field(ge=0, le=COUNT_MAX)]
Complexity: TypeAlias = Annotated[float, Field(ge=0, le=COMPLEXITY_MAX, allow_inf_nan=False)]
Moment: TypeAlias = Annotated[datetime | None, AfterValidator(plausible)]
# Path, lines added, lines deleted; null where the file is binary.
FileChange: TypeAlias = tuple[str, Count | None, Count | None]


class RepositoryCloned(Payload, context="repository_cloned"):
    """A repository is on this machine, at `path`; `branch` is HEAD when none is checked out."""

    path: str
    branch: str = "main"


class CommitRecorded(Payload, context="commit_recorded"):
    """A commit is part of a repository's history.

    A merge changes nothing by itself: its changes are its parents'. A `boundary` is where a shallow
    clone ends: it has changes and parents, but nothing is known of them, and the zeros say nothing.
    """

    sha: str
    author: str = "author-unknown"
    committed_at: Moment = None
    parents: Count = 0
    files: tuple[FileChange, ...] = ()
    files_omitted: Count = 0
    added: Count = 0
    deleted: Count = 0
    boundary: bool = False


class RepositoryIngested(Payload, context="repository_ingested"):
    """All commits that `head` can reach are stated; most of its files are in `language`."""

    commit_count: Count
    language: str | None = None
    head: str | None = None


class FileAnalyzed(Payload, context="file_analyzed"):
    """What a source file, the entity, is like.

    `complexity` is the sum over its functions, null where it could not be measured; `loc` counts
    the lines that are not blank; `last_modified` is the day of the last commit that changed it.
    """

    repository: str = ""
    language: str | None = None
    loc: Count | None = None
    complexity: Count | None = None
    coverage: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    last_modified: date | None = None


class RepositoryAnalyzed(Payload, context="repository_analyzed"):
    """The source files of a repository, their lines, and the mean complexity of a function."""

    files: Count
    loc: Count
    complexity: Complexity


class AnalyzeRepository(BaseModel):
    """Analyse the working tree of the repository at `path`."""

    path: str
