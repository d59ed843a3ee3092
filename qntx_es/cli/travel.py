"""Tables of another time: `qntx-es projections rebuild --to … --into …`, and `projections diff`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer

from qntx_es.cli import differences
from qntx_es.cli.ax import last_instant
from qntx_es.cli.exits import DIFFERENCE
from qntx_es.cli.flags import command
from qntx_es.cli.output import Output, grouped
from qntx_es.cli.progress import progress
from qntx_es.cli.session import Session, wanted_domain
from qntx_es.cli.verify import COLUMNS, row_of
from qntx_es.host import Host
from qntx_es.projections.verify import FIRST


@dataclass(frozen=True, slots=True)
class Moment:
    """A position of the log, or an instant."""

    at: int | datetime


def moment(text: str) -> Moment:
    """Return what is meant by a number, which is a position, or by a time; a day means its end."""
    return Moment(int(text) if text.isdecimal() else last_instant(text))


def register(commands: typer.Typer) -> None:
    """Add the command to those of projections."""
    command(commands, "diff")(diff)


def rebuild_into(host: Host, name: str, to: Moment, into: str, out: Output) -> None:
    """Make the tables, showing how far it is, and name them."""
    with progress() as report:
        found = host.travel(
            name,
            to=to.at,
            into=into,
            progress=lambda at: report(name, at.done, at.total, at.state),
        )
    out.document({"name": name, "position": found.position, "tables": found.tables})
    position = grouped(found.position) if out.for_people else found.position
    out.say(f"{name} as of position {position}: {', '.join(found.tables)}", is_whole=True)
    out.say("They stay until you drop them.", style="dim")


def diff(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A projector.")],
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Of tables that `rebuild --into` made.")
    ],
    *,
    first: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many differing rows to show of a table.")
    ] = FIRST,
) -> None:
    """Compare live rows with tables of another time; ends with 3 where they differ."""
    with session.host() as host:
        found = host.diff(wanted_domain(host, name), prefix, first=first)
    session.out.document(
        {
            "name": name,
            "prefix": prefix,
            "position": found.position,
            "is_same": found.is_same,
            "tables": [differences.table_document(proof) for proof in found.tables],
        }
    )
    session.out.table(COLUMNS, [row_of(proof, session.out) for proof in found.tables])
    differences.show(found.tables, (), session.out, columns=differences.UNTOUCHED)
    if not found.is_same:
        raise typer.Exit(DIFFERENCE)
