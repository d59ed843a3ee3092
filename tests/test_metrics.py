"""What Prometheus scrapes is what the tables say, and whoever scrapes is in nobody's way."""

import gc
import logging
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import BigInteger, Column, String, Table, event, text, update

from qntx_es import Attestation, Domain, Host, Payload, Recorded, Rows, Settings
from qntx_es.cli.projections import STYLES
from qntx_es.domain import OnFailure
from qntx_es.errors import ProjectorStopped
from qntx_es.metrics import CACHE_SECONDS, GAUGES, Metrics
from qntx_es.projections.standing import STATES
from qntx_es.projections.status import ProjectorStatus
from qntx_es.sequencer import Sequencer

PAGE = (Path(__file__).parents[1] / "docs/watching.md").read_text()
STATEMENTS_MAX = 8
BOUND = 20.0


class Weighed(Payload, context="weighed"):
    """Something was weighed."""

    grams: int


def make(name: str = "scale", *, version: int = 1, on_failure: OnFailure = "stop") -> Domain:
    """Make a domain of independent things, none of which may weigh less than nothing."""
    domain = Domain(name, version=version, by_entity=True, on_failure=on_failure)
    sums = domain.table(
        "sums",
        Column("entity", String, primary_key=True),
        Column("grams", BigInteger, nullable=False, default=0),
    )

    @domain.project(Weighed)
    def weigh(weighed: Recorded[Weighed], rows: Rows) -> None:
        if weighed.payload.grams < 0:
            message = "lighter than nothing"
            raise ValueError(message)
        rows.add(sums, weighed.entity, grams=weighed.payload.grams)

    return domain


def weighed(grams: int = 1, entity: str = "a") -> Attestation:
    """Return a weighing."""
    return Attestation(context="weighed", entity=entity, actor="x", payload={"grams": grams})


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


@dataclass(frozen=True)
class Scraped:
    """A host, and what is scraped of it."""

    host: Host
    clock: Clock
    registry: CollectorRegistry

    def __call__(self, name: str, domain: str | None = None, **labels: str) -> float | None:
        """Return what a metric is by now."""
        self.clock.seconds += CACHE_SECONDS
        if domain is not None:
            labels |= {"domain": domain, "version": labels.get("version", "1")}
        return self.registry.get_sample_value(f"qntx_{name}", labels)

    def state(self, version: str = "1") -> str:
        """Return the one state the projector is in."""
        self.clock.seconds += CACHE_SECONDS
        samples = [
            sample
            for family in self.registry.collect()
            for sample in family.samples
            if family.name == "qntx_projection_state"
            and sample.labels["domain"] == "scale"
            and sample.labels["version"] == version
        ]
        assert {sample.value for sample in samples} == {0, 1}
        (state,) = (sample.labels["state"] for sample in samples if sample.value == 1)
        return state

    def status(self) -> ProjectorStatus:
        """Return how the projector stands."""
        return next(one for one in self.host.statuses() if one.name == "scale")


@pytest.fixture
def scraped_of(url: str) -> Iterator[Callable[..., Scraped]]:
    """Make hosts of domains over one database, each scraped into a registry of its own."""
    with ExitStack() as stack:

        def scrape(*domains: Domain) -> Scraped:
            settings = Settings(scrub_entities_per_minute=0)
            host = stack.enter_context(Host(url, domains or [make()], settings=settings))
            host.upgrade()
            clock, registry = Clock(), CollectorRegistry()
            registry.register(Metrics(host, clock=clock))
            return Scraped(host, clock, registry)

        yield scrape


def table(host: Host) -> Table:
    """Return the table of the domain."""
    return host.domain("scale").tables["scale_sums"]


def test_head_cursor_and_lag_are_told_as_status_tells_them(
    scraped_of: Callable[..., Scraped],
) -> None:
    """Behind by some, and with nothing unread: the numbers are those of the status."""
    scraped = scraped_of()
    host = scraped.host
    host.append([weighed(), weighed()])
    host.catch_up()
    host.append([weighed() for _ in range(3)])
    behind = scraped.status()

    assert scraped("up") == 1
    assert scraped("log_head_position") == behind.head == 5
    assert scraped("projection_cursor_position", "scale") == behind.position == 2
    assert scraped("projection_lag_attestations", "scale") == behind.lag == 3
    lag_seconds = scraped("projection_lag_seconds", "scale")
    assert lag_seconds is not None
    assert behind.lag_seconds <= lag_seconds <= scraped.status().lag_seconds

    host.catch_up()

    assert scraped("projection_lag_attestations", "scale") == 0
    assert scraped("projection_lag_seconds", "scale") == 0


def test_every_state_is_told_as_status_tells_it(scraped_of: Callable[..., Scraped]) -> None:
    """Of all states exactly one is 1: that of the status, whatever becomes of the projector."""
    scraped = scraped_of()
    host = scraped.host
    host.append(weighed())
    host.catch_up()
    seen = [(scraped.state(), scraped.status().state)]
    host.pause("scale")
    seen.append((scraped.state(), scraped.status().state))
    host.resume("scale")
    host.append(weighed(-1))
    with pytest.raises(ProjectorStopped):
        host.catch_up()
    seen.append((scraped.state(), scraped.status().state))
    newer = scraped_of(make(version=2))
    seen.append((newer.state(), newer.status().state))

    told = ["live", "paused", "stopped", "outdated"]
    assert seen == [(one, one) for one in told]
    assert scraped("projection_state", "pulse", state="inline") == 1


def test_parked_entities_are_counted(scraped_of: Callable[..., Scraped]) -> None:
    """Those that wait are as many as the status says."""
    scraped = scraped_of(make(on_failure="park"))
    scraped.host.append([weighed(-1, "a"), weighed(-1, "b"), weighed(1, "c")])
    scraped.host.catch_up()

    assert scraped("projection_parked_entities", "scale") == scraped.status().parked == 2


def test_what_the_scrubber_and_a_verify_found_is_told_until_it_is_mended(
    scraped_of: Callable[..., Scraped],
) -> None:
    """A patched row is a difference, and the last proof says so too, in any process."""
    scraped = scraped_of()
    host, other = scraped.host, scraped_of()
    host.append([weighed(), weighed(entity="b")])
    host.catch_up()
    assert scraped("projection_verified_position", "scale") is None

    with host.database.write() as connection:
        connection.execute(update(table(host)).values(grams=7))
    host.scrub("scale", entities=["a", "b"])
    host.verify("scale")

    for one in (scraped, other):
        assert one("projection_differences", "scale") == len(one.status().drifts) == 2
        assert one.state() == "drifted"
        assert one("projection_verified_position", "scale") == 2
        assert one("projection_verified_same", "scale") == 0

    rebuilt = host.rebuild("scale")

    for one in (scraped, other):
        assert one("projection_differences", "scale") == 0
        assert one("projection_verified_same", "scale") == 1
        assert one("projection_verified_position", "scale") == rebuilt.position


def test_a_rebuild_tells_how_far_it_is(scraped_of: Callable[..., Scraped]) -> None:
    """While fresh tables are filled the ratio is there, and afterwards it is gone."""
    scraped = scraped_of()
    scraped.host.append([weighed() for _ in range(4)])
    scraped.host.catch_up()
    found: list[tuple[str, float | None]] = []

    scraped.host.rebuild(
        "scale",
        progress=lambda _: found.append(
            (scraped.state(), scraped("projection_rebuild_ratio", "scale"))
        ),
    )

    ratios = [ratio for state, ratio in found if state == "rebuilding" and ratio is not None]
    assert ratios
    assert all(0 <= ratio <= 1 for ratio in ratios)
    assert scraped("projection_rebuild_ratio", "scale") is None


def test_who_runs_is_told_by_who_does_not(scraped_of: Callable[..., Scraped]) -> None:
    """A projector is held as long as some host runs it, also where another one is scraped."""
    scraped, other = scraped_of(), scraped_of()
    assert scraped("projection_held", "scale") == 0

    with other.host.running():
        other.host.cut("scale", into=2)
        position = other.host.append(weighed()).position
        other.host.wait_for(position, "scale", BOUND)
        held = scraped("projection_held", "scale")
        lag = scraped("projection_lag_attestations", "scale")

    assert (held, lag) == (1, 0)
    assert scraped("projection_held", "scale") == 0


def test_the_inbox_tells_how_many_wait_and_since_when(postgres_url: str) -> None:
    """What nobody gives a position is counted, and grows older, while the lag is 0."""
    with Host(postgres_url, [make()]) as host:
        host.upgrade()
        scraped = Scraped(host, Clock(), CollectorRegistry())
        scraped.registry.register(Metrics(host, clock=scraped.clock))
        assert (scraped("log_inbox_rows"), scraped("log_inbox_oldest_seconds")) == (0, 0)

        for number in range(3):
            with host.database.write() as connection:
                Sequencer(host.database).drop(connection, [weighed(number)])
        ages = [scraped("log_inbox_oldest_seconds") or 0.0 for _ in range(2)]

        assert scraped("log_inbox_rows") == 3
        assert 0 < ages[0] < ages[1] < BOUND
        assert scraped("projection_lag_attestations", "scale") == 0


def test_ids_without_a_time_are_as_old_as_the_last_append(postgres_url: str) -> None:
    """An id that names no time, and one derived of an old source, are no reason for alarm."""
    with Host(postgres_url, [make()]) as host:
        host.upgrade()
        scraped = Scraped(host, Clock(), CollectorRegistry())
        scraped.registry.register(Metrics(host, clock=scraped.clock))
        host.append(weighed())
        for said in ("order-7", "00000000-0000-8000-8000-000000000000"):
            with host.database.write() as connection:
                one = Attestation(context="weighed", entity="a", actor="x", payload={}, id=said)
                Sequencer(host.database).drop(connection, [one])

        assert scraped("log_inbox_rows") == 2
        age = scraped("log_inbox_oldest_seconds")
        assert age is not None
        assert 0 < age < BOUND


def test_a_scrape_costs_the_same_however_much_there_is(
    scraped_of: Callable[..., Scraped],
) -> None:
    """Many domains, drifts and parks, and a log that lags, take no statement more; nor a lock."""
    domains = [make(), *(make(f"more{number}", on_failure="park") for number in range(6))]
    few, many = scraped_of(), scraped_of(*domains)
    before = statements(few)

    many.host.append([weighed(), *(weighed(1, f"e{number}") for number in range(300))])
    many.host.catch_up()
    many.host.append([weighed() for _ in range(300)])
    with many.host.database.write() as connection:
        connection.execute(update(table(many.host)).values(grams=7))
    many.host.scrub("scale", entities=[f"e{number}" for number in range(30)])
    with few.host.database.write() as connection:
        connection.execute(text("UPDATE qntx_cursors SET token = token + 1"))
        after = statements(many)

    assert len(after) == len(before) <= STATEMENTS_MAX, after
    assert many("projection_differences", "scale") == 30


def statements(scraped: Scraped) -> list[str]:
    """Return what one scrape asks of the database."""
    asked: list[str] = []

    def note(*given: object) -> None:
        asked.append(str(given[2]))

    assert scraped("up") == 1  # a first connection asks more
    event.listen(scraped.host.database.engine, "before_cursor_execute", note)
    assert scraped("up") == 1
    event.remove(scraped.host.database.engine, "before_cursor_execute", note)
    return asked


def test_scrapes_within_a_second_are_one(scraped_of: Callable[..., Scraped]) -> None:
    """A second scraper is given what the first was, until a second has passed."""
    scraped = scraped_of()
    name = "qntx_log_head_position"
    before = scraped.registry.get_sample_value(name)
    scraped.host.append(weighed())
    scraped.clock.seconds += CACHE_SECONDS * 0.9

    kept = scraped.registry.get_sample_value(name)
    scraped.clock.seconds += CACHE_SECONDS * 0.2

    assert (before, kept, scraped.registry.get_sample_value(name)) == (0, 0, 1)


def test_scraping_keeps_nothing(scraped_of: Callable[..., Scraped]) -> None:
    """Many scrapes of a log that grows take the memory of a few."""
    scraped = scraped_of()

    def scrape(times: int) -> int:
        for _ in range(times):
            scraped.host.append(weighed())
            assert scraped("up") == 1
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    scrape(10)
    tracemalloc.start()
    try:
        before = scrape(5)
        after = scrape(40)
    finally:
        tracemalloc.stop()

    assert after - before < 100_000


def test_a_database_that_is_away_is_told_and_logged_once(
    scraped_of: Callable[..., Scraped], caplog: pytest.LogCaptureFixture
) -> None:
    """No scrape raises: `qntx_up` is 0 without anything else, and 1 once it is back."""
    scraped = scraped_of()
    with scraped.host.database.write() as connection:
        connection.execute(text("ALTER TABLE qntx_alembic_version RENAME TO away"))

    gone = [scraped("up") for _ in range(3)]

    assert gone == [0, 0, 0]
    assert scraped("log_head_position") is None
    told = [one for one in caplog.records if one.name == "qntx_es.metrics"]
    assert [one.levelno for one in told] == [logging.WARNING]
    assert "db upgrade" in told[0].message

    with scraped.host.database.write() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO qntx_alembic_version"))
    assert scraped("up") == 1


def test_tables_that_are_broken_do_not_break_a_scrape(scraped_of: Callable[..., Scraped]) -> None:
    """What the database refuses for a reason that has no name is told as its absence."""
    scraped = scraped_of()
    with scraped.host.database.write() as connection:
        connection.execute(text("ALTER TABLE qntx_drifts RENAME TO broken"))

    assert scraped("up") == 0


def test_registering_opens_nothing(tmp_path: Path) -> None:
    """A database that is not there yet is registered, told as away, and not made."""
    with Host(f"sqlite:///{tmp_path / 'none.db'}", [make()]) as host:
        registry = CollectorRegistry()
        registry.register(Metrics(host))

        assert not any(tmp_path.iterdir())
        assert registry.get_sample_value("qntx_up") == 0
        assert not any(tmp_path.iterdir())


def test_a_server_that_is_gone_is_told() -> None:
    """Where nobody listens a scrape ends, with `qntx_up` at 0."""
    with Host("postgresql://nobody@127.0.0.1:1/none", settings=Settings(lock_seconds=0.5)) as host:
        assert "qntx_up 0.0\n" in Metrics(host).exposition()


def test_the_exposition_is_what_prometheus_reads(scraped_of: Callable[..., Scraped]) -> None:
    """The text parses, and holds every metric as a gauge, each series once."""
    scraped = scraped_of()
    scraped.host.append(weighed())
    text_format = Metrics(scraped.host).exposition()

    families = list(text_string_to_metric_families(text_format))

    assert [one.name for one in families] == [one.name for one in GAUGES]
    assert {one.type for one in families} == {"gauge"}
    series = [(s.name, *sorted(s.labels.items())) for one in families for s in one.samples]
    assert len(series) == len(set(series)) > len(GAUGES)


def test_every_metric_is_documented() -> None:
    """The table of the page has each metric with its labels, and none that is not there."""
    rows = re.findall(r"^\| `(qntx_\w+)` \|([^|]*)\| .+ \|$", PAGE, re.MULTILINE)
    documented = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}

    assert documented == {one.name: one.labels for one in GAUGES}
    assert set(re.findall(r"qntx_(?:up|log|projection)\w*", PAGE)) == set(documented)


def test_every_state_is_documented_and_shown() -> None:
    """The page names every state, and `projections list` knows how each looks, and standby."""
    (told,) = re.findall(r"The states are ([^.]+), as `projections list`", PAGE)

    assert re.findall(r"\w+", told.replace(" and ", " ")) == list(STATES)
    assert set(STYLES) == {*STATES, "standby"}


def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    """Every Python block of the page runs, in a folder of its own, and prints metrics."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    script = tmp_path / "watching.py"
    script.write_text("\n".join(blocks))

    ran = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert "qntx_log_head_position 1.0\n" in ran.stdout


def test_without_its_extra_the_error_says_what_to_install() -> None:
    """Importing the module without prometheus-client names the command that installs it."""
    absent = "import sys; sys.modules['prometheus_client'] = None; import qntx_es.metrics"

    ran = subprocess.run(
        [sys.executable, "-c", absent], capture_output=True, text=True, check=False
    )

    assert "MissingExtra: this needs an extra: pip install 'qntx-es[prometheus]'" in ran.stderr
