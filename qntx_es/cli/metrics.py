"""`qntx-es metrics`: what Prometheus would scrape, once; for a file it reads, or a look at night.

It imports no domain's code, as `qntx-es projections list`.
"""

import typer

from qntx_es.cli.exits import FAILURE
from qntx_es.cli.flags import command
from qntx_es.cli.session import Session


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "metrics")(metrics)


def metrics(session: Session) -> None:
    """Print every metric once, in Prometheus' text format.

    Where the database cannot be read, `qntx_up` is 0, and the exit code 1.
    """
    from qntx_es.metrics import UP, Metrics  # noqa: PLC0415 - an extra: the core goes without it

    with session.log_only() as host:
        seen = Metrics(host)
        samples = [sample for family in seen.collect() for sample in family.samples]
        session.out.say(seen.exposition().rstrip("\n"), is_whole=True)
    session.out.document(
        [{"name": one.name, "labels": one.labels, "value": one.value} for one in samples]
    )
    if any(one.name == UP.name and not one.value for one in samples):
        raise typer.Exit(FAILURE)
