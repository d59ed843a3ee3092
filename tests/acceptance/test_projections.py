"""`qntx-es projections`: how projectors stand, and building their tables anew with proof."""

import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any, TypeAlias

import pytest
from sqlalchemy import select

from qntx_es import Attestation, Drift, Host, ProjectorStopped
from qntx_es.projections.drift import keep_drifts

Qntx: TypeAlias = Callable[..., CompletedProcess[str]]
Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]
Opened: TypeAlias = Callable[..., Host]

KEYS = [
    "name",
    "version",
    "state",
    "position",
    "head",
    "lag",
    "lag_seconds",
    "generation",
    "parked",
    "pause",
    "failure",
    "rebuild",
    "holder",
    "why",
    "ranges",
    "drifted",
    "drifts",
]


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


def test_projectors_are_listed_with_their_lag(each: Each, opened: Opened, url: str) -> None:
    """Every projector is listed with cursor, head and lag, under keys that stay."""
    host = opened(url)
    place(host, "a", 1)
    host.catch_up()
    place(host, "b", 1)
    place(host, "c", 1)
    flags = ("--database", url)

    listed, as_json = each(
        ("projections", "list", *flags), ("projections", "list", "--json", *flags)
    )

    assert (listed.returncode, as_json.returncode) == (0, 0)
    found: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(as_json.stdout)}
    assert list(found) == ["pulse", "shop"]
    shop = found["shop"]
    assert list(shop) == KEYS
    assert (shop["version"], shop["state"], shop["generation"]) == (1, "live", 1)
    assert (shop["position"], shop["head"], shop["lag"]) == (3, 5, 2)
    assert shop["lag_seconds"] > 0
    assert found["pulse"]["state"] == "inline"
    titles, *rows = (line.split() for line in listed.stdout.splitlines())
    assert titles[:5] == ["domain", "version", "state", "cursor", "lag"]
    assert ["shop", "1", "live", "3", "2"] in [row[:5] for row in rows]
    assert not set(listed.stdout) & set("─│━\x1b")


def test_drift_is_seen_without_the_code(each: Each, opened: Opened, sqlite_url: str) -> None:
    """What a scrub has found ends the list and the status with 3, and is told in harmless words."""
    host = opened(sqlite_url)
    now = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    found = Drift("[red]\x1b", "shop_orders", "row ('[red]',) is missing", now)
    with host.database.write() as connection:
        keep_drifts(connection, "shop", found.entity, [found])

    listed, status, as_json = each(
        ("projections", "list", "--database", sqlite_url),
        ("projections", "status", "shop", "--database", sqlite_url),
        ("projections", "status", "shop", "--database", sqlite_url, "--json"),
    )

    assert listed.returncode == status.returncode == as_json.returncode == 3
    assert "drifted" in listed.stdout
    told = " ".join(status.stdout.split())
    assert "in shop_orders: row ('[red]',) is missing, since 2026-01-02 03:04 UTC" in told
    assert "\x1b" not in listed.stdout + status.stdout
    document = json.loads(as_json.stdout)
    assert (document["state"], document["drifted"]) == ("drifted", 1)
    assert document["drifts"][0]["entity"] == found.entity


def test_what_stands_still_is_seen_though_its_domain_is_broken(
    each: Each, opened: Opened, shop: Path, sqlite_url: str
) -> None:
    """A stopped projector ends the list with 3, and its status says why, in harmless words."""
    host = opened(sqlite_url)
    place(host, "a", -1)
    try:
        host.catch_up()
    except ProjectorStopped:
        shop.write_text("raise SystemExit('imported')")

    listed, as_json, status, unknown = each(
        ("projections", "list", "--database", sqlite_url),
        ("projections", "status", "shop", "--database", sqlite_url, "--json"),
        ("projections", "status", "shop", "--database", sqlite_url),
        ("projections", "status", "shoop", "--database", sqlite_url),
    )

    assert listed.returncode == as_json.returncode == status.returncode == 3
    assert "shop stopped: qntx-es projections status shop" in listed.stdout
    stopped = json.loads(as_json.stdout)
    assert list(stopped) == [*KEYS, "parked_entities"]
    assert (stopped["state"], stopped["position"]) == ("stopped", 0)
    assert stopped["failure"].items() >= {"position": 1, "handler": "count"}.items()
    assert "`count` failed at position 1: ValueError: [red]less\\x1b[31m" in status.stdout
    assert "in count" in status.stdout, "the traceback"
    assert "\x1b" not in listed.stdout + status.stdout
    assert (unknown.returncode, unknown.stderr) == (
        2,
        "qntx-es: no domain `shoop`; did you mean `shop`?\n",
    )


def test_a_rebuild_proves_that_nothing_changed(qntx: Qntx, opened: Opened, url: str) -> None:
    """A rebuild of everything compares every table, and reports that all is the same."""
    host = opened(url)
    for entity, total in (("a", 1), ("b", 2), ("a", 3)):
        place(host, entity, total)
    host.catch_up(jobs=True)
    before = totals(host)
    flags = ("--database", url, "--domains", "shop")

    reported = qntx("projections", "rebuild", "--all", "--json", *flags)

    assert reported.returncode == 0
    assert reported.stderr.splitlines()[-1].startswith("shop: "), "how far it came"
    found = {one["name"]: one for one in json.loads(reported.stdout)}
    assert set(found) == {"shop", "pulse"}
    assert found["shop"]["is_same"] is found["pulse"]["is_same"] is True
    assert (found["shop"]["version_before"], found["shop"]["generation"]) == (1, 2)
    (table,) = found["shop"]["tables"]
    assert table["live"] == table["rebuilt"]
    assert (table["table"], table["live"]["rows"]) == ("shop_orders", 2)
    assert totals(host) == before == {"a": 4, "b": 2}


def test_rows_that_differ_are_told_and_swapped(
    qntx: Qntx, opened: Opened, shop: Path, sqlite_url: str
) -> None:
    """Rows that changed with the same version end in 3, with a new version in 0; both are live."""
    host = opened(sqlite_url)
    place(host, "a", 1)
    host.catch_up()
    rebuild = ("projections", "rebuild", "shop", "--database", sqlite_url, "--domains", "shop")
    shop.write_text(shop.read_text().replace("PRICE = 1", "PRICE = 10"))

    differing = qntx(*rebuild)
    assert differing.returncode == 3
    row, what = [line.split() for line in differing.stdout.splitlines() if line[:5] == "shop_"]
    table, live, rebuilt, digest, digest_rebuilt, *verdict = row
    assert (table, live, rebuilt, verdict) == ("shop_orders", "1", "1", ["1", "differing"])
    assert digest != digest_rebuilt
    assert what == ["shop_orders", "a", "total", "1", "10"]
    assert "Differs: shop_orders." in differing.stdout
    assert "the rebuilt rows are live now" in differing.stdout
    assert totals(host) == {"a": 10}

    shop.write_text(shop.read_text().replace("PRICE = 10", "PRICE = 7").replace("=1,", "=2,"))
    outdated = qntx(*rebuild)
    assert outdated.returncode == 0
    assert "Version 1 became 2" in outdated.stdout
    assert totals(host) == {"a": 7}


def test_a_rebuild_that_fails_leaves_the_live_tables(
    each: Each, opened: Opened, shop: Path, sqlite_url: str
) -> None:
    """A handler that raises ends its rebuild with 1; the rest are rebuilt, and live rows stay."""
    host = opened(sqlite_url)
    place(host, "a", 1)
    host.catch_up()
    shop.write_text(shop.read_text().replace("total < 0", "total > 0"))
    rebuild = ("projections", "rebuild", "--database", sqlite_url, "--domains", "shop,mill")

    failed, unknown, broken = each(
        (*rebuild, "--all", "--json"), (*rebuild, "shop", "shoop"), (*rebuild, "mill")
    )

    assert failed.returncode == 1
    assert "shop was not rebuilt: count at position 1 raised ValueError: [red]" in failed.stderr
    assert "\x1b" not in failed.stderr
    found = {one["name"]: one for one in json.loads(failed.stdout)}
    assert "error" in found["shop"]
    assert found["pulse"]["is_same"] is True
    assert unknown.returncode == 2
    assert "no domain `shoop`; did you mean `shop`?" in unknown.stderr
    assert (broken.returncode, broken.stdout) == (1, "")
    assert broken.stderr.count("domain `mill` is refused") == 1
    assert totals(host) == {"a": 1}


@pytest.mark.rebuild_killed
def test_a_rebuild_can_be_interrupted(
    started: Callable[..., Popen[str]], opened: Opened, shop: Path, sqlite_url: str
) -> None:
    """Ctrl-C ends a rebuild with 130 and without a traceback; the live rows stay."""
    host = opened(sqlite_url)
    place(host, "a", 1)
    host.catch_up()
    shop.write_text(
        shop.read_text().replace("if placed.payload.total < 0", "wait_for_ever()\n    if 0")
    )

    flags = ("--database", sqlite_url, "--domains", "shop")
    process = started("projections", "rebuild", "shop", *flags)
    assert process.stderr is not None
    while "waiting" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "qntx-es: interrupted" in complaint
    assert "Traceback" not in complaint
    assert totals(host) == {"a": 1}


def test_a_new_handler_looks_back(
    each: Each, qntx: Qntx, opened: Opened, shop: Path, url: str
) -> None:
    """A derive handler that came later speaks of the past when asked, once, and says how much."""
    host = opened(url)
    for entity in ("a", "b", "c"):
        place(host, entity, 1)
    host.catch_up()
    shop.write_text(
        shop.read_text()
        + "\n\n@shop.derive(OrderPlaced)\ndef charge(placed, rows):\n"
        + "    yield ship.request(entity=f'bank:{placed.entity}')\n"
    )
    flags = ("--database", url, "--domains", "shop")
    asked = ("projections", "rebuild", "shop", "--derive")

    said = qntx(*asked, "charge", "--from", "2", "--as", "ann", "--json", *flags)
    again, unknown, half, all_ = each(
        (*asked, "charge", "--from", "2", *flags),
        (*asked, "chrge", "--from", "1", *flags),
        (*asked, "charge", *flags),
        ("projections", "rebuild", "--all", "--derive", "charge", "--from", "1", *flags),
    )

    found = json.loads(said.stdout)
    assert (said.returncode, found["said"], found["equal"], found["is_same"]) == (0, 2, 0, True)
    started = host.ax(contexts="qntx.derive_started", actors="ann")
    (start,) = started
    assert (start.payload["handler"], start.payload["position"]) == ("charge", 2)
    assert again.returncode == 0
    assert "0 said, 2 were in the log already" in again.stdout
    assert (unknown.returncode, half.returncode, all_.returncode) == (2, 2, 2)
    assert "did you mean `charge`?" in unknown.stderr
    assert "go together" in half.stderr
    requested = [one.entity for one in host.ax(contexts="pulse.job_requested")]
    assert requested == ["a", "b", "c", "bank:b", "bank:c"]
