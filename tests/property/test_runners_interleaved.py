"""Runners in any order, two of each projector: each attestation counts once, and all rests.

Two domains feed each other, a third one looks on, and two hosts move all of them, one batch at a
time, as is drawn: also in the midst of a batch of the other, after a crash, and with attestations
appended a second time. Each row is a chain of digests over what its domain has met. One attestation
left out, met twice or out of its order makes another chain, and a plain fold of the log knows the
right one.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from threading import Event
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, String, Table, select

from qntx_es import (
    Attestation,
    Ax,
    Domain,
    Host,
    LeaseLost,
    Payload,
    ReadRows,
    Recorded,
    Rows,
    faults,
)
from qntx_es.attestation import derived_id
from qntx_es.projections.batch import Step
from qntx_es.tables import cursors

LEFT_MAX = 3
SIZE_MAX = 4
CONTEXTS = ("asked", "answered")
NAMES = ("asking", "answering", "watching")
RUNS = count()


class Asked(Payload, context="asked"):
    """A question, and how often it may go to and fro from here."""

    left: int


class Answered(Payload, context="answered"):
    """An answer, which asks again as long as there is something left."""

    left: int


@dataclass(frozen=True)
class Say:
    """Append the next questions; `again` of those before are appended once more, by the other."""

    questions: tuple[tuple[str, int], ...]
    again: int = 0


@dataclass(frozen=True)
class Move:
    """One batch of a projector by one of two hosts.

    `overtaken_at` lets the other host move it at that point; at `crash_at` the host is gone.
    """

    who: int
    name: str
    size: int
    overtaken_at: str | None = None
    crash_at: str | None = None


Plan: TypeAlias = Sequence[Say | Move]

SAYINGS = st.builds(
    Say,
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, LEFT_MAX)), min_size=1, max_size=4
    ).map(tuple),
    st.integers(0, 3),
)
MOVES = st.builds(
    Move,
    st.integers(0, 1),
    st.sampled_from(NAMES),
    st.integers(1, SIZE_MAX),
    # From `before_flush` on one writes, and the other would wait for it.
    st.sampled_from([None, None, "batch.after_look", "batch.after_read"]),
    st.sampled_from(
        [None] * 5 + ["batch.before_move", "batch.before_commit", "batch.after_commit"]
    ),
)
PLANS = st.tuples(SAYINGS, st.lists(MOVES | MOVES | MOVES | SAYINGS, max_size=12)).map(
    lambda drawn: [drawn[0], *drawn[1]]
)


def domains() -> list[Domain]:
    """Return two domains that answer each other, and one that looks on."""
    asking, answering, watching = (
        Domain("asking", emits=(Asked,)),
        Domain("answering", emits=(Answered,)),
        Domain("watching"),
    )
    for domain in (asking, answering, watching):
        _keep_a_chain(domain)

    @answering.derive(Asked)
    def answer(asked: Recorded[Asked], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        if asked.payload.left:
            yield answering.attest(Answered(left=asked.payload.left - 1), entity=asked.entity)

    @asking.derive(Answered)
    def ask(answered: Recorded[Answered], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        if answered.payload.left:
            yield asking.attest(Asked(left=answered.payload.left - 1), entity=answered.entity)

    return [asking, answering, watching]


def _keep_a_chain(domain: Domain) -> None:
    chains = domain.table(
        "chains",
        Column("entity", String, primary_key=True),
        Column("chain", String, nullable=False),
    )

    @domain.project(Asked)
    def meet_asked(asked: Recorded[Asked], rows: Rows) -> None:
        _link(rows, chains, asked.entity, asked.id)

    @domain.project(Answered)
    def meet_answered(answered: Recorded[Answered], rows: Rows) -> None:
        _link(rows, chains, answered.entity, answered.id)


def _link(rows: Rows, chains: Table, entity: str, said: str) -> None:
    row = rows.get(chains, entity)
    rows.put(chains, entity=entity, chain=linked("" if row is None else row.chain, said))


def linked(chain: str, said: str) -> str:
    """Return a chain with one more link."""
    return blake2b(f"{chain} {said}".encode(), digest_size=8).hexdigest()


class Bench:
    """Two hosts over one log, which grows from example to example; each has its own entities."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self._url = url
        self._stack = stack
        self.hosts = [self._open(), self._open()]

    def run(self, plan: Plan) -> None:
        """Do what is planned, bring all to rest, and hold it against a plain fold of the log."""
        self._run = next(RUNS)
        self._start = self.hosts[0].log.head()
        self._at = self._positions()
        self._said: list[Attestation] = []
        for step in plan:
            if isinstance(step, Say):
                self._say(step)
            else:
                self._move(step)
            self._check_cursors()
        self._come_to_rest()
        self._check_log()
        self._check_rows()

    def _open(self) -> Host:
        host = self._stack.enter_context(Host(self._url, domains()))
        host.upgrade()
        host.get_ready()
        return host

    def _say(self, step: Say) -> None:
        said = [
            Attestation(
                context="asked",
                entity=f"{self._run}.{entity}",
                actor="ann",
                payload={"left": left},
                id=f"{self._run}.{len(self._said) + n}",
            )
            for n, (entity, left) in enumerate(step.questions)
        ]
        self._said += said
        first = self.hosts[0].append(said)
        head = self.hosts[0].log.head()
        again = self.hosts[1].append(said[-step.again :] if step.again else [])
        assert [one.position for one in again] == [
            one.position for one in (first[-step.again :] if step.again else [])
        ]
        assert self.hosts[0].log.head() == head

    def _move(self, step: Move) -> None:
        other: list[Step] = []
        plan: dict[str, faults.Action] = {}
        if step.overtaken_at is not None:
            overtake = faults.Action(lambda: other.append(self._poll(1 - step.who, step.name, 2)))
            plan[step.overtaken_at] = overtake
        if step.crash_at is not None:
            # The other one passes that point as well, where it is the one to go on.
            plan[step.crash_at] = faults.crash(nth=1 if step.overtaken_at is None else 2)
        mine: Step | None = None
        with faults.planned(plan):
            try:
                mine = self._poll(step.who, step.name, step.size)
            except LeaseLost:
                assert other
                assert other[0].position > other[0].start
            except faults.Crash:
                self.hosts[step.who].close()
                self.hosts[step.who] = self._open()
        # Of two on one projector, no more than one has moved it from where both stood.
        faults.sometimes("a runner was overtaken", is_met=bool(other) and mine is None)
        if mine is not None and other and other[0].start < other[0].position:
            assert mine.start in (mine.position, other[0].position)

    def _poll(self, who: int, name: str, size: int) -> Step:
        (runner,) = self.hosts[who]._projectors[name].runners  # noqa: SLF001 - a host chooses its sizes by time
        runner.size, runner.stopping = size, _AT_ONCE
        return runner.advance(eager=True)

    def _come_to_rest(self) -> None:
        """Let both hosts go round until nothing is behind: so many rounds as there are links."""
        for round_ in range(len(self._expected()) + LEFT_MAX + 2):
            for name in NAMES:
                self._poll(round_ % 2, name, SIZE_MAX)
            if set(self._positions().values()) == {self.hosts[0].log.head()}:
                return
        pytest.fail(f"no rest: {self._positions()} of {self.hosts[0].log.head()}")

    def _expected(self) -> dict[str, int]:
        """Return the id of all that there has to be in the end, and what each has left."""
        found: dict[str, int] = {}
        for one in self._said:
            said, left, asks = one.id, int(one.payload["left"]), True
            found[said] = left
            while left:
                parts = ("answering", "answer") if asks else ("asking", "ask")
                said, left, asks = derived_id(said, *parts, "0"), left - 1, not asks
                found[said] = left
        return found

    def _check_cursors(self) -> None:
        before, self._at = self._at, self._positions()
        head = self.hosts[0].log.head()
        assert all(before[name] <= self._at[name] <= head for name in NAMES)

    def _check_log(self) -> None:
        read = list(self.hosts[1].log.read(after=self._start))
        assert [one.position - self._start for one in read] == list(range(1, len(read) + 1))
        # The framework itself says from where on a handler speaks.
        said = [one for one in read if one.context in CONTEXTS]
        assert {one.id: one.payload["left"] for one in said} == self._expected()
        assert len(said) == len(self._expected())

    def _check_rows(self) -> None:
        folded: dict[str, str] = {}
        for one in self.hosts[0].log.read(Ax(contexts=CONTEXTS), after=self._start):
            folded[one.entity] = linked(folded.get(one.entity, ""), one.id)
        for name in NAMES:
            (table,) = self.hosts[0].domain(name).tables.values()
            asked = select(table).where(table.c.entity.startswith(f"{self._run}."))
            with self.hosts[0].database.read() as connection:
                assert {row.entity: row.chain for row in connection.execute(asked)} == folded, name

    def _positions(self) -> dict[str, int]:
        with self.hosts[0].database.read() as connection:
            asked = select(cursors.c.domain, cursors.c.position).where(cursors.c.domain.in_(NAMES))
            return {row.domain: row.position for row in connection.execute(asked)}


@pytest.mark.derive_once
@pytest.mark.loops
def test_runners_in_any_order_come_to_one_rest(url: str) -> None:
    """Whoever moves what when, each attestation counts once, and the end is the same."""
    with ExitStack() as stack:
        bench = Bench(url, stack)

        @settings(max_examples=max(20, settings().max_examples // 4), deadline=None)
        @given(PLANS)
        def rest(plan: Plan) -> None:
            bench.run(plan)

        rest()
        assert all(bench.hosts[0].verify(name).is_same for name in NAMES)


_AT_ONCE = Event()
_AT_ONCE.set()
