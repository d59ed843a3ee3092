"""How the log is asked: the newest first, within a time, and no more than is wanted."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import func, select

from qntx_es import (
    AppendConditionFailed,
    Attestation,
    Ax,
    AxTimeout,
    Domain,
    Host,
    Payload,
    Settings,
)
from qntx_es.ax import parse
from qntx_es.tables import attestations


class Measured(Payload, context="measured", schema_version=2):
    """Something was measured, in metres."""

    metres: int


def said(entity: str = "a", context: str = "seen", **parts: object) -> Attestation:
    """Say something small."""
    fields = {"actor": "x", "payload": {}} | parts
    return Attestation(context=context, entity=entity, **fields)  # type: ignore[arg-type]


@pytest.fixture
def host(url: str) -> Iterator[Host]:
    """Open a host on an empty log of each kind."""
    with closing(Host(url)) as opened:
        opened.upgrade()
        yield opened


def test_the_latest_is_the_newest_about_an_entity_in_a_context(host: Host) -> None:
    """Of many statements it is the last one in that context, tagged ones too, or none."""
    host.append([said("a", payload={"n": n}) for n in range(3)])
    host.append([said("a", "heard", payload={"n": 7}), said("b", payload={"n": 8})])
    assert host.latest("seen", "a") == host.ax("a is seen limit 1")[0]
    found = host.latest("seen", "a")
    assert found is not None
    assert found.payload == {"n": 2}

    host.append(said("b", payload={"n": 9}, tags=("a",)))

    found = host.latest("seen", "a")
    assert found is not None
    assert (found.entity, found.payload) == ("b", {"n": 9})
    assert host.latest("seen", "nobody") is None
    assert host.latest("smelt", "a") is None
    # What is asked for may be spelt like a shape, and is a name all the same.
    assert host.latest("seen", "*") is None


def test_the_latest_of_a_class_is_read_as_that_class(url: str) -> None:
    """An old payload is lifted by the domain that has upcasters for the class."""
    domain = Domain("measuring", emits=(Measured,))

    @domain.upcast(Measured, from_=1)
    def in_metres(old: dict[str, int]) -> dict[str, int]:
        return {"metres": old["km"] * 1000}

    with closing(Host(url, [domain])) as host:
        host.upgrade()
        host.append(said("a", "measured", payload={"km": 3}))

        found = host.latest(Measured, "a")

        assert found is not None
        assert (found.payload, found.schema_version) == (Measured(metres=3000), 1)
        assert host.latest(Measured, "b") is None


def test_the_newest_of_an_entity_are_the_same_however_many_are_asked_for(host: Host) -> None:
    """Statements about it and those tagged with it are one list, each once, in order."""
    about = [said("a", payload={"n": n}, tags=("a", "c") if n % 3 else ()) for n in range(9)]
    host.append(
        [one for n in range(9) for one in (about[n], said("b", tags=("a",) if n % 2 else ()))]
    )
    every = [one.position for one in host.ax("a, c")]

    assert every == [one.position for one in host.ax() if one.entity == "a" or "a" in one.tags]
    for limit in range(len(every) + 2):
        assert [one.position for one in host.ax(f"a, c limit {limit}")] == every[
            max(0, len(every) - limit) :
        ]


def test_many_pieces_about_one_entity_are_one_answer(host: Host) -> None:
    """Thousands about one entity, some by tag, are all found, in order, each once."""
    for _ in range(3):
        host.append([said("a" if n % 2 else "b", tags=("a",)) for n in range(1_000)])
        host.append([said("b") for _ in range(100)])

    found = [one.position for one in host.ax("a")]

    assert found == [n for n in range(1, 3_301) if (n - 1) % 1_100 < 1_000]
    assert [one.position for one in host.ax(Ax(entities="a", limit=1_500))] == found[-1_500:]


@pytest.mark.parametrize("query", ["where a contains 7", "b where a contains 7 limit 1"])
def test_a_query_that_takes_too_long_is_given_up(url: str, query: str) -> None:
    """Past its time a query ends by name, and the next one is not affected."""
    patient, hasty = Settings(), Settings(ax_seconds=0.01)
    with closing(Host(url, settings=patient)) as host:
        host.upgrade()
        payload = {"a": list(range(100, 160))}
        for _ in range(3):
            host.append([said("b", payload=payload) for _ in range(10_000)])
    with closing(Host(url, settings=hasty)) as host:
        for _ in range(3):
            with pytest.raises(AxTimeout, match="Narrow it, or have the path"):
                host.ax(query)
            assert [one.position for one in host.ax("b limit 1")] == [30_000]
        with host.database.read() as connection:  # only queries are hurried
            has_107 = attestations.c.payload.contains("107")
            counted = select(func.count()).select_from(attestations).where(has_107)
            assert connection.execute(counted).scalar_one() == 30_000


@pytest.mark.parametrize("entity", ["a", "tagged"])
def test_a_condition_with_times_looks_only_within_them(host: Host, entity: str) -> None:
    """`unless` about an entity since some time fails at what was said since, not before it."""
    host.append(said("a", tags=("tagged",)))
    (first,) = host.ax()
    while host.ax("limit 1")[0].recorded_at == first.recorded_at:
        host.append(said("b"))
    between = host.ax("limit 1")[0].recorded_at
    since = Ax(entities=entity, since=between)

    host.append(said("b"), unless=since)
    second = host.append(said("a", tags=("tagged",))).position
    with pytest.raises(AppendConditionFailed) as failed:
        host.append(said("b"), unless=since)
    assert failed.value.position == second
    with pytest.raises(AppendConditionFailed) as failed:
        host.append(said("b"), unless=Ax(entities=entity, until=between))
    assert failed.value.position == 1
    host.append(said("b"), unless=Ax(entities=entity, until=between), after=1)


def test_a_plan_is_shown_with_the_statement_and_its_parameters(host: Host) -> None:
    """`explain` says what the database would do, and does not do it."""
    explained = host.log.explain(parse("a is seen where n > 3 limit 5"))

    assert explained.statement.startswith("SELECT")
    assert {"a", "seen", 5} <= {
        value for value in explained.parameters.values() if isinstance(value, str | int)
    }
    assert explained.index is None
    assert explained.plan
    assert "qntx_attestations" in " ".join(explained.plan)
