"""The checker of histories leaves alone what is right, and finds each thing that is planted."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from qntx_es.testing.histories import (
    Deed,
    Entry,
    Evidence,
    Move,
    State,
    Violation,
    deeds_of,
    violations,
)


@dataclass
class Story:
    """A log that is appended to one by one, as the checker is to believe it."""

    deeds: list[Deed] = field(default_factory=list)
    log: list[Entry] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    derived: dict[str, str] = field(default_factory=dict)
    token: int = 1

    def append(self, who: str, size: int, state: State, *, is_there: bool) -> None:
        """Append, or be refused, or never hear what came of it."""
        number = len(self.deeds)
        ids = tuple(f"{who}.{number}.{n}" for n in range(size))
        is_conditional = state == "fail" or size == 1
        entity, after = ("a", 0) if state == "fail" else (f"new {number}", len(self.log))
        asked = Deed(who, number, "invoke", ids, entity if is_conditional else None, after)
        positions = tuple(range(len(self.log) + 1, len(self.log) + size + 1))
        self.deeds.append(asked)
        if is_there:
            self.log += [
                Entry(at, one, "a", "said") for at, one in zip(positions, ids, strict=True)
            ]
        if state != "invoke":
            heard = positions if state == "ok" else ()
            self.deeds.append(replace(asked, state=state, positions=heard))

    def project(self, *, is_another: bool) -> None:
        """Derive what is still to be derived, and move the cursor, perhaps as somebody else."""
        self.token += is_another
        answered = {one.source for one in self.log}
        for one in [each for each in self.log if each.source is None and each.id not in answered]:
            said = Entry(len(self.log) + 1, f"of {one.id}", "a", f"answer {one.id}", one.id)
            self.log.append(said)
            self.derived[said.id] = said.said
        self.moves.append(Move("ledger", len(self.log), self.token))

    def evidence(self) -> Evidence:
        """Return what is left of it."""
        seen = [(one.position, one.id) for one in self.log]
        rows = {"ledger_sums": [("a", len(self.log)), ("b", 0)]}
        readings = {"slow": seen[: len(seen) // 2], "fast": seen}
        return Evidence(self.deeds, self.log, readings, self.moves, self.derived, rows, dict(rows))


@st.composite
def stories(draw: st.DrawFn) -> Evidence:
    """Draw a sound story, with two that were acknowledged and all that follows from them."""
    story = Story()
    story.append("first", 2, "ok", is_there=True)
    story.project(is_another=False)
    states: list[tuple[State, bool]] = [
        ("ok", True),
        ("fail", False),
        ("unknown", True),
        ("unknown", False),
        ("invoke", True),
        ("invoke", False),
    ]
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.booleans()):
            state, is_there = draw(st.sampled_from(states))
            size = draw(st.integers(1, 3))
            story.append(draw(st.sampled_from("pq")), size, state, is_there=is_there)
        else:
            story.project(is_another=draw(st.booleans()))
    story.append("last", 1, "ok", is_there=True)
    story.append("last", 1, "fail", is_there=False)
    story.project(is_another=True)
    return story.evidence()


Plant = Callable[[Evidence, DataObject], Evidence]


def renumbered(log: list[Entry]) -> list[Entry]:
    """Return entries without a hole."""
    return [replace(one, position=at) for at, one in enumerate(log, 1)]


def acknowledged(evidence: Evidence, data: DataObject) -> str:
    """Draw what was acknowledged."""
    said = [one for deed in evidence.deeds if deed.state == "ok" for one in deed.ids]
    return str(data.draw(st.sampled_from(said)))


def lost(evidence: Evidence, data: DataObject) -> Evidence:
    """Lose an acknowledged attestation, and leave no hole."""
    gone = acknowledged(evidence, data)
    return replace(evidence, log=renumbered([one for one in evidence.log if one.id != gone]))


def dropped(evidence: Evidence, data: DataObject) -> Evidence:
    """Drop a row of a read model."""
    at = data.draw(st.integers(0, 1))
    rows = [row for n, row in enumerate(evidence.rows["ledger_sums"]) if n != at]
    return replace(evidence, rows={"ledger_sums": rows})


def swapped(evidence: Evidence, data: DataObject) -> Evidence:
    """Let two neighbours change places."""
    at = data.draw(st.integers(0, len(evidence.log) - 2))
    log = list(evidence.log)
    log[at], log[at + 1] = log[at + 1], log[at]
    return replace(evidence, log=renumbered(log))


def holed(evidence: Evidence, data: DataObject) -> Evidence:
    """Leave a position out."""
    at = data.draw(st.integers(0, len(evidence.log) - 1))
    log = [
        replace(one, position=one.position + 1) if n >= at else one
        for n, one in enumerate(evidence.log)
    ]
    return replace(evidence, log=log)


def doubled(evidence: Evidence, data: DataObject) -> Evidence:
    """Derive something a second time, under another id."""
    first = data.draw(st.sampled_from([one for one in evidence.log if one.source]))
    again = replace(first, position=len(evidence.log) + 1, id=f"again {first.id}")
    return replace(evidence, log=[*evidence.log, again])


def twice(evidence: Evidence, data: DataObject) -> Evidence:
    """Let an attestation be there twice."""
    first = data.draw(st.sampled_from(list(evidence.log)))
    return replace(evidence, log=[*evidence.log, replace(first, position=len(evidence.log) + 1)])


def silent(evidence: Evidence, data: DataObject) -> Evidence:
    """Leave out what follows from something."""
    said = data.draw(st.sampled_from(sorted(evidence.derived)))
    return replace(evidence, log=renumbered([one for one in evidence.log if one.id != said]))


def otherwise(evidence: Evidence, data: DataObject) -> Evidence:
    """Let a derived attestation say something else than a fold does."""
    said = data.draw(st.sampled_from(sorted(evidence.derived)))
    log = [replace(one, said="other") if one.id == said else one for one in evidence.log]
    return replace(evidence, log=log)


def stale(evidence: Evidence, data: DataObject) -> Evidence:
    """Let somebody who lost his lease commit."""
    last = evidence.moves[-1]
    late = data.draw(st.integers(0, last.token - 1))
    return replace(evidence, moves=[*evidence.moves, replace(last, token=late)])


def backward(evidence: Evidence, data: DataObject) -> Evidence:
    """Let a cursor go back."""
    last = evidence.moves[-1]
    to = data.draw(st.integers(0, last.position - 1))
    return replace(evidence, moves=[*evidence.moves, replace(last, position=to)])


def refused(evidence: Evidence, data: DataObject) -> Evidence:
    """Let what was refused be there all the same."""
    deed = data.draw(st.sampled_from([one for one in evidence.deeds if one.state == "fail"]))
    size = len(evidence.log)
    log = [Entry(size + n, one, "z", "said") for n, one in enumerate(deed.ids, 1)]
    return replace(evidence, log=[*evidence.log, *log])


def passed_over(evidence: Evidence, data: DataObject) -> Evidence:
    """Let an append have succeeded though something stood against it."""
    found = [one for one in evidence.deeds if one.state == "ok" and one.positions[0] > 1]
    deed = data.draw(st.sampled_from(found))
    deeds = [replace(one, entity="a", after=0) if one is deed else one for one in evidence.deeds]
    return replace(evidence, deeds=deeds)


def unfounded(evidence: Evidence, data: DataObject) -> Evidence:
    """Let an append have been refused though nothing stood against it."""
    deed = data.draw(st.sampled_from([one for one in evidence.deeds if one.state == "fail"]))
    deeds = [replace(one, entity="nobody") if one is deed else one for one in evidence.deeds]
    return replace(evidence, deeds=deeds)


def unread(evidence: Evidence, data: DataObject) -> Evidence:
    """Let a reader have passed something over."""
    seen = list(evidence.readings["fast"])
    del seen[data.draw(st.integers(0, len(seen) - 2))]
    return replace(evidence, readings={"fast": seen})


def invented(evidence: Evidence, data: DataObject) -> Evidence:  # noqa: ARG001 - as the others have it
    """Let something be there that nobody has said."""
    return replace(
        evidence, log=[*evidence.log, Entry(len(evidence.log) + 1, "nobody's", "z", "said")]
    )


PLANTS: dict[Plant, str] = {
    lost: "acknowledged is at the position of its receipt",
    dropped: "rows are those of a fold",
    swapped: "what was read is the beginning of the log",
    holed: "positions are 1…head",
    doubled: "each is derived once",
    twice: "nothing is there twice",
    silent: "what follows is derived",
    otherwise: "what is derived is what a fold says",
    stale: "nothing is committed under an older token",
    backward: "a cursor only goes forward",
    refused: "refused is absent",
    passed_over: "conditions hold",
    unfounded: "only what stands against it refuses",
    unread: "what was read is the beginning of the log",
    invented: "nothing is invented",
}


@given(stories())
def test_what_is_sound_is_left_alone(evidence: Evidence) -> None:
    """Killed, refused and acknowledged alike: one story, and nothing is found in it."""
    assert violations(evidence) == []


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@given(data=st.data())
def test_whatever_is_planted_is_found(plant: Plant, data: DataObject) -> None:
    """Each violation, wherever it is planted, is found and called by its name."""
    evidence = data.draw(stories())

    found = violations(plant(evidence, data))

    assert PLANTS[plant] in {one.promise for one in found}


def test_an_append_that_was_torn_apart_is_found() -> None:
    """Half of an append, or something in between, is found though nobody heard of it."""
    asked = Deed("p", 0, "invoke", ("p.0", "p.1"))
    other = Deed("q", 0, "ok", ("q.0",), positions=(2,))
    log = [Entry(at, one, "a", "said") for at, one in enumerate(("p.0", "q.0", "p.1"), 1)]
    nothing = Evidence([asked, other], log, {}, [], {}, {}, {})

    torn = Violation("an append is whole and stands together", "('p.0', 'p.1') are at [1, 3]")
    half = Violation("an append is whole and stands together", "('p.0', 'p.1') are at [1]")
    assert violations(nothing) == [torn]
    assert violations(replace(nothing, log=log[:2])) == [half]


def test_what_was_appended_later_and_stands_before_is_found() -> None:
    """Whoever had a receipt and then appended has the second behind the first."""
    deeds = [
        Deed("p", 0, "ok", ("p.0",), positions=(2,)),
        Deed("p", 1, "ok", ("p.1",), positions=(1,)),
    ]
    log = [Entry(1, "p.1", "a", "said"), Entry(2, "p.0", "a", "said")]

    found = violations(Evidence(deeds, log, {}, [], {}, {}, {}))

    assert [one.promise for one in found] == ["what is appended later stands behind"]


def test_a_history_is_read_as_it_was_written() -> None:
    """What was written is read, but for a line that was cut off with its process."""
    written = [
        Deed("p", 0, "invoke", ("p.0",), "a", 3),
        Deed("p", 0, "ok", ("p.0",), "a", 3, (4,)),
    ]

    lines = [one.line() for one in written]

    assert deeds_of(lines) == written
    assert deeds_of([lines[0], lines[1][:-5]]) == written[:1]
