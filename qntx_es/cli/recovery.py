"""`qntx-es projections pause | resume | skip | retry`: what a person decides about a projector.

Each decision is an attestation by whoever decides. All but a retry, which runs the handlers, import
no domain's code, so that they work when a domain is what is broken.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, TypeAlias

import typer

from qntx_es.cli.exits import FAILURE
from qntx_es.cli.flags import command
from qntx_es.cli.output import Column, Output, complain, counted, is_terminal, shown
from qntx_es.cli.session import Session, wanted_domain
from qntx_es.errors import QntxError, UnknownDomain
from qntx_es.host import Host
from qntx_es.projections.ledger import ParkedEntity

COLUMNS = (
    Column("parked"),
    Column("from", is_number=True),
    Column("handler"),
    Column("error", is_spare=True),
)
# More than that nobody reads; JSON has them all.
SHOWN_MAX = 20
Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="A projector.")]
Actor: TypeAlias = Annotated[
    str | None, typer.Option("--as", metavar="ACTOR", help="Who says so. [default: you@this-host]")
]


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    command(commands, "pause")(pause)
    command(commands, "resume")(resume)
    command(commands, "skip")(skip)
    command(commands, "retry")(retry)
    command(commands, "cut")(cut)


def pause(
    session: Session,
    name: Name,
    *,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why.")] = None,
    actor: Actor = None,
) -> None:
    """Let a projector stand still, on every host, until it is resumed."""
    with session.log_only() as host:
        _refuse_unseen(host, name, session)
        host.pause(name, reason, by=actor)
    _tell(session, name, "paused")


def resume(session: Session, name: Name, *, actor: Actor = None) -> None:
    """Let a paused projector go on from where it stands."""
    with session.log_only() as host:
        _refuse_unseen(host, name, session)
        host.resume(name, by=actor)
    _tell(session, name, "resumed")


def cut(
    session: Session,
    name: Name,
    *,
    into: Annotated[int, typer.Option(metavar="N", help="How many.")],
    actor: Actor = None,
) -> None:
    """Cut a projector into ranges of entities, which running hosts share among them."""
    with session.host() as host:
        ranges = host.cut(wanted_domain(host, name), into, by=actor)
    session.out.document({"name": name, "ranges": ranges})
    session.out.say(f"{name}: {len(ranges)} {'ranges' if len(ranges) > 1 else 'range'}")


def skip(  # noqa: PLR0913 - one parameter an option
    session: Session,
    name: Name,
    position: Annotated[int, typer.Argument(metavar="POSITION", help="Of which attestation.")],
    *,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why. Needed, but to withdraw.")
    ] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Let it count again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
    actor: Actor = None,
) -> None:
    """Leave one attestation out of a projector, in every version."""
    if not withdraw and reason is None:
        raise typer.BadParameter("say why", param_hint="'--reason'")
    with session.log_only() as host:
        _refuse_unseen(host, name, session)
        if withdraw:
            counts = host.withdraw_skip(name, position, by=actor)
            became = "counts again" if counts else "counts again in the next version"
        else:
            _ask(f"{shown(name)} will leave out position {position}. Go on?", is_settled=yes)
            is_new = host.skip(name, position, reason or "", by=actor)
            became = "skipped" if is_new else "skipped already"
    session.out.document({"name": name, "position": position, "state": became})
    session.out.say(f"{name}: position {position} {became}")


def retry(  # noqa: PLR0913 - one parameter an option
    session: Session,
    name: Name,
    position: Annotated[
        int | None, typer.Argument(metavar="[POSITION]", help="Where it failed.")
    ] = None,
    *,
    entity: Annotated[str | None, typer.Option(metavar="E", help="Whom it parked.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All it stopped at or parked.")] = False,
    actor: Actor = None,
) -> None:
    """Try again now what a projector stopped at or parked."""
    if [position is not None, entity is not None, all_].count(True) != 1:
        raise typer.BadParameter("say where it failed, --entity or --all", param_hint="POSITION")
    with session.host() as host:
        host.database.check()
        wanted_domain(host, name)
        still = host.retry(name, position, entity=entity, by=actor)
    session.out.document({"name": name, "still_parked": still})
    if still:
        show_parked(still, session.out)
        complain(f"{counted(len(still), 'entity')} of {shown(name)} failed again: parked as before")
        raise typer.Exit(FAILURE)
    session.out.say(f"{name}: all that was retried is done")


def show_parked(parked: Sequence[ParkedEntity], out: Output) -> None:
    """Print whose attestations wait, and what failed."""
    rows = [(one.entity, one.position, one.handler, one.error) for one in parked[:SHOWN_MAX]]
    out.table(COLUMNS, rows)
    if len(parked) > SHOWN_MAX:
        out.say(f"and {len(parked) - SHOWN_MAX} more", style="dim")


def _ask(question: str, *, is_settled: bool) -> None:
    """Ask whoever sits at a terminal; a script has said what it wants."""
    if not is_settled and is_terminal(sys.stdin):
        typer.confirm(question, abort=True)


def refuse_unknown(name: str, session: Session, known: Iterable[str]) -> None:
    """Raise where a projector is not among those the database knows."""
    if name in known:
        return
    if name in session.settings.domains:
        raise QntxError(f"projector `{name}` has not run here yet: `qntx-es run` begins with it")
    raise UnknownDomain(name, known)


def _refuse_unseen(host: Host, name: str, session: Session) -> None:
    refuse_unknown(name, session, {one.name for one in host.statuses()})


def _tell(session: Session, name: str, became: str) -> None:
    session.out.document({"name": name, "state": became})
    session.out.say(f"{name} {became}")
