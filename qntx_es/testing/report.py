"""How a failure is told: the shortest history as Python, the plan, the difference, the cause.

Whoever reads it pastes three lines into a test and fails in the same way.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any, TypeAlias

from qntx_es.attestation import Attestation, Payload
from qntx_es.domain import DeriveHandler, Domain, ProjectHandler
from qntx_es.errors import InconsistentReplay
from qntx_es.testing.bench import Kind
from qntx_es.testing.causes import REFUSED, Cause, cause_of
from qntx_es.testing.differences import Difference, differences
from qntx_es.testing.hashseeds import differs_by_hash_seed, parting_of, touches_of
from qntx_es.testing.moving import TableRows
from qntx_es.testing.plans import (
    Append,
    Cut,
    Fail,
    Lift,
    Poll,
    Rebuild,
    Restart,
    Step,
    Travel,
    Under,
    spoken,
)
from qntx_es.testing.replay import Outcome, Stage, fold_of, run_on, stage_of

Handlers: TypeAlias = Sequence[ProjectHandler | DeriveHandler]

LINES_MAX = 12
WIDTH_MAX = 40
TOUCHES_MAX = 3
SPOKEN = {"open": "opens", "connect": "connects to"}


def told(
    stage: Stage,
    log: Sequence[Attestation],
    plan: Sequence[Step],
    kind: Kind,
    again: str = "",
) -> InconsistentReplay | None:
    """Return how a log and a plan fail, with the likely cause; None where they do not."""
    planned = run_on(stage, log, plan, kind, is_watched=True)
    folded = fold_of(stage, log, plan, planned, kind, is_watched=True)
    found = differences(stage.subject.domain, folded, planned)
    history = _history(stage.subject.domain, log, plan, kind)
    by_hash_seed = not found and differs_by_hash_seed(stage.subject.domain, planned.exported)
    if by_hash_seed:
        parts = [
            f"{stage.subject.domain.name} gives other rows under another hash seed (P9)",
            f"The shortest log that shows it:\n{history}",
            _parted(stage, planned),
            _likely(stage, cause_of(stage, log, plan, kind), _handlers_at(stage, log, len(log))),
            _touched(stage, planned),
            again,
        ]
        return InconsistentReplay("\n\n".join(filter(None, parts)), cause="hashseed")
    if not found and planned.error is None:
        return None
    if not found or (planned.error is not None and folded.error is not None):
        return InconsistentReplay(_refused(stage, planned, history, again), cause=REFUSED)
    cause = cause_of(stage, log, plan, kind)
    position = _first_position(folded, planned)
    handlers = _handlers_at(stage, log, position)
    parts = [
        f"{stage.subject.domain.name} gives other rows {_title(plan)}",
        f"The shortest log and plan that show it, {spoken(plan)}:\n{history}",
        table_of(found, position, handlers),
        _likely(stage, cause, handlers),
        _touched(stage, planned),
        again,
    ]
    return InconsistentReplay("\n\n".join(filter(None, parts)), cause=cause.name)


def replay(
    domain: Domain, log: Sequence[Attestation], plan: Sequence[Step], *, on: Kind = "sqlite"
) -> Outcome:
    """Run a log by a plan and fold it from nothing; return what came of it, both being the same.

    Raises `InconsistentReplay`, with the likely cause, where they are not.
    """
    stage = stage_of(domain)
    failure = told(stage, log, plan, on)
    if failure is not None:
        raise failure
    return run_on(stage, log, plan, on)


def _refused(stage: Stage, outcome: Outcome, history: str, again: str) -> str:
    name = stage.subject.domain.name
    likely = (
        "Likely: the handler does not take what its payload class allows, or does what it may not."
        "\n        Bound the field, mend the handler, or, where no such history can be, say so: "
        f"attestations({name}, starts_with=…, strategies=…)"
    )
    parts = [
        f"{name} refuses a log that its payloads allow",
        f"The shortest log that shows it:\n{history}",
        outcome.error or "",
        likely,
        again,
    ]
    return "\n\n".join(filter(None, parts))


def _title(plan: Sequence[Step]) -> str:
    """Say what a plan does that ought not to show, by the property that it breaks."""
    if changed := [one for one in plan if isinstance(one, Under) and one.changed]:
        return f"{changed[0]} (P9)"
    if any(isinstance(one, Poll) and one.crash_at for one in plan):
        return "after a crash (P3)"
    titles: Sequence[tuple[type, str]] = (
        (Restart, "after a restart (P3)"),
        (Fail, "after a failure that was mended (P20)"),
        (Cut, "when its entities are projected in ranges (P8)"),
        (Lift, "where old payloads are lifted beforehand (P11)"),
        (Travel, "when it is folded up to a position only (P16)"),
        (Rebuild, "after a rebuild (P6)"),
        (Append, "when it follows a log that grows (P1)"),
    )
    for kind, title in titles:
        if any(isinstance(one, kind) for one in plan):
            return title
    if any(isinstance(one, Poll) and one.times > 1 for one in plan):
        return "when a batch is undone and offered again (P4)"
    return "in other batches (P2)"


# The history, as Python.


def _history(domain: Domain, log: Sequence[Attestation], plan: Sequence[Step], kind: Kind) -> str:
    said = [spelt(domain, one, _is_referred_to(one, log)) for one in log]
    on = "" if kind == "sqlite" else f', on="{kind}"'
    lines = [
        f"log  = [{(',' + chr(10) + '        ').join(said)}]",
        f"plan = {list(plan)!r}",
        f"replay({domain.name}, log, plan{on})".ljust(52) + "# paste into a test: fails alike",
    ]
    return indent("\n".join(lines), "    ")


def spelt(domain: Domain, said: Attestation, with_id: bool = False) -> str:  # noqa: FBT001, FBT002
    """Return an attestation as Python that makes one like it."""
    options = [f"entity={said.entity!r}"]
    is_own = said.payload_class is not None and domain.may_emit(said.context)
    is_own = is_own and (said.actor in domain.actors or said.actor == f"{domain.name}@plugin")
    if not is_own or said.actor != domain.actors[0]:
        options.append(f"actor={said.actor!r}")
    options += [f"id={said.id!r}"] if with_id else []
    options += [f"caused_by={said.caused_by!r}"] if said.caused_by else []
    options += [f"tags={said.tags!r}"] if said.tags else []
    payload = _payload(said)
    if is_own:
        return f"{domain.name}.attest({payload}, {', '.join(options)})"
    if said.schema_version != 1:
        options.append(f"schema_version={said.schema_version}")
    return f"Attestation(context={said.context!r}, payload={payload}, {', '.join(options)})"


def _is_referred_to(said: Attestation, log: Sequence[Attestation]) -> bool:
    return any(said.id in (one.caused_by, one.correlation_id) for one in log)


def _payload(said: Attestation) -> str:
    kind = said.payload_class
    if kind is None:
        return repr(dict(said.payload))
    return _model(kind.model_validate_json(said.text))


def _model(payload: Payload) -> str:
    kind = type(payload)
    named = [
        f"{field.alias or name}={getattr(payload, name)!r}"
        for name, field in kind.model_fields.items()
        if field.is_required() or getattr(payload, name) != field.get_default()
    ]
    return f"{kind.__name__}({', '.join(named)})"


# The difference.


def table_of(
    found: Sequence[Difference], position: int | None = None, handlers: Handlers = ()
) -> str:
    """Return what differs as a table, the first position and its handlers marked if known."""
    mark = "" if position is None else f"   <- first at position {position}"
    if position is not None and handlers:
        mark += f", handler {', '.join(one.name for one in handlers)}"
    lines: list[str] = []
    table = None
    for one in found[:LINES_MAX]:
        if one.table != table:
            table = one.table
            lines.append(_line(one.table, "from nothing", "this plan"))
        told = "  ".join(filter(None, (one.key, one.column)))
        lines.append(_line(f"  {told}", one.folded, one.planned) + mark)
        mark = ""
    if len(found) > LINES_MAX:
        lines.append(f"  … and {len(found) - LINES_MAX} more")
    return "\n".join(lines)


def _line(what: str, folded: str, planned: str) -> str:
    if max(len(folded), len(planned)) > WIDTH_MAX:
        return f"{what}\n    {folded}\n    {planned}"
    return f"{what:<36} {folded:>14} {planned:>14}"


def _parted(stage: Stage, planned: Outcome) -> str:
    """Say where interpreters part, and what each of them has there."""
    parting = parting_of(stage.subject.domain, planned.exported)
    if parting is None:
        return ""
    lines = [f"first at position {parting.position}"]
    for name in parting.tables:
        rows = {seed: replay.rows[name] for seed, replay in parting.replays.items()}
        lines.append(name)
        lines += [f"  hash seed {seed}: {_differing(rows, seed)}" for seed in rows]
    return "\n".join(lines)


def _differing(rows: Mapping[int, Sequence[Mapping[str, str]]], seed: int) -> str:
    told = [row for row in rows[seed] if any(row not in others for others in rows.values())]
    return "; ".join(", ".join(f"{name}={value}" for name, value in row.items()) for row in told)


def _first_position(folded: Outcome, planned: Outcome) -> int | None:
    """Return the first position at which the rows of both are not the same."""
    for position, rows in planned.steps:
        there = _rows_at(folded, position)
        if there is not None and repr(there) != repr(rows):
            return position
    return None


def _rows_at(folded: Outcome, position: int) -> TableRows | None:
    before = [rows for at, rows in folded.steps if at <= position]
    return before[-1] if before else None


def _handlers_at(
    stage: Stage, log: Sequence[Attestation], position: int | None
) -> list[ProjectHandler | DeriveHandler]:
    # A batch ends behind what does not match: what matters is the last that a handler reads.
    for one in reversed(log[: position or 0]):
        if handlers := stage.subject.handlers_of(one.context):
            return handlers
    return []


# The cause.


def _likely(stage: Stage, cause: Cause, handlers: Handlers) -> str:
    subject = stage.subject
    blamed = handlers or subject.handlers[:1]
    where = " and ".join(f"{_place(one.function)} `{one.name}`" for one in blamed)
    kept = "; ".join(
        f"`{one.name}` in {one.where}: {one.after} before the restart, {one.before} after"
        for one in cause.changes
    )
    lines = [
        f"Likely: {where} {cause.says}{f' ({kept})' if kept else ''}.",
        f"        {cause.remedy}.",
    ]
    if cause.also:
        lines.append(f"It differs also by: {', '.join(cause.also)}.")
    if cause.innocent:
        lines.append(f"Not the cause: {', '.join(cause.innocent)} (each tried alone).")
    return "\n".join(lines)


def _touched(stage: Stage, planned: Outcome) -> str:
    """Name the files and servers that handlers reach for: a hint, since that alone is no bug."""
    found = touches_of(stage.subject.domain, planned.exported)
    told = [f"`{one.handler}` {SPOKEN[one.verb]} {one.target}" for one in found[:TOUCHES_MAX]]
    more = [f"{len(found) - TOUCHES_MAX} more"] if len(found) > TOUCHES_MAX else []
    return f"Seen meanwhile: {'; '.join((*told, *more))}." if told else ""


def _place(function: Callable[..., Any]) -> str:
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return "the fold"
    path = Path(code.co_filename)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{code.co_firstlineno}"


def again_by(blob: str) -> str:
    """Say how to run it again: the test's own name, and what Hypothesis needs for its example."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
    ways = [f"pytest {test}"] if test else []
    ways += [blob] if blob else []
    return f"Again: {', or '.join(ways)}" if ways else ""
