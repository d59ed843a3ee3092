"""What an author writes, as the documentation shows it: every checker accepts all of it."""

# ruff: noqa: ARG001 - a handler has its two arguments, whether it looks at them or not

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, assert_type

from pydantic import BaseModel
from sqlalchemy import Column, Integer, String, select

from qntx_es import (
    Attestation,
    Ax,
    Domain,
    Host,
    Job,
    JobHandler,
    Payload,
    ReadRows,
    Receipt,
    Recorded,
    Row,
    Rows,
    ServiceRegistry,
    count,
    first,
    last,
    most,
    total,
)


class Cloned(Payload, context="repository_cloned"):
    """A repository was cloned."""

    path: str
    branch: str = "main"


class Analyzed(Payload, context="repository_analyzed", schema_version=3):
    """A repository was analysed, as is said today."""

    loc: int


class AnalyzedFirst(BaseModel):
    """What the first version said."""

    lines: int


class Wish(BaseModel):
    """What a job is asked with."""

    path: str


code = Domain("code", version=1, emits=(Cloned, "repository_*"), actors=("code@system",))
repositories = code.table(
    "repositories",
    Column("entity", String, primary_key=True),
    Column("commits", Integer, nullable=False, default=0),
)


code.fold(Analyzed, into=repositories, key="entity", commits=count())
code.fold(Analyzed, into=repositories, key=["entity"], commits=total("payload.loc"))
code.fold(
    Cloned,
    into=repositories,
    key={"entity": "entity"},
    path=first("payload.path"),
    branch=last("payload.branch"),
    position=most("position"),
)


@code.project(Cloned)
def add(cloned: Recorded[Cloned], rows: Rows) -> None:
    """Put, add, get and delete."""
    assert_type(cloned.payload, Cloned)
    assert_type(cloned.payload.path, str)
    rows.put(repositories, entity=cloned.entity, commits=0)
    rows.add(repositories, cloned.entity, commits=1)
    row = rows.get(repositories, cloned.entity)
    assert_type(row, Row | None)
    rows.delete(repositories, cloned.entity)
    rows.execute(repositories.delete())


@code.project(Cloned, name="bare")
def bare(cloned: Recorded, rows: Rows) -> None:
    """Take a bare annotation."""
    assert_type(cloned.payload, Any)


@code.project(Cloned, keys=lambda cloned: [(repositories, cloned.payload.path)])
def more(cloned: Recorded[Cloned], rows: Rows, extra: int = 0) -> None:
    """Take further parameters that have defaults."""


@code.upcast(Analyzed, from_=1)
def rename(old: AnalyzedFirst) -> dict[str, int]:
    """Lift from a model."""
    return {"loc": old.lines}


@code.upcast(Analyzed, from_=2)
def keep(old: dict[str, Any]) -> dict[str, Any]:
    """Lift from a mapping of one's own."""
    return old


@code.derive(Cloned)
def ask(cloned: Recorded[Cloned], rows: ReadRows) -> Iterator[Attestation]:
    """Ask for a job."""
    rows.select(select(repositories))
    yield analyze.request(entity=cloned.entity, path=cloned.payload.path)
    yield analyze.request(Wish(path=cloned.payload.path), entity=cloned.entity)


@code.derive(Cloned, since="beginning")
def listed(cloned: Recorded[Cloned], rows: ReadRows) -> Iterable[Attestation]:
    """Return a list as well."""
    return [code.attest(cloned.payload, entity=cloned.entity)]


@code.every(timedelta(hours=6))
def again(due: datetime, rows: ReadRows) -> Iterator[Attestation]:
    """Say something every so often."""
    yield code.attest(Cloned(path=str(due)), entity="all")


@code.job(retries=3, timeout=timedelta(minutes=10))
def analyze(job: Job[Wish], services: ServiceRegistry) -> None:
    """Do the slow things."""
    assert_type(job.payload, Wish)
    services.logger("code").info("%s", job.payload.path)
    services.store.append(code.attest(Cloned(path=job.payload.path), entity=job.entity))
    with services.database.read() as rows:
        rows.get(repositories, job.entity)


@code.job()
def untyped(job: Job, services: ServiceRegistry) -> int:
    """Take whatever comes."""
    return len(job.payload)


assert_type(analyze, JobHandler[Wish])


def use(host: Host, said: Attestation) -> None:
    """Append and ask."""
    assert_type(host.append(said), Receipt)
    assert_type(host.append([said]), list[Receipt])
    for one in host.ax(Ax(contexts="repository_cloned", limit=3)):
        assert_type(one.payload["path"], Any)
    with host.running() as running:
        running.wait_for(1, "code")
