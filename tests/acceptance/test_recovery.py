"""What an admin does when a projector fails, or is to stand still: at the real command line."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import pytest
from sqlalchemy import select

from qntx_es import Attestation, Host, ProjectorStopped

Qntx: TypeAlias = Callable[..., CompletedProcess[str]]
Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]
Opened: TypeAlias = Callable[..., Host]


def place(host: Host, entity: str, total: int) -> None:
    """State an order."""
    payload = {"total": total}
    host.append(Attestation(context="order_placed", entity=entity, actor="ann", payload=payload))


def totals(host: Host) -> dict[str, int]:
    """Return the rows of the shop's table."""
    orders = host.domains["shop"].tables["shop_orders"]
    with host.database.read() as connection:
        rows = connection.execute(select(orders.c.entity, orders.c.total))
        return {row.entity: row.total for row in rows}


def test_a_projector_is_paused_and_resumed(
    qntx: Qntx, each: Each, opened: Opened, shop: Path, sqlite_url: str
) -> None:
    """A pause needs no domain, is seen in list and status, and names who paused; resume ends it."""
    host = opened(sqlite_url)
    shop.write_text("raise SystemExit('imported')")
    flags = ("--database", sqlite_url)

    reason = ("--reason", "an audit\x1b", "--as", "ann@office")
    paused = qntx("projections", "pause", "shop", *reason, *flags)
    unknown, listed, status = each(
        ("projections", "pause", "shoop", *flags),
        ("projections", "list", *flags),
        ("projections", "status", "shop", "--json", *flags),
    )
    place(host, "a", 1)
    host.catch_up()
    assert totals(host) == {}
    resumed = qntx("projections", "resume", "shop", "--json", *flags)
    host.catch_up()

    assert (paused.returncode, paused.stdout) == (0, "shop paused\n")
    assert unknown.returncode == 2
    assert "no domain `shoop`; did you mean `shop`?" in unknown.stderr
    assert "paused by ann@office: an audit\\x1b" in listed.stdout
    assert (listed.returncode, status.returncode) == (0, 0)
    found = json.loads(status.stdout)
    assert (found["state"], found["pause"]["by"]) == ("paused", "ann@office")
    assert json.loads(resumed.stdout) == {"name": "shop", "state": "resumed"}
    assert totals(host) == {"a": 1}
    (said,) = host.ax(contexts="qntx.resumed")
    assert "@" in said.actor


def test_a_parked_entity_is_retried(
    qntx: Qntx, each: Each, opened: Opened, shop: Path, sqlite_url: str
) -> None:
    """What fails again ends in 1 and stays parked; once the handler is mended a retry is done."""
    shop.write_text(shop.read_text().replace("version=1,", 'version=1, on_failure="park",'))
    host = opened(sqlite_url)
    for entity, total in (("a", 1), ("b", -1), ("b", 2)):
        place(host, entity, total)
    host.catch_up()
    flags = ("--database", sqlite_url, "--domains", "shop")

    status, again, nothing, vague = each(
        ("projections", "status", "shop", *flags),
        ("projections", "retry", "shop", "2", *flags),
        ("projections", "retry", "shop", "--entity", "a", *flags),
        ("projections", "retry", "shop", *flags),
    )
    shop.write_text(shop.read_text().replace("total < 0", "total < -9"))
    done = qntx("projections", "retry", "shop", "--all", "--json", *flags)

    assert status.returncode == 0
    assert "qntx-es projections retry shop --all" in status.stdout
    assert ["b", "2", "count"] in [line.split()[:3] for line in status.stdout.splitlines()]
    assert again.returncode == nothing.returncode == 1
    assert "1 entity of shop failed again" in again.stderr
    assert "Nothing stands or is parked there" in nothing.stderr
    assert vague.returncode == 2
    assert (done.returncode, json.loads(done.stdout)) == (0, {"name": "shop", "still_parked": []})
    assert totals(host) == {"a": 1, "b": 1}


def test_a_position_is_skipped_and_the_skip_withdrawn(
    qntx: Qntx, opened: Opened, shop: Path, sqlite_url: str
) -> None:
    """A skip needs a reason and no domain, frees a projector that stopped, and can be withdrawn."""
    host = opened(sqlite_url)
    for entity, total in (("a", -1), ("b", 2)):
        place(host, entity, total)
    with pytest.raises(ProjectorStopped):
        host.catch_up()
    shop.write_text("raise SystemExit('imported')")
    skip = ("projections", "skip", "shop", "1", "--database", sqlite_url)

    mute = qntx(*skip)
    skipped = qntx(*skip, "--reason", "a joke")
    host.catch_up()
    too_late = qntx(*(*skip[:3], "2", *skip[4:]), "--reason", "too late")
    withdrawn = qntx(*skip, "--withdraw", "--json")

    assert mute.returncode == 2
    assert (skipped.returncode, skipped.stdout) == (0, "shop: position 1 skipped\n")
    assert totals(host) == {"b": 2}
    assert too_late.returncode == 1
    assert "has projected position 2 already" in too_late.stderr
    assert json.loads(withdrawn.stdout)["state"] == "counts again in the next version"


def test_a_skip_asks_first_at_a_terminal(
    at_terminal: Callable[..., tuple[int, str]], opened: Opened, sqlite_url: str
) -> None:
    """A person is asked before anything is left out, unless `--yes` was said."""
    host = opened(sqlite_url)
    place(host, "a", 1)
    skip = ("projections", "skip", "shop", "1", "--reason", "r", "--database", sqlite_url)

    refused, asked = at_terminal(*skip, typed="n\n")
    assert refused == 1
    assert "will leave out position 1" in asked
    assert host.ax(contexts="qntx.skipped") == []

    settled, told = at_terminal(*skip, "--yes")
    assert (settled, "Go on?" in told) == (0, False)
    assert len(host.ax(contexts="qntx.skipped")) == 1
