"""A domain's handlers, ready to run: by context, project before derive, each payload decoded once.

What is decided here once for a domain is not asked again for each attestation.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qntx_es import faults
from qntx_es.attestation import (
    Attestation,
    Payload,
    Recorded,
    RecordedRow,
    derived_id,
)
from qntx_es.domain import DeriveHandler, Domain, ProjectHandler
from qntx_es.errors import DerivationTooDeep, InvalidDerivation, TooMany
from qntx_es.projections.chain import chain_to
from qntx_es.projections.recovery import InHand, blamed
from qntx_es.projections.rows import RowMap
from qntx_es.rows import ReadRows
from qntx_es.upcasting import Chain

DEPTH_MAX = 64
DERIVED_MAX = 1_000


class ReadOnly:
    """What a derive handler sees: the rows as of the attestation in hand, and no way to write."""

    __slots__ = ("get", "select")

    def __init__(self, rows: ReadRows) -> None:
        self.get = rows.get
        self.select = rows.select


@dataclass(slots=True)
class _Plan:
    """What is done with one context: each class decodes the payload once, for all its handlers.

    `decode` is the only class's, for payloads of `version`, its present one; where there are
    several, `version` is none.
    """

    name: str
    version: int | None
    decode: Callable[[str], Payload]
    chains: list[Chain[Payload]] = field(default_factory=list)
    projects: list[tuple[int, str, Callable[[Any, Any], None]]] = field(default_factory=list)
    named: list[tuple[int, ProjectHandler]] = field(default_factory=list)
    derives: list[tuple[int, DeriveHandler]] = field(default_factory=list)

    def read_by(self, chain: Chain[Payload]) -> int:
        """Return which of the chains is this class's."""
        classes = [one.payload for one in self.chains]
        if chain.payload in classes:
            return classes.index(chain.payload)
        self.version = None if classes else chain.version
        self.chains.append(chain)
        return len(classes)

    def recorded(self, row: RecordedRow) -> Sequence[Recorded[Any]]:
        """Return the attestation once for each class; nearly always there is one.

        Raises `SchemaVersionTooNew`, be the payload looked at or not: newer code may mean another
        thing by the whole statement.
        """
        return [Recorded(row, one.decode_of(row[6])) for one in self.chains]


class Handlers:
    """The handlers of one domain by context."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._plans: dict[str, _Plan] = {}
        for project in domain.projects:
            plan, which = self._read_by(project)
            plan.projects.append((which, project.name, project.function))
            if project.keys is not None:
                plan.named.append((which, project))
        for derive in domain.derives:
            plan, which = self._read_by(derive)
            plan.derives.append((which, derive))

    @property
    def contexts(self) -> frozenset[str]:
        """The contexts that any handler reads."""
        return frozenset(self._plans)

    def read_ahead(self, rows: RowMap, batch: Iterable[RecordedRow]) -> None:
        """Tell the rows which keys the batch is about. Raises `HandlerFailed`."""
        in_hand = InHand()
        with blamed(in_hand):
            rows.read_ahead([row[4] for row in batch], self._named(batch, in_hand))

    def _named(self, batch: Iterable[RecordedRow], in_hand: InHand) -> Iterator[tuple[Any, ...]]:
        if not any(plan.named for plan in self._plans.values()):
            return
        for row in batch:
            for which, handler in self._plans[row[2]].named:
                in_hand.position, in_hand.handler = row[0], handler.name
                recorded = self._plans[row[2]].recorded(row)[which]
                if handler.keys is not None:
                    yield from handler.keys(recorded)

    def run(
        self,
        batch: Iterable[RecordedRow],
        rows: RowMap,
        *,
        derives_from: Mapping[str, int] | None,
    ) -> list[Attestation]:
        """Run the handlers over a batch in order, and return what was derived.

        Each derive handler speaks of what lies behind its position in `derives_from`; one that has
        none there says nothing. Raises `HandlerFailed`.
        """
        derived: list[Attestation] = []
        in_hand = InHand()
        plans, is_ordered, is_by_entity = self._plans, rows.is_ordered, rows.is_by_entity
        with blamed(in_hand):
            for row in batch:
                plan = plans[row[2]]
                in_hand.position, in_hand.handler = row[0], plan.name
                if is_by_entity:
                    rows.entity = row[4]
                recorded: Sequence[Recorded[Any]]
                if row[6] == plan.version:  # the road most taken, made short
                    recorded = (Recorded(row, plan.decode),)
                else:
                    recorded = plan.recorded(row)
                faults.point("batch.in_handler")
                for which, name, project in plan.projects:
                    in_hand.handler = name
                    project(recorded[which], rows)
                if is_ordered:
                    rows.settle()
                if not derives_from:
                    continue
                for which, derive in plan.derives:
                    behind = derives_from.get(derive.name)
                    if behind is not None and row[0] > behind:
                        in_hand.handler = derive.name
                        derived += self._follow(derive, recorded[which], rows)
        return derived

    def _follow(
        self, handler: DeriveHandler, source: Recorded[Payload], rows: RowMap
    ) -> Iterator[Attestation]:
        if handler.schedule is not None and source.entity != handler.schedule:
            return
        for ordinal, said in enumerate(handler.function(source, ReadOnly(rows)) or ()):
            if not isinstance(said, Attestation):
                raise InvalidDerivation(
                    f"`{handler.name}` yielded a {type(said).__name__}: yield attestations, "
                    f"made by {self.domain.name}.attest(…) or by a job's request(…)"
                )
            if source.depth >= DEPTH_MAX:
                raise DerivationTooDeep(chain_to(source, rows.connect(False)))  # noqa: FBT003 - to read
            if ordinal >= DERIVED_MAX:
                raise TooMany(f"`{handler.name}` yields more than {DERIVED_MAX} of one attestation")
            self.domain.refuse_foreign(said)
            yield said.caused(
                id=derived_id(source.id, self.domain.name, handler.name, str(ordinal)),
                by=source.id,
                correlation_id=source.correlation_id or source.id,
                depth=source.depth + 1,
            )

    def _read_by(self, handler: ProjectHandler | DeriveHandler) -> tuple[_Plan, int]:
        """Return the plan for what a handler reads, and which of its classes that is."""
        chain = self.domain.chain(handler.payload)
        plan = _Plan(handler.name, chain.version, chain.decode)
        plan = self._plans.setdefault(handler.payload.context, plan)
        return plan, plan.read_by(chain)
