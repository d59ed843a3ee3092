"""`qntx-es append`: stating something by hand, and being kept from stating it wrongly."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

from qntx_es import Ax, Host

Qntx: TypeAlias = Callable[..., CompletedProcess[str]]
Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]
Opened: TypeAlias = Callable[..., Host]


def test_what_is_appended_is_in_the_log_once(
    qntx: Qntx, each: Each, opened: Opened, sqlite_url: str, tmp_path: Path
) -> None:
    """What is said, on stdin or in a file, is in the log once; another under its id is refused."""
    host = opened(sqlite_url)
    (tmp_path / "order.json").write_text('{\n  "total": 3\n}')
    flags = ("--database", sqlite_url, "--domains", "shop", "--id", "order-1")
    said = ("append", "order_placed", "a", *flags, "--tag", "shop:x", "--tag", "shop:y")

    first = qntx(*said, "--payload", "-", "--actor", "ann", "--json", stdin='{"total": 3}')
    again, other = each(
        (*said, "--payload", "@order.json", "--actor", "ann"), (*said, "--payload", '{"total": 3}')
    )

    assert first.returncode == again.returncode == 0
    assert json.loads(first.stdout) == {
        "position": 1,
        "id": "order-1",
        "context": "order_placed",
        "actor": "ann",
        "entity": "a",
        "is_new": True,
    }
    assert again.stdout == "said before, at position 1: nothing was appended\n"
    assert other.returncode == 1, "somebody else says it"
    assert "id order-1 already names another attestation at position 1" in other.stderr
    (one,) = host.ax(Ax(entities="shop:y"))
    assert one.tags == ("shop:x", "shop:y")
    assert (one.id, one.actor, one.entity, one.payload) == ("order-1", "ann", "a", {"total": 3})


def test_a_context_nobody_knows_needs_a_word(each: Each, opened: Opened, sqlite_url: str) -> None:
    """A mistyped context is refused with the nearest, and stated all the same if that is meant."""
    host = opened(sqlite_url)
    flags = ("--payload", "{}", "--database", sqlite_url, "--domains", "shop")

    mistyped, unread, reserved, meant = each(
        ("append", "order_plased", "a", *flags),
        ("append", "order_shipped", "a", *flags),
        ("append", "pulse.job_started", "a", *flags, "--new-context"),
        ("append", "order_plased", "a", *flags, "--new-context"),
    )

    assert mistyped.returncode == 2
    assert "`order_plased`: no enabled domain knows it" in mistyped.stderr
    assert "did you mean `order_placed`? (--new-context states it anyway)" in mistyped.stderr
    assert unread.returncode == 0, "what a domain names as its own to state is known"
    assert reserved.returncode == 1
    assert reserved.stderr == "qntx-es: context `pulse.job_started` is the framework's own\n"
    assert meant.returncode == 0
    assert meant.stdout.startswith("appended at position ")
    found = host.ax(Ax())
    assert {one.context for one in found} == {"order_shipped", "order_plased"}
    assert all("@" in one.actor for one in found), "somebody on this machine"


def test_a_payload_that_does_not_fit_is_refused(
    each: Each, opened: Opened, sqlite_url: str
) -> None:
    """A payload that breaks its class, or JSON, is named by field and reason; nothing is kept."""
    host = opened(sqlite_url)
    said = ("append", "order_placed", "a", "--database", sqlite_url, "--domains", "shop")

    misfit, doubled = each(
        (*said, "--payload", '{"total": "much"}'), (*said, "--payload", '{"total": 1, "total": 2}')
    )

    assert misfit.returncode == doubled.returncode == 1
    assert misfit.stderr == (
        "qntx-es: order_placed about a: total: Input should be a valid integer, "
        "unable to parse string as an integer\n"
    )
    assert "the key 'total' stands twice in one object" in doubled.stderr
    assert host.log.head() == 0


def test_a_domain_that_fails_keeps_nobody_from_appending(
    qntx: Qntx, opened: Opened, sqlite_url: str
) -> None:
    """A broken domain is named on stderr, and what the others know is appended."""
    host = opened(sqlite_url)

    said = ("append", "order_placed", "a", "--payload", '{"total": 1}', "--database", sqlite_url)
    finished = qntx(*said, "--domains", "mill,shop")

    assert finished.returncode == 0
    assert "domain `mill` is refused:" in finished.stderr
    assert "No module named 'mill'" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert host.log.head() == 1
