"""What is kept is declared, and the database may fold it."""

from sqlalchemy import BigInteger, Column, Integer, String

from qntx_es import Domain, Payload, count, first, last, most

domain = Domain("books")
books = domain.table(
    "books",
    Column("entity", String, primary_key=True),
    Column("loans", Integer, nullable=False, default=0),
    Column("by", String),
    Column("since", BigInteger),
    Column("longest", BigInteger),
)


class Lent(Payload, context="lent"):
    """A book was lent."""

    to: str
    days: int | None = None


domain.fold(
    Lent,
    into=books,
    key="entity",
    loans=count(),
    by=last("payload.to"),
    since=first("position"),
    longest=most("payload.days"),
)
