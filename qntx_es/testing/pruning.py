"""Making a failure shorter by leaving out what it does not need, one thing at a time.

Hypothesis shrinks what was drawn, and each try costs a run; an attestation or a step less is what
a reader gains most by, so these are tried last of all, each by itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from qntx_es.attestation import Attestation
from qntx_es.testing.plans import Poll, Rebuild, Step, Under

T = TypeVar("T")
Log = Sequence[Attestation]
Plan = Sequence[Step]


def pruned(log: Log, plan: Plan, is_consistent: Callable[[Log, Plan], bool]) -> tuple[Log, Plan]:
    """Return the shortest log and plan that still fail, of those that leave out one thing more."""
    while True:
        shorter = next(
            (one for one in _shorter(log, plan) if one[0] and not is_consistent(*one)), None
        )
        if shorter is None:
            return log, plan
        log, plan = shorter


def _shorter(log: Log, plan: Plan) -> Iterator[tuple[Log, Plan]]:
    yield from ((log, _without(plan, index)) for index in range(len(plan)))
    yield from ((_without(log, index), plan) for index in range(len(log)))
    for index, step in enumerate(plan):
        for simpler in _simpler(step):
            yield log, [*plan[:index], simpler, *plan[index + 1 :]]


def _without(items: Sequence[T], index: int) -> list[T]:
    return [*items[:index], *items[index + 1 :]]


def _simpler(step: Step) -> Iterator[Step]:
    match step:
        case Under(changed) if len(changed) > 1:
            yield from (Under((one,)) for one in changed)
        case Poll(count) if count > 1:
            yield replace(step, count=count - 1)
        case Rebuild(str()):
            yield Rebuild()
        case _:
            pass
