"""What is in a git repository, and how it came to be there.

`ingest` states a local repository and its commits; the domain counts them, has each repository
analysed by a job, and keeps the measures of its files beside their history. It says all this by
attestations alone: who wants to know, reads them.
"""

from .analysis import analyze_repository
from .errors import GitFailed, GitMissing, NoCommits, NotARepository, PathMissing
from .ingestion import Ingested, ingest
from .payloads import (
    AnalyzeRepository,
    CommitRecorded,
    FileAnalyzed,
    RepositoryAnalyzed,
    RepositoryCloned,
    RepositoryIngested,
)
from .projections import ask_again, ask_for_analysis
from .read_model import code

__all__ = [
    "AnalyzeRepository",
    "CommitRecorded",
    "FileAnalyzed",
    "GitFailed",
    "GitMissing",
    "Ingested",
    "NoCommits",
    "NotARepository",
    "PathMissing",
    "RepositoryAnalyzed",
    "RepositoryCloned",
    "RepositoryIngested",
    "analyze_repository",
    "ask_again",
    "ask_for_analysis",
    "code",
    "ingest",
]
