"""`qntx-es projections pause | resume`: what a person decides about a projector.

Each decision is an attestation by whoever decides. Pausing imports no domain's code, so that it
works when a domain is what is broken.
"""

from collections.abc import Iterable
from typing import Annotated, TypeAlias

import typer

from qntx_es.cli.flags import command
from qntx_es.cli.session import Session
from qntx_es.errors import QntxError, UnknownDomain
from qntx_es.host import Host

Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="A projector.")]
Actor: TypeAlias = Annotated[
    str | None, typer.Option("--as", metavar="ACTOR", help="Who says so. [default: you@this-host]")
]


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    command(commands, "pause")(pause)
    command(commands, "resume")(resume)


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
