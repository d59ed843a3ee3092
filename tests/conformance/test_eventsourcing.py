"""The library's own test cases, unmodified, against our recorders, on every kind of database.

Positions are dense and ordered by commits, so everything is kept that the library hopes for in a
recorder, contiguous notification ids included. Its modules are imported and not its classes, since
pytest would collect those, which are abstract.
"""

import os
import sys
import threading
from unittest import TestCase
from uuid import uuid4

import pytest
from eventsourcing.persistence import InfrastructureFactory, Tracking
from eventsourcing.tests import application as application_cases
from eventsourcing.tests import persistence as cases
from eventsourcing.tests import projection as projection_cases
from eventsourcing.utils import Environment, get_topic
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select, update

from qntx_es.recorders import (
    Factory,
    JSONMapper,
    LogAggregateRecorder,
    LogApplicationRecorder,
    LogProcessRecorder,
    LogTrackingRecorder,
)
from qntx_es.recorders.desk import Desk

pytestmark = pytest.mark.usefixtures("recorders_by_environment")

MESSAGE_PACK = "eventsourcing.dcb.msgpack:MessagePackMapper"

JOIN_SECONDS_MAX = 10


def on_every_database(case: type[TestCase]) -> type[TestCase]:
    """Add the test case to this module once for each kind of database."""
    case.__test__ = False  # type: ignore[attr-defined]
    for kind in ("Memory", "File", "PostgreSQL"):
        named = f"{case.__name__}On{kind}"
        parts = {"kind": kind, "__test__": True, "__module__": __name__}
        setattr(sys.modules[__name__], named, type(named, (case,), parts))
    return case


def factory_for(case: TestCase) -> Factory:
    """Construct the factory as an application does; it is closed after the test."""
    factory = InfrastructureFactory.construct(Environment(env=os.environ))
    assert isinstance(factory, Factory)
    case.addCleanup(factory.close)
    case.addCleanup(join_all, threading.enumerate())
    return factory


def join_all(others: list[threading.Thread]) -> None:
    """Wait for the test's own threads, some of which it tells to stop and leaves."""
    for thread in set(threading.enumerate()) - set(others):
        thread.join(JOIN_SECONDS_MAX)


@on_every_database
class ApplicationsWithTextIds(cases.ApplicationRecorderTestCase[LogApplicationRecorder]):
    """Ids may be texts, even such as read as a UUID."""

    def create_recorder(self) -> LogApplicationRecorder:
        """Make the recorder under test."""
        os.environ["ORIGINATOR_ID_TYPE"] = "text"
        self.addCleanup(os.environ.pop, "ORIGINATOR_ID_TYPE")
        return factory_for(self).application_recorder()

    def new_originator_id(self) -> str:
        """Name an aggregate."""
        return str(uuid4())

    def test_insert_subscribe(self) -> None:
        """A subscription yields what is there and what comes, until it is stopped."""
        self.optional_test_insert_subscribe()


class OtherTracking(LogTrackingRecorder):
    """A tracking recorder of the user's own."""


@on_every_database
class Factories(cases.InfrastructureFactoryTestCase[Factory]):
    """The factory is found by the module's name, and makes every recorder."""

    def setUp(self) -> None:
        """Give the environment of this test."""
        self.env = Environment(env=os.environ)
        super().setUp()

    def expected_factory_class(self) -> type[Factory]:
        """Name the class."""
        return Factory

    def expected_aggregate_recorder_class(self) -> type[LogAggregateRecorder]:
        """Name the class."""
        return LogAggregateRecorder

    def expected_application_recorder_class(self) -> type[LogApplicationRecorder]:
        """Name the class."""
        return LogApplicationRecorder

    def expected_tracking_recorder_class(self) -> type[LogTrackingRecorder]:
        """Name the class."""
        return LogTrackingRecorder

    def tracking_recorder_subclass(self) -> type[LogTrackingRecorder]:
        """Name the class."""
        return OtherTracking

    def expected_process_recorder_class(self) -> type[LogProcessRecorder]:
        """Name the class."""
        return LogProcessRecorder


counted = MetaData()
counters = Table(
    "counters",
    counted,
    Column("name", String, primary_key=True),
    Column("count", Integer, nullable=False),
)


class Counters(LogTrackingRecorder, projection_cases.EventCountersView):
    """Counts what happened, in a table of its own beside the tracking."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        with desk.database.write() as connection:
            counted.create_all(connection)
            rows = [{"name": "created", "count": 0}, {"name": "subsequent", "count": 0}]
            connection.execute(insert(counters), rows)

    def get_created_event_counter(self) -> int:
        """Return how many were created."""
        return self._count("created")

    def get_subsequent_event_counter(self) -> int:
        """Return how often something else happened."""
        return self._count("subsequent")

    def incr_created_event_counter(self, tracking: Tracking) -> None:
        """Count one more."""
        self._increment("created", tracking)

    def incr_subsequent_event_counter(self, tracking: Tracking) -> None:
        """Count one more."""
        self._increment("subsequent", tracking)

    def _count(self, name: str) -> int:
        with self.desk.database.read() as connection:
            asked = select(counters.c.count).where(counters.c.name == name)
            return int(connection.execute(asked).scalar_one())

    def _increment(self, name: str, tracking: Tracking) -> None:
        with self.processing(tracking) as connection:
            counter = update(counters).where(counters.c.name == name)
            connection.execute(counter.values(count=counters.c.count + 1))


@on_every_database
class Views(projection_cases.EventCountersViewTestCase):
    """A view writes its rows and its tracking together."""

    def construct_event_counters_view(self) -> Counters:
        """Make the view under test."""
        view = factory_for(self).tracking_recorder(Counters)
        assert isinstance(view, Counters)
        return view


@on_every_database
class AggregateProjections(projection_cases.AggregateEventCountersProjectionTestCase):
    """The library's runner follows our log."""

    view_class = Counters


@on_every_database
class DecisionProjections(projection_cases.TaggedDecisionCountersProjectionTestCase):
    """The library's runner follows decisions, which its own mapper writes."""

    view_class = Counters
    env = {"MAPPER_TOPIC": MESSAGE_PACK}  # noqa: RUF012 - the library's own


@on_every_database
class ReadableDecisionProjections(DecisionProjections):
    """The library's runner follows decisions, which our mapper writes."""

    env = {"MAPPER_TOPIC": get_topic(JSONMapper)}  # noqa: RUF012 - the library's own


@on_every_database
class EventSourcedProjections(projection_cases.EventSourcedProjectionTestCase):
    """An application follows another one in the same log."""


@on_every_database
class ExampleApplications(application_cases.ExampleApplicationTestCase):
    """A bank with snapshots."""

    expected_factory_topic = get_topic(Factory)


@pytest.mark.filterwarnings("default:'log' is deprecated:DeprecationWarning")
@on_every_database
class ApplicationsAtLarge(application_cases.ApplicationTestCase):
    """Names, caches, contention."""
