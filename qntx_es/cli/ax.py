"""`qntx-es ax`: ask the log.

It imports no domain unless a context is new to the log, and reads in pieces, so a log of any length
can be piped through. A query is a text, or an option for each of its parts.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime, time
from itertools import islice
from time import sleep
from typing import Annotated

import typer
from sqlalchemy import Connection, func, select

from qntx_es.attestation import Json, Recorded
from qntx_es.ax import Ax, parse
from qntx_es.cli.append import known_contexts
from qntx_es.cli.flags import command
from qntx_es.cli.output import LIMIT_MAX, Column, Output, Row, complain, counted, shown
from qntx_es.cli.session import Session
from qntx_es.errors import UnknownContext
from qntx_es.host import Host
from qntx_es.searches import Explained
from qntx_es.tables import attestations

# A person reads the newest; a pipe gets all.
NEWEST = 100
ALIGNED_ROWS = 1_000
FOLLOW_SECONDS = 0.2
COLUMNS = (
    Column("position", is_number=True),
    Column("recorded (UTC)", is_number=True, least_width=100),
    Column("entity"),
    Column("context"),
    Column("actor", least_width=120),
    Column("payload", is_cut=True),
)


def first_instant(text: str) -> datetime:
    """Return the beginning of a day, or the instant; in UTC where no zone is said."""
    return _instant(text, time.min)


def last_instant(text: str) -> datetime:
    """Return the end of a day, or the instant; in UTC where no zone is said."""
    return _instant(text, time.max)


def _instant(text: str, of_day: time) -> datetime:
    try:
        return datetime.combine(date.fromisoformat(text), of_day, UTC)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"`{shown(text)}` is no time; for example 2026-01-04 or 2026-01-04T12:00:00Z"
        ) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "ax")(ax)


def ax(  # noqa: PLR0913 - one parameter an option
    session: Session,
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUERY]",
            help="'[entities] [is contexts] [by actors] [since T] [until T] [where …] [limit N]'",
        ),
    ] = None,
    *,
    as_of: Annotated[
        datetime | None,
        typer.Option(parser=first_instant, metavar="T", help="What QUERY's times are relative to."),
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(metavar="C", help="In this context; repeatable.")
    ] = None,
    actor: Annotated[
        list[str] | None, typer.Option(metavar="A", help="By this actor; repeatable.")
    ] = None,
    entity: Annotated[
        list[str] | None, typer.Option(metavar="E", help="About this; repeatable.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(parser=first_instant, metavar="T", help="Recorded then or later (ISO, UTC)."),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            parser=last_instant, metavar="T", help="Recorded by then; a day is all of it."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=LIMIT_MAX,
            help="The newest N. [default: all; at a terminal 100]",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show how the database finds them, and no more.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is appended, until Ctrl-C.")
    ] = False,
) -> None:
    """Show attestations, in their order."""
    out = session.out
    if query is not None and any((context, actor, entity, since, until, limit is not None)):
        raise typer.BadParameter("a query as text has all its parts in it: drop the options")
    if query is None and as_of is not None:
        raise typer.BadParameter("--as-of is what the times of a QUERY lean on: give one")
    asked = parse(query or "", as_of=as_of)
    if query is None:
        asked = Ax(
            contexts=context or (),
            actors=actor or (),
            entities=entity or (),
            since=since,
            until=until,
            limit=limit,
        )
    if follow and (explain or asked.until is not None):
        raise typer.BadParameter("--follow goes on without an end: drop --explain and `until`")
    with session.log_only() as host:
        host.database.check()
        _refuse_unknown(session, host, [one for one in asked.contexts if isinstance(one, str)])
        if explain:
            _explain(host.log.explain(asked), asked, out)
        elif follow:
            _follow(host, asked, out)
        else:
            _show_found(host, asked, out)


def _show_found(host: Host, asked: Ax, out: Output) -> None:
    is_cut = asked.limit is None and out.for_people
    found, _ = _show(host.log.read(asked.newest(NEWEST) if is_cut else asked), out)
    if not found and not out.as_json:
        complain(f"nothing found among {counted(host.log.head(), 'attestation')}")
    if is_cut and found == NEWEST:
        out.say(f"the newest {NEWEST}; --limit N shows more", style="dim")


def _explain(explained: Explained, asked: Ax, out: Output) -> None:
    out.document({"query": str(asked), **asdict(explained)})
    if explained.index is not None:
        path, found = explained.index
        out.say(f"the index of `{path}` leaves {counted(found, 'position')}")
    for line in explained.plan:
        out.say(shown(line), is_whole=True)


def _follow(host: Host, asked: Ax, out: Output) -> None:
    """Show what there is, and then whatever is appended, for as long as anybody reads."""
    is_cut = asked.limit is None and out.for_people
    shown_so_far, after = 0, host.log.head()
    recorded = host.log.read(asked.newest(NEWEST) if is_cut else asked)
    while True:
        found, last = _show(recorded, out, with_titles=not shown_so_far)
        sys.stdout.flush()
        shown_so_far += found
        after = max(after, last)
        while (head := host.log.head()) == after:
            sleep(FOLLOW_SECONDS)
        recorded = host.log.read(asked.newest(None), after=after)
        after = head


def _show(
    recorded: Iterator[Recorded[Json]], out: Output, *, with_titles: bool = True
) -> tuple[int, int]:
    """Show attestations, and return how many they were and the position of the last."""
    found = last = 0
    while some := list(islice(recorded, ALIGNED_ROWS)):
        for one in some:
            out.record(document_of(one))
        titled = with_titles and not found and out.for_people
        out.table(COLUMNS, map(_row, some), with_titles=titled)
        found, last = found + len(some), some[-1].position
    return found, last


def document_of(recorded: Recorded[Json]) -> dict[str, object]:
    """Return all that the log holds of an attestation, under the names it has everywhere."""
    return {
        "position": recorded.position,
        "id": recorded.id,
        "context": recorded.context,
        "actor": recorded.actor,
        "entity": recorded.entity,
        "payload": recorded.payload,
        "schema_version": recorded.schema_version,
        "recorded_at": recorded.recorded_at,
        "caused_by": recorded.caused_by,
        "correlation_id": recorded.correlation_id,
        "depth": recorded.depth,
        "tags": recorded.tags,
        "entity_version": recorded.entity_version,
    }


def _row(one: Recorded[Json]) -> Row:
    return (one.position, one.recorded_at, one.entity, one.context, one.actor, one.text)


def _refuse_unknown(session: Session, host: Host, asked: Iterable[str]) -> None:
    """Refuse a context that the log has never seen and that no enabled domain knows."""
    with host.database.read() as connection:
        known = set(_contexts(connection))
    if known.issuperset(asked):
        return
    with session.host() as domains:
        known |= known_contexts(domains) | set(domains.contexts)
    for context in asked:
        if context not in known:
            raise UnknownContext(context, known)


def _contexts(connection: Connection) -> Iterator[str]:
    """Yield the contexts of the log, each found by one step through the index."""
    context = attestations.c.context
    found = connection.execute(select(func.min(context))).scalar_one()
    while found is not None:
        yield found
        following = select(func.min(context)).where(context > found)
        found = connection.execute(following).scalar_one()
