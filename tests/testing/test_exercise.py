"""Our own log passes what strangers' logs are held to, and one that breaks its word does not."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from qntx_es import Attestation, Host, Recorded
from qntx_es.log import Log
from qntx_es.testing import exercise_log
from qntx_es.testing.bench import postgres_server


@contextmanager
def opened(url: str) -> Iterator[Log]:
    """Open the log of a database, made when it is first opened."""
    with Host(url) as host:
        host.upgrade()
        yield host.log


@contextmanager
def on_sqlite() -> Iterator[Log]:
    """Make a log in a file."""
    with TemporaryDirectory() as folder, opened(f"sqlite:///{Path(folder) / 'log.db'}") as log:
        yield log


@contextmanager
def on_postgresql() -> Iterator[Log]:
    """Make a log on the one server of this process."""
    server = postgres_server()
    url = server.create_database()
    with opened(url) as log:
        yield log
    server.drop_database(url)


def again(log: Log) -> AbstractContextManager[Log]:
    """Open the same log once more."""
    return opened(log._database.name)  # noqa: SLF001 - no password is in it


TestLogInMemory = exercise_log(lambda: opened("sqlite://"))
TestLogOnSQLite = exercise_log(on_sqlite, open_again=again)
TestLogOnPostgreSQL = exercise_log(on_postgresql, open_again=again)


class Lossy:
    """A log that is wrong in one way: what is missing here is as ours has it."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as ours has it
        return getattr(self._log, name)


class LateHead(Lossy):
    """Its head lags behind what it has acknowledged."""

    def head(self) -> int:
        """Return too little."""
        return max(0, self._log.head() - 1)


class Impatient(Lossy):
    """It lets go at once whoever waits."""

    def wait_for(self, *_: Any) -> None:  # noqa: ANN401 - as ours has it
        """Wait for nothing."""


class OneByOne(Lossy):
    """It lets others in between the attestations of one append."""

    def append(self, said: Any, **conditions: Any) -> Any:  # noqa: ANN401 - as ours has it
        """Append each by itself."""
        if isinstance(said, list):
            return [self._log.append(one, **conditions) for one in said]
        return self._log.append(said, **conditions)


class Unconditional(Lossy):
    """It heeds no condition."""

    def append(self, said: Any, **_: Any) -> Any:  # noqa: ANN401 - as ours has it
        """Append whatever was said meanwhile."""
        return self._log.append(said)


class Forgetful(Lossy):
    """It forgets tags."""

    def read(self, *asked: Any, **more: Any) -> Iterator[Any]:  # noqa: ANN401 - as ours has it
        """Read, without the tags."""
        for one in self._log.read(*asked, **more):
            yield Recorded((*one.row[:11], None, *one.row[12:]), json.loads)


class Anew(Lossy):
    """It gives another receipt to what it knows already."""

    def append(self, said: Any, **conditions: Any) -> Any:  # noqa: ANN401 - as ours has it
        """Append under an id of its own."""
        many = [said] if isinstance(said, Attestation) else list(said)
        known = [self._log.get(one.id) for one in many]
        fresh = [
            Attestation(context=one.context, entity=one.entity, actor=one.actor, payload={"n": 1})
            if before
            else one
            for one, before in zip(many, known, strict=True)
        ]
        receipts = self._log.append(fresh, **conditions)
        return receipts[0] if isinstance(said, Attestation) else receipts


@pytest.mark.parametrize(
    ("wrong", "found_by"),
    [
        (LateHead, "test_what_is_acknowledged_is_read_at_once"),
        (Impatient, "test_nobody_waits_for_ever"),
        (OneByOne, "test_other_bytes_under_a_known_id_are_refused"),
        (Unconditional, "test_what_must_not_have_been_said_refuses"),
        (Unconditional, "test_of_conflicting_decisions_one_is_kept"),
        (Forgetful, "test_what_is_said_is_read_back"),
        (Anew, "test_the_same_again_gives_the_first_receipt"),
    ],
)
def test_a_log_that_breaks_the_contract_is_found(wrong: type[Lossy], found_by: str) -> None:
    """Each of these faults in a log fails the test that is named for the promise."""
    exercise = exercise_log(lambda: opened("sqlite://"))()

    with opened("sqlite://") as log:
        getattr(exercise, found_by)(log)
    with opened("sqlite://") as log, pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(exercise, found_by)(wrong(log))
