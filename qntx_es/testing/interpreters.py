"""The same log, folded by interpreters that hash differently.

The order of a set cannot be seen within one process: a hundred examples agree, and the next process
disagrees. So one interpreter is kept for each hash seed, which imports the domain and nothing else
and forks a child for every replay (`forked.py` is its program). What a module keeps is then always
as just imported.

An interpreter reads from a socket of which we hold the other end, and the kernel closes that end
however we go: then it ends, and its child with it. A domain that cannot be found by name, or a
platform without fork, is `ReplayNotRun`, which is no proof of anything.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any, Self

from qntx_es.database import Database
from qntx_es.domain import Domain
from qntx_es.errors import QntxError
from qntx_es.folds import Fold
from qntx_es.projections.digest import Digest
from qntx_es.projections.fingerprint import fingerprint
from qntx_es.testing.frames import read_frame, write_frame

SEEDS = (0, 1, 2)
REPLAY_SECONDS_MAX = 60.0
CLOSE_SECONDS_MAX = 5.0
SAID_MAX = 4_096


class ReplayNotRun(QntxError):
    """A replay in another interpreter did not run, so it proves nothing."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a fold stopped: by which error, where, in which handler. Only the message may differ."""

    error: str
    position: int
    handler: str
    message: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Touch:
    """What a handler reached for beside its arguments: `open` a file, or `connect` somewhere."""

    handler: str
    verb: str
    target: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one interpreter made of a log: where equal, rows and derived attestations are.

    `rows` (by table, each column as Python spells it) and `said` (the derived attestations by id)
    are there on request.
    """

    tables: Mapping[str, Digest]
    derived: Digest
    failure: Failure | None
    touches: tuple[Touch, ...] = field(compare=False)
    rows: Mapping[str, tuple[Mapping[str, str], ...]] = field(compare=False)
    said: Mapping[str, str] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Parting:
    """Where interpreters part: at which attestation, and in which tables.

    `replays` hold the rows of each hash seed right behind it.
    """

    position: int
    tables: tuple[str, ...]
    replays: Mapping[int, Replayed]


class Interpreters:
    """Interpreters by hash seed, started with the first replay; whoever makes them closes them."""

    def __init__(
        self, seeds: Sequence[int] = SEEDS, *, seconds_max: float = REPLAY_SECONDS_MAX
    ) -> None:
        self._seeds = tuple(seeds)
        self._seconds_max = seconds_max
        self._running: dict[int, _Interpreter] = {}
        self._alone = threading.Lock()

    def replay(
        self,
        domain: Domain,
        log: bytes,
        *,
        until: int | None = None,
        environment: Mapping[str, str] | None = None,
        is_full: bool = False,
    ) -> dict[int, Replayed]:
        """Fold an export of a log by every interpreter, up to a position, and return what came.

        What the domain derives is heard and not appended. `environment` are variables that are set
        meanwhile: `TZ` and the locale take effect. With `is_full` rows and derived attestations
        come along. Raises `ReplayNotRun`.
        """
        asked = {
            "domain": address_of(domain),
            "until": until,
            "environment": dict(environment or {}),
            "is_full": is_full,
            "seconds_max": self._seconds_max,
        }
        with self._alone:
            running = self._started()
            try:
                for one in running.values():
                    one.ask(asked, log)
                answers = {seed: one.answer() for seed, one in running.items()}
            except BaseException:
                self.close()  # or what is still to be answered would answer the next question
                raise
        return {seed: _replayed(answer) for seed, answer in answers.items()}

    def parting(
        self, domain: Domain, log: bytes, *, environment: Mapping[str, str] | None = None
    ) -> Parting | None:
        """Return the first position and the tables at which they part, or None where they agree.

        It is found by bisecting, so where rows differ and then agree again it is one of them.
        Raises `ReplayNotRun`.
        """

        def replay(until: int | None, *, is_full: bool = False) -> dict[int, Replayed]:
            return self.replay(domain, log, until=until, environment=environment, is_full=is_full)

        if _agree(replay(None)):
            return None
        agreed, parted = 0, int(json.loads(log.split(b"\n", 1)[0])["head"])
        while parted - agreed > 1:
            middle = (agreed + parted) // 2
            if _agree(replay(middle)):
                agreed = middle
            else:
                parted = middle
        replays = replay(parted, is_full=True)
        first = next(iter(replays.values()))
        tables = tuple(
            name
            for name in first.tables
            if any(one.tables[name] != first.tables[name] for one in replays.values())
        )
        return Parting(parted, tables, replays)

    def close(self) -> None:
        """End the interpreters, and return when they have ended; the next replay starts others."""
        atexit.unregister(self.close)
        ended, self._running = self._running, {}
        for one in ended.values():
            one.tell_to_end()
        for one in ended.values():
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> "dict[int, _Interpreter]":
        if not hasattr(os, "fork"):
            raise ReplayNotRun("this platform has no fork, and a replay takes one")
        if not self._running:
            atexit.register(self.close)
        for seed in self._seeds:
            if seed not in self._running or self._running[seed].has_ended:
                self._running[seed] = _Interpreter(seed, _empty_tables())
        return self._running


class _Interpreter:
    """One process that forks a child for every replay."""

    def __init__(self, seed: int, tables: bytes) -> None:
        self._seed = seed
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        # Its last words: of what it imports, or of a crash of Python itself.
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this very Python, with our own program
                [sys.executable, "-P", "-m", "qntx_es.testing.forked", str(theirs.fileno())],
                env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": _path()},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                start_new_session=True,  # a Ctrl-C in our terminal is ours alone
            )
        with suppress(ConnectionError):  # the first answer will say it
            write_frame(self._socket, tables)

    @property
    def has_ended(self) -> bool:
        """Tell whether the process is gone."""
        return self._process.poll() is not None

    def ask(self, asked: Mapping[str, Any], log: bytes) -> None:
        """Ask for a replay; the answer must be taken before the next."""
        with suppress(ConnectionError):  # the answer will say it
            write_frame(self._socket, json.dumps(asked).encode())
            write_frame(self._socket, log)

    def answer(self) -> dict[str, Any]:
        """Return the answer. Raises `ReplayNotRun` where the process has ended."""
        frame = read_frame(self._socket)
        if frame is None:
            self.close()
            raise ReplayNotRun(
                f"the interpreter of hash seed {self._seed} has ended with "
                f"{self._process.returncode}: {self._said or 'it said nothing'}"
            )
        answer: dict[str, Any] = json.loads(frame)
        return answer

    def tell_to_end(self) -> None:
        """Close our end of the socket: the process ends when it finds that."""
        self._socket.close()

    def close(self) -> None:
        """End the process, and return when it has ended."""
        self.tell_to_end()
        if self._words.closed:
            return
        if self._owner == os.getpid():
            try:
                self._process.wait(CLOSE_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._words.seek(0)
        self._said = self._words.read()[-SAID_MAX:].decode(errors="replace").strip()
        self._words.close()

    _said = ""


def address_of(domain: Domain) -> dict[str, Any]:
    """Return where another process finds a domain: by the modules of its functions and payloads.

    Raises `ReplayNotRun` where it is no attribute of one of them, nor of their packages.
    """
    modules = _modules_of(domain)
    for name in dict.fromkeys([*modules, *(one.rpartition(".")[0] for one in modules)]):
        module = sys.modules.get(name)
        for attribute, value in vars(module).items() if module else ():
            if value is domain and name != "__main__":
                files = {one: _file_of(sys.modules.get(one)) for one in [*modules, name]}
                return {
                    "module": name,
                    "attribute": attribute,
                    "files": files,
                    "code": code_of(domain),
                }
    raise ReplayNotRun(
        f"domain `{domain.name}` is found in no module, so another process cannot import it: make "
        f"it an attribute of {' or '.join(modules) or 'the module its handlers live in'}"
    )


def code_of(domain: Domain) -> list[str | None]:
    """Return which code a domain is: its fingerprint is of when it was first asked for."""
    names = [one.name for one in domain.projects] + [one.name for one in domain.derives]
    return [fingerprint(domain), *names]


def _modules_of(domain: Domain) -> list[str]:
    functions: list[Callable[..., object]] = [one.function for one in domain.projects]
    functions = [one for one in functions if not isinstance(one, Fold)]
    functions += [one.function for one in domain.derives]
    functions += [one.function for one in domain.upcasters]
    named = [one.__module__ for one in functions]
    named += [one.__module__ for one in domain.payloads.values()]
    return [one for one in dict.fromkeys(named) if one.partition(".")[0] != "qntx_es"]


def _file_of(module: ModuleType | None) -> str | None:
    return getattr(module, "__file__", None)


def _path() -> str:
    return os.pathsep.join(sys.path)


@cache
def _empty_tables() -> bytes:
    """Return a SQLite database that holds the framework's tables and nothing else."""
    empty = Database("sqlite://")
    empty.upgrade()
    with empty.own() as connection:
        tables: bytes = connection.serialize()
    empty.close()
    return tables


def _agree(replays: Mapping[int, Replayed]) -> bool:
    first, *others = replays.values()
    return all(one == first for one in others)


def _replayed(answer: Mapping[str, Any]) -> Replayed:
    if "not_run" in answer:
        raise ReplayNotRun(answer["not_run"])
    failure = answer["failure"]
    return Replayed(
        tables={name: Digest(*one) for name, one in answer["tables"].items()},
        derived=Digest(*answer["derived"]),
        failure=None if failure is None else Failure(**failure),
        touches=tuple(Touch(*one) for one in answer["touches"]),
        rows={name: tuple(rows) for name, rows in answer["rows"].items()},
        said=answer["said"],
    )
