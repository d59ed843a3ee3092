"""The one line finds the bugs that replays are known for, and leaves alone what is right.

Each file of `bugs/` is an ordinary domain with one thing wrong in it, each of `right/` one with
nothing wrong. Written for them, the one line would prove little: they are what an author would
write, and what finds them is told nothing about them.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qntx_es import Domain
from qntx_es.testing import InconsistentReplay, replay_consistency

HERE = Path(__file__).parent
BUGS = sorted(one.stem for one in (HERE / "bugs").glob("*.py"))
RIGHT = sorted(one.stem for one in (HERE / "right").glob("*.py"))
SEEDS = range(5)
# By day one of each kind; the others differ in what they look at, and not in how that is found.
BY_DAY = (
    "a_file",
    "anothers_table",
    "chance",
    "clock",
    "entities_that_are_not_apart",
    "environment",
    "memory",
    "new_ids",
    "order_of_a_set",
    "order_of_keys",
    "own_connection",
    "time_zone",
)
RIGHT_BY_DAY = ("answered", "apart", "handed_on", "lifted")
EXAMPLES_MAX = 200


def module_of(folder: str, name: str) -> ModuleType:
    """Import a file of the gallery, as other interpreters will."""
    called = f"gallery_{folder}_{name}"
    found = importlib.util.spec_from_file_location(called, HERE / folder / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[called] = module
    found.loader.exec_module(module)
    return module


def domain_of(module: ModuleType) -> Domain:
    """Return the domain of a file."""
    domain = module.domain
    assert isinstance(domain, Domain)
    return domain


def some(names: list[str], by_day: tuple[str, ...]) -> list[Any]:
    """Return names as parameters, those that are not for the day marked."""
    assert set(by_day) <= set(names)
    marks = {name: () if name in by_day else (pytest.mark.nightly,) for name in names}
    return [pytest.param(name, marks=marks[name]) for name in names]


@pytest.mark.parametrize("name", some(BUGS, BY_DAY))
def test_a_bug_is_found_and_its_cause_named(name: str) -> None:
    """Within 200 examples, whatever is wrong is met, and nothing else is blamed."""
    module = module_of("bugs", name)

    with pytest.raises(InconsistentReplay) as failed:
        replay_consistency(domain_of(module), examples=EXAMPLES_MAX)()

    assert failed.value.cause == module.CAUSE, str(failed.value)


@pytest.mark.parametrize("name", some(RIGHT, RIGHT_BY_DAY))
def test_what_is_right_is_left_alone(name: str) -> None:
    """A domain that looks at its arguments alone passes."""
    replay_consistency(domain_of(module_of("right", name)))()


@pytest.mark.nightly
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_right_is_left_alone_whatever_is_drawn(seed: int) -> None:
    """No seed draws a false alarm."""
    drawn = "test_gallery.py::test_what_is_right_is_left_alone"
    asked = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "",
        str(HERE / drawn),
        f"--hypothesis-seed={seed}",
    ]
    outside = {name: value for name, value in os.environ.items() if name != "CI"}

    done = subprocess.run(asked, capture_output=True, text=True, check=False, env=outside)

    assert done.returncode == 0, done.stdout
    assert f"{len(RIGHT)} passed" in done.stdout


def test_the_gallery_is_large_enough() -> None:
    """Fifteen bugs and ten that are right, or the proof is thin."""
    assert len(BUGS) >= 15
    assert len(RIGHT) >= 10
