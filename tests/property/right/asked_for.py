"""What has to look at the world is a job: the domain asks for it, and projects what came of it."""

from collections.abc import Iterator

from pydantic import BaseModel
from sqlalchemy import Column, Integer, String

from qntx_es import (
    Attestation,
    Domain,
    Job,
    Payload,
    ReadRows,
    Recorded,
    Rows,
    ServiceRegistry,
)


class Entered(Payload, context="address_entered"):
    """An address was entered."""

    line: str


class Located(Payload, context="located"):
    """An address was found on the map."""

    latitude: int


domain = Domain("maps", emits=(Located,))
addresses = domain.table(
    "addresses",
    Column("entity", String, primary_key=True),
    Column("entered", Integer, nullable=False, default=0),
    Column("latitude", Integer),
)


class Locate(BaseModel):
    """What is to be found."""

    line: str


@domain.job()
def locate(job: Job[Locate], registry: ServiceRegistry) -> None:
    """Find an address on the map; the clock, a file and the network are welcome here."""
    latitude = len(job.payload.line)
    registry.store.append(domain.attest(Located(latitude=latitude), entity=job.entity))


@domain.project(Entered)
def enter(entered: Recorded[Entered], rows: Rows) -> None:
    """Count it."""
    rows.add(addresses, entered.entity, entered=1)


@domain.project(Located)
def place(located: Recorded[Located], rows: Rows) -> None:
    """Keep where it is."""
    rows.put(addresses, entity=located.entity, latitude=located.payload.latitude % 90)


@domain.derive(Entered)
def ask(entered: Recorded[Entered], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001 - a handler's
    """Ask for it to be found."""
    yield locate.request(entity=entered.entity, line=entered.payload.line)
