"""`qntx-es projections verify`: fold the log again in the dark, and compare with the live rows.

What is right is short; what is not is told row by row, with the attestation that wrote it last.
"""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from qntx_es.cli import differences
from qntx_es.cli.exits import DIFFERENCE, FAILURE, message_of
from qntx_es.cli.flags import command
from qntx_es.cli.output import Column, Output, Row, complain, grouped, shown
from qntx_es.cli.progress import progress
from qntx_es.cli.session import Session, wanted_domain
from qntx_es.errors import QntxError
from qntx_es.host import Host
from qntx_es.projections.certificate import Certificate
from qntx_es.projections.comparison import TableProof
from qntx_es.projections.verify import FIRST, Verified

COLUMNS = (
    Column("table"),
    Column("rows live", is_number=True),
    Column("rows rebuilt", is_number=True),
    Column("digest live", least_width=80),
    Column("digest rebuilt", least_width=80),
    Column("verdict", styles=differences.VERDICTS),
)
Names: TypeAlias = Annotated[list[str] | None, typer.Argument(metavar="NAME", show_default=False)]
All: TypeAlias = Annotated[bool, typer.Option("--all", help="Every enabled domain, and pulse.")]
As: TypeAlias = Annotated[
    str | None,
    typer.Option("--as", metavar="ACTOR", help="Who asks for it. [default: you@this-host]"),
]
To: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--certificate",
        metavar="FILE",
        dir_okay=False,
        help="Where the certificate goes, of one projector.",
    ),
]


def register(commands: typer.Typer) -> None:
    """Add the command to those of projections."""
    command(commands, "verify")(verify)


def verify(  # noqa: PLR0913 - one parameter an option
    session: Session,
    names: Names = None,
    *,
    all_: All = False,
    first: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many differing rows to show of a table.")
    ] = FIRST,
    certificate: To = None,
    actor: As = None,
) -> None:
    """Compare live rows with what the log makes of them, and touch nothing.

    Ends with 3 where a row, or a derived attestation, is not what the log says.
    """
    with session.host() as host:
        wanted = wanted_domains(host, names, all_=all_, certificate=certificate)
        found = {
            name: _verify(host, name, session.out, first=first, actor=actor) for name in wanted
        }
        is_any_missing = all_ and bool(host.failed)
    session.out.document([document for document, _ in found.values()])
    for _, verified in found.values():
        if certificate is not None and verified is not None:
            write(verified.certificate, certificate)
    if is_any_missing or any(verified is None for _, verified in found.values()):
        raise typer.Exit(FAILURE)
    if not all(verified is not None and verified.is_same for _, verified in found.values()):
        raise typer.Exit(DIFFERENCE)


def wanted_domains(
    host: Host, names: list[str] | None, *, all_: bool, certificate: Path | None
) -> list[str]:
    """Return the projectors that were named, or all of them."""
    if bool(names) == all_:
        raise typer.BadParameter("name projectors, or say --all", param_hint="NAME")
    if certificate is not None and (all_ or len(names or ()) > 1):
        raise typer.BadParameter("a certificate is of one projector: name one", param_hint="NAME")
    host.database.check()
    return [wanted_domain(host, name) for name in dict.fromkeys(names or ())] or [*host.domains]


def write(certificate: Certificate, file: Path) -> None:
    """Write a certificate, whose SHA-256 the log has."""
    try:
        file.write_text(certificate.text, encoding="utf-8")
    except OSError as error:
        raise QntxError(
            f"the certificate cannot be written to {file}: {error.strerror}. It is "
            f"attested as {certificate.digest}; run it again with a file that can be written"
        ) from error


def _verify(
    host: Host, name: str, out: Output, *, first: int, actor: str | None
) -> tuple[dict[str, object], Verified | None]:
    """Verify one of several, and return its report: a fault stays where it is."""
    try:
        with progress() as report:
            found = host.verify(
                name,
                first=first,
                actor=actor,
                progress=lambda at: report(name, at.done, at.total, at.state),
            )
    except QntxError as error:
        complain(f"{name} was not verified: {message_of(error)}")
        return {"name": name, "error": str(error)}, None
    _show(found, out)
    return _document(found), found


def _show(found: Verified, out: Output) -> None:
    out.say(
        f"{found.domain} {found.version}, rebuilt in the dark to {_number(found.position, out)}"
    )
    out.table(COLUMNS, [row_of(proof, out) for proof in found.tables])
    differences.show(found.tables, found.derived, out)
    if found.is_same:
        derived = f", with {differences.of_derived(found.derived)}" if found.derived else ""
        out.say(f"Same: every row is what the log makes{derived}.", style="green")
    else:
        out.say("Differs, and not by what the log says.", style="red")
        out.say(f"To put it right: qntx-es projections rebuild {shown(found.domain)}")
    tell_certificate(found.certificate, found.attested_at, out)


def row_of(proof: TableProof, out: Output) -> Row:
    """Return the row of a table for what was compared."""
    return (
        proof.table,
        proof.live and proof.live.rows,
        proof.rebuilt and proof.rebuilt.rows,
        differences.shortened(proof.live, out),
        differences.shortened(proof.rebuilt, out),
        differences.in_short(proof),
    )


def tell_certificate(certificate: Certificate, attested_at: int | None, out: Output) -> None:
    """Print by which number the certificate is known, and where the log speaks of it."""
    where = "" if attested_at is None else f", attestation {_number(attested_at, out)}"
    out.say(f"Certificate {certificate.digest}{where}", style="dim", is_whole=True)


def _document(found: Verified) -> dict[str, object]:
    return {
        "name": found.domain,
        "version": found.version,
        "position": found.position,
        "is_same": found.is_same,
        "tables": [differences.table_document(proof) for proof in found.tables],
        "derived": found.derived,
        "certificate": found.certificate.digest,
        "attested_at": found.attested_at,
    }


def _number(number: int, out: Output) -> str:
    return grouped(number) if out.for_people else str(number)
