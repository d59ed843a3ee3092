"""A derive handler that is to speak of the past: `qntx-es projections rebuild … --derive … --from`.

The number that counts is how much was said; what the log has otherwise is shown, and stays.
"""

from dataclasses import asdict

import typer

from qntx_es.cli import differences
from qntx_es.cli.exits import DIFFERENCE
from qntx_es.cli.output import Output, grouped
from qntx_es.cli.progress import progress
from qntx_es.host import Host
from qntx_es.projections.looking_back import LookedBack


def look_back(  # noqa: PLR0913 - one parameter an option
    host: Host, name: str, handler: str, since: int, out: Output, *, actor: str | None
) -> None:
    """Let it speak, showing how far it is; ends with 3 where the log has what it would not say."""
    with progress() as report:
        found = host.look_back(
            name,
            handler,
            since=since,
            actor=actor,
            progress=lambda at: report(name, at.done, at.total, at.state),
        )
    out.document({**asdict(found), "is_same": found.is_same})
    _show(found, out)
    if not found.is_same:
        raise typer.Exit(DIFFERENCE)


def _show(found: LookedBack, out: Output) -> None:
    since, until, said, equal = (
        grouped(one) if out.for_people else one
        for one in (found.since, found.position, found.said, found.equal)
    )
    out.say(
        f"`{found.handler}` has spoken of positions {since} to {until}: "
        f"{said} said, {equal} were in the log already.",
        style="green" if found.is_same else "",
    )
    if not found.is_same:
        differences.show_drift(found.handler, found.drift, out)
        out.say("What the log has otherwise stays: to correct it, attest anew.", style="red")
    out.say(f"Attestation {found.attested_at}", style="dim")
