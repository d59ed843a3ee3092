"""A welcome is said once for each member, as far as this process remembers."""

from collections.abc import Iterator

from sqlalchemy import Column, Integer, String

from qntx_es import Attestation, Domain, Payload, ReadRows, Recorded, Rows

CAUSE = "restart"


class Enrolled(Payload, context="enrolled"):
    """A member enrolled."""

    plan: str = "free"


class Welcomed(Payload, context="welcomed"):
    """A member was welcomed."""


domain = Domain("members", emits=(Welcomed,))
members = domain.table(
    "members",
    Column("entity", String, primary_key=True),
    Column("times", Integer, nullable=False, default=0),
)
welcomed: set[str] = set()


@domain.project(Enrolled)
def count(enrolled: Recorded[Enrolled], rows: Rows) -> None:
    """Count how often."""
    rows.add(members, enrolled.entity, times=1)


@domain.derive(Enrolled)
def welcome(enrolled: Recorded[Enrolled], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001 - a handler's
    """Welcome whoever was not welcomed yet."""
    if enrolled.entity not in welcomed:
        welcomed.add(enrolled.entity)
        yield domain.attest(Welcomed(), entity=enrolled.entity)
