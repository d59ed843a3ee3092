"""What pytest offers wherever qntx-es is installed: fixtures, options, and one line at the end."""

import pytest

pytest_plugins = ["pytester"]

DOMAIN = """
from qntx_es import Attestation, Domain, Payload, Recorded, Rows, faults
from sqlalchemy import Column, Integer, String

class Moved(Payload, context="moved"):
    pass

ledger = Domain("ledger")
accounts = ledger.table(
    "accounts", Column("entity", String, primary_key=True), Column("moves", Integer, default=0)
)

@ledger.project(Moved)
def count(moved: Recorded[Moved], rows: Rows) -> None:
    rows.add(accounts, moved.entity, moves=1)

def move(entity="a"):
    return ledger.attest(Moved(), entity=entity)
"""


ROTTEN = """
def test_rotten():
    with faults.planned({"rebuild.before_swap": faults.crash()}):
        pass
    faults.sometimes("the moon is full", is_met=False)
"""


def run(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    """Run tests about the domain as a stranger would, in a process of their own."""
    pytester.makepyfile(test_it=DOMAIN + tests)
    plain = ("-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:cov", "-q")
    return pytester.runpytest_subprocess(*(() if "-n" in options else plain), *options)


def test_fixtures_open_what_they_say(pytester: pytest.Pytester) -> None:
    """Host, log, clock and process are there on each chosen database, fresh for every test."""
    result = run(
        pytester,
        """
import datetime, signal

HEARING = "import sys; print(sys.argv[1], flush=True); print(input(), flush=True); input()"

def test_host(qntx_host, qntx_clock):
    host = qntx_host(ledger)
    host.append([move(), move()])
    qntx_clock.move(3600)
    host.append(move())
    qntx_host(ledger).catch_up()
    with host.database.read() as connection:
        assert connection.execute(accounts.select()).all() == [("a", 3)]
    first, _, last = host.log.read()
    hour = datetime.timedelta(hours=1)
    assert (last.recorded_at - first.recorded_at == hour) or not host.database.is_sqlite

def test_log(qntx_log):
    assert qntx_log.head() == 0
    assert qntx_log.append(move()).position == 1

def test_process(qntx_process, qntx_url):
    process = qntx_process(HEARING, qntx_url)
    assert process.line() == qntx_url
    process.say("heard")
    process.stop()
    process.go_on()
    assert process.line() == "heard"
    assert process.kill() == -signal.SIGKILL

def test_postgres(qntx_postgres):
    assert qntx_postgres.startswith("postgresql")
""",
        "--qntx-on=both",
    )

    result.assert_outcomes(passed=7)


def test_nothing_is_imported_before_it_is_needed(pytester: pytest.Pytester) -> None:
    """A test on SQLite meets neither Hypothesis nor a driver, and unasked no fault is required."""
    result = run(
        pytester,
        ROTTEN
        + """
import sys

def test_it(qntx_host, qntx_faults, qntx_clock):
    qntx_host(ledger).append(move())
    assert {"hypothesis", "psycopg"}.isdisjoint(sys.modules)
""",
        *("-p", "no:hypothesispytest"),
    )

    result.assert_outcomes(passed=2)
    assert result.ret == 0


def test_profiles_are_registered_and_none_is_loaded(pytester: pytest.Pytester) -> None:
    """Hypothesis knows our three profiles, and looks as deep as it does without us."""
    pytester.makepyfile(
        test_it="""
from hypothesis import settings

def test_it():
    found = {name: settings.get_profile(f"qntx-{name}") for name in ("fast", "ci", "nightly")}
    assert [one.max_examples for one in found.values()] == [25, 100, 2000]
    assert found["ci"].derandomize and found["ci"].database is None
    assert not found["nightly"].derandomize
    assert settings.get_current_profile_name() in ("default", "ci")  # Hypothesis' own
"""
    )

    result = pytester.runpytest_subprocess("-p", "no:xdist", "-q")

    result.assert_outcomes(passed=1)


FAULTS = """
def test_fires(qntx_host, qntx_faults):
    host = qntx_host(ledger)
    host.append(move())
    qntx_faults({"batch.before_commit": faults.crash()})
    try:
        host.catch_up()
    except faults.Crash:
        pass
    faults.sometimes("a batch was cut off")

def test_figures(record_property):
    record_property("qntx.refused", 2)
    record_property("qntx.appended", 1200)
    record_property("qntx.lost", 0)
"""


def test_one_line_sums_up(pytester: pytest.Pytester) -> None:
    """The last line tells faults, refusals, attestations and fault points; JUnit has them too."""
    result = run(pytester, FAULTS, "--qntx-require-faults", "--junit-xml=found.xml")

    result.assert_outcomes(passed=2)
    assert result.ret == 0
    (line,) = (one for one in result.outlines if one.startswith("qntx: "))
    assert line.removeprefix("qntx: ").split(" · ") == [
        "1 faults injected, 1 survived",
        "2 of 2 bad inputs refused by name",
        "1 200 attestations acknowledged, 0 lost, 0 doubled",
        "1 of 1 fault points fired",
    ]
    found = (pytester.path / "found.xml").read_text(encoding="utf-8")
    assert '<property name="qntx.appended" value="1200"' in found


def test_a_fault_that_never_happens_fails_the_session(pytester: pytest.Pytester) -> None:
    """Only where asked, a planned point that never fired or a state never met is a failure."""
    result = run(pytester, FAULTS + ROTTEN, "--qntx-require-faults")

    result.assert_outcomes(passed=3)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*fault point `rebuild.before_swap` is planned and never fired",
            "*never met: the moon is full",
            "*1 of 2 fault points fired",
        ]
    )


def test_workers_are_added_up(pytester: pytest.Pytester) -> None:
    """Under pytest-xdist a point that fires in one worker has fired for the whole session."""
    killed = """
import signal, sys

KILLED = '''
import sys
from qntx_es import Host, faults
with faults.planned({"append.before_commit": faults.kill()}):
    from test_it import move
    Host(sys.argv[1]).append(move())
'''

def test_plans_only():
    with faults.planned({"batch.before_commit": faults.crash()}):
        pass

def test_killed(qntx_process, qntx_url):
    assert qntx_process(KILLED, qntx_url).wait() == -signal.SIGKILL
"""

    result = run(pytester, FAULTS + killed, "-n", "2", "--qntx-require-faults", "-p", "no:cov")

    result.assert_outcomes(passed=4)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["qntx: 2 faults injected, 2 survived*2 of 2 fault points fired"])


def test_what_fails_is_told_and_its_log_is_kept(pytester: pytest.Pytester) -> None:
    """A failing test leaves an export of its log; a fault put in force that never fired fails."""
    result = run(
        pytester,
        """
def test_failing(qntx_host):
    qntx_host(ledger).append([move(), move()])
    assert False

def test_fine(qntx_log):
    qntx_log.append(move())

def test_forgetful(qntx_faults):
    qntx_faults({"batch.before_commit": faults.crash()})
""",
        "--qntx-keep-failures=kept",
    )

    result.assert_outcomes(passed=2, failed=1, errors=1)
    (file,) = (pytester.path / "kept").iterdir()
    assert file.name == "test_it.py-test_failing-sqlite.ndjson"
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4
    result.stdout.fnmatch_lines([f"*2 attestations is kept*{file.name}*"])
    result.stdout.fnmatch_lines(["*planned and never fired: batch.before_commit*"])
