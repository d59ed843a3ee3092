"""A valuation is Boehm's basic COCOMO, in integers, and the same on every machine."""

from dataclasses import asdict
from decimal import Decimal, getcontext, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.finance import MODEL, RepositoryValued, Valuation, value
from domains.finance.payloads import COUNT_MAX


@pytest.mark.parametrize(
    ("loc", "months", "schedule"),
    [(0, 0, 0), (1, 0, 22), (1_000, 240, 349), (10_000, 2693, 874), (32_000, 9133, 1390)],
)
def test_effort_and_schedule_are_basic_cocomo(loc: int, months: int, schedule: int) -> None:
    """Effort is 2.4 KLOC^1.05 person-months, and the schedule 2.5 effort^0.38 months.

    The last is the book's own example: 32 000 instructions, 91 person-months, 14 months.
    """
    valued = value(loc)
    assert valued.person_months_hundredths == months
    assert valued.schedule_months_hundredths == schedule


def test_cost_is_the_hours_of_the_effort() -> None:
    """A person-month is 152 hours; the cost is that of all hours, rounded once."""
    assert value(1_000) == Valuation(240, 349, round(Decimal("2.4") * 152 * 75))


@given(st.integers(0, COUNT_MAX), st.integers(0, COUNT_MAX))
def test_more_code_never_costs_less(one: int, other: int) -> None:
    """A larger repository is worth at least as much, and every value fits in 64 bits."""
    small, large = sorted((one, other))
    assert value(small).cost_euro <= value(large).cost_euro < 2**63


def test_whatever_may_be_analysed_may_be_valued() -> None:
    """The largest repository that may be stated has a value that may be stated."""
    valued = RepositoryValued(model=MODEL, loc=COUNT_MAX, **asdict(value(COUNT_MAX)))

    assert valued.cost_euro > COUNT_MAX


def test_the_callers_arithmetic_does_not_matter() -> None:
    """Whatever precision the calling thread reckons with, a valuation is the same."""
    expected = value(123_456)
    with localcontext() as context:
        context.prec = 3
        assert value(123_456) == expected
        assert getcontext().prec == 3
