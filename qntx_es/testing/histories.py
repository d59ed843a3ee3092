"""What many processes have done, held against the log and the rows that are left: a pure checker.

Each process writes down what it is about to do, and what came of it: `invoke`, then `ok`, `fail`
or `unknown`. Whoever is killed in between has left an `invoke` alone, and so does not know. When
all is quiet these histories, the log, the moves of the cursors and the rows have to tell one
story; whatever contradicts it is a `Violation`. Nothing here opens anything, so that the checker
itself can be held to what it has to find.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

State = Literal["invoke", "ok", "fail", "unknown"]


@dataclass(frozen=True, slots=True)
class Deed:
    """One line of a process' history: an append of `ids`, its condition, and what came of it.

    `number` is the append's within its process. With an `entity` it was to be refused where the
    log says anything of that behind `after`. `positions` are those of the receipts.
    """

    who: str
    number: int
    state: State
    ids: tuple[str, ...]
    entity: str | None = None
    after: int = 0
    positions: tuple[int, ...] = ()

    def line(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the log holds at a position; `source` is the id of what it was derived from.

    `is_own` is what the framework says of itself, a rebuild for one.
    """

    position: int
    id: str
    entity: str
    said: str
    source: str | None = None
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """One commit that moved a cursor, in the order of commits."""

    domain: str
    position: int
    token: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is left.

    `readings` are what each reader saw: position and id. `derived` is what a fold of the log from
    nothing says, text by id; `folded` are its rows by table, and `rows` the live ones.
    """

    deeds: Sequence[Deed]
    log: Sequence[Entry]
    readings: Mapping[str, Sequence[tuple[int, str]]]
    moves: Sequence[Move]
    derived: Mapping[str, str]
    rows: Mapping[str, Sequence[object]]
    folded: Mapping[str, Sequence[object]]


@dataclass(frozen=True, slots=True)
class Violation:
    """What was promised and is not so, and where."""

    promise: str
    where: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.where}"


def deeds_of(lines: Iterable[str]) -> list[Deed]:
    """Read a history; a last line that was cut off with its process is left out."""
    found = []
    for line in lines:
        if not line.endswith("\n"):
            break
        parts = json.loads(line)
        ids, positions = tuple(parts.pop("ids")), tuple(parts.pop("positions"))
        found.append(Deed(ids=ids, positions=positions, **parts))
    return found


def violations(evidence: Evidence) -> list[Violation]:
    """Return all that contradicts what was promised; nothing where it is one story."""
    checks = (
        _dense(evidence.log),
        _kept(evidence),
        _together(evidence),
        _in_turn(evidence.deeds),
        _conditions(evidence),
        _readings(evidence),
        _derived(evidence),
        _moves(evidence.moves),
        _rows(evidence),
    )
    return [found for check in checks for found in check]


def _dense(log: Sequence[Entry]) -> Iterator[Violation]:
    for position, entry in enumerate(log, 1):
        if entry.position != position:
            yield Violation("positions are 1…head", f"{entry.id} is at {entry.position}")
            return


def _kept(evidence: Evidence) -> Iterator[Violation]:
    """Look for what was acknowledged, once and at its receipt, and for what was refused."""
    counted = Counter(one.id for one in evidence.log)
    at = {one.id: one.position for one in evidence.log}
    own = {one.id for one in evidence.log if one.is_own}
    states: dict[str, Counter[State]] = {}
    for deed in evidence.deeds:
        for number, said in enumerate(deed.ids):
            states.setdefault(said, Counter())[deed.state] += 1
            if deed.state == "ok" and at.get(said) != deed.positions[number]:
                where = f"{said} of {deed.who} is at {at.get(said)}, not {deed.positions[number]}"
                yield Violation("acknowledged is at the position of its receipt", where)
    for said, known in states.items():
        # Whoever was answered each time that he tried, and refused.
        if 0 < known["fail"] == known["invoke"] and counted[said]:
            yield Violation("refused is absent", f"{said} is at {at[said]}")
    for said, times in counted.items():
        if times > 1:
            yield Violation("nothing is there twice", f"{said} is there {times} times")
        if said not in states and said not in evidence.derived and said not in own:
            yield Violation("nothing is invented", f"nobody appended {said}")


def _together(evidence: Evidence) -> Iterator[Violation]:
    """Hold each transaction to standing together, in its order, or not at all."""
    at = {one.id: one.position for one in evidence.log}
    for ids in dict.fromkeys(one.ids for one in evidence.deeds):
        positions = [at[one] for one in ids if one in at]
        together = list(range(positions[0], positions[0] + len(ids))) if positions else []
        if positions != together:
            yield Violation("an append is whole and stands together", f"{ids} are at {positions}")


def _in_turn(deeds: Sequence[Deed]) -> Iterator[Violation]:
    """Hold what was appended after a receipt to standing behind what that is of."""
    last: dict[str, tuple[int, int]] = {}
    for deed in deeds:
        if deed.state == "invoke" or not deed.positions:
            continue
        number, position = last.get(deed.who, (-1, 0))
        if deed.number > number and deed.positions[0] <= position:
            where = (
                f"{deed.who}: append {deed.number} is at {deed.positions[0]}, {number} before it"
            )
            yield Violation("what is appended later stands behind", where)
        last[deed.who] = deed.number, max(position, deed.positions[-1])


def _conditions(evidence: Evidence) -> Iterator[Violation]:
    """Hold conditions against the serial model: all appends one by one, in the order of the log."""
    about: dict[str, list[int]] = {}
    for one in evidence.log:
        about.setdefault(one.entity, []).append(one.position)
    for deed in evidence.deeds:
        if deed.entity is None:
            continue
        behind = [at for at in about.get(deed.entity, ()) if at > deed.after]
        if deed.state == "ok" and any(at < deed.positions[0] for at in behind):
            yield Violation("conditions hold", f"{deed.ids} passed over {behind[0]}")
        if deed.state == "fail" and not behind:
            yield Violation("only what stands against it refuses", f"{deed.ids} by nothing")


def _readings(evidence: Evidence) -> Iterator[Violation]:
    log = [(one.position, one.id) for one in evidence.log]
    for reader, seen in evidence.readings.items():
        if list(seen) != log[: len(seen)]:
            wrong = next(n for n, one in enumerate(seen) if [one] != log[n : n + 1])
            yield Violation("what was read is the beginning of the log", f"{reader}: {seen[wrong]}")


def _derived(evidence: Evidence) -> Iterator[Violation]:
    """Hold what was derived against a fold: each once, as it says it, and no other."""
    found = [one for one in evidence.log if one.source is not None]
    counted = Counter(one.id for one in found)
    for said, text in evidence.derived.items():
        if not counted[said]:
            yield Violation("what follows is derived", f"{said} is missing")
        elif any(one.said != text for one in found if one.id == said):
            yield Violation("what is derived is what a fold says", said)
    for one in found:
        if one.id not in evidence.derived:
            where = f"{one.id} at {one.position} of {one.source}"
            yield Violation("each is derived once", where)


def _moves(moves: Sequence[Move]) -> Iterator[Violation]:
    by_domain: dict[str, list[Move]] = {}
    for move in moves:
        by_domain.setdefault(move.domain, []).append(move)
    for domain, made in by_domain.items():
        for before, after in pairwise(made):
            if after.token < before.token:
                where = f"{domain} at {after.position}: token {after.token} after {before.token}"
                yield Violation("nothing is committed under an older token", where)
            if after.position < before.position:
                where = f"{domain} went from {before.position} to {after.position}"
                yield Violation("a cursor only goes forward", where)


def _rows(evidence: Evidence) -> Iterator[Violation]:
    for name in sorted({*evidence.rows, *evidence.folded}):
        live, folded = evidence.rows.get(name, ()), evidence.folded.get(name, ())
        if Counter(map(repr, live)) != Counter(map(repr, folded)):
            yield Violation("rows are those of a fold", name)
