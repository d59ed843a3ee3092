"""Which jobs are started next: rooms by count, candidates by index, and a pure choice of them.

All of it is read and decided at the head, under the sequencer's lock, and counted from rows. So
limits are exact over all hosts, and there is nothing to leak: no semaphore, no counter, no leader.
A handler without room is not asked for: what is blocked costs nothing, and never stands at the head
of anything.

The dialects differ here: one shape of the candidates' query for both costs several times as much.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from heapq import heapify, heappop, heapreplace
from typing import Any

from sqlalchemy import (
    CompoundSelect,
    TextualSelect,
    bindparam,
    false,
    func,
    literal,
    select,
    text,
    union_all,
)

from qntx_es.attestation import Attestation, instant
from qntx_es.jobs import JobHandler, Runs
from qntx_es.log import Turn
from qntx_es.pulse.limits import SLOTS, budget_usage, handler_usage, queue_usage, slot_of
from qntx_es.pulse.statements import BudgetExhausted, BudgetRestored, JobStarted
from qntx_es.pulse.tables import budgets, handlers, jobs, pulse, queues, usage
from qntx_es.tables import attestations, cursors

CLAIM_MAX = 200
# How many keys are looked at for one that has room; the next claim goes on where this one ended.
HOPS_MAX = 1_000
# So many handlers in one statement: SQLite joins at most 500 selects, four for each.
LANES_MAX = 100
PRIORITIES = range(4)
NO_LIMIT = 1 << 30

NAMES = "job, requested, handler, key, attempt, priority, run_at, cost, advanced"
FOUND = tuple(jobs.c[name] for name in NAMES.split(", "))


@dataclass(frozen=True, slots=True)
class Offer:
    """A handler that this process runs, and how much of a slot one job of it takes."""

    handler: JobHandler[Any]
    effort: float = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that is due, of a handler that may have room."""

    job: str
    requested: int
    handler: str
    key: str
    attempt: int
    priority: int
    run_at: datetime
    cost: int
    advanced: int | None
    queue: str
    effort: float
    runs: Runs


@dataclass(slots=True)
class Rooms:
    """How many more may be started: of each handler, queue, and key that has a limit.

    `budgets` is what is left of each, in millionths; `slots` what this process can run of each
    kind. `queue_of` and `budget_of` say where each handler belongs.
    """

    slots: dict[Runs, float]
    handlers: dict[str, int] = field(default_factory=dict)
    queues: dict[str, int] = field(default_factory=dict)
    keys: dict[tuple[str, str], int] = field(default_factory=dict)
    budgets: dict[str, int] = field(default_factory=dict)
    queue_of: dict[str, str] = field(default_factory=dict)
    budget_of: dict[str, str] = field(default_factory=dict)
    per_key: dict[str, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)

    def of(self, handler: str, queue: str) -> int:
        """Return how many of a handler may be started, as far as that is known before its keys."""
        of_queue = self.queues.get(queue, NO_LIMIT)
        return max(0, min(self.handlers.get(handler, NO_LIMIT), of_queue))

    def take(self, one: Candidate) -> bool:
        """Take the room that a job needs, or nothing where there is not enough."""
        budget = self.budget_of.get(one.handler)
        key = (one.handler, one.key)
        if (
            self.of(one.handler, one.queue) < 1
            or self.slots.get(one.runs, 0) < min(one.effort, 1.0) - 1e-9
            or self.keys.get(key, 1) < 1
            or (budget is not None and self.budgets.get(budget, NO_LIMIT) < one.cost)
        ):
            return False
        self.slots[one.runs] -= one.effort
        _less(self.handlers, one.handler, 1)
        _less(self.queues, one.queue, 1)
        _less(self.keys, key, 1)
        if budget is not None:
            _less(self.budgets, budget, one.cost)
        return True


def _less(rooms: dict[Any, int], name: object, by: int) -> None:
    if name in rooms:
        rooms[name] -= by


def admit(candidates: Iterable[Candidate], rooms: Rooms, most: int = CLAIM_MAX) -> list[Candidate]:
    """Return which of the candidates are started, and take their room.

    Queues take turns by weight; inside one it goes by priority, time and position.
    """
    lines: dict[str, list[Candidate]] = {}
    for one in sorted(candidates, key=lambda one: (one.priority, one.run_at, one.requested)):
        lines.setdefault(one.queue, []).append(one)
    # Whoever has had the least for its weight is next.
    turns = [(0.0, queue, iter(line)) for queue, line in sorted(lines.items())]
    heapify(turns)
    admitted: list[Candidate] = []
    while turns and len(admitted) < most:
        had, queue, line = turns[0]
        taken = next((one for one in line if rooms.take(one)), None)
        if taken is None:
            heappop(turns)
            continue
        admitted.append(taken)
        heapreplace(turns, (had + 1 / rooms.weights.get(queue, 1), queue, line))
    return admitted


class Claims:
    """Decides starts for one worker, whose handlers these are."""

    def __init__(self, offers: Mapping[str, Offer], *, is_sqlite: bool) -> None:
        self.offers = dict(offers)
        self._is_sqlite = is_sqlite
        # Where the last claim ended among the keys of each handler that has `per_key`.
        self._after: dict[str, str] = {}

    def next_due(self, turn: Turn) -> datetime | None:
        """Return when the earliest job that waits for this worker is due, None without one."""
        names = sorted(self.offers)
        found: list[datetime] = []
        for lane in _portions(names):
            rooms = dict.fromkeys(lane, 1)
            found += [row.run_at for row in self._lanes(turn, rooms, None)]
        return min(found, default=None)

    def starts(
        self,
        turn: Turn,
        worker: str,
        slots: Mapping[Runs, float],
        chosen: list[Candidate],
        most: int,
    ) -> Iterator[Attestation]:
        """Yield a start for each job that is admitted, last, and leave these in `chosen`."""
        rooms, told = rooms_of(turn, self.offers, slots)
        yield from told
        now = instant(turn.now)
        chosen[:] = admit(self._candidates(turn, rooms, now), rooms, most)
        for one in chosen:
            handler = self.offers[one.handler].handler
            options = handler.options
            started = JobStarted(
                worker=worker,
                handler_version=handler.version,
                attempts_allowed=options.retries + 1,
                on_lapse=options.on_lapse,
                deadline_at=None if options.timeout is None else now + options.timeout,
                cost=one.cost,
            )
            yield pulse.attest(started, entity=one.job, caused_by=one.job)

    def _candidates(self, turn: Turn, rooms: Rooms, now: datetime) -> Iterator[Candidate]:
        wide: dict[str, int] = {}
        for name, offer in sorted(self.offers.items()):
            free = rooms.slots.get(offer.handler.options.runs, 0)
            room = min(
                rooms.of(name, rooms.queue_of[name]), CLAIM_MAX, max(1, int(free / offer.effort))
            )
            if room < 1 or free <= 0:
                continue
            if name in rooms.per_key:
                yield from self._by_key(turn, name, rooms, room, now)
            else:
                wide[name] = room
        for lane in _portions(sorted(wide)):
            for row in self._lanes(turn, {name: wide[name] for name in lane}, now):
                yield self._candidate(row, rooms)

    def _candidate(self, row: Any, rooms: Rooms) -> Candidate:  # noqa: ANN401 - a row
        offer = self.offers[row.handler]
        options = offer.handler.options
        return Candidate(
            job=row.job,
            requested=row.requested,
            handler=row.handler,
            key=row.key,
            attempt=row.attempt,
            priority=row.priority,
            run_at=row.run_at,
            cost=options.cost if row.cost is None else row.cost,
            advanced=row.advanced,
            queue=rooms.queue_of.get(row.handler, options.queue),
            effort=offer.effort,
            runs=options.runs,
        )

    def _lanes(self, turn: Turn, rooms: Mapping[str, int], now: datetime | None) -> Sequence[Any]:
        """Return the first jobs of each handler and priority; `now` None: due or not."""
        if not rooms:
            return ()
        names = tuple(rooms)
        if self._is_sqlite:
            values = {f"room{n}": room for n, room in enumerate(rooms.values())}
            statement = _lanes_on_sqlite(names, is_due=now is not None)
            due = {} if now is None else {"now": now}
            return turn.connection.execute(statement, {**values, **due}).all()
        asked = {"handlers": list(names), "rooms": list(rooms.values())}
        if now is None:
            return turn.connection.execute(_LANES, asked).all()
        return turn.connection.execute(_DUE_LANES, {**asked, "now": now}).all()

    def _by_key(
        self, turn: Turn, handler: str, rooms: Rooms, room: int, now: datetime
    ) -> list[Candidate]:
        """Return the first job of each key that has room, of so many keys: keys take turns."""
        keys = self._keys_after(turn, handler, rooms.per_key[handler])
        free = [key for key, has in keys.items() if has > 0]
        found: dict[str, Candidate] = {}
        for first in range(0, len(free), CLAIM_MAX):
            asked = free[first : first + CLAIM_MAX]
            values = {
                "handler": handler,
                "keys": json.dumps(asked) if self._is_sqlite else asked,
                "now": now,
            }
            rows = turn.connection.execute(_FIRST_ON_SQLITE if self._is_sqlite else _FIRST, values)
            found |= {row.key: self._candidate(row, rooms) for row in rows}
            if len(found) >= room:
                break
        served = [key for key in free if key in found][:room]
        # Where nobody was found, the next claim looks at others.
        self._after[handler] = next(reversed(served or list(keys)), "")
        rooms.keys |= {(handler, key): keys[key] for key in served}
        return [found[key] for key in served]

    def _keys_after(self, turn: Turn, handler: str, per_key: int) -> dict[str, int]:
        """Return the keys that wait, from where the last claim ended, and the room of each."""
        keys: dict[str, int] = {}
        for after in dict.fromkeys((self._after.get(handler, ""), "")):
            asked = {"handler": handler, "after": after, "hops": HOPS_MAX}
            for row in turn.connection.execute(_HOPS, asked):
                keys.setdefault(row.key, per_key - row.running)
            if len(keys) >= HOPS_MAX:
                break
        return keys


def rooms_of(
    turn: Turn, offers: Mapping[str, Offer], slots: Mapping[Runs, float]
) -> tuple[Rooms, list[Attestation]]:
    """Return what may be started by all that bounds it, and what is to be told of budgets."""
    declared = {row.handler: row for row in turn.read(_DECLARED)}
    rooms = Rooms(dict(slots))
    for name, offer in offers.items():
        row, options = declared.get(name), offer.handler.options
        rooms.queue_of[name] = options.queue if row is None else row.queue
        per_key = options.per_key if row is None else row.per_key
        if per_key is not None:
            rooms.per_key[name] = per_key
    limits = {name: limit_of(declared.get(name), offer) for name, offer in offers.items()}
    of_queues = {row.queue: row for row in turn.read(select(queues))}
    rooms.weights = {name: row.weight for name, row in of_queues.items()}
    running: dict[str, tuple[int, int]] = {}
    is_bounded = any(one is not None for one in limits.values()) or any(
        row.at_once is not None for row in of_queues.values()
    )
    drawn = {row.budget for row in declared.values() if row.budget is not None}
    if is_bounded or drawn:
        running = {row.handler: (row.count, int(row.cost or 0)) for row in turn.read(_RUNNING)}
    used = _used(turn, declared.values(), of_queues.values())
    for name, limit in limits.items():
        row = declared.get(name)
        if limit is not None:
            rooms.handlers[name] = limit - running.get(name, (0, 0))[0]
        if row is not None and row.rate is not None:
            left = row.rate - used.get(handler_usage(name, row.rate_window), 0)
            rooms.handlers[name] = min(rooms.handlers.get(name, NO_LIMIT), left)
        if row is not None and row.paused_by is not None:
            rooms.handlers[name] = 0
    for name, row in of_queues.items():
        _room_of_queue(rooms, name, row, declared, running, used)
    told = list(_budgets(turn, rooms, declared, running)) if drawn else []
    return rooms, told


def limit_of(row: Any, offer: Offer) -> int | None:  # noqa: ANN401 - a row of pulse_handlers
    """Return a handler's limit as it was declared, else as its code has it."""
    limit: int | None = offer.handler.options.limit if row is None else row.at_once
    return limit


def _room_of_queue(  # noqa: PLR0913, PLR0917 - what a queue's room is made of
    rooms: Rooms,
    name: str,
    row: Any,  # noqa: ANN401 - a row of pulse_queues
    declared: Mapping[str, Any],
    running: Mapping[str, tuple[int, int]],
    used: Mapping[str, int],
) -> None:
    room = NO_LIMIT
    if row.at_once is not None:
        of_queue = {**{one: row.queue for one, row in declared.items()}, **rooms.queue_of}
        busy = sum(n for one, (n, _) in running.items() if of_queue.get(one) == name)
        room = row.at_once - busy
    if row.rate is not None:
        room = min(room, row.rate - used.get(queue_usage(name, row.rate_window), 0))
    if row.paused_by is not None:
        room = 0
    rooms.queues[name] = room


def _used(turn: Turn, of_handlers: Iterable[Any], of_queues: Iterable[Any]) -> dict[str, int]:
    """Return how many starts of each rate lie in its window, the oldest slot whole."""
    since = {
        handler_usage(row.handler, row.rate_window): slot_of(turn.now, row.rate_window) - SLOTS
        for row in of_handlers
        if row.rate is not None
    } | {
        queue_usage(row.queue, row.rate_window): slot_of(turn.now, row.rate_window) - SLOTS
        for row in of_queues
        if row.rate is not None
    }
    return used_since(turn, since)


def used_since(turn: Turn, since: Mapping[str, int]) -> dict[str, int]:
    """Return what was used of each name, from its slot on."""
    if not since:
        return {}
    found: dict[str, int] = {}
    asked = select(usage).where(usage.c.name.in_(sorted(since)))
    for row in turn.read(asked):
        if row.slot >= since[row.name]:
            found[row.name] = found.get(row.name, 0) + row.amount
    return found


def _budgets(
    turn: Turn,
    rooms: Rooms,
    declared: Mapping[str, Any],
    running: Mapping[str, tuple[int, int]],
) -> Iterator[Attestation]:
    """Fill in what is left of each budget; yield what to say where one has run out, or has not."""
    rows = turn.read(select(budgets).where(budgets.c.is_withdrawn == false()))
    names = {row.budget: budget_usage(row.budget, row.window) for row in rows}
    since = {names[row.budget]: slot_of(turn.now, row.window) - SLOTS for row in rows}
    spent_of = used_since(turn, since)
    for row in rows:
        drawing = [name for name, one in declared.items() if one.budget == row.budget]
        reserved = sum(running.get(name, (0, 0))[1] for name in drawing)
        spent = spent_of.get(names[row.budget], 0)
        left = row.amount - spent - reserved
        rooms.budgets[row.budget] = left
        rooms.budget_of.update((name, row.budget) for name in drawing)
        if left <= 0 and not row.is_exhausted:
            said = BudgetExhausted(spent=spent, reserved=reserved)
            yield pulse.attest(said, entity=row.budget)
        elif left > 0 and row.is_exhausted:
            restored = BudgetRestored(spent=spent, reserved=reserved)
            yield pulse.attest(restored, entity=row.budget)


def is_behind(turn: Turn) -> bool:
    """Tell whether the queue's rows lack something that the log says of it."""
    contexts = sorted(pulse.payloads)
    return turn.connection.execute(_UNREAD, {"contexts": contexts}).first() is not None


def _portions(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), LANES_MAX):
        yield names[first : first + LANES_MAX]


@lru_cache(maxsize=64)
def _lanes_on_sqlite(names: tuple[str, ...], *, is_due: bool) -> CompoundSelect[Any]:
    parts = []
    for number, name in enumerate(names):
        for priority in PRIORITIES:
            lane = (
                select(*FOUND)
                .where(jobs.c.status == text("'ready'"), jobs.c.handler == name)
                .where(jobs.c.priority == priority)
                .order_by(jobs.c.run_at, jobs.c.requested)
                .limit(bindparam(f"room{number}"))
            )
            if is_due:
                lane = lane.where(jobs.c.run_at <= bindparam("now", type_=jobs.c.run_at.type))
            parts.append(select(lane.subquery()))
    return union_all(*parts)


def _typed(sql: str) -> TextualSelect:
    """Return a statement whose rows are candidates, with their columns' types."""
    at = bindparam("now", type_=jobs.c.run_at.type)
    statement = text(sql)
    return (statement.bindparams(at) if ":now" in sql else statement).columns(*FOUND)


def _lanes_on_postgresql(condition: str) -> TextualSelect:
    return _typed(
        "SELECT due.* FROM unnest(cast(:handlers AS text[]), cast(:rooms AS int[]))"  # noqa: S608 - no value in it
        " AS lane(handler, room)"
        " CROSS JOIN generate_series(0, 3) AS level(priority)"
        " CROSS JOIN LATERAL ("
        f"SELECT {NAMES} FROM pulse_jobs"
        " WHERE status = 'ready' AND handler = lane.handler AND priority = level.priority"
        f"{condition} ORDER BY run_at, requested LIMIT lane.room) AS due"
    )


def _first_of_keys(keys: str) -> TextualSelect:
    """Ask for the first job that is due of each key: a range of the index for each priority."""
    firsts = ", ".join(
        "(SELECT job FROM pulse_jobs WHERE status = 'ready' AND handler = :handler"  # noqa: S608 - no value in it
        f" AND key = wanted.key AND priority = {priority} AND run_at <= :now"
        " ORDER BY run_at, requested LIMIT 1)"
        for priority in PRIORITIES
    )
    return _typed(
        f"SELECT {NAMES} FROM pulse_jobs"  # noqa: S608 - no value in it
        f" WHERE job IN (SELECT coalesce({firsts}) FROM {keys})"
    )


_LANES = _lanes_on_postgresql("")
_DUE_LANES = _lanes_on_postgresql(" AND run_at <= :now")
_FIRST = _first_of_keys("unnest(cast(:keys AS text[])) AS wanted(key)")
_FIRST_ON_SQLITE = _first_of_keys("(SELECT value AS key FROM json_each(:keys)) AS wanted")

# Keys of one handler by hops of the index: a full one costs one hop, however many wait behind it.
_HOPS = text(
    "WITH RECURSIVE hop(key, n) AS ("
    "SELECT min(key), 1 FROM pulse_jobs"
    " WHERE status = 'ready' AND handler = :handler AND key > :after"
    " UNION ALL SELECT (SELECT min(key) FROM pulse_jobs"
    " WHERE status = 'ready' AND handler = :handler AND key > hop.key), hop.n + 1"
    " FROM hop WHERE hop.key IS NOT NULL AND hop.n < :hops)"
    " SELECT key, (SELECT count(*) FROM pulse_jobs"
    " WHERE status = 'running' AND handler = :handler AND key = hop.key) AS running"
    " FROM hop WHERE key IS NOT NULL ORDER BY key"
)
_DECLARED = select(handlers).where(handlers.c.is_withdrawn == false())
_RUNNING = (
    select(jobs.c.handler, func.count().label("count"), func.sum(jobs.c.cost).label("cost"))
    .where(jobs.c.status == text("'running'"))
    .group_by(jobs.c.handler)
)
_REACHED = select(cursors.c.position).where(cursors.c.domain == pulse.name).scalar_subquery()
_UNREAD = (
    select(literal(1))
    .select_from(attestations)
    .where(attestations.c.position > _REACHED)
    .where(attestations.c.context.in_(bindparam("contexts", expanding=True)))
    .limit(1)
)

__all__ = [
    "Candidate", "Claims", "Offer", "Rooms", "admit", "is_behind", "rooms_of", "used_since",
]  # fmt: skip
