"""Appending on conditions: of those who decided on the same reading, at most one is believed."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event

from qntx_es import (
    AppendConditionFailed,
    Attestation,
    Ax,
    InvalidCondition,
    LogRegression,
    QntxError,
)
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer

BOUND = 60


def said(entity: str = "a", *, context: str = "seen", **parts: object) -> Attestation:
    """Say something small."""
    fields = {"actor": "ann", "payload": {}} | parts
    return Attestation(context=context, entity=entity, **fields)  # type: ignore[arg-type]


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    """Open an empty log on each database."""
    database = Database(url)
    database.upgrade()
    yield Log(database, Sequencer(database))
    database.close()


def test_what_must_not_be_there_refuses_and_is_named(log: Log) -> None:
    """A match behind `after` refuses the whole append and is named; one before it does not."""
    log.append([said("a"), said("b"), said("a")])

    with pytest.raises(AppendConditionFailed, match="position 3") as refused:
        log.append([said("c"), said("d")], unless=Ax(entities="a"), after=2)
    receipt = log.append(said("c"), unless=Ax(entities="a"), after=3)

    assert refused.value.position == 3
    assert receipt.position == log.head() == 4


def test_without_after_nothing_of_it_may_be_there_at_all(log: Log) -> None:
    """`unless` alone looks at the whole log."""
    log.append(said("a"))

    with pytest.raises(AppendConditionFailed):
        log.append(said("a"), unless=Ax(entities="a", contexts="seen"))

    log.append(said("a"), unless=Ax(entities="a", contexts="heard"))
    assert log.head() == 2


def test_any_of_several_refuses(log: Log) -> None:
    """Each of several queries is held against the log."""
    log.append(said("a", context="heard"))
    both = [Ax(entities="b"), Ax(contexts="heard")]

    with pytest.raises(AppendConditionFailed):
        log.append(said("c"), unless=both)
    log.append(said("c"), unless=both, after=1)


def test_times_of_a_condition_bound_it(log: Log) -> None:
    """`since` and `until` of a condition mean what they mean in a reading."""
    log.append(said("a"))
    soon = datetime.now(UTC) + timedelta(hours=1)

    log.append(said("b"), unless=Ax(entities="a", since=soon))
    log.append(said("b"), unless=Ax(entities="a", until=soon - timedelta(days=1)))
    with pytest.raises(AppendConditionFailed):
        log.append(said("b"), unless=Ax(entities="a", until=soon))


def test_a_log_that_ends_before_what_was_read_is_refused(log: Log) -> None:
    """`after` beyond the head means another or a restored log, never an empty one."""
    log.append(said())

    with pytest.raises(LogRegression, match="position 2 was read, and the log ends at 1"):
        log.append(said(), unless=Ax(), after=2)
    assert log.head() == 1


@pytest.mark.parametrize(
    "condition",
    [
        {"after": 1},
        {"unless": Ax(limit=1)},
        {"unless": Ax(), "after": -1},
        {"unless": Ax(), "after": True},
        {"expected_version": -1},
        {"expected_version": {"b": 0}},
        {"expected_version": {"a": "1"}},
    ],
    ids=repr,
)
def test_a_condition_that_cannot_be_checked_is_refused(
    log: Log, condition: dict[str, object]
) -> None:
    """What means nothing is an error, and nothing is appended."""
    with pytest.raises(InvalidCondition):
        log.append(said("a"), **condition)  # type: ignore[call-overload]
    assert log.head() == 0


def test_versions_number_an_entity(log: Log) -> None:
    """From 1 on, without holes; what is said without a version has none and does not count."""
    log.append([said("a"), said("a")], expected_version=0)
    log.append(said("a"))
    log.append([said("b"), said("a"), said("b")], expected_version={"a": 2, "b": 0})

    found = [(one.entity, one.entity_version) for one in log.read()]

    assert found == [("a", 1), ("a", 2), ("a", None), ("b", 1), ("a", 3), ("b", 2)]


@pytest.mark.parametrize("expected", [0, 1, 3])
def test_another_version_refuses(log: Log, expected: int) -> None:
    """Lower or higher than the largest: refused, and nothing is appended."""
    log.append([said("a"), said("a")], expected_version=0)

    with pytest.raises(AppendConditionFailed, match=f"`a` is at version 2 .*, not {expected}"):
        log.append([said("c"), said("a")], expected_version={"a": expected})

    assert log.head() == 2


def test_one_version_is_for_one_entity(log: Log) -> None:
    """A number for several entities could mean several things."""
    with pytest.raises(InvalidCondition, match="mapping"):
        log.append([said("a"), said("b")], expected_version=0)


def test_said_again_is_answered_and_not_refused(log: Log) -> None:
    """Who lost the answer appends again under the same id, and gets the first receipt."""
    one = said("a")
    first = log.append(one, unless=Ax(entities="a"), expected_version=0)

    again = log.append(one, unless=Ax(entities="a"), expected_version=0)

    assert again.position == first.position == log.head()


@pytest.mark.conditions
@pytest.mark.parametrize("kind", ["unless", "version"])
def test_of_conflicting_appends_one_succeeds_and_unrelated_ones_all_do(log: Log, kind: str) -> None:
    """Eight threads decide on one reading of each of five entities: five are believed."""
    writers, entities = 8, [f"e{n}" for n in range(5)]
    start = threading.Barrier(writers)
    won: list[str] = []
    troubles: list[BaseException] = []

    def write(name: str) -> None:
        start.wait(BOUND)
        for entity in entities:
            try:
                if kind == "unless":
                    log.append(said(entity), unless=Ax(entities=entity), after=0)
                else:
                    log.append(said(entity), expected_version=0)
                won.append(entity)
            except AppendConditionFailed:
                pass
            except QntxError as error:
                troubles.append(error)
            log.append(said(f"{name} {entity}"))
            log.append(said(f"own {name}"), unless=Ax(entities=f"own of {name}"))

    threads = [threading.Thread(target=write, args=(f"w{n}",)) for n in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)

    assert troubles == []
    assert sorted(won) == entities
    assert log.head() == len(entities) + 2 * writers * len(entities)


def test_a_tag_is_found_like_an_entity(log: Log) -> None:
    """What is tagged with something is about it, for a reader and for a condition."""
    log.append([said("a", tags=("repo:x", "team:y")), said("b", tags=("repo:x",)), said("repo:x")])

    assert [one.position for one in log.ax(Ax(entities="repo:x"))] == [1, 2, 3]
    assert [one.position for one in log.ax(Ax(entities=("team:y", "b")))] == [1, 2]
    assert [one.tags for one in log.read()] == [("repo:x", "team:y"), ("repo:x",), ()]
    with pytest.raises(AppendConditionFailed, match="position 1"):
        log.append(said("c"), unless=Ax(entities="team:y"))


def test_tags_are_part_of_what_is_said(log: Log) -> None:
    """The same id with other tags is another statement."""
    log.append(said("a", id="one", tags=("x",)))

    log.append(said("a", id="one", tags=("x",)))
    with pytest.raises(QntxError, match="already names another"):
        log.append(said("a", id="one", tags=("y",)))


@pytest.mark.conditions
def test_however_old_a_reading_is_little_is_looked_at_under_the_lock(log: Log) -> None:
    """What lies behind `after` is searched before the lock is had, and under it what came since."""
    log.append([said(f"{n}") for n in range(2_000)])
    searched: list[tuple[bool, set[int]]] = []

    def look(*each: Any) -> None:  # noqa: ANN401 - SQLAlchemy's
        statement, parameters = each[2:4]
        values = parameters.values() if isinstance(parameters, dict) else parameters
        if "nobody" in values:
            positions = {one for one in values if isinstance(one, int) and one > 1}
            searched.append((".position >" in statement, positions))

    event.listen(log._database.engine, "before_cursor_execute", look)  # noqa: SLF001 - what is asked of it
    log.append(said("a"), unless=Ax(entities="nobody"), after=0)

    # From the beginning up to the head without the lock; with it only behind that head.
    assert searched == [(False, {2_000}), (True, {2_000})]
