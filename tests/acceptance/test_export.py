"""`qntx-es export` and `qntx-es import`: a log leaves as a file and arrives as the same log."""

import json
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import pytest
from sqlalchemy import select

from qntx_es import Attestation, Host

Qntx: TypeAlias = Callable[..., CompletedProcess[str]]
Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]
Opened: TypeAlias = Callable[..., Host]
Terminal: TypeAlias = Callable[..., tuple[int, str]]


def placed(entity: str, total: int = 1) -> Attestation:
    """Say that something was ordered."""
    return Attestation(context="order_placed", entity=entity, actor="ann", payload={"total": total})


@pytest.fixture
def url_of_source(opened: Opened, sqlite_url: str) -> str:
    """Fill a log: two orders, and what the shop says to them."""
    host = opened(sqlite_url)
    host.append([placed("ünï"), placed("here", 2)])
    host.catch_up(jobs=True)
    return sqlite_url


def test_a_log_moves_to_another_database(
    qntx: Qntx, opened: Opened, url_of_source: str, postgres_url: str, tmp_path: Path
) -> None:
    """Out of SQLite into PostgreSQL: both commands report the same, and the rows are the same."""
    source, target = opened(url_of_source), opened(postgres_url)

    out = qntx("export", "log.ndjson", "--database", url_of_source, "--json")
    into = qntx("import", "log.ndjson", "--database", postgres_url, "--json")
    target.catch_up(jobs=True)

    assert (out.returncode, into.returncode) == (0, 0), (out.stderr, into.stderr)
    reported = json.loads(out.stdout)
    assert list(reported) == ["attestations", "digest", "epoch", "file"]
    assert reported == {
        "attestations": source.log.head(),
        "digest": source.log.digest().value,
        "epoch": source.log.epoch(),
        "file": "log.ndjson",
    }
    assert json.loads(into.stdout) == reported | {"domains": ["pulse", "shop"]}
    assert stat.S_IMODE((tmp_path / "log.ndjson").stat().st_mode) == 0o600
    assert "export: " in out.stderr
    assert "import: " in into.stderr
    assert target.log.digest() == source.log.digest()
    for name in ("shop_orders", "pulse_jobs"):
        rows = []
        for host in (source, target):
            whole = host.domain(name.split("_")[0]).tables[name]
            with host.database.read() as connection:
                rows.append(connection.execute(select(whole).order_by(*whole.primary_key)).all())
        assert rows[0] == rows[1] != []


def test_a_pipe_is_a_file_too(qntx: Qntx, url_of_source: str, tmp_path: Path) -> None:
    """With - the file and nothing else is on stdout, and it is taken in from stdin."""
    elsewhere = ("--database", f"sqlite:///{tmp_path / 'other.db'}")
    assert qntx("db", "upgrade", *elsewhere).returncode == 0

    out = qntx("export", "-", "--database", url_of_source, "--json")
    into = qntx("import", "-", *elsewhere, stdin=out.stdout)
    again = qntx("export", "-", *elsewhere)

    assert (out.returncode, into.returncode, again.returncode) == (0, 0, 0), into.stderr
    head = json.loads(out.stdout.splitlines()[0])["head"]
    assert len(out.stdout.splitlines()) == head + 2
    assert again.stdout == out.stdout
    digest = json.loads(out.stdout.splitlines()[-1])["digest"]
    assert f"qntx-es: exported {head} attestations, digest {digest}\n" in out.stderr
    first, second = into.stdout.splitlines()
    assert first == f"imported {head} attestations, digest {digest}"
    assert second.startswith("domains here (pulse) project all of it, and derive from what comes")


def test_what_cannot_be_taken_in_is_refused(
    qntx: Qntx, each: Each, url_of_source: str, tmp_path: Path
) -> None:
    """A line that was altered, a log that is not empty, a database that is not there."""
    whole = tmp_path / "log.ndjson"
    assert qntx("export", str(whole), "--database", url_of_source).returncode == 0
    altered = whole.read_text().replace('"total":2', '"total":3')
    (tmp_path / "altered").write_text(altered)
    (tmp_path / "cut").write_text(altered[:-9])
    line = 1 + next(n for n, one in enumerate(altered.splitlines()) if '"total":3' in one)
    empty = f"sqlite:///{tmp_path / 'other.db'}"
    assert qntx("db", "upgrade", "--database", empty).returncode == 0
    asked = {
        ("altered", empty): (1, f"qntx-es: line {line}: altered: its check differs. Nothing was"),
        ("cut", empty): (1, f"qntx-es: line {line}: altered"),
        ("log.ndjson", url_of_source): (1, "qntx-es: the log here is not empty: its head is "),
        ("log.ndjson", "sqlite:///nowhere.db"): (1, "qntx-es: there is no database at "),
        ("nowhere", empty): (2, "nowhere is no file that is there"),
        (".", empty): (2, ". is no file that is there"),
    }

    refused = each(*(("import", file, "--database", url) for file, url in asked))

    for one, (code, why) in zip(refused, asked.values(), strict=True):
        assert (one.returncode, one.stdout) == (code, ""), one
        assert why in one.stderr
        assert "Traceback" not in one.stderr
    with closing(Host(empty)) as host:
        assert host.ax() == []


def test_a_file_that_cannot_be_written_is_named(each: Each, url_of_source: str) -> None:
    """Where there is no such folder, or no ordinary file, nothing is written."""
    nowhere, device, folder, missing = each(
        ("export", "nowhere/log", "--database", url_of_source),
        ("export", "/dev/null", "--database", url_of_source),
        ("export", ".", "--database", url_of_source),
        ("export", "log", "--database", "sqlite:///nowhere.db"),
    )

    assert (nowhere.returncode, device.returncode, missing.returncode) == (1, 1, 1)
    assert "nowhere/log cannot be used: No such file or directory" in nowhere.stderr
    assert "/dev/null cannot be used: Not an ordinary file" in device.stderr
    assert "there is no database at" in missing.stderr
    assert folder.returncode == 2


def test_at_a_terminal_a_person_is_asked(
    at_terminal: Terminal, qntx: Qntx, url_of_source: str, tmp_path: Path
) -> None:
    """A person says yes to the question or before it; no leaves everything as it was."""
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("no", "answered", "foretold")]
    for url in urls:
        assert qntx("db", "upgrade", "--database", url).returncode == 0
    assert qntx("export", "log", "--database", url_of_source).returncode == 0

    said_no = at_terminal("import", "log", "--database", urls[0], typed="n\n")
    answered = at_terminal("import", "log", "--database", urls[1], typed="y\n")
    foretold = at_terminal("import", "log", "--database", urls[2], "--yes")

    assert said_no[0] == 1
    assert "Import log into sqlite:///" in "".join(said_no[1].splitlines())
    assert (answered[0], foretold[0]) == (0, 0)
    assert "Import log" not in foretold[1]
    heads = []
    for url in urls:
        with closing(Host(url)) as host:
            heads.append(host.log.head())
    assert heads[0] == 0 < heads[1] == heads[2]
