"""Verify finds whatever was changed in live rows, and nothing where nothing was."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Executable,
    Float,
    Integer,
    String,
    Table,
    delete,
    insert,
    inspect,
    select,
    text,
    update,
)

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Payload,
    ProjectorOutdated,
    ReadRows,
    RebuildProgress,
    RebuildRunning,
    Recorded,
    Rows,
    faults,
)
from qntx_es.projections import fresh
from qntx_es.projections.comparison import RowDifference
from qntx_es.projections.touches import Touch
from qntx_es.tables import rebuilds

BOUND = 60.0
HostOf = Callable[..., Host]
# By code point they stand in this order, and in that of no locale.
ENTITIES = ("B", "a", "a b", "aB", "ab", "z", "ä", "€", "\U0001f600")


class Weighed(Payload, context="weighed"):
    """Something was weighed."""

    grams: float
    note: str = ""


class Heavy(Payload, context="heavy"):
    """It was heavy."""

    grams: float


def make_scale(*, version: int = 1, is_loud: bool = True) -> Domain:
    """Make a domain that sums in floats, writes by every verb, and derives."""
    scale = Domain("scale", version=version, emits=("weighed", "heavy"))
    sums = scale.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("grams", Float, nullable=False, default=0.0),
        Column("last_at", DateTime(timezone=True)),
        Column("notes", JSON),
    )
    days = scale.table(
        "days",
        Column("day", Integer, primary_key=True),
        Column("entity", String, primary_key=True),
        Column("times", Integer, nullable=False, default=0),
    )

    @scale.project(Weighed)
    def weigh(weighed: Recorded[Weighed], rows: Rows) -> None:
        rows.add(sums, weighed.entity, grams=weighed.payload.grams)
        rows.put(sums, entity=weighed.entity, last_at=weighed.recorded_at, notes={"n": [0.1]})
        rows.add(days, weighed.position % 3, weighed.entity, times=1)
        if weighed.payload.note == "forget":
            rows.delete(sums, weighed.entity)
        if weighed.payload.note == "round":
            rows.execute(update(sums).where(sums.c.entity == "a").values(grams=1.0))

    @scale.derive(Weighed)
    def say_heavy(weighed: Recorded[Weighed], rows: ReadRows) -> Iterator[Attestation]:
        total = rows.get(sums, weighed.entity)
        if total is not None and weighed.payload.grams >= 100:
            yield scale.attest(Heavy(grams=weighed.payload.grams), entity=weighed.entity)
            if is_loud:
                yield scale.attest(Heavy(grams=total.grams), entity="all")

    return scale


def weighings(start: int, count: int, *, note: str = "") -> list[Attestation]:
    """Return weighings of all entities in turn, every third of them heavy."""
    return [
        Attestation(
            context="weighed",
            entity=ENTITIES[number % len(ENTITIES)],
            actor="ann",
            payload=Weighed(grams=0.1 if number % 3 else 100.0, note=note),
            id=f"weighing {number}",
        )
        for number in range(start, start + count)
    ]


@pytest.fixture
def scale() -> Domain:
    """Make the domain that is verified."""
    return make_scale()


@pytest.fixture
def host(host_of: HostOf, scale: Domain) -> Host:
    """Open a host whose read model holds sixty weighings."""
    opened = host_of(scale)
    opened.append(weighings(0, 60))
    opened.catch_up()
    return opened


def tamper(host: Host, *statements: Executable) -> None:
    """Change live rows behind the projector's back."""
    with host.database.write() as connection:
        for statement in statements:
            connection.execute(statement)


def rows_of(host: Host, table: Table) -> list[tuple[Any, ...]]:
    """Return the rows of a table by key."""
    with host.database.read() as connection:
        found = connection.execute(select(table).order_by(*table.primary_key.columns))
        return [tuple(row) for row in found]


def differences(host: Host, *, first: int = 20) -> list[RowDifference]:
    """Return the rows that a verify tells of."""
    return [row for proof in host.verify("scale", first=first).tables for row in proof.first]


def is_left(host: Host) -> bool:
    """Tell whether a verify has left anything behind."""
    with host.database.read() as connection:
        names = inspect(connection).get_table_names()
        return any("__g" in name for name in names) or bool(
            connection.execute(select(rebuilds)).all()
        )


def last_of(host: Host, entity: str) -> Touch:
    """Return the last weighing of an entity."""
    said = [one for one in host.log.read() if (one.context, one.entity) == ("weighed", entity)]
    return Touch(said[-1].position, "weighed")


@pytest.mark.verify_finds
def test_a_healthy_read_model_is_the_same(host: Host, scale: Domain) -> None:
    """Nothing is found where nothing was changed, live is not touched, and nothing is left."""
    before = {name: rows_of(host, table) for name, table in scale.tables.items()}
    head = host.log.head()

    found = host.verify("scale")

    assert found.is_same
    assert found.position == head
    assert {one.table: one.live and one.live.rows for one in found.tables} == {
        "scale_days": 9,
        "scale_sums": len(ENTITIES),
    }
    (derived,) = found.derived
    assert (derived.handler, derived.equal, derived.is_same) == ("say_heavy", 40, True)
    assert {name: rows_of(host, table) for name, table in scale.tables.items()} == before
    assert not is_left(host)
    assert host.verify("pulse").is_same


@pytest.mark.verify_finds
@pytest.mark.parametrize("entity", ENTITIES)
def test_one_bit_of_a_float_is_found(host: Host, scale: Domain, entity: str) -> None:
    """The smallest change of one value is found, with key, column, both values and who wrote it."""
    sums = scale.tables["scale_sums"]
    right = {row[0]: row[1] for row in rows_of(host, sums)}[entity]
    wrong = float.fromhex(right.hex()[:-5] + f"{int(right.hex()[-5], 16) ^ 1:x}" + right.hex()[-4:])
    assert wrong != right
    tamper(host, update(sums).where(sums.c.entity == entity).values(grams=wrong))

    found = host.verify("scale")

    assert not found.is_same
    days, told = found.tables
    assert days.is_same
    assert (told.differing, told.missing, told.surplus) == (1, 0, 0)
    assert told.columns == {"grams": 1}
    (row,) = told.first
    assert (row.verdict, row.key, row.columns) == ("differs", (entity,), ("grams",))
    assert row.live is not None
    assert row.rebuilt is not None
    assert (row.live["grams"], row.rebuilt["grams"]) == (wrong, right)
    assert row.touched == last_of(host, entity)


@pytest.mark.verify_finds
def test_rows_that_were_removed_or_added_are_found(host: Host, scale: Domain) -> None:
    """A row that is gone is missing, one that nobody stated is surplus; neither hides others."""
    sums, days = scale.tables["scale_sums"], scale.tables["scale_days"]
    tamper(
        host,
        delete(sums).where(sums.c.entity.in_(["B", "\U0001f600"])),
        insert(sums).values(entity="aa", grams=1.0),
        update(days).where(days.c.day == 1, days.c.entity == "ä").values(times=99),
    )

    found = {(one.table, one.key): one for one in differences(host)}

    assert {key: one.verdict for key, one in found.items()} == {
        ("scale_days", (1, "ä")): "differs",
        ("scale_sums", ("B",)): "missing",
        ("scale_sums", ("aa",)): "surplus",
        ("scale_sums", ("\U0001f600",)): "missing",
    }
    assert found["scale_sums", ("aa",)].touched is None
    assert found["scale_sums", ("B",)].touched == last_of(host, "B")
    assert not is_left(host)


def test_what_a_statement_or_a_deletion_wrote_is_known(host: Host, scale: Domain) -> None:
    """The attestation that wrote a row last is found, whichever verb its handler used."""
    sums = scale.tables["scale_sums"]
    (forgotten,) = weighings(70, 1, note="forget")
    rounding = Attestation(
        context="weighed", entity="z", actor="ann", payload=Weighed(grams=0.0, note="round")
    )
    positions = [one.position for one in host.append([forgotten, rounding])]
    host.catch_up()
    tamper(
        host,
        insert(sums).values(entity=forgotten.entity, grams=5.0),
        update(sums).where(sums.c.entity == "a").values(grams=2.0),
    )

    found = {one.key: one.touched for one in differences(host)}

    assert found == {
        (forgotten.entity,): Touch(positions[0], "weighed"),
        ("a",): Touch(positions[1], "weighed"),
    }


def test_only_the_first_differences_are_told_and_all_are_counted(host: Host, scale: Domain) -> None:
    """However many rows differ, so many are told as were asked for, the first by key."""
    sums = scale.tables["scale_sums"]
    tamper(host, update(sums).values(grams=sums.c.grams + 1))

    found = {one.table: one for one in host.verify("scale", first=2).tables}["scale_sums"]

    assert found.differing == len(ENTITIES)
    assert [one.key for one in found.first] == [("B",), ("a",)]
    assert differences(host, first=0) == []


@pytest.mark.derive_drift
def test_what_derive_handlers_say_is_compared_with_the_log(host: Host, host_of: HostOf) -> None:
    """Outputs that changed, are missing or surplus are counted by handler, with both texts."""
    quiet = host_of(make_scale(is_loud=False))

    (surplus,) = quiet.verify("scale").derived
    quiet.append(weighings(60, 3))
    quiet.catch_up()
    (missing,) = host.verify("scale").derived

    assert (surplus.equal, surplus.changed, surplus.missing, surplus.surplus) == (20, 0, 0, 20)
    assert len(surplus.first) == 10
    assert surplus.first[0].rebuilt is None
    assert surplus.first[0].logged == 'all is heavy by scale@plugin: {"grams":100.0}'
    assert (missing.equal, missing.changed, missing.missing, missing.surplus) == (41, 0, 1, 0)
    (one,) = missing.first
    assert (one.verdict, one.logged) == ("missing", None)
    assert one.source == last_of(host, ENTITIES[60 % len(ENTITIES)]).position


def test_sources_before_a_handler_speaks_are_not_missing(host_of: HostOf) -> None:
    """A domain that derives from now on has nothing to say of what was there before it."""
    log = host_of(Domain("other", emits=("weighed",)))
    log.append(weighings(0, 9))
    host = host_of(make_scale())
    host.catch_up()
    host.append(weighings(9, 3))
    host.catch_up()

    (derived,) = host.verify("scale").derived

    assert (derived.equal, derived.missing) == (2, 0)


@pytest.mark.verify_finds
def test_nothing_is_found_while_everything_goes_on(host_of: HostOf) -> None:
    """Under load live stands somewhere else at every look, and verify finds no difference."""
    host, other = host_of(make_scale()), host_of(make_scale())
    host.append(weighings(0, 60))
    stopping = threading.Event()
    troubles: list[BaseException] = []

    def append() -> None:
        number = 60
        try:
            while not stopping.is_set():
                other.append(weighings(number, 7))
                other.catch_up()
                number += 7
        except BaseException as error:  # noqa: BLE001 - told at the end
            troubles.append(error)

    thread = threading.Thread(target=append)
    thread.start()
    try:
        found = [host.verify("scale") for _ in range(5)]
    finally:
        stopping.set()
        thread.join(BOUND)

    assert troubles == []
    assert all(one.is_same for one in found)
    assert len({one.position for one in found}) > 1


@pytest.mark.rebuild_killed
def test_a_second_one_is_refused_and_names_the_first(host: Host, host_of: HostOf) -> None:
    """While fresh tables of a domain are filled, nobody else makes such, and is told who does."""
    other = host_of(make_scale())
    refused: list[str] = []

    def meet() -> None:
        for ask in (other.verify, other.rebuild):
            with pytest.raises(RebuildRunning, match=r"held by .*@.*, process") as told:
                ask("scale")
            refused.append(str(told.value))

    with faults.planned({"rebuild.in_fill": meet}):
        assert host.verify("scale").is_same

    assert refused
    assert other.rebuild("scale").is_same


def test_whoever_died_is_not_waited_for(host: Host) -> None:
    """What a process that is gone, or was not heard of for a minute, has left is taken over."""
    holder = "ann@elsewhere:1:x"
    with host.database.write() as connection:
        now = host.database.now(connection)
        connection.execute(
            insert(rebuilds).values(
                domain="scale",
                holder=holder,
                generation=7,
                version=1,
                state="filling",
                target=1,
                started_at=now,
                looked_at=now - 61_000_000,
            )
        )
        connection.execute(text("CREATE TABLE scale_sums__g7 (entity text PRIMARY KEY)"))

    assert host.verify("scale").is_same
    assert not is_left(host)


def test_whoever_works_is_heard_of(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between batches a holder is seen to live, so that nobody takes over."""
    monkeypatch.setattr(fresh, "BEAT_SECONDS", 0.001)
    heard: list[int] = []

    def listen() -> None:
        deadline = time.monotonic() + BOUND
        while len(set(heard)) < 3:
            assert time.monotonic() < deadline
            with host.database.read() as connection:
                heard.append(connection.execute(select(rebuilds.c.looked_at)).scalar_one())

    with faults.planned({"rebuild.in_fill": listen}):
        assert host.verify("scale").is_same


def test_tables_that_were_altered_by_hand_are_found(host: Host) -> None:
    """A live table that is gone, or has a column too many, is a difference and no accident."""
    tamper(
        host,
        text("DROP TABLE scale_days"),
        text("ALTER TABLE scale_sums ADD COLUMN colour text DEFAULT 'red'"),
    )

    days, sums = host.verify("scale").tables

    assert (days.live, days.is_same) == (None, False)
    assert (sums.differing, sums.columns) == (len(ENTITIES), {"colour": len(ENTITIES)})


def test_an_interrupted_verify_leaves_nothing(host: Host) -> None:
    """Wherever it is interrupted, the fresh tables go, and the next one begins at once."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    for point in ("rebuild.after_planned", "rebuild.in_fill"):
        with faults.planned({point: interrupt}), pytest.raises(KeyboardInterrupt):
            host.verify("scale")
        assert not is_left(host)
    assert host.verify("scale").is_same


def test_tables_of_another_version_are_not_compared(host: Host, host_of: HostOf) -> None:
    """Code that would make other rows has nothing to verify, and is told so."""
    newer = host_of(make_scale(version=2))

    with pytest.raises(ProjectorOutdated, match="projections rebuild scale"):
        newer.verify("scale")
    assert not is_left(host)


def test_progress_is_told(host: Host) -> None:
    """Whoever asks hears how far it is, to the end."""
    heard: list[RebuildProgress] = []

    host.verify("scale", progress=heard.append)

    assert heard[-1].state == "verifying"
    assert heard[-1].done == heard[-1].total > 0
