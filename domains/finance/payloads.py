"""What finance reads of others, and what it says itself.

All but the last are statements of others, declared again with the fields that finance needs: it
depends on what is said, and not on who says it.
"""

from datetime import UTC, datetime
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

from qntx_es import Payload

COUNT_MAX = 2**53 - 1
AMOUNT_MAX = 2**63 - 1
COMPLEXITY_MAX = 1e9
# A commit from outside these years says nothing about when.
YEAR_MIN, YEAR_MAX = 1900, 2200


def _plausible(moment: datetime | None) -> datetime | None:
    if moment is None or not YEAR_MIN <= moment.year <= YEAR_MAX:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


Count: TypeAlias = Annotated[int, Field(ge=0, le=COUNT_MAX)]
# What is worth more per line than one: as large as a column holds.
Amount: TypeAlias = Annotated[int, Field(ge=0, le=AMOUNT_MAX)]
Moment: TypeAlias = Annotated[datetime | None, AfterValidator(_plausible)]


class CommitRecorded(Payload, context="commit_recorded"):
    """A commit is part of a repository's history."""

    sha: str
    committed_at: Moment = None


class RepositoryAnalyzed(Payload, context="repository_analyzed"):
    """A repository has so many lines, and functions of this mean complexity."""

    loc: Count
    complexity: Annotated[float, Field(ge=0, le=COMPLEXITY_MAX, allow_inf_nan=False)]


class BudgetGranted(Payload, context="budget_granted"):
    """A team may approve so much more, in units of its own."""

    amount: Count


class ValuationApproved(Payload, context="valuation_approved"):
    """A team has approved so much of its budget."""

    amount: Count


class RepositoryValued(Payload, context="repository_valued"):
    """To write a repository anew would take this much, by `model`.

    Hundredths of person-months and of months, and whole euros: integers, so that every machine
    says the same.
    """

    model: str
    loc: Count
    person_months_hundredths: Amount
    schedule_months_hundredths: Amount
    cost_euro: Amount
