"""`qntx-es contexts`: everything that is said, documented from the code and counted in the log."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import pytest

from qntx_es import Attestation, Host
from qntx_es.discovery import find_domain
from qntx_es.pulse import pulse

Qntx: TypeAlias = Callable[..., CompletedProcess[str]]
PAGE = Path(__file__).parents[2] / "docs" / "contexts.md"
SHIPPED = ("code", "finance")


def said(context: str, entity: str, version: int = 1) -> Attestation:
    """Say something by hand."""
    return Attestation(
        context=context, entity=entity, actor="x", payload={"total": 1}, schema_version=version
    )


@pytest.fixture
def filled(sqlite_url: str, opened: Callable[..., Host]) -> str:
    """Fill a log with what the shop knows, in two versions, and with what nobody knows."""
    host = opened(sqlite_url)
    host.append([said("order_placed", "a"), said("odd", "b"), said("order_placed", "c", 2)])
    return sqlite_url


def test_the_page_in_the_documentation_is_what_the_command_prints(qntx: Qntx) -> None:
    """docs/contexts.md is `qntx-es contexts --markdown` with the shipped domains, to the letter."""
    printed = qntx("--domains", ",".join(SHIPPED), "contexts", "--markdown")

    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout == PAGE.read_text(), (
        "run: qntx-es --database sqlite:///none.db contexts --markdown > docs/contexts.md"
    )


def test_every_context_of_the_shipped_domains_is_documented() -> None:
    """Each has its section, with the schema of each version and a sentence of what it says."""
    page = PAGE.read_text()
    for domain in [*(find_domain(name).domain for name in SHIPPED), pulse]:
        for context, payload in domain.payloads.items():
            assert f"\n## `{context}`\n" in page
            for version in range(1, payload.schema_version + 1):
                assert f"\n### Version {version} of `{context}`\n\n```json\n" in page


def test_contexts_are_counted_with_who_states_and_who_reads_them(qntx: Qntx, filled: str) -> None:
    """The catalogue says of each context its fields, who states it, who reads it, and how many."""
    printed = qntx("--database", filled, "--domains", "shop", "contexts", "--json")

    assert printed.returncode == 0
    found = {one["context"]: one for one in json.loads(printed.stdout)}
    placed = found["order_placed"]
    assert (placed["appended_by"], placed["count"]) == (["shop"], 2)
    assert placed["counts"] == {"1": 1, "2": 1}
    assert (placed["first"]["position"], placed["last"]["position"]) == (1, 3)
    assert placed["read_by"] == [
        {"domain": "shop", "handler": "count", "kind": "project"},
        {"domain": "shop", "handler": "ask_to_ship", "kind": "derive"},
    ]
    (version,) = placed["versions"]
    assert version["schema"]["properties"] == {"total": {"title": "Total", "type": "integer"}}
    assert (found["order_shipped"]["appended_by"], found["order_shipped"]["count"]) == (["shop"], 0)
    assert found["pulse.job_requested"]["appended_by"] == ["any domain"]
    assert (found["odd"]["versions"], found["odd"]["count"]) == ([], 1)


def test_what_nobody_declares_can_be_asked_for(qntx: Qntx, filled: str) -> None:
    """`--undeclared` shows what is in the log and known to no enabled domain."""
    printed = qntx("--database", filled, "--domains", "shop", "contexts", "--undeclared")

    assert printed.returncode == 0
    assert [line.split()[0] for line in printed.stdout.splitlines()] == ["context", "odd"]


def test_one_context_is_described_in_full(qntx: Qntx, filled: str) -> None:
    """By name: every fact and the schema; a name that nobody has is refused with the nearest."""
    flags = ("--database", filled, "--domains", "shop")

    described = qntx(*flags, "contexts", "order_placed")
    assert described.returncode == 0
    assert "read by      shop (project count), shop (derive ask_to_ship)" in described.stdout
    assert "2: 1 of version 1, 1 of version 2" in described.stdout
    assert '"title": "Total"' in described.stdout

    refused = qntx(*flags, "contexts", "order_plaaced")
    assert refused.returncode == 2
    assert "no context `order_plaaced`; did you mean `order_placed`?" in refused.stderr


def test_without_a_database_everything_is_documented_and_nothing_counted(
    qntx: Qntx, shop: Path
) -> None:
    """The catalogue needs the code alone; that nothing is counted is said."""
    printed = qntx("--domains", "shop", "contexts")

    assert shop.exists()
    assert printed.returncode == 0
    assert "order_placed" in printed.stdout
    assert "nothing is counted: there is no database" in printed.stderr


def test_a_page_of_a_log_ends_with_its_counts(qntx: Qntx, filled: str) -> None:
    """Where there is a log, the page says how many of each, and from when to when."""
    printed = qntx("--database", filled, "--domains", "shop", "contexts", "--markdown")

    assert printed.returncode == 0
    _, counts = printed.stdout.split("## In this log\n")
    assert "| `order_placed` | 2 | 1, 20" in counts
    assert "No enabled domain says what this is." in printed.stdout


def test_what_is_appended_by_hand_is_of_the_newest_version(qntx: Qntx, filled: str) -> None:
    """`append` states the version that the enabled domains have, unless another is meant."""
    flags = ("--database", filled, "--domains", "shop")
    for more in ((), ("--schema-version", "7")):
        arguments = ("append", "order_placed", "d", "--payload", '{"total": 2}', *more)
        assert qntx(*flags, *arguments).returncode == 0

    asked = qntx(*flags, "ax", "d is order_placed", "--json")
    found = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [one["schema_version"] for one in found] == [1, 7]
