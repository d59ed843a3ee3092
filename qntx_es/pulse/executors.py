"""Where handlers run: in threads, on one event loop, or in processes of their own.

A thread cannot be ended from outside, so one that does not listen is left behind: it is a daemon,
its attempt lapses, and its slot is not given to anybody else. A process is spawned, never forked,
since a fork would have the locks of our threads; it finds its handler by import, and hands back
what the handler appended as a buffer.
"""

import asyncio
import importlib
import pickle
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, Protocol

from pydantic import BaseModel

from qntx_es.attestation import Attestation, Recorded, RecordedRow, decode_mapping
from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import JobStopped, QntxError
from qntx_es.jobs import Child, Job, JobHandler
from qntx_es.log import Log
from qntx_es.pulse.attempts import Attempt, JobStore, checked_amount, children_of
from qntx_es.sequencer import Sequencer
from qntx_es.services import ServiceRegistry, Store

KILL_SECONDS = 5.0
LISTEN_SECONDS = 0.05

Services = Callable[[Domain, Store], ServiceRegistry]
# Called once for each attempt, with its result or what it raised.
Done = Callable[[Attempt, object, BaseException | None], None]


class Executor(Protocol):
    """Runs attempts, and says how each ended."""

    def submit(self, attempt: Attempt, done: Done) -> None:
        """Run an attempt, as soon as there is a place for it."""

    def close(self) -> None:
        """Take no more; what runs is left to end by itself."""


def run(attempt: Attempt, services: Services) -> object:
    """Run a handler in this thread, and return what it returns."""
    attempt.running_since = monotonic()
    claimed = attempt.claimed
    handler, job = claimed.handler, claimed.job
    ready = replace(job, payload=handler.checked(job.payload), hands=attempt)
    return handler.function(ready, services(claimed.domain, attempt.store))


def run_here(attempt: Attempt, services: Services, done: Done) -> None:
    """Run a handler in this thread, whatever kind it is of, and say how it ended."""
    try:
        result = run(attempt, services)
        if asyncio.iscoroutine(result):
            result = asyncio.run(result)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a handler is somebody else's code
        done(attempt, None, error)
    else:
        done(attempt, result, None)


class Crew:
    """A pool of daemon threads, made as they are needed."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[Thread] = []

    def do(self, work: Callable[[], None]) -> None:
        """Let the first thread that is free do it."""
        if len(self._threads) < self._size:
            name = f"{self._name}-{len(self._threads)}"
            self._threads.append(Thread(target=self._serve, name=name, daemon=True))
            self._threads[-1].start()
        self._queue.put(work)

    def close(self) -> None:
        """Let each thread end with what it has in hand."""
        for _ in self._threads:
            self._queue.put(None)

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            work()


class Threads:
    """For handlers that wait more than they compute."""

    def __init__(self, services: Services, size: int) -> None:
        self._services = services
        self._crew = Crew("job", size)

    def submit(self, attempt: Attempt, done: Done) -> None:
        """Run an attempt in the first thread that is free."""
        self._crew.do(partial(run_here, attempt, self._services, done))

    def close(self) -> None:
        """Let each thread end with what it has in hand."""
        self._crew.close()


class Loop:
    """One event loop on a thread of its own, for handlers that are coroutines."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, name="job-loop", daemon=True)
        self._thread.start()

    def submit(self, attempt: Attempt, done: Done) -> None:
        """Run an attempt beside the others."""
        asyncio.run_coroutine_threadsafe(self._attend(attempt, done), self._loop)

    def close(self) -> None:
        """End the loop; what still runs on it is cancelled."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    async def _attend(self, attempt: Attempt, done: Done) -> None:
        raised: BaseException | None = None
        try:
            result = run(attempt, self._services)
            if asyncio.iscoroutine(result):
                result = await self._until_stopped(attempt, result)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a handler is somebody else's code
            result, raised = None, error
        # Stating the outcome waits for the database, and must not hold up the others.
        await asyncio.to_thread(done, attempt, result, raised)

    @staticmethod
    async def _until_stopped(attempt: Attempt, handler: Coroutine[Any, Any, object]) -> object:
        task = asyncio.ensure_future(handler)
        while not (await asyncio.wait({task}, timeout=LISTEN_SECONDS))[0]:
            if attempt.is_cancelled():
                task.cancel()
                await asyncio.wait({task}, timeout=KILL_SECONDS)
                break
        if task.cancelled() or not task.done():
            raise JobStopped
        return task.result()


@dataclass(frozen=True, slots=True)
class Order:
    """What a process is told of an attempt; `registry` is a class, which both sides import."""

    module: str
    handler: str
    url: str
    registry: Callable[[Domain, Database, Store], ServiceRegistry]
    request: RecordedRow
    start: str
    token: int
    attempt: int
    deadline_at: datetime | None
    state: object


@dataclass(frozen=True, slots=True)
class Word:
    """What a process says of its attempt; the last word ends it."""

    said: list[Attestation]
    spent: int = 0
    progress: tuple[int, int | None, str | None] | None = None
    advances_to: tuple[object] | None = None
    result: object = None
    error: BaseException | None = None
    is_last: bool = False


class Processes:
    """A process for each attempt, for handlers that hold the interpreter or may take it down."""

    def __init__(
        self,
        url: str,
        registry: Callable[[Domain, Database, Store], ServiceRegistry],
        size: int,
    ) -> None:
        self._crew = Crew("job-process", size)
        self._url = url
        self._registry = registry

    def submit(self, attempt: Attempt, done: Done) -> None:
        """Run an attempt in a process of its own, as soon as there is a place for it."""
        self._crew.do(partial(self._attend, attempt, done))

    def close(self) -> None:
        """Take no more."""
        self._crew.close()

    def _attend(self, attempt: Attempt, done: Done) -> None:
        try:
            result = self._run(attempt)
        except Exception as error:  # noqa: BLE001 - a handler is somebody else's code
            done(attempt, None, error)
        else:
            done(attempt, result, None)

    def _run(self, attempt: Attempt) -> object:
        attempt.running_since = monotonic()
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._order(attempt)), daemon=True)
        process.start()
        theirs.close()
        try:
            while not (word := self._word(ours, attempt, process)).is_last:
                ours.send(_heard(attempt, word))
        finally:
            ours.close()
            process.join(KILL_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        _take(attempt, word)
        if word.error is not None:
            raise word.error
        return word.result

    @staticmethod
    def _word(ours: Connection, attempt: Attempt, process: BaseProcess) -> Word:
        """Return the next word of a process, or end it where its attempt is to stop."""
        try:
            while not ours.poll(LISTEN_SECONDS):
                if attempt.is_cancelled():
                    process.terminate()
                    raise JobStopped
            word: Word = ours.recv()
        except (EOFError, ConnectionResetError):
            process.join(KILL_SECONDS)
            raise ProcessEnded(process.exitcode) from None
        return word

    def _order(self, attempt: Attempt) -> Order:
        claimed = attempt.claimed
        job = claimed.job
        return Order(
            claimed.handler.function.__module__, claimed.handler.name, self._url, self._registry,
            claimed.request.row, claimed.start, job.token, job.attempt, job.deadline_at, job.state,
        )  # fmt: skip


class ProcessEnded(QntxError):
    """The process of a job ended without an answer."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"the job's process ended with exit code {code} and without an answer")


def _take(attempt: Attempt, word: Word) -> None:
    attempt.store.take(word.said)
    attempt.spent += word.spent
    if word.progress is not None:
        attempt.progress(*word.progress)


def _heard(attempt: Attempt, word: Word) -> BaseException | None:
    """Do what a process asks for before its end."""
    _take(attempt, word)
    try:
        if word.advances_to is not None:
            attempt.advance(*word.advances_to)
    except QntxError as error:
        return error
    return None


# In the process itself.


class _FarHands:
    """What an attempt has in its hands in another process than its worker's."""

    def __init__(self, pipe: Connection, store: JobStore, log: Log, job: str) -> None:
        self._pipe = pipe
        self._store = store
        self._log = log
        self._job = job
        self._spent = 0

    def advance(self, state: object) -> None:
        """Let the worker commit what was said so far."""
        self._ask(Word(self.said(), self.paid(), advances_to=(state,)))

    def progress(self, done: int, total: int | None, message: str | None) -> None:
        """Tell the worker how far it is."""
        self._ask(Word([], progress=(done, total, message)))

    def spend(self, millionths: int) -> None:
        """Add to what it has cost."""
        self._spent += checked_amount(millionths)

    def is_cancelled(self) -> bool:
        """Whoever is to stop here is ended from outside."""
        return False

    def check(self) -> None:
        """Whoever is to stop here is ended from outside."""

    def children(self) -> Sequence[Child]:
        """Return what became of the jobs it asked for."""
        return children_of(self._log, self._job)

    def said(self) -> list[Attestation]:
        """Hand over what was said since the last time."""
        return self._store.hand_over()

    def paid(self) -> int:
        """Hand over what was spent since the last time."""
        spent, self._spent = self._spent, 0
        return spent

    def _ask(self, word: Word) -> None:
        self._pipe.send(word)
        error = self._pipe.recv()
        if error is not None:
            raise error


def serve(pipe: Connection, order: Order) -> None:
    """Run one attempt in this process, which has been spawned for it."""
    handler, domain = found(order.module, order.handler)
    database = Database(order.url)
    log = Log(database, Sequencer(database))
    request = Recorded(order.request, decode_mapping)
    store = JobStore(log, domain, request, order.start)
    hands = _FarHands(pipe, store, log, request.id)
    result: object = None
    raised: BaseException | None = None
    try:
        payload = handler.checked(request.payload["payload"])
        job = Job(
            request.id, order.token, order.attempt, handler.name, request.entity, payload,
            order.deadline_at, order.state, hands,
        )  # fmt: skip
        result = handler.function(job, order.registry(domain, database, store))
        if isinstance(result, BaseModel):
            result = result.model_dump(mode="json")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a handler is somebody else's code
        raised = portable(error)
    finally:
        database.close()
    pipe.send(Word(hands.said(), hands.paid(), result=result, error=raised, is_last=True))


def portable(error: BaseException) -> BaseException:
    """Return an error as it can be sent; one that cannot is told in words."""
    text = "".join(traceback.format_exception(error))
    try:
        sent = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes, made here
    except Exception:  # noqa: BLE001 - an error of somebody else's making
        return RuntimeError(text)
    if type(sent) is not type(error):
        return RuntimeError(text)
    error.add_note(f"in the job's process:\n{text}")
    return error


def found(module: str, handler: str) -> tuple[JobHandler[Any], Domain]:
    """Import a module, and return the handler of this name, with its domain."""
    importlib.import_module(module)
    for one in list(sys.modules.values()):
        for value in list(getattr(one, "__dict__", {}).values()):
            for job in value.jobs if isinstance(value, Domain) else ():
                if job.name == handler:
                    return job, value
    raise LookupError(f"importing {module} makes no domain with a job handler `{handler}`")
