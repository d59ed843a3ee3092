"""`qntx-es projections`: how every projector stands, and building its tables anew.

Looking imports no domain's code, so a broken domain can be seen; that its code is newer than its
tables cannot be seen so, and is said where it runs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qntx_es.cli import looking_back, proof, recovery, travel, verify
from qntx_es.cli.exits import DIFFERENCE, FAILURE, message_of
from qntx_es.cli.flags import command, group
from qntx_es.cli.output import Column, Output, Row, complain, grouped, shown
from qntx_es.cli.session import Session, wanted_domain
from qntx_es.errors import InvalidExpectation, QntxError, RebuildDiffers
from qntx_es.host import Host
from qntx_es.projections.recovery import TABLES
from qntx_es.projections.status import Failure, ProjectorStatus

STYLES = {
    "live": "green",
    "inline": "green",
    "rebuilding": "cyan",
    "paused": "yellow",
    "degraded": "yellow",
    "outdated": "yellow",
    "retired": "yellow",
    "unproved": "yellow",
    "standby": "green",
    "stopped": "bold red",
    "stuck": "bold red",
    "drifted": "bold red",
}
COLUMNS = (
    Column("domain"),
    Column("version", is_number=True),
    Column("state", styles=STYLES),
    Column("cursor", is_number=True),
    Column("lag", is_number=True),
    Column("behind", is_number=True, is_spare=True, least_width=80),
    Column("parked", is_number=True, is_spare=True),
    Column("generation", is_number=True, least_width=90),
    Column("remark", is_spare=True),
)
RANGES = (
    Column("slices"),
    Column("cursor", is_number=True),
    Column("lag", is_number=True),
    Column("held by", is_spare=True),
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = group(app, "projections", "See, rebuild, pause and recover read models.")
    command(commands, "list")(list_projections)
    command(commands, "status")(status)
    command(commands, "rebuild")(rebuild)
    recovery.register(commands)
    verify.register(commands)
    travel.register(commands)


def list_projections(session: Session) -> None:
    """Show every projector: its state, and how far it is."""
    with session.log_only() as host:
        found = host.statuses()
    session.out.document(found)
    session.out.table(COLUMNS, [row_of(one) for one in found])
    _tell_the_rest(found, session)
    _exit_if_any_failed(found)


def status(
    session: Session, name: Annotated[str, typer.Argument(metavar="NAME", help="A projector.")]
) -> None:
    """Show one projector, and why it stands if it does."""
    with session.log_only() as host:
        known = {one.name: one for one in host.statuses()}
        parked = host.parked(name)
    recovery.refuse_unknown(name, session, known)
    found = known[name]
    session.out.document({**asdict(found), "parked_entities": parked})
    _describe(found, session.out)
    if parked:
        recovery.show_parked(parked, session.out)
        session.out.say(f"Mend the handler, then: qntx-es projections retry {name} --all")
    _exit_if_any_failed([found])


def rebuild(  # noqa: PLR0913 - one parameter an option
    session: Session,
    names: verify.Names = None,
    *,
    all_: verify.All = False,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="same|TABLE.COLUMN",
            help="What may change, and nothing else, or it is not swapped; repeatable.",
        ),
    ] = None,
    certificate: verify.To = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do all but the swap, and show what it would change.")
    ] = False,
    to: Annotated[
        travel.Moment | None,
        typer.Option(
            parser=travel.moment,
            metavar="POSITION|TIME",
            help="Up to where, into tables of their own; nothing is swapped.",
        ),
    ] = None,
    into: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="What the names of those begin with.")
    ] = None,
    derive: Annotated[
        str | None,
        typer.Option(
            metavar="HANDLER", help="Only let this derive handler speak of the past; no swap."
        ),
    ] = None,
    since: Annotated[
        int | None,
        typer.Option("--from", metavar="POSITION", min=1, help="Of which past, up to where it is."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="How many processes fill it, where entities are apart.",
        ),
    ] = 1,
    actor: verify.As = None,
) -> None:
    """Build read models anew, compare, and swap.

    Fresh tables are filled beside the live ones while everything runs on. What they hold is
    compared with what the live ones held, and then they take their place.
    """
    if (derive is None) != (since is None):
        raise typer.BadParameter("--derive and --from go together")
    others = (all_, expect, certificate, dry_run, to, into)
    if derive is not None and (any(others) or len(names or ()) != 1):
        raise typer.BadParameter("name one projector, and nothing else", param_hint="--derive")
    if (to is None) != (into is None):
        raise typer.BadParameter("--to and --into go together")
    if into is not None and (all_ or len(names or ()) != 1 or expect or certificate or dry_run):
        raise typer.BadParameter("name one projector, and nothing is compared", param_hint="--into")
    if dry_run and certificate is not None:
        raise typer.BadParameter(
            "nothing is certified that was not swapped", param_hint="--dry-run"
        )
    with session.host() as host:
        if derive is not None and since is not None:
            host.database.check()
            name = wanted_domain(host, (names or [])[0])
            looking_back.look_back(host, name, derive, since, session.out, actor=actor)
            return
        if to is not None and into is not None:
            host.database.check()
            name = wanted_domain(host, (names or [])[0])
            travel.rebuild_into(host, name, to, into, session.out)
            return
        wanted = verify.wanted_domains(host, names, all_=all_, certificate=certificate)
        found = {
            name: _rehearse(host, name, session.out, expect or ())
            if dry_run
            else _rebuild(
                host,
                name,
                session.out,
                expect=expect or (),
                actor=actor,
                certificate=certificate,
                workers=workers,
            )
            for name in wanted
        }
        is_any_missing = all_ and bool(host.failed)
    session.out.document([document for document, _ in found.values()])
    codes = {code for _, code in found.values()}
    if is_any_missing or FAILURE in codes:
        raise typer.Exit(FAILURE)
    raise typer.Exit(max(codes))


def _rebuild(  # noqa: PLR0913 - one parameter an option
    host: Host,
    name: str,
    out: Output,
    *,
    expect: Sequence[str],
    actor: str | None,
    certificate: Path | None,
    workers: int,
) -> tuple[dict[str, object], int]:
    """Rebuild one of several, and return its report and exit code: a fault stays where it is."""
    try:
        found = proof.rebuild(host, name, expect=expect, actor=actor, workers=workers)
    except InvalidExpectation:
        raise
    except QntxError as error:
        return _not_rebuilt(name, error, out)
    proof.show(found, out)
    if certificate is not None:
        verify.write(found.rebuilt.certificate, certificate)
    return proof.document_of(found), DIFFERENCE if found.differs else 0


def _rehearse(
    host: Host, name: str, out: Output, expect: Sequence[str]
) -> tuple[dict[str, object], int]:
    """Do all of a rebuild but the swap, and return its report and exit code."""
    try:
        found = proof.rehearse(host, name, expect)
    except InvalidExpectation:
        raise
    except QntxError as error:
        return _not_rebuilt(name, error, out)
    document = proof.show_compared(name, found, out)
    out.say("Nothing was swapped.")
    return document, 0 if found.is_same else DIFFERENCE


def _not_rebuilt(name: str, error: QntxError, out: Output) -> tuple[dict[str, object], int]:
    if isinstance(error, RebuildDiffers):
        document = proof.show_compared(name, error.found, out)
        complain(message_of(error))
        return document | {"error": str(error)}, DIFFERENCE
    complain(f"{name} was not rebuilt: {message_of(error)}")
    return {"name": name, "error": str(error)}, FAILURE


def row_of(status: ProjectorStatus) -> Row:
    """Return the row of a table for a projector."""
    return (
        status.name,
        status.version,
        status.state,
        status.position,
        status.lag,
        _duration(status.lag_seconds) if status.lag else None,
        status.parked or None,
        status.generation,
        _remark(status),
    )


def _remark(status: ProjectorStatus) -> str | None:
    if status.pause is not None:
        return str(status.pause)
    if status.failure is not None:
        return f"{status.failure.handler}: {status.failure.error}"
    return status.rebuild or status.why


def _tell_the_rest(found: Sequence[ProjectorStatus], session: Session) -> None:
    out = session.out
    head = found[0].head if found else 0
    out.say(f"head {grouped(head) if out.for_people else head}", style="dim")
    known = {one.name for one in found}
    idle = [shown(name) for name in session.settings.domains if name not in known]
    if idle:
        out.say(f"enabled, and has not run here yet: {', '.join(idle)}", style="dim")
    for one in found:
        if one.failure is not None:
            out.say(f"{one.name} {one.state}: qntx-es projections status {one.name}", style="red")


def _describe(status: ProjectorStatus, out: Output) -> None:
    facts: list[Row] = [
        ("state", status.state),
        ("version", status.version),
        ("generation", status.generation),
        ("cursor", status.position),
        ("head", status.head),
        ("lag", status.lag),
    ]
    if status.holder:
        facts.append(("held by", status.holder))
    if status.why:
        facts.append(("why", status.why))
    if status.parked:
        facts.append(("parked", status.parked))
    if status.drifted:
        facts.append(("drifted", status.drifted))
    if status.lag:
        facts.append(("behind", _duration(status.lag_seconds)))
    if status.pause:
        facts += [("paused by", status.pause.by), ("paused at", status.pause.at)]
        facts.append(("reason", status.pause.reason))
    if status.rebuild:
        facts.append(("rebuild", status.rebuild))
    out.say(status.name, style="bold")
    out.table((Column(""), Column("", styles=STYLES)), facts, with_titles=False)
    if len(status.ranges) > 1:
        out.table(
            RANGES, [(one.slices, one.position, one.lag, one.holder) for one in status.ranges]
        )
    if status.failure is not None:
        _explain(status.failure, out)


def _explain(failure: Failure, out: Output) -> None:
    out.say(
        f"`{failure.handler}` failed at position {failure.position}: {shown(failure.error)}",
        style="red",
    )
    for line in failure.traceback.splitlines():
        out.say(f"  {shown(line)}", style="dim")
    if failure.handler != TABLES:  # of those the error itself says what to do
        out.say(
            "Mend the handler and run again, or retry: it goes on from there. "
            "Or skip that position."
        )


def _exit_if_any_failed(found: Iterable[ProjectorStatus]) -> None:
    if any(one.failure is not None or one.drifted for one in found):
        raise typer.Exit(DIFFERENCE)


def _duration(seconds: float) -> str:
    for unit, size in _UNITS.items():
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


_UNITS = {"d": 86_400, "h": 3_600, "min": 60}
