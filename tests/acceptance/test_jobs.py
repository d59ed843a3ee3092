"""`qntx-es jobs list`: what Pulse has to do, and what became of what it had."""

import json
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import TypeAlias

import pytest

from qntx_es import Attestation, Host

Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]
Opened: TypeAlias = Callable[..., Host]

KEYS = {
    "key",
    "unique_value",
    "priority",
    "on_lapse",
    "handler_version",
    "cancelling",
    "awaits",
    "parent",
    "counted",
    "open_children",
    "advanced",
    "merged_into",
    "cost",
    "ended",
    "job",
    "status",
    "handler",
    "entity",
    "requested",
    "run_at",
    "attempt",
    "attempts_allowed",
    "token",
    "worker",
    "started_at",
    "deadline_at",
    "ended_at",
    "error",
}


@pytest.fixture
def host(opened: Opened, sqlite_url: str) -> Host:
    """Open a shop that shipped an order, failed with another, and has a third before it."""
    host = opened(sqlite_url)
    for entity in ("here", "nowhere", "later"):
        if entity == "later":
            host.catch_up(jobs=True)
        placed = Attestation(
            context="order_placed", entity=entity, actor="ann", payload={"total": 1}
        )
        host.append(placed)
    host.catch_up()
    return host


@pytest.mark.usefixtures("host")
def test_jobs_are_listed_and_found(each: Each, sqlite_url: str) -> None:
    """Jobs are listed in the order they were asked for, whole or by status, handler or entity."""
    flags = ("jobs", "list", "--database", sqlite_url, "--domains", "shop")
    asked = {
        (): ["here", "nowhere", "later"],
        ("--handler", "shop.ship", "--limit", "1"): ["later"],
    }

    *found, listed, unknown = each(
        *((*flags, "--json", *one) for one in asked),
        (*flags, "--status", "failed", "--entity", "nowhere"),
        (*flags, "--handler", "shop.shop"),
    )

    for one, entities in zip(found, asked.values(), strict=True):
        assert one.returncode == 0
        assert [job["entity"] for job in json.loads(one.stdout)] == entities
    here, nowhere, later = json.loads(found[0].stdout)
    assert set(here) == KEYS
    assert [job["status"] for job in (here, nowhere, later)] == ["succeeded", "failed", "ready"]
    assert here["ended_at"].endswith("Z")
    assert "[red]no address" in nowhere["error"]
    assert listed.returncode == 0
    _, row, count = listed.stdout.splitlines()
    assert "GiveUp: [red]no address\\x1b[31m" in row
    assert count == "1 job"
    assert "\x1b" not in listed.stdout
    assert unknown.returncode == 2
    assert unknown.stderr == "qntx-es: no job handler `shop.shop`; did you mean `shop.ship`?\n"


def test_why_a_job_is_not_running_is_told_with_the_remedy(
    host: Host, each: Each, sqlite_url: str
) -> None:
    """`jobs why` gives every reason, as a table and as JSON."""
    later = host.ax(contexts="pulse.job_requested")[-1]
    flags = ("jobs", "why", later.id, "--database", sqlite_url, "--domains", "shop")

    document, table = each((*flags, "--json"), flags)

    assert document.returncode == table.returncode == 0
    found = json.loads(document.stdout)
    assert [set(one) for one in found] == [{"kind", "text", "remedy"}] * len(found)
    assert [one["kind"] for one in found] == ["handler", "worker", "line"]
    assert "no worker is alive" in table.stdout
    assert "qntx-es run" in table.stdout
