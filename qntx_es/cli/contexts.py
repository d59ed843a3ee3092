"""`qntx-es contexts`: what is said here, in which fields, by whom and for whom.

The same catalogue as a table, as JSON and as a page for the documentation. It needs the domains'
code, and no database: without one nothing is counted, and everything is documented all the same.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

from qntx_es.catalogue import Context, Found, Reader, Version
from qntx_es.cli.flags import command
from qntx_es.cli.output import Column, Output, Row, complain, iso, shown
from qntx_es.cli.session import Session
from qntx_es.errors import DatabaseMissing, UnknownContext
from qntx_es.host import Host

COLUMNS = (
    Column("context"),
    Column("versions", is_number=True),
    Column("count", is_number=True),
    Column("first", is_number=True, least_width=100),
    Column("last", is_number=True, least_width=100),
    Column("last (UTC)", least_width=140),
    Column("appended by"),
    Column("read by"),
)
ASIDE = """\
<!-- Written by `qntx-es contexts --markdown`. To change it, change the domains. -->

# Contexts

What may be said here, and in which fields. A payload is a JSON object; a reader ignores the fields
that it does not name.
"""
TITLES = "| context | in short | appended by | read by |\n|---|---|---|---|"


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "contexts")(contexts)


def contexts(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this one.")] = None,
    *,
    undeclared: Annotated[
        bool, typer.Option("--undeclared", help="Those in the log that no enabled domain knows.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As a page for the documentation.")
    ] = False,
) -> None:
    """Show the contexts: their payloads' fields, who states them, who reads them, how many."""
    if markdown and session.out.as_json:
        raise typer.BadParameter("one form at a time: --markdown or --json")
    with session.host() as host:
        found = _catalogue(host, is_page=markdown)
    if name is not None:
        found = [_named(name, found)]
    if undeclared:
        found = [one for one in found if not one.is_declared]
    if markdown:
        print(page_of(found), end="")
    elif name is not None:
        _describe(found, session.out)
    else:
        session.out.document([document_of(one) for one in found])
        session.out.table(COLUMNS, [_row(one) for one in found])


def _catalogue(host: Host, *, is_page: bool) -> list[Context]:
    try:
        return host.catalogue()
    except DatabaseMissing as missing:
        if not is_page:
            complain(f"nothing is counted: {missing}")
        return host.catalogue(counted=False)


def _named(name: str, found: Sequence[Context]) -> Context:
    known = {one.name: one for one in found}
    if name not in known:
        raise UnknownContext(name, known)
    return known[name]


def document_of(one: Context) -> dict[str, object]:
    """Return a context as a JSON document."""
    found = one.found
    return {
        "context": one.name,
        "summary": one.summary,
        "versions": [{"version": each.number, "schema": each.schema} for each in one.versions],
        "appended_by": one.appended_by,
        "read_by": one.read_by,
        "count": 0 if found is None else found.count,
        "counts": {} if found is None else found.versions,
        "first": None if found is None else found.first,
        "last": None if found is None else found.last,
    }


def _row(one: Context) -> Row:
    found = one.found
    return (
        one.name,
        ", ".join(str(each.number) for each in one.versions),
        0 if found is None else found.count,
        None if found is None else found.first.position,
        None if found is None else found.last.position,
        None if found is None else found.last.recorded_at,
        ", ".join(one.appended_by),
        ", ".join(dict.fromkeys(reader.domain for reader in one.read_by)),
    )


def _describe(found: Sequence[Context], out: Output) -> None:
    for one in found:
        out.document(document_of(one))
        out.say(one.name, style="bold")
        for line in one.summary.splitlines():
            out.say(f"  {shown(line)}")
        out.table((Column(""), Column("")), _facts(one), with_titles=False)
        for version in one.versions:
            out.say(f"version {version.number}", style="bold")
            out.say(_schema_of(version), is_whole=True)


def _facts(one: Context) -> Iterable[Row]:
    yield ("appended by", ", ".join(one.appended_by))
    yield ("read by", ", ".join(map(_reader, one.read_by)))
    yield ("count", 0 if one.found is None else _counted(one.found))
    if one.found is not None:
        for word, place in (("first", one.found.first), ("last", one.found.last)):
            yield (word, f"{place.position} at {iso(place.recorded_at)}")


def _counted(found: Found) -> str:
    if len(found.versions) == 1:
        return str(found.count)
    each = ", ".join(f"{count} of version {number}" for number, count in found.versions.items())
    return f"{found.count}: {each}"


def _reader(one: Reader) -> str:
    return f"{one.domain} ({one.kind} {one.handler})"


def _schema_of(version: Version) -> str:
    if version.schema is None:
        return "No class: its upcaster reads it as plain JSON."
    return json.dumps(version.schema, indent=2, ensure_ascii=False)


def page_of(found: Sequence[Context]) -> str:
    """Return the catalogue as Markdown; what is counted, if anything is, stands at the end."""
    parts = [ASIDE, "\n".join([TITLES, *map(_line, found)]), *map(_section, found)]
    counted = [one for one in found if one.found is not None]
    if counted:
        parts += [_counts(counted)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _line(one: Context) -> str:
    short = one.summary.split("\n\n")[0].replace("\n", " ")
    readers = ", ".join(dict.fromkeys(reader.domain for reader in one.read_by))
    cells = (_linked(one.name), _cell(short), ", ".join(one.appended_by), readers)
    return f"| {' | '.join(cells)} |"


def _section(one: Context) -> str:
    parts = [f"## {_code(one.name)}", one.summary or "No enabled domain says what this is."]
    facts = []
    if one.appended_by:
        facts.append(f"- Appended by {', '.join(one.appended_by)}.")
    if one.read_by:
        facts.append(f"- Read by {', '.join(map(_reader, one.read_by))}.")
    parts += ["\n".join(facts)] if facts else []
    for version in one.versions:
        schema = _schema_of(version)
        fenced = schema if version.schema is None else f"```json\n{schema}\n```"
        parts += [f"### Version {version.number} of {_code(one.name)}", fenced]
    return "\n\n".join(parts)


def _counts(found: Sequence[Context]) -> str:
    lines = ["| context | count | first | last |", "|---|--:|--:|--:|"]
    for one in found:
        if one.found is not None:
            first, last = one.found.first, one.found.last
            lines.append(
                f"| {_code(one.name)} | {one.found.count} | {first.position}, "
                f"{iso(first.recorded_at)} | {last.position}, {iso(last.recorded_at)} |"
            )
    return "\n\n".join(["## In this log", "\n".join(lines)])


def _linked(name: str) -> str:
    return f"[{_code(name)}](#{name.lower().replace('.', '')})"


def _code(name: str) -> str:
    plain = shown(name).replace("`", "'")
    return f"`{plain}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
