"""A domain under test: the same domain, whose functions run in circumstances that are known.

Its tables, names and choices are its own, and the real host, log and runner run it. Only who calls
a handler is us: to hold the world still around it, to note that it was reached, and, where a log is
folded again, to hear what it derives without saying it a second time.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import replace
from functools import wraps
from itertools import islice
from typing import Any

from qntx_es.attestation import Attestation, Recorded, derived_id
from qntx_es.domain import DeriveHandler, Domain, ProjectHandler
from qntx_es.errors import DomainRefused
from qntx_es.folds import Fold
from qntx_es.projections.handlers import DERIVED_MAX
from qntx_es.rows import ReadRows, Rows
from qntx_es.testing.circumstances import Circumstances, stands_for_another
from qntx_es.testing.memory import Memory


class HandlerRefuses(Exception):  # noqa: D101 - raised in a handler's place, on purpose
    pass


class Subject:
    """A domain to be run again and again; raises `DomainRefused` where no host would take it up."""

    def __init__(self, domain: Domain) -> None:
        if problems := domain.problems():
            raise DomainRefused(domain.name, problems)
        self.domain = domain
        self.memory = Memory(_functions_of(domain))
        self._clocks = tuple(
            place for place in self.memory.places if stands_for_another(place.get())
        )
        self.circumstances = Circumstances(places=self._clocks)
        self.reached: set[str] = set()
        self.failing: frozenset[str] = frozenset()
        self.heard: dict[str, bytes] = {}
        self.live = self._run_by_us(self._said)
        # Folded again: it speaks of all that is there, and nothing of it is appended.
        self.dark = self._run_by_us(self._heard, is_from_beginning=True)

    def restart(self) -> None:
        """Forget what a new process would not know."""
        self.memory.restart()

    def begin(self, changed: frozenset[str] = frozenset()) -> None:
        """Begin a run: nothing is kept of the one before, and some circumstances are others."""
        self.restart()
        self.circumstances = Circumstances(changed, self._clocks)
        self.failing = frozenset()
        self.heard = {}

    @property
    def handlers(self) -> list[ProjectHandler | DeriveHandler]:
        """Its project and derive handlers, in their order."""
        return [*self.domain.projects, *self.domain.derives]

    def handlers_of(self, context: str) -> list[ProjectHandler | DeriveHandler]:
        """Return the handlers that read a context."""
        return [one for one in self.handlers if one.payload.context == context]

    def _run_by_us(
        self,
        hear: Callable[[DeriveHandler, Recorded[Any], list[Attestation]], Iterable[Attestation]],
        **changes: Any,  # noqa: ANN401 - fields of a derive handler
    ) -> Domain:
        ours = copy(self.domain)
        ours.projects = [self._projected(one) for one in self.domain.projects]
        ours.derives = [replace(self._derived(one, hear), **changes) for one in self.domain.derives]
        return ours

    def _projected(self, handler: ProjectHandler) -> ProjectHandler:
        if isinstance(handler.function, Fold):
            return handler  # no code of anybody's, and the database runs it
        function, keys = handler.function, handler.keys

        @wraps(function)
        def project(recorded: Recorded[Any], rows: Rows) -> None:
            self._meet(handler.name, recorded)
            with self.circumstances.within():
                function(self.circumstances.seen(recorded), rows)

        if keys is None:
            return replace(handler, function=project)

        @wraps(keys)
        def named(recorded: Recorded[Any]) -> Iterator[tuple[Any, ...]]:
            with self.circumstances.within():
                found = list(keys(self.circumstances.seen(recorded)))
            yield from found

        return replace(handler, function=project, keys=named)

    def _derived(
        self,
        handler: DeriveHandler,
        hear: Callable[[DeriveHandler, Recorded[Any], list[Attestation]], Iterable[Attestation]],
    ) -> DeriveHandler:
        @wraps(handler.function)
        def derive(source: Recorded[Any], rows: ReadRows) -> Iterable[Attestation]:
            self._meet(handler.name, source)
            with self.circumstances.within():
                said = handler.function(self.circumstances.seen(source), rows) or ()
                found = list(islice(said, DERIVED_MAX + 1))
            return hear(handler, source, found)

        return replace(handler, function=derive)

    def _meet(self, handler: str, recorded: Recorded[Any]) -> None:
        self.reached.add(handler)
        if recorded.id in self.failing:
            raise HandlerRefuses("it was told to fail here")

    def _said(
        self, handler: DeriveHandler, source: Recorded[Any], said: list[Attestation]
    ) -> Iterable[Attestation]:
        del handler, source
        return said

    def _heard(
        self, handler: DeriveHandler, source: Recorded[Any], said: list[Attestation]
    ) -> Iterable[Attestation]:
        for ordinal, one in enumerate(said):
            if not isinstance(one, Attestation):
                return said  # refused by name, as it would be live
            self.domain.refuse_foreign(one)
            computed = derived_id(source.id, self.domain.name, handler.name, str(ordinal))
            self.heard[computed] = one.bytes
        return ()


def _functions_of(domain: Domain) -> list[Callable[..., object]]:
    coded = [one for one in domain.projects if not isinstance(one.function, Fold)]
    functions: list[Callable[..., object]] = [one.function for one in coded]
    functions += [one.keys for one in coded if one.keys is not None]
    functions += [one.function for one in domain.derives]
    return functions + [one.function for one in domain.upcasters]
