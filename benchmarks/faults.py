"""What a fault point costs where no plan is in force: the call, and one comparison.

Held against a call of a function that does nothing, since some of it is Python's own. Five rounds
take turns, and the fastest of each counts: what else the machine does only ever adds.

    python benchmarks/faults.py
"""

from timeit import timeit

from benchmarks.ratios import Ratio, show
from qntx_es import faults

CALLS = 1_000_000
ROUNDS = 5
NANOSECONDS_MAX = 50


def nothing(name: str) -> None:
    """Do what a point does without a plan, and compare nothing."""


def main() -> None:
    """Measure, and print the table."""
    names = {"point": faults.point, "nothing": nothing}
    fastest = dict.fromkeys(names, float("inf"))
    for _ in range(ROUNDS):
        for name in names:
            loop = f"{name}('batch.before_commit')"
            took = timeit(loop, globals=dict(names), number=CALLS) / CALLS * 1e9
            fastest[name] = min(fastest[name], took)
    point, call = fastest["point"], fastest["nothing"]
    show(
        [
            Ratio(
                "a fault point, over an empty call",
                f"{point:.0f} ns",
                f"{call:.0f} ns",
                point / call,
                2,
                "at most",
            ),
            Ratio(
                "a fault point, of what it may cost",
                f"{point:.0f} ns",
                f"{NANOSECONDS_MAX} ns",
                point / NANOSECONDS_MAX,
                1,
                "at most",
            ),
        ]
    )


if __name__ == "__main__":
    main()
