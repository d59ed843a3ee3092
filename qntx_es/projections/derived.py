"""What derive handlers say when the log is folded again, held against what the log has of them.

A rebuild appends nothing: an output that changed, is missing or surplus is reported with both
texts, and correcting the past is a new attestation and a human decision. The id of an output is
computed of its source, handler and ordinal, so each is looked up by id; ordinals have no gaps, so
the first one that was not yielded tells whether the log has more.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from sqlalchemy import Connection

from qntx_es.attestation import Attestation, RecordedRow, derived_id
from qntx_es.domain import DeriveHandler, Domain
from qntx_es.inbox import waiting_of
from qntx_es.projections.starts import Since
from qntx_es.statements import bytes_of, known_by_id

FIRST = 10


@dataclass(frozen=True, slots=True)
class DerivationDifference:
    """One output of the source at `source` that is changed, missing in the log, or surplus."""

    verdict: str
    source: int
    id: str
    logged: str | None
    rebuilt: str | None


@dataclass(frozen=True, slots=True)
class DeriveProof:
    """The outputs of one handler, counted, with the first that are not equal."""

    handler: str
    equal: int
    changed: int
    missing: int
    surplus: int
    first: tuple[DerivationDifference, ...]

    @property
    def is_same(self) -> bool:
        """Tell whether the log holds exactly what the handler says."""
        return not (self.changed or self.missing or self.surplus)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An output that was yielded, or the ordinal behind the last one."""

    handler: str
    source: RecordedRow
    ordinal: int
    id: str
    said: Attestation | None


@dataclass(slots=True)
class _Found:
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    differences: list[tuple[str, DerivationDifference]] = field(default_factory=list)
    missing: list[Attestation] = field(default_factory=list)

    def note(self, wanted: _Wanted, logged: Any) -> None:  # noqa: ANN401 - a row of the log
        """Count an output, and keep it if it is not equal."""
        said = wanted.said
        if said is None:
            verdict = "surplus"
        elif logged is None:
            verdict = "missing"
            self.missing.append(said)
        else:
            verdict = "equal" if said.bytes == bytes_of(logged) else "changed"
        self.counts[wanted.handler, verdict] += 1
        if verdict != "equal" and self.counts[wanted.handler, verdict] <= FIRST:
            difference = DerivationDifference(
                verdict=verdict,
                source=wanted.source[0],
                id=wanted.id,
                logged=None if logged is None else _spelt(logged, logged.payload),
                rebuilt=None if said is None else _spelt(said, said.text),
            )
            self.differences.append((wanted.handler, difference))


class Derivations:
    """The outputs of a domain's derive handlers so far, batch by batch.

    Of each handler those of sources that it speaks of by `since` count.
    """

    def __init__(self, domain: Domain) -> None:
        self.since: Mapping[str, Since] = {}
        self._domain = domain
        self._kept = _Found()
        self._latest = _Found()

    def compare(
        self, connection: Connection, batch: Iterable[RecordedRow], said: Iterable[Attestation]
    ) -> None:
        """Compare the outputs of one batch with the log; they count once it is kept."""
        self._latest = _Found()
        yielded = {one.id: one for one in said}
        wanted = [one for row in batch for one in self._wanted(row, yielded)]
        while wanted:
            logged = _logged(connection, [one.id for one in wanted])
            for one in wanted:
                if one.said is not None or one.id in logged:
                    self._latest.note(one, logged.get(one.id))
            behind = [one for one in wanted if one.said is None and one.id in logged]
            wanted = [self._at(one.handler, one.source, one.ordinal + 1, {}) for one in behind]

    @property
    def derives_from(self) -> dict[str, int]:
        """Behind which position each handler speaks of anything at all."""
        return {name: since.least for name, since in self.since.items()}

    @property
    def missing(self) -> Sequence[Attestation]:
        """What was said in the latest batch, and the log does not have."""
        return self._latest.missing

    def keep(self) -> None:
        """Count the latest batch, whose transaction has committed."""
        self._kept.counts += self._latest.counts
        self._kept.differences += self._latest.differences
        self._latest = _Found()

    def spelt(self) -> dict[str, object]:
        """Return all that was found, the latest batch too, as JSON to restore it from."""
        found = (self._kept, self._latest)
        counts = self._kept.counts + self._latest.counts
        return {
            "counts": [[*key, number] for key, number in counts.items()],
            "first": [[name, *astuple(one)] for some in found for name, one in some.differences],
        }

    def restore(self, spelt: Mapping[str, Any]) -> None:
        """Know again what was found before."""
        self._kept.counts = Counter({(name, v): number for name, v, number in spelt["counts"]})
        self._kept.differences = [
            (name, DerivationDifference(*one)) for name, *one in spelt["first"]
        ]

    def join(self, other: "Derivations") -> None:
        """Count what was found elsewhere."""
        kept = other._kept  # noqa: SLF001 - its own kind
        self._kept.counts += kept.counts
        self._kept.differences += kept.differences

    def proofs(self) -> tuple[DeriveProof, ...]:
        """Return what was found so far, by handler."""
        return tuple(self._proof(one.name) for one in self._domain.derives)

    def drift_of(self, handler: str) -> tuple[DerivationDifference, ...]:
        """Return the first outputs of a handler that the log has, and has otherwise."""
        drift = [
            one
            for name, one in self._kept.differences
            if name == handler and one.verdict != "missing"
        ]
        return tuple(drift[:FIRST])

    def _proof(self, handler: str) -> DeriveProof:
        first = [one for name, one in self._kept.differences if name == handler]
        return DeriveProof(
            handler=handler,
            equal=self._kept.counts[handler, "equal"],
            changed=self._kept.counts[handler, "changed"],
            missing=self._kept.counts[handler, "missing"],
            surplus=self._kept.counts[handler, "surplus"],
            first=tuple(first[:FIRST]),
        )

    def _wanted(self, row: RecordedRow, yielded: dict[str, Attestation]) -> Iterator[_Wanted]:
        for handler in self._domain.derives:
            if not self._speaks_of(handler, row):
                continue
            wanted = self._at(handler.name, row, 0, yielded)
            while wanted.said is not None:
                yield wanted
                wanted = self._at(handler.name, row, wanted.ordinal + 1, yielded)
            yield wanted

    def _speaks_of(self, handler: DeriveHandler, row: RecordedRow) -> bool:
        since = self.since.get(handler.name)
        return since is not None and since.is_before(row) and handler.is_for(row[2], row[4])

    def _at(
        self, handler: str, source: RecordedRow, ordinal: int, yielded: dict[str, Attestation]
    ) -> _Wanted:
        computed = derived_id(source[1], self._domain.name, handler, str(ordinal))
        return _Wanted(handler, source, ordinal, computed, yielded.get(computed))


def _logged(connection: Connection, ids: Sequence[str]) -> dict[str, Any]:
    """Return what is said under these ids, also what is committed and has no position yet."""
    waiting: dict[str, Any] = {}
    if connection.dialect.name != "sqlite":
        # Looked at first: what a pass moves meanwhile is found in the log.
        waiting = {row.id: row for row in connection.execute(waiting_of(), {"ids": ids})}
    return waiting | known_by_id(connection, ids)


def _spelt(one: Any, payload: str) -> str:  # noqa: ANN401 - an attestation, said or recorded
    return f"{one.entity} is {one.context} by {one.actor}: {payload}"
