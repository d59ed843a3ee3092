"""`qntx-es db`, and what every command says of a database that is not as it should be."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

from sqlalchemy import column, table, update

from qntx_es import Host
from qntx_es.tables import REVISION, VERSION_TABLE

Qntx: TypeAlias = Callable[..., CompletedProcess[str]]
Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]


def test_a_database_is_made_once(qntx: Qntx, each: Each, url: str) -> None:
    """Upgrading makes what is missing, says so, and finds nothing to do the second time."""
    made = qntx("db", "upgrade", "--database", url)
    again, checked = each(
        ("db", "upgrade", "--database", url, "--json"), ("db", "check", "--database", url, "--json")
    )

    assert made.returncode == again.returncode == checked.returncode == 0
    assert made.stdout.startswith("made the tables in ")
    assert json.loads(again.stdout).items() >= {"revision": REVISION, "was": REVISION}.items()
    told = json.loads(checked.stdout)
    assert told.items() >= {"revision": REVISION, "head": 0, "waiting": 0}.items()
    assert "***" not in told["database"]


def test_a_missing_database_is_named_with_its_remedy(each: Each, tmp_path: Path) -> None:
    """Where there is no database, each command says what makes one, and makes none itself."""
    commands = (
        ("run",),
        ("append", "note", "a", "--payload", "{}", "--new-context"),
        ("projections", "rebuild", "pulse"),
    )

    for finished in each(*commands):
        assert finished.returncode == 1
        last = finished.stderr.splitlines()[-1]
        assert last.startswith(f"qntx-es: there is no database at {tmp_path / 'qntx.db'}")
        assert "qntx-es db upgrade" in last
        assert finished.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_newer_database_is_left_alone(each: Each, sqlite_url: str) -> None:
    """A database of a newer qntx-es is neither read nor written, and the remedy is said."""
    with closing(Host(sqlite_url)) as host:
        host.upgrade()
        version = table(VERSION_TABLE, column("version_num"))
        with host.database.write() as connection:
            connection.execute(update(version).values(version_num="9999"))

    for finished in each(
        ("db", "upgrade", "--database", sqlite_url),
        ("projections", "list", "--database", sqlite_url),
    ):
        assert finished.returncode == 1
        assert finished.stderr == (
            f"qntx-es: the tables are at revision 9999, newer than this code ({REVISION}). "
            "Upgrade qntx-es on this machine\n"
        )


def test_a_locked_database_is_waited_for_and_then_named(
    qntx: Qntx, empty_log: str, tmp_path: Path
) -> None:
    """Somebody else's lock is waited for as long as is set, and nothing is written."""
    with closing(sqlite3.connect(tmp_path / "qntx.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        said = ("append", "note", "a", "--payload", "{}", "--new-context")
        finished = qntx(*said, "--database", empty_log, QNTX_LOCK_SECONDS="0.1")

    assert finished.returncode == 1
    assert finished.stderr.startswith("qntx-es: ")
    assert "another process holds the write lock" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1


def test_what_is_no_database_is_named(each: Each, tmp_path: Path) -> None:
    """A URL that leads nowhere ends the command with 1 and one line, without its password."""
    (tmp_path / "letter.db").write_text("Dear friend, " * 500)
    named = {
        "sqlite:///letter.db": "cannot be used: file is not a database",
        "postgresql://ann:secret@127.0.0.1:1/qntx": "cannot be reached",
    }

    finished = each(*(("db", "upgrade", "--database", one) for one in named))

    for one, (url, message) in zip(finished, named.items(), strict=True):
        assert one.returncode == 1, url
        assert message in one.stderr
        assert len(one.stderr.splitlines()) == 1
        assert "secret" not in one.stderr
