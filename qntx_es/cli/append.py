"""`qntx-es append`: state something by hand.

A typing error in a context would be a statement nobody ever reads, kept for good. So a context that
no enabled domain knows is refused, unless its newness is meant.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from qntx_es.attestation import Attestation, Json, parse_payload
from qntx_es.cli.flags import command
from qntx_es.cli.output import shown
from qntx_es.cli.session import Session
from qntx_es.config import somebody
from qntx_es.domain import OPEN, RESERVED
from qntx_es.errors import InvalidPayload, did_you_mean
from qntx_es.host import Host


def read_payload(given: str) -> bytes:
    """Return the text of a payload from the command line, a file or stdin."""
    if given == "-":
        return sys.stdin.buffer.read()
    if not given.startswith("@"):
        return os.fsencode(given)
    try:
        return Path(given[1:]).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{shown(given[1:])} cannot be read: {error.strerror}") from error


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "append")(append)


def append(  # noqa: PLR0913 - one parameter an option
    session: Session,
    context: Annotated[
        str, typer.Argument(metavar="CONTEXT", help="What kind of statement: repository_cloned.")
    ],
    entity: Annotated[
        str, typer.Argument(metavar="ENTITY", help="Whom it is about: github.com/teranos/QNTX.")
    ],
    *,
    payload: Annotated[
        bytes,
        typer.Option(
            parser=read_payload,
            metavar="JSON|@FILE|-",
            help="What is said: a JSON object, a file of one, or - for stdin.",
        ),
    ],
    actor: Annotated[
        str | None, typer.Option(metavar="A", help="Who says so. [default: you@this-host]")
    ] = None,
    id: Annotated[  # noqa: A002 - the glossary's word
        str | None,
        typer.Option(metavar="ID", help="Its id: stating the same twice is stating it once."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="T", help="What else it is about; repeatable.")
    ] = None,
    schema_version: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Its payload's version. [default: the newest known here]"
        ),
    ] = None,
    new_context: Annotated[
        bool, typer.Option("--new-context", help="State it though no enabled domain knows it.")
    ] = False,
) -> None:
    """Append one attestation to the log."""
    parsed = _parsed(payload)
    with session.host() as host:
        if not new_context:
            _refuse_unknown(context, host)
        said = Attestation(
            context=context,
            entity=entity,
            actor=somebody() if actor is None else actor,
            payload=parsed,
            id=id,
            schema_version=schema_version or _newest_version(context, host),
            tags=tag or (),
        )
        host.database.check()
        before = host.log.get(said.id) if id else None
        receipt = host.append(said)
    session.out.document(
        {
            "position": receipt.position,
            "id": said.id,
            "context": said.context,
            "actor": said.actor,
            "entity": said.entity,
            "is_new": before is None,
        }
    )
    if before is None:
        session.out.say(f"appended at position {receipt.position}, id {shown(said.id)}")
    else:
        session.out.say(f"said before, at position {receipt.position}: nothing was appended")


def _parsed(payload: bytes) -> Json:
    try:
        return parse_payload(payload)
    except InvalidPayload as error:
        # What is JSON, and yet nothing the log can hold, has names of its own.
        if type(error) is not InvalidPayload:
            raise
        raise typer.BadParameter(str(error), param_hint="'--payload'") from error


def known_contexts(host: Host) -> set[str]:
    """Return the contexts that enabled domains read, and those they name as theirs to state."""
    read = set(host.contexts)
    stated = {
        glob
        for domain in host.domains.values()
        for glob in domain.emits or ()
        if not set(glob) & set("*?[")
    }
    return {one for one in read | stated if one in OPEN or not one.startswith(RESERVED)}


def _refuse_unknown(context: str, host: Host) -> None:
    known = known_contexts(host)
    # Who may use a reserved one is for the host to say.
    if context in known or context.startswith(RESERVED):
        return
    raise typer.BadParameter(
        f"no enabled domain knows it{did_you_mean(context, known)} "
        "(--new-context states it anyway)",
        param_hint=f"CONTEXT `{shown(context)}`",
    )


def _newest_version(context: str, host: Host) -> int:
    known = [one.payloads[context] for one in host.contexts.get(context, ())]
    return max((one.schema_version for one in known), default=1)
