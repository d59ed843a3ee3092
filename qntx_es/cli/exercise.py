"""`qntx-es domains exercise`: the one line of the testing kit, without a test to write first.

It needs no database of yours: each example runs in one of its own. With `--sample` the examples are
slices of a real log, which is only read.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qntx_es.cli.exits import FAILURE
from qntx_es.cli.flags import command
from qntx_es.cli.session import Session
from qntx_es.discovery import domain_at
from qntx_es.errors import InconsistentReplay

EXAMPLES = 100


class On(StrEnum):
    """Where examples run."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    BOTH = "both"


def register(commands: typer.Typer) -> None:
    """Add the command."""
    command(commands, "exercise")(exercise)


def exercise(
    session: Session,
    target: Annotated[
        str, typer.Argument(metavar="DOMAIN", help="Its name, or where it is: package.module:name.")
    ],
    sample: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Replay slices of the last N attestations of the log."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="How many logs are tried.")] = EXAMPLES,
    on: Annotated[On, typer.Option(help="Which database the examples run on.")] = On.SQLITE,
) -> None:
    """Try whether a domain makes the same rows of a log, however that is replayed.

    Logs and plans are drawn, crashes, rebuilds, other clocks and hash seeds among them. The
    shortest log that shows a difference is printed as Python, with the likely cause.
    """
    from qntx_es.testing import from_log, replay_consistency  # noqa: PLC0415 - an extra: not every installation has it

    sys.path.insert(0, str(Path.cwd()))  # a module beside whoever asks, as for `python -m`
    domain = domain_at(target)
    drawn = None
    if sample is not None:
        with session.log_only() as host:
            drawn = from_log(host, sample=sample)
    failure = ""
    try:
        replay_consistency(domain, on=on.value, examples=examples, attestations=drawn)()
    except InconsistentReplay as error:
        failure = str(error)
    session.out.document(
        {"domain": domain.name, "examples": examples, "on": on.value, "failure": failure or None}
    )
    passed = f"{domain.name}: {examples} logs replayed, each to the same rows"
    session.out.say(failure or passed, is_whole=True)
    if failure:
        raise typer.Exit(FAILURE)
