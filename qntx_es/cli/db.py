"""`qntx-es db`: the framework's own tables. It imports no domain."""

import typer

from qntx_es.cli.flags import command, group
from qntx_es.cli.output import counted
from qntx_es.cli.session import Session
from qntx_es.tables import REVISION


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = group(app, "db", "Make and check the framework's own tables.")
    command(commands, "upgrade")(upgrade)
    command(commands, "check")(check)


def upgrade(session: Session) -> None:
    """Make the database, or bring its tables to this version."""
    with session.log_only() as host:
        host.database.create()
        was = host.database.revision()
        host.upgrade()
        name = host.database.name
    session.out.document({"database": name, "revision": REVISION, "was": was})
    if was is None:
        session.out.say(f"made the tables in {name}, revision {REVISION}")
    elif was == REVISION:
        session.out.say(f"{name} is at revision {REVISION} already: nothing to do")
    else:
        session.out.say(f"upgraded {name} from revision {was} to {REVISION}")


def check(session: Session) -> None:
    """Say whether this version can use the database."""
    with session.log_only() as host:
        host.database.check()
        head, waiting = host.log.head(), host.log.waiting()
        name = host.database.name
    session.out.document({"database": name, "revision": REVISION, "head": head, "waiting": waiting})
    inbox = f", {waiting} in the inbox" if waiting else ""
    session.out.say(f"{name}: revision {REVISION}, {counted(head, 'attestation')}{inbox}")
