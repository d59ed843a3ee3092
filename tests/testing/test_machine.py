"""The machine finds what only several domains, processes or crashes show, and nothing else."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest import TestCase

import pytest
from hypothesis import settings
from sqlalchemy import Column, Connection, Integer, String, update

from domains.code import code
from domains.finance import finance
from qntx_es import Attestation, Domain, Payload, ReadRows, Recorded, Rows
from qntx_es.database import Database
from qntx_es.projections import batch
from qntx_es.projections.cursor import Cursor
from qntx_es.sequencer import Sequencer
from qntx_es.tables import cursors
from qntx_es.testing import InconsistentReplay, living, machine
from qntx_es.testing.checks import settings_of

EXAMPLES_MAX = 200


class Ordered(Payload, context="ordered"):
    """Something was ordered."""

    pieces: int = 1


class Billed(Payload, context="billed"):
    """An order was billed."""

    cents: int


def shop_and_till() -> tuple[Domain, Domain]:
    """Return two domains that are right: one counts and bills orders, one adds up bills."""
    shop, till = Domain("shop", emits=("ordered", "billed")), Domain("till")
    orders = shop.table(
        "orders", Column("entity", String, primary_key=True), Column("count", Integer, default=0)
    )
    bills = till.table(
        "bills", Column("entity", String, primary_key=True), Column("count", Integer, default=0)
    )

    @shop.project(Ordered)
    def count_order(ordered: Recorded[Ordered], rows: Rows) -> None:
        rows.add(orders, ordered.entity, count=1)

    @shop.derive(Ordered)
    def bill(ordered: Recorded[Ordered], rows: ReadRows) -> Iterable[Attestation]:
        del rows
        yield shop.attest(Billed(cents=100), entity=ordered.entity)

    @till.project(Billed)
    def count_bill(billed: Recorded[Billed], rows: Rows) -> None:
        rows.add(bills, billed.entity, count=1)

    return shop, till


def run(case: type[TestCase]) -> None:
    """Run the tests of a case as pytest does."""
    names = [name for name in vars(case) if name.startswith("test_on_")]
    assert names
    for name in names:
        getattr(case(name), name)()


def failure_of(*domains: Domain, **how: Any) -> InconsistentReplay:  # noqa: ANN401 - as the machine has it
    """Return how a house of these domains fails."""
    with pytest.raises(InconsistentReplay) as failed:
        run(machine(*domains, examples=EXAMPLES_MAX, **how))
    return failed.value


def advance_anyway(cursor: Cursor, to: int, connection: Connection) -> Cursor:
    """Move a cursor wherever it stands: nothing is compared."""
    ours = cursors.c.domain == cursor.domain
    connection.execute(update(cursors).where(ours).values(position=to))
    return cursor


def test_a_cursor_that_moves_without_comparing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was overtaken past his lease, and commits all the same, is caught in the act."""
    monkeypatch.setattr(batch, "advance", advance_anyway)

    failure = failure_of(*shop_and_till(), faults={"lease"})

    assert failure.cause == "overtaken", str(failure)
    assert "overtake(" in str(failure)


class Late:
    """A sequencer that keeps what is derived until the batch is committed: the bug."""

    def __init__(self, database: Database, sequencer: Sequencer) -> None:
        self._database = database
        self._sequencer = sequencer
        self._late: list[Attestation] = []

    def drop(self, connection: Connection, said: Sequence[Attestation]) -> None:
        """Keep it for later."""
        del connection
        self._late.extend(said)

    def run_pass(self) -> None:
        """Append what was kept."""
        said, self._late = self._late, []
        with self._database.write() as connection:
            self._sequencer.drop(connection, said)
        self._sequencer.run_pass()


def test_what_is_derived_beside_the_batch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between a batch and the append of what it derived loses that for good."""
    begin = batch.Batches.__init__

    def begin_late(self: Any, database: Any, sequencer: Sequencer, *parts: Any) -> None:  # noqa: ANN401 - what it is made of
        begin(self, database, Late(database, sequencer), *parts)  # type: ignore[arg-type]

    monkeypatch.setattr(batch.Batches, "__init__", begin_late)

    failure = failure_of(*shop_and_till(), faults={"crash"})

    assert failure.cause == "derived", str(failure)
    assert "crash_at(" in str(failure)


def test_a_domain_that_reads_its_neighbours_rows_is_found() -> None:
    """Rows that depend on how far another domain has come are not what the log says."""
    shop, till = shop_and_till()
    (orders,) = shop.tables.values()
    peeks = Domain("peeks")
    seen = peeks.table("seen", Column("entity", String, primary_key=True), Column("n", Integer))

    @peeks.project(Ordered)
    def peek(ordered: Recorded[Ordered], rows: Rows) -> None:
        connection: Any = rows.connect(False)  # type: ignore[attr-defined]  # noqa: FBT003 - the bug
        there = connection.execute(orders.select()).all() if has_table(connection) else ()
        rows.put(seen, entity=ordered.entity, n=len(there))

    def has_table(connection: Any) -> bool:  # noqa: ANN401 - a connection
        return bool(connection.dialect.has_table(connection, orders.name))

    failure = failure_of(shop, till, peeks, faults=())

    assert failure.cause in {"rows", "rebuild"}, str(failure)
    assert "peeks" in str(failure)


@pytest.mark.nightly
def test_what_a_process_remembers_is_found() -> None:
    """A count beside the rows is another one when another process takes over."""
    shop, till = shop_and_till()
    notes = Domain("notes")
    kept = notes.table("kept", Column("entity", String, primary_key=True), Column("n", Integer))
    heard: list[str] = []

    @notes.project(Billed)
    def note(billed: Recorded[Billed], rows: Rows) -> None:
        heard.append(billed.entity)
        rows.put(kept, entity=billed.entity, n=len(heard))

    failure = failure_of(shop, till, notes, faults=())

    assert failure.cause in {"rows", "rebuild"}, str(failure)
    assert "notes" in str(failure)


@pytest.mark.parametrize("make", [shop_and_till, lambda: (code, finance)], ids=["shop", "code"])
def test_what_is_right_is_left_alone(make: Callable[[], tuple[Domain, ...]]) -> None:
    """Domains that look at their arguments alone live through whatever befalls the house."""
    run(machine(*make(), examples=6))


@pytest.mark.nightly
def test_what_is_right_is_left_alone_on_both_databases() -> None:
    """PostgreSQL, with its inbox and its passes, makes no difference."""
    run(machine(*shop_and_till(), on="both"))


def test_a_failure_tells_its_steps_and_the_difference() -> None:
    """What was said, the table that differs and the fewest steps are in the message."""
    broken = Domain("broken")
    table = broken.table("rows", Column("entity", String, primary_key=True), Column("n", Integer))
    calls: list[int] = []

    @broken.project(Ordered)
    def number(ordered: Recorded[Ordered], rows: Rows) -> None:
        calls.append(1)
        rows.put(table, entity=ordered.entity, n=len(calls))

    failure = failure_of(broken, faults=())

    assert "The fewest steps that show it:" in str(failure)
    assert "(said=[" in str(failure)


def test_a_failure_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn from the same seed, the machine goes the same way and tells the same."""
    monkeypatch.setattr(batch, "advance", advance_anyway)
    monkeypatch.setattr(
        living, "settings_of", lambda *told: settings(settings_of(*told), derandomize=True)
    )

    once, again = (str(failure_of(*shop_and_till(), faults={"lease"})) for _ in range(2))

    assert once == again


def test_the_arguments_are_checked() -> None:
    """A fault that there is not, and a house of nobody, are refused by name."""
    with pytest.raises(ValueError, match="no fault is named `crsh`; did you mean `crash`"):
        machine(code, faults={"crsh"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no domains"):
        machine()
    with pytest.raises(ValueError, match="on="):
        machine(code, on="mysql")  # type: ignore[arg-type]
