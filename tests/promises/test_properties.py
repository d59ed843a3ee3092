"""The page of properties says the truth: what it names is there, and runs where it says so."""

import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
WAITING = {"P25"}
LAYERS = ("pure", "machines", "interleavings", "processes")
COLLECT = """
import json, pathlib, sys, pytest

class Told:
    def pytest_collection_finish(self, session):
        found = [[one.nodeid, one.fixturenames, [each.name for each in one.iter_markers()]]
                 for one in session.items]
        pathlib.Path(sys.argv[1]).write_text(json.dumps(found))

asked = ["--collect-only", "-q", "-m", "", "-p", "no:xdist", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*asked, *sys.argv[2:]], plugins=[Told()]))
"""


@dataclass
class Collected:
    """What pytest knows of a test: its parameters, its fixtures and its markers, of all cases."""

    cases: list[str]
    fixtures: set[str]
    markers: set[str]
    source: str

    @property
    def on(self) -> set[str]:
        """Tell on which databases it runs; one in memory is not told."""
        given = {
            kind
            for kind in ("sqlite", "postgresql")
            if any(kind in one.partition("[")[2] for one in self.cases)
        }
        if given:
            return given
        if "postgres_url" in self.fixtures and "sqlite_url" not in self.fixtures:
            return {"postgresql"}
        # It holds both side by side.
        is_both = "postgres_server" in self.fixtures and "sqlite" in self.source
        return {"sqlite", "postgresql"} if is_both else set()


@pytest.fixture
def collected(properties: list[Any], tmp_path: Path) -> dict[str, Collected]:
    """Collect all files that the page names, as they are collected by day and at night."""
    files = sorted({one.test.partition("::")[0] for one in properties if one.test})
    told = tmp_path / "collected.json"
    named = [str(TESTS / one) for one in files]
    subprocess.run([sys.executable, "-c", COLLECT, str(told), *named], check=True, cwd=TESTS.parent)
    found: dict[str, Collected] = {}
    for node, fixtures, markers in json.loads(told.read_text()):
        test = node.partition("[")[0].removeprefix("tests/")
        source = (TESTS / test.partition("::")[0]).read_text()
        one = found.setdefault(test, Collected([], set(), set(), source))
        one.cases.append(node)
        one.fixtures.update(fixtures)
        one.markers.update(markers)
    return found


def test_each_property_is_held_by_a_test(properties: list[Any]) -> None:
    """P1 to P28 are there in order, and but for those that wait each names a test."""
    held = {
        number: [one for one in rows if one.test]
        for number, rows in groupby(properties, lambda one: one.number)
    }

    assert list(held) == [f"P{number}" for number in range(1, 29)]
    assert {number for number, rows in held.items() if not rows} == WAITING
    assert all(one.promise for one in properties)


def test_what_the_page_names_is_collected_and_runs_where_it_says(
    properties: list[Any], collected: dict[str, Collected]
) -> None:
    """Each test is there, on the databases and in the layer that it is said to be in."""
    kinds = {"both": {"sqlite", "postgresql"}, "PostgreSQL": {"postgresql"}}
    for one in properties:
        if not one.test:
            continue
        assert one.test in collected, f"{one.number}: there is no {one.test}"
        found = collected[one.test]
        assert found.on == kinds.get(one.on, set()), one
        assert {*one.layers} - {"nightly"} == found.markers.intersection(LAYERS), one
        assert ("nightly" in one.layers) <= ("nightly" in found.markers), one
        assert one.number in found.markers
