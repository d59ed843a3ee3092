"""What whoever watches wants to know at any time, for Prometheus.

Every metric is read from the database when it is asked for. So any process that is scraped tells
the truth, also of projectors that another one moves, and a projector whose runner is dead falls
behind here as well. A look takes no lock and a few statements, however many domains there are and
however long the log is. Nothing is counted here: what a process has counted dies with it.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from qntx_es.database import Database
from qntx_es.errors import AxTimeout, DatabaseUnavailable, MissingExtra, QntxError
from qntx_es.host import Host
from qntx_es.inbox import waiting_since
from qntx_es.projections.proofs import Proofs
from qntx_es.projections.standing import STATES, Standing, standings
from qntx_es.tables import attestations

try:
    from prometheus_client import generate_latest
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.metrics_core import Metric
except ModuleNotFoundError as error:
    raise MissingExtra("prometheus") from error

# Several who scrape one process, or ask in vain, are given the same answer for so long.
CACHE_SECONDS = 1.0
# Prometheus gives up after ten, and would not hear why.
SCRAPE_SECONDS = 5.0
OF_PROJECTION = ("domain", "version")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gauge:
    """One metric: what it is called, what it tells, and by which labels."""

    name: str
    told: str
    labels: tuple[str, ...] = OF_PROJECTION


UP = Gauge("qntx_up", "1 if the database could be read, else 0, and then nothing else is told", ())
HEAD = Gauge("qntx_log_head_position", "The largest position of the log", ())
INBOX_ROWS = Gauge("qntx_log_inbox_rows", "Attestations that are committed, without position", ())
INBOX_OLDEST = Gauge(
    "qntx_log_inbox_oldest_seconds",
    "Since the oldest of these was said; where no id of theirs tells, since the log last grew",
    (),
)
CURSOR = Gauge("qntx_projection_cursor_position", "Up to where the projector has come")
LAG = Gauge("qntx_projection_lag_attestations", "Head less cursor")
LAG_SECONDS = Gauge("qntx_projection_lag_seconds", "The age of the first that is unread; else 0")
STATE = Gauge(
    "qntx_projection_state",
    "1 for the state the projector is in, 0 for all others",
    (*OF_PROJECTION, "state"),
)
HELD = Gauge("qntx_projection_held", "1 if a running host holds all of the projector, else 0")
PARKED = Gauge("qntx_projection_parked_entities", "Entities that wait to be retried")
DIFFERENCES = Gauge(
    "qntx_projection_differences",
    "Tables of entities in which the scrubber found other rows than the log makes",
)
VERIFIED = Gauge(
    "qntx_projection_verified_position", "Where the rows were last verified, or rebuilt"
)
VERIFIED_SAME = Gauge(
    "qntx_projection_verified_same", "1 if they were then what the log makes, else 0"
)
REBUILD = Gauge(
    "qntx_projection_rebuild_ratio", "How much a rebuild or verify that runs has filled, 0 to 1"
)
GAUGES = (
    UP,
    HEAD,
    INBOX_ROWS,
    INBOX_OLDEST,
    CURSOR,
    LAG,
    LAG_SECONDS,
    STATE,
    HELD,
    PARKED,
    DIFFERENCES,
    VERIFIED,
    VERIFIED_SAME,
    REBUILD,
)


class Metrics:
    """The metrics of a host's database, as a collector: `REGISTRY.register(Metrics(host))`.

    Registering opens nothing. A scrape never raises: where the database cannot be read within
    5 s, `qntx_up` is 0. An answer is kept for 1 s by `clock`, which gives seconds. Without the
    extra `prometheus` importing this module raises `MissingExtra`.
    """

    def __init__(self, host: Host, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._clock = clock
        self._proofs = Proofs()
        self._looking = Lock()
        self._kept: list[Metric] = []
        self._looked_at: float | None = None
        self._is_away = False

    def describe(self) -> Iterable[Metric]:
        """Return every metric, without a value."""
        return _families(())

    def collect(self) -> Iterable[Metric]:
        """Return every metric as the database has it now, or had it a second ago."""
        with self._looking:
            at = self._looked_at
            if at is None or self._clock() - at >= CACHE_SECONDS:
                self._kept = _families(self._samples())
                self._looked_at = self._clock()
            return self._kept

    def exposition(self) -> str:
        """Return what a scrape gives, in Prometheus' text format."""
        return generate_latest(self).decode()

    def _samples(self) -> list["Sample"]:
        try:
            found = self._read()
        except (QntxError, DBAPIError) as error:
            if not self._is_away:  # once, and not at each scrape
                logger.warning("there are no metrics: %s", error)
            self._is_away = True
            return [Sample(UP, 0)]
        self._is_away = False
        return [Sample(UP, 1), *found]

    def _read(self) -> list["Sample"]:
        database = self._host.database
        database.check()
        try:
            return self._read_within(database)
        except AxTimeout as error:
            told = f"{database.name} did not answer within {SCRAPE_SECONDS:g} s"
            raise DatabaseUnavailable(told) from error

    def _read_within(self, database: Database) -> list["Sample"]:
        with database.limited(SCRAPE_SECONDS) as connection:
            now = database.now(connection)
            found = standings(connection, self._host.domains, now)
            last = connection.execute(_LAST).one_or_none()
            # Lags and head of one moment, so that head less cursor is the lag that is told.
            head = found[0].head if found else (last.position if last else 0)
            proofs = self._proofs.look(connection, head)
            samples = [Sample(HEAD, head)]
            if database.is_sqlite:
                samples += [Sample(INBOX_ROWS, 0), Sample(INBOX_OLDEST, 0.0)]
            else:
                samples += _of_inbox(connection, now, last.recorded_at if last else now)
        for one in found:
            labels = (one.name, str(one.version))
            samples += (Sample(gauge, value, labels) for gauge, value in _of_standing(one))
            samples += (
                Sample(STATE, int(one.state == state), (*labels, state)) for state in STATES
            )
            if (proof := proofs.get(one.name)) is not None:
                samples.append(Sample(VERIFIED, proof.position, labels))
                samples.append(Sample(VERIFIED_SAME, int(proof.is_same), labels))
        return samples


@dataclass(frozen=True, slots=True)
class Sample:
    """What one metric is for some values of its labels."""

    gauge: Gauge
    value: float
    labels: tuple[str, ...] = ()


def _of_standing(one: Standing) -> Iterator[tuple[Gauge, float]]:
    yield CURSOR, one.position
    yield LAG, one.lag
    yield LAG_SECONDS, one.lag_seconds
    yield HELD, int(one.is_held)
    yield PARKED, one.parked
    yield DIFFERENCES, one.differences
    if one.rebuilt is not None:
        yield REBUILD, one.rebuilt


def _of_inbox(connection: Connection, now: int, last: int) -> list[Sample]:
    count, said_at = waiting_since(connection)
    since = last if said_at is None else said_at
    seconds = max(0, now - since) / 1_000_000 if count else 0.0
    return [Sample(INBOX_ROWS, count), Sample(INBOX_OLDEST, seconds)]


def _families(samples: Iterable[Sample]) -> list[Metric]:
    families = {one: GaugeMetricFamily(one.name, one.told, labels=one.labels) for one in GAUGES}
    for sample in samples:
        families[sample.gauge].add_metric(sample.labels, sample.value)
    return list(families.values())


_LAST = (
    select(attestations.c.position, attestations.c.recorded_at)
    .order_by(attestations.c.position.desc())
    .limit(1)
)
