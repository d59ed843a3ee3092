"""`qntx-es projections verify`, `rebuild --expect`, `--dry-run`, `--to … --into`, and `diff`."""

import json
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import TypeAlias

import pytest
from sqlalchemy import inspect, text

from qntx_es import Attestation, Host

Qntx: TypeAlias = Callable[..., CompletedProcess[str]]
Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]
Opened: TypeAlias = Callable[..., Host]

KEYS = [
    "name",
    "version",
    "position",
    "is_same",
    "tables",
    "derived",
    "certificate",
    "attested_at",
]


def filled(host: Host) -> Host:
    """Project orders of three customers."""
    for entity, total in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        host.append(
            Attestation(
                context="order_placed", entity=entity, actor="ann", payload={"total": total}
            )
        )
    host.catch_up()
    return host


@pytest.fixture
def host(opened: Opened, url: str) -> Host:
    """Open a shop that has been ordered from."""
    return filled(opened(url))


def tamper(host: Host) -> None:
    """Change one row and remove another by hand."""
    with host.database.write() as connection:
        connection.execute(text("UPDATE shop_orders SET total = 99 WHERE entity = 'a'"))
        connection.execute(text("DELETE FROM shop_orders WHERE entity = 'b'"))


def tables_of(host: Host) -> set[str]:
    """Return the names of the tables that are neither the framework's nor the queue's."""
    with host.database.read() as connection:
        names = inspect(connection).get_table_names()
    return {name for name in names if not name.startswith(("qntx_", "pulse_"))}


@pytest.mark.verify_finds
def test_rows_changed_by_hand_are_found(qntx: Qntx, host: Host, url: str, tmp_path: Path) -> None:
    """Verify ends with 0 while all is right, else with 3, naming row, values and who wrote it."""
    flags = ("--database", url, "--domains", "shop")
    right = qntx("projections", "verify", "--all", "--json", *flags)
    tamper(host)
    wrong = qntx("projections", "verify", "shop", "--certificate", "proof.json", *flags)
    as_json = qntx("projections", "verify", "shop", "--as", "ann", "--json", *flags)

    assert right.returncode == 0, right.stderr
    assert {one["name"]: one["is_same"] for one in json.loads(right.stdout)} == {
        "pulse": True,
        "shop": True,
    }
    assert wrong.returncode == as_json.returncode == 3
    rows = [line.split() for line in wrong.stdout.splitlines()]
    assert ["shop_orders", "a", "total", "99", "4", "3", "order_placed"] in rows
    assert ["shop_orders", "b", "(row)", "missing", "present", "2", "order_placed"] in rows
    assert "To put it right: qntx-es projections rebuild shop" in wrong.stdout
    digest = sha256((tmp_path / "proof.json").read_bytes()).hexdigest()
    assert f"Certificate {digest}, attestation " in wrong.stdout
    (found,) = json.loads(as_json.stdout)
    assert list(found) == KEYS
    (table,) = found["tables"]
    assert (table["differing"], table["missing"], table["surplus"]) == (1, 1, 0)
    assert table["rows"][0]["touched"] == {"position": 3, "context": "order_placed"}
    said = host.latest("qntx.verified", "shop")
    assert said is not None
    assert (said.actor, said.payload["certificate"]) == ("ann", found["certificate"])
    assert said.position == found["attested_at"]


def test_a_rebuild_swaps_what_was_expected_and_nothing_else(
    qntx: Qntx, opened: Opened, sqlite_url: str, shop: Path
) -> None:
    """`--expect same` ends with 3 and live rows as they were; a named column may change."""
    host = filled(opened(sqlite_url))
    flags = ("--database", sqlite_url, "--domains", "shop")
    rebuild = ("projections", "rebuild", "shop", *flags)
    shop.write_text(shop.read_text().replace("PRICE = 1", "PRICE = 10"))

    refused = qntx(*rebuild, "--expect", "same")
    rehearsed = qntx(*rebuild, "--dry-run")
    assert refused.returncode == rehearsed.returncode == 3
    assert "shop_orders.total would change" in refused.stderr
    assert "Nothing was swapped." in rehearsed.stdout
    for finished in (refused, rehearsed):
        assert ["shop_orders", "a", "total", "4", "40", "3", "order_placed"] in [
            line.split() for line in finished.stdout.splitlines()
        ]
    assert tables_of(host) == {"shop_orders"}
    assert host.latest("qntx.rebuilt", "shop") is None
    unknown = qntx(*rebuild, "--expect", "shop_orders.totl")
    mixed = qntx(*rebuild, "--to", "3", "--dry-run")
    assert (unknown.returncode, mixed.returncode) == (2, 2)
    assert "did you mean `shop_orders.total`" in unknown.stderr
    assert "--to and --into go together" in mixed.stderr

    expected = qntx(*rebuild, "--expect", "shop_orders.total", "--certificate", "proof.json")

    assert "the rebuilt rows are live now" in expected.stdout
    said = host.latest("qntx.rebuilt", "shop")
    assert said is not None
    assert f"Certificate {said.payload['certificate']}, attestation {said.position}" in (
        expected.stdout
    )


def test_what_others_made_is_refused_by_name(
    each: Each, opened: Opened, shop: Path, sqlite_url: str
) -> None:
    """What a swap would take from others ends a rebuild and its rehearsal with 1."""
    host = filled(opened(sqlite_url))
    with host.database.write() as connection:
        connection.execute(
            text("CREATE TRIGGER mine AFTER UPDATE ON shop_orders BEGIN SELECT 1; END")
        )
    flags = ("shop", "--database", sqlite_url, "--domains", shop.stem)

    refused = each(
        ("projections", "rebuild", *flags),
        ("projections", "rebuild", "--dry-run", *flags),
    )

    assert [one.returncode for one in refused] == [1, 1]
    assert all("trigger mine on table shop_orders" in one.stderr for one in refused)
    assert tables_of(host) == {"shop_orders"}


def test_tables_of_another_time(each: Each, qntx: Qntx, host: Host, url: str) -> None:
    """`--to` a position `--into` a prefix makes tables that `diff` holds against the live ones."""
    flags = ("--database", url, "--domains", "shop")

    made = qntx("projections", "rebuild", "shop", "--to", "2", "--into", "then", *flags)
    assert (made.returncode, made.stdout.splitlines()[0]) == (
        0,
        "shop as of position 2: then_orders",
    )
    differing, unknown, taken = each(
        ("projections", "diff", "shop", "then", "--json", *flags),
        ("projections", "diff", "shop", "than", *flags),
        ("projections", "rebuild", "shop", "--to", "2026-01-01", "--into", "then", *flags),
    )

    assert differing.returncode == 3
    (table,) = json.loads(differing.stdout)["tables"]
    assert [(one["key"], one["verdict"]) for one in table["rows"]] == [
        (["a"], "differs"),
        (["c"], "surplus"),
    ]
    assert unknown.returncode == taken.returncode == 1
    assert "no table of `shop` has the prefix `than`" in unknown.stderr
    assert "taken by then_orders" in taken.stderr
    assert tables_of(host) == {"shop_orders", "then_orders"}


def test_a_verify_that_is_interrupted_leaves_nothing(
    started: Callable[..., Popen[str]], opened: Opened, shop: Path, sqlite_url: str
) -> None:
    """Ctrl-C ends a verify with 130; its tables are gone, and so is what kept others out."""
    host = filled(opened(sqlite_url))
    shop.write_text(
        shop.read_text().replace("if placed.payload.total < 0", "wait_for_ever()\n    if 0")
    )

    process = started(
        "projections", "verify", "shop", "--database", sqlite_url, "--domains", "shop"
    )
    assert process.stderr is not None
    while "waiting" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in complaint
    assert tables_of(host) == {"shop_orders"}
    assert host.verify("shop").is_same


@pytest.mark.rebuild_killed
def test_whoever_was_killed_is_not_waited_for(
    started: Callable[..., Popen[str]], opened: Opened, shop: Path, sqlite_url: str
) -> None:
    """Killed while it fills, a rebuild leaves live as it was, and the next one begins at once."""
    host = filled(opened(sqlite_url))
    before = shop.read_text()
    shop.write_text(before.replace("if placed.payload.total < 0", "wait_for_ever()\n    if 0"))

    process = started(
        "projections", "rebuild", "shop", "--database", sqlite_url, "--domains", "shop"
    )
    assert process.stderr is not None
    while "waiting" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)

    assert len(tables_of(host)) == 2
    assert host.rebuild("shop", expect=["same"]).is_same
    assert tables_of(host) == {"shop_orders"}
