"""Clocks: declared once, fired once, whichever host looks first, and never for nothing."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from qntx_es import Attestation, Domain, Host, Payload, QntxError, ReadRows
from qntx_es.pulse.schedules import Ticker, last_due

SECOND = 1_000_000_000
NOON = datetime(2026, 1, 4, 12, tzinfo=UTC)


class Ticked(Payload, context="ticked"):
    """What a schedule says."""

    due: datetime


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, at: datetime = NOON) -> None:
        self.at = at

    def __call__(self) -> int:
        """Return nanoseconds since 1970."""
        return (self.at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1_000


def scheduled(step: timedelta) -> Domain:
    """Make a domain that says something every so often."""
    domain = Domain("code", emits=("ticked",))

    @domain.every(step)
    def tick(due: datetime, rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001 - its shape
        yield domain.attest(Ticked(due=due), entity="code")

    return domain


def ticker_of(host: Host) -> Ticker:
    """Return one more ticker of this host."""
    return host._ticker()  # noqa: SLF001 - one look at the clock is not the host's face


@pytest.fixture
def clock() -> Clock:
    """Hand in a clock."""
    return Clock()


@pytest.fixture
def host_at(sqlite_url: str, clock: Clock) -> Iterator[Callable[[Domain], Host]]:
    """Make hosts over one SQLite database whose clock is ours."""
    hosts: list[Host] = []

    def make(domain: Domain) -> Host:
        hosts.append(Host(sqlite_url, [domain], clock=clock))
        hosts[-1].upgrade()
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def contexts(host: Host) -> list[str]:
    """Return the contexts of the whole log, in order."""
    return [one.context for one in host.log.read()]


def test_a_schedule_is_declared_then_fires_once_over_two_hosts(
    clock: Clock, host_at: Callable[[Domain], Host]
) -> None:
    """Whoever looks first states the fire; what follows from it is said exactly once."""
    hosts = [host_at(scheduled(timedelta(hours=6))) for _ in range(2)]
    for host in hosts:
        host.catch_up(jobs=True)
    assert contexts(hosts[0]) == ["pulse.schedule_declared"]

    clock.at += timedelta(hours=7)
    for host in hosts * 2:
        host.catch_up(jobs=True)

    declared, fired, started, ticked = hosts[1].log.read()
    assert [declared.context, fired.context, started.context, ticked.context] == [
        "pulse.schedule_declared", "pulse.schedule_fired", "qntx.derive_started", "ticked",
    ]  # fmt: skip
    due = NOON + timedelta(hours=6)
    assert datetime.fromisoformat(fired.payload["due_at"]) == due
    assert datetime.fromisoformat(ticked.payload["due"]) == due
    assert (ticked.caused_by, fired.entity) == (fired.id, "code.tick")


def test_nothing_is_said_while_nothing_is_due(
    clock: Clock, host_at: Callable[[Domain], Host]
) -> None:
    """Between two due times any number of looks appends nothing."""
    host = host_at(scheduled(timedelta(hours=6)))
    host.catch_up(jobs=True)

    for _ in range(10):
        clock.at += timedelta(minutes=30)
        host.catch_up(jobs=True)

    assert contexts(host) == ["pulse.schedule_declared"]


def test_of_many_missed_times_the_latest_fires(
    clock: Clock, host_at: Callable[[Domain], Host]
) -> None:
    """After a week of silence one fire, for the last due time, is enough."""
    host = host_at(scheduled(timedelta(hours=6)))
    host.catch_up(jobs=True)

    clock.at += timedelta(days=7, hours=1)
    host.catch_up(jobs=True)

    (ticked,) = host.ax(contexts="ticked")
    assert datetime.fromisoformat(ticked.payload["due"]) == NOON + timedelta(days=7)


def test_a_schedule_does_not_look_back_behind_its_declaration(
    host_at: Callable[[Domain], Host],
) -> None:
    """The time at which it is declared is past: the next one is the first to fire."""
    host = host_at(scheduled(timedelta(hours=6)))

    host.catch_up(jobs=True)
    host.catch_up(jobs=True)

    assert contexts(host) == ["pulse.schedule_declared"]


def test_a_clock_set_back_fires_nothing_twice(
    clock: Clock, host_at: Callable[[Domain], Host]
) -> None:
    """A due time fires once, though the clock comes by it again."""
    host = host_at(scheduled(timedelta(hours=1)))
    host.catch_up(jobs=True)
    clock.at += timedelta(hours=2, minutes=1)
    host.catch_up(jobs=True)

    for _ in range(5):
        clock.at -= timedelta(minutes=30)
        host.catch_up(jobs=True)
    clock.at = NOON + timedelta(hours=2, minutes=2)
    host.catch_up(jobs=True)

    assert contexts(host).count("pulse.schedule_fired") == 1


def test_a_changed_step_is_declared_anew(clock: Clock, host_at: Callable[[Domain], Host]) -> None:
    """A new step counts from its declaration and then fires at its own times."""
    host_at(scheduled(timedelta(hours=6))).catch_up(jobs=True)
    host = host_at(scheduled(timedelta(hours=1)))

    host.catch_up(jobs=True)
    clock.at += timedelta(hours=1)
    host.catch_up(jobs=True)

    assert contexts(host) == [
        "pulse.schedule_declared", "pulse.schedule_declared", "pulse.schedule_fired",
        "qntx.derive_started", "ticked",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "step",
    [timedelta(seconds=1), timedelta(seconds=1.5), timedelta(days=400), timedelta(weeks=9e4)],
)
def test_any_step_that_is_accepted_is_declared_once(
    clock: Clock, host_at: Callable[[Domain], Host], step: timedelta
) -> None:
    """A step is refused when the domain is taken up, or it is declared once and then fires."""
    try:
        host = host_at(scheduled(step))
    except QntxError:
        return
    ticker = ticker_of(host)

    said = [ticker.tick() for _ in range(3)]

    assert said == [1, 0, 0]
    clock.at += step
    assert [ticker.tick() for _ in range(2)] == [1, 0]


def test_schedules_work_on_both_databases(url: str) -> None:
    """Under the database's own clock a schedule of a second comes round."""
    host = Host(url, [scheduled(timedelta(seconds=1))])
    host.upgrade()
    ticker = ticker_of(host)
    assert ticker.tick() == 1

    with host.running():
        fired: list[object] = []
        for _ in range(600):
            fired = list(host.ax(contexts="ticked"))
            if fired:
                break
            host._stopping.wait(0.02)  # noqa: SLF001 - a pause that ends with the host

    assert fired
    fires = host.ax(contexts="pulse.schedule_fired")
    assert len({one.payload["due_at"] for one in fires}) == len(fires)
    assert contexts(host).count("pulse.schedule_declared") == 1
    host.close()


def test_a_rebuild_keeps_the_schedules(clock: Clock, host_at: Callable[[Domain], Host]) -> None:
    """What was due last survives a rebuild of the queue, and nothing fires again."""
    host = host_at(scheduled(timedelta(hours=1)))
    host.catch_up(jobs=True)
    clock.at += timedelta(hours=1)
    host.catch_up(jobs=True)
    before = contexts(host)

    assert host.rebuild("pulse").is_same
    assert host.rebuild("code").is_same
    host.catch_up(jobs=True)

    assert contexts(host) == [*before, "qntx.rebuilt", "qntx.rebuilt"]


def test_due_times_are_counted_from_1970() -> None:
    """The last due time is a multiple of the step since 1970, at or before now."""
    for step in (timedelta(seconds=1), timedelta(hours=6), timedelta(days=3)):
        due = last_due(NOON + timedelta(seconds=0.5), step)
        assert (due - datetime(1970, 1, 1, tzinfo=UTC)) % step == timedelta(0)
        assert timedelta(0) <= NOON + timedelta(seconds=0.5) - due < step
    assert last_due(NOON, timedelta(hours=6)) == NOON
