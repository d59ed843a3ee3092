"""What applications of `eventsourcing` record is in our log, and nothing of it is lost or bent."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from eventsourcing.application import Application
from eventsourcing.cipher import AESCipher
from eventsourcing.dcb.api import DCBAppendCondition, DCBEvent, DCBQuery, DCBQueryItem
from eventsourcing.dcb.application import DCBApplication
from eventsourcing.dcb.domain import Decision, Selector, Tagged
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import (
    DataError,
    InfrastructureFactory,
    InfrastructureFactoryError,
    IntegrityError,
    JSONTranscoder,
    OperationalError,
    PersistenceError,
    ProgrammingError,
    StoredEvent,
    Tracking,
    TranscodingNotRegisteredError,
)
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.utils import Environment, get_topic
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, String, text

from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows
from qntx_es.attestation import PAYLOAD_BYTES_MAX, canonical
from qntx_es.recorders import CanonicalTranscoder, Factory, LogTrackingRecorder
from qntx_es.recorders.state import payload_of, state_of

BOUND = 30
LOOK_SECONDS_MAX = 1.0


class Dog(Aggregate):
    """Learns tricks."""

    @event("Registered")
    def __init__(self, name: str) -> None:
        self.name = name
        self.tricks: list[str] = []

    @event("TrickAdded")
    def add_trick(self, trick: str) -> None:
        """Learn one."""
        self.tricks.append(trick)


REGISTERED = f"{__name__}:Dog.Registered"
TRICK_ADDED = f"{__name__}:Dog.TrickAdded"


class Kennel(Application[UUID]):
    """Where dogs are."""


class OtherKennel(Application[UUID]):
    """Where other dogs are."""


@dataclass
class Fed(Decision):
    """Somebody fed a dog."""

    grams: int
    price: Decimal


class Kitchen(DCBApplication):
    """Where dogs are fed."""

    env: Mapping[str, str] = {"MAPPER_TOPIC": "qntx_es.recorders:JSONMapper"}


@pytest.fixture
def env(url: str) -> dict[str, str]:
    """Say which recorders, and which database."""
    return {"PERSISTENCE_MODULE": "qntx_es.recorders", "QNTX_DATABASE_URL": url}


@pytest.fixture
def kennel(env: dict[str, str]) -> Iterator[Kennel]:
    """Open an application, which makes our tables."""
    with Kennel(env) as application:
        yield application


@pytest.fixture
def kitchen(env: dict[str, str]) -> Iterator[Kitchen]:
    """Open a DCB application."""
    with Kitchen(env) as application:
        yield application


@pytest.fixture
def factory(env: dict[str, str]) -> Iterator[Factory]:
    """Construct the factory of a nameless application."""
    made = InfrastructureFactory.construct(Environment(env=env))
    assert isinstance(made, Factory)
    with closing(made):
        yield made


def stored(version: int = 1, **parts: Any) -> StoredEvent:  # noqa: ANN401 - any of its parts
    """Store something small."""
    fields = {"originator_id": "a", "topic": "t", "state": b"{}"} | parts
    return StoredEvent(originator_version=version, **fields)


def note(entity: str) -> Attestation:
    """Say something that is no application's."""
    return Attestation(context="note", entity=entity, actor="ann", payload={})


# What is attested.


def test_an_application_attests_readable_statements(url: str, kennel: Kennel) -> None:
    """Its aggregates are entities, its topics contexts, and their fields can be read."""
    dog = Dog("Fido")
    dog.add_trick("roll over")
    kennel.save(dog)

    with Host(url) as host:
        registered, added = host.ax(actors="Kennel@eventsourcing")
    assert (registered.context, added.context) == (REGISTERED, TRICK_ADDED)
    assert registered.entity == added.entity == str(dog.id)
    assert (registered.entity_version, added.entity_version) == (1, 2)
    assert (registered.payload["name"], added.payload["trick"]) == ("Fido", "roll over")
    assert kennel.repository.get(dog.id) == dog


def test_a_dcb_application_attests_readable_statements(url: str, kitchen: Kitchen) -> None:
    """A decision is about its first tag, found by all of them, and its fields can be read."""
    fed = Fed(grams=250, price=Decimal("1.10"))
    kitchen.events.append([Tagged(["dog:fido", "bowl:1"], fed)])

    with Host(url) as host:
        (found,) = host.ax(entities="bowl:1")
    assert (found.context, found.entity) == (f"{__name__}:Fed", "dog:fido")
    assert (found.actor, found.tags) == ("Kitchen@eventsourcing", ("dog:fido", "bowl:1"))
    assert found.payload["grams"] == 250
    assert [one.decision for one in kitchen.events.read(Selector(tags=["bowl:1"]))] == [fed]


def test_a_domain_projects_what_an_application_records(url: str, kennel: Kennel) -> None:
    """To a domain they are attestations like any others."""

    class TrickAdded(Payload, context=TRICK_ADDED):
        trick: str

    pets = Domain("pets")
    tricks = pets.table(
        "tricks",
        Column("dog", String, primary_key=True),
        Column("known", Integer, nullable=False, default=0),
    )

    @pets.project(TrickAdded)
    def count(added: Recorded[TrickAdded], rows: Rows) -> None:
        rows.add(tricks, added.entity, known=len(added.payload.trick.split("+")))

    dog = Dog("Fido")
    dog.add_trick("roll+sit")
    dog.add_trick("bark")
    kennel.save(dog)
    with Host(url, domains=[pets]) as host:
        host.upgrade()
        host.catch_up()
        with host.database.read() as connection:
            rows = connection.execute(tricks.select()).all()
        rebuilt = host.rebuild("pets")

    assert [tuple(row) for row in rows] == [(str(dog.id), 3)]
    assert rebuilt.is_same


ENCRYPTED = {"CIPHER_KEY": AESCipher.create_key(16)}
COMPRESSED = {"COMPRESSOR_TOPIC": "zlib"}


@pytest.mark.parametrize("also", [ENCRYPTED, COMPRESSED, ENCRYPTED | COMPRESSED])
def test_what_is_encrypted_or_compressed_stays_so(
    url: str, env: dict[str, str], also: dict[str, str]
) -> None:
    """Ciphers and compressors work as ever: the payload is base64, and read back."""
    dog = Dog("Fido")
    with Kennel(env | also) as kennel:
        kennel.save(dog)
        assert kennel.repository.get(dog.id) == dog

    with Host(url) as host:
        (registered,) = host.ax()
    assert set(registered.payload) == {"base64"}


@given(st.binary(max_size=200))
@example(b"")
@example(b"{}")
@example(b'{"a":1,"b":[]}')
@example(b'{"b":1,"a":1}')
@example(b'{"a": 1}')
@example(b'{"a":1,"a":2}')
@example(b'{"a":NaN}')
@example(b'{"a":"\\u0000"}')
@example(b"[1]")
@example(b"\xff\x00")
@example(b'{"base64":"e30="}')
@example(b'{"base64":1}')
@example(b'{"base64":"e30=","other":1}')
def test_any_bytes_come_back(state: bytes) -> None:
    """Whatever was recorded is read byte for byte."""
    assert state_of(canonical(payload_of(state))) == state


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=7) | st.just("base64"), json_values, max_size=4))
def test_any_json_comes_back(fields: dict[str, Any]) -> None:
    """What our transcoder writes is read byte for byte, whatever it holds."""
    transcoder = CanonicalTranscoder()

    state = transcoder.encode(fields)

    assert state_of(canonical(payload_of(state))) == state
    assert transcoder.decode(state) == fields or fields != fields  # noqa: PLR0124 - NaN


def test_a_transcoder_of_the_user_s_own_is_used(env: dict[str, str]) -> None:
    """What it writes is kept as it is, canonical or not."""
    dog = Dog("Fido")
    with Kennel(env | {"TRANSCODER_TOPIC": get_topic(JSONTranscoder)}) as kennel:
        assert type(kennel.mapper.transcoder) is JSONTranscoder
        kennel.save(dog)

        (notification,) = kennel.recorder.select_notifications(1, 1)
        assert notification.state.startswith(b'{"timestamp":')
        assert kennel.repository.get(dog.id) == dog


def test_keys_of_several_kinds_are_written_as_the_library_does() -> None:
    """What cannot be sorted is written in its own order, and what is no JSON is refused."""
    transcoder = CanonicalTranscoder()

    assert transcoder.encode({"b": 2, 1: "a"}) == b'{"b":2,"1":"a"}'
    with pytest.raises(TranscodingNotRegisteredError):
        transcoder.encode({"a": object()})


# One log for all.


def test_others_in_the_log_do_not_disturb(url: str, env: dict[str, str]) -> None:
    """Each application sees its own, at positions of one order, whatever is said in between."""
    with Kennel(env) as kennel, OtherKennel(env) as other, Host(url) as host:
        mine, theirs = Dog("Fido"), Dog("Rex")
        kennel.save(mine)
        host.append(note(str(mine.id)))
        other.save(theirs)
        mine.add_trick("sit")
        (recording,) = kennel.save(mine)
        host.append(note(str(theirs.id)))

        assert recording.notification.id == 4
        assert kennel.repository.get(mine.id) == mine
        assert [one.id for one in kennel.recorder.select_notifications(1, 10)] == [1, 4]
        assert [one.id for one in other.recorder.select_notifications(1, 10)] == [3]
        assert (kennel.recorder.max_notification_id(), host.log.head()) == (4, 5)
        assert list(other.recorder.select_events(mine.id)) == []


def test_a_dcb_application_sees_its_own_decisions(url: str, env: dict[str, str]) -> None:
    """Neither aggregates nor what others say are decisions; its head is the log's."""

    class Namesake(Kitchen):
        name = "Kennel"

    with Kennel(env) as aggregates, Namesake(env) as decisions, Host(url) as host:
        fed = Fed(1, Decimal(1))
        aggregates.save(Dog("Fido"))
        decisions.events.append([Tagged(["dog"], fed)], cb=[Selector(tags=["dog"])], after=0)
        host.append(note("dog"))
        found = decisions.events.read()

        assert [one.decision for one in found] == [fed]
        assert found.head == 3
        assert aggregates.recorder.max_notification_id() == 1
        assert decisions.recorder.read(after=2).head == 3


def test_snapshots_do_not_touch_the_log(url: str, env: dict[str, str]) -> None:
    """A snapshot is read and the log is as long as before."""
    with Kennel(env | {"IS_SNAPSHOTTING_ENABLED": "y"}) as kennel, Host(url) as host:
        dog = Dog("Fido")
        dog.add_trick("sit")
        kennel.save(dog)
        kennel.take_snapshot(dog.id)

        assert kennel.snapshots is not None
        assert len(list(kennel.snapshots.get(dog.id))) == 1
        assert kennel.repository.get(dog.id).tricks == ["sit"]
        assert host.log.head() == 2
        with pytest.raises(IntegrityError):
            kennel.take_snapshot(dog.id)


# Who is believed.


def test_of_concurrent_savers_one_wins(kennel: Kennel, env: dict[str, str]) -> None:
    """Eight applications change one aggregate at once: one is believed, the others are told."""
    dog = Dog("Fido")
    kennel.save(dog)
    savers = 8
    start = threading.Barrier(savers)

    def save(name: str) -> bool:
        with Kennel(env) as mine:
            found: Dog = mine.repository.get(dog.id)
            found.add_trick(name)
            start.wait(BOUND)
            try:
                mine.save(found)
            except IntegrityError:
                return False
            return True

    with ThreadPoolExecutor(savers) as threads:
        believed = list(threads.map(save, [f"trick {n}" for n in range(savers)]))

    assert believed.count(True) == 1
    assert kennel.repository.get(dog.id).tricks == [f"trick {believed.index(True)}"]
    assert kennel.recorder.max_notification_id() == 2


def test_of_concurrent_decisions_on_one_reading_one_is_believed(env: dict[str, str]) -> None:
    """Eight applications decide on one boundary at once: one is believed, the others are told."""
    deciders = 8
    start = threading.Barrier(deciders)

    def decide(_: int) -> bool:
        with Kitchen(env) as kitchen:
            start.wait(BOUND)
            try:
                boundary = [Selector(types=[Fed], tags=["dog"])]
                kitchen.events.append([Tagged(["dog"], Fed(1, Decimal(1)))], boundary, after=0)
            except IntegrityError:
                return False
            return True

    Kitchen(env).close()
    with ThreadPoolExecutor(deciders) as threads:
        assert list(threads.map(decide, range(deciders))).count(True) == 1


def test_a_decision_on_a_log_that_ended_earlier_is_refused(kitchen: Kitchen) -> None:
    """A position beyond the head was read in another log, or before this one was restored."""
    nothing = DCBQuery(items=[DCBQueryItem(types=["nothing"])])

    with pytest.raises(IntegrityError, match="the log ends at 0"):
        kitchen.recorder.append([DCBEvent("t", b"")], DCBAppendCondition(nothing, after=7))


def test_events_and_tracking_are_recorded_together(factory: Factory) -> None:
    """What was processed before is neither tracked nor recorded again, and the other way round."""
    recorder = factory.process_recorder()
    recorder.insert_events([stored(1)], tracking=Tracking("upstream", 5))

    with pytest.raises(IntegrityError, match="tracked up to 5"):
        recorder.insert_events([stored(2)], tracking=Tracking("upstream", 5))
    with pytest.raises(IntegrityError):
        recorder.insert_events([stored(1)], tracking=Tracking("upstream", 6))

    assert recorder.max_notification_id() == 1
    assert recorder.max_tracking_id("upstream") == 5


# What is refused.


@pytest.mark.parametrize(
    ("refused", "error", "match"),
    [
        ({"topic": ""}, DataError, "context is empty"),
        ({"topic": "t" * 513}, DataError, "longer than 512 characters"),
        ({"topic": "a\nb"}, DataError, "control character"),
        ({"topic": "pulse.job_started"}, ProgrammingError, "framework's own"),
        ({"originator_id": ""}, DataError, "entity is empty"),
        ({"version": 1 << 31}, DataError, "32 bits"),
        ({"state": bytes(PAYLOAD_BYTES_MAX)}, DataError, "1 MiB"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_what_the_log_cannot_hold_is_refused_by_name(
    factory: Factory, refused: dict[str, Any], error: type[PersistenceError], match: str
) -> None:
    """It is the library's error, the message is ours, and nothing is recorded."""
    recorder = factory.application_recorder()

    with pytest.raises(error, match=match):
        recorder.insert_events([stored(7), stored(**refused)])

    assert recorder.max_notification_id() is None


def test_tags_are_kept_in_their_order_and_once(factory: Factory) -> None:
    """Queries cannot tell how often a tag was given, so neither does the log."""
    recorder = factory.dcb_recorder()
    recorder.append([DCBEvent("t", b"", ["b", "a", "b"])])

    (found,) = recorder.read(DCBQuery([DCBQueryItem(tags=["a", "b"])]))

    assert found.event.tags == ["b", "a"]


@pytest.mark.parametrize("tags", [[""], [str(n) for n in range(33)]], ids=["empty", "many"])
def test_tags_that_the_log_cannot_hold_are_refused(factory: Factory, tags: list[str]) -> None:
    """Names have limits, and so has their number."""
    with pytest.raises(DataError):
        factory.dcb_recorder().append([DCBEvent("t", b"", tags)])


def test_an_empty_append_is_refused(factory: Factory) -> None:
    """It has no position to give back."""
    with pytest.raises(ProgrammingError, match="at least one"):
        factory.dcb_recorder().append([])


def test_errors_of_the_database_are_the_library_s(factory: Factory) -> None:
    """Whatever a driver raises, the library's own class is what an application sees."""
    recorder = factory.aggregate_recorder()
    with factory.desk.database.write() as connection:
        connection.execute(text("DROP TABLE qntx_snapshots"))

    with pytest.raises((OperationalError, ProgrammingError), match="qntx_snapshots"):
        recorder.select_events("a")


def test_a_missing_database_is_an_operational_error(url: str, env: dict[str, str]) -> None:
    """Without leave to make tables, an empty database is refused with the remedy."""
    del url
    with pytest.raises(OperationalError, match="qntx-es db upgrade"):
        Kennel(env | {"CREATE_TABLE": "n"})


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"QNTX_DATABASE_URL": ""}, "no database: set KENNEL_QNTX_DATABASE_URL or"),
        ({"QNTX_DATABASE_URL": "mysql://here"}, "Only SQLite"),
        ({"ORIGINATOR_ID_TYPE": "number"}, "give `uuid` or `text`"),
        ({"APPLICATION_RECORDER_TOPIC": get_topic(LogTrackingRecorder)}, "is no LogApplication"),
    ],
    ids=["no url", "other database", "id type", "other recorder"],
)
def test_a_wrong_environment_is_refused_at_once(wrong: dict[str, str], match: str) -> None:
    """The setting is named, and what would be right."""
    env = {"PERSISTENCE_MODULE": "qntx_es.recorders", "QNTX_DATABASE_URL": "sqlite://"}

    with pytest.raises(InfrastructureFactoryError, match=match):
        Kennel(env | wrong)


# Who follows.


class Names(LogTrackingRecorder):
    """Remembers the names of dogs."""

    known: ClassVar[list[str]] = []


class Naming(Projection[Names]):
    """Learns the names of dogs."""

    topics = (REGISTERED,)

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:  # noqa: ANN401 - theirs
        """Learn one."""
        with self.view.processing(tracking):
            self.view.known.append(domain_event.name)


def test_a_projection_of_the_library_follows_our_log(url: str, env: dict[str, str]) -> None:
    """It sees what it asked for, past what others say, and tracks our positions."""
    Names.known.clear()
    with ExitStack() as stack:
        runner = stack.enter_context(
            ProjectionRunner(
                application_class=Kennel, projection_class=Naming, view_class=Names, env=env
            )
        )
        host = stack.enter_context(Host(url))
        for name in ("Fido", "Rex"):
            host.append(note(name))
            dog = Dog(name)
            dog.add_trick("sit")
            registered, _ = runner.app.save(dog)
        runner.wait(registered.notification.id, timeout=BOUND)

        assert Names.known == ["Fido", "Rex"]
        assert runner.view.max_tracking_id("Kennel") == registered.notification.id == 5


@pytest.mark.parametrize("kind", ["aggregates", "decisions"])
def test_a_subscription_sees_what_another_process_records(
    env: dict[str, str], kind: str, kennel: Kennel, kitchen: Kitchen
) -> None:
    """Without a bell it looks by itself, soon enough."""
    recorder: Any = kennel.recorder if kind == "aggregates" else kitchen.recorder
    seen = threading.Event()

    def take() -> None:
        with recorder.subscribe() as subscription:
            next(subscription)
            seen.set()

    thread = threading.Thread(target=take)
    thread.start()
    # Long enough for the pauses to be at their longest.
    assert not seen.wait(LOOK_SECONDS_MAX)
    with Kennel(env) as other, Kitchen(env) as others:
        if kind == "aggregates":
            other.save(Dog("Fido"))
        else:
            others.events.append([Tagged(["dog"], Fed(1, Decimal(1)))])
        assert seen.wait(LOOK_SECONDS_MAX)
    thread.join(BOUND)


def test_a_stopped_subscription_lets_its_follower_go(kennel: Kennel) -> None:
    """Whoever waits for the next one is told at once that there is none."""
    subscription = kennel.recorder.subscribe()
    with subscription, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(list, subscription)
        subscription.stop()

        assert waiting.result(BOUND) == []


def test_a_subscription_past_many_pieces_misses_none(factory: Factory) -> None:
    """More than is looked at once comes in order and once."""
    recorder = factory.application_recorder()
    recorder.insert_events([stored(n) for n in range(1_200)])

    with recorder.subscribe(gt=100) as subscription:
        ids = [next(subscription).id for _ in range(1_100)]

    assert ids == list(range(101, 1_201))


def test_a_long_reading_comes_in_pieces_and_whole(factory: Factory) -> None:
    """What is decided while one reads is not part of the reading."""
    recorder = factory.dcb_recorder()
    decided = [DCBEvent("t", b"%d" % n, [f"n:{n}"]) for n in range(2_500)]
    recorder.append(decided)

    reading = recorder.read()
    first = next(reading)
    recorder.append([DCBEvent("late", b"")])

    assert [first.event, *(one.event for one in reading)] == decided
    assert reading.head == 2_500


def test_ids_keep_their_kind(factory: Factory) -> None:
    """A UUID is one again, and any other text is as it was."""
    recorder = factory.application_recorder()
    ids: list[UUID | str] = [uuid4(), "dog:fido", uuid4().hex, str(uuid4()).upper()]
    for one in ids:
        recorder.insert_events([stored(originator_id=one)])

    assert [one.originator_id for one in recorder.select_notifications(1, 10)] == ids
    assert [recorder.select_events(one)[0].originator_id for one in ids] == ids


def test_the_framework_does_not_load_the_library() -> None:
    """Who does not use eventsourcing does not import it."""
    asked = "import sys, qntx_es, qntx_es.cli; print('eventsourcing' in sys.modules)"

    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "False"
