"""All domains on one log, driven at random: who speaks, who projects, who dies and where.

    TestHouse = machine(orders, billing)

`replay_consistency` asks whether one domain can be replayed. This asks whether several of them can
live together while processes crash, leases run out and clocks jump. Hypothesis draws the steps and
shortens those that fail; each step is one line that one can read aloud.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias
from unittest import TestCase

from hypothesis import Phase, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import SearchStrategy

from qntx_es import faults
from qntx_es.attestation import Attestation, Payload
from qntx_es.domain import Domain
from qntx_es.errors import InconsistentReplay, did_you_mean
from qntx_es.testing import strategies
from qntx_es.testing.bench import Bench, Kind, On, kinds_of
from qntx_es.testing.checks import BATCH_MAX, REBUILD_POINTS, settings_of
from qntx_es.testing.house import HOSTS, House, opened
from qntx_es.testing.plans import POINTS
from qntx_es.testing.replay import Stage, stage_of
from qntx_es.testing.strategies import Histories

Fault: TypeAlias = Literal["crash", "lease", "clock"]
_Rule: TypeAlias = Callable[..., None]
FAULTS: tuple[Fault, ...] = ("crash", "lease", "clock")
# A house costs ten times what a plan for one domain does.
EXAMPLES = 10
STEPS_MAX = 15
SAID_MAX = 3
HOUR = 3_600
# Forward and back, less and more than a lease.
JUMPS = (1, HOUR // 2, 2 * HOUR, -HOUR // 2, -2 * HOUR)
CRASHES = (*(one for one in faults.POINTS if one.startswith("append.")), *POINTS, *REBUILD_POINTS)
# Beside a commit twice: there what was to be one transaction comes apart.
IN_BATCH = (
    "batch.before_commit",
    "batch.after_commit",
    *(one for one in POINTS if one.startswith("batch.")),
)
# Where a batch holds no write transaction yet, for which another process would have to wait.
STANDS = ("batch.after_look", "batch.after_read")
MEANWHILE = ("rebuild.after_planned", "rebuild.after_fill", "rebuild.before_fence")
PROGRESS_MAX = 4


class Said(tuple[Attestation, ...]):
    """What is appended at once, as it is printed: like the Python that says it."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Spell the attestations."""
        return f"[{', '.join(map(_spelt, self))}]"


def _spelt(said: Attestation) -> str:
    payload = said.payload_class
    told = dict(said.payload) if payload is None else payload.model_validate_json(said.text)
    return f"{said.entity} is {said.context}: {told!r}"


@dataclass(frozen=True, slots=True)
class Taken:
    """A step of a house, to be taken again."""

    what: str
    how: dict[str, Any]

    def take(self, house: House) -> None:
        """Take it."""
        getattr(house, self.what)(**self.how)

    def __str__(self) -> str:
        return f"{self.what}({', '.join(f'{name}={one!r}' for name, one in self.how.items())})"


_PROCESSES = st.integers(0, HOSTS - 1)
_NAMES: SearchStrategy[str] = st.runner().flatmap(lambda one: st.sampled_from(one.house.names))
_SAID: SearchStrategy[Said] = st.runner().flatmap(lambda one: one.drawn).map(Said)
_SIZES = st.integers(1, BATCH_MAX)


def _has(fault: Fault) -> Callable[[_Rule], _Rule]:
    only: Callable[[_Rule], _Rule] = precondition(lambda one: fault in one.faults)
    return only


class Living(RuleBasedStateMachine):
    """The steps of a house; a class made of it says which domains live in it, and where."""

    stages: ClassVar[Sequence[Stage]]
    bench: ClassVar[Bench]
    faults: ClassVar[frozenset[str]]
    drawn: ClassVar[Histories]
    taken: ClassVar[list[Taken]]

    def __init__(self) -> None:
        super().__init__()
        self._ended = ExitStack()
        begun = opened(self.stages, self.bench, has_leases="lease" in self.faults)
        self.house: House = self._ended.enter_context(begun)
        self._count = 0
        self.taken.clear()

    @rule(said=_SAID)
    def append(self, said: Said) -> None:
        """Append, each in a transaction of its own."""
        self._take("append", said=self._new(said))

    @rule(said=_SAID, commits=st.booleans())
    def append_in_a_transaction(self, said: Said, commits: bool) -> None:  # noqa: FBT001 - drawn
        """Append in a caller's transaction."""
        self._take("append_own", said=self._new(said), commits=commits)

    @rule(process=_PROCESSES, domain=_NAMES, count=_SIZES)
    def poll(self, process: int, domain: str, count: int) -> None:
        """Run a batch."""
        self._take("poll", number=process, name=domain, count=count)

    @_has("crash")
    @rule(point=st.sampled_from(CRASHES))
    def crash_at(self, point: str) -> None:
        """Let the process that passes the point next die there."""
        self._take("crash_at", point=point)

    @_has("crash")
    @rule(
        said=_SAID,
        process=_PROCESSES,
        domain=_NAMES,
        count=_SIZES,
        point=st.sampled_from(IN_BATCH),
    )
    def crash_in_batch(self, said: Said, process: int, domain: str, count: int, point: str) -> None:
        """Run a batch in which the process dies: what chance would seldom put together."""
        self._take("append", said=self._new(said))
        self._take("crash_at", point=point)
        self._take("poll", number=process, name=domain, count=count)

    @rule(process=_PROCESSES)
    def restart(self, process: int) -> None:
        """End a process, and begin another one."""
        self._take("restart", number=process)

    @_has("lease")
    @rule(domain=_NAMES)
    def let_lease_expire(self, domain: str) -> None:
        """Let whoever comes next take the lease."""
        self._take("let_expire", name=domain)

    @_has("lease")
    @rule(process=_PROCESSES, domain=_NAMES, count=_SIZES, at=st.sampled_from(STANDS))
    def overtake(self, process: int, domain: str, count: int, at: str) -> None:
        """Let a process stand still past its lease, and come back when another one has gone on."""
        self._take("overtake", number=process, name=domain, count=count, at=at)

    @_has("clock")
    @rule(seconds=st.sampled_from(JUMPS))
    def move_clock(self, seconds: int) -> None:
        """Let the clock jump."""
        self._take("move_clock", seconds=seconds)

    @rule(process=_PROCESSES, domain=_NAMES, meanwhile=st.none() | st.sampled_from(MEANWHILE))
    def rebuild(self, process: int, domain: str, meanwhile: str | None) -> None:
        """Rebuild and swap, while another process may project."""
        self._take("rebuild", number=process, name=domain, meanwhile=meanwhile)

    @rule(process=_PROCESSES, domain=_NAMES, at=st.integers(1, PROGRESS_MAX))
    def cancel_rebuild(self, process: int, domain: str, at: int) -> None:
        """Begin a rebuild, and end it."""
        self._take("cancel_rebuild", number=process, name=domain, at=at)

    @rule(domain=_NAMES)
    def break_next(self, domain: str) -> None:
        """Let the next attestation fail: the domain stops there, parks or skips, as it chose."""
        self._take("break_next", name=domain)

    @rule(domain=_NAMES)
    def retry(self, domain: str) -> None:
        """Mend what fails, and retry."""
        self._take("mend", name=domain)

    @rule(domain=_NAMES)
    def skip(self, domain: str) -> None:
        """Skip what fails."""
        self._take("skip", name=domain)

    @rule(domain=_NAMES)
    def pause(self, domain: str) -> None:
        """Pause a domain."""
        self._take("pause", name=domain)

    @rule(domain=_NAMES)
    def resume(self, domain: str) -> None:
        """Resume a domain."""
        self._take("resume", name=domain)

    @invariant()
    def holds(self) -> None:
        """Cursors go forward only (P13), and the past of the log is closed (P15)."""
        self.house.check()

    def teardown(self) -> None:
        """Let the faults stop, and compare; not where a step has failed, which is told instead."""
        is_sound = sys.exc_info()[1] is None
        with self._ended:
            if is_sound:
                target(float(self.house.lag_most), label="lag")
                target(float(self.house.crashes), label="crashes")
                self.house.settle()

    def _take(self, what: str, **how: Any) -> None:  # noqa: ANN401 - the arguments of any step
        step = Taken(what, how)
        self.taken.append(step)
        step.take(self.house)

    def _new(self, said: Said) -> Said:
        """Return what was drawn as what is said here for the first time."""
        first = self._count + 1
        self._count += len(said)
        return Said(strategies.renumbered(one, number) for number, one in enumerate(said, first))


def machine(
    *domains: Domain,
    faults: Iterable[Fault] = FAULTS,
    on: On = "sqlite",
    examples: int | None = None,
    attestations: Histories | None = None,
) -> type[TestCase]:
    """Return a test case in which the domains live on one log, in two processes, among faults.

    `faults` are some of `crash` (a process dies at a fault point), `lease` (processes lease what
    they project, are overtaken and come back) and `clock` (it jumps; on PostgreSQL it is the
    server's, and stands). Each of the `examples`, by default 10 unless a Hypothesis profile says
    otherwise, is a list of steps; `attestations` is what is appended at once, by default up to 3 of
    what a domain reads. After each step P13 and P15 hold, and once the faults have stopped P1, P5,
    P14 and P28. Raises `ValueError` for no domains and for a fault there is not, `DomainRefused`,
    `NoStrategy`; its tests raise `InconsistentReplay`.
    """
    wanted = _checked(faults)
    if not domains:
        raise ValueError("a house of no domains: name those that are to live on one log")
    stages = [stage_of(one) for one in domains]
    drawn = attestations
    if drawn is None:
        drawn = _drawn_by(stages)
    parts = {"stages": stages, "faults": wanted, "drawn": drawn}
    tests = {f"test_on_{kind}": _test(parts, kind, examples) for kind in kinds_of(on)}
    names = " and ".join(one.name for one in domains)
    tests["__doc__"] = f"Whatever befalls the house, {names} make of its log what it says."
    return type("TestHouse", (TestCase,), tests)


def _drawn_by(stages: Sequence[Stage]) -> Histories:
    """Return what the domains read, each context as the one says it whose it is."""
    said: dict[Domain, list[type[Payload]]] = {}
    for stage in stages:
        for handler in stage.subject.handlers:
            reader, context = stage.subject.domain, handler.payload.context
            owners = (one.subject.domain for one in stages if _owns(one.subject.domain, context))
            owner = reader if _owns(reader, context) else next(owners, reader)
            said.setdefault(owner, []).append(owner.payloads[context])
    return st.one_of(
        [strategies.attestations(one, then=then, longest=SAID_MAX) for one, then in said.items()]
    )


def _owns(domain: Domain, context: str) -> bool:
    is_known = context in domain.payloads
    return is_known and domain.emits is not None and domain.may_emit(context)


def _checked(given: Iterable[Fault]) -> frozenset[str]:
    wanted = frozenset(given)
    for unknown in sorted(wanted.difference(FAULTS)):
        raise ValueError(f"no fault is named `{unknown}`{did_you_mean(unknown, FAULTS)}")
    return wanted


def _test(parts: dict[str, Any], kind: Kind, examples: int | None) -> Any:  # noqa: ANN401 - a method
    benches: list[Bench] = []

    def test(case: TestCase) -> None:
        __tracebackhide__ = True
        del case
        if not benches:
            benches.append(Bench(kind, *(one.subject.live for one in parts["stages"])))
        living = type("Living", (Living,), {**parts, "bench": benches[0], "taken": []})
        asked = settings_of(examples, EXAMPLES)
        # Each try of Hypothesis' own costs a run: steps that do not matter are left out by us.
        phases = [one for one in asked.phases if one is not Phase.shrink]
        asked = settings(asked, stateful_step_count=STEPS_MAX, phases=phases)
        try:
            run_state_machine_as_test(living, settings=asked)
        except Exception as error:  # noqa: BLE001 - whatever a step raises is told with its steps
            raise _told(living, error) from None

    test.__doc__ = f"On {kind}, rows and derived are those of a fold from nothing."
    return test


def _told(living: type[Living], error: Exception) -> Exception:
    """Return the error of the fewest steps that still fail alike, and name them."""
    steps = list(living.taken)
    size = max(1, len(steps) // 2)
    while size:
        index = 0
        while index < len(steps):
            fewer = steps[:index] + steps[index + size :]
            again = _error_of(living, fewer)
            if again is not None and _is_alike(again, error):
                steps, error = fewer, again
            else:
                index += size
        size //= 2
    told = "\n".join(f"    {one}" for one in steps)
    return InconsistentReplay(
        f"{error}\n\nThe fewest steps that show it:\n{told}", cause=_cause_of(error)
    )


def _error_of(living: type[Living], steps: Sequence[Taken]) -> Exception | None:
    """Return how a house fails by these steps, or None."""
    begun = opened(living.stages, living.bench, has_leases="lease" in living.faults)
    try:
        with begun as house:
            for one in steps:
                one.take(house)
                house.check()
            house.settle()
    except Exception as error:  # noqa: BLE001 - whatever a step raises is compared
        return error
    return None


def _is_alike(error: Exception, other: Exception) -> bool:
    return type(error) is type(other) and _cause_of(error) == _cause_of(other)


def _cause_of(error: Exception) -> str | None:
    return error.cause if isinstance(error, InconsistentReplay) else type(error).__name__
