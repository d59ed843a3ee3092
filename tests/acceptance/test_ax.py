"""`qntx-es ax`: asking the log, and being shown what others wrote as the text it is."""

import json
import signal
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import TypeAlias

from qntx_es import Attestation, Host

Qntx: TypeAlias = Callable[..., CompletedProcess[str]]
Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]
Started: TypeAlias = Callable[..., Popen[str]]
Terminal: TypeAlias = Callable[..., tuple[int, str]]

SECONDS_MAX = 60
NOON = datetime(2026, 1, 4, 12, tzinfo=UTC)
KEYS = [
    "position",
    "id",
    "context",
    "actor",
    "entity",
    "payload",
    "schema_version",
    "recorded_at",
    "caused_by",
    "correlation_id",
    "depth",
    "tags",
    "entity_version",
]


class Clock:
    """A clock that moves by a day whenever it is told to."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        """Return nanoseconds since 1970."""
        return round(self.now.timestamp()) * 1_000_000_000

    def pass_a_day(self) -> None:
        """Make it noon tomorrow."""
        self.now += timedelta(days=1)


def said(
    entity: str,
    context: str = "seen",
    *,
    actor: str = "ann",
    payload: Mapping[str, object] | None = None,
    caused_by: str | None = None,
) -> Attestation:
    """Say something small."""
    return Attestation(
        context=context, entity=entity, actor=actor, payload=payload or {}, caused_by=caused_by
    )


def test_an_attestation_is_one_line_of_json(qntx: Qntx, empty_log: str, shop: Path) -> None:
    """Each line is one attestation, exact and whole, under keys that stay; no domain is needed."""
    payload = {"n": 2**80, "half": 0.5, "name": "ünï 日本 [red]", "odd": "\x1b[31m\x85\u202e"}
    with closing(Host(empty_log)) as host:
        cause = host.append(said("a", payload=payload))
        host.append(said("b", "heard", caused_by=cause.id))
    shop.write_text("raise SystemExit('imported')")

    finished = qntx("ax", "--database", empty_log, "--json", QNTX_DOMAINS="shop")

    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.replace("\n", "").isprintable()
    first, second = map(json.loads, finished.stdout.splitlines())
    assert list(first) == list(second) == KEYS
    assert (first["position"], first["context"], first["entity"]) == (1, "seen", "a")
    assert first["payload"] == payload
    assert first["caused_by"] is None
    assert second["caused_by"] == first["id"] == cause.id
    assert datetime.fromisoformat(first["recorded_at"]).utcoffset() == timedelta(0)
    assert first["recorded_at"].endswith("Z")


def test_parts_of_the_log_are_asked_for(each: Each, sqlite_url: str) -> None:
    """Each option narrows the answer, a day is all of it, and the newest are the last."""
    clock = Clock()
    with closing(Host(sqlite_url, clock=clock)) as host:
        host.upgrade()
        for entity, context, actor in (
            ("a", "seen", "ann"),
            ("b", "seen", "bob"),
            ("a", "heard", "ann"),
            ("c", "seen", "ann"),
        ):
            host.append(said(entity, context, actor=actor))
            clock.pass_a_day()
    asked = {
        ("--context", "seen", "--context", "heard", "--actor", "ann"): [1, 3, 4],
        ("--entity", "a", "--entity", "b", "--limit", "2"): [2, 3],
        ("--since", "2026-01-05T13:00:00+01:00", "--until", "2026-01-06"): [2, 3],
        ("--context", "seen", "--entity", "c", "--actor", "bob"): [],
    }

    finished = each(*(("ax", "--database", sqlite_url, *one) for one in asked))

    for one, positions in zip(finished, asked.values(), strict=True):
        assert one.returncode == 0
        found = [int(line.split()[0]) for line in one.stdout.splitlines()]
        assert found == positions, one.args
    assert finished[-1].stderr == ("qntx-es: nothing found among 4 attestations\n")


def test_a_context_nobody_knows_is_refused(each: Each, empty_log: str) -> None:
    """A mistyped context is an error with its nearest; one that a domain knows is empty."""
    with closing(Host(empty_log)) as host:
        host.append(said("a"))

    mistyped, unseen = each(
        ("ax", "--database", empty_log, "--json", "--context", "sen"),
        ("ax", "--database", empty_log, "--json", "--context", "pulse.job_requested"),
    )

    assert (mistyped.returncode, mistyped.stdout) == (2, "")
    assert mistyped.stderr == "qntx-es: no context `sen`; did you mean `seen`?\n"
    assert (unseen.returncode, unseen.stdout, unseen.stderr) == (0, "", "")


def test_what_others_wrote_cannot_act(qntx: Qntx, at_terminal: Terminal, empty_log: str) -> None:
    """Markup is shown as it is, and what would act on a terminal is shown escaped."""
    note = {"note": "\x1b[2J\x07 \u2066x\n"}
    with closing(Host(empty_log)) as host:
        host.append(said("[red]a[/red] :smile: \u202ebidi", payload=note))

    piped = qntx("ax", "--database", empty_log)
    code, shown = at_terminal("ax", "--database", empty_log)

    assert piped.returncode == code == 0
    assert piped.stdout.startswith("1  ")
    for text in (piped.stdout, "".join(shown.split())):
        assert "[red]a[/red]" in text
        assert ":smile:" in text
        assert "\\u202ebidi" in text
        assert '{"note":"\\u001b[2J' in text
        assert "\x1b[2J" not in text
        assert not set("\u202e\u2066\x07") & set(text)
    assert "\x1b" not in piped.stdout


def test_a_pipe_gets_whole_lines_and_may_close(started: Started, empty_log: str) -> None:
    """A long value is not cut in a pipe, and a reader that leaves makes no traceback."""
    with closing(Host(empty_log)) as host:
        host.append([said(f"entity-{n}", payload={"text": "x" * 900}) for n in range(1_500)])

    process = started("ax", "--database", empty_log)
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stdout.readline()
    process.stdout.close()
    complaint = process.stderr.read()

    assert first.split()[0] == "1"
    assert "x" * 900 in first
    assert process.wait(SECONDS_MAX) == 1
    assert complaint == ""


def test_a_query_is_one_argument(qntx: Qntx, empty_log: str) -> None:
    """A text asks for what it says, and a mistake in it is pointed at, with the code of usage."""
    with closing(Host(empty_log)) as host:
        host.append([said("a", payload={"n": n}) for n in range(5)])
    asked = ("--database", empty_log, "ax")

    found = qntx(*asked, "a is seen where n > 2 limit 1", "--json")
    assert [json.loads(line)["position"] for line in found.stdout.splitlines()] == [5]

    refused = qntx(*asked, "a iz seen")
    assert refused.returncode == 2
    assert "did you mean `is`" in refused.stderr
    assert refused.stderr.splitlines()[-1].endswith("  ^")
    assert qntx(*asked, "a is seen", "--limit", "3").returncode == 2
    assert qntx(*asked, "--as-of", "2026-01-04").returncode == 2


def test_the_plan_is_shown_and_nothing_else(qntx: Qntx, empty_log: str) -> None:
    """`--explain` prints what the database would do, to people and to programs."""
    with closing(Host(empty_log)) as host:
        host.append(said("a"))
    asked = ("--database", empty_log, "ax", "a is seen where n > 2 limit 1", "--explain")

    shown = qntx(*asked)
    assert shown.returncode == 0
    assert "qntx_attestations_entity" in shown.stdout

    document = json.loads(qntx(*asked, "--json").stdout)
    assert document["query"] == "a is seen where n > 2 limit 1"
    assert document["statement"].startswith("SELECT")
    assert "a" in document["parameters"].values()
    assert document["index"] is None


def test_what_takes_too_long_fails_by_name(qntx: Qntx, empty_log: str) -> None:
    """Past the limit of the settings a query ends with exit 1 and the remedy."""
    with closing(Host(empty_log)) as host:
        for _ in range(2):
            host.append([said("a", payload={"n": list(range(50))}) for _ in range(10_000)])

    hurried = qntx("--database", empty_log, "ax", "where n contains 99", QNTX_AX_SECONDS="0.01")

    assert hurried.returncode == 1
    assert "took too long" in hurried.stderr


def test_following_goes_on_with_what_is_appended(started: Started, empty_log: str) -> None:
    """`--follow` shows what there is, then each new match at once and in order, until Ctrl-C."""
    with closing(Host(empty_log)) as host:
        host.append([said("a", payload={"n": 1}), said("b")])
        process = started("ax", "a limit 1", "--follow", "--json", "--database", empty_log)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["payload"] == {"n": 1}
        for n in (2, 3):
            host.append([said("b"), said("a", payload={"n": n}), said("a", payload={"n": -n})])
            shown = [json.loads(process.stdout.readline())["payload"]["n"] for _ in range(2)]
            assert shown == [n, -n]

    process.send_signal(signal.SIGINT)

    assert process.wait(SECONDS_MAX) == 130
    assert process.stdout.read() == ""


def test_following_has_no_end(qntx: Qntx, empty_log: str) -> None:
    """A query that ends, or one that is only explained, cannot be followed."""
    for more in (("until 2026-01-04", "--follow"), ("a", "--follow", "--explain")):
        refused = qntx("--database", empty_log, "ax", *more)
        assert refused.returncode == 2
        assert "without an end" in refused.stderr
