"""A paused projector stands still everywhere until it is resumed, and says who paused it."""

from collections.abc import Callable

import pytest
from sqlalchemy import Column, Integer, String, select

from qntx_es import (
    Attestation,
    Domain,
    Host,
    Job,
    Payload,
    ProjectorPaused,
    Recorded,
    Rows,
    ServiceRegistry,
    UnknownDomain,
    faults,
)
from qntx_es.faults import Action

BOUND = 20.0
HostOf = Callable[..., Host]


class Moved(Payload, context="moved"):
    """Something moved."""


def make(name: str = "ledger", *, inline: bool = False) -> Domain:
    """Make a domain that counts moves."""
    domain = Domain(name, inline=inline)
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("moves", Integer, nullable=False, default=0),
    )

    @domain.project(Moved)
    def move(moved: Recorded[Moved], rows: Rows) -> None:
        rows.add(counts, moved.entity, moves=1)

    return domain


def append(host: Host, count: int = 3) -> int:
    """Append some moves; return the position of the last."""
    said = [
        Attestation(context="moved", entity=f"e{n}", actor="a", payload={}) for n in range(count)
    ]
    return host.append(said)[-1].position


def counted(host: Host, domain: Domain) -> int:
    """Return how many moves a domain has counted."""
    (table,) = domain.tables.values()
    with host.database.read() as connection:
        return sum(connection.execute(select(table.c.moves)).scalars())


def state_of(host: Host, name: str = "ledger") -> str:
    """Return the state that a projector shows."""
    return {one.name: one.state for one in host.statuses()}[name]


@pytest.mark.parametrize("inline", [False, True])
def test_a_paused_projector_stands_still_on_every_host(
    host_of: HostOf,
    inline: bool,  # noqa: FBT001 - a case
) -> None:
    """Others go on, nothing moves the paused one on any host, and resumed it catches up."""
    domain, other = make(inline=inline), make("other")
    host = host_of(domain, other)
    append(host)
    host.catch_up()

    host.pause("ledger", "the tables are looked at", by="ann")

    fresh = host_of(domain, other)
    for one in (host, fresh):
        append(one)
        one.catch_up()
        assert (counted(one, domain), state_of(one)) == (3, "paused")
    assert counted(fresh, other) == 9
    fresh.resume("ledger", by="bob")
    host.catch_up()
    assert counted(host, domain) == 9
    assert state_of(host) == ("inline" if inline else "live")


def test_a_pause_is_attested_and_seen(host_of: HostOf) -> None:
    """The log holds who paused and who resumed, and status shows by whom, when and why."""
    host = host_of(make())

    host.pause("ledger", "an audit", by="ann")

    pause = {one.name: one.pause for one in host.statuses()}["ledger"]
    (said,) = host.ax(contexts="qntx.paused", entities="ledger")
    assert pause is not None
    assert (pause.by, pause.reason, str(pause)) == ("ann", "an audit", "paused by ann: an audit")
    assert (said.actor, said.payload) == ("ann", {"reason": "an audit"})
    for _ in range(2):
        host.resume("ledger", by="bob")
    assert [one.actor for one in host.ax(contexts="qntx.resumed")] == ["bob"]
    assert {one.name: one.pause for one in host.statuses()}["ledger"] is None


def test_whoever_pauses_is_named_without_being_asked(host_of: HostOf) -> None:
    """Where nobody says who acts, it is the system's user at this host."""
    host = host_of(make())

    host.pause("ledger")

    (said,) = host.ax(contexts="qntx.paused")
    assert said.actor.count("@") == 1


def test_an_unknown_projector_is_not_paused(host_of: HostOf) -> None:
    """A name that no projector has is refused with the nearest one, and nothing is said."""
    host = host_of(make())

    with pytest.raises(UnknownDomain, match="did you mean `ledger`"):
        host.pause("leger")

    assert host.log.head() == 0


def test_waiting_for_a_paused_projector_ends_at_once(host_of: HostOf) -> None:
    """Waiting for a position before which a projector is paused says so by name."""
    host = host_of(make())
    last = append(host)
    host.catch_up()
    host.pause("ledger", "an audit", by="ann")
    host.wait_for(last, "ledger", 0)
    later = append(host)

    with pytest.raises(ProjectorPaused, match="paused by ann: an audit"):
        host.wait_for(later, "ledger", BOUND)


def test_a_running_host_is_paused_from_outside(host_of: HostOf) -> None:
    """A host that runs stands still when another one pauses, and goes on when it resumes."""
    domain = make()
    host, other = host_of(domain), host_of(domain)

    with host.running():
        host.wait_for(append(host), "ledger", BOUND)
        other.pause("ledger")
        last = append(host)
        with pytest.raises(ProjectorPaused):
            host.wait_for(last, "ledger", BOUND)
        assert counted(host, domain) == 3
        other.resume("ledger")
        host.wait_for(last, "ledger", BOUND)

    assert counted(host, domain) == 6


@pytest.mark.parametrize("point", ["batch.after_look", "batch.after_read"])
def test_a_batch_in_hand_is_undone_by_a_pause(host_of: HostOf, point: str) -> None:
    """Once `pause` has returned, a batch that began before it leaves nothing behind."""
    domain = make()
    host, other = host_of(domain), host_of(domain)
    append(host)

    with faults.planned({point: Action(lambda: other.pause("ledger"))}):
        host.catch_up()

    assert (counted(host, domain), state_of(host)) == (0, "paused")


def test_a_paused_projector_is_rebuilt_and_stays_paused(host_of: HostOf) -> None:
    """A rebuild of a paused projector swaps tables that hold the same, and leaves it paused."""
    domain = make()
    host = host_of(domain)
    append(host)
    host.catch_up()
    host.pause("ledger")
    append(host)

    rebuilt = host.rebuild("ledger")

    assert rebuilt.is_same
    host.catch_up()
    assert (counted(host, domain), state_of(host)) == (3, "paused")


def test_no_job_is_started_while_pulse_is_paused(host_of: HostOf) -> None:
    """With its queue paused Pulse decides nothing; resumed, it does what was asked for."""
    domain = make()
    ran: list[str] = []

    @domain.job()
    def work(job: Job, services: ServiceRegistry) -> None:  # noqa: ARG001 - its shape
        ran.append(job.entity)

    host = host_of(domain)
    host.pause("pulse")
    host.append(work.request(entity="e"))
    host.catch_up(jobs=True)
    assert ran == []

    host.resume("pulse")
    host.catch_up(jobs=True)

    assert ran == ["e"]
