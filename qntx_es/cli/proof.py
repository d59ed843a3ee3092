"""A rebuild as a person watches it: how far it is, and then what it proved."""

from dataclasses import dataclass

from qntx_es.cli.output import Column, Output, Row, grouped
from qntx_es.cli.progress import progress
from qntx_es.host import Host
from qntx_es.projections.digest import Digest
from qntx_es.projections.rebuild import Rebuilt, TableProof

STYLES = {"same": "green", "differs": "bold red", "new": "yellow", "gone": "yellow"}
COLUMNS = (
    Column("table"),
    Column("rows live", is_number=True),
    Column("rows rebuilt", is_number=True),
    Column("digest live", least_width=80),
    Column("digest rebuilt", least_width=80),
    Column("verdict", styles=STYLES),
)


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


def rebuild(host: Host, name: str) -> Proof:
    """Rebuild a domain's tables, showing how far it is."""
    before = {status.name: status for status in host.statuses()}
    with progress() as report:
        report(name, 0, before[name].position if name in before else 0)
        rebuilt = host.rebuild(name, progress=lambda at: report(name, at.done, at.total, at.state))
    return Proof(rebuilt, before[name].version if name in before else rebuilt.version)


def show(proof: Proof, out: Output) -> None:
    """Print what was compared, and what it means."""
    rebuilt = proof.rebuilt
    out.table(COLUMNS, [_row(table, out) for table in rebuilt.tables])
    where = f"position {grouped(rebuilt.position)}, generation {rebuilt.generation}"
    if not proof.is_comparable:
        out.say(f"Version {proof.version_before} became {rebuilt.version}, at {where}.")
    elif not proof.differs:
        out.say(f"Same: every row is as it was. Swapped at {where}.", style="green")
    else:
        names = ", ".join(table.table for table in rebuilt.tables if not table.is_same)
        out.say(
            f"Differs: {names}. Swapped at {where}: the rebuilt rows are live now.", style="red"
        )


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
        "tables": [
            {
                "table": table.table,
                "live": table.live,
                "rebuilt": table.rebuilt,
                "is_same": table.is_same,
            }
            for table in rebuilt.tables
        ],
    }


def _row(table: TableProof, out: Output) -> Row:
    live, rebuilt = table.live, table.rebuilt
    return (
        table.table,
        live and live.rows,
        rebuilt and rebuilt.rows,
        _digest(live, out),
        _digest(rebuilt, out),
        _verdict(table),
    )


def _verdict(table: TableProof) -> str:
    if table.live is None:
        return "new"
    if table.rebuilt is None:
        return "gone"
    return "same" if table.is_same else "differs"


def _digest(digest: Digest | None, out: Output) -> str | None:
    if digest is None:
        return None
    value = digest.value
    return f"{value[:6]}…{value[-6:]}" if out.for_people else value
