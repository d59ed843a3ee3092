"""Which contexts there are: what each says, in every version, who states it and who reads it.

A payload is flexible, and so it must be documented. Nobody writes this by hand: the classes, the
handlers and the log know it all. A context that no enabled domain knows is kept and counted too.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from qntx_es.attestation import Json, Payload, instant
from qntx_es.domain import OPEN, Domain
from qntx_es.folds import Fold
from qntx_es.inbox import AppendRefused
from qntx_es.projections.certificate import ModelRebuilt, ModelVerified
from qntx_es.projections.cutting import SlicesCut
from qntx_es.projections.ledger import (
    Parked,
    Paused,
    Resumed,
    Retried,
    Skipped,
    SkipWithdrawn,
    Unparked,
)
from qntx_es.projections.starts import DeriveStarted
from qntx_es.tables import attestations
from qntx_es.upcasting import Chain

FRAMEWORK = "qntx"
OWN: dict[str, type[Payload]] = {
    one.context: one
    for one in (
        AppendRefused,
        DeriveStarted,
        ModelRebuilt,
        ModelVerified,
        Parked,
        Paused,
        Resumed,
        Retried,
        Skipped,
        SkipWithdrawn,
        SlicesCut,
        Unparked,
    )
}
ANYBODY = "any domain"


@dataclass(frozen=True, slots=True)
class Version:
    """A schema version of a payload: its JSON Schema, None where an old one has no class."""

    number: int
    schema: Json | None


@dataclass(frozen=True, slots=True)
class Reader:
    """A handler that reads a context; `kind` is project, fold or derive."""

    domain: str
    handler: str
    kind: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the log, and when."""

    position: int
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Found:
    """What the log holds of a context, `versions` counted by schema version."""

    count: int
    first: Place
    last: Place
    versions: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Context:
    """One context: without `versions` no enabled domain declares it, without `found` none is said.

    `appended_by` are the domains that have its class in `emits`, or else a glob it fits.
    """

    name: str
    summary: str
    versions: tuple[Version, ...]
    appended_by: tuple[str, ...]
    read_by: tuple[Reader, ...]
    found: Found | None

    @property
    def is_declared(self) -> bool:
        """Tell whether an enabled domain states or reads it."""
        return bool(self.versions or self.appended_by)


def catalogue(domains: Sequence[Domain], found: Mapping[str, Found]) -> list[Context]:
    """Return every context that `domains` know or that was found in the log, by name."""
    names = {*OWN, *found}
    for domain in domains:
        names.update(domain.payloads)
        names.update(one for one in domain.emits or () if not set(one) & set("*?["))
    return [_context(name, domains, found.get(name)) for name in sorted(names)]


def found_in(connection: Connection) -> dict[str, Found]:
    """Return what the log holds of each context, read through the index of contexts."""
    said = attestations.c
    counted = (
        select(
            said.context,
            said.schema_version,
            func.count().label("size"),
            func.min(said.position).label("first"),
            func.max(said.position).label("last"),
        )
        .group_by(said.context, said.schema_version)
        .subquery()
    )
    first, last = attestations.alias("first"), attestations.alias("last")
    asked = (
        select(counted, first.c.recorded_at.label("begun"), last.c.recorded_at.label("ended"))
        .join(first, first.c.position == counted.c.first)
        .join(last, last.c.position == counted.c.last)
        .order_by(counted.c.context, counted.c.schema_version)
    )
    by_context: dict[str, list[Found]] = {}
    for row in connection.execute(asked):
        begun = Place(row.first, instant(row.begun))
        ended = Place(row.last, instant(row.ended))
        one = Found(row.size, begun, ended, {row.schema_version: row.size})
        by_context.setdefault(row.context, []).append(one)
    return {context: _together(versions) for context, versions in by_context.items()}


def _together(versions: Sequence[Found]) -> Found:
    return Found(
        count=sum(one.count for one in versions),
        first=min((one.first for one in versions), key=lambda place: place.position),
        last=max((one.last for one in versions), key=lambda place: place.position),
        versions={number: count for one in versions for number, count in one.versions.items()},
    )


def _context(name: str, domains: Sequence[Domain], found: Found | None) -> Context:
    chain = _chain(name, domains)
    schemas = {} if chain is None else chain.schemas()
    return Context(
        name=name,
        summary="" if chain is None else inspect.getdoc(chain.payload) or "",
        versions=tuple(Version(number, schema) for number, schema in schemas.items()),
        appended_by=tuple(_appended_by(name, domains)),
        read_by=tuple(_read_by(name, domains)),
        found=found,
    )


def _chain(name: str, domains: Sequence[Domain]) -> Chain[Payload] | None:
    """Return the class that whoever states a context has for it, else what a reader has."""
    if name in OWN:
        return Chain(OWN[name])
    knowing = [domain for domain in domains if name in domain.payloads]
    knowing.sort(key=lambda domain: not _declares(domain, name))
    return knowing[0].chain(knowing[0].payloads[name]) if knowing else None


def _appended_by(name: str, domains: Sequence[Domain]) -> Iterable[str]:
    if name in OWN:
        return [FRAMEWORK]
    if name in OPEN:
        return [ANYBODY]
    stating = [one for one in domains if name in {each.context for each in one.declared}]
    return [one.name for one in stating or [one for one in domains if _declares(one, name)]]


def _declares(domain: Domain, name: str) -> bool:
    return domain.emits is not None and domain.may_emit(name)


def _read_by(name: str, domains: Sequence[Domain]) -> Iterable[Reader]:
    for domain in domains:
        for project in domain.projects:
            if project.payload.context == name:
                kind = "fold" if isinstance(project.function, Fold) else "project"
                yield Reader(domain.name, project.name, kind)
        for derive in domain.derives:
            if derive.payload.context == name:
                yield Reader(domain.name, derive.name, "derive")
