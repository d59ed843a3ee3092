"""Each third complaint about the same is answered, once."""

from collections.abc import Iterator

from sqlalchemy import Column, Integer, String

from qntx_es import Attestation, Domain, Payload, ReadRows, Recorded, Rows


class Complained(Payload, context="complained"):
    """Somebody complained."""

    about: str = "noise"


class Apologised(Payload, context="apologised"):
    """We apologised."""

    complaints: int


domain = Domain("complaints", emits=(Apologised,))
complaints = domain.table(
    "complaints",
    Column("entity", String, primary_key=True),
    Column("times", Integer, nullable=False, default=0),
)


@domain.project(Complained)
def count(complained: Recorded[Complained], rows: Rows) -> None:
    """Count it."""
    rows.add(complaints, complained.entity, times=1)


@domain.derive(Complained)
def apologise(complained: Recorded[Complained], rows: ReadRows) -> Iterator[Attestation]:
    """Apologise for every third."""
    row = rows.get(complaints, complained.entity)
    if row is not None and row.times % 3 == 0:
        yield domain.attest(Apologised(complaints=row.times), entity=complained.entity)
