"""What a session has proved, in figures, on one line at its end.

A test says what it did by pytest's own `record_property`: `qntx.refused` (bad inputs), and
`qntx.appended`, `qntx.lost` and `qntx.doubled` (attestations that were acknowledged). What fault
points did is counted by itself, by process, in files of one folder: of this process, of each worker
of pytest-xdist, and of the processes that tests start and kill.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from qntx_es import faults

PREFIX = "qntx."


class Figures:
    """The figures of one session. A worker of pytest-xdist counts, and its controller adds up."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        worker = getattr(config, "workerinput", None)
        self._is_worker = worker is not None
        self._outside = os.environ.get(faults.TALLY)
        if worker is None:
            self._file = Path(mkdtemp(prefix="qntx-faults-")) / "main"
        else:
            self._file = Path(os.environ[faults.TALLY]).with_name(worker["workerid"])
        self._file.touch()
        os.environ[faults.TALLY] = str(self._file)
        self._done = 0
        self._figures: dict[str, Counter[str]] = {}
        self._failed: set[str] = set()

    def pytest_unconfigure(self) -> None:
        """Count no more."""
        if self._is_worker:
            return
        shutil.rmtree(self._file.parent)
        if self._outside is None:
            del os.environ[faults.TALLY]
        else:
            os.environ[faults.TALLY] = self._outside

    # In the process that runs the tests.

    def pytest_runtest_setup(self) -> None:
        """Begin to count for one test."""
        self._done = self._file.stat().st_size

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        """Record with a test how many faults it has injected."""
        try:
            yield
        finally:
            with self._file.open("rb") as stream:
                stream.seek(self._done)
                fired = sum(line.startswith(b"fired ") for line in stream)
            if fired:
                item.user_properties.append((f"{PREFIX}faults", fired))

    # In the process that has the session.

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up what a test has recorded, once it is over."""
        if report.failed:
            self._failed.add(report.nodeid)
        if report.when != "teardown":
            return
        for name, value in report.user_properties:
            if name.startswith(PREFIX):
                counted = self._figures.setdefault(report.nodeid, Counter())
                counted[name.removeprefix(PREFIX)] += int(str(value))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail where a planned fault never happened, if that is asked for."""
        if not self._is_worker and session.exitstatus == pytest.ExitCode.OK and self._missing():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the line."""
        for one in self._missing():
            terminalreporter.write_line(f"qntx: {one}", red=True)
        line = self.line()
        if line:
            terminalreporter.write_line(f"qntx: {line}")

    def line(self) -> str:
        """Return the figures in words; empty where there are none."""
        total, held = Counter[str](), Counter[str]()
        for test, counted in self._figures.items():
            total += counted
            if test not in self._failed:
                held += counted
        tally = self._tally()
        said = []
        if total["faults"]:
            said.append(f"{_told(total, 'faults')} injected, {_told(held, 'faults', '')} survived")
        if total["refused"]:
            said.append(
                f"{held['refused']} of {_told(total, 'refused', 'bad inputs')} refused by name"
            )
        if total["appended"]:
            said.append(
                f"{_told(total, 'appended', 'attestations')} acknowledged, "
                f"{total['lost']} lost, {total['doubled']} doubled"
            )
        if tally.planned:
            fired = len(tally.planned) - len(tally.unfired())
            said.append(f"{fired} of {len(tally.planned)} fault points fired")
        return " · ".join(said)

    def _missing(self) -> list[str]:
        if not self._config.getoption("--qntx-require-faults"):
            return []
        tally = self._tally()
        return [
            *(f"fault point `{one}` is planned and never fired" for one in tally.unfired()),
            *(f"never met: {one}" for one in tally.unmet()),
        ]

    def _tally(self) -> faults.Tally:
        return faults.read_tally(*sorted(self._file.parent.iterdir()))


def _told(counted: Counter[str], name: str, what: str | None = None) -> str:
    """Return a number in groups of three, and what it counts."""
    number = f"{counted[name]:,}".replace(",", " ")
    return f"{number} {name if what is None else what}".strip()
