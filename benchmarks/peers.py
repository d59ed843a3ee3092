"""The same work in `eventsourcing`, as its own documents have it: a projection over its recorders.

Count, sum and last position by entity, in a view that is written with the tracking of each event,
one transaction an event, as its `ProjectionRunner` does. On SQLite it has no subscriptions: there
the same view is fed by a loop that reads its notifications, as many at a time as a subscription.
"""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import singledispatchmethod
from threading import Event
from time import perf_counter
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

from eventsourcing.application import Application
from eventsourcing.domain import DomainEvent
from eventsourcing.persistence import InfrastructureFactory, Tracking, TrackingRecorder
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.sqlite import SQLiteTrackingRecorder
from eventsourcing.utils import Environment
from psycopg.sql import SQL
from sqlalchemy import make_url

PADDING = "x" * 96
# What its subscriptions read at once.
PAGE = 500
APPENDED = 500
SECONDS_MAX = 300.0
# Of its tracking, what is this application's.
OURS = "application_name = 'Theirs'"

V = TypeVar("V", bound=TrackingRecorder)


@dataclass(frozen=True)
class Happened(DomainEvent):
    """About 150 bytes of JSON."""

    name: str
    size: int
    padding: str


class Theirs(Application[UUID]):
    """Where it is recorded."""

    def record(self, events: Sequence[Happened]) -> int:
        """Record events in one transaction, and return the position of the last."""
        stored = [self.mapper.to_stored_event(one) for one in events]
        return list(self.recorder.insert_events(stored) or ())[-1]


TABLE = (
    "CREATE TABLE IF NOT EXISTS their_totals (entity text PRIMARY KEY, count bigint NOT NULL, "
    "sum bigint NOT NULL, last bigint)"
)
UPSERT = (
    "INSERT INTO their_totals (entity, count, sum, last) VALUES ({0}, 1, {0}, {0}) "
    "ON CONFLICT (entity) DO UPDATE SET count = their_totals.count + 1, "
    "sum = their_totals.sum + excluded.sum, last = excluded.last"
)


class PostgresTotals(PostgresTrackingRecorder):
    """The view on PostgreSQL."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - theirs
        super().__init__(*args, **kwargs)
        self.sql_create_statements.append(SQL(TABLE).format())

    def add(self, event: Happened, tracking: Tracking) -> None:
        """Write one event and its tracking, in one transaction."""
        values = (str(event.originator_id), event.size, tracking.notification_id)
        with self.datastore.transaction(commit=True) as cursor:
            cursor.execute(UPSERT.format("%s").encode(), values, prepare=True)
            self._insert_tracking(cursor, tracking)


class SqliteTotals(SQLiteTrackingRecorder):
    """The view on SQLite."""

    def construct_create_table_statements(self) -> list[str]:
        """Make the table with theirs."""
        return [*super().construct_create_table_statements(), TABLE]

    def add(self, event: Happened, tracking: Tracking) -> None:
        """Write one event and its tracking, in one transaction."""
        values = (str(event.originator_id), event.size, tracking.notification_id)
        with self.datastore.transaction(commit=True) as cursor:
            cursor.execute(UPSERT.format("?"), values)
            self._insert_tracking(cursor, tracking)


class Totalling(Projection[PostgresTotals]):
    """Feeds the view; says when it has reached `awaited`."""

    awaited = 0
    reached = Event()

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:  # noqa: ANN401 - theirs
        """Write one event."""
        self.view.add(cast("Happened", domain_event), tracking)
        if tracking.notification_id == self.awaited:
            self.reached.set()


def environment(url: str) -> dict[str, str]:
    """Say which database, for the library's own recorders."""
    at = make_url(url)
    if at.get_backend_name() == "sqlite":
        return {
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": f"file:{at.database}.theirs",
        }
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": at.database or "",
        "POSTGRES_HOST": str(at.query.get("host", at.host)),
        "POSTGRES_PORT": str(at.query.get("port", at.port or 5432)),
        "POSTGRES_USER": at.username or "postgres",
        "POSTGRES_PASSWORD": at.password or "none",
        "POSTGRES_POOL_SIZE": "4",
        # Its fastest way to record.
        "POSTGRES_ENABLE_DB_FUNCTIONS": "y",
    }


def happened(draw: random.Random, entities: Sequence[UUID], versions: dict[UUID, int]) -> Happened:
    """Return one more event, about any of the entities."""
    entity = draw.choice(entities)
    versions[entity] = versions.get(entity, 0) + 1
    return Happened(
        originator_id=entity,
        originator_version=versions[entity],
        timestamp=Happened.create_timestamp(),
        name=f"n{draw.randrange(1_000_000)}",
        size=draw.randrange(1000),
        padding=PADDING,
    )


def record(url: str, size: int, entities: int) -> None:
    """Record a sample to project."""
    draw, known = random.Random(7), [uuid4() for _ in range(entities)]
    versions: dict[UUID, int] = {}
    with Theirs(environment(url)) as application:
        for _ in range(0, size, APPENDED):
            application.record([happened(draw, known, versions) for _ in range(APPENDED)])


def project(url: str) -> float:
    """Project the whole sample anew, and return how many events a second that was."""
    env = environment(url)
    with Theirs(env) as application:
        last = application.recorder.max_notification_id() or 0
    if make_url(url).get_backend_name() == "sqlite":
        return last / _pulled(env)
    return last / _subscribed(env, last)


def _subscribed(env: dict[str, str], last: int) -> float:
    view = _view(env, PostgresTotals, Totalling.name)
    with view.datastore.transaction(commit=True) as cursor:
        cursor.execute(b"TRUNCATE their_totals")
        cursor.execute(f"DELETE FROM {view.tracking_table_name} WHERE {OURS}".encode())
    view.datastore.close()
    Totalling.awaited = last
    Totalling.reached.clear()
    began = perf_counter()
    with running(env):
        if not Totalling.reached.wait(SECONDS_MAX):
            message = "its projection does not come to the end"
            raise RuntimeError(message)
        return perf_counter() - began


def running(env: dict[str, str]) -> ProjectionRunner[Theirs, PostgresTotals]:
    """Return its runner of the projection, at work within `with`."""
    return ProjectionRunner(
        application_class=Theirs,
        projection_class=Totalling,
        view_class=PostgresTotals,
        env=env,
    )


def _pulled(env: dict[str, str]) -> float:
    with ExitStack() as stack:
        application = stack.enter_context(Theirs(env))
        view = _view(env, SqliteTotals, "totals")
        stack.callback(view.datastore.close)
        with view.datastore.transaction(commit=True) as cursor:
            cursor.execute("DELETE FROM their_totals")
            cursor.execute(f"DELETE FROM tracking WHERE {OURS}")
        began, position = perf_counter(), 0
        while True:
            page = application.recorder.select_notifications(
                position, PAGE, inclusive_of_start=False
            )
            for notification in page:
                event = application.mapper.to_domain_event(notification)
                view.add(cast("Happened", event), Tracking(application.name, notification.id))
            if len(page) < PAGE:
                return perf_counter() - began
            position = page[-1].id


def _view(env: dict[str, str], kind: type[V], name: str) -> V:
    factory = InfrastructureFactory[V].construct(env=Environment(name, env))
    return factory.tracking_recorder(kind)
