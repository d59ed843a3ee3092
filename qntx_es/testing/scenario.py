"""Given, when, then: one history, told and checked, on the real log and runner.

What is said is said twice unless one asks for once: it is appended again, and its batch is undone
and offered again, and both must not show. Each `then` holds for the live rows and for those of a
rebuild. The clock of the log stands still and moves by `after`; on PostgreSQL it is the server's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeAlias

from qntx_es.attestation import Attestation, Payload, Recorded
from qntx_es.domain import RESERVED, Domain
from qntx_es.errors import InvalidTime, did_you_mean
from qntx_es.jobs import JobHandler, JobRequested
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.pulse import Ticker
from qntx_es.testing.bench import Kind
from qntx_es.testing.moving import Moving
from qntx_es.testing.replay import ACTOR, Stage, stage_of

Said: TypeAlias = JobHandler[Any] | Payload | type[Payload] | Attestation | str
BEGINNING = datetime(2026, 1, 4, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Say:
    attestations: tuple[Attestation, ...]
    times: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """A history so far; each of its words returns a longer one, and `then` runs and checks it."""

    stage: Stage
    at: datetime
    on: Kind
    steps: tuple[_Say | timedelta, ...] = ()

    def given(self, *attestations: Attestation) -> Self:
        """Let this have been said, once, and projected."""
        return self._with(_Say(attestations, 1))

    def when(self, *attestations: Attestation, times: int = 2) -> Self:
        """Say this, and offer it so many times: however often, it must count once."""
        if times < 1:
            raise ValueError(f"times={times}: what is said is said once at least")
        return self._with(_Say(attestations, times))

    def after(self, **parts: float) -> Self:
        """Let time pass, as `timedelta` has it: `after(days=1)`; schedules that are due fire."""
        return self._with(timedelta(**parts))

    def then(
        self, *, derived: Iterable[Said] | None = None, **tables: Iterable[Mapping[str, Any]]
    ) -> Self:
        """Assert that tables hold these rows, in any order, by the columns that are named of each.

        `derived` is all that followed, in order: payload classes, payloads, jobs, contexts, or
        attestations. Both are asked again after a rebuild. Raises `AssertionError`.
        """
        __tracebackhide__ = True
        wanted = {name: [dict(row) for row in rows] for name, rows in tables.items()}
        self._refuse_unknown(wanted)
        with self._run() as run:
            self._check(run, wanted, derived, "")
            run.host.rebuild(run.name, actor=ACTOR)
            self._check(run, wanted, derived, " after a rebuild")
        return self

    def then_raises(self, error: type[BaseException], match: str = "") -> Self:
        """Assert that a handler, or the log, refuses the last of it by raising such an error.

        `match` is part of its text. Raises `AssertionError`.
        """
        __tracebackhide__ = True
        try:
            with self._run():
                pass
        except Exception as raised:
            found = _raised(raised)
            if isinstance(found, error) and match in str(found):
                return self
            raise
        raise AssertionError(
            f"{self._name} refuses nothing of this, and raises no {error.__name__}"
        )

    @property
    def _name(self) -> str:
        return self.stage.subject.domain.name

    def _with(self, step: _Say | timedelta) -> Self:
        return replace(self, steps=(*self.steps, step))

    @contextmanager
    def _run(self) -> Iterator[Moving]:
        subject = self.stage.subject
        subject.begin()
        with self.stage.bench(self.on).database() as place, subject.circumstances.around():
            run = Moving(subject, subject.live, place)
            try:
                run.clock.nanoseconds = round(self.at.timestamp()) * 1_000_000_000
                self._tick(run)
                for step in self.steps:
                    _take(run, step)
                    self._tick(run)
                    run.catch_up()
                yield run
            finally:
                run.close()

    def _tick(self, run: Moving) -> None:
        Ticker(run.host.database, run.host.log, self.stage.subject.domain.schedules).tick()

    def _refuse_unknown(self, wanted: Iterable[str]) -> None:
        known = [_short(self.stage.subject.domain, name) for name in self._tables]
        for name in wanted:
            if name not in known:
                raise ValueError(f"{self._name} has no table `{name}`{did_you_mean(name, known)}")

    @property
    def _tables(self) -> Mapping[str, Any]:
        return self.stage.subject.domain.tables

    def _check(
        self,
        run: Moving,
        wanted: Mapping[str, Sequence[Mapping[str, Any]]],
        derived: Iterable[Said] | None,
        when: str,
    ) -> None:
        __tracebackhide__ = True
        rows = run.rows()
        for name, table in self._tables.items():
            short = _short(self.stage.subject.domain, name)
            if short not in wanted:
                continue
            columns = [column.name for column in table.columns]
            found = [dict(zip(columns, row, strict=True)) for row in rows[name]]
            _match(f"{name}{when}", wanted[short], found)
        if derived is not None:
            said = {
                one.id for step in self.steps if isinstance(step, _Say) for one in step.attestations
            }
            followed = [one for one in run.host.log.read() if _is_derived(one, said)]
            _match_derived(f"derived{when}", [*derived], followed)


def scenario(domain: Domain, *, at: str | datetime = BEGINNING, on: Kind = "sqlite") -> Scenario:
    """Begin a history of a domain at a moment. Raises `DomainRefused`, `InvalidTime`."""
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    if moment.tzinfo is None:
        raise InvalidTime(f"{at} has no zone, so it names no instant. Give it one: …Z")
    return Scenario(stage_of(domain), moment, on)


def _take(run: Moving, step: _Say | timedelta) -> None:
    if isinstance(step, timedelta):
        run.clock.move(step.total_seconds())
        return
    for _ in range(step.times):
        for said in step.attestations:
            log = run.host.log if said.context.startswith(RESERVED) else run.host
            log.append(said)
    run.offer(max(1, len(step.attestations)), times=step.times)


def _short(domain: Domain, table: str) -> str:
    return table.removeprefix(f"{domain.name}_")


def _raised(error: BaseException) -> BaseException:
    """Return what a handler raised, or the error itself."""
    cause = error.__cause__
    return cause.raised if isinstance(cause, HandlerFailed) else error


def _is_derived(recorded: Recorded[Any], said: Iterable[str]) -> bool:
    if recorded.context == JobRequested.context:
        return recorded.id not in said
    return recorded.id not in said and not recorded.context.startswith(RESERVED)


def _match(what: str, wanted: Sequence[Mapping[str, Any]], found: list[dict[str, Any]]) -> None:
    __tracebackhide__ = True
    left = list(found)
    missing = []
    for row in wanted:
        match = next((one for one in left if row.items() <= one.items()), None)
        if match is None:
            missing.append(row)
        else:
            left.remove(match)
    if missing or left:
        lines = [f"  missing  {dict(row)}" for row in missing]
        lines += [f"  found    {row}" for row in left]
        raise AssertionError("\n".join([f"{what} holds other rows:", *lines]))


def _match_derived(what: str, wanted: list[Said], found: list[Recorded[Any]]) -> None:
    __tracebackhide__ = True
    is_same = len(wanted) == len(found)
    if is_same and all(_is_it(one, said) for one, said in zip(wanted, found, strict=True)):
        return
    lines = [f"  wanted   {_called(one)}" for one in wanted]
    lines += [f"  found    {one.entity} is {one.context}: {one.text}" for one in found]
    raise AssertionError("\n".join([f"{what} is something else:", *lines]))


def _is_it(wanted: Said, said: Recorded[Any]) -> bool:
    match wanted:
        case JobHandler():
            is_request = said.context == JobRequested.context
            return is_request and said.payload["handler"] == wanted.name
        case Attestation():
            told = (wanted.context, wanted.entity, wanted.actor, wanted.text)
            return told == (said.context, said.entity, said.actor, said.text)
        case Payload():
            return (
                said.context == wanted.context
                and type(wanted).model_validate(said.payload) == wanted
            )
        case str():
            return said.context == wanted
        case _:
            return said.context == wanted.context


def _called(wanted: Said) -> str:
    match wanted:
        case JobHandler():
            return f"job {wanted.name}"
        case type():
            return wanted.context
        case _:
            return str(wanted)
