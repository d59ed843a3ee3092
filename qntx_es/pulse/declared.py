"""What a host says of its handlers, queues and budgets when it starts: only what is not known yet.

A declaration is decided at the head, so two hosts that start together say it once. A handler that a
domain has no more is withdrawn by the host that runs that domain; of a domain that is not here,
nothing is said.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from qntx_es.attestation import Attestation
from qntx_es.config import BudgetSettings, QueueSettings
from qntx_es.domain import Domain
from qntx_es.jobs import JobHandler, Rate
from qntx_es.log import Log, Turn
from qntx_es.pulse.statements import (
    BudgetDeclared,
    BudgetWithdrawn,
    HandlerDeclared,
    HandlerWithdrawn,
    QueueConfigured,
)
from qntx_es.pulse.tables import budgets, handlers, pulse, queues

MILLIONTHS = 1_000_000


class Declarations:
    """What a host has to say of what its jobs may do."""

    def __init__(
        self,
        domains: Iterable[Domain],
        of_queues: Mapping[str, QueueSettings],
        of_budgets: Mapping[str, BudgetSettings],
    ) -> None:
        self._domains = [one for one in domains if one is not pulse]
        self._handlers = {one.name: one for domain in self._domains for one in domain.jobs}
        self._queues = of_queues
        self._budgets = of_budgets

    def state(self, log: Log, *, is_whole: bool) -> int:
        """State what is new, and return how many statements that took.

        Where it is not the whole, handlers that nothing bounds are left to whoever runs them.
        """
        with log.reading() as turn:
            if not list(self._differences(turn, is_whole=is_whole)):
                return 0
        return len(log.decide(lambda turn: self._differences(turn, is_whole=is_whole)))

    def _differences(self, turn: Turn, *, is_whole: bool) -> Iterator[Attestation]:
        known = {row.handler: row for row in turn.read(select(handlers))}
        ours = {domain.name for domain in self._domains}
        for name, handler in sorted(self._handlers.items()):
            row, said = known.get(name), declaration_of(handler)
            if row is None and not (is_whole or _is_bounded(handler)):
                continue
            if row is None or row.is_withdrawn or not _is_same(row, said):
                yield pulse.attest(said, entity=name)
        for name, row in sorted(known.items()):
            is_gone = name not in self._handlers and name.partition(".")[0] in ours
            if is_gone and not row.is_withdrawn:
                yield pulse.attest(HandlerWithdrawn(), entity=name)
        yield from self._of_queues(turn)
        yield from self._of_budgets(turn)

    def _of_queues(self, turn: Turn) -> Iterator[Attestation]:
        known = {row.queue: row for row in turn.read(select(queues))}
        for name, given in sorted(self._queues.items()):
            rate = None if given.rate is None else Rate.parse(given.rate)
            said = QueueConfigured(
                limit=given.limit,
                rate=rate and rate.count,
                rate_window_ms=rate and _milliseconds(rate.window),
                weight=given.weight,
            )
            row = known.get(name)
            wanted = (*_limits_said(said), said.weight)
            if row is None or (*_limits(row), row.weight) != wanted:
                yield pulse.attest(said, entity=name)

    def _of_budgets(self, turn: Turn) -> Iterator[Attestation]:
        known = {row.budget: row for row in turn.read(select(budgets))}
        for name, given in sorted(self._budgets.items()):
            said = BudgetDeclared(
                unit=given.unit,
                amount=round(given.amount * MILLIONTHS),
                window_ms=_milliseconds(Rate.parse(f"1/{given.window}").window),
            )
            row = known.get(name)
            wanted = (said.unit, said.amount, said.window_ms * 1_000, False)
            if row is None or wanted != (row.unit, row.amount, row.window, row.is_withdrawn):
                yield pulse.attest(said, entity=name)
        for name, row in sorted(known.items()):
            # Only who configures budgets at all can say that one is there no more.
            if self._budgets and name not in self._budgets and not row.is_withdrawn:
                yield pulse.attest(BudgetWithdrawn(), entity=name)


def declaration_of(handler: JobHandler[Any]) -> HandlerDeclared:
    """Return what is said of a handler."""
    options = handler.options
    return HandlerDeclared(
        queue=options.queue,
        version=handler.version,
        options={
            "retries": options.retries,
            "timeout_seconds": options.timeout and options.timeout.total_seconds(),
            "on_lapse": options.on_lapse,
            "priority": options.priority,
            "cost": options.cost,
            "runs": options.runs,
        },
        payload_schema=None if handler.model is None else handler.model.model_json_schema(),
        limit=options.limit,
        per_key=options.per_key,
        rate=options.rate and options.rate.count,
        rate_window_ms=options.rate and _milliseconds(options.rate.window),
        budget=options.budget,
    )


def _is_bounded(handler: JobHandler[Any]) -> bool:
    options = handler.options
    bounds = (options.limit, options.per_key, options.rate, options.budget)
    return any(one is not None for one in bounds)


def _is_same(row: Any, said: HandlerDeclared) -> bool:  # noqa: ANN401 - a row of pulse_handlers
    kept = (row.queue, row.version, row.per_key, row.budget, *_limits(row))
    return kept == (said.queue, said.version, said.per_key, said.budget, *_limits_said(said))


def _limits(row: Any) -> tuple[int | None, ...]:  # noqa: ANN401 - a row
    return (row.at_once, row.rate, row.rate_window)


def _limits_said(said: HandlerDeclared | QueueConfigured) -> tuple[int | None, ...]:
    return (said.limit, said.rate, said.rate_window_ms and said.rate_window_ms * 1_000)


def _milliseconds(window: timedelta) -> int:
    return round(window / timedelta(milliseconds=1))


__all__ = ["Declarations", "declaration_of"]
