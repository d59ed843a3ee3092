"""Export and import: the same log elsewhere, or nothing at all and the line that is to blame."""

import stat
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pytest
from sqlalchemy import Column, Integer, String, create_engine, select, text
from sqlalchemy.orm import Session

from qntx_es import (
    Attestation,
    Domain,
    Exported,
    Host,
    Imported,
    ImportRefused,
    Job,
    Payload,
    ReadRows,
    Recorded,
    Rows,
    ServiceRegistry,
)
from qntx_es.attestation import NAME_CHARACTERS_MAX, PAYLOAD_BYTES_MAX, RecordedRow
from qntx_es.database import Database
from qntx_es.digests import DigestChain
from qntx_es.inbox import insert_into_inbox
from qntx_es.pulse.fold import jobs
from qntx_es.sequencer import Sequencer
from qntx_es.transfer.importing import BATCH_ROWS
from qntx_es.transfer.lines import LINE_BYTES_MAX, Header, header_line, trailer_line

HostOn: TypeAlias = Callable[..., Host]


class Seen(Payload, context="seen"):
    """Something was counted."""

    n: int = 1


class Counted(Payload, context="counted"):
    """What follows from it."""

    n: int


def counting(done: list[str] | None = None) -> Domain:
    """Make a domain that counts, says so, and asks for a job that remembers whom it was for."""
    domain = Domain("code", emits=("seen", "counted"))
    counts = domain.table(
        "counts",
        Column("entity", String, primary_key=True),
        Column("n", Integer, nullable=False, default=0),
        Column("told", Integer, nullable=False, default=0),
    )

    @domain.project(Seen)
    def count(seen: Recorded[Seen], rows: Rows) -> None:
        rows.add(counts, seen.entity, n=seen.payload.n)

    @domain.project(Counted)
    def hear(counted: Recorded[Counted], rows: Rows) -> None:
        rows.add(counts, counted.entity, told=1)

    @domain.derive(Seen)
    def tell(seen: Recorded[Seen], rows: ReadRows) -> Iterator[Attestation]:
        row = rows.get(counts, seen.entity)
        assert row is not None
        yield domain.attest(Counted(n=row.n), entity=seen.entity)
        yield work.request(entity=seen.entity)

    @domain.job()
    def work(job: Job, services: ServiceRegistry) -> None:  # noqa: ARG001 - a job's shape
        if done is not None:
            done.append(job.entity)

    return domain


def echoing() -> Domain:
    """Make a domain that has something to say of everything seen."""
    domain = Domain("echo", emits=("echoed",))

    class Echoed(Payload, context="echoed"):
        """An echo."""

    @domain.derive(Seen)
    def echo(seen: Recorded[Seen], rows: ReadRows) -> Iterator[Attestation]:  # noqa: ARG001
        yield domain.attest(Echoed(), entity=seen.entity)

    return domain


@pytest.fixture
def host_on() -> Iterator[HostOn]:
    """Open hosts by URL, on upgraded databases, and close them at the end."""
    hosts: list[Host] = []

    def open_host(url: str, *domains: Domain) -> Host:
        hosts.append(Host(url, domains))
        hosts[-1].upgrade()
        return hosts[-1]

    yield open_host
    for host in hosts:
        host.close()


@pytest.fixture
def other_url(request: pytest.FixtureRequest, url: str) -> str:
    """Name an empty database of the other kind."""
    fixture = "postgres_url" if url.startswith("sqlite") else "sqlite_url"
    named: str = request.getfixturevalue(fixture)
    return named


def said(entity: str = "a", n: int = 1, **parts: Any) -> Attestation:  # noqa: ANN401 - an attestation's
    """Say that something was seen."""
    fields = {"context": "seen", "actor": "ann"} | parts
    return Attestation(entity=entity, payload={"n": n}, **fields)


def exported(host: Host) -> bytes:
    """Return what an export writes."""
    stream = BytesIO()
    host.export_log(stream)
    return stream.getvalue()


def moved(source: Host, target: Host) -> Imported:
    """Take the log of one host into another."""
    return target.import_log(BytesIO(exported(source)))


def rows_of(host: Host) -> list[Any]:
    """Return the rows of the domain that counts, and those of the queue."""
    counts = host.domain("code").tables["code_counts"]
    with host.database.read() as connection:
        counted = connection.execute(select(counts).order_by("entity")).all()
        requested = connection.execute(select(jobs).order_by("job")).all()
    return [counted, requested]


def row_of(position: int, **changes: Any) -> RecordedRow:  # noqa: ANN401 - the log's columns
    """Return a row as a log might hold it."""
    fields: dict[str, Any] = {
        "position": position,
        "id": f"id-{position}",
        "context": "seen",
        "actor": "ann",
        "entity": "a",
        "payload": '{"n":1}',
        "schema_version": 1,
        "recorded_at": 1_800_000_000_000_000 + position,
        "caused_by": None,
        "correlation_id": None,
        "depth": 0,
        "tags": None,
        "entity_version": None,
    }
    return tuple((fields | changes).values())


def forged(*rows: RecordedRow) -> bytes:
    """Write rows, whatever is in them, as somebody would who knows the format and its digest."""
    chain = DigestChain()
    lines = [header_line(Header("forged", len(rows))), *map(chain.add, rows)]
    return "".join(f"{line}\n" for line in (*lines, trailer_line(chain.digest))).encode()


def refused(host: Host, file: bytes | BinaryIO) -> ImportRefused:
    """Return why a file is refused, having seen that nothing came of it."""
    epoch = host.log.epoch()
    with pytest.raises(ImportRefused, match="Nothing was imported") as raised:
        host.import_log(BytesIO(file) if isinstance(file, bytes) else file)
    assert (host.log.head(), host.log.epoch()) == (0, epoch)
    return raised.value


def test_the_log_is_the_same_elsewhere(host_on: HostOn, url: str, other_url: str) -> None:
    """Every column, the epoch and the digest are kept, and exported again it is the same file."""
    source, target = host_on(url), host_on(other_url)
    source.append(said("ünï 日本 😀", 2**80, tags=("b", "a"), schema_version=3))
    source.append([said("b"), said("b", 2)], expected_version=0)
    source.append(said(caused_by="x", correlation_id="y", depth=9))
    assert target.log.epoch() != source.log.epoch()

    imported = moved(source, target)

    assert [one.row for one in target.log.read()] == [one.row for one in source.log.read()]
    assert target.ax(entities="a") == source.ax(entities="a")  # found by its tag, too
    assert imported.digest == target.log.digest() == source.log.digest()
    assert imported.epoch == target.log.epoch() == source.log.epoch()
    assert exported(target) == exported(source)
    assert target.append(said("after")).position == 5
    asked = text("SELECT entity, slice FROM qntx_attestations WHERE position < 5 ORDER BY position")
    with source.database.read() as one, target.database.read() as other:
        assert one.execute(asked).all() == other.execute(asked).all()


def test_a_log_longer_than_any_piece(host_on: HostOn, url: str, other_url: str) -> None:
    """Pieces and batches do not show, and how far it is is told from nothing to all."""
    source, target = host_on(url), host_on(other_url)
    source.append(said(f"e{n}", n) for n in range(2 * BATCH_ROWS + 1))
    told: list[tuple[int, int]] = []
    file = exported(source)

    imported = target.import_log(BytesIO(file), progress=lambda *one: told.append(one))

    assert imported.digest.position == 2 * BATCH_ROWS + 1
    assert exported(target) == file
    assert [done for done, _ in told] == [0, BATCH_ROWS, 2 * BATCH_ROWS, 2 * BATCH_ROWS + 1]
    assert {total for _, total in told} == {2 * BATCH_ROWS + 1}


def test_an_empty_log_can_move(host_on: HostOn, url: str, other_url: str) -> None:
    """A log without attestations has its epoch to give."""
    source, target = host_on(url), host_on(other_url)

    imported = moved(source, target)

    assert imported.digest.position == 0
    assert target.log.epoch() == source.log.epoch()


@pytest.mark.parametrize("is_known_before", [True, False], ids=["before", "after"])
def test_rows_are_those_of_the_source(
    host_on: HostOn,
    url: str,
    other_url: str,
    is_known_before: bool,  # noqa: FBT001 - pytest hands it in
) -> None:
    """Projectors catch up to the same rows, nothing is derived again, no job is done again."""
    done: list[str] = []
    source = host_on(url, counting(done))
    source.append([said("a"), said("b", 5), said("a", 2)])
    source.catch_up(jobs=True)
    assert sorted(done) == ["a", "a", "b"]
    target = host_on(other_url, counting(done)) if is_known_before else host_on(other_url)

    imported = moved(source, target)
    if not is_known_before:
        target = host_on(other_url, counting(done))
    target.catch_up(jobs=True)

    assert imported.domains == (("code", "pulse") if is_known_before else ("pulse",))
    assert rows_of(target) == rows_of(source)
    assert exported(target) == exported(source)
    assert sorted(done) == ["a", "a", "b"]
    assert [target.rebuild(name).is_same for name in ("code", "pulse")] == [True, True]
    target.append(said("c"))
    target.catch_up(jobs=True)
    assert [one.entity for one in target.ax(contexts="counted")][3:] == ["c"]
    assert sorted(done) == ["a", "a", "b", "c"]


def test_a_domain_that_is_here_before_derives_from_the_imported_head(
    host_on: HostOn, url: str, other_url: str
) -> None:
    """What was never said of the past is not said of it now, only of what comes after."""
    source, target = host_on(url), host_on(other_url, echoing())
    source.append([said("a"), said("b")])

    moved(source, target)
    target.catch_up()
    assert target.log.head() == 2
    target.append(said("c"))
    target.catch_up()

    assert [one.entity for one in target.ax(contexts="echoed")] == ["c"]


def test_what_waits_in_the_inbox_is_exported(host_on: HostOn, postgres_url: str) -> None:
    """A pass comes first, so what is committed is in the file."""
    host = host_on(postgres_url)
    with host.database.write() as connection:
        insert_into_inbox(connection, [said("waiting")], whole=False)
    assert host.log.head() == 0

    assert exported(host).count(b'"entity":"waiting"') == 1


def test_a_log_that_is_not_empty_takes_nothing_in(host_on: HostOn, url: str) -> None:
    """Two logs never become one, not even of the same attestations."""
    host = host_on(url)
    host.append(said())
    before = exported(host)

    with pytest.raises(ImportRefused, match="the log here is not empty: its head is 1"):
        host.import_log(BytesIO(before))

    assert exported(host) == before


def test_what_waits_in_the_inbox_is_in_the_way(host_on: HostOn, postgres_url: str) -> None:
    """What is committed here is neither lost nor put behind another log: it stays where it was."""
    host = host_on(postgres_url)
    with host.database.write() as connection:
        insert_into_inbox(connection, [said("waiting")], whole=False)

    error = refused(host, forged(row_of(1)))

    assert "1 attestations wait in the inbox here" in str(error)
    assert host.log.waiting() == 1


def test_what_comes_during_an_import_stands_behind_it(
    host_on: HostOn, postgres_url: str, tmp_path: Path
) -> None:
    """A caller's transaction that commits meanwhile has its place behind the imported head."""
    host = host_on(postgres_url)
    path = tmp_path / "log"
    path.write_bytes(forged(row_of(1), row_of(2)))

    def commit_something(done: int, total: int) -> None:
        if done < total:
            with Session(host.database.engine) as session:
                host.append(said("meanwhile"), session=session)
                session.commit()

    host.import_log(path, progress=commit_something)

    assert [one.entity for one in host.ax()] == ["a", "a", "meanwhile"]


def test_a_source_may_be_slow(postgres_url: str) -> None:
    """The server does not cut an import off for waiting, as it does others that hold the lock."""
    database = Database(postgres_url)
    database.upgrade()

    with Sequencer(database).held_still() as connection:
        asked = text("SHOW idle_in_transaction_session_timeout")
        assert connection.execute(asked).scalar_one() == "10min"
    database.close()


def test_a_source_that_fails_leaves_nothing(host_on: HostOn, url: str) -> None:
    """An import cut off in the middle, for whatever reason, was none."""
    host = host_on(url)
    file = forged(*map(row_of, range(1, BATCH_ROWS + 10)))

    class Failing(BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            if self.tell() > len(file) - 500:
                raise ConnectionResetError
            return super().readline(size)

    with pytest.raises(ConnectionResetError):
        host.import_log(Failing(file))

    assert host.log.head() == 0
    assert host.import_log(BytesIO(file)).digest.position == BATCH_ROWS + 9


def test_callers_go_on_after_an_import(host_on: HostOn, url: str) -> None:
    """Engines of callers, whether known before or not, still lead to this log."""
    host = host_on(url)
    engines = [create_engine(url), create_engine(url)]
    with engines[0].connect() as caller:
        host.append(said(), session=caller)
        caller.rollback()

    host.import_log(BytesIO(forged(row_of(1))))
    for engine in engines:
        with engine.begin() as caller:
            host.append(said(), session=caller)
        engine.dispose()
    host.log.append(said())

    assert host.log.head() == 4


FILE = forged(*map(row_of, range(1, 5)))
LINES = FILE.splitlines(keepends=True)
LONG = b'{"actor":"' + b"x" * LINE_BYTES_MAX
REFUSED = {
    "nothing": (b"", 1, "the file ends in its header"),
    "no header": (b"".join(LINES[1:]), 1, "it is no header"),
    "another program's": (b'{"hello":"world"}\n', 1, "no export of qntx-es"),
    "not even an object": (b"[]\n", 1, "no JSON object"),
    "another version": (FILE.replace(b'"version":1', b'"version":2', 1), 1, "of version 2"),
    "another epoch": (FILE.replace(b"forged", b"Forged", 1), 1, "the header was altered"),
    "another head": (FILE.replace(b'"head":4', b'"head":3', 1), 1, "the header was altered"),
    "a head that is none": (FILE.replace(b'"head":4', b'"head":-4', 1), 1, "is no position"),
    "a long epoch": (FILE.replace(b"forged", b"f" * 600, 1), 1, "epoch is longer than 512"),
    "not JSON": (LINES[0] + b"{'actor'}\n", 2, "not JSON"),
    "not UTF-8": (FILE.replace(b'"ann"', b'"\xff"', 1), 2, "not UTF-8 at byte 10"),
    "too many levels": (LINES[0] + b"[" * 100_000 + b"\n", 2, "it cannot be read"),
    "too many digits": (LINES[0] + b"1" * 10_000 + b"\n", 2, "it cannot be read"),
    "another payload": (FILE.replace(b'{"n":1}', b'{"n":2}', 1), 2, "altered: its check differs"),
    "spaces": (FILE.replace(b'{"n":1}', b'{"n": 1}', 1), 2, "not written as an export"),
    "a key twice": (FILE.replace(b'{"n":1}', b'{"n":1,"n":1}', 1), 2, "not written as an export"),
    "a boolean": (FILE.replace(b'"depth":0', b'"depth":false', 1), 2, "depth is False"),
    "another column": (FILE.replace(b'"depth"', b'"height"', 1), 2, "not the attestation"),
    "no list": (FILE.replace(b'"tags":[]', b'"tags":{}', 1), 2, "tags are no list"),
    "no instant": (
        FILE.replace(b'"recorded_at":"2', b'"recorded_at":"x', 1),
        2,
        "Invalid isoformat",
    ),
    "no text": (FILE.replace(b'"recorded_at":"', b'"recorded_at":1,"', 1), 2, "not JSON"),
    "carriage returns": (FILE.replace(b"\n", b"\r\n"), 1, "not written as an export"),
    "a blank line": (LINES[0] + LINES[1] + b"\n" + b"".join(LINES[2:]), 3, "it is blank"),
    "a line missing": (b"".join(LINES[:2] + LINES[3:]), 3, "position 3 stands where 2 is due"),
    "a line twice": (b"".join(LINES[:2] + LINES[1:]), 3, "position 1 stands where 2 is due"),
    "the last missing": (b"".join(LINES[:4] + LINES[5:]), 5, "not the attestation of position 4"),
    "cut off": (b"".join(LINES[:3]), 4, "truncated: 2 of 4 attestations"),
    "cut off in a line": (b"".join(LINES[:3]) + LINES[3][:40], 4, "truncated: 2 of 4 attestations"),
    "no trailer": (b"".join(LINES[:-1]), 6, "truncated: all 4 attestations, and no trailer"),
    "half a trailer": (FILE[:-1], 6, "truncated: all 4 attestations, and no trailer"),
    "one too many": (b"".join(LINES[:-1]) + LINES[-2], 6, "the trailer is due after 4"),
    "another count": (FILE.replace(b'"count":4', b'"count":5'), 6, "counts 5 attestations of 4"),
    "another digest": (FILE[:-4] + b'x"}\n', 6, "the digest is not that of the 4"),
    "a spaced trailer": (FILE[:-2] + b" }\n", 6, "not written as an export"),
    "a second trailer": (FILE + LINES[-1], 7, "something follows the trailer"),
    "a line without end": (LINES[0] + LONG, 2, "as no attestation can"),
    "an id twice": (forged(row_of(1), row_of(2), row_of(3, id="id-1")), 4, "at position 1 already"),
    "a version twice": (
        forged(row_of(1, entity_version=7), row_of(2), row_of(3, entity_version=7)),
        4,
        "entity `a` has a version 7 already",
    ),
    "a large version": (forged(row_of(1, entity_version=1 << 31)), 2, "no integer of 32 bits"),
    "back in time": (
        forged(row_of(1), row_of(2, recorded_at=0)),
        3,
        "recorded before the one in front of it",
    ),
    "a name too long": (
        forged(row_of(1, actor="x" * (NAME_CHARACTERS_MAX + 1))),
        2,
        "actor is longer than 512 characters",
    ),
    "a payload too large": (
        forged(row_of(1, payload=f'{{"n":"{"x" * PAYLOAD_BYTES_MAX}"}}')),
        2,
        "or its parts. Nothing was imported. Export the log again",
    ),
    "a payload of another kind": (forged(row_of(1, payload="[]")), 2, "a payload is a JSON object"),
    "what JSON cannot say": (forged(row_of(1, payload='{"n":NaN}')), 2, "which JSON cannot say"),
    "half a character": (forged(row_of(1, payload='{"n":"\\ud800"}')), 2, "lone surrogate"),
}


@pytest.mark.parametrize(("file", "line", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_export_is_refused_by_its_line(
    host_on: HostOn, sqlite_url: str, file: bytes, line: int, why: str
) -> None:
    """Each way to be no export has its reason and its line, and nothing comes of it."""
    error = refused(host_on(sqlite_url), file)

    assert error.line == line, error
    assert why in str(error)
    assert str(error).startswith(f"line {line}: ")


def test_the_guards_of_each_database_have_their_say(host_on: HostOn, url: str) -> None:
    """What only the database knows is found among a thousand, and named, on each of them."""
    host = host_on(url)
    rows = [row_of(n) for n in range(1, BATCH_ROWS + 3)]
    rows[-1] = row_of(BATCH_ROWS + 2, id="id-7")

    error = refused(host, forged(*rows))

    assert str(error).startswith(f"line {BATCH_ROWS + 3}: id `id-7` stands at position 7 already")
    assert host.import_log(BytesIO(forged(*rows[:-1]))).digest.position == BATCH_ROWS + 1


def test_a_line_as_long_as_can_be_is_no_line_too_long(
    host_on: HostOn, sqlite_url: str, postgres_url: str
) -> None:
    """What a log can hold at most, it can hold elsewhere."""
    source, target = host_on(sqlite_url), host_on(postgres_url)
    name, quotes = "é" * NAME_CHARACTERS_MAX, '"' * NAME_CHARACTERS_MAX
    largest = Attestation(
        context=name,
        entity=quotes,
        actor=name,
        id=quotes,
        caused_by=quotes,
        correlation_id=name,
        tags=["\\" * (NAME_CHARACTERS_MAX - 3) + f"{n:03}" for n in range(32)],
        payload={"n": "x" * (PAYLOAD_BYTES_MAX - 8)},
    )
    assert len(largest.text) == PAYLOAD_BYTES_MAX
    source.log.append(largest)

    moved(source, target)

    assert exported(target) == exported(source)


def test_a_file_has_its_name_when_it_is_whole(host_on: HostOn, url: str, tmp_path: Path) -> None:
    """An export that is cut off leaves what was there, no half file, and nothing beside it."""
    host = host_on(url)
    host.append(said())
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "log.ndjson"

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    for before in ([], [path]):
        with pytest.raises(KeyboardInterrupt):
            host.export_log(path, progress=interrupt)
        assert list(folder.iterdir()) == before
        found: Exported = host.export_log(path)
    assert path.read_bytes() == exported(host)
    assert found.digest == host.log.digest()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(folder.iterdir()) == [path]


def test_a_link_stays_a_link(host_on: HostOn, sqlite_url: str, tmp_path: Path) -> None:
    """The file that a link names is replaced; what is no file at all is left alone."""
    host = host_on(sqlite_url)
    (tmp_path / "link").symlink_to(tmp_path / "file")

    host.export_log(tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == exported(host)
    with pytest.raises(FileExistsError):
        host.export_log(tmp_path)
