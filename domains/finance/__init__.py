"""What repositories are worth, by what other domains say of them.

Finance knows nothing of the code domain: it reads `repository_analyzed` and `commit_recorded`,
whoever says so, values each repository with a published model, and states the value.
"""

from .payloads import (
    BudgetGranted,
    CommitRecorded,
    RepositoryAnalyzed,
    RepositoryValued,
    ValuationApproved,
)
from .projections import state_value
from .read_model import finance
from .valuation import MODEL, Valuation, value

__all__ = [
    "MODEL",
    "BudgetGranted",
    "CommitRecorded",
    "RepositoryAnalyzed",
    "RepositoryValued",
    "Valuation",
    "ValuationApproved",
    "finance",
    "state_value",
    "value",
]
