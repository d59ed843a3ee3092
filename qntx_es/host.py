"""The process that runs domains, and the one place where the parts are put together.

A host is a value until it is used: nothing is opened before the first call, there are no globals,
and two hosts live side by side. Explicit domains that cannot be run are refused; of those found by
name, one that fails is left out, named in `failed`, and never stops the others.
"""

import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from multiprocessing import get_context
from typing import Any, Self, TypeVar, overload

from pydantic import ValidationError
from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError

from qntx_es import indexes
from qntx_es.attestation import Attestation, Json, Payload, Recorded, problems_of
from qntx_es.ax import Ax, parse
from qntx_es.catalogue import Context, Found, catalogue, found_in
from qntx_es.columns import GENERATION
from qntx_es.config import Settings, somebody
from qntx_es.database import Database, include_name
from qntx_es.discovery import find_domain
from qntx_es.domain import OPEN, RESERVED, Domain
from qntx_es.errors import (
    DomainRefused,
    ForeignContext,
    InvalidPayload,
    ProjectorOutdated,
    ProjectorPaused,
    ProjectorStopped,
    QntxError,
    UnknownDomain,
    WaitTimeout,
)
from qntx_es.jobs import CancellationRequested
from qntx_es.log import Log
from qntx_es.projections import generations
from qntx_es.projections.arrival import PATIENCE_SECONDS, arrival
from qntx_es.projections.batch import Batches
from qntx_es.projections.comparison import Comparison
from qntx_es.projections.cursor import cursors_of, refuse_regression
from qntx_es.projections.cutting import Cutting
from qntx_es.projections.drift import Drift
from qntx_es.projections.fingerprint import fingerprint
from qntx_es.projections.fresh import RebuildProgress, Report, Workers
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.inline import InlineBatches, InlineProjectors
from qntx_es.projections.interventions import Interventions
from qntx_es.projections.lease import Leases
from qntx_es.projections.ledger import ParkedEntity, read_waiting
from qntx_es.projections.looking_back import LookedBack, look_back
from qntx_es.projections.outdated import Outdated
from qntx_es.projections.own_rows import row_map
from qntx_es.projections.projector import Projector
from qntx_es.projections.rebuild import Rebuild, Rebuilt
from qntx_es.projections.scrub import Scrub, Scrubbed, Scrubber
from qntx_es.projections.slices import Slices
from qntx_es.projections.status import ProjectorStatus, statuses
from qntx_es.projections.supervisor import Supervisor
from qntx_es.projections.travel import Travelled, diff, travel
from qntx_es.projections.verify import FIRST, Verified, verify
from qntx_es.pulse import Declarations, Places, Queue, Ticker, Worker, pulse
from qntx_es.registry import Registry
from qntx_es.sequencer import Grown, Receipt, Sequencer
from qntx_es.services import Store
from qntx_es.sessions import AnySession
from qntx_es.tables import cursors
from qntx_es.transfer import (
    AnyFile,
    Exported,
    Imported,
    Progress,
    export_log,
    import_log,
    reading,
    untold,
    writing,
)
from qntx_es.upcasting import Chain
from qntx_es.waking import Hints, Listener

TICK_SECONDS_MAX = 1.0
LOOK_SECONDS = 0.05

P = TypeVar("P", bound=Payload)

logger = logging.getLogger(__name__)


class Host:
    """Runs `domains`, given as values or found by name, over one database.

    `url_or_engine` is a SQLite file (`sqlite:///qntx.db`), PostgreSQL, or a SQLAlchemy Engine.
    `clock` gives nanoseconds since 1970 and is SQLite's clock. Raises `DomainRefused` for a domain
    value that cannot be run, `UnsupportedDatabase` and `MissingExtra`.
    """

    def __init__(
        self,
        url_or_engine: str | Engine,
        domains: Iterable[Domain | str] = (),
        *,
        settings: Settings | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.settings = settings or Settings()
        self.failed: dict[str, QntxError] = {}
        self._found_by_name: set[str] = set()
        self.domains: dict[str, Domain] = {pulse.name: pulse}
        for given in domains:
            self._take_up(given)
        wait = timedelta(seconds=self.settings.lock_seconds)
        patience = timedelta(seconds=self.settings.lease_seconds)
        self.database = Database(url_or_engine, clock=clock, timeout=wait, patience=patience)
        self._sequencer = Sequencer(self.database)
        self._sequencer.grown = self._tell
        self._hints = Hints(self.database)
        self.log = Log(self.database, self._sequencer, seconds=self.settings.ax_seconds)
        self._stopping = threading.Event()
        self._told = threading.Event()
        self._moved = threading.Condition()
        self._supervisor: Supervisor | None = None
        self._is_ready = False
        self._setting_up = threading.Lock()

    # What people say and ask.

    @overload
    def append(
        self,
        attestations: Attestation,
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
        session: AnySession | None = None,
    ) -> Receipt: ...
    @overload
    def append(
        self,
        attestations: Iterable[Attestation],
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
        session: AnySession | None = None,
    ) -> list[Receipt]: ...
    def append(
        self,
        attestations: Attestation | Iterable[Attestation],
        *,
        unless: Ax | Sequence[Ax] | None = None,
        after: int | None = None,
        expected_version: int | Mapping[str, int] | None = None,
        session: AnySession | None = None,
    ) -> Receipt | list[Receipt]:
        """Append one or many, all or none, and return a receipt for each, in order.

        A payload is held against the class of the domain that emits its context. `unless`,
        `after` and `expected_version` are conditions, and `session` a transaction of the
        caller's, as `Log.append` has them. Raises `InvalidPayload`, `ForeignContext`, and what
        `Log.append` raises.
        """
        said = [attestations] if isinstance(attestations, Attestation) else list(attestations)
        for attestation in said:
            self._check(attestation)
        self.get_ready()
        receipts = self.log.append(
            said, unless=unless, after=after, expected_version=expected_version, session=session
        )
        return receipts[0] if isinstance(attestations, Attestation) else receipts

    def ax(
        self,
        ax: Ax | str | None = None,
        *,
        as_of: datetime | None = None,
        **parts: Any,  # noqa: ANN401 - the parts of an Ax
    ) -> list[Recorded[Json]]:
        """Return what is asked for, in the order of positions: `host.ax(contexts="commit")`.

        A text, such as `host.ax("github.com/* is commit where files > 3 limit 10")`, is read with
        its times relative to `as_of`, else to now. Raises `AxError`.
        """
        self.get_ready()
        if isinstance(ax, str):
            ax = parse(ax, as_of=as_of)
        return self.log.ax(Ax(**parts) if ax is None else ax)

    @overload
    def latest(self, context: str, entity: str) -> Recorded[Json] | None: ...
    @overload
    def latest(self, context: type[P], entity: str) -> Recorded[P] | None: ...
    def latest(self, context: str | type[P], entity: str) -> Recorded[Json] | Recorded[P] | None:
        """Return the newest statement about an entity in a context, or None.

        A payload class stands for its context, and its payload is read as that class: lifted, where
        a domain of this host has upcasters for it.
        """
        self.get_ready()
        if isinstance(context, str):
            return self.log.latest(context, entity)
        found = self.log.latest(context.context, entity)
        if found is None:
            return None
        owner = next((one for one in self.domains.values() if one.lifts(context)), None)
        chain = Chain(context) if owner is None else owner.chain(context)
        return Recorded(found.row, chain.decode_of(found.schema_version))

    def wait_for(
        self,
        position: int,
        name: str,
        timeout: timedelta | float = timedelta(seconds=10),
        *,
        entity: str | None = None,
    ) -> None:
        """Return once the domain's rows hold `position`; with an `entity`, once those of that do.

        Raises `WaitTimeout` and `UnknownDomain`; at once `ProjectorPaused`, `ProjectorOutdated` and
        `EntityParked`; and soon `ProjectorStopped`, and `ProjectorUnowned` where no host runs it.
        """
        domain = self.domain(name)
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = time.monotonic() + seconds
        stood_at, since, is_told = -1, 0.0, False
        while True:
            with self.database.read() as connection:
                seen = arrival(connection, domain, position, entity)
            if seen.refused is not None:
                raise seen.refused
            if seen.reached >= position:
                return
            if not is_told:
                # Whoever has nothing to do is not in a hurry, unless it is asked for.
                self._tell(frozenset(domain.payloads) or None)
                is_told = True
            now = time.monotonic()
            if seen.stands is None or seen.reached != stood_at:
                stood_at, since = seen.reached, now
            elif now - since > PATIENCE_SECONDS:
                raise seen.stands
            if now >= deadline:
                raise WaitTimeout(
                    f"`{name}` is at {seen.reached} and did not reach {position} in {seconds:g} s: "
                    f"{seen.stands or f'`qntx-es projections status {name}` says why'}"
                )
            with self._moved:
                self._moved.wait(min(deadline - now, LOOK_SECONDS))

    # What runs.

    def upgrade(self) -> None:
        """Make or upgrade the framework's tables, those of domains seen first, and indexes."""
        self.database.upgrade()
        self._declare()
        self._make_indexes()

    def catch_up(self, *, jobs: bool = False) -> None:
        """Run every projector to the head, until nothing derived is left; with `jobs` those too.

        One that is paused is passed over, and what is outdated is rebuilt if it says so.
        Schedules that are due fire, and due jobs run in the calling thread. Raises
        `ProjectorStopped` where a handler fails.
        """
        self.get_ready()
        self._outdated().rebuild_found()
        worker = self._worker() if jobs else None
        ticker = self._ticker() if jobs else None
        if jobs:
            self._declarations().state(self.log, is_whole=False)
        while True:
            self._catch_up_projectors()
            attempts = worker.run_due() if worker else 0
            fires = ticker.tick() if ticker else 0
            if not attempts and not fires:
                return

    def rebuild(  # noqa: PLR0913 - one keyword a choice
        self,
        name: str,
        *,
        expect: Iterable[str] = (),
        actor: str | None = None,
        workers: int = 1,
        executor: Executor | None = None,
        progress: Callable[[RebuildProgress], None] | None = None,
    ) -> Rebuilt:
        """Build a domain's tables anew beside the live ones, compare them, and swap.

        Everything goes on meanwhile. `expect` is `["same"]`, or the only columns that may change
        (`["shop_orders.total"]`); by default the rebuilt rows are right, whatever they are. The
        certificate is attested by `actor`, else by who runs this process. Of a domain that is
        `by_entity`, so many `workers` fill ranges side by side: processes of their own, or whatever
        `executor` has. What a crash has left is gone on with, if the code is the same. Raises
        `UnknownDomain`, `InvalidExpectation`, `NoWorkers`, and what `Rebuild.run` raises.
        """
        if workers == 1:
            return self._rebuild(name, expect, actor, progress).run()
        with ExitStack() as stack:
            if executor is None:
                fresh_ones = get_context("spawn")  # a fork would have our threads' locks
                pool = ProcessPoolExecutor(workers, mp_context=fresh_ones)
                executor = stack.enter_context(pool)
            side_by_side = Workers(workers, executor)
            return self._rebuild(name, expect, actor, progress, side_by_side).run()

    def rehearse(
        self,
        name: str,
        *,
        expect: Iterable[str] = (),
        progress: Callable[[RebuildProgress], None] | None = None,
    ) -> Comparison:
        """Do all of a rebuild but the swap, and return what it would change.

        Raises as `rebuild` does.
        """
        return self._rebuild(name, expect, None, progress).rehearse()

    def verify(
        self,
        name: str,
        *,
        first: int = FIRST,
        actor: str | None = None,
        progress: Callable[[RebuildProgress], None] | None = None,
    ) -> Verified:
        """Fold the log again in the dark, and compare with a domain's live rows.

        No row is changed, and everything goes on meanwhile; where all is the same, the model is
        proved. Of each table the `first` rows that differ are told, with the attestation that wrote
        each last. The certificate is attested as that of a rebuild. Raises `UnknownDomain`, and
        what `verify` raises.
        """
        domain = self.domain(name)
        self.get_ready()
        return verify(
            self.database,
            self._sequencer,
            self.log,
            domain,
            actor=actor or somebody(),
            first=first,
            progress=progress,
        )

    def scrub(
        self, name: str, *, entities: Iterable[str] | None = None, count: int = 1
    ) -> list[Drift]:
        """Fold entities of a domain again, by name or `count` at random, and say what drifted.

        A running host does so all the time (`scrub_entities_per_minute`). Raises `UnknownDomain`,
        `ScrubRefused` unless the domain is `by_entity`, and what `Scrub.scrub` raises.
        """
        domain = self.domain(name)
        self.get_ready()
        scrub = self._scrubs.get(name) or Scrub(self.database, self._sequencer, domain)
        wanted = (scrub.some() for _ in range(count)) if entities is None else entities
        return [drift for one in wanted if one is not None for drift in scrub.scrub(one)]

    def look_back(
        self,
        name: str,
        handler: str,
        *,
        since: int,
        actor: str | None = None,
        progress: Callable[[RebuildProgress], None] | None = None,
    ) -> LookedBack:
        """Let one derive handler of a domain speak of the past, from position `since` on.

        Everything goes on meanwhile. What the log has already stays as it is. The handler's new
        start is attested by `actor`, else by who runs this process. Raises `UnknownDomain`, and
        what `look_back` raises.
        """
        domain = self.domain(name)
        self.get_ready()
        return look_back(
            self.database,
            self._sequencer,
            domain,
            handler,
            since=since,
            actor=actor or somebody(),
            progress=progress,
        )

    def travel(
        self,
        name: str,
        *,
        to: int | datetime,
        into: str,
        progress: Callable[[RebuildProgress], None] | None = None,
    ) -> Travelled:
        """Make tables `<into>_…` of what the log says up to a position, or up to a time.

        Live is not touched, and the tables stay until somebody drops them. Raises `UnknownDomain`,
        and what `travel` raises.
        """
        domain = self.domain(name)
        self.get_ready()
        return travel(self.database, self._sequencer, domain, to=to, into=into, progress=progress)

    def diff(self, name: str, prefix: str, *, first: int = FIRST) -> Comparison:
        """Compare a domain's live rows with the tables that `travel` made under a prefix.

        Raises `UnknownDomain`, `PrefixRefused`.
        """
        domain = self.domain(name)
        self.get_ready()
        return diff(self.database, domain, prefix, first=first)

    # What people decide.

    def pause(self, name: str, reason: str | None = None, *, by: str | None = None) -> None:
        """Let a projector stand still, on every host, until it is resumed.

        `by` is the actor who says so; by default the system's user. Raises `UnknownDomain`.
        """
        self._interventions(name, by).pause(reason)

    def resume(self, name: str, *, by: str | None = None) -> None:
        """Let a paused projector go on from where it stands. Raises `UnknownDomain`."""
        self._interventions(name, by).resume()
        self._wake()

    def retry(
        self,
        name: str,
        position: int | None = None,
        *,
        entity: str | None = None,
        by: str | None = None,
    ) -> list[ParkedEntity]:
        """Try again what a projector stopped at or parked; return what failed, and stays parked.

        With a `position` only what failed there, with an `entity` only what waits about it. Raises
        `NothingToRetry`, `ProjectorPaused`, `UnknownDomain`, and `ProjectorStopped` where it stops.
        """
        self.domain(name)
        retried = self._interventions(name, by).retry(position, entity)
        self._projectors[name].catch_up()
        entities = {one.parked_entity for one in retried}
        return [one for one in self.parked(name) if one.entity in entities]

    def skip(self, name: str, position: int, reason: str, *, by: str | None = None) -> bool:
        """Leave out one attestation, in every version; False where it is skipped already.

        Whoever stands before it goes on; an entity that waits for it is to be retried. Raises
        `UnknownDomain`, and `SkipRefused` for what has had its effect.
        """
        said = self._interventions(name, by).skip(position, reason)
        self._wake()
        return said

    def withdraw_skip(self, name: str, position: int, *, by: str | None = None) -> bool:
        """Let an attestation count again; False where the rows have gone on without it.

        Those of the next version will have it. Raises `UnknownDomain`, `SkipRefused`.
        """
        counts = self._interventions(name, by).withdraw_skip(position)
        self._wake()
        return counts

    def cut(self, name: str, into: int, *, by: str | None = None) -> list[str]:
        """Cut the slices of a domain that is `by_entity` into ranges; return them, as `0-511`.

        Running hosts share the ranges among them. Everything goes on meanwhile, and no position is
        lost or met twice. Raises `UnknownDomain`, and what `Cutting.run` raises.
        """
        self.domain(name)
        self.get_ready()
        cutting = Cutting(self.database, self._sequencer, self._projectors[name], by or somebody())
        try:
            ranges = cutting.run(into)
        finally:
            self._projectors[name].look_again()
        self._tell()
        return [str(one) for one in ranges]

    @contextmanager
    def running(self) -> Iterator["Host"]:
        """Run projectors, jobs and schedules in threads until the block ends, then drain."""
        self.get_ready()
        self._make_indexes()
        for domain in self.domains.values():
            fingerprint(domain)  # before somebody edits the files it was read from
        self._stopping.clear()
        supervisor = Supervisor(self._projectors.values(), self._stopping, self._moved)
        worker, ticker = self._worker(), self._ticker()
        threads = [
            threading.Thread(target=self._work, args=(worker,), name="worker"),
            threading.Thread(target=self._tick, args=(ticker,), name="ticker"),
            threading.Thread(target=self._outdated().run, args=(self._wake,), name="outdated"),
            threading.Thread(target=self._scrubber().run, name="scrubber"),
        ]
        listener = Listener(self.database, self._wake, self._stopping, self._hints.sender)
        self._supervisor, self._running_worker = supervisor, worker
        leases = self._lease()
        supervisor.start()
        listener.start()
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            self._tell()  # our own listener hears it too
            listener.join()
            for thread in threads:
                thread.join()
            supervisor.join(self.settings.drain_seconds)
            self._lease_no_more(leases)
            self._tell()  # somebody else may take over at once
            self._hints.close()
            self._supervisor = self._running_worker = None
            self._stopping.clear()

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then finish the batches and jobs in hand.

        It ends by itself where half of its threads run jobs that were given up long ago.
        """
        told = self._told
        told.clear()
        before = {
            number: signal.signal(number, lambda *_: told.set())
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            with self.running():
                told.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[Mapping[str, "Host"]]:  # noqa: ARG002 - ASGI's signature
        """Run with an ASGI application: `Starlette(lifespan=host.lifespan)`."""
        with self.running():
            yield {"qntx": self}

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._hints.close()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # How a log moves.

    def export_log(self, to: AnyFile, *, progress: Progress = untold) -> Exported:
        """Write the whole log, to a path or a binary stream, as `import_log` reads it.

        What waits in the inbox is in it. `progress` is told how many are done, of how many.
        Raises `CorruptAttestation`.
        """
        self.get_ready()
        self._sequencer.run_pass()
        with writing(to) as stream:
            return export_log(self.log, stream, progress)

    def import_log(self, source: AnyFile, *, progress: Progress = untold) -> Imported:
        """Take an export into this log, which must be empty, as the log that it is.

        Projectors follow from its beginning, and derive from its head on. Raises `ImportRefused`,
        and then nothing was appended.
        """
        self.get_ready()
        with reading(source) as stream:
            return import_log(self._sequencer, stream, progress)

    # What is known.

    def domain(self, name: str) -> Domain:
        """Return a domain by name. Raises `UnknownDomain`, or why it could not be taken up."""
        if name in self.failed:
            raise self.failed[name]
        if name not in self.domains:
            raise UnknownDomain(name, self.domains)
        return self.domains[name]

    def statuses(self) -> list[ProjectorStatus]:
        """Return how every projector the database knows stands, by name.

        While this host runs, one that another moves is *standby* here.
        """
        self.database.check()
        with self.database.read() as connection:
            found = statuses(connection, self.domains, self.database.now(connection))
        if self._supervisor is None:
            return found
        return [self._as_seen_here(one) for one in found]

    def include_name(self, name: str | None, kind: str, parents: object = None) -> bool:
        """Tell an application's alembic, as its `include_name`, what is no table of this host's."""
        ours = {table for domain in self.domains.values() for table in domain.tables}
        is_read_model = kind == "table" and GENERATION.sub("", name or "") in ours
        return not is_read_model and include_name(name, kind, parents)

    def _as_seen_here(self, status: ProjectorStatus) -> ProjectorStatus:
        projector = self._projectors.get(status.name)
        is_anothers = projector is not None and status.holder and not projector.is_holding
        return (
            replace(status, state="standby") if is_anothers and status.state == "live" else status
        )

    def parked(self, name: str) -> list[ParkedEntity]:
        """Return whose attestations wait in a projector, from which position on, and why."""
        self.database.check()
        with self.database.read() as connection:
            cursors = cursors_of(connection, name)
            if not cursors:
                return []
            return list(read_waiting(connection, name, cursors[0].version).values())

    def catalogue(self, *, counted: bool = True) -> list[Context]:
        """Return every context that is known here or in the log, what it says, and how often.

        Without `counted` no database is asked. Raises as `Database.check` does.
        """
        found: dict[str, Found] = {}
        if counted:
            self.database.check()
            with self.database.read() as connection:
                found = found_in(connection)
        return catalogue(list(self.domains.values()), found)

    @property
    def scrubbed(self) -> dict[str, Scrubbed]:
        """How many entities this host has scrubbed of each domain, and how many had drifted."""
        return {name: one.counted for name, one in self._scrubs.items()}

    @cached_property
    def contexts(self) -> dict[str, list[Domain]]:
        """Which domains read or declare each context."""
        known: dict[str, list[Domain]] = {}
        for domain in self.domains.values():
            for context in domain.payloads:
                known.setdefault(context, []).append(domain)
        return known

    def _take_up(self, given: Domain | str) -> None:
        try:
            domain = self._sound(given)
        except (DomainRefused, UnknownDomain) as error:
            if not isinstance(given, str):
                raise
            logger.error("%s", error)  # noqa: TRY400 - the message is the remedy
            self.failed[given] = error
        else:
            self.domains[domain.name] = domain
            if isinstance(given, str):
                self._found_by_name.add(given)

    def _sound(self, given: Domain | str) -> Domain:
        domain = find_domain(given).domain if isinstance(given, str) else given
        problems = domain.problems()
        if domain.name in self.domains:
            problems.append("another domain has this name")
        if problems:
            raise DomainRefused(domain.name, problems)
        return domain

    def _check(self, said: Attestation) -> None:
        if said.context.startswith(RESERVED) and said.context not in OPEN:
            raise ForeignContext(f"context `{said.context}` is the framework's own")
        meant = OPEN.get(said.context)
        if meant is not None and said.payload_class is not meant:
            _hold_against(said, Chain(meant))
        if said.payload_class is not None:
            return
        for domain in self.contexts.get(said.context, ()):
            if domain.emits is not None and domain.may_emit(said.context):
                _hold_against(said, domain.chain(domain.payloads[said.context]))

    def get_ready(self) -> None:
        """Check the database, and make what domains seen first need; once, at the first call.

        Raises `LogRegression` where an older log was restored under newer read models.
        """
        if self._is_ready:
            return
        with self._setting_up:
            self.database.check()
            self._sequencer.check()
            self._declare()

    def _declare(self) -> None:
        with self.database.read() as connection:
            refuse_regression(connection)
        for domain in self._undeclared():
            try:
                with self.database.write() as connection:
                    generations.create_live(connection, domain)
            except DBAPIError as error:
                self._leave_out(domain, error)
        self._sequencer.inline = InlineProjectors(
            batches
            for projector in self._projectors.values()
            for runner in projector.runners
            if isinstance(batches := runner.batches, InlineBatches)
        )
        self._is_ready = True

    def _make_indexes(self) -> None:
        for path in {path: None for domain in self.domains.values() for path in domain.indexes}:
            indexes.make(self.database, path)

    def _leave_out(self, domain: Domain, error: DBAPIError) -> None:
        refused = DomainRefused(domain.name, [f"its tables cannot be made: {error.orig}"])
        if domain.name not in self._found_by_name:
            raise refused from error
        logger.error("%s", refused)
        self.failed[domain.name] = refused
        del self.domains[domain.name]

    def _undeclared(self) -> list[Domain]:
        with self.database.read() as connection:
            known = set(connection.execute(select(cursors.c.domain)).scalars())
        return [domain for name, domain in self.domains.items() if name not in known]

    @cached_property
    def _projectors(self) -> dict[str, Projector]:
        return {name: self._projector(domain) for name, domain in self.domains.items()}

    def _projector(self, domain: Domain) -> Projector:
        handlers = Handlers(domain)

        def batches_of(slices: Slices) -> Batches | InlineBatches:
            rows = row_map(domain, lambda table: table)
            parts = (self.database, self._sequencer, handlers, rows)
            return InlineBatches(*parts) if domain.inline else Batches(*parts, slices)

        return Projector(self.database, domain, batches_of, self._stopping)

    def _lease(self) -> Leases:
        """Let every projector move only what this host holds from here on."""
        leases = Leases(
            self.database,
            seconds=self.settings.lease_seconds,
            batch_seconds=self.settings.batch_seconds,
        )
        for projector in self._projectors.values():
            projector.lease_from(leases)
        return leases

    def _lease_no_more(self, leases: Leases) -> None:
        leases.close()
        for projector in self._projectors.values():
            projector.lease_from(None)

    def _catch_up_projectors(self) -> None:
        while True:
            self._sequencer.run_pass()
            before = self.log.head()
            stopped = [error for one in self._projectors.values() if (error := _catch_up(one))]
            if self.log.head() != before:
                continue
            if stopped:
                raise stopped[0]
            return

    def _rebuild(  # noqa: PLR0913 - one keyword a choice
        self,
        name: str,
        expect: Iterable[str],
        actor: str | None,
        progress: Callable[[RebuildProgress], None] | None,
        workers: Workers | None = None,
        *,
        only_outdated: bool = False,
    ) -> Rebuild:
        domain = self.domain(name)
        self.get_ready()
        return Rebuild(
            self.database,
            self._sequencer,
            self.log,
            domain,
            actor=actor or somebody(),
            expect=expect,
            progress=progress,
            stopping=self._stopping,
            workers=workers,
            only_outdated=only_outdated,
        )

    def _outdated(self) -> Outdated:
        def rebuild(name: str, report: Report) -> None:
            self._rebuild(name, (), None, report, only_outdated=True).run()

        return Outdated(self.database, self.domains.values(), rebuild, self._stopping)

    @cached_property
    def _scrubs(self) -> dict[str, Scrub]:
        return {
            name: Scrub(self.database, self._sequencer, domain)
            for name, domain in self.domains.items()
            if domain.by_entity
        }

    def _scrubber(self) -> Scrubber:
        rate = self.settings.scrub_entities_per_minute
        return Scrubber(self._projectors.values(), self._scrubs, rate, self._stopping)

    def _worker(self) -> Worker:
        url = self.database.engine.url
        places = Places(
            url=url.render_as_string(hide_password=False),
            services=self._services,
            registry=Registry,
            threads=self.settings.job_threads,
            lease_seconds=self.settings.lease_seconds,
            drain_seconds=self.settings.drain_seconds,
            secrets=() if url.password is None else (str(url.password),),
        )
        return Worker(self.database, self.log, self.domains.values(), places, self._stopping)

    def _declarations(self) -> Declarations:
        settings = self.settings
        return Declarations(self.domains.values(), settings.queues, settings.budgets)

    @cached_property
    def queue(self) -> Queue:
        """Where code outside any domain asks for jobs."""
        handlers = [job for domain in self.domains.values() for job in domain.jobs]
        return Queue(handlers, self.append)

    def _ticker(self) -> Ticker:
        declared = [one for domain in self.domains.values() for one in domain.schedules]
        return Ticker(self.database, self.log, declared)

    def _services(self, domain: Domain, store: Store) -> Registry:
        return Registry(domain, self.database, store)

    def _work(self, worker: Worker) -> None:
        """Say what the jobs of this host may do, then run them."""
        while not self._stopping.is_set():
            try:
                self._declarations().state(self.log, is_whole=True)
            except QntxError as error:
                logger.warning("jobs wait: %s", error)
                self._stopping.wait(TICK_SECONDS_MAX)
            else:
                break
        worker.run()
        if worker.is_spent.is_set():
            self._told.set()

    def _tick(self, ticker: Ticker) -> None:
        while not self._stopping.is_set():
            try:
                if ticker.tick():
                    self._wake()
            except QntxError as error:
                logger.warning("schedules wait: %s", error)
            self._stopping.wait(TICK_SECONDS_MAX)

    def _tell(self, contexts: Grown = None) -> None:
        """Wake who waits for the log to grow, here and elsewhere."""
        self._wake(contexts)
        self._hints.send(contexts)

    def _interventions(self, name: str, by: str | None) -> Interventions:
        self.get_ready()
        return Interventions(self._sequencer, name, by)

    def _wake(self, contexts: Grown = None) -> None:
        if self._supervisor is not None:
            self._supervisor.wake(contexts)
        is_of_jobs = contexts is None or not contexts.isdisjoint(pulse.payloads)
        if self._running_worker is not None and is_of_jobs:
            self._running_worker.wake.set()
            if contexts is not None and CancellationRequested.context in contexts:
                self._running_worker.look()

    _running_worker: Worker | None = None


def _catch_up(projector: Projector) -> ProjectorStopped | ProjectorOutdated | None:
    """Catch up, and return why it did not: others need not wait for the one that stands."""
    try:
        projector.catch_up()
    except ProjectorPaused:
        return None
    except (ProjectorStopped, ProjectorOutdated) as error:
        return error
    return None


def _hold_against(said: Attestation, chain: Chain[Payload]) -> None:
    if said.schema_version > chain.version or chain.lacks(said.schema_version):
        return  # what newer code says, this code cannot judge
    try:
        chain.decode_of(said.schema_version)(said.text)
    except ValidationError as error:
        raise InvalidPayload(f"{said.context} about {said.entity}: {problems_of(error)}") from error
