"""Named places where a test may stop, fail or kill the real code.

Crash windows are found by crashing in them, so the places stand in the code itself and not in
a patched copy of it. Outside tests no plan is set, and a point is one comparison. The names live
in one tuple: a misspelt point fails when the plan is made.

A test of a fault that no longer happens still passes, so what happens is counted: which points
were named in a plan, which fired, and which rare states were met. Where the environment names a
file (`QNTX_FAULTS_TALLY`), every process adds to it, also one that is about to kill itself.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

POINTS = (
    "append.before_inbox",
    "append.after_inbox",
    "append.before_commit",
    "append.after_commit",
    "pass.before_lock",
    "pass.after_lock",
    "pass.before_move",
    "pass.before_inline",
    "pass.before_commit",
    "pass.after_commit",
    "import.before_commit",
    "import.after_commit",
    "batch.after_look",
    "batch.after_read",
    "batch.in_handler",
    "batch.before_flush",
    "batch.before_append",
    "batch.before_move",
    "batch.before_commit",
    "batch.after_commit",
    "rebuild.after_planned",
    "rebuild.in_fill",
    "rebuild.after_fill",
    "rebuild.before_fence",
    "rebuild.before_swap",
    "rebuild.before_commit",
    "rebuild.after_commit",
    "rebuild.before_drop",
    "lease.before_take",
    "lease.before_renew",
    "job.before_start",
    "job.after_start",
    "job.before_advance",
    "job.before_outcome",
    "job.after_outcome",
    "schedule.before_fire",
    "upgrade.in_revision",
)

TALLY = "QNTX_FAULTS_TALLY"
GATE_SECONDS_MAX = 30.0

_Plan = Callable[[str], None]
_plan: _Plan | None = None


def point(name: str) -> None:
    """Do nothing, or what the plan in force says for this point."""
    if _plan is not None:
        _plan(name)


def sometimes(state: str, *, is_met: bool = True) -> None:
    """Count a rare state that a test must have met, some time, to prove anything."""
    _kept.meet(state, is_met=is_met)


# Actions.


class Crash(BaseException):
    """The end of a process, as far as one process can have it: nobody catches it, nor tidies up."""


@dataclass(frozen=True, slots=True)
class Action:
    """What is done the `nth` time that a point is passed under a plan."""

    do: Callable[[], None]
    nth: int = 1


class Gate:
    """Where whoever stalls stands until it is opened."""

    def __init__(self, *, seconds_max: float = GATE_SECONDS_MAX) -> None:
        self._seconds_max = seconds_max
        self._reached = threading.Event()
        self._opened = threading.Event()

    def wait(self) -> None:
        """Return once somebody stands here. Raises `TimeoutError`."""
        if not self._reached.wait(self._seconds_max):
            raise TimeoutError("nobody came to the gate")

    def open(self) -> None:
        """Let whoever stands here go on, and whoever comes later pass."""
        self._opened.set()

    def hold(self) -> None:
        """Stand here until it is opened. Raises `TimeoutError`."""
        self._reached.set()
        if not self._opened.wait(self._seconds_max):
            raise TimeoutError("nobody opened the gate")


def crash(*, nth: int = 1) -> Action:
    """Raise `Crash`: the connection is closed and not given back, as when a process ends."""
    return Action(_crash, nth)


def kill(*, nth: int = 1) -> Action:
    """Send SIGKILL to this process."""
    return Action(_kill, nth)


def fail(error: BaseException, *, nth: int = 1) -> Action:
    """Raise an error."""
    return Action(partial(_fail, error), nth)


def stall(gate: Gate, *, nth: int = 1) -> Action:
    """Stand still until the gate is opened."""
    return Action(gate.hold, nth)


def _crash() -> None:
    raise Crash


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(error: BaseException) -> None:
    raise error


# Plans.


@contextmanager
def planned(plan: Mapping[str, Action | Callable[[], None]]) -> Iterator[None]:
    """Let each named point do its action until the block ends; `ValueError` for unknown names.

    A function is called every time that its point is passed.
    """
    global _plan  # noqa: PLW0603 - one plan a process is the whole idea: no object to hand around
    unknown = sorted(set(plan) - set(POINTS))
    if unknown:
        message = f"no fault points named {', '.join(unknown)}"
        raise ValueError(message)
    _kept.plan(plan)
    before, _plan = _plan, _Acting(plan)
    try:
        yield
    finally:
        _plan = before


class _Acting:
    """A plan in force; `passed` counts how often each point was passed under it."""

    def __init__(self, plan: Mapping[str, Action | Callable[[], None]]) -> None:
        self._plan = dict(plan)
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        with self._lock:
            self._passed[name] += 1
            passed = self._passed[name]
        _kept.see(name)
        action = self._plan.get(name)
        if action is None:
            return
        if not isinstance(action, Action):
            _kept.fire(name)
            action()
        elif passed == action.nth:
            _kept.fire(name)
            action.do()


# Counts.


@dataclass(slots=True)
class Tally:
    """What was planned, seen under a plan and fired, by point; how often each state was met."""

    planned: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    wanted: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)

    def unfired(self, points: Iterable[str] | None = None) -> list[str]:
        """Return which points never fired, of those given or of those in any plan."""
        wanted = self.planned if points is None else points
        return sorted(one for one in wanted if not self.fired[one])

    def unmet(self) -> list[str]:
        """Return which states were looked for and never met."""
        return sorted(one for one in self.wanted if not self.met[one])


class _Kept:
    """The tally of this process."""

    def __init__(self) -> None:
        self.tally = Tally()

    def plan(self, points: Iterable[str]) -> None:
        for one in points:
            self._add("planned", one, is_told=not self.tally.planned[one])

    def see(self, name: str) -> None:
        self._add("seen", name, is_told=False)

    def fire(self, name: str) -> None:
        self._add("fired", name, is_told=True)

    def meet(self, state: str, *, is_met: bool) -> None:
        self._add("wanted", state, is_told=not self.tally.wanted[state])
        if is_met:
            self._add("met", state, is_told=not self.tally.met[state])

    def _add(self, what: str, name: str, *, is_told: bool) -> None:
        getattr(self.tally, what)[name] += 1
        file = os.environ.get(TALLY) if is_told else None
        if file:
            with Path(file).open("ab", buffering=0) as stream:  # one write, so whole lines
                stream.write(f"{what} {name}\n".encode())


_kept = _Kept()


def tally() -> Tally:
    """Return what was counted in this process so far."""
    return _kept.tally


def read_tally(*files: Path) -> Tally:
    """Return what processes have added to files; what was planned and met at least once."""
    found = Tally()
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            what, _, name = line.partition(" ")
            getattr(found, what)[name] += 1
    return found
