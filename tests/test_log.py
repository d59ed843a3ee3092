"""The log: append, read, head; what a caller gets back, and what he never gets."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import pytest

from qntx_es import (
    Attestation,
    Ax,
    ConflictingAttestation,
    NotYetCommitted,
    Receipt,
    TooLarge,
    TooMany,
)
from qntx_es.attestation import instant
from qntx_es.database import Database
from qntx_es.log import READ_ROWS, Log
from qntx_es.sequencer import APPEND_MAX, Sequencer, Turn

SECOND = 1_000_000_000
NOON = 1_800_000_000 * SECOND


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, nanoseconds: int = NOON) -> None:
        self.nanoseconds = nanoseconds

    def __call__(self) -> int:
        """Return nanoseconds since 1970."""
        return self.nanoseconds


def said(entity: str = "a", *, context: str = "seen", **parts: object) -> Attestation:
    """Say something small."""
    fields = {"actor": "ann", "payload": {"n": 1}} | parts
    return Attestation(context=context, entity=entity, **fields)  # type: ignore[arg-type]


Opened: TypeAlias = Callable[..., Log]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Open logs of their own on databases by URL, and close them at the end."""
    databases: list[Database] = []

    def open_log(url: str, **options: Callable[[], int]) -> Log:
        database = Database(url, **options)  # type: ignore[arg-type]
        databases.append(database)
        database.upgrade()
        return Log(database, Sequencer(database))

    yield open_log
    for database in databases:
        database.close()


@pytest.fixture
def log(url: str, opened: Opened) -> Log:
    """Open an empty log on each database."""
    return opened(url)


@pytest.fixture
def clock() -> Clock:
    """Hand in a clock."""
    return Clock()


@pytest.fixture
def timed(sqlite_url: str, clock: Clock, opened: Opened) -> Log:
    """Open an empty SQLite log whose clock is ours."""
    return opened(sqlite_url, clock=clock)


def entities(log: Log, ax: Ax | None = None, after: int = 0, limit: int | None = None) -> list[str]:
    """Read, and keep whom it is about."""
    return [one.entity for one in log.read(ax, after, limit)]


def test_an_empty_log_has_head_zero(log: Log) -> None:
    """Nothing is at position 0, and an empty log can be read to its end."""
    assert log.head() == 0
    assert list(log.read()) == []
    assert log.ax(Ax(limit=5)) == []
    assert log.waiting() == 0


def test_what_is_appended_is_read_back_as_it_was_said(log: Log) -> None:
    """Every part of an attestation comes back, with position, time and correlation beside it."""
    one = said("ünïcode ⌬", payload={"text": "naïve", "n": 2**80}, schema_version=3, depth=2)

    receipt = log.append(one)

    (read,) = log.read()
    assert (read.id, read.position) == (receipt.id, receipt.position) == (one.id, 1)
    assert (read.context, read.entity, read.actor) == (one.context, one.entity, one.actor)
    assert (read.text, read.payload) == (one.text, one.payload)
    assert (read.schema_version, read.depth) == (3, 2)
    assert read.caused_by is None
    assert read.correlation_id is None
    assert read.recorded_at.tzinfo is UTC


def test_what_follows_from_another_keeps_its_correlation(log: Log) -> None:
    """Cause and correlation given by the caller are kept."""
    log.append(said(id="b", caused_by="a", correlation_id="first"))

    (read,) = log.read()
    assert (read.caused_by, read.correlation_id) == ("a", "first")


def test_one_gives_one_receipt_and_many_give_a_list(log: Log) -> None:
    """A receipt stands for each attestation, in the order they were given."""
    one = log.append(said())
    many = log.append(said(str(n)) for n in range(3))

    assert one.position == 1
    assert [receipt.position for receipt in many] == [2, 3, 4]
    assert log.append([]) == []
    assert log.head() == 4


def test_a_receipt_without_a_position_says_so() -> None:
    """Asking for a position before the commit is refused by name."""
    receipt = Receipt("a")

    with pytest.raises(NotYetCommitted):
        _ = receipt.position

    receipt.resolve(7)
    assert receipt.position == 7


def test_the_same_statement_again_gives_the_first_receipt(log: Log) -> None:
    """Same id and same bytes: nothing is written, and the position is the first one's."""
    first = log.append(said(id="x"))
    log.append(said("other"))

    again = log.append(said(id="x"))

    assert again.position == first.position == 1
    assert log.head() == 2


def test_the_same_statement_twice_in_one_append_is_there_once(log: Log) -> None:
    """Inside one append both receipts stand for one attestation, and no position is left out."""
    receipts = log.append([said(id="x"), said("b"), said(id="x"), said("c")])

    assert [receipt.position for receipt in receipts] == [1, 2, 1, 3]
    assert [one.position for one in log.read()] == [1, 2, 3]


@pytest.mark.parametrize(
    "changed",
    [
        {"payload": {"n": 2}},
        {"actor": "bob"},
        {"context": "heard"},
        {"entity": "b"},
        {"schema_version": 2},
        {"payload": {"n": 1.0}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_bytes_under_the_same_id_are_refused(log: Log, changed: dict[str, object]) -> None:
    """An id names one statement: another is refused with the first's position, nothing written."""
    log.append([said("before"), said(id="x")])

    with pytest.raises(ConflictingAttestation, match="position 2"):
        log.append([said("new"), said(**({"id": "x", "entity": "a"} | changed))])  # type: ignore[arg-type]

    assert log.head() == 2


def test_two_statements_of_one_id_in_one_append_are_refused(log: Log) -> None:
    """Inside one append, too, an id names one statement, and nothing of the append is written."""
    with pytest.raises(ConflictingAttestation, match="in this append"):
        log.append([said(id="x"), said("b", id="x")])

    assert log.head() == 0


@pytest.mark.same_id
def test_the_same_statement_from_many_threads_is_there_once(log: Log) -> None:
    """Appended by eight threads at the same time, it has one position and all receipts say so."""
    found: list[int] = []
    ready = threading.Barrier(8)

    def append() -> None:
        ready.wait(10)
        found.append(log.append([said(id="x"), said(id="y", entity="b")])[0].position)

    threads = [threading.Thread(target=append) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert found == [1] * 8
    assert [one.id for one in log.read()] == ["x", "y"]


@pytest.mark.same_id
def test_of_two_statements_with_one_id_from_threads_one_is_refused(log: Log) -> None:
    """Of eight different statements under one id exactly one is in the log, the rest refused."""
    refused: list[ConflictingAttestation] = []
    ready = threading.Barrier(8)

    def append(n: int) -> None:
        ready.wait(10)
        try:
            log.append(said(id="x", payload={"n": n}))
        except ConflictingAttestation as error:
            refused.append(error)

    threads = [threading.Thread(target=append, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert log.head() == 1
    assert len(refused) == 7


def test_a_refused_append_leaves_nothing_whoever_else_appends(log: Log) -> None:
    """All or none holds under contention: what came with a conflicting statement is not there."""
    log.append(said(id="taken"))
    rounds, ready = 20, threading.Barrier(4)

    def append(name: str) -> None:
        ready.wait(10)
        for n in range(rounds):
            fresh = said(f"{name}-{n}", id=f"{name}-{n}")
            twin = said(f"twin-{name}", id=f"twin-{n}", payload={"by": name})
            try:
                log.append([fresh, twin])
            except ConflictingAttestation:
                continue
            else:
                log.append(said("kept", id=f"kept-{name}-{n}"))

    threads = [threading.Thread(target=append, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    ids = {one.id for one in log.read()}
    fresh = {one for one in ids if one.startswith("t") and not one.startswith(("twin", "taken"))}
    kept = {one.removeprefix("kept-") for one in ids if one.startswith("kept-")}
    assert len([one for one in ids if one.startswith("twin-")]) == rounds
    assert fresh == kept


def test_ten_thousand_is_the_most(log: Log) -> None:
    """One append holds 10 000; one more is refused and nothing is written."""
    many = [said(str(n)) for n in range(APPEND_MAX)]

    with pytest.raises(TooMany):
        log.append([*many, said()])
    assert log.head() == 0

    assert log.append(many)[-1].position == APPEND_MAX == log.head()


def test_a_decision_holds_no_more_than_an_append(log: Log) -> None:
    """What is decided is an append, and its limit holds there too."""
    with pytest.raises(TooMany):
        log.decide(lambda _: [said(str(n)) for n in range(APPEND_MAX + 1)])

    assert log.head() == 0


def test_a_decision_sees_the_head_it_appends_to(log: Log) -> None:
    """The turn's position is the head, and what is chosen follows it."""
    log.append([said(), said()])

    seen: list[int] = []

    def choose(turn: Turn) -> list[Attestation]:
        seen.append(turn.position)
        return [said()]

    (receipt,) = log.decide(choose)

    assert seen == [2]
    assert receipt.position == 3


def test_a_decision_that_raises_leaves_nothing(log: Log) -> None:
    """An exception undoes the turn, reaches its maker, and the next turn finds the lock free."""

    def choose(_: object) -> Iterator[Attestation]:
        yield said()
        raise LookupError

    with pytest.raises(LookupError):
        log.decide(choose)

    assert log.head() == 0
    assert log.append(said()).position == 1


def test_a_decision_for_nothing_moves_nothing(log: Log) -> None:
    """Nobody has to append anything in his turn."""
    assert log.decide(lambda _: []) == []
    assert log.head() == 0


def test_reading_goes_forward_from_a_position(log: Log) -> None:
    """`after` is exclusive, `limit` counts forward, and both may lie outside the log."""
    log.append(said(str(n)) for n in range(1, 11))

    assert entities(log, after=8) == ["9", "10"]
    assert entities(log, after=10) == []
    assert entities(log, after=99) == []
    assert entities(log, limit=3) == ["1", "2", "3"]
    assert entities(log, after=4, limit=2) == ["5", "6"]
    assert entities(log, limit=0) == []
    assert entities(log, limit=99) == [str(n) for n in range(1, 11)]


@pytest.mark.parametrize("size", [READ_ROWS - 1, READ_ROWS, READ_ROWS + 1, 2 * READ_ROWS])
def test_pieces_never_show(log: Log, size: int) -> None:
    """However long the log, each attestation is read once and in order."""
    log.append(said(str(n)) for n in range(size))

    assert entities(log) == [str(n) for n in range(size)]
    assert entities(log, limit=READ_ROWS) == [str(n) for n in range(min(size, READ_ROWS))]
    assert len(entities(log, Ax(limit=READ_ROWS + 5))) == min(size, READ_ROWS + 5)


@pytest.mark.parametrize("limit", [1, 3, 4, 6, 7, 20])
def test_a_limit_holds_over_pieces(log: Log, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """A reader gets as many as he asks for, the first or the newest, however they are read."""
    monkeypatch.setattr("qntx_es.log.READ_ROWS", 3)
    log.append([said(str(n)) for n in range(10)])

    for after in (0, 4):
        behind = [str(n) for n in range(after, 10)]
        newest = Ax(contexts="seen", limit=limit)
        assert [one.entity for one in log.read(None, after, limit)] == behind[:limit]
        assert [one.entity for one in log.read(Ax(contexts="seen"), after, limit)] == behind[:limit]
        assert [one.entity for one in log.read(newest, after)] == behind[-limit:]
        assert [one.entity for one in log.read(newest, after, 2)] == behind[-limit:][:2]


def test_a_query_filters_by_each_of_its_parts(log: Log) -> None:
    """Contexts, actors and entities are any-of inside and all-of among themselves."""
    log.append(
        [
            said("a", context="seen", actor="ann"),
            said("b", context="seen", actor="bob"),
            said("a", context="heard", actor="bob"),
            said("c", context="felt", actor="ann"),
        ]
    )

    def positions(**parts: str | list[str]) -> list[int]:
        return [one.position for one in log.ax(Ax(**parts))]  # type: ignore[arg-type]

    assert positions() == [1, 2, 3, 4]
    assert positions(contexts="seen") == [1, 2]
    assert positions(contexts=["seen", "felt"]) == [1, 2, 4]
    assert positions(contexts="seen", actors="bob") == [2]
    assert positions(entities=["a", "c"], actors=["ann", "bob"]) == [1, 3, 4]
    assert positions(entities="nobody") == []


def test_a_query_is_data_and_never_sql(log: Log) -> None:
    """Names that look like SQL, or like patterns, only ever match themselves."""
    odd = ["'; drop table qntx_attestations; --", "%", "_", "a\\", '"', "NULL", ":name", "%(x)s"]
    log.append(said(name, context=name, actor=name) for name in odd)

    for position, name in enumerate(odd, 1):
        found = log.ax(Ax(contexts=name, actors=name, entities=name))
        assert [one.position for one in found] == [position]


def test_a_querys_limit_means_the_newest_in_order(log: Log) -> None:
    """The newest n that match are given in the order of positions."""
    log.append(said(str(n), context="even" if n % 2 == 0 else "odd") for n in range(1, 11))

    assert entities(log, Ax(limit=3)) == ["8", "9", "10"]
    assert entities(log, Ax(contexts="even", limit=2)) == ["8", "10"]
    assert entities(log, Ax(contexts="even", limit=99)) == ["2", "4", "6", "8", "10"]
    assert entities(log, Ax(limit=0)) == []
    assert entities(log, Ax(contexts="nothing", limit=2)) == []
    assert entities(log, Ax(limit=3), after=9) == ["10"]
    assert entities(log, Ax(limit=4), limit=2) == ["7", "8"]


def test_a_query_of_a_thousand_names_is_answered(log: Log) -> None:
    """Many names are one question still."""
    log.append(said(str(n)) for n in range(10))

    found = log.ax(Ax(entities=[str(n) for n in range(5, 1_005)]))

    assert [one.position for one in found] == [6, 7, 8, 9, 10]


def test_since_and_until_include_their_ends(timed: Log, clock: Clock) -> None:
    """Both bounds are inclusive to the microsecond, also where many share an instant."""
    for step in (0, 0, 1, 2, 2, 2, 5):
        clock.nanoseconds = NOON + step * 1_000
        timed.append(said(str(step)))

    def found(since: int | None = None, until: int | None = None) -> list[int]:
        at = instant(NOON // 1_000)
        bounds = [
            None if one is None else at + timedelta(microseconds=one) for one in (since, until)
        ]
        return [one.position for one in timed.ax(Ax(since=bounds[0], until=bounds[1]))]

    assert found(since=0) == [1, 2, 3, 4, 5, 6, 7]
    assert found(since=1) == [3, 4, 5, 6, 7]
    assert found(since=2, until=2) == [4, 5, 6]
    assert found(since=3, until=4) == []
    assert found(until=0) == [1, 2]
    assert found(until=-1) == []
    assert found(since=5) == [7]
    assert found(since=6) == []
    assert found(since=4, until=2) == []


def test_times_of_other_zones_and_ages_can_be_asked(timed: Log) -> None:
    """An instant is an instant in every zone, and the ends of the calendar are times too."""
    timed.append(said())
    (one,) = timed.read()
    elsewhere = one.recorded_at.astimezone(datetime.now(UTC).astimezone().tzinfo)

    ends = Ax(since=datetime.min.replace(tzinfo=UTC), until=datetime.max.replace(tzinfo=UTC))
    assert timed.ax(ends) == [one]
    assert timed.ax(Ax(since=elsewhere, until=elsewhere)) == [one]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9])
def test_bisection_finds_every_instant_in_every_log(timed: Log, clock: Clock, length: int) -> None:
    """For each bound, what is found is what comparing every single time would find."""
    for step in range(length):
        clock.nanoseconds = NOON + step * 2_000
        timed.append(said())
    times = [one.recorded_at for one in timed.read()]

    for offset in range(-1, 2 * length + 1):
        at = instant(NOON // 1_000 + offset)
        assert [one.recorded_at for one in timed.ax(Ax(since=at))] == [t for t in times if t >= at]
        assert [one.recorded_at for one in timed.ax(Ax(until=at))] == [t for t in times if t <= at]


def test_limit_counts_inside_the_asked_time(timed: Log, clock: Clock) -> None:
    """The newest n are the newest of those in the asked time."""
    for step in range(10):
        clock.nanoseconds = NOON + step * SECOND
        timed.append(said(str(step)))

    until = instant(NOON // 1_000) + timedelta(seconds=6)

    assert entities(timed, Ax(until=until, limit=2)) == ["5", "6"]
    assert [one.entity for one in timed.read(Ax(until=until, limit=9), after=6)] == ["6"]


def test_recorded_at_never_goes_back_though_the_clock_does(timed: Log, clock: Clock) -> None:
    """A clock set back an hour holds the log's time still; set forward, it goes on."""
    for hours in (0, -1, -2, 1, 0):
        clock.nanoseconds = NOON + hours * 3_600 * SECOND
        timed.append([said(), said()])

    times = [one.recorded_at for one in timed.read()]
    assert times == sorted(times)
    assert times[0] == times[5] < times[6] == times[9]


def test_reading_while_others_append_shows_each_once_in_order(log: Log) -> None:
    """A reader follows writers without a gap, a repetition or a step back."""
    total = 120
    seen: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: [log.append([said(), said(), said()]) for _ in range(total // 6)]
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while len(seen) < total:
        head = log.head()
        seen += [one.position for one in log.read(after=len(seen))]
        assert len(seen) >= head
        if not any(thread.is_alive() for thread in threads) and log.head() < total:
            break
    for thread in threads:
        thread.join(60)

    assert seen == list(range(1, total + 1))


def test_a_half_read_log_lets_others_append(log: Log) -> None:
    """A reader that stops in the middle holds up nobody, and what it reads ends where it began."""
    log.append(said(str(n)) for n in range(READ_ROWS + 10))
    reading = log.read()
    next(reading)

    log.append(said("later"))

    rest = [one.entity for one in reading]
    assert rest[-1] == str(READ_ROWS + 9)


def test_an_attestation_is_found_by_its_id(log: Log) -> None:
    """`get` finds one, or says that there is none."""
    log.append([said(), said("b", id="wanted")])

    found = log.get("wanted")

    assert found is not None
    assert (found.position, found.entity, found.payload) == (2, "b", {"n": 1})
    assert log.get("unheard of") is None


def test_two_openings_of_one_database_share_one_log(url: str, opened: Opened) -> None:
    """What one host appended another continues."""
    one, other = opened(url), opened(url)

    positions = [log.append(said()).position for log in (one, other, one, other)]

    assert positions == [1, 2, 3, 4]
    assert list(one.read()) == list(other.read())
    assert one.epoch() == other.epoch()


def test_a_memory_database_is_shared_by_threads(opened: Opened) -> None:
    """`sqlite://` is one database for every thread of its host."""
    log = opened("sqlite://")

    threads = [
        threading.Thread(target=lambda: [log.append(said()) for _ in range(25)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.01)
            assert len(list(log.read())) <= 100

    assert [one.position for one in log.read()] == list(range(1, 101))


def test_two_memory_databases_are_two(opened: Opened) -> None:
    """What is said in one is unheard of in another."""
    one, other = opened("sqlite://"), opened("sqlite://")

    one.append(said())

    assert (one.head(), other.head()) == (1, 0)
    assert one.epoch() != other.epoch()


def test_an_append_may_be_as_large_as_its_limit_and_no_larger(log: Log) -> None:
    """Sixteen mebibytes of payload go in together, and one byte more is refused with all of it."""
    full = [said(payload={"x": "x" * ((1 << 20) - len('{"x":""}'))}) for _ in range(16)]

    with pytest.raises(TooLarge, match="in parts"):
        log.append([*full, said(payload={})])
    assert log.head() == 0

    assert [one.position for one in log.append(full)] == list(range(1, 17))
