"""A domain under a runner: one for all its entities, or one for each range of slices.

Where a domain was cut, several hosts share its ranges. Each says that it is there by a lease of its
own, and holds no more than its part of them, so that one that joins gets some and the ranges of one
that dies go to the others.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Event
from time import monotonic

from sqlalchemy import select

from qntx_es.database import Database
from qntx_es.domain import RETRIED, Domain
from qntx_es.errors import LeaseLost, QntxError, RangeGone, StandingBy
from qntx_es.projections.batch import STORE_SECONDS, Batches, Step
from qntx_es.projections.cursor import raise_token
from qntx_es.projections.lease import Leases, count_held
from qntx_es.projections.runner import Runner, Stepping
from qntx_es.projections.slices import ALL, Slices
from qntx_es.tables import cursors

COUNT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """What came of a look: did anything move, is there more, and when is it to look again.

    What has moved and `is_bare` has gone over ground where nothing was for it.
    """

    has_moved: bool = False
    is_bare: bool = True
    is_behind: bool = False
    seconds: float | None = None
    is_standing_by: bool = False


class Projector:
    """The runners of one domain in this host."""

    def __init__(
        self,
        database: Database,
        domain: Domain,
        batches_of: Callable[[Slices], Stepping],
        stopping: Event,
    ) -> None:
        self.domain = domain
        # What it is to be woken for.
        self.contexts = frozenset(domain.payloads) | {RETRIED}
        self._database = database
        self._batches_of = batches_of
        self._stopping = stopping
        self._leases: Leases | None = None
        self._runners: dict[Slices, Runner] = {ALL: self._runner(ALL, None)}
        self._is_known = not domain.by_entity
        self._counted_at = 0.0
        self._share = 1

    @property
    def runners(self) -> list[Runner]:
        """One for each range there is, in the order of their slices."""
        if not self._is_known:
            self._look_for_ranges()
        return list(self._runners.values())

    @property
    def is_holding(self) -> bool:
        """Tell whether this host moves any of it."""
        return any(one.is_holding for one in self._runners.values())

    def look_again(self) -> None:
        """Look which ranges there are, before anything is done with one."""
        self._is_known = not self.domain.by_entity

    def holds(self, entity: str) -> bool:
        """Tell whether this host moves the range that an entity is in."""
        return any(one.is_holding and one.slices.holds(entity) for one in self._runners.values())

    def lease_from(self, leases: Leases | None) -> None:
        """Move only what is held from here on; None means whenever nobody else holds it."""
        if self.domain.inline:
            return  # the pass is its runner, under the sequencer's lock
        self._leases = leases
        for runner in self._runners.values():
            _hand_leases(runner, leases)

    def advance(self, *, woken: bool = False) -> Progress:
        """Run a batch of each range that is ours. Raises what the first that stops does.

        Who was `woken` need not ask whether there is anything new.
        """
        runners = self.runners
        self._take_part(runners)
        found: list[Progress] = []
        troubles: list[QntxError] = []
        for runner in runners:
            try:
                found.append(self._advance(runner, woken=woken))
            except RangeGone:
                self._is_known = False
                return Progress(has_moved=True, is_behind=True)
            except QntxError as error:
                if len(runners) == 1:
                    raise
                troubles.append(error)
        if troubles and not any(one.has_moved for one in found):
            raise troubles[0]
        return _together(found)

    def catch_up(self) -> None:
        """Run every range to the head, trying anew where one has stopped."""
        while True:
            try:
                for runner in self.runners:
                    runner.catch_up()
            except RangeGone:
                self._is_known = False
                continue
            return

    def runner_of(self, slices: Slices, leases: Leases) -> Runner:
        """Return a runner of its own for a range, that moves only what `leases` hold."""
        return self._runner(slices, leases)

    def fence(self) -> None:
        """Undo whatever batch is in hand anywhere."""
        with self._database.write() as connection:
            for slices in self._runners:
                raise_token(connection, self.domain.name, slices)

    def _advance(self, runner: Runner, *, woken: bool) -> Progress:
        if self._leases is not None and not runner.is_holding and self._has_enough():
            return Progress(is_standing_by=True)
        try:
            step = runner.advance(woken=woken)
        except StandingBy as error:
            return Progress(seconds=error.seconds_left, is_standing_by=True)
        except RangeGone:
            raise
        except LeaseLost:
            return Progress(is_standing_by=True)
        return _progress(step)

    def _take_part(self, runners: list[Runner]) -> None:
        """Let it be known that this host is there, and give back what is another's part."""
        if self._leases is None or len(runners) == 1:
            return
        if monotonic() - self._counted_at < COUNT_SECONDS:
            return
        prefix = f"member:{self.domain.name}:"
        ours = prefix + self._leases.holder
        if not self._leases.is_held(ours):
            since = monotonic()
            with self._database.write() as connection:
                self._leases.take(connection, ours)
            self._leases.keep(ours, since)
        with self._database.read() as connection:
            members = count_held(connection, prefix, self._database.now(connection))
        self._counted_at = monotonic()
        self._share = -(-len(runners) // max(1, members))
        held = [one for one in runners if one.is_holding]
        for surplus in held[self._share :]:
            surplus.give_back()

    def _has_enough(self) -> bool:
        if len(self._runners) == 1:
            return False
        return sum(one.is_holding for one in self._runners.values()) >= self._share

    def _look_for_ranges(self) -> None:
        with self._database.read() as connection:
            asked = (
                select(cursors.c.first_slice, cursors.c.last_slice)
                .where(cursors.c.domain == self.domain.name)
                .order_by(cursors.c.first_slice)
            )
            found = [Slices(*row) for row in connection.execute(asked)] or [ALL]
        for gone in self._runners.keys() - set(found):
            self._runners[gone].give_back()
        self._runners = {
            one: self._runners.get(one) or self._runner(one, self._leases) for one in found
        }
        self._is_known = True
        self._counted_at = 0.0

    def _runner(self, slices: Slices, leases: Leases | None) -> Runner:
        batches = self._batches_of(slices)
        runner = Runner(self._database, self.domain, batches, self._stopping, slices)
        _hand_leases(runner, leases)
        return runner


def _hand_leases(runner: Runner, leases: Leases | None) -> None:
    runner.leases = leases
    if isinstance(runner.batches, Batches):
        runner.batches.leases = leases


def _progress(step: Step) -> Progress:
    has_moved, is_behind = step.position > step.start, step.position < step.head
    return Progress(
        has_moved=has_moved,
        is_bare=step.matched == 0,
        is_behind=is_behind,
        # Over bare ground the cursor is stored now and then, and somebody may wait for it.
        seconds=STORE_SECONDS if is_behind and not has_moved else None,
    )


def _together(found: Iterable[Progress]) -> Progress:
    all_found = list(found)
    seconds = [one.seconds for one in all_found if one.seconds is not None]
    return Progress(
        has_moved=any(one.has_moved for one in all_found),
        is_bare=all(one.is_bare for one in all_found),
        is_behind=any(one.is_behind for one in all_found),
        seconds=min(seconds, default=None),
        is_standing_by=all(one.is_standing_by for one in all_found),
    )
