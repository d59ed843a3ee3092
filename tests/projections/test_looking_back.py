"""A new derive handler speaks from now on, and of the past when it is asked to: once each."""

from collections.abc import Callable, Iterator
from io import BytesIO

import pytest
from sqlalchemy import Column, Integer, String, select

from qntx_es import (
    Attestation,
    BeyondHead,
    Domain,
    Host,
    Payload,
    ReadRows,
    Recorded,
    Rows,
    UnknownDerive,
    faults,
)
from qntx_es.attestation import derived_id
from qntx_es.projections import filling
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.projections.starts import DeriveStarted
from qntx_es.tables import rebuilds

HostOf = Callable[..., Host]


class Paid(Payload, context="paid"):
    """Somebody paid."""

    cents: int


class Answered(Payload, context="answered"):
    """What was said to a payment, with what had been paid by then."""

    cents: int
    which: int = 0


def make_till(
    *handlers: str,
    version: int = 1,
    word: int = 0,
    fails_at: int | None = None,
    project_fails_at: int | None = None,
    on_failure: str = "stop",
) -> Domain:
    """Make a domain that sums what is paid, with derive handlers that tell the sum, twice."""
    till = Domain("till", version=version, on_failure=on_failure)  # type: ignore[arg-type]
    sums = till.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("cents", Integer, nullable=False, default=0),
    )

    @till.project(Paid)
    def add(paid: Recorded[Paid], rows: Rows) -> None:
        if paid.payload.cents == project_fails_at:
            raise ValueError
        rows.add(sums, paid.entity, cents=paid.payload.cents)

    def answer(paid: Recorded[Paid], rows: ReadRows) -> Iterator[Attestation]:
        if paid.payload.cents == fails_at:
            raise ValueError
        row = rows.get(sums, paid.entity)
        assert row is not None
        for which in range(2):
            said = Answered(cents=row.cents + word, which=which)
            yield till.attest(said, entity=paid.entity)

    for name in handlers:
        till.derive(Paid, name=name)(answer)
    return till


def payments(start: int, count: int) -> list[Attestation]:
    """Return payments of 1, 2, 3 … by three people in turn, with ids of their own."""
    return [
        Attestation(
            context="paid",
            entity=f"person {n % 3}",
            actor="ann",
            payload=Paid(cents=n),
            id=f"payment {n}",
        )
        for n in range(start, start + count)
    ]


def answers(host: Host, handler: str) -> dict[int, list[int]]:
    """Return what a handler has said: to which payment, what sum."""
    said = {one.id: one for one in host.ax(contexts="answered")}
    found = {}
    for n in range(200):
        ids = [derived_id(f"payment {n}", "till", handler, str(which)) for which in range(2)]
        if sums := [said[one].payload["cents"] for one in ids if one in said]:
            found[n] = sums
    return found


def wanted(numbers: range) -> dict[int, list[int]]:
    """Return what is to be said to these payments: the sum as of each, twice."""
    return {n: [sum(range(n % 3 or 3, n + 1, 3))] * 2 for n in numbers}


def starts(host: Host) -> list[tuple[str, int]]:
    """Return which starts the log tells of, in its order."""
    said = host.ax(contexts=DeriveStarted.context, entities="till")
    return [(one.payload["handler"], one.payload["position"]) for one in said]


@pytest.fixture
def host(host_of: HostOf) -> Host:
    """Run a till that answered by `old` alone, and then get a `new` handler and 3 more payments."""
    before = host_of(make_till("old"))
    before.append(payments(1, 12))
    before.catch_up()
    after = host_of(make_till("old", "new"))
    after.append(payments(13, 3))
    after.catch_up()
    return after


@pytest.mark.new_derive
def test_a_new_derive_speaks_from_now_on(host: Host, host_of: HostOf) -> None:
    """It answers what comes after it, the log says since when, and nothing is missing before."""
    assert answers(host, "new") == wanted(range(13, 16))
    assert answers(host, "old") == wanted(range(1, 16))
    first = host.log.get("payment 13")
    assert first is not None
    assert starts(host) == [("old", 1), ("new", first.position)]

    verified = host.verify("till")
    rebuilt = host_of(make_till("old", "new", version=2)).rebuild("till")

    for proofs in (verified.derived, rebuilt.derived):
        assert {one.handler: (one.equal, one.is_same) for one in proofs} == {
            "old": (30, True),
            "new": (6, True),
        }


@pytest.mark.new_derive
def test_looking_back_says_exactly_the_past(host: Host) -> None:
    """From the position on, each answer is said once, with the rows as of its payment."""
    since = host.log.get("payment 5")
    assert since is not None

    found = host.look_back("till", "new", since=since.position, actor="ann")

    assert (found.said, found.equal, found.is_same, found.drift) == (16, 6, True, ())
    assert answers(host, "new") == wanted(range(5, 16))
    assert starts(host)[-1] == ("new", since.position)
    assert host.ax(contexts=DeriveStarted.context)[-1].actor == "ann"
    host.append(payments(16, 1))
    host.catch_up()
    assert answers(host, "new") == wanted(range(5, 17))
    proof = {one.handler: one for one in host.verify("till").derived}["new"]
    assert (proof.equal, proof.is_same) == (24, True)


@pytest.mark.derive_drift
def test_a_handler_is_held_to_the_past_it_looked_back_at(host: Host, host_of: HostOf) -> None:
    """What it would say otherwise of that past by now is drift, as if it had always been there."""
    host.look_back("till", "new", since=1)

    proofs = host_of(make_till("old", "new", word=7)).verify("till").derived

    assert {one.handler: one.changed for one in proofs} == {"old": 30, "new": 30}


@pytest.mark.parametrize("point", ["rebuild.in_fill", "append.before_commit"])
def test_looking_back_is_killed_and_done_again(
    host: Host, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its chunks or before its last word, it claims nothing; again, it is whole."""
    monkeypatch.setattr(filling, "SIZE_FIRST", 4)
    monkeypatch.setattr(filling, "BATCH_SECONDS", 0.0)
    chunks = [0]

    def kill() -> None:
        chunks[0] += 1
        if chunks[0] == 2 or point == "append.before_commit":
            raise KeyboardInterrupt

    before = starts(host)
    with faults.planned({point: kill}), pytest.raises(KeyboardInterrupt):
        host.look_back("till", "new", since=1)

    assert starts(host) == before
    assert host.verify("till").is_same
    said = len(answers(host, "new"))
    assert said == (11 if point == "rebuild.in_fill" else 15)
    again = host.look_back("till", "new", since=1)
    assert again.said == 2 * (15 - said)
    assert answers(host, "new") == wanted(range(1, 16))
    with host.database.read() as connection:
        assert connection.execute(select(rebuilds)).all() == []


@pytest.mark.derive_drift
def test_what_the_log_has_otherwise_stays(host: Host, host_of: HostOf) -> None:
    """A handler that would say other things by now is told of its drift, and says only the rest."""
    since = host.log.get("payment 12")
    assert since is not None
    other = host_of(make_till("old", "new", word=1_000))

    found = other.look_back("till", "new", since=since.position)

    assert (found.said, found.changed, found.is_same) == (2, 6, False)
    assert [one.verdict for one in found.drift] == ["changed"] * 6
    assert answers(other, "new") == wanted(range(13, 16)) | {
        12: [cents + 1_000 for cents in wanted(range(12, 13))[12]]
    }


def test_a_failing_handler_claims_nothing(host: Host, host_of: HostOf) -> None:
    """Where it raises it ends by name, and its start is what it was."""
    before = starts(host)
    failing = host_of(make_till("old", "new", fails_at=7))

    with pytest.raises(HandlerFailed, match="new"):
        failing.look_back("till", "new", since=1)

    assert starts(host) == before
    assert host.verify("till").is_same


@pytest.mark.parametrize(
    ("handler", "since", "error", "said"),
    [
        ("nw", 1, UnknownDerive, "did you mean `new`"),
        ("new", 10_000, BeyondHead, "none of them"),
        ("new", 0, BeyondHead, "none of them"),
    ],
)
def test_what_cannot_be_looked_back_at_is_refused(
    host: Host, handler: str, since: int, error: type[Exception], said: str
) -> None:
    """A handler that is not there, and a past that is none, are refused by name."""
    head = host.log.head()

    with pytest.raises(error, match=said):
        host.look_back("till", handler, since=since)

    assert host.log.head() == head


def test_who_waits_is_answered_by_whoever_works_him_off(host_of: HostOf) -> None:
    """A source that is parked is not looked back at, and is answered when it is retried."""
    old = host_of(make_till("old", project_fails_at=4, on_failure="park"))
    old.append(payments(1, 6))
    old.catch_up()
    host = host_of(make_till("old", "new", on_failure="park"))
    with host.running():
        found = host.look_back("till", "new", since=1)
        assert (found.said, sorted(answers(host, "new"))) == (10, [1, 2, 3, 5, 6])

        assert host.retry("till") == []

        host.wait_for(host.log.head(), "till")
    host.catch_up()
    assert answers(host, "new") == wanted(range(1, 7))
    assert host.verify("till").is_same


def test_a_handler_that_met_its_first_source_and_failed_has_started(host_of: HostOf) -> None:
    """What was parked at its very first source is answered once it is mended."""
    broken = host_of(make_till("new", fails_at=1, on_failure="park"))
    broken.append(payments(1, 4))
    broken.catch_up()
    assert sorted(answers(broken, "new")) == [2, 3]
    mended = host_of(make_till("new", on_failure="park"))

    assert mended.retry("till") == []

    assert answers(mended, "new") == wanted(range(1, 5))
    assert starts(mended) == [("new", 1)]


def test_an_imported_log_brings_its_starts(
    host: Host, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Elsewhere nothing is said again, and handlers are held to what they said here."""
    file = BytesIO()
    host.export_log(file)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "qntx.db"
    with Host(f"sqlite:///{elsewhere}", [make_till("old", "new")]) as other:
        other.upgrade()
        other.import_log(BytesIO(file.getvalue()))
        head = other.log.head()

        other.catch_up()

        assert other.log.head() == head
        assert {one.handler: one.equal for one in other.verify("till").derived} == {
            "old": 30,
            "new": 6,
        }
