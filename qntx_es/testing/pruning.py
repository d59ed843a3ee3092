"""Making a failure shorter, and knowing when it is short enough.

Hypothesis shrinks what was drawn, and each try costs a run; an attestation or a step less is what
a reader gains most by. So after some tries of its own, these are left out one by one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from qntx_es.attestation import Attestation
from qntx_es.testing.plans import Poll, Rebuild, Step, Travel, Under

T = TypeVar("T")
Log: TypeAlias = Sequence[Attestation]
Plan: TypeAlias = Sequence[Step]

SHRINKS_MAX = 40


class Enough(BaseException):
    """So many examples were tried after the first that failed."""


class Verdicts:
    """What was found of each example, once: whoever keeps state is not asked twice.

    Once one has failed, only so many more are tried. It counts them and not seconds, so that the
    same failure shrinks to the same example on every machine.
    """

    def __init__(self, judge: Callable[[Log, Plan], bool]) -> None:
        self._judge = judge
        self._known: dict[object, bool] = {}
        self._failed: list[tuple[Log, Plan]] = []
        self._left = SHRINKS_MAX

    def of_drawn(self, log: Log, plan: Plan) -> bool:
        """Tell whether an example is consistent. Raises `Enough`."""
        if self._failed and _named(log, plan) not in self._known:
            self._left -= 1
            if self._left < 0:
                raise Enough
        return self.of(log, plan)

    def of(self, log: Log, plan: Plan) -> bool:
        """Tell whether an example is consistent, however many were tried."""
        example = _named(log, plan)
        if example not in self._known:
            self._known[example] = self._judge(log, plan)
            if not self._known[example]:
                self._failed.append((log, plan))
        return self._known[example]

    def least(self) -> tuple[Log, Plan]:
        """Return the shortest of those that failed."""
        return min(self._failed, key=_length)


def _named(log: Log, plan: Plan) -> object:
    return tuple((one.id, one.bytes) for one in log), tuple(plan)


def _length(example: tuple[Log, Plan]) -> tuple[int, int, int]:
    log, plan = example
    return len(log), len(repr(plan)), sum(len(one.bytes) for one in log)


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
        case Travel(position) if position > 1:
            yield Travel(position - 1)
        case _:
            pass
