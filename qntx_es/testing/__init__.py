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
    from qntx_es.testing.checks import replay_consistency
    from qntx_es.testing.strategies import attestations, from_log

_DRAWING = {
    "attestations": "strategies",
    "from_log": "strategies",
    "replay_consistency": "checks",
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
    "fail",
    "fold",
    "from_log",
    "lift",
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
    if name not in _DRAWING:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    try:
        return getattr(import_module(f"{__name__}.{_DRAWING[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise MissingExtra("testing") from error
