"""Fault points: where they stand, what actions do there, and that all of it is counted."""

import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from qntx_es import Attestation, Host, faults
from qntx_es.faults import Action, Crash, Gate, crash, fail, kill, planned, stall

ROOT = Path(__file__).parents[2]
POINT = "append.before_commit"


def said(entity: str = "a") -> Attestation:
    """Say something small."""
    return Attestation(context="said", entity=entity, actor="ann", payload={})


def passing(times: int, name: str = POINT) -> None:
    """Pass a point so often."""
    for _ in range(times):
        faults.point(name)


def test_the_points_are_those_in_the_code() -> None:
    """Every name stands somewhere in the real code, and no other name stands there."""
    sources = [*(ROOT / "qntx_es").rglob("*.py"), *(ROOT / "alembic").rglob("*.py")]
    called = re.compile(r'faults\.point\(\s*"([^"]+)"\s*\)')

    found = {name for one in sources for name in called.findall(one.read_text(encoding="utf-8"))}

    assert found == set(faults.POINTS)
    assert len(faults.POINTS) == len(set(faults.POINTS))


def test_an_unknown_point_is_refused() -> None:
    """A misspelt name fails when the plan is made, and nothing is in force."""
    with (
        pytest.raises(ValueError, match=r"batch\.befor_commit"),
        planned({"batch.befor_commit": crash()}),
    ):
        pass

    passing(1)


def test_an_action_acts_once_at_its_turn() -> None:
    """With `nth` an action is done that very time and no other; a function is called each time."""
    done: list[str] = []
    with planned({POINT: Action(lambda: done.append("acted"), nth=3)}):
        passing(2)
        assert done == []
        passing(3)
    with planned({POINT: lambda: done.append("called")}):
        passing(2)
    passing(1)

    assert done == ["acted", "called", "called"]


def test_of_many_threads_one_meets_the_action() -> None:
    """Turns are counted for all threads together, so exactly one of them is the n-th."""
    crashed: list[int] = []

    def work(number: int) -> None:
        try:
            passing(250)
        except Crash:
            crashed.append(number)

    with planned({POINT: crash(nth=500)}):
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(crashed) == 1


def test_fail_raises_what_it_is_given() -> None:
    """An error of one's choice comes out of the real code, and the append is none."""
    with Host("sqlite://") as host:
        host.upgrade()
        with planned({POINT: fail(LookupError("here"))}), pytest.raises(LookupError, match="here"):
            host.append(said())

        assert host.log.head() == 0


def test_a_crash_closes_the_connection(url: str) -> None:
    """A connection that was in use in a crash is closed, and not given to whoever comes next."""
    with Host(url) as host:
        host.upgrade()
        closed: list[object] = []
        with host.database.write() as connection:
            before = connection.connection.driver_connection
        with suppress(Crash), host.database.write() as connection:
            assert connection.connection.driver_connection is before
            connection.execute(text("DELETE FROM qntx_leases"))
            raise Crash
        with host.database.write() as connection:
            closed.append(connection.connection.driver_connection)

        assert closed[0] is not before
        assert host.append(said()).position == 1


def test_a_stall_lasts_until_its_gate_opens(url: str) -> None:
    """Whoever stalls stands in the middle of what it did, and goes on when it is let."""
    gate, positions = Gate(), list[int]()
    with Host(url) as host:
        host.upgrade()
        with planned({POINT: stall(gate)}):
            thread = threading.Thread(target=lambda: positions.append(host.append(said()).position))
            thread.start()
            gate.wait()
            assert host.log.head() == 0
            gate.open()
            thread.join()

    assert positions == [1]


def test_a_gate_does_not_wait_for_ever() -> None:
    """Neither who stands at a gate nor who waits for somebody there waits longer than told."""
    gate = Gate(seconds_max=0.01)

    with pytest.raises(TimeoutError, match="nobody came"):
        gate.wait()
    with pytest.raises(TimeoutError, match="nobody opened"):
        gate.hold()


KILLED = """
from qntx_es import faults
faults.sometimes("it was dark")
faults.sometimes("it was light", is_met=False)
plan = {"append.before_commit": faults.kill(nth=2), "batch.after_look": faults.kill()}
with faults.planned(plan):
    for _ in range(3):
        faults.point("append.before_commit")
"""


def test_what_is_killed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that kills itself has told before what fired, what was planned and what was met."""
    file = tmp_path / "tally"
    monkeypatch.setenv(faults.TALLY, str(file))

    ended = subprocess.run([sys.executable, "-c", KILLED], check=False).returncode

    found = faults.read_tally(file)
    assert ended == -signal.SIGKILL
    assert found.fired == Counter({POINT: 1})
    assert found.unfired() == ["batch.after_look"]
    assert found.unfired([POINT]) == []
    assert found.unmet() == ["it was light"]
    assert kill().nth == 1


def test_what_is_passed_under_a_plan_is_counted() -> None:
    """Each point counts how often it was seen under a plan, and how often its action was done."""
    before = faults.tally()
    seen, fired = before.seen[POINT], before.fired[POINT]

    passing(5)
    with planned({"batch.after_look": crash()}):
        passing(2)
    with suppress(Crash), planned({POINT: crash(nth=2)}):
        passing(3)

    after = faults.tally()
    assert (after.seen[POINT], after.fired[POINT]) == (seen + 4, fired + 1)
