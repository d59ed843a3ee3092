"""Whether what a domain derives comes round again, said before it runs.

A handler's signature does not tell what it yields, but its source does: the payload classes that it
makes, and the job handlers that it requests. Nothing that it calls is followed, so what is found is
there. A cycle that is not to be seen so (through another domain, a job, or a function that handlers
share) is cut when it runs, 64 links behind its first cause.
"""

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import dedent
from tokenize import TokenError
from types import FunctionType, MethodType, ModuleType

from qntx_es.attestation import Payload
from qntx_es.jobs import JobHandler, JobRequested, request


@dataclass(frozen=True, slots=True)
class Link:
    """A derive handler that answers one context in another."""

    handler: str
    source: str
    said: str


def contexts_made(function: Callable[..., object]) -> frozenset[str]:
    """Return the contexts of the payloads that a function makes and of the jobs it requests.

    Of a function whose source cannot be read, nothing is known.
    """
    plain = _plain(function)
    if plain is None:
        return frozenset()
    try:
        parsed = ast.parse(dedent(inspect.getsource(plain))).body[0]
    except (OSError, SyntaxError, TokenError):
        return frozenset()
    if not isinstance(parsed, ast.FunctionDef):  # of a lambda its whole line is read
        return frozenset()
    names = _names_of(plain)
    calls = (one for part in parsed.body for one in ast.walk(part) if isinstance(one, ast.Call))
    return frozenset(context for call in calls for context in _made_by(call.func, names))


def cycles_of(links: Iterable[Link], declared: Iterable[str]) -> list[tuple[Link, ...]]:
    """Return the shortest way round from each context that none of `declared` lies on."""
    allowed = frozenset(declared)
    left = [one for one in links if not {one.source, one.said} & allowed]
    found: dict[frozenset[Link], tuple[Link, ...]] = {}
    for context in dict.fromkeys(one.source for one in left):
        if way := _way_round(left, context):
            found.setdefault(frozenset(way), way)
    return list(found.values())


def _way_round(links: list[Link], context: str) -> tuple[Link, ...]:
    ways: list[tuple[Link, ...]] = [(one,) for one in links if one.source == context]
    met: set[str] = set()
    for way in ways:  # it grows: the shorter ones come first
        reached = way[-1].said
        if reached == context:
            return way
        if reached not in met:
            met.add(reached)
            ways += [(*way, one) for one in links if one.source == reached]
    return ()


def _plain(function: Callable[..., object]) -> FunctionType | None:
    """Return the function whose source an author wrote."""
    written = inspect.unwrap(function)
    if not isinstance(written, FunctionType | MethodType):
        written = type(written).__call__
    if isinstance(written, MethodType):
        return _plain(written.__func__)
    return written if isinstance(written, FunctionType) else None


def _names_of(function: FunctionType) -> Mapping[str, object]:
    """Return what the names in a function mean that are not its own."""
    code = function.__code__
    own = {*code.co_varnames, *code.co_cellvars}
    outer = {name: one for name, one in function.__globals__.items() if name not in own}
    return outer | dict(_enclosed(function))


def _enclosed(function: FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it is not bound yet
            continue


def _made_by(called: ast.expr, names: Mapping[str, object]) -> Iterator[str]:
    """Yield the context of what a call makes, if it is a payload or the request of a job."""
    made = _meant(called, names)
    if isinstance(made, type) and issubclass(made, Payload) and made.context:
        yield made.context
    if made is request:
        yield JobRequested.context
    match called:
        case ast.Attribute(value=handler, attr="request"):
            if isinstance(_meant(handler, names), JobHandler):
                yield JobRequested.context


def _meant(named: ast.expr, names: Mapping[str, object]) -> object:
    """Return what a name means, or the name of a module's."""
    if isinstance(named, ast.Name):
        return names.get(named.id)
    if isinstance(named, ast.Attribute):
        module = _meant(named.value, names)
        # Of anything else, asking might run somebody's code.
        return vars(module).get(named.attr) if isinstance(module, ModuleType) else None
    return None
