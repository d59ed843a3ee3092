"""The domain as a value, and the tables of its read model.

Counts are BigInteger, since they are sums over a whole history. What analysis found stands beside
what history counted and is null until a file or repository has been analysed.
"""

from sqlalchemy import BigInteger, Boolean, Column, Date, DateTime, Float, String

from qntx_es import Domain

from .payloads import (
    CommitRecorded,
    FileAnalyzed,
    RepositoryAnalyzed,
    RepositoryCloned,
    RepositoryIngested,
)

ANALYZER = "code-analyzer@system"
INGESTER = "ixgest-git@user"

code = Domain(
    "code",
    version=1,
    emits=(
        RepositoryCloned,
        CommitRecorded,
        RepositoryIngested,
        FileAnalyzed,
        RepositoryAnalyzed,
        "repository_*",
    ),
    actors=(ANALYZER, INGESTER),
)

repositories = code.table(
    "repositories",
    Column("entity", String, primary_key=True),
    Column("path", String),
    Column("branch", String),
    Column("head", String),
    Column("language", String),
    Column("commits", BigInteger, nullable=False, default=0),
    Column("added", BigInteger, nullable=False, default=0),
    Column("deleted", BigInteger, nullable=False, default=0),
    Column("first_commit_at", DateTime(timezone=True)),
    Column("last_commit_at", DateTime(timezone=True)),
    Column("files", BigInteger),
    Column("loc", BigInteger),
    Column("complexity", Float),
    Column("analyzed_at", DateTime(timezone=True)),
)

commits = code.table(
    "commits",
    Column("repository", String, primary_key=True),
    Column("sha", String, primary_key=True),
    Column("author", String, nullable=False),
    Column("committed_at", DateTime(timezone=True)),
    Column("parents", BigInteger, nullable=False),
    Column("files", BigInteger, nullable=False),
    Column("added", BigInteger, nullable=False),
    Column("deleted", BigInteger, nullable=False),
    Column("boundary", Boolean, nullable=False),
)

files = code.table(
    "files",
    Column("repository", String, primary_key=True),
    Column("path", String, primary_key=True),
    Column("commits", BigInteger, nullable=False, default=0),
    Column("added", BigInteger, nullable=False, default=0),
    Column("deleted", BigInteger, nullable=False, default=0),
    Column("last_commit_at", DateTime(timezone=True)),
    Column("analysis", String),
    Column("language", String),
    Column("loc", BigInteger),
    Column("complexity", BigInteger),
    Column("coverage", Float),
    Column("last_modified", Date),
)
