"""Ranges of fresh tables filled by several workers, on whatever executor there is.

A worker may be a process that was started anew, here or elsewhere: it is told by name which domain
to import and which range of which fresh tables to fill, and what it comes to is kept in the
database. So nothing but the task is handed to it, and nothing comes back.
"""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import NoWorkers, RebuildLost
from qntx_es.projections.filling import Filling, Ground, read_fillings
from qntx_es.projections.generations import fresh_tables
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.projections.slices import Slices
from qntx_es.sequencer import Sequencer

LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Task:
    """A range to fill, of which tables, up to where."""

    url: str
    domain: str
    holder: str
    generation: int
    first_slice: int
    last_slice: int
    target: int
    lock_seconds: float


def fill_in_parallel(
    wanted: Iterable[tuple[Filling, int]], executor: Executor, look: Callable[[], None]
) -> None:
    """Let workers fill ranges up to their targets, and call `look` now and then meanwhile.

    Raises what the first worker that fails does, `NoWorkers` where none can be told what to do.
    """
    tasks = [_task_of(filling, target) for filling, target in wanted]
    left = {executor.submit(fill_range, task) for task in tasks}
    try:
        while left:
            done, left = wait(left, timeout=LOOK_SECONDS)
            for one in done:
                one.result()
            look()
    finally:
        for one in left:
            one.cancel()


def fill_range(task: Task) -> None:
    """Fill one range up to its target, or to where a handler fails: what a worker does."""
    domain = imported(task.domain)
    database = Database(task.url, timeout=timedelta(seconds=task.lock_seconds))
    try:
        sequencer = Sequencer(database)
        with database.read() as connection:
            tables = fresh_tables(connection, domain, task.generation)
            ground = Ground(database, sequencer, domain, task.holder, task.generation, tables)
            slices = Slices(task.first_slice, task.last_slice)
            ours = [one for one in read_fillings(connection, ground) if one.slices == slices]
        if not ours:
            raise RebuildLost
        (filling,) = ours
        filling.read_ledger()
        while filling.position < task.target:
            filling.fill(task.target)
    except HandlerFailed:
        return  # whoever gave the task goes on from here, and meets it by himself
    finally:
        database.close()


def reference_of(domain: Domain) -> str:
    """Return where a domain can be imported from, as `module:name`. Raises `NoWorkers`."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is domain:
                return f"{module.__name__}:{name}"
    raise NoWorkers(
        f"workers import `{domain.name}` anew, and no module has it under a name of its own"
    )


def imported(reference: str) -> Domain:
    """Return the domain that a reference is to."""
    module, _, name = reference.partition(":")
    found = getattr(import_module(module), name)
    if not isinstance(found, Domain):
        raise NoWorkers(f"{reference} is no domain here")
    return found


def _task_of(filling: Filling, target: int) -> Task:
    ground = filling.ground
    url = ground.database.engine.url
    if url.database in (None, "", ":memory:") and ground.database.is_sqlite:
        raise NoWorkers("a database in memory is this process's own; workers would not see it")
    return Task(
        url=url.render_as_string(hide_password=False),
        domain=reference_of(ground.domain),
        holder=ground.holder,
        generation=ground.generation,
        first_slice=filling.slices.first,
        last_slice=filling.slices.last,
        target=target,
        lock_seconds=ground.database.timeout_seconds,
    )
