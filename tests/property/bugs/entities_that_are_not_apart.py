"""The domain says that its entities are independent, and then moves money between them."""

from sqlalchemy import BigInteger, Column, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "refused"

domain = Domain("transfers", by_entity=True)
balances = domain.table(
    "balances",
    Column("entity", String, primary_key=True),
    Column("cents", BigInteger, nullable=False, default=0),
)


class Transferred(Payload, context="transferred"):
    """Money went from the entity to another."""

    to: str


@domain.project(Transferred)
def transfer(transferred: Recorded[Transferred], rows: Rows) -> None:
    """Move a cent."""
    other = rows.get(balances, transferred.payload.to)
    rows.put(balances, entity=transferred.payload.to, cents=(other.cents if other else 0) + 1)
    rows.add(balances, transferred.entity, cents=0)
