"""The flags every command takes, before its name or behind it, and how a command is registered.

People add `--json` at the end of the line they have, so the flags work at each level; the one
nearest to the end wins. A command is handed a session made of them, and has no other way to know
what it was asked for.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from qntx_es.cli.exits import named_errors
from qntx_es.cli.session import Session

Run: TypeAlias = Callable[..., None]

Database: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The database. [env: QNTX_DATABASE_URL; default: sqlite:///qntx.db]"
    ),
]
Config: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        readable=True,
        help="The settings. [env: QNTX_CONFIG; default: qntx.toml, if there]",
    ),
]
Domains: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="The domains to run, and no others. [env: QNTX_DOMAINS]"),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@dataclass(frozen=True, slots=True)
class Flags:
    """What was said on the command line; None where nothing was."""

    database: str | None = None
    config: Path | None = None
    domains: str | None = None
    as_json: bool = False


def remember(context: typer.Context, **said: Any) -> Flags:  # noqa: ANN401 - the parts of Flags
    """Put what was said at this level over what was said before it."""
    before = context.obj if isinstance(context.obj, Flags) else Flags()
    flags = replace(before, **{name: one for name, one in said.items() if one not in (None, False)})
    context.obj = flags
    return flags


def group(app: typer.Typer, name: str, summary: str, alone: Run | None = None) -> typer.Typer:
    """Add a group of commands that takes the flags as well; `alone` is run where none is named."""
    commands = typer.Typer(
        no_args_is_help=alone is None,
        invoke_without_command=alone is not None,
        rich_markup_mode=None,
    )

    @commands.callback(help=summary)
    def flags(
        context: typer.Context,
        *,
        database: Database = None,
        config: Config = None,
        domains: Domains = None,
        as_json: AsJson = False,
    ) -> None:
        remember(context, database=database, config=config, domains=domains, as_json=as_json)
        if alone is not None and context.invoked_subcommand is None:
            Command(alone)(context)

    app.add_typer(commands, name=name)
    return commands


class Command:
    """A function whose first argument is a session, as typer is to see it: with the flags."""

    def __init__(self, function: Run) -> None:
        self._function = function
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        self._own = [one.name for one in own]
        named = [_keyword("invocation", typer.Context), *(_named(one) for one in own), *_FLAGS]
        self.__signature__ = inspect.Signature(named)
        self.__annotations__ = {one.name: one.annotation for one in named}

    def __call__(self, invocation: typer.Context, **given: Any) -> None:  # noqa: ANN401 - typer's
        """Run the function, and end as its outcome says."""
        own = {name: given.pop(name) for name in self._own}
        said = remember(invocation, **given)
        with named_errors():
            session = Session.opened(
                {
                    "database_url": said.database,
                    "config": said.config,
                    "domains": said.domains,
                },
                as_json=said.as_json,
            )
            self._function(session, **own)
            # A reader that has left is noticed here, where that is not a crash.
            sys.stdout.flush()


def command(app: typer.Typer, name: str) -> Callable[[Run], Run]:
    """Register a function whose first argument is a session."""

    def register(function: Run) -> Run:
        app.command(name)(Command(function))
        return function

    return register


def _keyword(name: str, annotation: object, default: object = inspect.Parameter.empty) -> Any:  # noqa: ANN401 - a Parameter
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


def _named(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


_FLAGS = (
    _keyword("database", Database, None),
    _keyword("config", Config, None),
    _keyword("domains", Domains, None),
    _keyword("as_json", AsJson, default=False),
)
