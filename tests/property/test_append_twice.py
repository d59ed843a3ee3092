"""Appending twice is appending once, whichever way in and however they are mixed."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qntx_es import Attestation, ConflictingAttestation
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer

FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
NAMES = count()
# What is said: which of three ids, and which of two statements.
SAID = st.tuples(st.integers(0, 2), st.integers(0, 1))
STEP = st.tuples(st.sampled_from(["append", "drop", "pass"]), st.lists(SAID, max_size=4))


@pytest.fixture
def fresh(url: str) -> Iterator[Callable[[], tuple[Database, Sequencer, Log]]]:
    """Give one log of its own for each example: ids are never used again."""
    database = Database(url)
    database.upgrade()
    sequencer = Sequencer(database)
    yield lambda: (database, sequencer, Log(database, sequencer))
    database.close()


@pytest.mark.same_id
@settings(max_examples=30, suppress_health_check=FIXTURES)
@given(steps=st.lists(STEP, min_size=1, max_size=6))
@example(steps=[("append", [(0, 0)]), ("append", [(0, 0)])])
@example(steps=[("drop", [(0, 0)]), ("append", [(0, 0)])])
@example(steps=[("append", [(0, 0), (0, 1)])])
@example(steps=[("drop", [(0, 0)]), ("drop", [(1, 0), (0, 1)])])
def test_append_twice_is_once(
    fresh: Callable[[], tuple[Database, Sequencer, Log]],
    steps: list[tuple[str, list[tuple[int, int]]]],
) -> None:
    """Against a dictionary: same bytes give the first receipt, others are refused."""
    database, sequencer, log = fresh()
    start, name = log.head(), next(NAMES)
    model: dict[str, int] = {}
    order: list[str] = []

    for way, chosen in steps:
        many = [
            Attestation(
                context="seen", entity="a", actor="ann", payload={"n": n}, id=f"{name}-{which}"
            )
            for which, n in chosen
        ]
        wanted: dict[str, int] = {}
        is_sound = all(
            wanted.setdefault(one.id, n) == n and model.get(one.id, n) == n
            for one, (_, n) in zip(many, chosen, strict=True)
        )
        outcome = act(way, many, database, sequencer, log)
        if way == "pass":
            continue
        assert (outcome != "refused") is is_sound, (way, chosen)
        if is_sound:
            order += [one for one in wanted if one not in model]
            model |= wanted
        if way == "append" and is_sound:
            assert outcome == [start + order.index(one.id) + 1 for one in many]
    sequencer.run_pass()

    assert [(one.id, one.payload["n"]) for one in log.read(after=start)] == [
        (one, model[one]) for one in order
    ]
    assert log.waiting() == 0


def act(
    way: str, many: list[Attestation], database: Database, sequencer: Sequencer, log: Log
) -> Any:  # noqa: ANN401 - positions, or what became of it
    """Go one way in, and say what came of it."""
    if way == "pass":
        return sequencer.run_pass()
    try:
        if way == "append":
            return [receipt.position for receipt in log.append(many)]
        with database.write() as connection:
            return sequencer.drop(connection, many)
    except ConflictingAttestation:
        return "refused"
