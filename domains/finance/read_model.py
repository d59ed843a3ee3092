"""The domain as a value, and the tables of its read model."""

from sqlalchemy import BigInteger, Column, DateTime, String

from qntx_es import Domain

from .payloads import RepositoryValued

finance = Domain("finance", version=1, emits=(RepositoryValued,), actors=("valuer@finance",))

valuations = finance.table(
    "valuations",
    Column("repository", String, primary_key=True),
    Column("commits", BigInteger, nullable=False, default=0),
    Column("first_commit_at", DateTime(timezone=True)),
    Column("last_commit_at", DateTime(timezone=True)),
    Column("loc", BigInteger),
    Column("complexity_hundredths", BigInteger),
    Column("model", String),
    Column("person_months_hundredths", BigInteger),
    Column("schedule_months_hundredths", BigInteger),
    Column("cost_euro", BigInteger),
    Column("position", BigInteger),
)

# A commit may be stated more than once, with more known of it each time. It counts once.
commits = finance.table(
    "commits",
    Column("repository", String, primary_key=True),
    Column("sha", String, primary_key=True),
)

# What a team was granted, and what it has approved of that, whoever keeps them from overspending.
budgets = finance.table(
    "budgets",
    Column("team", String, primary_key=True),
    Column("granted", BigInteger, nullable=False, default=0),
    Column("approved", BigInteger, nullable=False, default=0),
    Column("approvals", BigInteger, nullable=False, default=0),
)
