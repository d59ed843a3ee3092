"""Balances are kept in a dictionary of the module, and rows are what it says at the time."""

from collections import defaultdict

from sqlalchemy import BigInteger, Column, String

from qntx_es import Domain, Payload, Recorded, Rows

CAUSE = "restart"

domain = Domain("accounts")
accounts = domain.table(
    "accounts", Column("entity", String, primary_key=True), Column("balance", BigInteger)
)
balances: defaultdict[str, int] = defaultdict(int)


class Paid(Payload, context="paid"):
    """Something was paid."""

    cents: int


@domain.project(Paid)
def add_up(paid: Recorded[Paid], rows: Rows) -> None:
    """Add it up, beside the rows."""
    balances[paid.entity] += 1
    rows.put(accounts, entity=paid.entity, balance=balances[paid.entity])
