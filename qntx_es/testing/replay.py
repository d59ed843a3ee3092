"""Running a log through a domain as it would run live, and folding the same log from nothing.

What is run is real: the host, its log and its runner. What it made, rows and derived attestations,
is held against a fold of the very log that came of it, one attestation a batch, in a process that
knows nothing of the first. Same means equal rows by table and key, typed, and equal derived
attestations by id; positions may well be others where a domain speaks between what is appended.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from weakref import WeakKeyDictionary

from qntx_es import faults
from qntx_es.attestation import Attestation, decode_mapping
from qntx_es.domain import RESERVED, Domain
from qntx_es.errors import NothingToRetry, ProjectorStopped, QntxError
from qntx_es.projections.travel import named
from qntx_es.testing.bench import MONDAY, Bench, Clock, Kind, Place
from qntx_es.testing.moving import Moving, TableRows, rows_of, undone
from qntx_es.testing.plans import (
    Append,
    Cut,
    Fail,
    Lift,
    Poll,
    Rebuild,
    Restart,
    Step,
    Travel,
    Under,
)
from qntx_es.testing.subject import HandlerRefuses, Subject

THEN = "qntxthen"
ACTOR = "replay@qntx"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a log: `rows` by table, in the order of their keys, and `derived` by id.

    `travelled` are the rows of time travels, by position, `drifted` what a rebuild would have said
    otherwise, and `error` why the projector stopped, if it did.
    """

    rows: TableRows
    derived: Mapping[str, bytes]
    travelled: Mapping[int, TableRows] = field(default_factory=dict)
    drifted: tuple[str, ...] = ()
    error: str | None = None
    exported: bytes = field(default=b"", repr=False)
    steps: tuple[tuple[int, TableRows], ...] = field(default=(), repr=False)


@dataclass
class Stage:
    """A domain under test, and the databases it is run on."""

    subject: Subject
    benches: dict[Kind, Bench] = field(default_factory=dict)

    def bench(self, kind: Kind) -> Bench:
        """Return the databases of a kind."""
        if kind not in self.benches:
            self.benches[kind] = Bench(kind, self.subject.live)
        return self.benches[kind]


_STAGES: WeakKeyDictionary[Domain, Stage] = WeakKeyDictionary()


def stage_of(domain: Domain) -> Stage:
    """Return where a domain is run, made at the first time. Raises `DomainRefused`."""
    if domain not in _STAGES:
        _STAGES[domain] = Stage(Subject(domain))
    return _STAGES[domain]


def fold(domain: Domain, log: Sequence[Attestation], *, on: Kind = "sqlite") -> Outcome:
    """Return what the handlers of a domain make of a log from nothing, one attestation a batch."""
    return fold_again(stage_of(domain), run(domain, log, (), on=on), on)


def run(
    domain: Domain, log: Sequence[Attestation], plan: Sequence[Step], *, on: Kind = "sqlite"
) -> Outcome:
    """Return what came of a log that was run live by a plan.

    What the plan leaves over is appended at its end, and is one batch. Raises `DomainRefused`.
    """
    return run_on(stage_of(domain), log, plan, on)


def run_on(
    stage: Stage,
    log: Sequence[Attestation],
    plan: Sequence[Step],
    kind: Kind,
    *,
    is_watched: bool = False,
) -> Outcome:
    """Run a log by a plan; where it is watched, the rows are kept after each step."""
    subject = stage.subject
    if any(isinstance(one, Lift) for one in plan):
        log = [_lifted(subject.domain, one) for one in log]
    changed = frozenset(kind for one in plan if isinstance(one, Under) for kind in one.changed)
    subject.begin(changed)
    with stage.bench(kind).database() as place, subject.circumstances.around():
        return _Run(subject, place, log, plan, is_watched=is_watched).run()


def fold_again(
    stage: Stage,
    outcome: Outcome,
    kind: Kind,
    *,
    changed: frozenset[str] = frozenset(),
    is_watched: bool = False,
) -> Outcome:
    """Fold the log that an outcome came to from nothing, one attestation a batch."""
    subject = stage.subject
    subject.begin(changed)
    with stage.bench(kind).database() as place, subject.circumstances.around():
        return _Fold(subject, place, outcome, is_watched=is_watched).run()


def fold_of(  # noqa: PLR0913 - what is folded, where, and how
    stage: Stage,
    log: Sequence[Attestation],
    plan: Sequence[Step],
    planned: Outcome,
    kind: Kind,
    *,
    is_watched: bool = False,
) -> Outcome:
    """Fold what an outcome is to be held against: the log it came to, or that of old payloads."""
    if any(isinstance(one, Lift) for one in plan):
        planned = run_on(stage, log, [one for one in plan if not isinstance(one, Lift)], kind)
    return fold_again(stage, planned, kind, is_watched=is_watched)


def _lifted(domain: Domain, said: Attestation) -> Attestation:
    payload = domain.payloads.get(said.context)
    if payload is None or said.schema_version >= payload.schema_version:
        return said
    text = domain.chain(payload).text_of(said.schema_version, said.text)
    return Attestation(
        context=said.context,
        entity=said.entity,
        actor=said.actor,
        payload=decode_mapping(text),
        id=said.id,
        schema_version=payload.schema_version,
        caused_by=said.caused_by,
        correlation_id=said.correlation_id,
        depth=said.depth,
        tags=said.tags,
    )


class _Run(Moving):
    """One live run."""

    def __init__(
        self,
        subject: Subject,
        place: Place,
        log: Sequence[Attestation],
        plan: Sequence[Step],
        *,
        is_watched: bool,
    ) -> None:
        super().__init__(subject, subject.live, place, is_watched=is_watched)
        self._log = log
        self._plan = plan
        self._appended = 0
        self._drifted: list[str] = []

    def run(self) -> Outcome:
        """Run the plan, catch up, and return what came of it."""
        error = None
        try:
            self._follow()
        except QntxError as refused:
            error = str(refused)
        try:
            return self._outcome(error)
        finally:
            self.close()

    def _follow(self) -> None:
        failing = [one.at for one in self._plan if isinstance(one, Fail)]
        self.subject.failing = frozenset(
            self._log[at - 1].id for at in failing if at <= len(self._log)
        )
        if not any(isinstance(one, Append) for one in self._plan):
            self._append(len(self._log))
        for step in self._plan:
            self._take(step)
        self._append(len(self._log))
        self._mend()
        self.catch_up()

    def _take(self, step: Step) -> None:
        match step:
            case Append(count):
                self._append(count)
            case Poll():
                self._poll(step)
            case Restart():
                self._restart()
            case Rebuild():
                self._rebuild(step)
            case Cut(into):
                self.host.cut(self.name, into, by=ACTOR)
            case _:
                pass

    def _append(self, count: int) -> None:
        for said in self._log[self._appended : self._appended + count]:
            self._appended += 1
            self.clock.nanoseconds = Clock(MONDAY + self._appended).nanoseconds
            log = self.host.log if said.context.startswith(RESERVED) else self.host
            log.append(said)

    def _poll(self, step: Poll) -> None:
        for _ in range(step.times - 1):
            with undone():
                self._poll_once(step.count)
        if step.crash_at is None:
            self._poll_once(step.count)
            return
        try:
            with faults.planned({step.crash_at: faults.crash()}):
                self._poll_once(step.count)
        except faults.Crash:
            self._restart()

    def _poll_once(self, count: int) -> None:
        try:
            self.poll(count)
        except ProjectorStopped as stopped:
            if HandlerRefuses.__name__ not in str(stopped):
                raise

    def _restart(self) -> None:
        self.close()
        self.subject.restart()
        self.host = self._place.open([self._domain], self.clock)

    def _rebuild(self, step: Rebuild) -> None:
        self._mend()
        self.catch_up()
        if step.crash_at is not None:
            with suppress(faults.Crash), faults.planned({step.crash_at: faults.crash()}):
                self.host.rebuild(self.name, actor=ACTOR)
            self._restart()
        found = self.host.rebuild(self.name, actor=ACTOR)
        self._drifted += [
            f"derive `{proof.handler}`, source at position {one.source}: "
            f"was {one.logged}, is {one.rebuilt}"
            for proof in found.derived
            for one in proof.first
        ]

    def _mend(self) -> None:
        """Meet the failure, if that is still to come, and then let it be no more."""
        if not self.subject.failing:
            return
        with suppress(ProjectorStopped):
            self.catch_up()
        self.subject.failing = frozenset()
        with suppress(NothingToRetry):
            self.host.retry(self.name, by=ACTOR)

    def _outcome(self, error: str | None) -> Outcome:
        ours = {one.id for one in self._log}
        said = [one for one in self.host.log.read() if one.id not in ours]
        stream = BytesIO()
        self.host.export_log(stream)
        travelled = {} if error else self._travelled()
        return Outcome(
            rows=self.rows(),
            derived={one.id: bytes_of(one) for one in said if not one.context.startswith("qntx.")},
            travelled=travelled,
            drifted=tuple(self._drifted),
            error=error,
            exported=stream.getvalue(),
            steps=tuple(self._watched),
        )

    def _travelled(self) -> dict[int, TableRows]:
        found: dict[int, TableRows] = {}
        for step in self._plan:
            if isinstance(step, Travel) and step.to <= self.host.log.head():
                into = f"{THEN}{step.to}"
                self.host.travel(self.name, to=step.to, into=into)
                with self.host.database.snapshot() as connection:
                    found[step.to] = {
                        name: rows_of(connection, table, named(self._domain, name, into))
                        for name, table in self._domain.tables.items()
                    }
        return found


class _Fold(Moving):
    """One fold of a log that is there already, and of which nothing more will be said."""

    def __init__(
        self, subject: Subject, place: Place, outcome: Outcome, *, is_watched: bool
    ) -> None:
        super().__init__(subject, subject.dark, place, is_watched=is_watched)
        self._made = outcome

    def run(self) -> Outcome:
        """Fold all of it, and return what came of it."""
        self.host.import_log(BytesIO(self._made.exported))
        head = self.host.log.head()
        ours = {one.id for one in self.host.log.read() if one.id not in self._made.derived}
        travelled: dict[int, TableRows] = {}
        error = None
        try:
            for position in sorted({*self._made.travelled, head}):
                self._advance(position)
                if position in self._made.travelled:
                    travelled[position] = self.rows()
        except QntxError as refused:
            error = str(refused)
        try:
            return Outcome(
                rows=self.rows(),
                derived={id_: said for id_, said in self.subject.heard.items() if id_ not in ours},
                travelled=travelled,
                error=error,
                exported=self._made.exported,
                steps=tuple(self._watched),
            )
        finally:
            self.close()

    def _advance(self, until: int) -> None:
        while any(one.position < until for one in self.poll(1, until)):
            pass


def bytes_of(recorded: Any) -> bytes:  # noqa: ANN401 - as the log has it
    """Return an attestation's bytes as the log has them: what makes two the same statement."""
    tags = recorded.row[11] or ""
    parts = (recorded.context, recorded.actor, recorded.entity, str(recorded.schema_version))
    return "\x00".join((*parts, recorded.text, tags)).encode()
