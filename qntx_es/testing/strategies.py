"""Histories of attestations, drawn: what a domain may meet, from few entities and few actors.

The payload classes that the domain handles say what there is to draw. Pools are tiny, so that what
is said collides; one draw in ten is a context that nobody handles, over which a cursor must pass.
A history is valid: where one kind of statement comes first about each entity, it does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from qntx_es.attestation import Attestation, Json, Payload, computed_id
from qntx_es.domain import RESERVED, Domain
from qntx_es.errors import NoStrategy
from qntx_es.host import Host
from qntx_es.jobs import JobHandler, JobRequested, ScheduleFired
from qntx_es.pulse.schedules import EPOCH
from qntx_es.testing.payloads import JSON_VALUES, payloads


@dataclass(frozen=True, slots=True)
class _Said:
    """An attestation that has no place in a log yet, and so no id."""

    payload: Payload | Json
    entity: str
    actor: str
    context: str
    version: int = 1

    def at(self, number: int) -> Attestation:
        """Return it with the id of its place, so that a log that shrinks stays the same log."""
        return Attestation(
            context=self.context,
            entity=self.entity,
            actor=self.actor,
            payload=self.payload,
            schema_version=self.version,
            id=computed_id("drawn", str(number)),
        )


History: TypeAlias = list[Attestation]
Histories: TypeAlias = SearchStrategy[History]

LENGTH_MAX = 30
UNHEARD = "heard_by_nobody"
ELSEWHERE = "somebody@elsewhere"
PULSE = "pulse@system"
FIRES_MAX = 1_000
LETTERS = 26
TENTH = 10


def attestations(  # noqa: PLR0913 - one keyword a choice
    domain: Domain,
    *,
    entities: int = 3,
    actors: int = 2,
    starts_with: type[Payload] | None = None,
    then: Iterable[type[Payload]] | None = None,
    strategies: Mapping[type[Payload], SearchStrategy[Any]] | None = None,
    longest: int = LENGTH_MAX,
) -> Histories:
    """Return a strategy for logs that a domain may meet, at most `longest` attestations.

    They are about so many `entities`, by so many `actors`. Of each entity the first is a
    `starts_with`, if that is given, and all others are of the classes in `then` (by default of all
    that the domain reads). `strategies` are your own for payloads of a class. Raises `NoStrategy`.
    """
    given = dict(strategies or {})
    read = list(dict.fromkeys(_read_by(domain) if then is None else then))
    if starts_with is not None:
        read = [one for one in read if one is not starts_with]
    names = st.sampled_from([_entity(number) for number in range(entities)])
    heard = [_said(domain, one, names, actors, given) for one in read]
    if not heard and starts_with is None:
        raise NoStrategy(f"`{domain.name}` has no handlers, so nothing is said to it: add one")
    elsewhere = _unheard(names)
    spoken = st.one_of(heard) if heard else elsewhere
    one = st.integers(1, TENTH).flatmap(lambda tenth: elsewhere if tenth == TENTH else spoken)
    if starts_with is None:
        return st.lists(one, min_size=1, max_size=longest).map(_numbered)
    return _begun(domain, one, starts_with, actors, given, longest)


def from_log(host: Host, *, sample: int = 1_000, longest: int = LENGTH_MAX) -> Histories:
    """Return a strategy for slices of the last `sample` attestations of a log, and parts of them.

    What was derived in them is said like anything else. Raises `NoStrategy` for an empty log.
    """
    host.get_ready()
    after = max(0, host.log.head() - sample)
    found = [_again(one) for one in host.log.read(after=after, limit=sample) if _is_sayable(one)]
    if not found:
        raise NoStrategy("nothing that could be said again is in this log")

    @st.composite
    def slices(draw: DrawFn) -> History:
        start = draw(st.integers(0, len(found) - 1))
        cut = found[start : start + draw(st.integers(1, longest))]
        left = draw(st.sets(st.integers(0, len(cut) - 1)) | st.just(set(range(len(cut)))))
        return [cut[index] for index in sorted(left)] or cut[:1]

    return slices()


def _entity(number: int) -> str:
    """Return a name: a to z, then e26, e27, …."""
    return chr(ord("a") + number) if number < LETTERS else f"e{number}"


def _read_by(domain: Domain) -> Iterable[type[Payload]]:
    yield from (one.payload for one in domain.projects)
    yield from (one.payload for one in domain.derives)


def _said(
    domain: Domain,
    payload: type[Payload],
    names: SearchStrategy[str],
    actors: int,
    given: Mapping[type[Payload], SearchStrategy[Any]],
) -> SearchStrategy[_Said]:
    if payload in given:
        drawn = given[payload]
    elif payload.context == JobRequested.context and domain.jobs:
        drawn = st.sampled_from(domain.jobs).flatmap(_requested)
    elif payload.context == ScheduleFired.context:
        return _fired(domain)
    else:
        drawn = payloads(payload)
    speakers = st.sampled_from(_speakers(domain, payload, actors))
    today = st.builds(_of_class, drawn, names, speakers)
    return st.one_of(today, *_of_old(domain, payload, names, speakers))


def _of_old(
    domain: Domain,
    payload: type[Payload],
    names: SearchStrategy[str],
    speakers: SearchStrategy[str],
) -> Iterable[SearchStrategy[_Said]]:
    """Yield what older code said in the context, as far as its upcasters know the class of it."""
    for one in domain.upcasters:
        if one.payload is payload and one.old is not None:
            values = payloads(one.old).map(lambda old: old.model_dump(mode="json"))
            context, since = st.just(payload.context), st.just(one.since)
            yield st.builds(_Said, values, names, speakers, context, since)


def _of_class(payload: Payload, entity: str, actor: str) -> _Said:
    return _Said(payload, entity, actor, payload.context, payload.schema_version)


def _speakers(domain: Domain, payload: type[Payload], actors: int) -> Sequence[str]:
    if not domain.may_emit(payload.context):
        return [ELSEWHERE, *(f"somebody{number}@elsewhere" for number in range(2, actors + 1))]
    return domain.actors[: max(1, actors)]


def _requested(handler: JobHandler[Any]) -> SearchStrategy[JobRequested]:
    if handler.model is None:
        return st.just(JobRequested(handler=handler.name))
    return payloads(handler.model).map(
        lambda model: JobRequested(handler=handler.name, payload=model.model_dump(mode="json"))
    )


def _fired(domain: Domain) -> SearchStrategy[_Said]:
    def fire(number: int, count: int) -> _Said:
        schedule = domain.schedules[number]
        due = EPOCH + count * schedule.step
        return _of_class(ScheduleFired(due_at=due), schedule.name, PULSE)

    if not domain.schedules:
        return st.integers(1, FIRES_MAX).map(
            lambda days: _of_class(
                ScheduleFired(due_at=EPOCH + timedelta(days=days)), "somebody.daily", PULSE
            )
        )
    which = st.integers(0, len(domain.schedules) - 1)
    return st.builds(fire, which, st.integers(1, FIRES_MAX))


def _unheard(names: SearchStrategy[str]) -> SearchStrategy[_Said]:
    values = st.dictionaries(st.sampled_from("xy"), JSON_VALUES, max_size=1)
    return st.builds(
        lambda payload, entity: _Said(payload, entity, ELSEWHERE, UNHEARD), values, names
    )


def _begun(  # noqa: PLR0913, PLR0917 - the parts of a history
    domain: Domain,
    one: SearchStrategy[_Said],
    starts_with: type[Payload],
    actors: int,
    given: Mapping[type[Payload], SearchStrategy[Any]],
    longest: int,
) -> Histories:
    first = _said(domain, starts_with, st.just("unnamed"), actors, given)

    @st.composite
    def histories(draw: DrawFn) -> History:
        said: list[_Said] = []
        begun: set[str] = set()
        for each in draw(st.lists(one, min_size=1, max_size=longest)):
            if each.entity not in begun and each.context != UNHEARD:
                begun.add(each.entity)
                said.append(replace(draw(first), entity=each.entity))
            said.append(each)
        return _numbered(said[:longest])

    return histories()


def renumbered(said: Attestation, number: int) -> Attestation:
    """Return an attestation that was drawn with the id of another place."""
    kind = said.payload_class
    payload = said.payload if kind is None else kind.model_validate_json(said.text)
    return _Said(payload, said.entity, said.actor, said.context, said.schema_version).at(number)


def _numbered(said: Sequence[_Said]) -> History:
    return [one.at(number) for number, one in enumerate(said, 1)]


def _again(recorded: Any) -> Attestation:  # noqa: ANN401 - as the log has it
    return Attestation(
        context=recorded.context,
        entity=recorded.entity,
        actor=recorded.actor,
        payload=recorded.payload,
        id=recorded.id,
        schema_version=recorded.schema_version,
        caused_by=recorded.caused_by,
        correlation_id=recorded.correlation_id,
        depth=recorded.depth,
        tags=recorded.tags,
    )


def _is_sayable(recorded: Any) -> bool:  # noqa: ANN401 - as the log has it
    return recorded.context == JobRequested.context or not recorded.context.startswith(RESERVED)


__all__ = ["Histories", "History", "attestations", "from_log"]
