"""The program of an interpreter: import a domain, and fork a child for every replay of it.

Until it forks no handler is called, so what a domain keeps in its modules is the same for every
child. The tables are there before, in memory, and each child has a copy of its own by the fork.
Clock, chance and the like are held still around handlers, so that nothing but the seed differs.
"""

import importlib
import importlib.util
import json
import locale
import os
import signal
import socket
import sqlite3
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from io import BytesIO
from select import select
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Table

from qntx_es.attestation import Attestation, Recorded
from qntx_es.database import Database
from qntx_es.domain import DeriveHandler, Domain, ProjectHandler
from qntx_es.errors import QntxError
from qntx_es.folds import Fold
from qntx_es.log import Log, head_of
from qntx_es.projections import generations
from qntx_es.projections.batch import Batches
from qntx_es.projections.digest import MODULUS, as_stored, digest
from qntx_es.projections.handlers import Handlers
from qntx_es.projections.own_rows import row_map
from qntx_es.projections.portions import READ_MAX
from qntx_es.projections.recovery import HandlerFailed
from qntx_es.sequencer import Sequencer
from qntx_es.testing.frames import read_frame, write_frame
from qntx_es.testing.interpreters import code_of
from qntx_es.testing.subject import Subject
from qntx_es.transfer import export_log, import_log

# What an import of Python's opens, wherever it stands.
CODE = (".py", ".pyc", ".so")
TOUCHES_MAX = 100

H = TypeVar("H", ProjectHandler, DeriveHandler)


class _NotRun(Exception):
    pass


@dataclass(slots=True)
class _Touched:
    """What handlers reach for; `handler` is the one that runs."""

    handler: str | None = None
    found: dict[tuple[str, str, str], None] = field(default_factory=dict)

    def hear(self, what: str, arguments: tuple[Any, ...]) -> None:
        """Be told by Python what is done."""
        if self.handler is None or len(self.found) >= TOUCHES_MAX:
            return
        if what == "open" and not str(arguments[0]).endswith(CODE):
            self.found[self.handler, "open", str(arguments[0])] = None
        elif what == "socket.connect":
            self.found[self.handler, "connect", str(arguments[1])] = None

    @contextmanager
    def of(self, handler: str) -> Iterator[None]:
        """Hold what is done in this block against a handler."""
        self.handler = handler
        try:
            yield
        finally:
            self.handler = None


class _Prepared:
    """A domain that only listens, and a database in memory with its tables."""

    def __init__(self, domain: Domain, tables: bytes) -> None:
        self.subject = Subject(domain)
        self.touched = _Touched()
        self.listening = copy(self.subject.dark)
        self.listening.projects = [
            one if isinstance(one.function, Fold) else self._watched(one)
            for one in self.listening.projects
        ]
        self.listening.derives = [self._watched(one) for one in self.listening.derives]
        self.database = _in_memory(tables)
        with self.database.write() as connection:
            generations.create_live(connection, domain)
        self._warm_up()

    def _warm_up(self) -> None:
        """Let SQLAlchemy compile here what every child would compile: of nobody's attestation."""
        with self.database.own() as connection:
            before = connection.serialize()
        nobodys = Attestation(context="qntx", entity="qntx", actor="qntx", payload={})
        sequencer = Sequencer(self.database)
        sequencer.append([nobodys])
        exported = BytesIO()
        export_log(Log(self.database, sequencer), exported)
        _restore(self.database, before)
        import_log(sequencer, BytesIO(exported.getvalue()))
        _fold(self.database, sequencer, self.listening, None)
        _tables_of(self)
        _restore(self.database, before)

    def _watched(self, handler: H) -> H:
        function: Any = handler.function

        def watched(recorded: Recorded[Any], rows: Any) -> Any:  # noqa: ANN401 - as the handler has it
            with self.touched.of(handler.name):
                return function(recorded, rows)

        return replace(handler, function=watched)


def main() -> None:
    """Answer until the other side of the socket closes it."""
    theirs = socket.socket(fileno=int(sys.argv[1]))
    tables = read_frame(theirs) or b""
    prepared: dict[tuple[str, str], _Prepared] = {}
    while True:
        asked, log = read_frame(theirs), read_frame(theirs)
        if asked is None or log is None:
            return
        wanted = json.loads(asked)
        try:
            domain = wanted["domain"]
            key = domain["module"], domain["attribute"]
            if key not in prepared:
                prepared[key] = _Prepared(_found(domain), tables)
            answer = _forked(theirs, prepared[key], wanted, log)
        except _NotRun as error:
            answer = json.dumps({"not_run": str(error)}).encode()
        write_frame(theirs, answer)


def _found(address: Mapping[str, Any]) -> Domain:
    for name, file in address["files"].items():
        _import(name, file)
    domain = getattr(sys.modules[address["module"]], address["attribute"], None)
    called = f"{address['module']}.{address['attribute']}"
    if not isinstance(domain, Domain):
        raise _NotRun(f"{called} is no domain where its module is imported by itself")
    if code_of(domain) != address["code"]:
        raise _NotRun(
            f"{called} is another domain where its module is imported by itself: register its "
            "handlers in the modules that it is imported with"
        )
    return domain


def _import(name: str, file: str | None) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as missing:
        # A module of tests has a name that leads nowhere.
        if file is None or missing.name is None or not f"{name}.".startswith(f"{missing.name}."):
            raise _NotRun(f"{name} cannot be imported: {missing}") from missing
        _import_file(name, file)
    except (Exception, SystemExit) as error:
        raise _NotRun(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _import_file(name: str, file: str) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise _NotRun(f"{file} is no file that Python imports")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _NotRun(f"{file} cannot be imported: {type(error).__name__}: {error}") from error


def _forked(
    theirs: socket.socket, prepared: _Prepared, wanted: Mapping[str, Any], log: bytes
) -> bytes:
    """Replay in a child, and return its answer; it does not outlive whoever asked."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_child(prepared, wanted, log, writing)
    os.close(writing)
    answer, is_whole = bytearray(), False
    deadline = time.monotonic() + wanted["seconds_max"]
    try:
        while not is_whole:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select([reading, theirs.fileno()], [], [], left)
            if not ready:
                raise _NotRun(f"a replay took longer than {wanted['seconds_max']:g} s")
            if theirs.fileno() in ready:
                sys.exit()  # nobody asks while an answer is due: whoever asked has gone
            piece = os.read(reading, 1 << 16)
            answer += piece
            is_whole = not piece
    finally:
        os.close(reading)
        if not is_whole:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if status:
        raise _NotRun(f"a replay ended its process with {os.waitstatus_to_exitcode(status)}")
    return bytes(answer)


def _be_the_child(prepared: _Prepared, wanted: Mapping[str, Any], log: bytes, writing: int) -> None:
    try:
        try:
            answer = _replay(prepared, wanted, log)
        except BaseException:  # noqa: BLE001 - what happens in the child is told by its parent
            answer = {"not_run": traceback.format_exc()}
        with os.fdopen(writing, "wb") as stream:
            stream.write(json.dumps(answer).encode())
        os._exit(0)
    finally:
        os._exit(1)


def _replay(prepared: _Prepared, wanted: Mapping[str, Any], log: bytes) -> dict[str, Any]:
    database, domain, subject = prepared.database, prepared.listening, prepared.subject
    sequencer = Sequencer(database)
    import_log(sequencer, BytesIO(log))
    sys.addaudithook(prepared.touched.hear)
    with subject.circumstances.around():
        _surround(wanted["environment"])
        failure = _fold(database, sequencer, domain, wanted["until"])
    total = sum(
        int.from_bytes(blake2b(f"{number} ".encode() + said, digest_size=16).digest())
        for number, said in subject.heard.items()
    )
    found: dict[str, Any] = {
        "tables": _tables_of(prepared),
        "derived": [len(subject.heard), f"{total % MODULUS:032x}"],
        "failure": failure,
        "touches": list(prepared.touched.found),
        "rows": {},
        "said": {},
    }
    if wanted["is_full"]:
        with database.read() as connection:
            found["rows"] = {
                name: _rows_of(connection, table) for name, table in domain.tables.items()
            }
        found["said"] = {number: said.decode() for number, said in sorted(subject.heard.items())}
    return found


def _tables_of(prepared: _Prepared) -> dict[str, list[object]]:
    with prepared.database.read() as connection:
        digests = {
            name: digest(connection, table) for name, table in prepared.listening.tables.items()
        }
    return {name: [one.rows, one.value] for name, one in digests.items()}


def _in_memory(tables: bytes) -> Database:
    database = Database("sqlite://", clock=lambda: 0)
    _restore(database, tables)
    return database


def _restore(database: Database, tables: bytes) -> None:
    source = sqlite3.connect(":memory:")
    source.deserialize(tables)
    with database.own() as target:
        source.backup(target)
    source.close()


def _surround(environment: Mapping[str, str]) -> None:
    if not environment:
        return
    os.environ.update(environment)
    time.tzset()
    with suppress(locale.Error):  # one that this machine has not is none that could show
        locale.setlocale(locale.LC_ALL, "")


def _fold(
    database: Database, sequencer: Sequencer, domain: Domain, until: int | None
) -> dict[str, Any] | None:
    """Fold in bulk; what fails so may be right one at a time, as it is live."""
    batches = Batches(database, sequencer, Handlers(domain), row_map(domain, lambda one: one))
    with database.read() as connection:
        head = head_of(connection)
    target, position, size = head if until is None else min(until, head), 0, READ_MAX
    while position < target:
        try:
            position = batches.step(size, until=target).position
        except HandlerFailed as failed:
            if size > 1:
                size = 1
                continue
            return {
                "error": type(failed.raised).__name__,
                "position": failed.position,
                "handler": failed.handler,
                "message": failed.error,
            }
        except QntxError as refused:
            name = type(refused).__name__
            return {"error": name, "position": position, "handler": "", "message": str(refused)}
    return None


def _rows_of(connection: Connection, table: Table) -> list[dict[str, str]]:
    columns = [as_stored(column) for column in table.columns]
    asked = sqlalchemy.select(*columns).order_by(*table.primary_key.columns)
    return [
        {name: repr(value) for name, value in row._mapping.items()}  # noqa: SLF001 - a public attribute of SQLAlchemy
        for row in connection.execute(asked)
    ]


if __name__ == "__main__":
    main()
