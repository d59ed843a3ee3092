"""The library's own test cases, for any factory's recorders: `TestMine = exercise_recorders(make)`.

They stand here, since nothing but this package knows the library. They need what its test modules
import: `pip install msgspec pycryptodome`. Its modules are imported and not its classes, which are
abstract, since pytest would collect those.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any, Literal, TypeAlias
from unittest import TestCase

from eventsourcing.dcb import tests as dcb_cases
from eventsourcing.tests import persistence as cases

Kind: TypeAlias = Literal["aggregates", "applications", "tracking", "processes", "decisions"]
KINDS: tuple[Kind, ...] = ("aggregates", "applications", "tracking", "processes", "decisions")
JOIN_SECONDS_MAX = 10


def exercise_recorders(make_factory: Callable[[], Any], *, kinds: tuple[Kind, ...] = KINDS) -> type:
    """Return a class of test cases that hold the recorders of a factory to the library's contract.

    Each test makes a factory over an empty log, and leaves it by `with` if it can be entered, else
    by `close()`. `kinds` are the recorders that it makes; contiguous notification ids are asked of
    applications.
    """

    class Exercise:
        pass

    for kind in kinds:
        for case in _CASES[kind]:
            parts = {"make_factory": staticmethod(make_factory), "__module__": __name__}
            setattr(Exercise, f"Test{case.__name__}", type(case.__name__, (case,), parts))
    return Exercise


class _Made(TestCase):
    """A test case over a factory of its own."""

    make_factory: Callable[[], Any]

    def factory(self) -> Any:  # noqa: ANN401 - whatever makes the recorders
        """Make a factory that is left when the test is over, and its threads with it."""
        made = self.make_factory()
        is_entered = hasattr(made, "__enter__")
        manager: AbstractContextManager[Any] = made if is_entered else closing(made)
        factory = self.enterContext(manager)
        self.addCleanup(_join_all, threading.enumerate())
        return factory


class Aggregates(_Made, cases.AggregateRecorderTestCase):
    """Snapshots are kept."""

    def create_recorder(self) -> Any:  # noqa: ANN401 - the recorder under test
        """Make the recorder under test."""
        return self.factory().aggregate_recorder()


class Applications(_Made, cases.ApplicationRecorderTestCase[Any]):
    """Aggregates are recorded, and notified in order."""

    def create_recorder(self) -> Any:  # noqa: ANN401 - the recorder under test
        """Make the recorder under test."""
        return self.factory().application_recorder()

    def test_insert_subscribe(self) -> None:
        """A subscription yields what is there and what comes, until it is stopped."""
        self.optional_test_insert_subscribe()


class NonInterleaving(_Made, cases.NonInterleavingNotificationIDsBaseCase):
    """Of two large inserts at once, one is before the other."""

    def create_recorder(self) -> Any:  # noqa: ANN401 - the recorder under test
        """Make the recorder under test."""
        return self.factory().application_recorder()


class Tracking(_Made, cases.TrackingRecorderTestCase):
    """Tracking goes forward only."""

    def create_recorder(self) -> Any:  # noqa: ANN401 - the recorder under test
        """Make the recorder under test."""
        return self.factory().tracking_recorder()


class Processes(_Made, cases.ProcessRecorderTestCase):
    """What follows from something is recorded with its tracking, or not at all."""

    def create_recorder(self) -> Any:  # noqa: ANN401 - the recorder under test
        """Make the recorder under test."""
        return self.factory().process_recorder()


class Decisions(_Made, dcb_cases.DCBRecorderTestCase):
    """Decisions are found by types and tags, and refused by conditions."""

    def test_append_read(self) -> None:
        """What is appended is read, and conditions are kept."""
        self._test_append_read(self.factory().dcb_recorder())

    def test_append_subscribe(self) -> None:
        """A subscription blocks, and wakes when something is appended."""
        self._test_append_subscribe(self.factory().dcb_recorder())


_CASES: dict[Kind, tuple[type[TestCase], ...]] = {
    "aggregates": (Aggregates,),
    "applications": (Applications, NonInterleaving),
    "tracking": (Tracking,),
    "processes": (Processes,),
    "decisions": (Decisions,),
}


def _join_all(others: list[threading.Thread]) -> None:
    """Wait for the test's own threads, some of which it tells to stop and leaves."""
    for thread in set(threading.enumerate()) - set(others):
        thread.join(JOIN_SECONDS_MAX)
