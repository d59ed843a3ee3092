"""The digest of the log: what it covers, and that it goes on from where it was."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from qntx_es import Attestation, CorruptAttestation, LogDigest, LogRegression
from qntx_es.database import Database
from qntx_es.digests import EMPTY, DigestChain
from qntx_es.log import READ_ROWS, Log
from qntx_es.sequencer import Sequencer

OTHERS = {
    "id": "other",
    "context": "heard",
    "entity": "e1",
    "actor": "eve",
    "depth": 7,
    "schema_version": 7,
    "caused_by": "other",
    "correlation_id": "other",
    "tags": '["t"]',
    "payload": '{"n":7}',
    "recorded_at": 7,
    "entity_version": 7,
}


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """Open an empty database of each kind."""
    database = Database(url)
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def log(database: Database) -> Log:
    """Open its log, and say three things in it."""
    log = Log(database, Sequencer(database))
    log.append(said(n) for n in range(1, 4))
    return log


def said(n: int) -> Attestation:
    """Say one thing, or another."""
    return Attestation(
        context="seen",
        entity=f"ünï {n}",
        actor="ann",
        payload={"n": n, "é": 0.1},
        tags=("a", "b")[: n - 1],
        caused_by="someone" if n == 2 else None,
        depth=n,
    )


def change(database: Database, position: int, column: str, value: object) -> None:
    """Change one row behind the guards' back."""

    def run(connection: Connection) -> None:
        asked = text(f"UPDATE qntx_attestations SET {column} = :to WHERE position = :at")  # noqa: S608
        connection.execute(asked, {"to": value, "at": position})

    unguarded(database, run)


def unguarded(database: Database, run: Callable[[Connection], object]) -> None:
    """Do what the guards would refuse, as the owner may who takes them away."""
    with database.write() as connection:
        if database.is_sqlite:
            for name in ("update", "delete"):
                connection.execute(text(f"DROP TRIGGER IF EXISTS qntx_attestations_no_{name}"))
        else:
            connection.execute(text("ALTER TABLE qntx_attestations DISABLE TRIGGER USER"))
        run(connection)


def test_it_is_the_chain_that_is_documented(log: Log) -> None:
    """Anybody can compute it from what the log shows, with SHA-256 and canonical JSON."""
    value = bytes(32)
    for one in log.read():
        line = {
            "actor": one.actor,
            "caused_by": one.caused_by,
            "context": one.context,
            "correlation_id": one.correlation_id,
            "depth": one.depth,
            "entity": one.entity,
            "entity_version": one.entity_version,
            "id": one.id,
            "payload": one.payload,
            "position": one.position,
            "recorded_at": one.recorded_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "schema_version": one.schema_version,
            "tags": one.tags,
        }
        written = json.dumps(line, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        value = sha256(value + written.encode()).digest()

    assert log.digest() == LogDigest(3, value.hex())


def test_an_empty_log_has_one_too(database: Database) -> None:
    """Before everything it is 64 zeros, whichever log it is."""
    assert Log(database, Sequencer(database)).digest() == EMPTY == LogDigest(0, "0" * 64)


def test_it_goes_on_from_a_known_one(log: Log) -> None:
    """From any position whose digest is known the rest leads to the same, over many pieces."""
    known = log.digest()
    log.append(
        Attestation(context="seen", entity="a", actor="ann", payload={"n": n})
        for n in range(READ_ROWS + 5)
    )

    assert log.digest(after=known) == log.digest()
    assert log.digest(after=log.digest()) == log.digest()
    with pytest.raises(LogRegression):
        log.digest(after=LogDigest(log.head() + 1, known.value))


def test_it_can_be_had_of_any_time(log: Log) -> None:
    """Up to a position it is what it was when that was the head, whatever came behind it."""
    then = []
    for n in range(4):
        log.append(Attestation(context="seen", entity=str(n), actor="ann", payload={}))
        then.append(log.digest())

    assert [log.digest_at(one.position) for one in (EMPTY, *then)] == [EMPTY, *then]


@pytest.mark.parametrize("column", OTHERS)
def test_one_changed_value_changes_it_there_and_ever_after(
    database: Database, log: Log, column: str
) -> None:
    """No stored value can be another without every digest from its position on being another."""
    before = digests(log)

    change(database, 2, column, OTHERS[column])

    after = digests(log)
    assert after[:1] == before[:1]
    assert all(one != other for one, other in zip(after[1:], before[1:], strict=True))


def test_one_changed_byte_changes_it_there_and_ever_after(database: Database, log: Log) -> None:
    """Whichever byte of a stored payload becomes another, each digest from there on is another."""
    log.append(said(n) for n in range(4, 7))
    before = digests(log)
    texts = [one.text for one in log.read()]

    @settings(max_examples=max(25, settings().max_examples // 4), deadline=None)
    @given(st.data())
    def is_found(data: st.DataObject) -> None:
        position = data.draw(st.integers(1, len(texts)), "position")
        kept = texts[position - 1]
        digit = data.draw(st.sampled_from([n for n, one in enumerate(kept) if one.isdigit()]))
        other = data.draw(st.sampled_from([one for one in "0123456789" if one != kept[digit]]))
        change(database, position, "payload", kept[:digit] + other + kept[digit + 1 :])

        after = digests(log)

        change(database, position, "payload", kept)
        assert after[: position - 1] == before[: position - 1]
        assert not set(after[position - 1 :]) & set(before)

    is_found()
    assert digests(log) == before


def test_a_hole_is_named(database: Database, log: Log) -> None:
    """Where a position is missing there is no digest, but an error that names it."""
    delete = text("DELETE FROM qntx_attestations WHERE position = 2")
    unguarded(database, lambda connection: connection.execute(delete))

    with pytest.raises(CorruptAttestation, match="position 2 of the log is missing") as raised:
        log.digest()
    assert raised.value.position == 2


def digests(log: Log) -> list[str]:
    """Return the digest at each position."""
    chain = DigestChain()
    found = []
    for one in log.read():
        chain.add(one.row)
        found.append(chain.digest)
    assert found[-1] == log.digest()
    return [one.value for one in found]
