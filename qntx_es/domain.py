"""A domain: what a plugin is, as a value that opens nothing.

An author declares tables and registers functions; a host runs them. A domain is checked as a whole
when a host takes it up, and everything wrong with it is said at once. It never sees another domain:
what it reads of others are attestations, re-declared with the fields it needs.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, Literal, TypeAlias, TypeGuard, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from sqlalchemy import Column, MetaData, Table
from sqlalchemy.sql.schema import SchemaItem
from typing_extensions import TypeVar

from qntx_es import columns
from qntx_es.attestation import Attestation, Json, Payload, Recorded, checked_name, problems_of
from qntx_es.ax import checked_path
from qntx_es.cycles import Link, contexts_made, cycles_of
from qntx_es.errors import (
    AxError,
    DomainRefused,
    ForeignActor,
    ForeignContext,
    InvalidId,
    InvalidPayload,
    did_you_mean,
)
from qntx_es.folds import Fold, KeyPaths, Measure, fold_of
from qntx_es.jobs import (
    COST_MAX,
    DELAY_MAX,
    REQUESTER,
    Backoff,
    CancellationRequested,
    Job,
    JobHandler,
    JobOptions,
    JobRequested,
    Keyed,
    OnLapse,
    Rate,
    Runs,
    ScheduleFired,
)
from qntx_es.rows import ReadRows, Rows
from qntx_es.services import ServiceRegistry
from qntx_es.upcasting import Chain, Upcaster

P = TypeVar("P", bound=Payload)
J = TypeVar("J")
Old = TypeVar("Old", bound=BaseModel | Mapping[str, Any])

Project: TypeAlias = Callable[[Recorded[P], Rows], None]
Derive: TypeAlias = Callable[[Recorded[P], ReadRows], Iterable[Attestation]]
Every: TypeAlias = Callable[[datetime, ReadRows], Iterable[Attestation]]
Lift: TypeAlias = Callable[[Old], Json | BaseModel]
Emits: TypeAlias = str | type[Payload]
OnFailure: TypeAlias = Literal["stop", "park", "skip"]
OnOutdated: TypeAlias = Literal["ask", "auto"]
Keys: TypeAlias = Callable[[Recorded[P]], Iterable[tuple[Any, ...]]]

NAME = re.compile(r"[a-z][a-z0-9]{1,23}")
# Sections of the configuration, our own tables, and what the databases keep for themselves.
TAKEN = frozenset(
    ("database", "domains", "pg", "prometheus", "qntx", "remote", "sqlite", "test", "web")
)
RESERVED = ("pulse.", "qntx.")
# Met by the projector itself, which works an entity off there.
RETRIED = "qntx.retried"
# What any domain may say to Pulse, though the names are reserved.
OPEN: Mapping[str, type[Payload]] = {
    one.context: one for one in (JobRequested, CancellationRequested)
}
ARGUMENTS = 2
STEP_MAX = timedelta(days=10_000)
ATTEMPTS_MAX = 1_000_000
COUNT_MAX = 2**31


@dataclass(frozen=True, slots=True)
class ProjectHandler:
    """A function that writes rows for each attestation of one context."""

    name: str
    payload: type[Payload]
    function: Callable[[Any, Any], None]
    keys: Callable[[Any], Iterable[tuple[Any, ...]]] | None


@dataclass(frozen=True, slots=True)
class DeriveHandler:
    """A function that says what follows from each attestation of one context, once."""

    name: str
    payload: type[Payload]
    function: Callable[[Any, Any], Iterable[Attestation]]
    is_from_beginning: bool
    schedule: str | None

    def is_for(self, context: str, entity: str) -> bool:
        """Tell whether an attestation is a source of it: a fire is of one schedule."""
        return context == self.payload.context and self.schedule in (None, entity)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A clock that fires every `step`, counted from 1970-01-01 UTC."""

    name: str
    step: timedelta


class Domain:
    """A plugin by name: its tables, handlers, jobs and schedules.

    `version` is the read model's: a new one means a rebuild. `emits` are the payload classes it may
    attest, which document their contexts, or globs of contexts; `actors` are those it may speak as,
    beside `<name>@plugin`, and `attest` uses the first. `inline` domains are projected with the
    positions themselves, and do not derive. The entities of a domain that is `by_entity` are
    independent: what is said about one writes rows of that one, and adds to others, so ranges of
    them may be projected by several processes. `on_failure` is what becomes of an attestation at
    which a handler has failed three times: the projector stops before it, parks its entity (all
    that is said about it waits from there on, in order, until it is retried), or skips it.
    `cycles` are the contexts, or payload classes, that its derive handlers may come back to, to the
    depth of 64. Tables of an older version are rebuilt when somebody asks for it or, with
    `rebuild="auto"`, when found.
    """

    def __init__(  # noqa: PLR0913 - one keyword a choice
        self,
        name: str,
        *,
        version: int = 1,
        emits: Emits | Iterable[Emits] | None = None,
        actors: str | Iterable[str] = (),
        inline: bool = False,
        by_entity: bool = False,
        on_failure: OnFailure = "stop",
        cycles: Emits | Iterable[Emits] = (),
        rebuild: OnOutdated = "ask",
    ) -> None:
        self.name = name
        self.version = version
        given = (emits,) if isinstance(emits, str | type) else tuple(emits or ())
        self.declared = tuple(one for one in given if isinstance(one, type))
        self.emits = None if emits is None else tuple(map(_context_of, given))
        self.actors = _texts(actors) or (f"{name}@plugin",)
        self.inline = inline
        self.by_entity = by_entity
        self.on_failure: OnFailure = on_failure
        self.cycles = tuple(
            map(_context_of, (cycles,) if isinstance(cycles, str | type) else cycles)
        )
        self.rebuild: OnOutdated = rebuild
        self.metadata = MetaData()
        self.projects: list[ProjectHandler] = []
        self.derives: list[DeriveHandler] = []
        self.jobs: list[JobHandler[Any]] = []
        self.schedules: list[Schedule] = []
        self.upcasters: list[Upcaster] = []
        self.indexes: list[tuple[str, ...]] = []
        self._problems: list[str] = []

    @property
    def tables(self) -> dict[str, Table]:
        """The domain's tables by the names they have in the database."""
        return dict(self.metadata.tables)

    @property
    def folds(self) -> list[Fold]:
        """Those of the project handlers that were declared and not coded."""
        return [one.function for one in self.projects if isinstance(one.function, Fold)]

    @property
    def payloads(self) -> dict[str, type[Payload]]:
        """The payload classes this domain declares or reads, by context."""
        read = {one.context: one for one in self._read()}
        return read | {one.context: one for one in self.declared}

    def chain(self, payload: type[P]) -> Chain[P]:
        """Return how payloads of a class are read, whichever version wrote them."""
        return Chain(payload, [one for one in self.upcasters if one.payload is payload])

    def lifts(self, payload: type[Payload]) -> bool:
        """Tell whether this domain has upcasters for a class."""
        return any(one.payload is payload for one in self.upcasters)

    def table(self, name: str, *parts: SchemaItem) -> Table:
        """Declare a table of the read model; in the database it is `<domain>_<name>`."""
        prepared = [columns.prepared(one) if isinstance(one, Column) else one for one in parts]
        if f"{self.name}_{name}" in self.metadata.tables:
            raise DomainRefused(self.name, [f"table `{self.name}_{name}` is declared twice"])
        return Table(f"{self.name}_{name}", self.metadata, *prepared)

    def attest(  # noqa: PLR0913 - one keyword a part of the statement
        self,
        payload: Payload,
        *,
        entity: str,
        actor: str | None = None,
        id: str | None = None,  # noqa: A002 - the glossary's word
        caused_by: str | None = None,
        correlation_id: str | None = None,
        tags: Iterable[str] = (),
    ) -> Attestation:
        """Return a statement of this domain; nothing is appended yet.

        Raises `ForeignContext`, `ForeignActor`, and what `Attestation` raises.
        """
        said = Attestation(
            context=payload.context,
            entity=entity,
            actor=self.actors[0] if actor is None else actor,
            payload=payload,
            id=id,
            schema_version=payload.schema_version,
            caused_by=caused_by,
            correlation_id=correlation_id,
            tags=tags,
        )
        self.refuse_foreign(said)
        return said

    def index(self, payload: type[Payload], path: str) -> None:
        """Ask for an index of the log on a path of payloads, such as `file.name`.

        Queries with a condition on it (`where file.name = "a"`, and `<`, `>`, `in`) then find what
        they ask for at any length of the log. It is made by `host.upgrade()`, and each append of
        any context pays for it.
        """
        first = path.split(".", maxsplit=1)[0]
        fields = [name for one in payload.model_fields.items() for name in _names_of(*one)]
        if first not in fields:
            self._problems.append(
                f"index `{path}`: {payload.__name__} has no field `{first}`"
                f"{did_you_mean(first, fields)}"
            )
        try:
            self.indexes.append(checked_path(path))
        except AxError as error:
            self._problems.append(f"index {error}")

    def project(
        self, payload: type[P], *, name: str | None = None, keys: Keys[P] | None = None
    ) -> Callable[[Project[P]], Project[P]]:
        """Register a function that writes rows for each attestation of the payload's context.

        It is replayed on every rebuild, so it may look at nothing but its two arguments. `keys`
        names the rows to read ahead, as (table, *key), where they are not keyed by the entity.
        """

        def register(function: Project[P]) -> Project[P]:
            handler = ProjectHandler(name or _name_of(function), payload, function, keys)
            if self._is_payload(handler.name, payload):
                self._check_recorded(handler.name, function, payload)
                self._check_plain(handler.name, function)
                self.projects.append(handler)
            return function

        return register

    def fold(
        self, payload: type[Payload], /, *, into: Table, key: KeyPaths, **measures: Measure
    ) -> None:
        """Declare what a table keeps of each attestation of the payload's context, by key.

        `code.fold(CommitRecorded, into=repositories, key="entity", commits=count())`: each keyword
        is a column. A path is `entity`, `actor`, `position`, `recorded_at` or `payload.<field>`; a
        key of several columns takes several, in their order or by name. Several folds and handlers
        may write one table. Where a domain has nothing but folds, the database itself runs them.
        """
        called = f"fold into `{getattr(into, 'name', into)}`"
        if not self._is_payload(called, payload):
            return
        if self.metadata.tables.get(getattr(into, "name", "")) is not into:
            self._problems.append(f"{called}: it is no table of this domain")
            return
        made = fold_of(payload, into, key, measures)
        if isinstance(made, list):
            self._problems += [f"{called}: {problem}" for problem in made]
            return
        keys = None if made.is_by_entity else made.keys
        self.projects.append(ProjectHandler(made.name, payload, made, keys))

    def derive(
        self, payload: type[P], *, name: str | None = None, since: str | None = None
    ) -> Callable[[Derive[P]], Derive[P]]:
        """Register a function that yields what follows from each attestation, once for each.

        It sees the rows as of that attestation. Its name is part of the ids it gives: keep `name=`
        when the function is renamed. It speaks from now on; `since="beginning"` also of the past.
        """

        def register(function: Derive[P]) -> Derive[P]:
            handler = DeriveHandler(
                name or _name_of(function), payload, function, since == "beginning", None
            )
            if since not in (None, "beginning"):
                self._problems.append(f"derive `{handler.name}`: since= is 'beginning' or left out")
            if self._is_payload(handler.name, payload):
                self._check_recorded(handler.name, function, payload)
                self.derives.append(handler)
            return function

        return register

    def upcast(self, payload: type[Payload], *, from_: int) -> Callable[[Lift[Old]], Lift[Old]]:
        """Register the function that lifts payloads of version `from_` to the next version.

        It is handed the old payload, as the pydantic model its argument is annotated with, or else
        as a dict of its own to change, and returns the new one. It is pure and total: it looks at
        nothing else, and takes whatever the old version allowed.
        """

        def register(function: Lift[Old]) -> Lift[Old]:
            called = f"upcaster `{_name_of(function)}`"
            self._problems += _upcast_problems(called, payload, from_)
            old = self._old_class(called, function)
            if any(one.payload is payload and one.since == from_ for one in self.upcasters):
                self._problems.append(f"{called}: version {from_} is lifted by another one already")
            self.upcasters.append(Upcaster(payload, from_, function, old))
            return function

        return register

    def every(self, step: timedelta, *, name: str | None = None) -> Callable[[Every], Every]:
        """Register a function that yields attestations each time `step` has passed since 1970.

        It gets the time that was due, never now, and runs as a derive of the recorded fire.
        """

        def register(function: Every) -> Every:
            called = name or _name_of(function)
            schedule = f"{self.name}.{called}"
            is_whole = not step % timedelta(seconds=1)
            if not (is_whole and timedelta(seconds=1) <= step <= STEP_MAX):
                self._problems.append(
                    f"every `{called}`: a step is a whole number of seconds, at most 10 000 days"
                )
            self._check_arguments(f"handler `{called}`", function)

            @wraps(function)  # whose source is the handler's
            def fire(fired: Recorded[ScheduleFired], rows: ReadRows) -> Iterable[Attestation]:
                return function(fired.payload.due_at, rows)

            self.schedules.append(Schedule(schedule, step))
            handler = DeriveHandler(called, ScheduleFired, fire, False, schedule)  # noqa: FBT003
            self.derives.append(handler)
            return function

        return register

    def job(  # noqa: PLR0913 - one keyword a choice
        self,
        *,
        retries: int = 3,
        backoff: Backoff | None = None,
        timeout: timedelta | None = timedelta(hours=1),
        on_lapse: OnLapse = "again",
        queue: str | None = None,
        priority: int = 1,
        limit: int | None = None,
        per_key: int | None = None,
        key: Keyed = "entity",
        rate: str | None = None,
        cost: int = 0,
        budget: str | None = None,
        unique: Callable[[Any], str] | None = None,
        delay: timedelta = timedelta(0),
        runs: Runs | None = None,
        give_up_on: Iterable[type[Exception]] = (),
        name: str | None = None,
    ) -> Callable[[Callable[[Job[J], ServiceRegistry], object]], JobHandler[J]]:
        """Register a function that does slow or outside things, and ends in attestations.

        What it appends is committed together with its success, and what it returns, a JSON value
        of at most 32 KiB, is the job's result. It may run `retries + 1` times, with the pauses of
        `backoff` between, and each time until `timeout`. An attempt that vanishes with its worker
        is repeated unless `on_lapse="fail"`; errors of the kinds in `give_up_on` end the job.

        Over all hosts at most `limit` run at once, and at most `per_key` of one key: the entity,
        or what `key` makes of the payload. `rate` bounds the starts in any window (`"100/m"`).
        `queue`, by default the domain's name, is a set of handlers with limits in common. `cost`
        is an estimate in millionths of the unit of `budget`. Priority 0 is urgent, 3 idle. While
        an open job holds the value that `unique` makes of the payload, a new request is merged
        into it. `delay` is how long a request waits at least.

        It runs in a thread, an `async def` on an event loop; `runs="process"` is for those that
        hold the interpreter, and imports the handler in a process of its own.
        """

        def register(function: Callable[[Job[J], ServiceRegistry], object]) -> JobHandler[J]:
            called = name or _name_of(function)
            self._check_plain(called, function)
            is_async = inspect.iscoroutinefunction(function)
            options = JobOptions(
                retries=retries,
                backoff=backoff or Backoff(),
                timeout=timeout,
                on_lapse=on_lapse,
                queue=queue or self.name,
                priority=priority,
                limit=limit,
                per_key=per_key,
                key=key,
                rate=self._rate(called, rate),
                cost=cost,
                budget=budget,
                unique=unique,
                delay=delay,
                runs=runs or ("loop" if is_async else "thread"),
                give_up_on=tuple(give_up_on),
            )
            self._problems += _option_problems(called, options, is_async=is_async)
            handler = JobHandler(
                name=f"{self.name}.{called}",
                function=function,
                actor=self.actors[0],
                model=self._job_model(called, function),
                options=options,
                version=self.version,
            )
            self.jobs.append(handler)
            return handler

        return register

    def _rate(self, handler: str, text: str | None) -> Rate | None:
        try:
            return None if text is None else Rate.parse(text)
        except ValueError as error:
            self._problems.append(f"job `{handler}`: {error}")
            return None

    def refuse_foreign(self, said: Attestation) -> None:
        """Raise `ForeignContext` or `ForeignActor` for what this domain may not say."""
        if not self.may_emit(said.context):
            declared = ", ".join(self.emits) if self.emits is not None else "anything not reserved"
            raise ForeignContext(
                f"domain `{self.name}` may not attest `{said.context}`; it declared: {declared}"
            )
        meant = OPEN.get(said.context)
        if meant is not None and said.payload_class is not meant:
            _refuse_unreadable(said, meant)
        if meant is not None and said.actor == REQUESTER:
            return
        if said.actor not in self.actors and said.actor != f"{self.name}@plugin":
            raise ForeignActor(
                f"domain `{self.name}` may not speak as `{said.actor}`"
                f"{did_you_mean(said.actor, (*self.actors, f'{self.name}@plugin'))}"
            )

    def may_emit(self, context: str) -> bool:
        """Tell whether this domain may attest in a context."""
        if context.startswith(RESERVED):
            return context in OPEN or self.name == "pulse"
        return self.emits is None or any(fnmatchcase(context, glob) for glob in self.emits)

    def problems(self) -> list[str]:
        """Say everything that keeps this domain from being run; an empty list is good news."""
        found = list(self._problems)
        if not NAME.fullmatch(self.name) or self.name in TAKEN:
            found.append(f"name `{self.name}`: a name is [a-z][a-z0-9]{{1,23}} and not reserved")
        found += [
            f"emits `{glob}`: contexts that begin with {' or '.join(RESERVED)} are reserved"
            for glob in self.emits or ()
            if glob.startswith(RESERVED) and self.name != "pulse"
        ]
        found += [
            f"emits {one!r}: it is no Payload class with a context"
            for one in self.declared
            if not _is_bound(one)
        ]
        found += [problem for actor in self.actors for problem in _actor_problems(actor)]
        for table in self.tables.values():
            found += columns.problems(table)
        found += [problem for one in self._read_or_lifted() for problem in self._gaps(one)]
        if self.inline and self.derives:
            found.append("an inline domain does not derive: its rows are at the head")
        if self.by_entity:
            found += [
                f"{one.name}: keyed by no entity, a by_entity domain may only count and total"
                for one in self.folds
                if not one.is_apart_by_entity
            ]
        return found + self._recovery_problems() + _doubled(self) + self._cycle_problems()

    def _recovery_problems(self) -> list[str]:
        found = [
            f"{one.__name__}: `{RETRIED}` is for the projector itself, and for no handler"
            for one in self._read()
            if one.context == RETRIED
        ]
        if self.rebuild not in get_args(OnOutdated):
            known = ", ".join(get_args(OnOutdated))
            found.append(f"rebuild={self.rebuild!r}: it is one of {known}")
        if self.on_failure not in get_args(OnFailure):
            known = ", ".join(get_args(OnFailure))
            found.append(f"on_failure={self.on_failure!r}: it is one of {known}")
        elif self.inline and self.on_failure != "stop":
            found.append(
                f"on_failure={self.on_failure!r}: an inline domain stops; a person may skip"
            )
        return found

    def _cycle_problems(self) -> list[str]:
        answered = {one.payload.context for one in self.derives}
        found = [
            f"cycles `{context}`: no derive handler answers it{did_you_mean(context, answered)}"
            for context in self.cycles
            if context not in answered
        ]
        links = [
            Link(one.name, one.payload.context, said)
            for one in self.derives
            for said in sorted(contexts_made(one.function))
            if self.may_emit(said)
        ]
        return found + [_spelt_cycle(one) for one in cycles_of(links, self.cycles)]

    def _is_payload(self, handler: str, payload: object) -> bool:
        if not (isinstance(payload, type) and issubclass(payload, Payload)):
            self._problems.append(f"handler `{handler}`: {payload!r} is no Payload class")
            return False
        if not payload.context:
            self._problems.append(
                f"handler `{handler}`: {payload.__name__} has no context; declare it "
                f"`class {payload.__name__}(Payload, context=…)`"
            )
            return False
        return True

    def _read(self) -> list[type[Payload]]:
        return [one.payload for one in self.projects] + [one.payload for one in self.derives]

    def _read_or_lifted(self) -> list[type[Payload]]:
        classes = self._read() + [one.payload for one in self.upcasters if _is_bound(one.payload)]
        return list(dict.fromkeys(classes))

    def _gaps(self, payload: type[Payload]) -> list[str]:
        return [
            f"payload `{payload.__name__}`: nothing lifts `{payload.context}` from version {gap}, "
            f"and the log may hold some; register {self.name}.upcast({payload.__name__}, "
            f"from_={gap})"
            for gap in self.chain(payload).gaps()
        ]

    def _old_class(self, called: str, function: Callable[..., object]) -> type[BaseModel] | None:
        hints = self._check_arguments(called, function, count=1)
        meant = hints[0] if hints else None
        return meant if isinstance(meant, type) and issubclass(meant, BaseModel) else None

    def _check_plain(self, handler: str, function: Callable[..., object]) -> None:
        if inspect.isgeneratorfunction(function):
            self._problems.append(
                f"handler `{handler}`: it yields, and nobody would hear it; only a derive yields"
            )

    def _check_recorded(
        self, handler: str, function: Callable[..., object], payload: type[Payload]
    ) -> None:
        hints = self._check_arguments(f"handler `{handler}`", function)
        first = hints[0] if hints else None
        if first is None or first is Recorded:
            return
        if get_origin(first) is not Recorded:
            self._problems.append(
                f"handler `{handler}`: its first argument is a Recorded[{payload.__name__}]"
            )
            return
        (meant,) = get_args(first)
        is_other = isinstance(meant, type) and meant is not payload and meant is not Any
        if is_other:
            self._problems.append(
                f"handler `{handler}`: registered for {payload.__name__}, "
                f"but its argument is a Recorded[{meant.__name__}]"
            )

    def _check_arguments(
        self,
        called: str,
        function: Callable[..., object],
        *,
        count: int = ARGUMENTS,
        may_be_async: bool = False,
    ) -> Sequence[Any]:
        """Return the annotations of the arguments it is handed, None where there is none."""
        is_async = inspect.iscoroutinefunction(function) and not may_be_async
        if is_async or inspect.isasyncgenfunction(function):
            self._problems.append(f"{called}: an async function is not run here")
        parameters = list(inspect.signature(function).parameters.values())
        needed = [one for one in parameters if one.default is inspect.Parameter.empty]
        if len(needed) != count or any(one.kind is one.KEYWORD_ONLY for one in needed):
            takes = "one argument" if count == 1 else f"{count} arguments"
            self._problems.append(f"{called}: it takes {takes}, others need defaults")
            return ()
        try:
            hints = get_type_hints(function if inspect.isroutine(function) else _call_of(function))
        except (AttributeError, NameError, SyntaxError, TypeError) as error:
            self._problems.append(f"{called}: an annotation cannot be read: {error}")
            return ()
        return [hints.get(one.name) for one in parameters[:count]]

    def _job_model(self, handler: str, function: Callable[..., object]) -> type[BaseModel] | None:
        hints = self._check_arguments(f"handler `{handler}`", function, may_be_async=True)
        meant = get_args(hints[0]) if hints else ()
        if meant and isinstance(meant[0], type) and issubclass(meant[0], BaseModel):
            return meant[0]
        if meant and isinstance(meant[0], type) and meant[0] is not Any:
            self._problems.append(f"job `{handler}`: Job[…] takes a pydantic model")
        return None


def _upcast_problems(called: str, payload: object, since: int) -> list[str]:
    if not _is_bound(payload):
        return [f"{called}: {payload!r} is no Payload class with a context"]
    version = payload.schema_version
    if not 1 <= since < version:
        return [
            f"{called}: from_={since} leads nowhere; `{payload.__name__}` is of version {version}, "
            f"so its upcasters are from 1 to {version - 1}"
            if version > 1
            else f"{called}: `{payload.__name__}` is of version 1, and there is none before; "
            f"declare it with schema_version={since + 1}"
        ]
    return []


def _is_bound(payload: object) -> TypeGuard[type[Payload]]:
    return isinstance(payload, type) and issubclass(payload, Payload) and bool(payload.context)


def _context_of(emitted: Emits) -> str:
    return emitted if isinstance(emitted, str) else str(getattr(emitted, "context", ""))


def _names_of(name: str, field: FieldInfo) -> tuple[str, ...]:
    return (name,) if field.alias is None else (name, field.alias)


def _doubled(domain: Domain) -> list[str]:
    coded = [one for one in domain.projects if not isinstance(one.function, Fold)]
    names = [one.name for one in coded] + [one.name for one in domain.derives]
    names += [one.name.partition(".")[2] for one in domain.jobs]
    return [
        f"handler `{name}`: two handlers have this name; give one of them name="
        for name in sorted({name for name in names if names.count(name) > 1})
    ]


def _spelt_cycle(links: Sequence[Link]) -> str:
    first = links[0].source
    handlers = ", ".join(f"`{one.handler}`" for one in links)
    return (
        f"derive {handlers}: `{' → '.join((first, *(one.said for one in links)))}` comes round "
        f'again; break the cycle, or say that it ends: cycles=("{first}",)'
    )


def _texts(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _name_of(function: Callable[..., object]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _call_of(function: Callable[..., object]) -> Callable[..., object]:
    return function.__call__  # type: ignore[operator,no-any-return]  # an object with a method


def _actor_problems(actor: str) -> list[str]:
    try:
        checked_name(actor, "actor")
    except InvalidId as error:
        return [str(error)]
    return []


def _option_problems(handler: str, options: JobOptions, *, is_async: bool) -> list[str]:
    """Say which options of a job cannot be had."""
    least = timedelta(0)
    wrong = {
        "retries": not 0 <= options.retries < ATTEMPTS_MAX,
        "priority": options.priority not in range(4),
        "limit": options.limit is not None and not 0 <= options.limit < COUNT_MAX,
        "per_key": options.per_key is not None and not 1 <= options.per_key < COUNT_MAX,
        "cost": not 0 <= options.cost <= COST_MAX,
        "timeout": options.timeout is not None and not least <= options.timeout <= STEP_MAX,
        "delay": not least <= options.delay <= DELAY_MAX,
        "on_lapse": options.on_lapse not in get_args(OnLapse),
        "runs": options.runs not in get_args(Runs) or (options.runs == "loop") != is_async,
        "give_up_on": not all(map(inspect.isclass, options.give_up_on)),
    }
    found = [
        f"job `{handler}`: {name}={getattr(options, name)!r} cannot be had"
        for name, is_wrong in wrong.items()
        if is_wrong
    ]
    if options.cost and options.budget is None:
        found.append(f"job `{handler}`: a cost is drawn on a budget; name it: budget=…")
    return found


def _refuse_unreadable(said: Attestation, meant: type[Payload]) -> None:
    try:
        meant.model_validate_json(said.text)
    except ValidationError as error:
        raise InvalidPayload(f"{said.context}: {problems_of(error)}") from error
