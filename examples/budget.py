"""Two write sides in `eventsourcing`, a read side in qntx-es, one log: approvals in a budget.

A team proposes valuations as aggregates, and approves them as decisions of a DCB application. An
approval looks at what its team was granted and has approved; where that changed meanwhile, it is
refused and decided anew. So however many approve at once, a budget is never overspent. Both
applications are the library's own, unchanged. What they record are attestations in our log, and a
domain projects them like any others.

    python examples/budget.py [DATABASE_URL]
"""

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.dcb.application import DCBApplication
from eventsourcing.dcb.domain import Decision, Selector, Slice, Tagged
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import IntegrityError
from sqlalchemy import Column, Integer, String, select

from qntx_es import Domain, Host, Payload, Recorded, Rows

TEAM = "team:search"
BUDGET = 1_000
VALUES = (90, 210, 340, 130, 55, 270, 160, 480)
APPROVERS = 4

# The write sides. What has a TOPIC is attested in the context of that name.


class Valuation(Aggregate):
    """What a repository is worth, as somebody says."""

    class Proposed(Aggregate.Created):
        """The value is on the table."""

        TOPIC = "valuation_proposed"
        repository: str
        value: int

    @event(Proposed)
    def __init__(self, repository: str, value: int) -> None:
        self.repository = repository
        self.value = value


class Valuations(Application[UUID]):
    """Where valuations are proposed."""

    env: ClassVar = {"PERSISTENCE_MODULE": "qntx_es.recorders"}


@dataclass
class Granted(Decision):
    """A team may approve so much more."""

    TOPIC: ClassVar = "budget_granted"
    amount: int


@dataclass
class Approved(Decision):
    """A valuation is approved, and so much of the team's budget is gone."""

    TOPIC: ClassVar = "valuation_approved"
    valuation: str
    amount: int


class OverBudget(Exception):
    """A team has less left than it would need."""


class Approve(Slice[Decision]):
    """Approves a valuation, once, within the budget of a team."""

    def __init__(self, team: str, valuation: Valuation) -> None:
        self.team = team
        self.valuation = str(valuation.id)
        self.value = valuation.value
        self.left = 0
        self.is_approved = False

    def consistency_boundary(self) -> Selector:
        """Look at all that this decision depends on, and at nothing else."""
        return Selector(types=[Granted, Approved], tags=[self.team])

    @event(Granted)
    def _(self, amount: int) -> None:
        self.left += amount

    @event(Approved)
    def _(self, valuation: str, amount: int) -> None:
        self.left -= amount
        self.is_approved |= valuation == self.valuation

    def execute(self) -> None:
        """Decide. Raises `OverBudget`."""
        if self.is_approved:
            return
        if self.value > self.left:
            raise OverBudget
        self.trigger_event(Approved, [self.team], valuation=self.valuation, amount=self.value)


class Budgets(DCBApplication):
    """Where budgets are granted and spent."""

    env: Mapping[str, str] = {
        "PERSISTENCE_MODULE": "qntx_es.recorders",
        "MAPPER_TOPIC": "qntx_es.recorders:JSONMapper",
    }

    def approve(self, team: str, valuation: Valuation) -> bool:
        """Approve a valuation, if the budget allows it."""
        while True:
            try:
                self.do(Approve(team, valuation))
            except IntegrityError:
                continue  # somebody else approved meanwhile: decide anew
            except OverBudget:
                return False
            return True


# The read side: a domain, which knows contexts and no application.


class ValuationProposed(Payload, context="valuation_proposed"):
    """The value is on the table."""

    repository: str
    value: int


class ValuationApproved(Payload, context="valuation_approved"):
    """The team pays for it."""

    valuation: str


budget = Domain("budget", emits=())
valuations = budget.table(
    "valuations",
    Column("valuation", String, primary_key=True),
    Column("repository", String, nullable=False),
    Column("value", Integer, nullable=False),
    Column("approved_by", String),
)


@budget.project(ValuationProposed)
def add(proposed: Recorded[ValuationProposed], rows: Rows) -> None:
    """Add what is proposed."""
    said = proposed.payload
    rows.put(valuations, valuation=proposed.entity, repository=said.repository, value=said.value)


@budget.project(ValuationApproved)
def approve(approved: Recorded[ValuationApproved], rows: Rows) -> None:
    """Note who approved it."""
    rows.put(valuations, valuation=approved.payload.valuation, approved_by=approved.entity)


# All of it together.


def approve_all(url: str, proposed: list[Valuation]) -> int:
    """Approve what one can, over connections of one's own, and count what is refused."""
    with Budgets({"QNTX_DATABASE_URL": url}) as budgets:
        return sum(not budgets.approve(TEAM, valuation) for valuation in proposed)


def run(url: str) -> None:
    """Propose, let everybody approve everything at once, and show what became of it."""
    with Budgets({"QNTX_DATABASE_URL": url}) as budgets:
        budgets.events.append([Tagged([TEAM], Granted(BUDGET))])
    with Valuations({"QNTX_DATABASE_URL": url}) as application:
        proposed = [Valuation(f"github.com/{TEAM[5:]}/{n}", v) for n, v in enumerate(VALUES)]
        application.save(*proposed)
    with ThreadPoolExecutor(APPROVERS) as approvers:
        # Each begins elsewhere, so that they meet.
        orders = [proposed[start:] + proposed[:start] for start in range(APPROVERS)]
        refused = sum(approvers.map(approve_all, [url] * APPROVERS, orders))

    with Host(url, domains=[budget]) as host:
        host.upgrade()
        host.catch_up()
        with host.database.read() as connection:
            for row in connection.execute(select(valuations).order_by("repository", "value")):
                print(f"{row.repository:<22}{row.value:>6}  {row.approved_by or '-'}")
        granted = sum(one.payload["amount"] for one in host.ax(contexts="budget_granted"))
        approved = host.ax(contexts="valuation_approved")
    spent = sum(one.payload["amount"] for one in approved)
    assert spent <= granted, "overspent"
    assert len({one.payload["valuation"] for one in approved}) == len(approved), "paid twice"
    print(f"{TEAM} was granted {granted} and approved {spent}; {refused} times it was too much")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(sys.argv[1])
    else:
        with TemporaryDirectory() as folder:
            run(f"sqlite:///{Path(folder) / 'budget.db'}")
