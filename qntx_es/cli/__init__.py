"""The command line, `qntx-es`: everything an admin does, and a demo to begin with.

One module a command group, one function a command. Results go to stdout, in the form their reader
can use: tables on a terminal, plain lines in a pipe, JSON where it is asked for. Whatever else
there is to say (progress, warnings, what was refused) goes to stderr. Nothing here knows a domain:
they are found by name, and commands that need none import none.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from qntx_es.cli import (
    append,
    ax,
    contexts,
    db,
    demo,
    domains,
    jobs,
    metrics,
    projections,
    run,
    transfer,
)
from qntx_es.cli.flags import AsJson, Config, Database, Domains, remember

app = typer.Typer(
    name="qntx-es",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 difference or stopped, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (
    demo,
    run,
    append,
    ax,
    contexts,
    projections,
    jobs,
    domains,
    metrics,
    transfer,
    db,
):
    commands.register(app)


def _tell_version(asked: bool) -> None:  # noqa: FBT001 - the shape of a typer callback
    if asked:
        print(f"qntx-es {version('qntx-es')}")
        raise typer.Exit


@app.callback()
def flags(  # noqa: PLR0913 - one parameter a flag
    context: typer.Context,
    *,
    database: Database = None,
    config: Config = None,
    domains: Domains = None,
    as_json: AsJson = False,
    version: Annotated[  # noqa: ARG001 - its callback ends the program
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Show it.")
    ] = False,
) -> None:
    """Run an append-only log of attestations, and read models that are rebuilt with proof."""
    remember(context, database=database, config=config, domains=domains, as_json=as_json)


def main() -> None:
    """Run the command line of this process."""
    app(prog_name="qntx-es")
