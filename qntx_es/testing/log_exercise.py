"""The contract of the log, as tests that any log can be held to: `TestMine = exercise_log(make)`.

Ours on SQLite and on PostgreSQL pass it as they are, so what it asks for is what readers, domains
and hosts rely on, and nothing more. It needs pytest, which runs it.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from itertools import groupby
from typing import Any, Protocol, overload

import pytest

from qntx_es.attestation import Attestation, Json, Recorded
from qntx_es.ax import Ax, Glob
from qntx_es.errors import AppendConditionFailed, ConflictingAttestation, TooMany, WaitTimeout
from qntx_es.sequencer import APPEND_MAX
from qntx_es.services import Said

THREADS = 4
GROUPS = 10
JOIN_SECONDS_MAX = 60.0


class AnyLog(Protocol):
    """A log: append, read, get, head, wait_for. There is no update and no delete."""

    @overload
    def append(
        self,
        attestations: Attestation,
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
    ) -> Said: ...
    @overload
    def append(
        self,
        attestations: Iterable[Attestation],
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
    ) -> Sequence[Said]: ...
    def append(
        self,
        attestations: Attestation | Iterable[Attestation],
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
    ) -> Said | Sequence[Said]:
        """Append one or many, all or none, and return a receipt for each, in order."""
        ...

    def read(
        self, ax: Ax | None = None, after: int = 0, limit: int | None = None
    ) -> Iterator[Recorded[Json]]:
        """Yield what lies behind `after`, in the order of positions, at most `limit` of them."""
        ...

    def get(self, attestation_id: str) -> Recorded[Json] | None:
        """Return the attestation of this id, or None."""
        ...

    def head(self) -> int:
        """Return the largest position; 0 is empty."""
        ...

    def wait_for(self, position: int, timeout: float = 10.0) -> None:
        """Return once `position` can be read, whoever appends it, or raise `WaitTimeout`."""
        ...


Opening = AbstractContextManager[AnyLog]


def exercise_log(
    make_log: Callable[[], Any], *, open_again: Callable[[Any], Any] | None = None
) -> type:
    """Return a class of tests that hold what `make_log` returns to the contract of the log.

    Each test makes an empty log and leaves it by `with` if it can be entered, else by `close()`.
    `open_again` opens the log of another opening a second time; without it there is no test of
    what two openings share, and of what is there after closing.
    """

    class Exercise(LogExercise):
        @pytest.fixture
        def log(self) -> Iterator[AnyLog]:
            with _entered(make_log()) as made:
                yield made

    if open_again is None:
        return Exercise
    open_it = open_again

    class SharedExercise(Exercise, OpenedAgain):
        @pytest.fixture
        def again(self, log: AnyLog) -> Callable[[], Opening]:
            return lambda: _entered(open_it(log))

    return SharedExercise


class LogExercise:
    """What every log promises; `log` is an empty one."""

    # Append, read, head.

    def test_an_empty_log_has_head_zero(self, log: AnyLog) -> None:
        """Nothing is at position 0, and an empty log can be read to its end."""
        assert log.head() == 0
        assert list(log.read()) == []
        assert log.get("unheard of") is None

    def test_what_is_said_is_read_back(self, log: AnyLog) -> None:
        """Every part of an attestation comes back as it was said, with position and time."""
        one = Attestation(
            context="said",
            entity="ünïcode ⌬",
            actor="ann",
            payload={"text": "naïve", "large": 2**80, "zero": -0.0, "deep": [{"a": None}]},
            schema_version=3,
            caused_by="cause",
            correlation_id="first",
            tags=("t2", "t1"),
        )

        receipt = log.append(one)

        (read,) = log.read()
        assert (read.id, read.position) == (receipt.id, receipt.position) == (one.id, 1)
        assert (read.context, read.entity, read.actor) == (one.context, one.entity, one.actor)
        assert (read.text, read.payload) == (one.text, one.payload)
        assert (read.schema_version, read.tags) == (3, one.tags)
        assert (read.caused_by, read.correlation_id) == ("cause", "first")
        assert read.recorded_at.tzinfo is not None
        assert log.get(one.id) == read

    def test_positions_are_dense_and_in_order(self, log: AnyLog) -> None:
        """One gives a receipt, many give a list; positions are 1…head, and time never goes back."""
        first = log.append(said())
        many = log.append([said(str(n)) for n in range(3)])

        assert [first.position, *(one.position for one in many)] == [1, 2, 3, 4]
        assert log.append([]) == []
        assert log.head() == 4
        read = list(log.read())
        assert [one.position for one in read] == [1, 2, 3, 4]
        assert [one.id for one in read[1:]] == [one.id for one in many]
        assert sorted(read, key=lambda one: one.recorded_at) == read

    def test_a_log_is_read_from_anywhere(self, log: AnyLog) -> None:
        """A reader goes on behind a position, as far as asked."""
        log.append([said(str(n)) for n in range(1, 8)])

        assert entities(log.read(after=5)) == ["6", "7"]
        assert entities(log.read(after=2, limit=3)) == ["3", "4", "5"]
        assert entities(log.read(after=7)) == []
        assert entities(log.read(limit=0)) == []

    def test_an_ax_finds_what_it_asks_for(self, log: AnyLog) -> None:
        """Entities, globs, contexts and tags are found, and a limit means the newest."""
        log.append(
            [said("a"), said("b", context="heard"), said("ab"), said("c", tags=("a",)), said("d")]
        )

        assert entities(log.read(Ax(entities="a"))) == ["a", "c"]
        assert entities(log.read(Ax(entities=Glob("a*")))) == ["a", "ab", "c"]
        assert entities(log.read(Ax(contexts="said", limit=2))) == ["c", "d"]
        assert entities(log.read(Ax(contexts=("heard", "unheard")))) == ["b"]
        assert entities(log.read(Ax(actors="bob"))) == []

    def test_what_is_acknowledged_is_read_at_once(self, log: AnyLog) -> None:
        """Whoever has a receipt finds it in the log, at its position, without waiting."""
        for n in range(1, 10):
            receipt = log.append(said(str(n)))

            assert log.head() == receipt.position == n
            assert entities(log.read(after=n - 1)) == [str(n)]

    # Waiting.

    def test_whoever_waits_goes_on_once_it_can_be_read(self, log: AnyLog) -> None:
        """Nobody is let go before the position he waits for can be read, or is kept longer."""
        seen: list[list[str]] = []

        def wait() -> None:
            log.wait_for(GROUPS, JOIN_SECONDS_MAX)
            seen.append(entities(log.read(limit=GROUPS)))

        def append() -> None:
            for n in range(GROUPS):
                log.append(said(str(n)))

        in_threads(wait, wait, append)

        assert seen == [[str(n) for n in range(GROUPS)]] * 2

    def test_nobody_waits_for_ever(self, log: AnyLog) -> None:
        """What is there already is not waited for, and what does not come is given up by name."""
        log.append(said())

        log.wait_for(0, 0.0)
        log.wait_for(1, 0.0)
        with pytest.raises(WaitTimeout):
            log.wait_for(2, 0.01)

    # Groups.

    def test_appends_stay_together(self, log: AnyLog) -> None:
        """Of many who append at once nothing is lost, and no append is interleaved with another."""

        def append(name: str) -> None:
            for n in range(GROUPS):
                log.append([said(f"{name}-{n}", n=part) for part in range(3)])

        in_threads(*(partial(append, f"t{n}") for n in range(THREADS)))

        read = list(log.read())
        assert [one.position for one in read] == list(range(1, 3 * GROUPS * THREADS + 1))
        groups = [[one.payload["n"] for one in group] for _, group in groupby(read, _entity)]
        assert groups == [[0, 1, 2]] * (GROUPS * THREADS)

    def test_the_past_is_closed(self, log: AnyLog) -> None:
        """A reader beside appenders sees each position once, in order, and nothing behind it."""
        total = 2 * GROUPS * 3
        seen: list[int] = []

        def follow() -> None:
            while len(seen) < total:
                head = log.head()
                seen.extend(one.position for one in log.read(after=len(seen)))
                assert len(seen) >= head

        def append() -> None:
            for _ in range(GROUPS):
                log.append([said(), said(), said()])

        in_threads(follow, append, append)

        assert seen == list(range(1, total + 1))

    def test_a_refused_append_leaves_nothing(self, log: AnyLog) -> None:
        """One attestation too many, and none of them is there."""
        with pytest.raises(TooMany):
            log.append([said()] * (APPEND_MAX + 1))

        assert log.head() == 0

    # Idempotence.

    def test_the_same_again_gives_the_first_receipt(self, log: AnyLog) -> None:
        """Same id and same bytes: nothing is written, be it later or in one append."""
        one, other = said(), said("b")
        log.append([one, other, one])

        assert log.append(one).position == 1
        assert [receipt.position for receipt in log.append([said("c"), other])] == [3, 2]
        assert entities(log.read()) == ["a", "b", "c"]

    def test_other_bytes_under_a_known_id_are_refused(self, log: AnyLog) -> None:
        """An id names one statement: another is refused by name, with all that came with it."""
        log.append(said(id="x"))

        with pytest.raises(ConflictingAttestation):
            log.append([said("new"), said(id="x", n=2)])
        with pytest.raises(ConflictingAttestation):
            log.append([said(id="y"), said(id="y", n=2)])

        assert entities(log.read()) == ["a"]

    def test_the_same_from_many_at_once_is_there_once(self, log: AnyLog) -> None:
        """Appended by several at the same moment, it has one position, and all are told it."""
        both = [said(id="x"), said("b", id="y")]
        found: list[list[int]] = []

        in_threads(*[lambda: found.append([one.position for one in log.append(both)])] * THREADS)

        assert found == [[1, 2]] * THREADS
        assert log.head() == 2

    # Conditions.

    def test_what_must_not_have_been_said_refuses(self, log: AnyLog) -> None:
        """Any match behind `after` refuses the whole append; one before it does not."""
        log.append([said("a"), said("b"), said("a")])

        with pytest.raises(AppendConditionFailed):
            log.append([said("c"), said("d")], unless=Ax(entities="a"), after=2)
        with pytest.raises(AppendConditionFailed):
            log.append(said("c"), unless=(Ax(entities="z"), Ax(entities="b")))
        log.append(said("c"), unless=Ax(entities="a"), after=3)

        assert entities(log.read(after=3)) == ["c"]

    def test_an_expected_version_numbers_and_refuses(self, log: AnyLog) -> None:
        """An entity's statements are numbered on from the version that was expected, or refused."""
        log.append([said("a"), said("a")], expected_version=0)
        log.append(said("a"), expected_version=2)

        with pytest.raises(AppendConditionFailed):
            log.append(said("a"), expected_version=2)

        assert [one.entity_version for one in log.read()] == [1, 2, 3]

    def test_of_conflicting_decisions_one_is_kept(self, log: AnyLog) -> None:
        """Of those who decide on the same reading exactly one succeeds; others go on unhindered."""
        refused: list[AppendConditionFailed] = []

        def decide(n: int) -> None:
            try:
                log.append(said("seat", n=n), unless=Ax(entities="seat"), after=0)
            except AppendConditionFailed as error:
                refused.append(error)
            log.append(said(f"other {n}"))

        in_threads(*(partial(decide, n) for n in range(THREADS)))

        assert len(refused) == THREADS - 1
        assert entities(log.read(Ax(entities="seat"))) == ["seat"]
        assert log.head() == 1 + THREADS


class OpenedAgain:
    """What several openings of one log promise; `again` opens that of `log` once more."""

    def test_openings_share_one_log(self, log: AnyLog, again: Callable[[], Opening]) -> None:
        """What is appended through one is read and continued through another."""
        with again() as other:
            positions = [one.append(said()).position for one in (log, other, log, other)]

            assert positions == [1, 2, 3, 4]
            assert list(log.read()) == list(other.read())

    def test_what_another_opening_appends_is_waited_for(
        self, log: AnyLog, again: Callable[[], Opening]
    ) -> None:
        """Whoever waits hears of what comes by another way in."""
        with again() as other:
            in_threads(lambda: log.wait_for(1, JOIN_SECONDS_MAX), lambda: other.append(said()))

            assert log.head() == 1

    def test_what_is_acknowledged_outlives_closing(
        self, log: AnyLog, again: Callable[[], Opening]
    ) -> None:
        """What was appended before an opening is closed is there for the next one."""
        with again() as first:
            receipt = first.append(said("kept"))
        with again() as second:
            found = second.get(receipt.id)

        assert found is not None
        assert (found.position, found.entity) == (1, "kept")
        assert log.head() == 1


def said(entity: str = "a", /, *, context: str = "said", n: int = 1, **parts: Any) -> Attestation:  # noqa: ANN401 - parts of an attestation
    """Say something small."""
    return Attestation(context=context, entity=entity, actor="ann", payload={"n": n}, **parts)


def entities(found: Iterable[Recorded[Json]]) -> list[str]:
    """Return whom it is about."""
    return [one.entity for one in found]


def in_threads(*work: Callable[[], object]) -> None:
    """Do all of it at once, and return when it is done; what fails there fails here."""
    ready = threading.Barrier(len(work))
    failed: list[BaseException] = []

    def start(do: Callable[[], object]) -> None:
        try:
            ready.wait(JOIN_SECONDS_MAX)
            do()
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=start, args=(do,), daemon=True) for do in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_SECONDS_MAX)
    assert not any(thread.is_alive() for thread in threads), "an append or a reading never ended"
    if failed:
        raise failed[0]


def _entity(recorded: Recorded[Json]) -> str:
    return recorded.entity


def _entered(made: Any) -> Opening:  # noqa: ANN401 - whoever made it knows
    return made if hasattr(made, "__enter__") else closing(made)
