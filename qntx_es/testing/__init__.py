"""What users import to prove their own domains.

A kit is only worth its trust if its owner lives by it: everything here also carries our own
suite. Nothing in it needs a service that somebody must start first. What draws needs Hypothesis
(`qntx-es[testing]`), and is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qntx_es.errors import InconsistentReplay, MissingExtra, NoStrategy
from qntx_es.testing.bench import Clock
from qntx_es.testing.plans import (
    Step,
    append,
    cut,
    fail,
    lift,
    poll,
    rebuild,
    restart,
    travel,
    under,
)
from qntx_es.testing.postgres import PostgresServer, PostgresUnavailable
from qntx_es.testing.replay import Outcome, fold, run
from qntx_es.testing.report import replay
from qntx_es.testing.scenario import Scenario, scenario

if TYPE_CHECKING:
    from qntx_es.recorders.exercise import exercise_recorders
    from qntx_es.testing.checks import replay_consistency
    from qntx_es.testing.living import machine
    from qntx_es.testing.log_exercise import exercise_log
    from qntx_es.testing.strategies import attestations, from_log

_LATER = {
    "exercise_log": "testing.log_exercise",
    "exercise_recorders": "recorders.exercise",
    "attestations": "testing.strategies",
    "machine": "testing.living",
    "from_log": "testing.strategies",
    "replay_consistency": "testing.checks",
}

__all__ = [
    "Clock",
    "InconsistentReplay",
    "NoStrategy",
    "Outcome",
    "PostgresServer",
    "PostgresUnavailable",
    "Scenario",
    "Step",
    "append",
    "attestations",
    "cut",
    "exercise_log",
    "exercise_recorders",
    "fail",
    "fold",
    "from_log",
    "lift",
    "machine",
    "poll",
    "rebuild",
    "replay",
    "replay_consistency",
    "restart",
    "run",
    "scenario",
    "travel",
    "under",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is drawn with
    if name not in _LATER:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    try:
        return getattr(import_module(f"qntx_es.{_LATER[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("hypothesis", "pytest"):
            raise
        raise MissingExtra("testing") from error
