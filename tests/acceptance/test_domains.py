"""`qntx-es domains`: which are enabled, where they come from, and what is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]


def test_an_enabled_domain_is_described(each: Each, shop: Path) -> None:
    """A domain is shown with its version, its home and what it has, without a database."""
    assert shop.exists()

    described, none = each(("domains", "--domains", "shop", "--json"), ("domains",))

    assert described.returncode == none.returncode == 0
    assert json.loads(described.stdout) == [
        {
            "name": "shop",
            "version": 1,
            "home": "shop",
            "tables": ["shop_orders"],
            "jobs": ["shop.ship"],
            "problems": [],
        }
    ]
    assert "no domain is enabled" in none.stderr


def test_all_that_is_wrong_with_a_domain_is_said(each: Each, shop: Path) -> None:
    """Every problem of a domain is listed, in harmless words, and the command ends with 1."""
    source = shop.read_text().replace("def count(placed, rows)", "def count(placed)")
    shop.write_text(source.replace(", primary_key=True", ""))
    shop.with_name("mill.py").write_text("raise RuntimeError('[red]cannot\\x1b[31m')")

    as_json, listed = each(
        ("domains", "--domains", "shop,mill", "--json"), ("domains", "--domains", "shop,mill")
    )

    assert as_json.returncode == listed.returncode == 1
    shop_told, mill_told = json.loads(as_json.stdout)
    assert shop_told["version"] is mill_told["version"] is None
    assert "handler `count`: it takes 2 arguments" in shop_told["problems"][0]
    assert "table `shop_orders`: it has no primary key" in shop_told["problems"][1]
    assert "RuntimeError: [red]cannot\\x1b[31m" in listed.stdout
    assert "\x1b" not in listed.stdout + listed.stderr


def test_a_domain_is_exercised_by_name_or_place(each: Each, shop: Path) -> None:
    """The one line runs without a test: what passes is said, and what fails is told as Python."""
    clock = "import time\n" + shop.read_text()
    clock = clock.replace("total=placed.payload.total", "total=int(time.time())")
    shop.with_name("market.py").write_text(clock.replace('Domain("shop"', 'Domain("market"'))

    passed, as_json, failed, nowhere, empty = each(
        ("domains", "exercise", "finance", "--examples", "3"),
        ("domains", "exercise", "domains.finance:finance", "--examples", "3", "--json"),
        ("domains", "exercise", "market:shop", "--examples", "5"),
        ("domains", "exercise", "market:stall"),
        ("domains", "exercise", "finance", "--sample", "9", "--database", "sqlite:///none.db"),
    )

    assert "finance: 3 logs replayed, each to the same rows" in passed.stdout
    assert json.loads(as_json.stdout)["failure"] is None
    assert failed.returncode == 1
    assert "log  = [" in failed.stdout
    assert "has no Domain called `stall`" in nowhere.stderr
    assert empty.returncode != 0
    assert "there is no database" in empty.stderr
