"""`qntx-es demo`: the whole loop in a minute, on a repository of one's own.

History is stated, every domain runs to the end, a read model is built anew beside the live one and
compared, and what came of it is shown. Nothing is special about it: each step is what the other
commands do, and all of it is the log's, so a second demo finds that everything was said before.
"""

import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from qntx_es.attestation import Attestation
from qntx_es.cli import proof, showcase
from qntx_es.cli.exits import DIFFERENCE
from qntx_es.cli.flags import command
from qntx_es.cli.jobs import count_jobs, read_jobs, reason_of
from qntx_es.cli.output import Output, counted, grouped, shown
from qntx_es.cli.progress import progress
from qntx_es.cli.session import PLAIN, Session, log_to_stderr, wanted_domain
from qntx_es.cli.watch import watched
from qntx_es.discovery import builtin
from qntx_es.errors import DomainRefused, UnknownDomain
from qntx_es.host import Host

# Where nothing else is said: a demo leaves a database in use alone.
DATABASE_URL = "sqlite:///.demo/qntx.db"
CODE = "code"
DOMAINS = (CODE, "finance")
TOLD_JOBS = 3


@dataclass(slots=True)
class Appended:
    """Appends to a host that is made ready by the first append, and counts what was new."""

    host: Host
    new: int = 0
    repeated: int = 0

    def __call__(self, said: list[Attestation]) -> None:
        """Append, and tell what is new from what was said before."""
        # Not earlier: where there is no repository to read, no database is made.
        if not self.new + self.repeated:
            self.host.upgrade()
        head = self.host.log.head()
        new = sum(receipt.position > head for receipt in self.host.append(said))
        self.new += new
        self.repeated += len(said) - new


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "demo")(demo)


def demo(
    session: Session,
    repository: Annotated[
        Path,
        typer.Argument(
            metavar="REPO", help="A local git repository. [default: this one]", show_default=False
        ),
    ] = Path(),
) -> None:
    """Show the whole loop on a git repository.

    Its history is stated, every domain runs to the end, a read model is built anew and compared,
    and what came of it is shown. Without --database it is kept in .demo/qntx.db.
    """
    # What fails is shown with the rest, and not between the bars.
    log_to_stderr(PLAIN, logging.ERROR)
    ingest = _ingest()
    is_chosen = "database_url" in session.settings.model_fields_set
    url = session.settings.database_url if is_chosen else DATABASE_URL
    out = session.out
    with session.host(_domains(session), url=url) as host:
        wanted_domain(host, CODE)
        appended = Appended(host)
        ingested = _state(repository, ingest, appended, out)
        new = appended.new + _run_everything(host, out)
        found = _rebuild(host, out)
        showcase.show(host, ingested.repository, out)
        _tell_end(new, out)
        _tell_next(session, host, out)
        out.document(
            {
                "database": host.database.name,
                "repository": ingested.repository,
                "head": ingested.head,
                "commits": ingested.commits,
                "new_attestations": new,
                "attestations": host.log.head(),
                "rebuilt": proof.document_of(found),
                "jobs": count_jobs(host),
                "projections": host.statuses(),
            }
        )
    if found.differs:
        raise typer.Exit(DIFFERENCE)


def _ingest() -> Callable[..., Any]:
    """Find what states a repository, by name: nothing here imports a domain."""
    module = builtin(CODE)
    if module is None:
        raise UnknownDomain(CODE, ())
    ingest: Callable[..., Any] | None = getattr(module, "ingest", None)
    if ingest is None:
        raise DomainRefused(CODE, ["it has no function `ingest`, which the demo begins with"])
    return ingest


def _domains(session: Session) -> Sequence[str]:
    """Return what is enabled, with the domain the demo is about; else what comes with qntx-es."""
    enabled = session.settings.domains or [one for one in DOMAINS if builtin(one) is not None]
    return enabled if CODE in enabled else (CODE, *enabled)


def _state(repository: Path, ingest: Callable[..., Any], appended: Appended, out: Output) -> Any:  # noqa: ANN401 - what the domain's `ingest` returns
    _begin(out, "1", f"State what is in {shown(str(repository.absolute()))}")
    with progress() as report:
        ingested = ingest(
            repository,
            appended,
            progress=lambda done, total: report("commits", done, total),
        )
    said = appended.new + appended.repeated
    out.say(
        f"{shown(ingested.repository)}: {counted(said, 'statement')}, "
        f"{grouped(appended.new)} new, in {appended.host.database.name}"
    )
    return ingested


def _run_everything(host: Host, out: Output) -> int:
    """Run projectors and jobs, and return how many attestations followed."""
    _begin(out, "2", "Run every domain to the end, and the jobs they ask for")
    for status in host.statuses():
        if status.state == "outdated":
            out.say(f"{status.name} is of an older version: it is rebuilt first.")
            proof.rebuild(host, status.name)
    head = host.log.head()
    with watched(host):
        host.catch_up(jobs=True)
    followed = host.log.head() - head
    out.say(f"{counted(followed, 'attestation')} followed from them.")
    _tell_jobs(host, out)
    return followed


def _tell_jobs(host: Host, out: Output) -> None:
    """Say what of the jobs is still to come, and when."""
    for status in ("ready", "running", "failed"):
        for job in read_jobs(host, {"status": status, "handler": None, "entity": None}, TOLD_JOBS):
            named = f"{shown(job['handler'])} of {shown(job['entity'])}: {status}"
            facts = filter(None, (named, _when(job), shown(reason_of(job))))
            out.say(", ".join(facts), style="yellow")


def _when(job: dict[str, Any]) -> str:
    if job["status"] == "ready":
        return f"again from {job['run_at']:%H:%M:%S} UTC on"
    if job["status"] == "running" and job["deadline_at"] is not None:
        return f"given up for lost after {job['deadline_at']:%H:%M:%S} UTC"
    return ""


def _rebuild(host: Host, out: Output) -> proof.Proof:
    _begin(out, "3", f"Build the tables of `{CODE}` anew beside the live ones, compare, and swap")
    found = proof.rebuild(host, CODE)
    proof.show(found, out)
    host.catch_up()  # over what the log says of the certificate
    return found


def _begin(out: Output, number: str, what: str) -> None:
    out.say()
    out.say(f"{number}  {what}", style="bold")


def _tell_end(new: int, out: Output) -> None:
    out.say()
    if new:
        out.say(f"{grouped(new)} new attestations. Run it again: it will find that nothing is new.")
    else:
        out.say(
            "0 new attestations beside the certificate's: everything was said before, and nothing "
            "changed."
        )


def _tell_next(session: Session, host: Host, out: Output) -> None:
    url = host.database.name
    # A password is shown nowhere: who gave it may give it again.
    is_secret = url != host.database.engine.url.render_as_string(hide_password=False)
    start = [_program(), *([] if is_secret else ["--database", url])]
    names = [name for name in host.domains if name != "pulse"]
    is_enabled = not session.typed_domains and set(names) <= set(session.settings.domains)
    context = "repository_valued" if "finance" in host.domains else "repository_analyzed"
    out.say()
    out.say("To go on" + (", with QNTX_DATABASE_URL set" if is_secret else ""), style="bold")
    for words in (
        ["projections", "list"],
        ["ax", "--context", context, "--json"],
        [
            "projections",
            "rebuild",
            *([] if is_enabled else ["--domains", ",".join(names)]),
            "--all",
        ],
    ):
        out.say(f"  {shlex.join([*start, *words])}", style="cyan", is_whole=True)


def _program() -> str:
    """Return what to type for this program: its name, unless only its path would find it."""
    typed = Path(sys.argv[0])
    found = shutil.which(typed.name)
    if found is not None and Path(found).absolute() == typed.absolute():
        return typed.name
    return str(typed)
