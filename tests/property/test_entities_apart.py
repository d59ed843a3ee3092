"""Where a domain is `by_entity`, its entities could as well live in logs of their own.

Neighbours of different entities may change places, and the entities may be cut into ranges that
are moved one after the other and cut anew in between: no row changes, and nothing else is derived.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from threading import Event
from typing import Any, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Column, String, select

from qntx_es import Attestation, Ax, Domain, Host, Payload, ReadRows, Recorded, Rows
from qntx_es.projections.slices import ALL

ENTITIES_MAX = 4
RANGES_MAX = 3
RUNS = count()

Came: TypeAlias = tuple[dict[str, list[tuple[Any, ...]]], dict[str, tuple[str, str]]]


class Paid(Payload, context="paid"):
    """An amount was paid."""

    amount: int


class Noticed(Payload, context="noticed"):
    """A sum was noticed, with the amount that led to it."""

    total: int
    last: int


@dataclass(frozen=True)
class Story:
    """Payments by entity, which of them change places with the next one, and how they are met.

    `cuts` says into how many ranges the entities are cut before a batch of so many of each.
    """

    payments: tuple[tuple[int, int], ...]
    swaps: tuple[int, ...]
    cuts: tuple[tuple[int, int], ...]


STORIES = st.builds(
    Story,
    st.lists(
        st.tuples(st.integers(0, ENTITIES_MAX - 1), st.integers(0, 9)), min_size=2, max_size=12
    ).map(tuple),
    st.lists(st.integers(0, 10), min_size=1, max_size=6).map(tuple),
    st.lists(st.tuples(st.integers(1, RANGES_MAX), st.integers(1, 4)), min_size=1, max_size=3).map(
        tuple
    ),
)


def make() -> Domain:
    """Make a domain whose rows show the order of what was said of an entity."""
    domain = Domain("purses", by_entity=True, emits=(Noticed,))
    purses = domain.table(
        "purses",
        Column("entity", String, primary_key=True),
        Column("total", BigInteger, nullable=False, default=0),
        Column("story", String, nullable=False, default=""),
    )
    over_all = domain.table(
        "over_all",
        Column("run", String, primary_key=True),
        Column("total", BigInteger, nullable=False, default=0),
    )

    @domain.project(Paid)
    def pay(paid: Recorded[Paid], rows: Rows) -> None:
        row = rows.get(purses, paid.entity)
        story = "" if row is None else row.story
        rows.add(purses, paid.entity, total=paid.payload.amount)
        rows.put(purses, entity=paid.entity, story=f"{story} {paid.payload.amount}")
        rows.add(over_all, paid.entity.partition(".")[0], total=paid.payload.amount)

    @domain.derive(Paid)
    def notice(paid: Recorded[Paid], rows: ReadRows) -> Iterator[Attestation]:
        row = rows.get(purses, paid.entity)
        assert row is not None
        if row.total % 3 == 0:
            noticed = Noticed(total=row.total, last=paid.payload.amount)
            yield domain.attest(noticed, entity=paid.entity)

    return domain


def swapped(story: Story) -> list[tuple[int, int, int]]:
    """Return number, entity and amount of each payment, with neighbours of two entities swapped."""
    found = [(n, entity, amount) for n, (entity, amount) in enumerate(story.payments)]
    for at in story.swaps:
        if at + 1 < len(found) and found[at][1] != found[at + 1][1]:
            found[at], found[at + 1] = found[at + 1], found[at]
    return found


class Bench:
    """One host over a log that grows from example to example."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.host = stack.enter_context(Host(url, [make()]))
        self.host.upgrade()
        self.host.get_ready()

    def tell(
        self,
        run: int,
        payments: Sequence[tuple[int, int, int]],
        cuts: Sequence[tuple[int, int]] = (),
    ) -> Came:
        """Return what came of payments, by the names that they have outside of this run."""
        start = self.host.log.head()
        said = [
            Attestation(
                context="paid",
                entity=f"{run}.{entity}",
                actor="ann",
                payload={"amount": amount},
                id=f"{run}.{number}",
            )
            for number, entity, amount in payments
        ]
        self.host.append(said)
        for into, size in cuts:
            if len(self.host._projectors["purses"].runners) != into:  # noqa: SLF001 - a cut of the same is none
                assert self.host.cut("purses", into) == [str(one) for one in ALL.cut(into)]
            for runner in reversed(self.host._projectors["purses"].runners):  # noqa: SLF001 - a host chooses its sizes by time
                runner.size, runner.stopping = size, _AT_ONCE
                runner.advance(eager=True)
        self.host.catch_up()
        return self._rows(run), {
            one.caused_by or "": (one.entity, one.text)
            for one in self.host.log.read(Ax(contexts="noticed"), after=start)
        }

    def _rows(self, run: int) -> dict[str, list[tuple[Any, ...]]]:
        found = {}
        with self.host.database.read() as connection:
            for name, table in self.host.domain("purses").tables.items():
                (key,) = table.primary_key.columns
                asked = select(table).where((key == f"{run}") | key.startswith(f"{run}."))
                found[name] = [tuple(row) for row in connection.execute(asked.order_by(key))]
        return found


def test_neighbours_of_different_entities_may_change_places(url: str) -> None:
    """Swapped, cut into ranges and cut anew between batches: no row is another, nor what is said.

    What is held against it is one projector in memory, to which all came in the first order.
    """
    with ExitStack() as stack:
        bench, plain = Bench(url, stack), Bench("sqlite://", stack)

        @settings(max_examples=max(15, settings().max_examples // 5), deadline=None)
        @given(STORIES)
        def are_apart(story: Story) -> None:
            run = next(RUNS)
            in_order = [(n, entity, amount) for n, (entity, amount) in enumerate(story.payments)]
            as_told = plain.tell(run, in_order)

            assert bench.tell(run, swapped(story), story.cuts) == as_told

        are_apart()


_AT_ONCE = Event()
_AT_ONCE.set()
