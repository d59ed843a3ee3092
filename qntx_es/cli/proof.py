"""A rebuild as a person watches it: how far it is, and then what it proved."""

from collections.abc import Sequence
from dataclasses import dataclass

from qntx_es.cli import differences
from qntx_es.cli.output import Output, grouped
from qntx_es.cli.progress import progress
from qntx_es.cli.verify import COLUMNS, row_of, tell_certificate
from qntx_es.host import Host
from qntx_es.projections.comparison import Comparison
from qntx_es.projections.rebuild import Rebuilt


@dataclass(frozen=True, slots=True)
class Proof:
    """What a rebuild found, and which version the tables it replaced were of."""

    rebuilt: Rebuilt
    version_before: int

    @property
    def is_comparable(self) -> bool:
        """Tell whether the same rows were to be expected."""
        return self.rebuilt.version == self.version_before

    @property
    def differs(self) -> bool:
        """Tell whether rows changed that should not have."""
        return self.is_comparable and not self.rebuilt.is_same


def rebuild(
    host: Host,
    name: str,
    *,
    expect: Sequence[str] = (),
    actor: str | None = None,
    workers: int = 1,
) -> Proof:
    """Rebuild a domain's tables, showing how far it is. Raises as `Host.rebuild` does."""
    before = {status.name: status for status in host.statuses()}
    with progress() as report:
        report(name, 0, before[name].position if name in before else 0)
        rebuilt = host.rebuild(
            name,
            expect=expect,
            actor=actor,
            workers=workers,
            progress=lambda at: report(name, at.done, at.total, at.state),
        )
    return Proof(rebuilt, before[name].version if name in before else rebuilt.version)


def rehearse(host: Host, name: str, expect: Sequence[str]) -> Comparison:
    """Do all of a rebuild but the swap, showing how far it is. Raises as `Host.rehearse` does."""
    with progress() as report:
        return host.rehearse(
            name,
            expect=expect,
            progress=lambda at: report(name, at.done, at.total, at.state),
        )


def show(proof: Proof, out: Output) -> None:
    """Print what was compared, and what it means."""
    rebuilt = proof.rebuilt
    out.table(COLUMNS, [row_of(table, out) for table in rebuilt.tables])
    differences.show(rebuilt.tables, rebuilt.derived, out, columns=differences.UNTOUCHED)
    where = f"position {grouped(rebuilt.position)}, generation {rebuilt.generation}"
    if not proof.is_comparable:
        out.say(f"Version {proof.version_before} became {rebuilt.version}, at {where}.")
    elif not proof.differs:
        out.say(f"Same: every row is as it was. Swapped at {where}.", style="green")
    else:
        names = [table.table for table in rebuilt.tables if not table.is_same]
        names += [f"what `{one.handler}` derives" for one in rebuilt.derived if not one.is_same]
        out.say(
            f"Differs: {', '.join(names)}. Swapped at {where}: the rebuilt rows are live now.",
            style="red",
        )
    tell_certificate(rebuilt.certificate, rebuilt.attested_at, out)


def document_of(proof: Proof) -> dict[str, object]:
    """Return the report as JSON has it."""
    rebuilt = proof.rebuilt
    return {
        "name": rebuilt.domain,
        "version": rebuilt.version,
        "version_before": proof.version_before,
        "generation": rebuilt.generation,
        "compared_at": rebuilt.compared_at,
        "position": rebuilt.position,
        "is_same": rebuilt.is_same,
        "seconds": rebuilt.seconds,
        "tables": [differences.table_document(table) for table in rebuilt.tables],
        "derived": rebuilt.derived,
        "certificate": rebuilt.certificate.digest,
        "attested_at": rebuilt.attested_at,
    }


def show_compared(name: str, found: Comparison, out: Output) -> dict[str, object]:
    """Print what a rebuild that was not swapped would change, and return it as JSON has it."""
    out.table(COLUMNS, [row_of(table, out) for table in found.tables])
    differences.show(found.tables, found.derived, out)
    return {
        "name": name,
        "compared_at": found.position,
        "is_same": found.is_same,
        "tables": [differences.table_document(table) for table in found.tables],
        "derived": found.derived,
    }
