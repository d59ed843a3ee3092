"""What it would cost to write a repository anew: basic COCOMO, organic mode.

Barry W. Boehm, *Software Engineering Economics*, Prentice-Hall 1981, chapter 5: effort is
2.4 · KLOC^1.05 person-months, and the schedule 2.5 · effort^0.38 months. The model knows nothing
but size; it was fitted to small teams, and to projects of 2 to 50 thousand lines. Decimals are
used, since the powers of floats may differ in their last digit from one machine to the next.
"""

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

MODEL = "cocomo-81-basic-organic"
EFFORT_FACTOR, EFFORT_EXPONENT = Decimal("2.4"), Decimal("1.05")
SCHEDULE_FACTOR, SCHEDULE_EXPONENT = Decimal("2.5"), Decimal("0.38")
# Boehm's person-month: 19 working days of 8 hours.
HOURS_PER_PERSON_MONTH = 152
# An assumption, not a measurement: salary, overhead and profit of a developer in western Europe.
EURO_PER_HOUR = 75

_ARITHMETIC = Context(prec=28, rounding=ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True)
class Valuation:
    """Effort and schedule in hundredths of (person-)months, and the cost of the effort."""

    person_months_hundredths: int
    schedule_months_hundredths: int
    cost_euro: int


def value(loc: int) -> Valuation:
    """Estimate what so many lines of code would take."""
    with localcontext(_ARITHMETIC):
        effort = EFFORT_FACTOR * (Decimal(loc) / 1000) ** EFFORT_EXPONENT
        schedule = SCHEDULE_FACTOR * effort**SCHEDULE_EXPONENT
        return Valuation(
            person_months_hundredths=round(effort * 100),
            schedule_months_hundredths=round(schedule * 100),
            cost_euro=round(effort * HOURS_PER_PERSON_MONTH * EURO_PER_HOUR),
        )
