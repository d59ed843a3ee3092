"""`qntx-es export` and `qntx-es import`: a log as a file, and back into a log.

They import no domain: what moves is the log, and everything else is made of it where it arrives.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from qntx_es.cli.flags import command
from qntx_es.cli.output import complain, counted, is_terminal, shown
from qntx_es.cli.progress import progress
from qntx_es.cli.session import Session
from qntx_es.errors import QntxError

STREAM = Path("-")


def new_file(text: str) -> Path:
    """Return where a file may be written, or `STREAM`."""
    if Path(text).is_dir():
        raise typer.BadParameter(f"{shown(text)} is a folder: name a file in it")
    return Path(text)


def file_there(text: str) -> Path:
    """Return a file, or a pipe, that is there, or `STREAM`."""
    path = Path(text)
    if path != STREAM and (path.is_dir() or not path.exists()):
        raise typer.BadParameter(f"{shown(text)} is no file that is there")
    return path


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "export")(export)
    command(app, "import")(import_)


def export(
    session: Session,
    file: Annotated[
        Path,
        typer.Argument(parser=new_file, metavar="FILE", help="The new file, or - for stdout."),
    ],
) -> None:
    """Write the whole log to a file, from which any database can take it in."""
    to = sys.stdout.buffer if file == STREAM else file
    with session.log_only() as host, progress() as report, _named_trouble(file):
        exported = host.export_log(to, progress=partial(report, "export"))
    digest = exported.digest
    done = f"exported {counted(digest.position, 'attestation')}, digest {digest.value}"
    if file == STREAM:
        complain(done)
        return
    session.out.document(
        {
            "attestations": digest.position,
            "digest": digest.value,
            "epoch": exported.epoch,
            "file": str(file),
        }
    )
    session.out.say(f"{done}, to {shown(str(file))}", is_whole=True)


def import_(
    session: Session,
    file: Annotated[
        Path,
        typer.Argument(
            parser=file_there, metavar="FILE", help="What `export` wrote, or - for stdin."
        ),
    ],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
) -> None:
    """Take an exported log into an empty one: all of it, or nothing."""
    source = sys.stdin.buffer if file == STREAM else file
    with session.log_only() as host:
        host.database.check()
        if not yes and is_terminal(sys.stdin) and is_terminal(sys.stdout):
            question = f"Import {shown(str(file))} into {host.database.name}?"
            typer.confirm(question, abort=True, err=True)
        with progress() as report, _named_trouble(file):
            imported = host.import_log(source, progress=partial(report, "import"))
    digest, domains = imported.digest, imported.domains
    session.out.document(
        {
            "attestations": digest.position,
            "digest": digest.value,
            "domains": domains,
            "epoch": imported.epoch,
            "file": str(file),
        }
    )
    session.out.say(
        f"imported {counted(digest.position, 'attestation')}, digest {digest.value}", is_whole=True
    )
    session.out.say(
        f"domains here ({', '.join(domains)}) project all of it, and derive from what comes after "
        f"position {digest.position}"
    )


@contextmanager
def _named_trouble(file: Path) -> Iterator[None]:
    """Say of a file what is the matter with it; a pipe whose other end has left is no trouble."""
    try:
        yield
    except OSError as error:
        if file == STREAM:
            raise
        raise QntxError(
            f"{file} cannot be used: {error.strerror}. Mend it, or name another"
        ) from error
