"""What a domain's code keeps between attestations: in modules, closures and default arguments.

A restart empties all of that, and no batch is undone with it, so nothing of a read model may live
there. To restart a process for each try would be slow. So what the handlers can reach is noted as
it was when they were first looked at, and put back: that is what a restart does to it. What cannot
be copied (a connection, a generator) stays, and shows as a difference that has no cause.
"""

import copy
import dis
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from inspect import unwrap
from itertools import count
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from uuid import UUID

SPELT_MAX = 60
_PLAIN = (int, float, complex, str, bytes, type(None), date, time, timedelta, Decimal, UUID, tuple)
_CONTAINERS = (list, dict, set, bytearray, deque)
_UNCOPIED = (copy.Error, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands that the code of a handler can reach: `name` is as one would say it."""

    owner: object
    name: str
    where: str
    get: Callable[[], Any]
    put: Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Change:
    """A value that is another one than it was when the domain was first looked at."""

    name: str
    where: str
    before: str
    after: str


class Memory:
    """Everything that the functions of a domain can change, and what it was at first."""

    def __init__(self, functions: Iterable[Callable[..., object]]) -> None:
        self.places = _places_of(functions)
        self._first = [
            (place, value, noted)
            for place in self.places
            if (noted := _noted(value := place.get())) is not None
        ]
        self._caches = [
            clear
            for place in self.places
            if callable(clear := getattr(place.get(), "cache_clear", None))
        ]

    def restart(self) -> None:
        """Put everything back to what it was at first, each container in its own place."""
        for place, value, noted in self._first:
            if place.get() is not value:
                place.put(value)
            if (made := noted.put_back()) is not None:
                place.put(made)
        for clear in self._caches:
            clear()

    def changes(self) -> list[Change]:
        """Return what is no longer as it was at first."""
        return [
            Change(place.name, place.where, _cut(noted.spelt), _cut(now))
            for place, _, noted in self._first
            if (now := _spelt(place.get())) != noted.spelt
        ]


@dataclass(frozen=True, slots=True)
class _Noted:
    """What a value was, and how it becomes that again; what had to be made anew is returned."""

    spelt: str
    put_back: Callable[[], object]


def _noted(value: Any) -> _Noted | None:  # noqa: ANN401 - whatever a module holds
    """Return how a value is put back to what it is now, or None where it is no state of theirs."""
    if isinstance(value, type | FunctionType | ModuleType | MethodType | Enum):
        return None
    if isinstance(value, _PLAIN):
        return _Noted(_spelt(value), lambda: None)
    try:
        return _noted_in_place(value)
    except _UNCOPIED:
        return None


def _noted_in_place(value: Any) -> _Noted | None:  # noqa: ANN401 - whatever a module holds
    spelt = _spelt(value)
    if isinstance(value, count):
        steps = [int(one) for one in spelt.removeprefix("count(").removesuffix(")").split(",")]
        return _Noted(spelt, lambda: count(*steps))
    if isinstance(value, random.Random):
        state = value.getstate()
        return _Noted(spelt, lambda: value.setstate(state))
    if isinstance(value, _CONTAINERS):
        kept = copy.deepcopy(value)
        return _Noted(spelt, lambda: _refill(value, copy.deepcopy(kept)))
    fields = getattr(value, "__dict__", None)
    if isinstance(fields, dict) and _is_somebodys(type(value)):
        kept_fields = copy.deepcopy(fields)
        return _Noted(spelt, lambda: _refill(fields, copy.deepcopy(kept_fields)))
    return None


def _refill(container: Any, contents: Any) -> None:  # noqa: ANN401 - any container
    container.clear()
    if isinstance(container, dict | set):
        container.update(contents)
    else:
        container.extend(contents)


def _spelt(value: object) -> str:
    fields = getattr(value, "__dict__", None)
    is_opaque = fields is not None and type(value).__repr__ is object.__repr__
    if isinstance(value, set):
        return f"{{{', '.join(sorted(map(repr, value)))}}}"
    return repr(fields) if is_opaque else repr(value)


def _cut(text: str) -> str:
    return text if len(text) <= SPELT_MAX else f"{text[:SPELT_MAX]}…"


def _is_somebodys(kind: type) -> bool:
    top = kind.__module__.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in {"pydantic", "qntx_es", "sqlalchemy"}


def _places_of(functions: Iterable[Callable[..., object]]) -> list[Place]:
    found: dict[tuple[int, str], Place] = {}
    waiting = [one for given in functions if isinstance(one := unwrap(given), FunctionType)]
    houses = {one.__module__.partition(".")[0] for one in waiting}
    seen: set[int] = set()
    while waiting:
        function = waiting.pop()
        if id(function.__code__) in seen and function.__closure__ is None:
            continue
        if id(function) in seen:
            continue
        seen |= {id(function), id(function.__code__)}
        for place in _reached_by(function, houses):
            found.setdefault((id(place.owner), place.name), place)
            waiting += _functions_in(place.get(), houses)
    return list(found.values())


def _functions_in(value: Any, houses: set[str]) -> list[FunctionType]:  # noqa: ANN401
    value = unwrap(value) if callable(value) else value
    if isinstance(value, FunctionType) and value.__module__.partition(".")[0] in houses:
        return [value]
    kind = value if isinstance(value, type) else type(value)
    if kind.__module__.partition(".")[0] not in houses:
        return []
    return [one for one in vars(kind).values() if isinstance(one, FunctionType)]


def _reached_by(function: FunctionType, houses: set[str]) -> Iterator[Place]:
    names = set(_names_in(function.__code__))
    where = f"{function.__module__}.{function.__qualname__}"
    for name in sorted(names & function.__globals__.keys()):
        yield from _named(function.__globals__, name, function.__module__, names, houses)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        if _is_filled(cell):
            yield Place(cell, name, where, _cell_getter(cell), _cell_setter(cell))
    arguments = function.__code__.co_varnames
    defaults = function.__defaults__ or ()
    first = function.__code__.co_argcount - len(defaults)
    for index, _ in enumerate(defaults):
        yield _default(function, index, arguments[first + index], where)
    for name in function.__kwdefaults__ or {}:
        yield _of_mapping(function.__kwdefaults__ or {}, name, where)
    for name in vars(function):
        yield _of_mapping(vars(function), name, where)


def _named(
    space: dict[str, Any], name: str, where: str, names: set[str], houses: set[str]
) -> Iterator[Place]:
    value = space[name]
    yield _of_mapping(space, name, where)
    if isinstance(value, ModuleType) and value.__name__.partition(".")[0] in houses:
        for inner in sorted(names & vars(value).keys()):
            yield _of_mapping(vars(value), inner, value.__name__)
    kind = value if isinstance(value, type) else type(value)
    if kind.__module__.partition(".")[0] in houses:
        for inner, held in vars(kind).items():
            if not inner.startswith("__") and _noted(held) is not None:
                yield _of_class(kind, inner)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from (one.argval for one in dis.get_instructions(code) if isinstance(one.argval, str))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _of_mapping(space: dict[str, Any], name: str, where: str) -> Place:
    return Place(
        space, name, where, lambda: space.get(name), lambda value: space.update({name: value})
    )


def _of_class(kind: type, name: str) -> Place:
    where = f"{kind.__module__}.{kind.__qualname__}"
    return Place(
        kind, name, where, lambda: vars(kind).get(name), lambda value: setattr(kind, name, value)
    )


def _default(function: FunctionType, index: int, name: str, where: str) -> Place:
    def get() -> Any:  # noqa: ANN401 - whatever the default is
        return (function.__defaults__ or ())[index]

    def put(value: object) -> None:
        defaults: list[Any] = list(function.__defaults__ or ())
        defaults[index] = value
        function.__defaults__ = tuple(defaults)

    return Place(function, name, where, get, put)


def _is_filled(cell: Any) -> bool:  # noqa: ANN401 - a cell of a closure
    try:
        cell.cell_contents  # noqa: B018 - an empty one raises
    except ValueError:
        return False
    return True


def _cell_getter(cell: Any) -> Callable[[], Any]:  # noqa: ANN401 - a cell of a closure
    return lambda: cell.cell_contents


def _cell_setter(cell: Any) -> Callable[[Any], None]:  # noqa: ANN401 - a cell of a closure
    return lambda value: setattr(cell, "cell_contents", value)
