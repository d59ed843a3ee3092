"""Who waits for rows that nobody will write hears why, long before the time is up."""

import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import Column, Integer, String

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Payload,
    ProjectorOutdated,
    ProjectorStopped,
    QntxError,
    Recorded,
    Rows,
)
from qntx_es.domain import OnFailure
from qntx_es.errors import EntityParked, ProjectorUnowned

LONG = timedelta(seconds=60)
SOON = 20.0
HostOf = Callable[..., Host]


class Moved(Payload, context="moved"):
    """Something moved."""


def make(on_failure: OnFailure = "stop", version: int = 1) -> Domain:
    """Make a domain whose handler fails for one entity."""
    domain = Domain("ledger", version=version, on_failure=on_failure)
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @domain.project(Moved)
    def count(moved: Recorded[Moved], rows: Rows) -> None:
        if moved.entity == "bad":
            raise ValueError(moved.entity)
        rows.add(counts, moved.entity, moves=1)

    return domain


def move(host: Host, entity: str) -> int:
    """Append one move, and return its position."""
    said = Attestation(context="moved", entity=entity, actor="a", payload={})
    return host.append(said).position


def refused(host: Host, position: int, entity: str | None = None) -> QntxError:
    """Wait in vain, and return why; fail where it takes all of the time."""
    began = time.monotonic()
    with pytest.raises(QntxError) as raised:
        host.wait_for(position, "ledger", LONG, entity=entity)
    assert time.monotonic() - began < SOON
    return raised.value


def test_nobody_waits_for_a_host_that_is_not_there(host_of: HostOf) -> None:
    """Where no host holds the lease, waiting ends by that name."""
    host = host_of(make())

    assert isinstance(refused(host, move(host, "a")), ProjectorUnowned)


def test_nobody_waits_for_one_that_has_stopped(host_of: HostOf) -> None:
    """Where a handler fails, waiting ends with which one, at which position, and why."""
    host = host_of(make())
    with host.running():
        error = refused(host, move(host, "bad"))

    assert isinstance(error, ProjectorStopped)
    assert "stopped at position 1: handler `count` raised" in str(error)


def test_nobody_waits_for_tables_of_another_version(host_of: HostOf) -> None:
    """Where the code is newer than the tables, waiting ends with the remedy."""
    host_of(make())
    newer = host_of(make(version=2))

    assert isinstance(refused(newer, move(newer, "a")), ProjectorOutdated)


def test_who_is_parked_is_not_waited_for_and_others_are(host_of: HostOf) -> None:
    """Of a parked entity it is said that it waits; another's rows arrive."""
    host = host_of(make("park"))
    with host.running():
        position = move(host, "bad")
        last = move(host, "good")
        host.wait_for(last, "ledger", LONG)

        host.wait_for(last, "ledger", LONG, entity="good")
        error = refused(host, last, entity="bad")

    assert isinstance(error, EntityParked)
    assert (error.entity, error.position) == ("bad", position)
