"""A plan is run as it is written, and what came of it is what a fold of the log makes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from sqlalchemy import Column, Integer, String

from domains.code import CommitRecorded, RepositoryCloned, RepositoryIngested, code
from domains.finance import finance
from qntx_es import Attestation, Domain, DomainRefused, Payload, ReadRows, Recorded, Rows
from qntx_es.testing import (
    InconsistentReplay,
    Step,
    append,
    attestations,
    cut,
    fail,
    fold,
    poll,
    rebuild,
    replay,
    replay_consistency,
    restart,
    run,
    travel,
    under,
)
from qntx_es.testing.bench import Kind

shop = Domain("shop", by_entity=True)
sales = shop.table(
    "sales", Column("entity", String, primary_key=True), Column("number", Integer, default=0)
)
KEPT: dict[str, int] = {}
careless = Domain("careless")
totals = careless.table(
    "totals", Column("entity", String, primary_key=True), Column("number", Integer)
)


class Sold(Payload, context="sold"):
    """Something was sold."""

    amount: int = 1


class Big(Payload, context="big"):
    """A sale was a big one."""

    amount: int


@shop.project(Sold)
def sell(sold: Recorded[Sold], rows: Rows) -> None:
    """Add to what an entity has sold."""
    rows.add(sales, sold.entity, number=1)


@shop.derive(Sold)
def notice(sold: Recorded[Sold], rows: ReadRows) -> Iterator[Attestation]:
    """Say that a sale was a big one."""
    del rows
    if sold.payload.amount > 1:
        yield shop.attest(Big(amount=sold.payload.amount), entity=sold.entity)


@careless.project(Sold)
def keep(sold: Recorded[Sold], rows: Rows) -> None:
    """Count in the module, as nobody should."""
    KEPT[sold.entity] = KEPT.get(sold.entity, 0) + 1
    rows.put(totals, entity=sold.entity, number=KEPT[sold.entity])


def sold(domain: Domain = shop, amount: int = 1, entity: str = "a") -> Attestation:
    """Return a sale."""
    return domain.attest(Sold(amount=amount), entity=entity)


class Nowhere:
    """What a caller without types may come up with."""

    MOON: Any = "moon"
    MYSQL: Any = "mysql"


REPOSITORY = [
    code.attest(RepositoryCloned(path="/a"), entity="a"),
    *(code.attest(CommitRecorded(sha=str(number)), entity="a") for number in range(3)),
    code.attest(RepositoryIngested(commit_count=3), entity="a"),
]
PLANS: list[list[Step]] = [
    [],
    [poll(1), poll(2)],
    [poll(2, crash_at="batch.before_commit"), poll(1, crash_at="pass.after_commit"), restart()],
    [poll(2, times=3)],
    [append(1), poll(1), append(2), poll(4)],
    [rebuild(), travel(3)],
    [rebuild(crash_at="rebuild.before_swap")],
    [fail(2), poll(1)],
    [under("clock", "zone", "environment", "random", "uuid", "keys")],
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_plan_does_not_show(plan: list[Step]) -> None:
    """Whatever is done to a domain in order, rows and derived attestations are those of a fold."""
    came = replay(code, REPOSITORY, plan)

    assert came.error is None
    assert [row[5] for row in came.rows["code_repositories"]] == [3]
    assert len(came.derived) == 1


@pytest.mark.parametrize("on", ["sqlite", "postgresql"])
def test_both_databases_tell_the_same(on: Kind) -> None:
    """A log run and folded on either database comes to the same rows and derived attestations."""
    log = [sold(amount=2), sold(entity="b"), sold(amount=3)]

    came = replay(shop, log, [poll(2), cut(2), restart(), rebuild(), travel(2)], on=on)

    assert came.rows == {"shop_sales": (("a", 2), ("b", 1))}
    assert len(came.derived) == 2
    assert came.travelled == {2: {"shop_sales": (("a", 1), ("b", 1))}}
    assert fold(shop, log, on=on).rows == came.rows


def test_what_differs_is_told_with_its_cause() -> None:
    """A failure shows the history as Python, the plan in words, the rows, the cause, the remedy."""
    log = [sold(careless), sold(careless)]

    with pytest.raises(InconsistentReplay) as failed:
        replay(careless, log, [poll(1), restart(), poll(1)])

    told = str(failed.value)
    assert failed.value.cause == "restart"
    assert told.splitlines()[0] == "careless gives other rows after a restart (P3)"
    assert "log  = [careless.attest(Sold(), entity='a'),\n" in told
    assert "plan = [poll(1), restart(), poll(1)]" in told
    assert "a batch of 1; a restart; a batch of 1" in told
    assert "  entity='a'  number                              2              1" in told
    assert "<- first at position 2, handler keep" in told
    assert "test_replay.py:" in told
    assert "`keep` keeps a value in its module" in told
    assert "(`KEPT` in " in told
    assert "Keep it in a row" in told
    assert "Not the cause: chance, " in told


def test_a_failure_is_the_same_each_time() -> None:
    """What is pasted fails with the same words, however often."""
    log = [sold(careless), sold(careless)]
    told = []
    for _ in range(2):
        with pytest.raises(InconsistentReplay) as failed:
            replay(careless, log, [poll(1), restart(), poll(1)])
        told.append(str(failed.value))

    assert told[0] == told[1]


def test_a_run_knows_nothing_of_the_one_before() -> None:
    """What a module kept is put back before each run, in the containers that others hold."""
    held = KEPT

    first, second = (run(careless, [sold(careless)], []) for _ in range(2))

    assert first.rows == second.rows == {"careless_totals": (("a", 1),)}
    assert held is KEPT


def test_a_handler_that_fails_is_part_of_what_came() -> None:
    """A projector that stops is an outcome, with the rows of the attestation before it."""
    strict = Domain("strict")
    table = strict.table("sales", Column("entity", String, primary_key=True))

    @strict.project(Sold)
    def refuse(said: Recorded[Sold], rows: Rows) -> None:
        if said.payload.amount > 1:
            raise ValueError("too much")
        rows.put(table, entity=said.entity)

    came = run(strict, [sold(strict), sold(strict, 2)], [poll(1)])
    assert came.error is not None
    assert "position 2: handler `refuse` raised ValueError: too much" in came.error
    assert came.rows == {"strict_sales": (("a",),)}
    with pytest.raises(InconsistentReplay, match="strict refuses a log") as failed:
        replay_consistency(strict)()
    assert failed.value.cause == "refused"


def test_a_foreign_table_is_refused_by_name() -> None:
    """Reading another domain's table is a bug that the framework names, and the kit tells so."""
    nosy = Domain("nosy")
    nosy.table("sales", Column("entity", String, primary_key=True))

    @nosy.project(Sold)
    def look(said: Recorded[Sold], rows: Rows) -> None:
        rows.get(sales, said.entity)

    with pytest.raises(InconsistentReplay, match="ForeignTable") as failed:
        replay_consistency(nosy)()
    assert failed.value.cause == "refused"


def test_what_no_host_takes_up_is_refused() -> None:
    """A domain with problems is refused with all of them, and its test fails by their names."""
    broken = Domain("broken")
    broken.table("things", Column("n", Integer))

    with pytest.raises(DomainRefused, match="no primary key"):
        run(broken, [], [])
    with pytest.raises(InconsistentReplay, match="no primary key"):
        replay_consistency(broken)()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: poll(0), "less than one"),
        (lambda: poll(1, crash_at="job.after_start"), "passes no point"),
        (lambda: rebuild(crash_at="nowhere"), "no fault point"),
        (lambda: under(Nowhere.MOON), "no circumstances"),
        (lambda: append(0), "less than one"),
        (lambda: fail(0), "less than one"),
        (lambda: replay_consistency(shop, checks={"crush"}), "did you mean `crash`"),
        (lambda: replay_consistency(shop, on=Nowhere.MYSQL), "'sqlite', 'postgresql' or 'both'"),
    ],
)
def test_what_means_nothing_is_refused(make: Any, message: str) -> None:  # noqa: ANN401
    """A step, a check or a database that there is not is refused at once, by name."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_plan_is_what_it_prints() -> None:
    """Each step is written as Python that makes it again."""
    words: dict[str, Any] = {
        one.__name__: one for one in (append, cut, fail, poll, rebuild, restart, travel, under)
    }
    for plan in [*PLANS, [cut(2)]]:
        assert eval(repr(plan), words) == plan  # noqa: S307 - our own text


test_code = replay_consistency(code)
test_finance = replay_consistency(finance)
test_shop_on_both = replay_consistency(shop, on="both", examples=3)
test_shop_in_order = replay_consistency(
    shop, checks={"crash", "determinism"}, attestations=attestations(shop, entities=1), examples=5
)


def test_the_one_line_has_a_name() -> None:
    """The function that the one line makes says which domain it tests."""
    assert test_code.__name__ == "test_code"
    assert test_code.__doc__ == "However its log is replayed, `code` makes the same rows of it."


def test_a_handler_that_no_example_reached_fails() -> None:
    """What did not run proves nothing, and is named."""
    drawn = attestations(code, then=[CommitRecorded])

    with pytest.raises(InconsistentReplay, match="no example reached `place`") as failed:
        replay_consistency(code, attestations=drawn, examples=2)()
    assert failed.value.cause == "unreached"


def test_many_handlers_are_all_reached() -> None:
    """A domain of so many contexts that chance leaves some out is tried with those as well."""
    wide = Domain("wide")
    wide.table("things", Column("entity", String, primary_key=True))
    read: list[type[Payload]] = [
        type(f"Said{number}", (Payload,), {}, context=f"said_{number}") for number in range(8)
    ]
    for payload in read:

        @wide.project(payload, name=payload.context)
        def ignore(said: Recorded[Any], rows: Rows) -> None:
            """Do nothing."""

    replay_consistency(wide, examples=1, checks={"batch"})()


def test_only_drawing_needs_hypothesis() -> None:
    """The kit imports neither Hypothesis nor a driver before something is drawn."""
    program = (
        "import json, sys, qntx_es.testing as kit\n"
        "before = [one for one in ('hypothesis', 'psycopg') if one in sys.modules]\n"
        "kit.replay_consistency\n"
        "print(json.dumps([before, 'hypothesis' in sys.modules]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert json.loads(ran.stdout) == [[], True]


@given(attestations(shop))
@settings(max_examples=5, deadline=None)
def test_plans_and_logs_are_for_everybody(log: list[Attestation]) -> None:
    """What is drawn may be replayed by a plan of one's own."""
    assert replay(shop, log, [poll(2), restart()]).error is None
