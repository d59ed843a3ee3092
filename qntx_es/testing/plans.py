"""What is done with a log: small values, each of which one can read aloud.

A plan is a list of them. They are written as they are printed, so that the plan of a failure can be
pasted into a test and run again with `replay`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from qntx_es import faults
from qntx_es.testing.circumstances import KINDS, Changed

# Where a batch may be cut off: all of its points, and those of the pass that follows it.
POINTS = tuple(one for one in faults.POINTS if one.startswith(("batch.", "pass.")))
WORDS = {
    "clock": "at another time",
    "zone": "in another time zone and locale",
    "environment": "with other environment variables",
    "random": "with another random seed",
    "uuid": "with other random bytes of the system",
    "keys": "with the keys of payloads in another order",
}


@dataclass(frozen=True, slots=True)
class Append:
    """Append the next `count` of the log, which is otherwise all there from the beginning."""

    count: int

    def __str__(self) -> str:
        return f"append the next {self.count}"

    def __repr__(self) -> str:
        return f"append({self.count})"


@dataclass(frozen=True, slots=True)
class Poll:
    """Run one batch of at most `count`; one that crashes is undone, as is one but the last."""

    count: int
    crash_at: str | None = None
    times: int = 1

    def __str__(self) -> str:
        batch = f"a batch of {self.count}"
        if self.crash_at is not None:
            return f"{batch} that crashes at {self.crash_at}, and then another process"
        return batch if self.times == 1 else f"{batch}, undone and offered {self.times} times"

    def __repr__(self) -> str:
        crash = "" if self.crash_at is None else f", crash_at={self.crash_at!r}"
        times = "" if self.times == 1 else f", times={self.times}"
        return f"poll({self.count}{crash}{times})"


@dataclass(frozen=True, slots=True)
class Restart:
    """End the process and begin another one over the same database."""

    def __str__(self) -> str:
        return "a restart"

    def __repr__(self) -> str:
        return "restart()"


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Catch up, then rebuild beside live and swap; one that crashes is run again."""

    crash_at: str | None = None

    def __str__(self) -> str:
        if self.crash_at is None:
            return "a rebuild"
        return f"a rebuild that crashes at {self.crash_at}, and then another one"

    def __repr__(self) -> str:
        return "rebuild()" if self.crash_at is None else f"rebuild(crash_at={self.crash_at!r})"


@dataclass(frozen=True, slots=True)
class Travel:
    """At the end, make the tables of what the log said up to a position."""

    to: int

    def __str__(self) -> str:
        return f"time travel to position {self.to}"

    def __repr__(self) -> str:
        return f"travel({self.to})"


@dataclass(frozen=True, slots=True)
class Fail:
    """Let every handler fail at the attestation of this number in the log, mend it, and retry."""

    at: int

    def __str__(self) -> str:
        return f"a failure at attestation {self.at}, mended and retried"

    def __repr__(self) -> str:
        return f"fail({self.at})"


@dataclass(frozen=True, slots=True)
class Under:
    """Run all of it in other circumstances: `clock`, `zone`, `environment`, `random`, … ."""

    changed: tuple[Changed, ...]

    def __str__(self) -> str:
        return ", ".join(WORDS[one] for one in self.changed)

    def __repr__(self) -> str:
        return f"under({', '.join(map(repr, self.changed))})"


@dataclass(frozen=True, slots=True)
class Cut:
    """Cut the entities of the domain into so many ranges, each with a cursor of its own."""

    into: int

    def __str__(self) -> str:
        return f"a cut into {self.into} ranges"

    def __repr__(self) -> str:
        return f"cut({self.into})"


@dataclass(frozen=True, slots=True)
class Lift:
    """Let old payloads have been said as they are read today."""

    def __str__(self) -> str:
        return "old payloads lifted beforehand"

    def __repr__(self) -> str:
        return "lift()"


Step: TypeAlias = Append | Poll | Restart | Rebuild | Travel | Fail | Under | Cut | Lift


def append(count: int) -> Step:
    """Append the next `count` of the log here; what is left comes at the end."""
    return Append(_at_least_one("append", count))


def poll(count: int = 1, *, crash_at: str | None = None, times: int = 1) -> Step:
    """Run one batch of at most `count` attestations.

    With `crash_at`, a fault point, it is cut off there and a new process begins. With `times` it is
    undone and offered again, in the same process, before it counts.
    """
    if crash_at is not None and crash_at not in POINTS:
        raise ValueError(f"a batch passes no point `{crash_at}`; it passes {', '.join(POINTS)}")
    return Poll(_at_least_one("poll", count), crash_at, _at_least_one("times", times))


def restart() -> Step:
    """End the process and begin another one over the same database."""
    return Restart()


def rebuild(*, crash_at: str | None = None) -> Step:
    """Rebuild beside live and swap; with `crash_at`, a fault point, once in vain before."""
    if crash_at is not None and crash_at not in faults.POINTS:
        raise ValueError(f"no fault point is named `{crash_at}`")
    return Rebuild(crash_at)


def travel(to: int) -> Step:
    """Make the tables of what the log said up to position `to`, to be compared as well."""
    return Travel(to)


def fail(at: int) -> Step:
    """Let handlers fail at the attestation of number `at` (from 1), mend them, and retry."""
    return Fail(_at_least_one("fail", at))


def under(*changed: Changed) -> Step:
    """Run the whole plan in other circumstances: another clock, zone, environment, random, …."""
    if unknown := [one for one in changed if one not in KINDS]:
        raise ValueError(f"no circumstances are named {unknown}; there are {', '.join(KINDS)}")
    return Under(changed)


def cut(into: int) -> Step:
    """Cut the entities of a domain that is `by_entity` into so many ranges, from here on."""
    return Cut(_at_least_one("cut", into))


def lift() -> Step:
    """Let old payloads have been said as they are read today: the rows are those of the old."""
    return Lift()


def spoken(plan: Iterable[Step]) -> str:
    """Return a plan in words."""
    return "; ".join(map(str, plan)) or "all in one batch"


def _at_least_one(what: str, count: int) -> int:
    if count < 1:
        raise ValueError(f"{what}: {count} is less than one")
    return count
