"""The job that analyses a repository's working tree: slow, outside, and so a job.

It reads only what git tracks and only plain files inside the tree, whatever links say, and it
states files in the order of their paths, so that two analyses of one tree say the same.
"""

import os
import stat
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import Any, TypeAlias

from qntx_es import Attestation, GiveUp, Job, ServiceRegistry

from .errors import GitMissing, NoCommits, NotARepository, PathMissing
from .git import NO_FILES, Repository, find_repository, history_of, tracked_files
from .history import LAST_CHANGES, last_changes
from .languages import language_of
from .measures import (
    LIZARD_FAILURES,
    Complexity,
    Lizard,
    complexity_of,
    count_lines,
    is_binary,
    load_lizard,
)
from .names import name
from .payloads import AnalyzeRepository, FileAnalyzed, RepositoryAnalyzed
from .read_model import code

FILE_BYTES_MAX = 2 << 20
# A job's statements are one append, which holds 10 000. Of more files, the most complex are stated.
FILES_STATED_MAX = 9_000
HOPELESS = (GitMissing, NoCommits, NotARepository, PathMissing)

Log: TypeAlias = Logger | LoggerAdapter[Any]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file in a programming language, and what was measured of it."""

    path: bytes
    language: str
    loc: int
    complexity: Complexity | None

    @property
    def total(self) -> int:
        """Return the sum of its functions' complexity, as far as it is known."""
        return self.complexity.total if self.complexity else 0


@code.job(retries=3, timeout=timedelta(minutes=10))
def analyze_repository(job: Job[AnalyzeRepository], services: ServiceRegistry) -> None:
    """State what each source file of a repository is like, and then the whole of it."""
    log = services.logger("code")
    lizard = load_lizard()
    try:
        repository = find_repository(job.payload.path)
        if repository.is_bare:
            raise GiveUp(f"{repository.path} is bare: it has no files to analyse. Clone it first")
        sources = list(source_files(repository, lizard, log))
        stated = most_complex(sources)
        if len(stated) < len(sources):
            log.warning("stating %d of %d source files", len(stated), len(sources))
        days = _last_modified(repository, {source.path for source in stated})
    except HOPELESS as error:
        raise GiveUp(str(error)) from error
    services.store.append([_file(job.entity, source, days) for source in stated])
    services.store.append(code.attest(summary(sources), entity=job.entity))


def source_files(repository: Repository, lizard: Lizard, log: Log) -> Iterator[SourceFile]:
    """Measure each source file that git tracks, in the order of their paths."""
    top = Path(os.path.realpath(repository.top))
    for mode, path in tracked_files(repository):
        language = language_of(os.fsdecode(path))
        if language is None or mode in NO_FILES:
            continue
        content = _content(top, path)
        if content is None or is_binary(content):
            continue
        shown = name(path)
        try:
            complexity = complexity_of(shown, content, lizard)
        except LIZARD_FAILURES as error:
            log.warning("complexity of %s is unknown: lizard failed (%r)", shown, error)
            complexity = None
        yield SourceFile(path, language, count_lines(content), complexity)


def _content(top: Path, path: bytes) -> bytes | None:
    """Read a plain file of reasonable size; None for anything else, or anything elsewhere."""
    file = top / os.fsdecode(path)
    try:
        found = file.lstat()
        is_taken = stat.S_ISREG(found.st_mode) and found.st_size <= FILE_BYTES_MAX
        # A folder that git tracks may have become a link to a place outside.
        if not is_taken or not file.resolve().is_relative_to(top):
            return None
        return file.read_bytes()
    except OSError:  # tracked, but not here: deleted, sparse, or not ours to read
        return None


def summary(sources: list[SourceFile]) -> RepositoryAnalyzed:
    """Sum up the source files of a repository."""
    functions = sum(source.complexity.functions for source in sources if source.complexity)
    total = sum(source.total for source in sources)
    return RepositoryAnalyzed(
        files=len(sources),
        loc=sum(source.loc for source in sources),
        complexity=round(total / functions, 2) if functions else 0.0,
    )


def most_complex(sources: list[SourceFile]) -> list[SourceFile]:
    """Choose the files to state where there are too many, in the order of their paths."""
    if len(sources) <= FILES_STATED_MAX:
        return sources
    ranked = sorted(sources, key=lambda source: (-source.total, source.path))
    return sorted(ranked[:FILES_STATED_MAX], key=lambda source: source.path)


def _last_modified(repository: Repository, paths: AbstractSet[bytes]) -> dict[bytes, date]:
    """Return the day of the last commit that changed each path, as far as history tells."""
    with history_of(repository) as (git, boundary):
        # The changes at a shallow clone's end are unknown: git would show every file as new there.
        ends = [f"^{sha}" for sha in sorted(boundary)]
        with closing(git.records(*LAST_CHANGES, repository.head, *ends)) as records:
            moments = last_changes(records, paths)
    return {path: moment.date() for path, moment in moments.items()}


def _file(repository: str, source: SourceFile, days: dict[bytes, date]) -> Attestation:
    return code.attest(
        FileAnalyzed(
            repository=repository,
            language=source.language,
            loc=source.loc,
            complexity=source.complexity.total if source.complexity else None,
            last_modified=days.get(source.path),
        ),
        entity=name(source.path),
    )
