"""Whatever fails and is parked, retried or skipped: a rebuild, and one by one, give the same."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, String, select

from qntx_es import (
    Attestation,
    Domain,
    Host,
    NothingToRetry,
    Payload,
    ReadRows,
    Recorded,
    Rows,
)
from qntx_es.domain import OnFailure
from qntx_es.testing import PostgresServer

Kept = dict[str, list[tuple[Any, ...]]]


class Done(Payload, context="done"):
    """A step of a drawn story."""

    n: int


class Heard(Payload, context="heard"):
    """A step was heard of."""


@dataclass(frozen=True)
class Story:
    """Steps about `entities`, told in `parts`; some fail, and the `stubborn` are never mended.

    Behind each part, where `retried` says so, half of what fails is mended and all is retried.
    """

    entities: list[str]
    failing: frozenset[int]
    stubborn: frozenset[int]
    parts: list[int]
    retried: list[bool]


class Mood:
    """At which steps the handlers of a bench fail just now."""

    failing: frozenset[int] = frozenset()


STORIES = st.builds(
    Story,
    entities=st.lists(st.sampled_from("abcd"), min_size=1, max_size=14),
    failing=st.frozensets(st.integers(0, 13), max_size=5),
    stubborn=st.frozensets(st.integers(0, 13), max_size=2),
    parts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    retried=st.lists(st.booleans(), min_size=1, max_size=4),
)
SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=3)
NAMES = ("parking", "skipping", "sound")


def make(name: str, on_failure: OnFailure, mood: Mood) -> Domain:
    """Make a domain whose rows show the order of everything, across entities."""
    domain = Domain(name, on_failure=on_failure)
    places = domain.table(
        "places",
        Column("entity", String, primary_key=True),
        Column("number", Integer, nullable=False),
        Column("after", String),
    )

    @domain.project(Done)
    def do(done: Recorded[Done], rows: Rows) -> None:
        last = rows.get(places, "last")
        number = 1 if last is None else last.number + 1
        # Written before it fails: nothing of a failure may stay.
        rows.put(places, entity="last", number=number, after=done.entity)
        if done.payload.n in mood.failing:
            raise LookupError
        before = None if last is None else last.after
        rows.put(places, entity=f"{done.entity} {done.payload.n}", number=number, after=before)

    @domain.derive(Done)
    def hear(done: Recorded[Done], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        yield domain.attest(Heard(), entity=done.entity)

    return domain


class Bench:
    """A log that grows from story to story, a domain that parks, one that skips, a sound one."""

    def __init__(self, url: str) -> None:
        self.mood = Mood()
        self.host = Host(
            url,
            [
                make("parking", "park", self.mood),
                make("skipping", "skip", self.mood),
                make("sound", "stop", Mood()),
            ],
        )
        self.host.upgrade()
        self.told = 0
        for runner in [each for them in self.host._projectors.values() for each in them.runners]:  # noqa: SLF001 - attempts without a pause
            runner.stopping = Event()
            runner.stopping.set()

    def tell(self, story: Story, sizes: Sequence[int]) -> Kept:
        """Tell a story in batches of these sizes, and return the rows of all domains."""
        steps = [
            Attestation(context="done", entity=entity, actor="a", payload={"n": self.told + n})
            for n, entity in enumerate(story.entities)
        ]
        failing = {self.told + n for n in story.failing | story.stubborn}
        stubborn = {self.told + n for n in story.stubborn}
        self.told += len(steps)
        for size, is_retried in zip(cycle(story.parts), cycle(story.retried), strict=False):
            self.mood.failing = frozenset(failing)
            self.host.append(steps[:size])
            self._advance(sizes)
            if is_retried:
                failing = {n for n in failing if n in stubborn or n % 2}
                self._retry(failing, sizes)
            del steps[:size]
            if not steps:
                break
        return self.rows()

    def end(self, sizes: Sequence[int]) -> Kept:
        """Mend and retry everything, and return the rows of all domains."""
        self._retry(set(), sizes)
        assert self.host.parked("parking") == []
        return self.rows()

    def rows(self) -> Kept:
        """Return the rows of all domains."""
        with self.host.database.read() as connection:
            return {
                name: sorted(map(tuple, connection.execute(select(table))))
                for one in NAMES
                for name, table in self.host.domain(one).tables.items()
            }

    def _advance(self, sizes: Sequence[int]) -> None:
        for name in NAMES:
            runner = self.host._projectors[name].runners[0]  # noqa: SLF001 - sizes are chosen here, not by time
            for size in cycle(sizes):
                runner.size = size
                step = runner.advance(eager=True)
                if step.position >= step.head:
                    break

    def _retry(self, failing: set[int], sizes: Sequence[int]) -> None:
        self.mood.failing = frozenset(failing)
        self.host._projectors["parking"].runners[0].size = sizes[0]  # noqa: SLF001 - as above
        with suppress(NothingToRetry):
            self.host.retry("parking")


@pytest.fixture(scope="module")
def benches(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> Iterator[list[Bench]]:
    """Set up two benches on each database, for all examples."""
    path: Path = tmp_path_factory.mktemp("ledger")
    made = [
        *(Bench(f"sqlite:///{path / name}") for name in ("one.db", "other.db")),
        *(Bench(postgres_server.create_database()) for _ in range(2)),
    ]
    yield made
    for bench in made:
        bench.host.close()


# Each example is told four times, and rebuilt eight times, with all that was told before it.
@pytest.mark.failing
@pytest.mark.derive_once
@settings(max_examples=settings().max_examples // 10)
@given(story=STORIES, sizes=SIZES)
def test_live_and_rebuilt_rows_are_those_of_one_by_one(
    benches: list[Bench], story: Story, sizes: list[int]
) -> None:
    """Any cutting gives the rows of one by one, a rebuild those of live; others never notice."""
    cuttings = [sizes, [1], sizes, [1]]

    told = [bench.tell(story, cut) for bench, cut in zip(benches, cuttings, strict=True)]
    waiting = [[(one.entity, one.error) for one in each.host.parked("parking")] for each in benches]
    rebuilt = [bench.host.rebuild(name) for bench in benches for name in NAMES[:2]]
    after = [bench.rows() for bench in benches]
    ended = [bench.end(cut) for bench, cut in zip(benches, cuttings, strict=True)]

    assert all(one.is_same for one in rebuilt)
    assert told == after == told[:1] * 4
    assert waiting == waiting[:1] * 4
    assert ended == ended[:1] * 4
    assert all(bench.host.rebuild("parking").is_same for bench in benches[::2])
    for bench in benches:
        sources = [
            one.caused_by for one in bench.host.ax(contexts="heard", actors="parking@plugin")
        ]
        assert len(sources) == len(set(sources)) == bench.told
        assert [row[1] for row in ended[0]["sound_places"] if row[0] == "last"] == [bench.told]
