"""From what is said of repositories to what they are worth."""

from collections.abc import Iterator
from dataclasses import asdict

from qntx_es import Attestation, ReadRows, Recorded, Rows

from .payloads import (
    BudgetGranted,
    CommitRecorded,
    RepositoryAnalyzed,
    RepositoryValued,
    ValuationApproved,
)
from .read_model import budgets, commits, finance, valuations
from .valuation import MODEL, value


def _rows_of_commit(commit: Recorded[CommitRecorded]) -> list[tuple[object, ...]]:
    return [(valuations, commit.entity), (commits, commit.entity, commit.payload.sha)]


@finance.project(CommitRecorded, keys=_rows_of_commit)
def count(commit: Recorded[CommitRecorded], rows: Rows) -> None:
    """Count a commit once, and keep how long a repository has been worked on."""
    sha, moment = commit.payload.sha, commit.payload.committed_at
    if rows.get(commits, commit.entity, sha) is not None:
        return
    rows.put(commits, repository=commit.entity, sha=sha)
    rows.add(valuations, commit.entity, commits=1)
    row = rows.get(valuations, commit.entity)
    if row is not None and moment is not None:
        rows.put(
            valuations,
            repository=commit.entity,
            first_commit_at=min(row.first_commit_at or moment, moment),
            last_commit_at=max(row.last_commit_at or moment, moment),
        )


@finance.project(RepositoryAnalyzed)
def keep(analyzed: Recorded[RepositoryAnalyzed], rows: Rows) -> None:
    """Keep the latest valuation of a repository, and where in the log it comes from."""
    said = analyzed.payload
    rows.put(
        valuations,
        repository=analyzed.entity,
        loc=said.loc,
        complexity_hundredths=round(said.complexity * 100),
        model=MODEL,
        position=analyzed.position,
        **asdict(value(said.loc)),
    )


@finance.project(BudgetGranted)
def grant(granted: Recorded[BudgetGranted], rows: Rows) -> None:
    """Add to what a team may approve."""
    rows.add(budgets, granted.entity, granted=granted.payload.amount)


@finance.project(ValuationApproved)
def approve(approved: Recorded[ValuationApproved], rows: Rows) -> None:
    """Add to what a team has approved."""
    rows.add(budgets, approved.entity, approved=approved.payload.amount, approvals=1)


@finance.derive(RepositoryAnalyzed)
def state_value(analyzed: Recorded[RepositoryAnalyzed], rows: ReadRows) -> Iterator[Attestation]:
    """Say what a repository is worth, whenever it has been analysed."""
    del rows
    loc = analyzed.payload.loc
    valued = RepositoryValued(model=MODEL, loc=loc, **asdict(value(loc)))
    yield finance.attest(valued, entity=analyzed.entity)
